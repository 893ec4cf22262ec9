"""A pool with its routes as a dataset, for trainers that cannot take our sampler."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from ..files import reading
from ..labels.dataset import beside, label_column, read_prompts
from ..labels.ledger import AnnotationLedger
from ..routing.tables import find_routes


def routed_dataset(
    ledger: AnnotationLedger,
    dataset: Dataset | None = None,
    prompt_ids: Sequence[str] | None = None,
    columns: Sequence[str] = ("prompt",),
) -> Dataset:
    """
    The whole pool with its latest routes, for trainers that cannot take our sampler. A label that was neither bought
    nor the user's is not in it. A prompt whose label came after the routing counts as annotated, one whose label never
    came as weak, as the next routing would have it.

    Args:
        ledger ([`AnnotationLedger`]):
            The ledger of a run or a triage; the routes are read from the tables beside it.
        dataset ([`~datasets.Dataset`], *optional*):
            The pool, from which the prompts come as they are, in this order. By default `prompt` is the question as
            people saw it, in the order of the pool.
        prompt_ids (`Sequence[str]`, *optional*):
            Ids of the rows of `dataset`, see [`AnnotationLedger.to_dataset`].
        columns (`Sequence[str]`, *optional*, defaults to `("prompt",)`):
            Columns of `dataset` to keep.

    Returns:
        [`~datasets.Dataset`]: `prompt_id`, the columns of `dataset` or `prompt`; `route` (`"discard"`, `"weak"`,
        `"annotate"`), `score`, `agreement` of the latest group of rollouts in `[0, 1]`; the label under its own name;
        `pseudo_label`, the majority answer of that group, for weak prompts; and `weight` in `[0, 1]`, how far the
        label is to be trusted: 1 for one that was bought or owned, the agreement for a pseudo-label, 0 for none and
        for what is discarded.

    Raises:
        FileNotFoundError: if there is no table of routes beside the ledger.
        ValueError: if `dataset` does not fit the ledger or the routes.

    Example:
    ```python
    >>> pool = routed_dataset(AnnotationLedger.open("run/_pivottrace/ledger.sqlite"), dataset)
    >>> pool = pool.filter(lambda row: row["weight"] >= 0.5)
    ```
    """
    ledger.refresh()
    ids, prompts = read_prompts(ledger, dataset, prompt_ids, columns)
    ids = list(ids)
    table = _read_table(ledger)
    places = pc.index_in(pa.array(ids, pa.string()), table["prompt_id"].combine_chunks())
    if places.null_count == len(ids):
        raise ValueError(
            f"None of the {len(ids)} prompts has a route in {ledger.path.parent}. Pass the pool that was routed, with "
            "the `prompt_ids` that its run had."
        )
    table = table.take(places)
    is_labelled = np.array([ledger.label(identity) is not None for identity in ids], bool)
    agreement = table["agreement"].to_numpy()
    routes = np.array(table["route"].to_pylist(), object)
    # What came since the routing: answers to what was asked for, and to anything else.
    routes[is_labelled & (routes == "weak")] = "annotate"
    routes[~is_labelled & (routes == "annotate")] = "weak"
    # Without a majority the agreement is 0, and the answer that of an earlier group.
    is_voted = (routes == "weak") & (np.nan_to_num(agreement) > 0)
    weight = np.where(is_voted, np.nan_to_num(agreement), (is_labelled & (routes == "annotate")).astype(float))
    name = ledger.label_column
    known = {
        "route": pa.array(routes, pa.string()),
        "score": table["score"],
        "agreement": pa.array(agreement, pa.float64(), from_pandas=True),
        "pseudo_label": pc.if_else(pa.array(is_voted), table["answer"].combine_chunks(), None),
        "weight": pa.array(weight, pa.float64()),
    }
    known = {f"label_{key}" if key == name else key: values for key, values in known.items()}
    return beside(
        prompts, pa.table({"prompt_id": pa.array(ids, pa.string()), name: label_column(ledger, ids), **known})
    )


def _read_table(ledger: AnnotationLedger) -> pa.Table:
    """The latest routes: of training if there was any, else of the triage, which has seen no group."""
    folder = ledger.path.parent
    paths = find_routes(folder)
    path = paths[max(paths)] if paths else folder / "routes.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"There are no routes in {folder}. Let a training or a triage route the pool first.")
    names = ["prompt_id", "route", "score"]
    with reading(path, "It is no table of routes: remove it, or run again."):
        table = pq.read_table(path, columns=[*names, "agreement", "answer"] if paths else names)
    if not paths:
        table = table.append_column("agreement", pa.array(np.full(len(table), np.nan)))
        table = table.append_column("answer", pa.nulls(len(table), pa.string()))
    return table
