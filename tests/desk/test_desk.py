"""The desk: who is shown what, what is safe to show, and two pages in a real browser."""

import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pivottrace_trl import AnnotationLedger, Query
from pivottrace_trl.desk.markup import Attempt, attempt_html, load_attempts, to_markdown
from pivottrace_trl.desk.session import DeskSession

from ..conftest import needs_browser


IDS = [f"p{number}" for number in range(6)]
PROMPTS = [
    r"If $x^2 = 4$ and $x>0$, what is \(\frac{x}{2}\)?",
    "Ann pays $5 and Bob pays $6. How much is 5*6+3*4 in *all*?",
    "<script>document.body.innerHTML = 'taken over'</script> What is 2+2?",
    *(f"What is {number}+{number}?" for number in range(3, 6)),
]


@pytest.fixture
def ledger(tmp_path):
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 4, IDS)
    ledger.request([Query(i, text, score=-float(n)) for n, (i, text) in enumerate(zip(IDS, PROMPTS, strict=True))])
    return ledger


class Clock:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def test_tabs_are_shown_different_questions(ledger):
    clock = Clock()
    desk = DeskSession(ledger, now=clock)
    assert [desk.next(tab).query.prompt_id for tab in ("one", "two", "one")] == ["p0", "p1", "p0"]
    shown = desk.answer("one", "ann", "p0", "1")
    assert (shown.query.prompt_id, shown.message, shown.draft) == ("p2", "Recorded: 1", "")
    assert desk.skip("two", "bob", "p1").query.prompt_id == "p3"
    assert desk.mark_broken("two", "bob", "p3").query.prompt_id == "p4"
    # A tab that was closed gives its question back after a while.
    assert desk.next("three").query.prompt_id == "p5"
    clock.seconds += 16 * 60
    assert desk.next("three").query.prompt_id == "p2"
    for tab in ("a", "b", "c"):
        desk.next(tab)
    shown = desk.next("late")
    assert shown.query is None and "All 4 open questions are on other screens" in shown.message


def test_what_is_shown_stays_in_the_queue(ledger):
    desk = DeskSession(ledger)
    shown = [desk.next(tab, author).query for tab, author in (("one", "ann"), ("two", "bob"))]
    assert [ledger.claimant(query.prompt_id) for query in shown] == ["ann", "bob"]
    assert desk.skip("two", "bob", "p1").query.prompt_id == "p2" and ledger.claimant("p1") is None
    desk.next("two", "bob", shown="p2")
    assert [event["kind"] for event in ledger.events()].count("claim") == 3  # once for each question that is shown
    # The run routes again, and nothing of all this is worth asking any more.
    ledger.request([], epoch=1)
    assert [query.prompt_id for query in ledger.queue()] == ["p0", "p2"]
    assert desk.answer("one", "ann", "p0", "1").message.startswith("Recorded: 1")
    assert desk.undo("one", "ann").query.prompt_id == "p0" and ledger.claimant("p0") == "ann"


def test_who_gives_no_name_is_one_person(ledger):
    desk = DeskSession(ledger)
    assert desk.next("one", "").query.prompt_id == "p0"
    assert desk.skip("one", " ", "p0").query.prompt_id == "p1" and ledger.claimant("p0") is None
    assert desk.answer("one", "", "p1", "1").message == "Recorded: 1"
    assert desk.undo("one", "").query.prompt_id == "p1"
    assert desk.undo("one", "").query.prompt_id == "p0"
    assert desk.mark_broken("one", "", "p0").message.startswith("Marked") and ledger.has_declined("p0")
    assert desk.undo("one", " ").query.prompt_id == "p0"


def test_after_a_restart_tabs_keep_their_questions(ledger):
    desk = DeskSession(ledger)
    assert desk.next("two", shown="p1").query.prompt_id == "p1"
    assert desk.next("one", shown="p0").query.prompt_id == "p0"
    assert desk.next("three", shown="p1").query.prompt_id == "p2"


def test_what_cannot_be_read_stays_in_the_box(ledger):
    desk = DeskSession(ledger)
    desk.next("one")
    shown = desk.answer("one", "ann", "p0", r"\frac{1}{")
    assert (shown.query.prompt_id, shown.draft) == ("p0", r"\frac{1}{") and "Not recorded" in shown.message
    assert ledger.num_bought == 0
    with pytest.raises(ValueError, match="reads nothing"):
        desk.preview(r"\frac{1}{")
    assert desk.preview("1/2") == "$1/2$" and desk.preview(r"\frac{2}{4}") == r"$\frac{1}{2}$"


def test_two_people_disagree(ledger):
    desk = DeskSession(ledger)
    desk.answer("one", "ann", "p0", "1/2")
    assert "ann gave the same answer before" in desk.answer("two", "bob", "p0", "0.5").message
    assert "ann answered 1/2 before, which counts. Your 3 is kept" in desk.answer("two", "bob", "p0", "3").message
    assert [event["kind"] for event in ledger.events()].count("unused") == 1
    for number in range(1, 4):
        desk.answer("one", "ann", f"p{number}", "1")
    assert "budget of 4 labels is spent" in desk.answer("one", "ann", "p4", "1").message
    assert desk.answer("one", "ann", "nobody", "1").message.startswith("Not recorded")


def test_undo_brings_the_question_back(ledger):
    desk = DeskSession(ledger)
    assert desk.undo("one", "ann").message == "There is nothing to undo."
    desk.answer("one", "ann", "p0", "1")
    shown = desk.undo("one", "ann")
    assert (shown.query.prompt_id, shown.message) == ("p0", "Undone.") and ledger.label("p0") is None
    assert desk.next("two").query.prompt_id == "p1"  # it is on the first screen again
    assert desk.next("one").query.prompt_id == "p0"


def test_prompts_are_shown_as_they_are():
    assert to_markdown("a_b *c* $5 and $6") == r"a\_b \*c\* $5 and $6"
    assert to_markdown(r"so $x^2$ and \(y\)") == "so \u27ecx^2\u27ed and \u27ecy\u27ed"
    assert to_markdown("$5-$6") == r"$5\-$6"
    assert "<" not in to_markdown("<b>1 < 2</b>")
    assert to_markdown("one\n\ntwo") == "one  \n  \ntwo"


def test_attempts_mark_their_pivots(tmp_path):
    path = tmp_path / "attempts.parquet"
    assert load_attempts(path) == {}
    spans = pa.list_(pa.int32())
    columns = {"prompt_id": ["p0"], "text": ["so <4> wait"], "pivot_start": pa.array([[0, 7]], spans)}
    pq.write_table(pa.table(columns | {"pivot_end": pa.array([[2, 11]], spans)}), path)
    attempts = load_attempts(path)
    assert attempts == {"p0": Attempt("so <4> wait", ((0, 2), (7, 11)))}
    page = attempt_html(attempts["p0"])
    assert '<mark title="pivot">so</mark> &lt;4&gt; <mark title="pivot">wait</mark>' in page and "2 pivots" in page
    assert "was not stored" in attempt_html(None)


class Server:
    """`pivottrace desk` in a process of its own."""

    def __init__(self, folder, *options):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._command = [
            sys.executable,
            "-m",
            "pivottrace_trl",
            "desk",
            str(folder),
            "--port",
            str(self.port),
            *options,
        ]
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
        )
        for line in self.process.stdout:
            if found := re.search(r"The desk is at (\S+)", line):
                self.url = found[1]
                break
        else:
            raise RuntimeError("the desk did not start")
        for _ in range(600):
            with socket.socket() as probe:
                probe.settimeout(0.1)
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def serve(ledger, tmp_path):
    servers = []

    def start(*options):
        servers.append(Server(tmp_path, *options))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


class Desk:
    """What a person does and sees in one tab."""

    def __init__(self, context, url):
        self.page = context.new_page()
        self.foreign = []
        self.page.on("request", lambda request: self.foreign.append(request.url))
        self.page.goto(url)
        self.wait_for("?")

    def wait_for(self, text, element="#prompt"):
        script = "([element, text]) => (document.querySelector(element)?.textContent || '').includes(text)"
        self.page.wait_for_function(script, arg=[element, text], timeout=30_000)

    def wait_for_message(self, text):
        script = "text => (document.querySelector('#message textarea, #message input')?.value || '').includes(text)"
        self.page.wait_for_function(script, arg=text, timeout=30_000)

    def wait_for_focus(self):
        self.page.wait_for_function("document.activeElement.closest('#answer') !== null", timeout=30_000)

    def type(self, text):
        self.wait_for_focus()
        self.page.keyboard.type(text)

    def press(self, key):
        self.page.keyboard.press(key)


def labels(ledger):
    ledger.refresh()
    return {identity: ledger.label(identity)["solution"] for identity in sorted(ledger.bought_ids)}


def test_nobody_gets_in_without_the_token(serve, tmp_path):
    server = serve()
    assert server.url.startswith("http://127.0.0.1:")
    bare = f"http://127.0.0.1:{server.port}/"
    for url in (
        bare,
        bare + "run",
        bare + "config",
        bare + "gradio_api/info",
        bare + "?token=wrong",
        bare + "?token=é",
    ):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(urllib.parse.quote(url, safe=":/?="), timeout=30)
    assert (tmp_path / "desk-token").stat().st_mode & 0o077 == 0


@needs_browser
def test_a_person_answers_with_the_keyboard_alone(serve, browser, ledger):
    server = serve("--author", "ann")
    desk = Desk(browser.new_context(), server.url)
    assert "token" not in desk.page.url
    assert desk.page.locator("#prompt .katex").count() == 3
    desk.type(r"\frac{2}{4}")
    desk.wait_for("reads as", "#reading")
    assert desk.page.locator("#reading .katex").count() == 1
    desk.page.keyboard.type("(")
    desk.wait_for("cannot be read", "#reading")
    desk.press("Enter")
    desk.wait_for_message("Not recorded")
    assert labels(ledger) == {}
    desk.wait_for_focus()
    desk.press("Backspace")
    desk.press("Enter")
    desk.wait_for("Ann pays $5 and Bob pays $6. How much is 5*6+3*4 in *all*?")
    assert labels(ledger) == {"p0": r"$\frac{2}{4}$"} and ledger.author("p0") == "ann"
    # A reload shows the same question again, and what was answered stays answered.
    desk.page.reload()
    desk.wait_for("Ann pays")
    desk.type("42")
    desk.press("Enter")
    # Nothing in a prompt is run.
    desk.wait_for("<script>document.body.innerHTML = 'taken over'</script> What is 2+2?")
    desk.wait_for("4 in the queue · 2 of 4 labels bought", "#progress")
    desk.wait_for_focus()
    desk.press("Alt+z")
    desk.wait_for("Ann pays")
    assert labels(ledger) == {"p0": r"$\frac{2}{4}$"}
    desk.type("41")
    desk.press("Enter")
    desk.wait_for("2+2")
    desk.wait_for_focus()
    desk.press("Alt+s")
    desk.wait_for("3+3")
    desk.wait_for_focus()
    desk.press("Alt+b")
    desk.wait_for("4+4")
    assert labels(ledger) == {"p0": r"$\frac{2}{4}$", "p1": "41"}
    assert ledger.has_declined("p3") and [query.prompt_id for query in ledger.queue()] == ["p4", "p5", "p2"]
    # Everything comes from this machine.
    assert not [url for url in desk.foreign if not url.startswith((f"http://127.0.0.1:{server.port}/", "data:"))]


@needs_browser
def test_two_tabs_and_a_server_that_dies(serve, browser, ledger):
    server = serve("--author", "ann")
    context = browser.new_context()
    first, second = Desk(context, server.url), Desk(context, server.url)
    first.wait_for("If ")
    second.wait_for("Ann pays")
    first.type("1")
    first.press("Enter")
    first.wait_for("2+2")
    second.type("42")
    server.kill()
    second.press("Enter")  # into the void
    second.page.wait_for_timeout(500)
    assert labels(ledger) == {"p0": "1"}
    server.start()
    # The page comes back by itself, with the question and the text that was in the box.
    box = "document.querySelector('#answer textarea, #answer input')?.value === '42'"
    second.page.wait_for_timeout(2000)
    second.wait_for("Ann pays")
    second.page.wait_for_function(box, timeout=30_000)
    second.wait_for_focus()
    second.press("Enter")
    second.wait_for_message("Recorded: 42")
    assert labels(ledger) == {"p0": "1", "p1": "42"}
    first.page.reload()
    first.wait_for("What is")
    first.type("4")
    first.press("Enter")
    first.wait_for_message("Recorded: 4")
    assert len(labels(ledger)) == 3 and ledger.num_bought == 3


@needs_browser
def test_the_run_page_and_the_attempts(serve, browser, ledger, tmp_path):
    spans = pa.list_(pa.int32())
    columns = {"prompt_id": ["p0"], "text": ["so wait"], "pivot_start": pa.array([[3]], spans)}
    pq.write_table(pa.table(columns | {"pivot_end": pa.array([[7]], spans)}), tmp_path / "attempts.parquet")
    desk = Desk(browser.new_context(), serve("--show-attempts").url)
    desk.wait_for("so wait", "#attempt")
    assert desk.page.locator("#attempt mark").all_inner_texts() == ["wait"]
    desk.page.get_by_text("Run", exact=True).click()
    desk.wait_for("0 of 4 labels bought", "#picture")
    assert desk.page.locator("#picture img").count() == 1
    desk.wait_for("Not available yet", "#picture")
