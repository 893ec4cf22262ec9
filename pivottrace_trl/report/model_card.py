"""What a model card says of the labels that its model was trained on. No prompt and no label is in it."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..labels.state import LedgerView
from ..training.versions import installed
from .messages import RunSetup


PAPER = "2606.04503"
CITATION = """@article{zhu2026smart,
  title   = {Smart Picks in the Dark: Towards Efficient RLVR for Reasoning via Tracing Metacognitive Pivots},
  author  = {Zhu and others},
  journal = {arXiv preprint arXiv:2606.04503},
  year    = {2026}
}"""
# The headings of TRL's card before which the two parts go.
_BEFORE_SECTION, _BEFORE_CITATION = "### Framework versions", "Cite TRL as:"


def amend_model_card(card: str, summary: Mapping[str, Any], setup: RunSetup, ledger: LedgerView) -> str:
    """
    Add to a model card that TRL wrote how the labels were picked, and what to cite for it. The trainer's own paper and
    citation stay.

    Args:
        card (`str`):
            The card, Markdown.
        summary (`Mapping[str, Any]`):
            What [`PoolRouter.summary`] says of the run.
        setup ([`RunSetup`]):
            How the run gets its labels.
        ledger ([`LedgerView`]):
            Its ledger, of which numbers are taken.

    Returns:
        `str`: the card with both parts, at the end where it lacks TRL's headings.
    """
    card = _insert(card, "\n".join(_describe(summary, setup, ledger)), _BEFORE_SECTION)
    return _insert(card, f"Cite PivotTrace as:\n\n```bibtex\n{CITATION}\n```", _BEFORE_CITATION)


def _describe(summary: Mapping[str, Any], setup: RunSetup, ledger: LedgerView) -> Sequence[str]:
    version = installed("pivottrace-trl")
    size, budget, bought = summary["pool_size"], summary["annotation_budget"], summary["annotated"]
    lines = [
        "### Labels",
        "",
        f"[PivotTrace](https://huggingface.co/papers/{PAPER}) (pivottrace-trl {version}) picked the prompts that "
        "deserve a label. Prompts that the policy masters were left out; prompts without a label were rewarded by the "
        "majority answer of their own group of responses, or not at all.",
        "",
        "| | |",
        "|---|---|",
        f"| pool | {size:,} prompts |",
        f"| budget | {budget:,} labels ({budget / size:.1%} of the pool) |",
        f"| labels bought | {bought:,} ({bought / size:.1%}), {summary['probes']:,} prompts as probes; from "
        f"{setup.asked} |",
    ]
    if ledger.own_ids:
        lines.append(f"| labels that were there | {len(ledger.own_ids):,} |")
    lines.append(f"| score | {setup.estimator}, labels bought {setup.buy} the rollouts |")
    if summary["num_routings"]:
        routes = ", ".join(f"{count:,} {name}" for name, count in summary["routes"].items())
        lines.append(f"| routes at the end | {routes} (after {summary['num_routings']} routings) |")
    return lines


def _insert(card: str, part: str, before: str) -> str:
    head, heading, tail = card.partition(before)
    return f"{head.rstrip()}\n\n{part}\n" + (f"\n{heading}{tail}" if heading else "")
