"""Labels out: as a dataset, as files, on the hub. What was bought, and nothing else."""

import csv
import io
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, List, Value, load_dataset
from huggingface_hub import CommitInfo, DatasetCard, HfApi

from pivottrace_trl import AnnotationLedger, Answer, Query, pool_ids
from pivottrace_trl.cli import main
from pivottrace_trl.labels import LabelVault
from pivottrace_trl.labels.pool_file import POOL_FILE, write_pool


SECRET = "unbought"
IDS = [f"p{letter}" for letter in "abcdefgh"]
TEXTS = ['=HYPERLINK("http://x","y")', "ünï\u2028 \U0001f9ee", 'a,\n"b"', *(f"What is {n}+1?" for n in range(3, 8))]


def ask(ledger, ids=IDS, **asked):
    queries = [
        Query(i, TEXTS[IDS.index(i)], "probe" if i in "papb" else "annotate", "weak", IDS.index(i) / 10, **asked)
        for i in ids
    ]
    ledger.request(queries)


@pytest.fixture
def ledger(tmp_path):
    """Answers of Maria, one replaced by Eve; one of Eve undone; an own label; a conflict. The rest is open."""
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 6, IDS)
    ask(ledger, agreement=0.25)
    ledger.record([Answer("pa", "-1", "maria", 0.5), Answer("pb", "2", "maria", 0.5), Answer("pd", "4", "maria", 0.5)])
    ledger.record([Answer("pb", "3", "eve", 0.25)], replace=True)
    ledger.record([Answer("pa", SECRET, "mallory", 9.0)])  # a conflict, which is not charged
    ledger.record([Answer("pc", SECRET, "eve", 0.25)])
    ledger.undo("eve")  # takes back what she said of pc
    ledger.record([Answer("pe", "5", "dataset")], is_own=True)
    yield ledger
    ledger.close()


def test_labels_of_a_former_pool_are_not_left_out_in_silence(ledger, caplog):
    path = ledger.path.with_name(POOL_FILE)
    write_pool(path, IDS, lambda rows: [TEXTS[row] for row in rows])
    assert len(ledger.to_dataset()) == 4 and not caplog.messages
    write_pool(path, IDS[2:], lambda rows: [TEXTS[2:][row] for row in rows])
    assert ledger.to_dataset()["prompt_id"][:] == ["pd", "pe"]
    (message,) = caplog.messages
    assert message.startswith("2 labels of") and "pass the former pool as `dataset`" in message
    assert len(ledger.to_dataset(Dataset.from_dict({"prompt": TEXTS}), IDS)) == 4 and len(caplog.messages) == 1


def test_what_was_bought_and_nothing_else(ledger):
    labels = ledger.to_dataset()
    assert labels.features == Features(
        {
            "prompt_id": Value("string"),
            "prompt": Value("string"),
            "solution": Value("string"),
            "route": Value("string"),
            "score": Value("float64"),
            "agreement": Value("float64"),
            "purpose": Value("string"),
            "author": Value("string"),
            "price": Value("float64"),
            "time": Value("timestamp[ms, tz=UTC]"),
        }
    )
    assert labels["prompt_id"][:] == ["pa", "pb", "pd", "pe"] and labels["solution"][:] == ["-1", "3", "4", "5"]
    assert labels["prompt"][:] == [TEXTS[0], TEXTS[1], TEXTS[3], TEXTS[4]]
    assert labels["author"][:] == ["maria", "eve", "maria", "dataset"]
    assert labels["purpose"][:] == ["probe", "probe", "annotate", "own"]
    # The answer that was replaced was paid for as well; with the one that was undone that is all that was spent.
    assert labels["price"][:] == [0.5, 0.75, 0.5, 0.0] and sum(labels["price"]) + 0.25 == ledger.spent
    assert labels["route"][:] == ["weak"] * 4 and labels["score"][:] == [0.0, 0.1, 0.3, 0.4]
    assert labels["agreement"][:] == [0.25] * 4
    assert all(datetime.now(timezone.utc) - time < timedelta(minutes=5) for time in labels["time"])
    assert SECRET not in str(labels.to_list())


def test_nothing_is_bought_yet(ledger, tmp_path):
    empty = AnnotationLedger(tmp_path / "empty" / "ledger.sqlite", 6, IDS)
    assert empty.to_dataset().features == ledger.to_dataset().features and len(empty.to_dataset()) == 0
    for file_format in ("jsonl", "csv", "parquet"):
        assert main(["annotate", "export", str(tmp_path / "empty"), "--labels", "--format", file_format]) == 0


def test_the_order_and_the_texts_are_those_of_the_pool(ledger, tmp_path):
    rows = {"prompt_id": IDS[::-1], "question": [f"question {i}" for i in IDS[::-1]]}
    Dataset.from_dict(rows).to_parquet(tmp_path / "pool.parquet")
    labels = ledger.to_dataset()
    assert labels["prompt_id"][:] == ["pe", "pd", "pb", "pa"] and labels["prompt"][0] == "question pe"


@pytest.fixture
def pool():
    prompts = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"{i}+1=?"}] for i in range(5)]
    prompts[4] = [*prompts[4][:1], *({"role": role, "content": "?"} for role in ("user", "assistant", "user"))]
    secrets = [f"{SECRET} {i}" for i in range(5)]
    return Dataset.from_dict({"prompt": prompts, "solution": secrets, "level": [1, 2, 3, 4, 5], "score": [0] * 5})


def test_a_dataset_of_ones_own(pool, tmp_path):
    ids = pool_ids(pool)
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 3, ids)
    ledger.request([Query(i) for i in ids])
    ledger.record([Answer(ids[4], "7", "ann"), Answer(ids[1], "2", "ann")])
    labels = ledger.to_dataset(pool, columns=["prompt", "level"])
    assert labels["prompt"][:] == [pool[1]["prompt"], pool[4]["prompt"]] and labels["level"][:] == [2, 5]
    assert labels["solution"][:] == ["2", "7"] and SECRET not in str(labels.to_list())
    assert labels.features["prompt"] == pool.features["prompt"]
    # Another order and other rows of the same pool, by ids of one's own.
    assert ledger.to_dataset(pool.select([4, 0]))["solution"][:] == ["7"]
    assert ledger.to_dataset(pool, [*ids[1:], ids[0]], ["level"])["level"][:] == [1, 4]
    others = pool.map(lambda row: {"prompt": [{"role": "user", "content": f"{row['level']} others"}]})
    with pytest.raises(ValueError, match="None of the 2 labelled prompts .* among the 5 rows of `dataset`"):
        ledger.to_dataset(others)
    with pytest.raises(ValueError, match="There are 4 `prompt_ids` for the 5 rows"):
        ledger.to_dataset(pool, ids[:4])
    with pytest.raises(ValueError, match="`columns` names `levels`, but the dataset has"):
        ledger.to_dataset(pool, columns=["levels"])
    for name in ("score", "solution"):
        with pytest.raises(ValueError, match=f"`columns` names `{name}`, but the result has another"):
            ledger.to_dataset(pool, columns=["prompt", name])


@pytest.mark.parametrize(
    ("given", "kept", "feature"),
    [
        ([5, 6], [5, 6], Value("int64")),
        ([5, 6.5], [5.0, 6.5], Value("float64")),
        ([5, "6"], ["5", "6"], Value("string")),
        ([2**70, 6], [str(2**70), "6"], Value("string")),
        ([["a", "b"], ["c"]], [["a", "b"], ["c"]], List(Value("string"))),
        ([["a", "b"], "c"], [["a", "b"], ["c"]], List(Value("string"))),
        ([[1], [2, 3]], [[1], [2, 3]], List(Value("int64"))),
        ([True, False], [True, False], Value("bool")),
    ],
)
def test_labels_keep_their_type(given, kept, feature, tmp_path):
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 6, IDS)
    ask(ledger)
    ledger.record([Answer(i, {"solution": label}, "ann") for i, label in zip(IDS, given, strict=False)])
    labels = ledger.to_dataset()
    assert labels["solution"][:] == kept and labels.features["solution"] == feature
    for file_format in ("jsonl", "csv", "parquet"):
        assert main(["annotate", "export", str(tmp_path), "--labels", "--format", file_format]) == 0
    assert json.loads((tmp_path / "labels.jsonl").read_text().split("\n")[1])["solution"] == kept[1]


def test_the_label_keeps_its_name(tmp_path):
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 6, IDS, "score")
    ask(ledger)
    ledger.record([Answer("pd", "7", "ann")])
    assert ledger.to_dataset()["score"][:] == ["7"] and ledger.to_dataset()["label_score"][:] == [0.3]


def test_files(ledger, tmp_path, capsys):
    for file_format in ("jsonl", "csv", "parquet"):
        assert main(["annotate", "export", str(tmp_path), "--labels", "--format", file_format]) == 0
        said = capsys.readouterr().out
        assert "4 labels in" in said and "do not evaluate" in said
    whole = ledger.to_dataset().to_list()
    table = pq.read_table(tmp_path / "labels.parquet")
    assert table.to_pylist() == whole
    loaded = load_dataset("parquet", data_files=str(tmp_path / "labels.parquet"), split="train")
    assert loaded.features == ledger.to_dataset().features
    rows = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text(encoding="utf-8").split("\n") if line]
    assert rows == [row | {"time": row["time"].isoformat()} for row in whole]
    with (tmp_path / "labels.csv").open(encoding="utf-8-sig", newline="") as file:
        cells = list(csv.DictReader(file))
    # Nothing that a spreadsheet would run.
    assert [cells[0]["prompt"], cells[0]["solution"], cells[1]["solution"]] == ["'" + TEXTS[0], "'-1", "3"]
    assert cells[1]["prompt"] == TEXTS[1] and cells[0]["time"] == rows[0]["time"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels", "--format", "label-studio"], "`--format label-studio` is for questions. Labels and routes are"),
        (["--labels", "--limit", "3"], "--limit and --with-suggestions are for questions, not for labels."),
        (["--push-to-hub", "me/x"], "--push-to-hub me/x is for labels, and for nothing else. Add --labels."),
        (["--labels", "--routes"], "--labels and --routes are two files. Ask for one at a time."),
        (["--labels", "--push-to-hub", "me/x", "--format", "csv"], "--output and --format are for a file, but"),
        (["--labels", "--push-to-hub", "me/x", "--output", "labels.csv"], "--output and --format are for a file, but"),
        (["--labels", "--public"], "--public says who sees an upload, but there is none. Add --push-to-hub NAME."),
    ],
)
def test_what_does_not_go_together(options, message, ledger, tmp_path, capsys):
    assert main(["annotate", "export", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.glob("labels.*"))


class Hub:
    """Stands in for the hub: what would be sent, in order."""

    def __init__(self):
        self.repos: dict[str, bool] = {}  # name to whether it is private
        self.commits: list[dict[str, bytes]] = []

    def create_repo(self, repo_id, private=None, exist_ok=False, **kwargs):
        assert exist_ok and kwargs.get("repo_type") == "dataset"
        self.repos.setdefault(repo_id, bool(private))
        return SimpleNamespace(repo_id=repo_id)


@pytest.fixture
def hub(monkeypatch):
    """The hub's own client up to where it would send something."""
    hub = Hub()

    def create_commit(self, repo_id, operations, **kwargs):
        hub.commits.append({file.path_in_repo: Path(file.path_or_fileobj).read_bytes() for file in operations})
        return CommitInfo(f"https://huggingface.co/datasets/{repo_id}/commit/1", "", "", "1")

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **kwargs: hub.create_repo(repo_id, **kwargs))
    monkeypatch.setattr(
        HfApi, "dataset_info", lambda self, repo_id, **kwargs: SimpleNamespace(private=hub.repos[repo_id])
    )
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    monkeypatch.setattr(HfApi, "_validate_yaml", lambda *args, **kwargs: None)
    monkeypatch.setattr("huggingface_hub.hf_api.is_xet_available", lambda: False, raising=False)
    return hub


def test_the_hub_gets_a_warning_and_what_was_bought(ledger, hub, tmp_path, capsys):
    ledger.record([Answer("pf", "6", "| *Bo* <b>\n# x", 1.0)])
    assert main(["annotate", "export", str(tmp_path), "--labels", "--push-to-hub", "me/labels"]) == 0
    assert "/datasets/me/labels. Do not evaluate on them." in capsys.readouterr().out
    assert hub.repos == {"me/labels": True}
    # There is no data without the card.
    (files,) = hub.commits
    assert set(files) == {"README.md", "data/train.parquet"}
    card = DatasetCard(files["README.md"].decode())
    assert "not a random sample: do not evaluate on it" in card.text and "2606.04503" in card.text
    assert card.data.tags == ["pivottrace", "rlvr", "not-for-evaluation"]
    for row in (
        "| as probes | 2 |",
        "| where the policy is unsure | 2 |",
        "| not chosen: their labels were there before | 1 |",
        "| maria | 2 | 1.50 |",
        "| eve | 1 | 0.50 |",
        r"| \| \*Bo\* \<b\> \# x | 1 | 1.00 |",
        "| solution | the label, an answer in the format math |",
    ):
        assert f"\n{row}\n" in card.text, card.text
    assert "The budget was 6 labels; 5 were bought, for 3.00 in all" in card.text
    rows = pq.read_table(io.BytesIO(files["data/train.parquet"])).to_pylist()
    assert rows == ledger.to_dataset().to_list() and SECRET not in str(files) + str(rows)


def test_nothing_is_shown_to_everybody_unasked(ledger, hub, tmp_path, capsys):
    hub.repos["me/open"] = False
    export = ["annotate", "export", str(tmp_path), "--labels", "--push-to-hub"]
    assert main([*export, "me/open"]) == 2
    assert "me/open exists already and is public." in capsys.readouterr().err and not hub.commits
    assert main([*export, "me/open", "--public"]) == 0 and hub.commits
    assert main([*export, "me/new", "--public"]) == 0 and hub.repos["me/new"] is False


def test_nothing_to_upload(hub, tmp_path, capsys):
    AnnotationLedger(tmp_path / "ledger.sqlite", 6, IDS)
    assert main(["annotate", "export", str(tmp_path), "--labels", "--push-to-hub", "me/labels"]) == 2
    assert "has no label yet, so there is nothing to upload" in capsys.readouterr().err and not hub.repos


def test_the_ledger_of_a_run_that_is_alive(ledger):
    beside = AnnotationLedger.open(ledger.path)
    assert len(beside.to_dataset()) == 4
    ledger.record([Answer("pg", "8", "ann")])
    assert len(beside.to_dataset()) == 5


def test_labels_of_a_column(pool, tmp_path):
    ids = pool_ids(pool)
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 2, ids)
    ledger.request([Query(i, score=0.1) for i in ids])
    ledger.buy(LabelVault(pool, ["solution"], ids))
    assert ledger.to_dataset(pool)["solution"][:] == [f"{SECRET} 0", f"{SECRET} 1"]
