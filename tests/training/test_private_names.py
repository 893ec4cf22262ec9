"""Whatever is used of the trainer beyond its public interface is in the table; a trainer that differs is refused."""

import ast
import inspect
from pathlib import Path

import pytest
from trl import GRPOTrainer

import pivottrace_trl
from pivottrace_trl import PivotDensityCallback
from pivottrace_trl.training.policy import TrainerPolicy
from pivottrace_trl.training.private_names import ATTRIBUTES, METHODS, SOMETIMES, find_differences


PACKAGE = Path(pivottrace_trl.__file__).parent
TREES = {path: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
TABLE = {*METHODS, *ATTRIBUTES}
# Private names of other libraries, each with the room that looks after it.
ELSEWHERE = {
    "_C": "tracing and hidden_states ask torch for the running backward pass",
    "_current_graph_task_id": "tracing and hidden_states ask torch for the running backward pass",
    "_attn_implementation": "tracing reads the configuration of a model as its attention modules do",
    "_compiled_call_impl": "tracing asks torch whether a module is compiled",
    "_dynamo": "tracing asks torch whether a module is compiled",
    "_fields": "the ledger's file names its columns; public, named tuples begin with an underscore lest fields clash",
}


def own_names() -> set[str]:
    """Names that the package defines itself."""
    names: set[str] = set()
    for node in (node for tree in TREES.values() for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self" and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names


def uses() -> list[tuple[str, str]]:
    """Every private attribute that is not the package's own, whatever the object is called, and where it is used."""
    own, found = own_names(), []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            name = None
            if isinstance(node, ast.Attribute):
                name = node.attr
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr", "delattr"):
                name = node.args[1].value if isinstance(node.args[1], ast.Constant) else None
            if name is not None and name.startswith("_") and not name.startswith("__") and name not in own:
                found.append((name, f"{path.relative_to(PACKAGE)}:{node.lineno}"))
    return found


def shadowed() -> set[str]:
    """Methods of `GRPOTrainer`, public ones too, that attributes of a trainer take the place of."""
    return {
        node.attr
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if ast.unparse(node.value).endswith("trainer") and callable(getattr(GRPOTrainer, node.attr, None))
    }


def test_every_private_name_that_is_used_is_in_the_table():
    strangers = [use for use in uses() if use[0] not in TABLE | ELSEWHERE.keys()]
    assert not strangers, f"add these to training/private_names.py: {strangers}"


def test_every_method_that_is_shadowed_is_in_the_table():
    assert shadowed() and shadowed() <= METHODS.keys()


def test_the_table_names_only_what_is_used():
    used = {name for name, _ in uses()} | shadowed()
    assert used >= TABLE
    assert {name for name, _ in uses()} >= ELSEWHERE.keys()


def test_no_private_module_of_trl_or_transformers_is_imported():
    modules = [
        f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0)
        for alias in node.names
    ]
    assert not [m for m in modules if m.split(".")[0] in ("trl", "transformers") and "._" in m]


def test_the_installed_trl_is_as_the_table_says(make_trainer):
    assert find_differences(make_trainer()) == []


def changed(trainer, name: str, value) -> None:
    """Change the class of a trainer in one name, as another version of TRL would."""
    trainer.__class__ = type("GRPOTrainer", (type(trainer),), {name: value})


def with_parameters(*parameters: str):
    """A method that takes the given parameters."""
    namespace: dict = {}
    exec(f"def method({', '.join(('self', *parameters))}): pass", namespace)
    return namespace["method"]


def is_refused(trainer, message: str) -> None:
    """The refusal names what differs, and nothing of the trainer was changed."""
    before = dict(vars(trainer))
    with pytest.raises(
        RuntimeError, match=rf"GRPOTrainer of trl \S+ with transformers .*{message}.*Supported are trl"
    ):
        PivotDensityCallback(trainer)
    assert vars(trainer) == before


@pytest.fixture
def trainer(make_trainer):
    return make_trainer()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_that_trl_changes_is_noticed(name, trainer):
    cls, expected = type(trainer), METHODS[name]
    changed(trainer, name, None)
    is_refused(trainer, f"there is no method `{name}`")
    changes = {
        "renamed": [f"new_{expected[0]}", *expected[1:]],
        "put in front": ["context", *expected],
        "needed": [*expected, "context"],
        "needed by keyword": [*expected, "*", "context"],
        "dropped": list(expected[:-1]),
    }
    for parameters in changes.values():
        trainer.__class__ = cls
        changed(trainer, name, with_parameters(*parameters))
        is_refused(trainer, rf"`{name}\(.*\)` is now `")


@pytest.mark.parametrize("name", sorted(METHODS))
def test_parameters_that_may_be_left_out_are_no_change(name, trainer):
    expected = METHODS[name]
    for more in (["context=None"], ["*", "context=None"], ["*args", "**kwargs"]):
        changed(trainer, name, with_parameters(*expected, *more))
        assert find_differences(trainer) == []
    changed(trainer, name, with_parameters(expected[0], "*args", "**kwargs"))
    assert find_differences(trainer) == []


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_attribute_that_trl_removes_is_noticed(name, trainer):
    vars(trainer).pop(name, None)
    assert not hasattr(type(trainer), name)
    is_refused(trainer, f"there is no `{name}`")


@pytest.mark.parametrize("has_number", [True, False])
def test_one_response_to_each_prompt_whether_or_not_their_number_is_a_parameter(has_number, trainer):
    """TRL up to 1.14.0 takes the number of responses from the trainer, later versions from the caller."""
    seen = []
    trainer.num_generations_eval = 4
    if has_number:

        def generate(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
            seen.append((num_generations, has_tool_images))
            return [(5, 1)] * len(prompt_ids), None
    else:

        def generate(self, prompt_ids, images, multimodal_fields, has_tool_images=False):
            seen.append((self.num_generations_eval, has_tool_images))
            return [(5, 1)] * len(prompt_ids), None

    changed(trainer, "_generate_single_turn", generate)
    assert find_differences(trainer) == []
    assert TrainerPolicy(trainer).generate([[7], [8], [9]], number=0) == [[5, 1]] * 3
    assert seen == [(1, False)] and trainer.num_generations_eval == 4


def test_the_number_of_responses_is_put_back_when_generation_fails(trainer):
    def generate(self, prompt_ids, images, multimodal_fields):
        raise MemoryError

    trainer.num_generations_eval = 4
    changed(trainer, "_generate_single_turn", generate)
    with pytest.raises(MemoryError):
        TrainerPolicy(trainer).generate([[7]], number=0)
    assert trainer.num_generations_eval == 4


def test_a_parameter_of_some_versions_only_is_in_the_table():
    for name, parameter in SOMETIMES.items():
        needed = [
            p.name
            for p in inspect.signature(getattr(GRPOTrainer, name)).parameters.values()
            if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        assert tuple(needed[1:]) in (METHODS[name], (*METHODS[name], parameter))
