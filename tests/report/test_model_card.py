"""The model card that TRL writes says how the labels were picked, and what to cite."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from trl import GRPOTrainer, RLOOTrainer

from pivottrace_trl.report.messages import RunSetup
from pivottrace_trl.report.model_card import CITATION, amend_model_card

from ..conftest import attach, make_pool


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", [GRPOTrainer, RLOOTrainer])
def test_saving_gives_a_card_with_method_budget_labels_and_citation(kind, make_trainer, tmp_path):
    trainer = make_trainer(make_pool(16), kind=kind, save_strategy="steps", save_steps=4, max_steps=4)
    callback = attach(trainer)
    trainer.train()
    path = tmp_path / "run" / "README.md"
    card = ModelCard.load(path)
    assert {"trl", "pivottrace"} <= set(card.data.tags)
    summary = callback.summary()
    routes = ", ".join(f"{count} {name}" for name, count in summary["routes"].items())
    for line in (
        "| pool | 16 prompts |",
        "| budget | 8 labels (50.0% of the pool) |",
        f"| labels bought | {summary['annotated']} (",
        "prompts as probes; from the dataset |",
        "| score | TotalEntropy, labels bought before the rollouts |",
        f"| routes at the end | {routes} (after 1 routings) |",
    ):
        assert line in card.text
    # TRL's own stays, each once, and ours stands where one looks for it.
    names = (
        "### Labels",
        "### Framework versions",
        f"Cite {trainer._name} as:",
        "Cite PivotTrace as:",
        "Cite TRL as:",
    )
    places = [card.text.index(name) for name in names]
    assert places == sorted(places) and all(card.text.count(name) == 1 for name in names)
    assert (
        card.text.count("```") % 2 == 0 and trainer._paper["citation"].strip() in card.text and CITATION in card.text
    )
    # No prompt and no label.
    assert "=?" not in card.text
    # PEFT, which adds to a card that it finds when a model is saved, leaves our part alone.
    trainer.save_model(tmp_path / "run")
    assert "### Labels" in path.read_text("utf-8") and CITATION in path.read_text("utf-8")
    callback.detach()
    trainer.create_model_card("name", tags="mine")
    card = ModelCard.load(path)
    assert "PivotTrace" not in card.text and "pivottrace" not in card.data.tags and "mine" in card.data.tags


def test_a_card_may_be_asked_for_before_training(make_trainer, tmp_path):
    trainer = make_trainer()
    attach(trainer, annotator="queue", buy="before", answer_format="text")
    trainer.create_model_card("größer", tags="mine")
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert {"mine", "pivottrace"} <= set(card.data.tags) and "größer" in card.text
    assert "from people, through the queue" in card.text and "labels that were there | 32 |" in card.text
    assert "routes at the end" not in card.text


def test_a_card_without_the_headings_of_trl_gets_both_parts_at_its_end(tmp_path):
    summary = {"pool_size": 10, "annotation_budget": 2, "annotated": 1, "probes": 0, "routes": {}, "num_routings": 0}
    setup = RunSetup("Length", "the dataset", "after", "math", "reward")
    ledger = type("Ledger", (), {"own_ids": set()})()
    card = amend_model_card("# Of somebody else", summary, setup, ledger)
    assert card.startswith("# Of somebody else\n\n### Labels\n") and card.rstrip().endswith(f"{CITATION}\n```")


def test_the_citation_is_that_of_the_documents():
    for page in (ROOT / "README.md", ROOT / "docs" / "citing.md"):
        blocks = re.findall(r"```bibtex\n(.*?)\n```", page.read_text(), re.DOTALL)
        assert CITATION in blocks, page
