"""The command line as a person meets it: help with examples, one line for what goes wrong, what comes next."""

import argparse
import shlex
import subprocess
import sys

import pytest

import pivottrace_trl
from pivottrace_trl.cli import main, make_parser
from pivottrace_trl.cli.failures import in_flags


@pytest.fixture
def run_path(ledger_path):
    return ledger_path.parent


@pytest.mark.parametrize("place", range(4))
def test_debug_shows_where_an_error_comes_from(place, tmp_path):
    words = ["annotate", "status", str(tmp_path)]
    with pytest.raises(FileNotFoundError, match="There is no ledger in"):
        main([*words[:place], "--debug", *words[place:]])


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyError("arm"), 1, "KeyError: 'arm'. This is a bug. Run the same again with --debug"),
        (RuntimeError("CUDA went away."), 1, "RuntimeError: CUDA went away. This is a bug"),
        (MemoryError(), 1, "out of memory (MemoryError). Take a smaller"),
        (ImportError("needs openai"), 2, "needs openai"),
        (PermissionError(13, "Permission denied", "x"), 2, "[Errno 13] Permission denied: 'x'"),
        (KeyboardInterrupt(), 130, "interrupted. Nothing is kept; the same command begins anew."),
    ],
)
def test_what_goes_wrong_is_one_line(error, status, said, tmp_path, monkeypatch, capsys):
    def fail(paths):
        raise error

    monkeypatch.setattr("pivottrace_trl.report.record.find_runs", fail)
    assert main(["report", str(tmp_path)]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"pivottrace report: {said}")


def test_messages_speak_of_options_to_who_typed_options():
    flags = {"label_column": "--label-column", "annotator": "--annotator"}
    told = 'Name `label_column`, `label_column=` or `annotator="queue"`; `tau_high=0.4` and `prompt` are none.'
    assert in_flags(told, flags) == (
        "Name --label-column, --label-column or --annotator queue; `tau_high=0.4` and `prompt` are none."
    )


def test_the_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"pivottrace-trl {pivottrace_trl.__version__}\n"


def parsers(parser):
    """A parser and those of its commands, at any depth."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)


def test_every_help_ends_with_examples_that_parse():
    whole = make_parser()
    for parser in parsers(whole):
        if not parser.add_help:  # that of `train` is TRL's
            continue
        lines = [line.strip() for line in parser.format_help().splitlines() if line.startswith("  pivottrace ")]
        assert lines, parser.prog
        for line in lines:
            words = shlex.split(line, comments=True)
            assert line.startswith(parser.prog)
            if "--help" not in words:
                assert callable(whole.parse_args(words[1:]).body), line


def test_the_next_command_can_be_pasted(run_path, capsys):
    def run(words):
        assert main(words) == 0
        out = capsys.readouterr().out
        return out, [shlex.split(line)[1:] for line in out.splitlines() if line.startswith("  pivottrace ")]

    _, (following,) = run(["annotate", "export", str(run_path), "--format", "csv"])
    said, (following,) = run(following)
    assert "5 not answered yet" in said
    assert "5 questions" in run(following)[0]


def test_a_reader_that_has_seen_enough(run_path):
    status = f"{shlex.quote(sys.executable)} -m pivottrace_trl annotate status {shlex.quote(str(run_path))}"
    ended = subprocess.run(["bash", "-c", f"{status} | true; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
