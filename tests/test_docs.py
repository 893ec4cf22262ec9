"""The site builds without a warning, holds every public name, shows no markup, and loads nothing from elsewhere."""

import importlib
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import pivottrace_trl

from .conftest import find_chromium
from .test_structure import ROOMS_WITH_NAMES


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_reference_holds_every_public_name_and_the_callback_first(site):
    pages = [(site / page / "index.html").read_text() for page in ("reference", "reference_rooms")]
    rooms = [importlib.import_module(f"pivottrace_trl.{room}") for room in ROOMS_WITH_NAMES]
    names = {name: f"{room.__name__}.{name}" for room in [*rooms, pivottrace_trl] for name in room.__all__}
    shown = [re.findall(r'<h3 id="([\w.]+)"', page) for page in pages]
    assert len(names) > 70 and sorted(shown[0] + shown[1]) == sorted(names.values())
    assert shown[0][0] == "pivottrace_trl.PivotDensityCallback" and len(shown[0]) == len(pivottrace_trl.__all__)
    for page in pages:
        text = re.sub(r"<pre.*?</pre>", "", page, flags=re.DOTALL)
        assert not re.findall(
            r"\[(?:<code>|`)|\*optional\*|`", text[text.index("<article") : text.index("</article>")]
        )
        anchors = {f"#{identity}" for page in pages for identity in re.findall(r'id="([\w.]+)"', page)}
        assert {f"#{link}" for link in re.findall(r'href="../reference[a-z_]*/#([\w.]+)"', page)} <= anchors


def test_nothing_is_loaded_from_elsewhere(site):
    pages = [page.read_text() for page in site.rglob("*.html")]
    assert len(pages) > 10
    loaded = [
        url for page in pages for url in re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', page)
    ]
    assert not loaded


def test_the_start_page_leads_on(site):
    page = (site / "index.html").read_text()
    article = page[page.index("<article") : page.index("</article>")]
    assert re.findall(r'<strong><a href="(\w+)/"', article) == [
        "quickstart", "guide", "annotation", "reproduction", "reference",
    ]  # fmt: skip
    assert "images/how_it_works.png" in article
    assert 'data-md-color-scheme="slate"' in page and 'data-md-component="search"' in page
    assert "git+REPOSITORY" not in (site / "quickstart" / "index.html").read_text()


def test_the_address_of_the_repository_is_that_of_setup():
    (address,) = re.findall(r'^repository = "https://(.+)"', (ROOT / "setup.py").read_text(), re.MULTILINE)
    pages = [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "examples").glob("*.*"),
    ]
    named = {found for page in pages for found in re.findall(r"github\.com/[\w-]+/pivottrace-trl", page.read_text())}
    assert named == {address}
    owner = address.removeprefix("github.com/")
    assert f"colab.research.google.com/github/{owner}/blob/main/examples/quickstart_colab.ipynb" in README


def test_the_readme_is_read_in_a_minute():
    prose = re.sub(r"```.*?```", "", README.split("\n## Reference\n")[0], flags=re.DOTALL)
    assert 200 < len(re.findall(r"[\w'-]+", re.sub(r"\]\([^)]*\)", "]", prose))) < 500


def test_the_script_of_the_readme_prints_what_stands_below_it(tmp_path, monkeypatch, capfd):
    """With fewer prompts, shorter completions and one step: the lines are the same but for their numbers."""
    tools = runpy.run_path(str(ROOT / "scripts" / "readme_output.py"))
    script = tools["script_of"](README)
    script = re.sub(r"max_steps=\d+", "max_steps=1", script).replace("batch_size=64", "batch_size=8")
    script = re.sub(r"make_pool\(\d+", "make_pool(64", script).replace("annotation_budget=75", "annotation_budget=32")
    monkeypatch.chdir(tmp_path)
    exec(script, {})
    assert (tmp_path / "run" / "_pivottrace" / "ledger.sqlite").is_file()
    (shown,) = re.findall(r"\[start:output\] -->\n```text\n(.*?)```", README, re.DOTALL)

    def shape(lines: list[str]) -> str:
        text = " ".join(" ".join(lines).split()).replace("does not separate", "separates")  # 64 prompts tell less
        return re.sub(r"[\d.]+", "N", text)

    printed = shape(tools["shown"](capfd.readouterr().out))
    assert len(shown.split()) > 50 and shape(shown.splitlines()) == printed, "python scripts/readme_output.py"


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium found")
def test_no_page_is_wider_than_a_phone(site, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import screenshots

    monkeypatch.setattr(screenshots, "WIDTHS", {390: 844})
    monkeypatch.setattr(screenshots, "SCHEMES", ("light",))
    pages = [ROOT / "README.md", *(site / name / "index.html" for name in ("", "guide", "reproduction", "reference"))]
    taken = screenshots.take(pages, tmp_path, find_chromium(), full=False)
    assert [path.stat().st_size > 10_000 for path in taken] == [True] * len(pages) and not capsys.readouterr().out
