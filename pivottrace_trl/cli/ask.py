"""`pivottrace annotate ask`: models answer the queue of a run."""

import argparse
from typing import Any

from .arguments import add_format_of_ledger, add_on_run, open_ledger, read_count, read_price, say_next


def add_ask(actions) -> None:
    add = add_on_run(
        actions,
        "ask",
        _ask,
        "let models answer the queue; what they disagree on stays there for people",
        examples="pivottrace annotate ask run --model big-model --base-url http://localhost:8000/v1\n"
        "pivottrace annotate ask run --model small --model big --prices 0.1 0.4 --prices 1 4 --max-cost 20",
        kept="Every answer that came is in the ledger of {run}; the same command asks for the rest.",
    )
    add("--model", action="append", required=True, help="its name at the endpoint; several vote, the cheapest first")
    add("--base-url", action="append", help="address: one for all models, or one for each (default: openai's)")
    add(
        "--prices",
        action="append",
        nargs=2,
        type=read_price,
        metavar=("PROMPT", "REPLY"),
        help="price of a million tokens: one pair for all models, or one for each",
    )
    add("--num-samples", type=read_count, default=1, help="votes of each model (default: %(default)s)")
    add("--min-agreement", type=float, default=0.6, help="share of votes that makes an answer (default: %(default)s)")
    add("--max-cost", type=read_price, help="most that each model may spend")
    add("--max-completion-tokens", type=read_count, default=4096, help="longest reply (default: %(default)s)")
    add("--concurrency", type=read_count, default=8, help="requests at a time (default: %(default)s)")
    add_format_of_ledger(add)


def _ask(args: argparse.Namespace) -> None:
    from ..answers.format import format_of_ledger
    from ..labels.asking import ask_queue, questions_for
    from ..labels.endpoint import EndpointAnnotator
    from ..labels.panel import AnnotatorPanel
    from ..progress import progress_bar

    ledger = open_ledger(args.run)
    answer_format = format_of_ledger(ledger.answer_format, args.answer_format)
    options: dict[str, Any] = {
        "answer_format": answer_format,
        "num_samples": args.num_samples,
        "min_agreement": args.min_agreement,
        "max_completion_tokens": args.max_completion_tokens,
        "concurrency": args.concurrency,
        "max_cost": args.max_cost,
    }
    urls, prices = _for_each(args, "base_url"), _for_each(args, "prices")
    models = [
        EndpointAnnotator(model, url, price_per_million_tokens=tuple(price or (0.0, 0.0)), **options)
        for model, url, price in zip(args.model, urls, prices, strict=True)
    ]
    panel = models[0] if len(models) == 1 else AnnotatorPanel(models, args.min_agreement, answer_format)
    questions, spent = questions_for(ledger, panel.author), ledger.spent
    most = sum(model.most_cost(questions) for model in models)
    cost = (
        f"{most:.4g} at most, if no request is repeated" if args.prices else "without --prices the cost is not known"
    )
    print(f"{len(questions)} questions for {panel.author}: {cost}.", flush=True)
    with progress_bar("asking", len(questions)) as advance:
        num_recorded = ask_queue(ledger, panel, answer_format, advance)
    print(
        f"{num_recorded} answered for {ledger.spent - spent:.4g}; {ledger.num_open} stay in the queue for people. "
        f"{ledger.num_bought} of {ledger.budget} labels are bought."
    )
    people = [("to let people answer the rest", ["desk", args.run])] if ledger.num_open else []
    say_next(*people, ("to see what labels cost and brought so far", ["annotate", "status", args.run]))


def _for_each(args: argparse.Namespace, name: str) -> list[Any]:
    """What was given once for all models, or once for each."""
    values = getattr(args, name) or [None]
    if len(values) not in (1, len(args.model)):
        raise ValueError(
            f"--{name.replace('_', '-')} is given {len(values)} times for {len(args.model)} models: give it once for "
            "all of them, or once for each."
        )
    return values * (len(args.model) // len(values))
