"""What the troubleshooting page quotes is what the package says, and the snippets of the guide run."""

import ast
import re
from pathlib import Path

import pytest
from trl import GRPOConfig, RLOOConfig

from pivottrace_trl.demo.arithmetic import make_pool
from pivottrace_trl.demo.arm import MODEL_PATH


ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pivottrace_trl"
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
GUIDE = (ROOT / "docs" / "guide.md").read_text()
# A value in a message of the source.
VALUE = "\0"


def template(node: ast.AST) -> str | None:
    """The text of a string with `VALUE` for what is filled in; implicitly joined strings are one."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"\{\w*\}|%s|%g", VALUE, node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)
    return None


def messages(path: Path, is_wanted) -> list[str]:
    """The longest string in every statement of a file that is wanted."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if is_wanted(node):
            texts = [text for part in ast.walk(node) if (text := template(part))]
            found += [max(texts, key=len)] if texts else []
    return found


def quotes() -> list[str]:
    """The first cell of every table that holds one span of code, in `single` or `` double `` backticks."""
    cells = [line.split("|")[1].strip() for line in PAGE.splitlines() if line.startswith("| `")]
    spans = [re.fullmatch(r"`` (.+) ``|`([^`]+)`", cell) for cell in cells]
    assert all(spans), f"not one span of code: {[cell for cell, span in zip(cells, spans, strict=True) if not span]}"
    return [span[1] or span[2] for span in spans if span]


def pattern(quote: str) -> str:
    return ".*".join(re.escape(part.strip()) for part in quote.split("..."))


SOURCE = [text for path in PACKAGE.rglob("*.py") for text in messages(path, lambda n: template(n) is not None)]


def test_every_quoted_message_is_one_of_the_package():
    too_short = [quote for quote in quotes() if len(quote.replace("...", "").split()) < 3]
    assert len(quotes()) > 100 and not too_short, "too short to be searched for"
    unsaid = [quote for quote in quotes() if not any(re.match(pattern(quote), text, re.DOTALL) for text in SOURCE)]
    assert not unsaid, "the package never says this"


def is_warning(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in ("logger.warning", "logger.warning_once")


def test_every_warning_and_every_refusal_is_explained():
    said = [text for path in PACKAGE.rglob("*.py") for text in messages(path, is_warning)]
    refusals = [PACKAGE / "training" / f"{name}.py" for name in ("checks", "columns", "prompts")]
    said += [text for path in refusals for text in messages(path, lambda node: isinstance(node, ast.Raise))]
    # What is said of an estimator that cannot be saved stands in a constant, to which the warning adds a sentence.
    explained = [pattern(quote) for quote in [*quotes(), "This run cannot be resumed."]]
    unexplained = [text for text in said if not any(re.match(known, text.strip(), re.DOTALL) for known in explained)]
    assert len(said) > 30 and not unexplained


def snippets() -> dict[str, str]:
    """The Python of each section of the guide; under "" what all of them share."""
    sections = re.split(r"^## (.+)$", GUIDE, flags=re.MULTILINE)
    bodies = {"": sections[0], **dict(zip(sections[1::2], sections[2::2], strict=True))}
    code = {name: "\n".join(re.findall(r"```python\n(.*?)```", body, re.DOTALL)) for name, body in bodies.items()}
    return {name: text for name, text in code.items() if text}


@pytest.mark.parametrize(
    "section",
    [pytest.param(name, marks=pytest.mark.bnb if "4-bit" in name else ()) for name in snippets() if name],
)
def test_the_snippets_of_the_guide_run(section, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_pool(8, seed=0).to_json("pool.jsonl")
    tiny = {"use_cpu": True, "bf16": False, "max_steps": 1, "max_completion_length": 12, "report_to": "none"}
    for kind in (GRPOConfig, RLOOConfig):
        monkeypatch.setattr(f"trl.{kind.__name__}", lambda kind=kind, **options: kind(**{**options, **tiny}))
    namespace: dict = {}
    exec(snippets()[""], namespace)
    namespace["model"] = str(MODEL_PATH)
    exec(snippets()[section], namespace)
    if "trainer" in namespace:
        assert namespace["trainer"].state.global_step == 1
        assert (tmp_path / "run" / "_pivottrace" / "summary.json").is_file()
    else:
        assert namespace["args"].use_vllm
