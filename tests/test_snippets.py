"""What is to be pasted from the documents: the Python of every page runs in order, and every command exists."""

import _thread
import re
import shlex
import threading
from contextlib import closing
from pathlib import Path

import pytest
from trl import GRPOConfig, GRPOTrainer

from pivottrace_trl import AnnotationLedger, Answer
from pivottrace_trl.cli import make_parser
from pivottrace_trl.demo.arithmetic import make_pool
from pivottrace_trl.demo.arm import MODEL_PATH
from pivottrace_trl.labels.queries import Query

from .conftest import FIRST_DIGIT


ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "examples" / "README.md", *(ROOT / "docs").glob("*.md")])
# Pages with Python, and the test that runs it.
RUN_BY = {
    "README.md": "test_docs.py::test_the_script_of_the_readme_prints_what_stands_below_it",
    "guide.md": "test_troubleshooting.py::test_the_snippets_of_the_guide_run",
    "standalone.md": "test_structure.py::test_the_examples_in_the_documents_run",
    "annotation.md": "test_snippets.py::test_annotation and test_another_trainer.py::test_the_walk_through",
    "gpus.md": "test_snippets.py::test_gpus",
    "index.md": "test_snippets.py::test_the_start_page",
    "trl_cli.md": "test_train_command.py::test_the_snippets_of_the_page_run",
    "reproduction.md": "test_snippets.py::test_reproduction",
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every line of every shell block; a line that ends in a backslash goes on."""
    found = []
    for path in PAGES:
        for block in blocks(path.read_text(), "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = [word.rstrip(";") for word in shlex.split(line, comments=True)]
                if words[:1] == ["for"]:
                    words = words[words.index("do") + 1 : -1]
                while words and re.fullmatch(r"\w+=\S*", words[0]):
                    words = words[1:]
                found += [(path.name, words)] if words else []
    return found


def test_every_page_with_python_is_run():
    with_python = {path.name for path in PAGES if blocks(path.read_text(), "python")}
    assert with_python == RUN_BY.keys()
    for test in re.findall(r"(test_\w+\.py)::(\w+)", " ".join(RUN_BY.values())):
        assert f"def {test[1]}(" in (ROOT / "tests" / test[0]).read_text()


def test_every_command_of_the_package_is_one():
    """As far as the parser: an option that is gone or misspelt, or a missing argument, ends it."""
    # `pivottrace train` hands what follows to TRL's parser: tests/test_train_command.py runs its page.
    ours = [words for _, words in commands() if words[0] == "pivottrace" and words[1] != "train"]
    assert len(ours) > 20
    for words in ours:
        filled_in = ["0" if word == "$seed" else word for word in words[1:] if not re.search(r"\[[A-Z]|\]$", word)]
        assert make_parser().parse_args(filled_in)


def test_every_other_command_is_one():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    others = [(where, words) for where, words in commands() if words[0] in ("make", "python")]
    assert len(others) > 20
    for where, words in others:
        if words[0] == "make":
            assert set(words[1:]) <= targets, where
        elif (ROOT / words[1]).is_file():
            source = (ROOT / words[1]).read_text()
            missing = [word for word in words if word.startswith("--") and f'"{word}"' not in source]
            assert not missing or "common import" in source or "add_" in source, f"{where}: {words[1]} {missing}"
        else:
            assert words[1] in ("train.py", "-c"), f"{where}: {words}"


class Person(threading.Thread):
    """Answers whatever is in the queue of a run, until it is told to stop; if it fails, nobody waits for it."""

    def __init__(self, path: Path):
        super().__init__(daemon=True)
        self._path, self.is_done = path, threading.Event()

    def run(self):
        try:
            with closing(AnnotationLedger.open(self._path)) as ledger:
                while not self.is_done.wait(0.02):
                    ledger.record([Answer(query.prompt_id, {"solution": "1"}, "ann") for query in ledger.queue()])
        except BaseException:
            _thread.interrupt_main()
            raise


def test_annotation(make_trainer, tmp_path, monkeypatch):
    """The run of Monday waits for a person; later days attach other annotators; at the end labels are taken out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    text = page("annotation.md").split("\n## Another trainer\n")[0]
    dataset = make_pool(16, seed=0)
    namespace = {"dataset": dataset, "look_up": lambda prompt: "7"}
    for number, block in enumerate(blocks(text, "python")):
        without_labels = dataset.remove_columns("solution")
        namespace["trainer"] = make_trainer(
            dataset=without_labels,
            reward_funcs=lambda completions, solution, **kwargs: [0.5] * len(completions),
            output_dir="run" if number == 0 else f"run-{number}",
        )
        block = block.replace(
            "annotation_budget", f"answer_format={FIRST_DIGIT.name!r}, annotation_budget", number == 0
        )
        if number == 0:  # the ledger is there as soon as the callback is
            block, training = block.split("trainer.train()")
            exec(block, namespace)
            person = Person(namespace["callback"].ledger.path)
            person.start()
            exec("trainer.train()" + training, namespace)
            person.is_done.set()
            person.join()
        else:
            exec(block, namespace)
    assert number >= 4 and namespace["trainer"].state.global_step == 0
    assert namespace["annotator"].author == "big-model" and namespace["panel"].author.endswith("+ big-model")
    (answer,) = namespace["Colleague"]().ask([Query("a", "1+6=?", row={"prompt": "1+6=?"})])
    assert answer.label == "7" and answer.author == "maria"
    labels = namespace["labels"]
    assert len(labels) >= 2 and set(labels["author"]) == {"ann"}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """What a page needs that cannot be had here: the model of the hub, a GPU, more than a step."""
    monkeypatch.chdir(tmp_path)
    make_pool(8, seed=0).to_json("pool.jsonl")
    on_a_cpu = {"use_cpu": True, "bf16": False, "fp16": False, "max_steps": 1, "max_completion_length": 12}

    def config(**options):
        return GRPOConfig(**{**options, **on_a_cpu, "model_init_kwargs": None, "report_to": "none"})

    def trainer(model, quantization_config=None, **options):
        return GRPOTrainer(model=str(MODEL_PATH), **options)

    monkeypatch.setattr("trl.GRPOConfig", config)
    monkeypatch.setattr("trl.GRPOTrainer", trainer)


def test_gpus(tiny):
    namespace: dict = {}
    for block in blocks(page("gpus.md"), "python"):
        exec(block, namespace)
        assert namespace["trainer"].state.global_step == 1
        assert all(p.dtype.itemsize == 4 for p in namespace["trainer"].model.parameters() if p.requires_grad)


def test_the_start_page(make_trainer):
    (block,) = blocks(page("index.md"), "python")
    trainer = make_trainer()
    exec(block.replace("=500", "=5"), {"trainer": trainer})
    assert trainer.callback_handler.callbacks[-1].ledger.budget == 5


def test_reproduction(make_trainer):
    (block,) = blocks(page("reproduction.md"), "python")
    trainer = make_trainer(max_steps=1)
    exec(block, {"trainer": trainer, "dataset": trainer.train_dataset})
    trainer.train()
    assert (Path(trainer.args.output_dir) / "run.json").is_file()
