"""The base class of all tasks: where their data comes from, how it is cached, and how samples become tensors."""

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher
from transformers import BatchEncoding

from workload.arguments import Arguments
from workload.cores import usable_cores
from workload.digests import tokenizer_digest
from workload.errors import InputError
from workload.hub import go_offline_without_network
from workload.models.task_model import TaskModel
from workload.tasks.files import check_path, file_digest, read_some
from workload.tasks.limits import limited

EXAMPLES_A_PROCESS = 5_000  # at least, in each process that tokenises
# Part of the cache keys, so that data read by another version of this code is not reused.
CODE = Hasher.hash([file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py"))])


class Task(TaskModel):
    """A model (see `TaskModel`), its samples ("features" once tokenised), its loss and its scores.

    A split is "train", "validation" or, for MNLI, "validation_mismatched".

    Raises (from the constructor):
        InputError: a file, a model or a flag that cannot be used. Nothing large has been loaded by then.
    """

    name: ClassVar[str]
    sample: ClassVar[dict[str, Path]]  # the embedded data: split -> file
    columns: ClassVar[datasets.Features]  # of the examples
    label_names: ClassVar[tuple[str, ...]]
    scoring_columns: ClassVar[list[str]] = []  # columns of the features that only `score` needs, not training
    read: ClassVar[Callable[..., Iterator[dict]]]  # yields the examples of a local file or folder; see `_reading`
    digest = staticmethod(file_digest)  # SHA-256 of everything that `read` reads from a path
    example_word = "example"  # for error messages
    metrics: tuple[str, ...]

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        self.files: dict[str, str | None] = self._files_given()  # by split; None: from the Hub
        if arguments.sample:
            self.files = {split: str(path) for split, path in self.sample.items()}
        for path in filter(None, self.files.values()):
            check_path(path)
        self.data_digest = {split: self.digest(path) for split, path in self.files.items() if path}
        self.examples: dict[str, Dataset] = {}
        self.draws: dict[str, dict | None] = {}  # how a limit drew a split's examples; None where all were kept
        for split, path in self.files.items():
            examples = self._from_file(split, path) if path else self._from_hub(split)
            flag = "max_train_examples" if split == "train" else "max_eval_examples"
            self.examples[split], self.draws[split] = limited(
                examples, self._classes(split, examples), getattr(arguments, flag), f"--{flag}", path or split)

    # ------------------------------------------------------------------ examples

    def _files_given(self) -> dict[str, str | None]:
        return {"train": self.arguments.train_file, "validation": self.arguments.eval_file}

    def _reading(self, split: str, path: str) -> dict:
        """Keyword arguments for `read`; together they are the cache key."""
        return {"path": os.path.abspath(path), "digest": self.data_digest[split] + CODE}

    def _from_file(self, split: str, path: str) -> Dataset:
        """The examples of a local file, read and checked once, then taken from the cache of `datasets`."""
        try:
            return Dataset.from_generator(read_some, features=self.columns, gen_kwargs={
                "read": self.read, "example_word": self.example_word, "reading": self._reading(split, path)})
        except DatasetGenerationError as error:
            raise error.__cause__ or error from None  # the error that `read` raised

    @abstractmethod
    def _from_hub(self, split: str) -> Dataset:
        """The examples of a split from the Hub."""

    def _classes(self, split: str, examples: Dataset) -> np.ndarray:
        """The class of each example; limits draw from each class in proportion. All 0 without classes. (examples,)"""
        return np.zeros(len(examples), dtype=int)

    def load_from_hub(self, dataset: str, *options: str, split: str) -> Dataset:
        """`datasets.load_dataset`, whose errors become one clear line.

        Raises:
            InputError: the data set cannot be downloaded.
        """
        go_offline_without_network()
        try:
            return datasets.load_dataset(dataset, *options, split=split)
        except Exception as error:  # noqa: BLE001  the Hub's clients raise dozens of unrelated kinds
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise InputError(f"{dataset} cannot be downloaded from the Hugging Face Hub (no network?); give local "
                             f"files with --train_file and --eval_file, or --sample ({reason})") from error

    # ------------------------------------------------------------------ samples

    def load(self) -> None:
        """Tokenise all splits, or take them from the cache of `datasets`, which maps files into memory."""
        self.features: dict[str, Dataset] = {}
        tokenizer = tokenizer_digest(self.tokenizer)
        for split, examples in self.examples.items():
            dropped = self.scoring_columns if split == "train" else []
            # Everything that the result depends on; `datasets` would also hash the tokenizer's changing state.
            fingerprint = Hasher.hash([CODE, self.name, examples._fingerprint, tokenizer, dropped,
                                       *self._tokenised_by()])
            self.features[split] = examples.map(
                self._tokenise_without, fn_kwargs={"columns": dropped}, with_indices=True, batched=True,
                remove_columns=examples.column_names, num_proc=self._tokenising_processes(len(examples)),
                desc=f"tokenising {split}", new_fingerprint=fingerprint)

    def _tokenising_processes(self, examples: int) -> int | None:
        """How many processes tokenise, None for this one alone: each takes about a second to start."""
        processes = min(usable_cores(), examples // EXAMPLES_A_PROCESS)
        return processes if processes > 1 else None

    def _tokenised_by(self) -> list:
        """Settings that features depend on, besides the tokenizer."""
        return [self.max_length, self.input_names, self.has_token_types]

    def token_inputs(self, encoded: BatchEncoding) -> dict[str, list[list[int]]]:
        """The model's inputs but the mask, from a tokenizer's output; token types are 0 if there is only one."""
        return {name: encoded[name] if name == "input_ids" or self.has_token_types
                else [[0] * len(tokens) for tokens in encoded["input_ids"]]
                for name in self.input_names if name != "attention_mask"}

    @abstractmethod
    def _tokenise(self, examples: dict[str, list], indices: list[int]) -> dict[str, list]:
        """Features of some examples: `feature_id`, `input_ids`, `length`, and the columns for `collate` and `score`."""

    def _tokenise_without(self, examples: dict[str, list], indices: list[int], columns: list[str]) -> dict[str, list]:
        return {name: values for name, values in self._tokenise(examples, indices).items() if name not in columns}

    def samples(self, split: str) -> Dataset:
        """The features of "train", or those of every validation split together for "validation"."""
        return self.features[split]

    def collate(self, rows: pa.Table, length: int,
                is_padded: bool = True) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Pad rows of `samples` to (rows, length).

        Args:
            is_padded: whether to make a mask for models that take one; False if all rows of the global batch have this
                length.

        Returns:
            The model's inputs by `input_names`; the loss's other arguments by `label_names`.
        """
        # NumPy throughout: it uses a single thread and leaves the others to the training step running meanwhile.
        real = np.arange(length) < rows["length"].to_numpy()[:, None]  # (rows, length)
        inputs = {}
        for name in self.input_names:
            padding = self.tokenizer.pad_token_id if name == "input_ids" else None
            values = np.full(real.shape, padding or 0)
            values[real] = 1 if name == "attention_mask" else rows[name].combine_chunks().flatten().to_numpy()
            inputs[name] = torch.from_numpy(values)
        labels = self.labels(rows, inputs)
        if not is_padded:
            inputs.pop("attention_mask", None)
        return inputs, labels

    @abstractmethod
    def labels(self, rows: pa.Table, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The arguments of `loss` besides logits, by `label_names`; the first dimension is the samples'."""

    # ------------------------------------------------------------------ loss, score

    @abstractmethod
    def loss(self, logits: torch.Tensor, labels: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss of each sample in fp32, independent of its batch: `logits_shape` -> (batch,)"""

    def losses_and_outputs(self, logits: torch.Tensor,
                           labels: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """In an evaluation, each sample's loss and the output that `score` needs. (batch,), (batch, ...)"""
        return self.loss(logits, labels), logits

    @abstractmethod
    def score(self, outputs: dict[int, np.ndarray]) -> tuple[dict[str, float], dict[str, str] | None]:
        """The `metrics`, and predictions by the examples' ids if the task has any.

        Args:
            outputs: row of the validation samples -> that sample's output from `losses_and_outputs`.
        """
