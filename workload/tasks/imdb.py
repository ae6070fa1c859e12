"""IMDB: is a film review positive or negative?"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset

from workload.errors import InputError
from workload.models.encoder_config import ENCODER_CLASSIFIER
from workload.models.loading import DATA
from workload.tasks.classification import Classification
from workload.tasks.files import (
    HALF_CHARACTER,
    file_digest,
    folder_digest,
    open_text,
    read_table,
    readable,
    shown,
)

HUB_DATASET = "stanfordnlp/imdb"
HUB_SPLITS = {"train": "train", "validation": "test"}
FOLDERS = {"neg": 0, "pos": 1}  # of the official release
COLUMNS = {"text": ("text", "review"), "label": ("label", "sentiment")}  # of CSV files: the Hub's, Kaggle's
LABELS = {"0": 0, "1": 1, "neg": 0, "pos": 1, "negative": 0, "positive": 1}


def read_reviews(path: str, digest: str = "") -> Iterator[dict]:
    """The reviews of the official folder (with pos/*.txt and neg/*.txt) or of a CSV file, one at a time.

    Yields:
        id, text (str), pair (None), label (int: 0 negative, 1 positive).

    Args:
        digest: of the file; part of the cache key of `datasets`.

    Raises:
        InputError: neither of the two, or a review without a text or a label.
    """
    for review_id, text, label, place in (_from_folder if os.path.isdir(path) else _from_csv)(path):
        if not text.strip():
            raise InputError(f"{place}: the review is empty")
        yield {"id": review_id, "text": text, "pair": None, "label": label}


def review_files(folder: str) -> list[tuple[int, Path]]:
    """The label and the file of each review in the official folder.

    Case is ignored (`Neg`, `.TXT`), and so are hidden files, such as macOS's `._0_9.txt`.

    Raises:
        InputError: positive or negative reviews are missing or cannot be read.
    """
    found = []
    for kind, label in FOLDERS.items():
        with readable(folder):
            files = [file for part in sorted(Path(folder).iterdir()) if part.name.lower() == kind and part.is_dir()
                     for file in sorted(part.iterdir())
                     if file.suffix.lower() == ".txt" and not file.name.startswith(".")]
        if not files:
            raise InputError(f"{folder}: has no {kind}/*.txt; use a folder that has neg/*.txt and pos/*.txt, such as "
                             "aclImdb/train")
        for file in files:
            if not file.is_file():  # reading from a pipe of such a name would wait forever
                raise InputError(f"{file}: no file, or a link to none")
            if HALF_CHARACTER.search(file.name):
                raise InputError(f"{folder}: {kind} has a file whose name is not UTF-8 text, {file.name!r}")
            found.append((label, file))
    return found


def _from_folder(path: str) -> Iterator[tuple[str, str, int, str]]:
    for label, file in review_files(path):
        with open_text(str(file)) as text:
            yield f"{file.parent.name}/{file.name.removesuffix('.txt')}", text.read(), label, str(file)


def _from_csv(path: str) -> Iterator[tuple[str, str, int, str]]:
    kind = "CSV files of reviews (the official release is a folder)"
    for number, (place, row) in enumerate(read_table(path, COLUMNS, kind, {"label": LABELS}, strict=True)):
        if (label := row["label"].strip().lower()) not in LABELS:
            raise InputError(f"{place}: the label is {shown(row['label'])}; use 0 or 1, or neg or pos")
        yield str(number), row["text"], LABELS[label], place


class Imdb(Classification):
    """A sample is a review, truncated to `max_seq_length` tokens."""

    name = "imdb"
    default_model = ENCODER_CLASSIFIER
    default_length = 256
    tiny = DATA / "tiny_encoder"
    sample = {"train": DATA / "imdb" / "train.csv", "validation": DATA / "imdb" / "eval.csv"}
    classes = ("negative", "positive")
    class_numbers = LABELS
    metrics = ("accuracy",)
    example_word = "review"
    read = staticmethod(read_reviews)

    @staticmethod
    def digest(path: str) -> str:
        """SHA-256 of a CSV file, or of a folder's reviews, whose other files do not matter."""
        if os.path.isdir(path):
            return folder_digest(path, (file for _, file in review_files(path)))
        return file_digest(path)

    def _own_tokenizer(self) -> str:
        return "bert-base-uncased" if self.model_name == ENCODER_CLASSIFIER else self.model_source

    def _from_hub(self, split: str) -> Dataset:
        examples = self.load_from_hub(HUB_DATASET, split=HUB_SPLITS[split])
        examples = examples.add_column("id", [str(number) for number in range(len(examples))])
        return examples.add_column("pair", [None] * len(examples)).cast(self.columns)

    def accuracies(self, right: np.ndarray) -> dict[str, float]:
        """Percentage of the reviews that were classified correctly."""
        return {"accuracy": 100 * right.mean()}
