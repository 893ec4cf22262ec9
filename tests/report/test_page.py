"""The page of a report as people see it: in a browser, at the width of a desktop and of a phone."""

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pivottrace_trl.report import find_runs
from pivottrace_trl.report.label_story import tell_label_story
from pivottrace_trl.report.page import write_report
from pivottrace_trl.routing.tables import find_routes

from ..conftest import attach, make_pool, needs_browser
from .test_report import write_run


@pytest.fixture
def trained(make_trainer, tmp_path):
    """The folder of a run that was routed twice, and its ledger."""
    trainer = make_trainer(make_pool(24), num_train_epochs=2)
    callback = attach(trainer, 10)
    trainer.train()
    callback.detach()
    return tmp_path / "run", callback.ledger


def open_page(browser, path: Path, width: int, **options):
    page = browser.new_context(viewport={"width": width, "height": 900}, **options).new_page()
    page.goto(path.as_uri())
    return page


def test_what_labels_cost_and_changed_is_told_by_what_was_bought(trained):
    folder, ledger = trained
    (run,) = find_runs([folder])
    story = tell_label_story(run)
    assert story.status.bought == ledger.num_bought == run.num_labels > 0
    tables = [pq.read_table(path).to_pydict() for path in find_routes(ledger.path.parent).values()]
    places = {f"{row}+{row % 7}=?": row for row in range(24)}
    assert "Bought" in story.groups and len(tables) > 1
    for kind, prompts in story.groups.items():
        assert 0 < len(prompts) <= 5
        for prompt in prompts:
            row = places[prompt.question]
            label = ledger.label(tables[-1]["prompt_id"][row])
            assert prompt.label == (None if label is None else label["solution"])
            assert prompt.answer_now == (tables[-1]["answer"][row] or "–")
            known = tables[-1]["pass_rate"][row]
            assert prompt.right_now == (known if np.isfinite(known) else None)
            if kind == "Discarded":
                assert tables[-1]["route"][row] == "discard"
            else:
                assert prompt.label is not None
            if kind == "Still wrong":
                assert prompt.right_now < 0.5


def test_one_run_is_no_comparison(trained, tmp_path):
    folder, ledger = trained
    page = write_report(find_runs([folder]), tmp_path / "report").read_text()
    assert "<h1>PivotTrace, seed" in page and "Comparison" not in page and "No arm is called" not in page
    assert re.search(rf"<b>{ledger.num_bought} of 24</b>", page)
    assert page.index("<img") < page.index("A few prompts") < page.index(str(folder.parent / "run</td>"))
    # The folders of the runs are folded away.
    assert "<details>" in page[: page.rindex(str(folder))] and "<details open" not in page


def test_ticks_do_not_meet_and_no_panel_is_empty(tmp_path):
    from pivottrace_trl.report.curves import draw_routes

    for place, num_routings in enumerate((1, 40)):
        folder = write_run(tmp_path / f"{place}", "PivotTrace", place, [0.1, 0.2, 0.3, 0.4], 5, routed=True)
        inner = folder / "_pivottrace"
        table = pq.read_table(inner / "routes-epoch-000.parquet")
        (inner / "routes-epoch-001.parquet").unlink()
        for number in range(num_routings):
            pq.write_table(table, inner / f"routes-epoch-{number:03d}.parquet")
        figure = draw_routes(find_runs([folder])).whole()
        figure.canvas.draw()
        (axes,) = figure.axes
        boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
        assert all(left.x1 < right.x0 for left, right in zip(boxes, boxes[1:]))
        # One arm takes most of the width.
        assert axes.get_window_extent().width > 0.7 * figure.bbox.width


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_both_arms_are_there_and_nothing_is_wider_than_the_window(width, trained, browser, tmp_path):
    folder, _ = trained
    for seed in (0, 1):
        write_run(tmp_path / "full" / str(seed), "full supervision", seed, [0.5, 0.6, 0.65, 0.7 + seed / 10], 17)
        write_run(tmp_path / "ours" / str(seed), "an arm whose name is long", seed, [0.5, 0.6, 0.7, 0.8], 5)
        write_run(tmp_path / "random" / str(seed), "Random", seed, [0.5, 0.6, 0.7, 0.75 - seed / 10], 5, routed=True)
    report = write_report(find_runs([tmp_path]), tmp_path / "report")
    for scheme in ("light", "dark"):
        page = open_page(browser, report, width, color_scheme=scheme)
        requests = []
        page.on("request", lambda request, seen=requests: seen.append(request.url))
        page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # Nothing is cut off, or hidden behind a scroll bar of its own.
        cut = (
            "[...document.querySelectorAll('body *')].filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth)"
        )
        assert page.evaluate(f"{cut}.map(e => e.outerHTML.slice(0, 80))") == []
        arms = page.eval_on_selector_all("table:first-of-type td.arm", "cells => cells.map(c => c.innerText.trim())")
        assert {"full supervision", "Random"} <= set(arms)
        first = page.locator("img").first.bounding_box()
        assert first["y"] < 300 and first["width"] > 250
        colors = "({color, backgroundColor}) => [color, backgroundColor]"
        ink, ground = page.evaluate(f"({colors})(getComputedStyle(document.body))")
        brightness = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in (ink, ground)]
        assert (brightness[0] > brightness[1]) == (scheme == "dark")
        assert not requests
