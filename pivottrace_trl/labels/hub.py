"""Labels on the Hugging Face Hub, with a dataset card that says how they were chosen."""

import re
from collections import Counter
from importlib import metadata, resources
from pathlib import Path
from tempfile import TemporaryDirectory

from datasets import Dataset
from huggingface_hub import DatasetCard, DatasetCardData, HfApi

from .exchange.exporting import write_dataset
from .ledger import AnnotationLedger
from .status import annotation_status


def push_labels(ledger: AnnotationLedger, repo_id: str, is_public: bool = False) -> str:
    """
    Upload the labels of a ledger as a dataset, which is private unless `is_public`. Returns its address. Card and data
    are uploaded in one commit.

    Raises:
        ValueError: if the ledger has no labels, or the dataset exists and is public although `is_public` is false.
    """
    labels = ledger.to_dataset()
    if not len(labels):
        raise ValueError(
            f"{ledger.path} has no label yet, so there is nothing to upload. Answer its queue first: pivottrace "
            f"desk {ledger.path.parent}."
        )
    card = make_card(ledger, labels, repo_id)
    api = HfApi()
    repo_id = api.create_repo(repo_id, repo_type="dataset", private=not is_public, exist_ok=True).repo_id
    if not is_public and not api.dataset_info(repo_id).private:
        raise ValueError(
            f"{repo_id} exists already and is public. Name another dataset, or add --public if these labels may be "
            "public. Nothing was uploaded."
        )
    with TemporaryDirectory() as name:
        folder = Path(name)
        card.save(folder / "README.md")
        write_dataset(labels, folder / "data" / "train.parquet", "parquet")
        api.upload_folder(repo_id=repo_id, folder_path=folder, repo_type="dataset", commit_message="Upload labels")
    return f"{api.endpoint}/datasets/{repo_id}"


def make_card(ledger: AnnotationLedger, labels: Dataset, repo_id: str) -> DatasetCard:
    """The dataset card: how the labels were chosen, who gave them, their cost, and that they are no evaluation set."""
    status = annotation_status(ledger)
    title = f"Labels of {repo_id.split('/')[-1]}"
    return DatasetCard.from_template(
        DatasetCardData(pretty_name=title, tags=["pivottrace", "rlvr", "not-for-evaluation"]),
        template_str=resources.files(__package__).joinpath("card.md.j2").read_text(encoding="utf-8"),
        title=title,
        num_rows=len(labels),
        version=metadata.version("pivottrace-trl"),
        purposes=Counter(map(ledger.purpose, labels["prompt_id"])),
        status=status,
        authors=[(_plain(author.author), author.answers, f"{author.price:.2f}") for author in status.authors],
        label_column=_plain(ledger.label_column),
        answer_format=_plain(ledger.answer_format),
    )


def _plain(text: str) -> str:
    """A text from outside on one line, with everything escaped that has a meaning in Markdown or HTML."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))
