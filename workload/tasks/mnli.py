"""MNLI: does a sentence entail another, contradict it, or neither?"""

import csv
from collections.abc import Iterator

import numpy as np
from datasets import Dataset, concatenate_datasets

from workload.arguments import Arguments
from workload.errors import InputError
from workload.models.loading import DATA
from workload.tasks.classification import Classification
from workload.tasks.files import read_table, shown

HUB_DATASET = "nyu-mll/glue"
HUB_SPLITS = {"train": "train", "validation": "validation_matched",
              "validation_mismatched": "validation_mismatched"}
CLASSES = ("entailment", "neutral", "contradiction")  # numbered as on the Hub
COLUMNS = {"id": ("pairID",), "text": ("sentence1", "premise"), "pair": ("sentence2", "hypothesis"),
           "label": ("gold_label", "label")}  # GLUE's headings, and the Hub's for the same columns
NO_LABEL = "-"  # the annotators did not agree
NUMBERS = {"-1": NO_LABEL, "0": "entailment", "1": "neutral", "2": "contradiction"}  # the Hub's labels
MISMATCHED = "mismatched:"  # prefix of the second file's ids in predictions.json: both files may use the same


def read_pairs(path: str, is_scored: bool = True, digest: str = "") -> Iterator[dict]:
    """The pairs of one of GLUE's files (train.tsv, dev_matched.tsv, dev_mismatched.tsv), one at a time.

    Yields:
        id, text, pair (str), label (int, index in `CLASSES`). Pairs on which the annotators did not agree are skipped.

    Args:
        is_scored: whether predictions are written for the pairs, which then need unique ids. Otherwise the pair's
            number is appended to a repeated or empty id.
        digest: of the file; part of the cache key of `datasets`.

    Raises:
        InputError: another layout, or a pair that lacks a sentence, a label or, if `is_scored`, a unique id.
    """
    places: dict[str, str] = {}  # by id
    form = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    for place, row in read_table(path, COLUMNS, "GLUE's MNLI files", {"label": NUMBERS}, **form):
        if row["label"] == NO_LABEL:
            continue
        if row["label"] not in CLASSES:
            raise InputError(f"{place}: the label is {shown(row['label'])}; use {' or '.join(CLASSES)}, or "
                             f"{NO_LABEL} for none")
        for name, which in (("text", "first"), ("pair", "second")):
            if not row[name].strip():
                raise InputError(f"{place}: the {which} sentence is empty")
        pair_id = row["id"]
        if is_scored:
            _check_id(pair_id, place, places)
        elif not pair_id or pair_id in places:
            pair_id = f"{pair_id}#{len(places)}"
        places[pair_id] = place
        yield {"id": pair_id, "text": row["text"], "pair": row["pair"], "label": CLASSES.index(row["label"])}


def _check_id(pair_id: str, place: str, places: dict[str, str]) -> None:
    """Refuse an id that cannot identify the pair in predictions.json."""
    if not pair_id.strip():
        reason = "is empty"
    elif pair_id in places:
        reason = f"occurs twice, first in {places[pair_id].rpartition(': ')[2]}"
    elif pair_id.startswith(MISMATCHED):
        reason = f"begins with {MISMATCHED!r}, which predictions.json puts before the ids of --eval_mismatched_file"
    else:
        return
    raise InputError(f"{place}: pairID {shown(pair_id)} {reason}; give each pair of an evaluation file a unique pairID")


class Mnli(Classification):
    """A sample is a pair of sentences, the longer one truncated first.

    There are two validation sets: one with the genres of the training data (matched) and one with others (mismatched).
    """

    name = "mnli"
    default_model = "bert-base-cased"
    default_length = 128
    tiny = DATA / "tiny_bert_cased"
    sample = {"train": DATA / "mnli" / "train.tsv", "validation": DATA / "mnli" / "dev_matched.tsv",
              "validation_mismatched": DATA / "mnli" / "dev_mismatched.tsv"}
    classes = CLASSES
    class_numbers = {name: number for number, name in enumerate(CLASSES)}
    metrics = ("accuracy",)
    example_word = "pair of sentences"
    read = staticmethod(read_pairs)

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        if "validation_mismatched" in self.files:
            self.metrics = ("accuracy", "accuracy_mismatched")

    def _files_given(self) -> dict[str, str | None]:
        files, mismatched = super()._files_given(), self.arguments.eval_mismatched_file
        return files | ({"validation_mismatched": mismatched} if mismatched or not files["train"] else {})

    def _reading(self, split: str, path: str) -> dict:
        return super()._reading(split, path) | {"is_scored": split != "train"}

    def _from_hub(self, split: str) -> Dataset:
        examples = self.load_from_hub(HUB_DATASET, "mnli", split=HUB_SPLITS[split])
        examples = examples.rename_columns({"premise": "text", "hypothesis": "pair", "idx": "id"})
        examples = examples.filter(lambda label: label >= 0, input_columns="label")
        return examples.select_columns(list(self.columns)).cast(self.columns)

    def samples(self, split: str) -> Dataset:
        """The features of "train", or of "validation": matched, then mismatched."""
        if split == "train":
            return self.features[split]
        return concatenate_datasets([features for name, features in self.features.items() if name != "train"])

    def prediction_ids(self) -> list[str]:
        """The pairs' own ids, with a prefix for the mismatched ones, whose file may use the same."""
        first, *others = (features for split, features in self.features.items() if split != "train")
        return first["feature_id"][:] + [f"{MISMATCHED}{name}" for each in others for name in each["feature_id"]]

    def accuracies(self, right: np.ndarray) -> dict[str, float]:
        """Percentage of the pairs that were classified correctly: GLUE's two accuracies."""
        matched = len(self.features["validation"])
        splits = (right[:matched], right[matched:])
        return {name: 100 * split.mean() for name, split in zip(self.metrics, splits, strict=False)}
