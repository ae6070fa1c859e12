"""What all tasks have in common: where model and data come from, what is cached, how samples become tensors."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import datasets
import numpy as np
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher

from measurement.flops import TransformerShape
from workload.arguments import Arguments
from workload.errors import InputError
from workload.hub import go_offline_without_network
from workload.models import EMBEDDED, TINY, load_config, load_tokenizer
from workload.tasks.files import path_digest


class Task(ABC):
    """A job: its model, its samples ("features"), its loss and its scores.

    Raises (from the constructor):
        InputError: a file, a model or a flag that cannot be used; nothing large has been loaded by then.
    """

    name: ClassVar[str]
    default_model: ClassVar[str]  # on the Hub, or an embedded one
    default_from_scratch: ClassVar[bool] = False
    default_length: ClassVar[int]  # tokens of a sample, at most
    tiny: ClassVar[Path]  # folder of the embedded small model
    sample: ClassVar[dict[str, Path]]  # the embedded data: split -> file
    columns: ClassVar[datasets.Features]  # of the examples
    label_names: ClassVar[tuple[str, ...]]
    scoring_columns: ClassVar[list[str]] = []  # of the features; training has no use for them
    metrics: tuple[str, ...]

    def __init__(self, arguments: Arguments) -> None:
        self.arguments = arguments
        self._choose_model()
        self.files: dict[str, str | None] = self._files_given()
        if arguments.sample:
            self.files = {split: str(path) for split, path in self.sample.items()}
        for path in filter(None, self.files.values()):
            if not os.path.exists(path):
                raise InputError(f"{path}: no such file")
        self.data_digest = {split: path_digest(path) for split, path in self.files.items() if path}
        for split, path in self.files.items():
            if not path:
                self._from_hub(split)
            elif not sum(1 for _ in self.read(**self._reading(split))):  # all of them, so that all are checked
                raise InputError(f"{path}: holds no {self.example_word}")

    # ------------------------------------------------------------------ model

    def _choose_model(self) -> None:
        arguments = self.arguments
        self.model_name = arguments.model or self.default_model
        is_embedded = self.model_name in EMBEDDED
        self.from_scratch = arguments.from_scratch
        if self.from_scratch is None:
            self.from_scratch = is_embedded or arguments.model is None and self.default_from_scratch
        if is_embedded and not self.from_scratch:
            raise InputError(f"--from_scratch false: --model {self.model_name} has no trained weights; leave it out")
        self.model_source = str(self.tiny) if self.model_name == TINY else self.model_name
        self.config = load_config(self.model_source, arguments.dropout)
        self._check_config()
        source = arguments.tokenizer or self._own_tokenizer()
        self.tokenizer_name = self.model_name if source == self.model_source else source
        self.tokenizer = load_tokenizer(source, "model" if source == self.model_source else "tokenizer")
        if self.from_scratch:
            self.config.vocab_size = len(self.tokenizer)
        elif len(self.tokenizer) > self.config.vocab_size:
            raise InputError(f"--tokenizer {self.tokenizer_name}: has {len(self.tokenizer)} tokens, but "
                             f"{self.model_name} knows {self.config.vocab_size} only")
        most, given = self.most_positions(), arguments.max_seq_length
        if given and given > most:
            raise InputError(f"--max_seq_length {given}: {self.model_name} takes at most {most} tokens")
        self.max_length = given or min(self.default_length, most)

    def most_positions(self) -> int:
        """Tokens that the model takes; a tokenizer knows of positions that are reserved, as RoBERTa's."""
        return min(self.config.max_position_embeddings, self.tokenizer.model_max_length)

    @abstractmethod
    def _check_config(self) -> None:
        """Refuse a model that this task has no use for."""

    def _own_tokenizer(self) -> str:
        return self.model_source

    @property
    def shape(self) -> TransformerShape:
        """What the FLOPs of the model depend on."""
        config = self.config
        wide = (getattr(config, name, None) for name in ("intermediate_size", "n_inner", "hidden_dim"))
        return TransformerShape(config.num_hidden_layers, config.hidden_size,
                                next(filter(None, wide), 4 * config.hidden_size), self.outputs_per_token)

    @property
    @abstractmethod
    def outputs_per_token(self) -> int:
        """That the model's head gives; 0 where it sees one vector a sample, whose cost is not counted."""

    @property
    @abstractmethod
    def input_names(self) -> tuple[str, ...]:
        """What the model takes, in the order of `ordered_layers`' first."""

    @abstractmethod
    def logits_shape(self, samples: int, length: int) -> tuple[int, ...]:
        """Of what the model gives for so many samples, padded to `length` tokens."""

    @abstractmethod
    def build_model(self) -> torch.nn.Module:
        """The Hugging Face model, the same on every rank."""

    def logits(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """What a whole model gives for a micro-batch. See `logits_shape`."""
        return model(**inputs).logits

    # ------------------------------------------------------------------ data

    example_word: ClassVar[str] = "example"

    def _files_given(self) -> dict[str, str | None]:
        return {"train": self.arguments.train_file, "validation": self.arguments.eval_file}

    @staticmethod
    @abstractmethod
    def read(path: str, **options) -> Iterator[dict]:
        """The examples of a local file or folder, one at a time."""

    def _reading(self, split: str) -> dict:
        """What `read` is called with; all that the examples depend on."""
        return {"path": os.path.abspath(self.files[split]), "digest": self.data_digest[split]}

    @abstractmethod
    def _from_hub(self, split: str) -> Dataset:
        """The examples of a split from the Hub."""

    def load_from_hub(self, dataset: str, *options: str, **more) -> Dataset:
        """`datasets.load_dataset`, with one clear line where that cannot be had."""
        go_offline_without_network()
        try:
            return datasets.load_dataset(dataset, *options, **more)
        except Exception as error:  # noqa: BLE001  the Hub's clients raise dozens of unrelated kinds
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise InputError(f"{dataset} cannot be had from the Hugging Face Hub (no network?); give local files "
                             f"with --train_file and --eval_file, or --sample ({reason})") from error

    def load(self) -> None:
        """Tokenise all parts, or take them from the cache of `datasets`."""
        arguments = self.arguments
        self.examples: dict[str, Dataset] = {}
        self.features: dict[str, Dataset] = {}
        # Before the first use: calling the tokenizer changes what it is written as.
        tokenizer = self.tokenizer.backend_tokenizer.to_str()
        for split in self.files:
            limit = arguments.max_train_examples if split == "train" else arguments.max_eval_examples
            if self.files[split]:
                examples = Dataset.from_generator(self.read, features=self.columns, gen_kwargs=self._reading(split))
            else:
                examples = self._from_hub(split)
            if limit:
                examples = examples.select(range(min(limit, len(examples))))
            self.examples[split] = examples
            self.features[split] = examples.map(
                self._tokenise, with_indices=True, batched=True, remove_columns=examples.column_names,
                desc=f"tokenising {split}",
                # What the result depends on; `datasets` would hash the tokenizer's changing state as well.
                new_fingerprint=Hasher.hash([self.name, examples._fingerprint, tokenizer, *self._tokenised_by()]))

    def _tokenised_by(self) -> list:
        """Settings that features depend on, besides the tokenizer."""
        return [self.max_length]

    @abstractmethod
    def _tokenise(self, examples: dict[str, list], indices: list[int]) -> dict[str, list]:
        """Features of some examples: `feature_id`, `input_ids`, `length`, and what `collate` and `score` take."""

    def samples(self, part: str) -> Dataset:
        """The features of "train", or all of "validation"."""
        return self.features[part]

    def collate(self, rows: dict[str, list], length: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Pad rows of `samples` to (rows, length): what the model takes, and what the loss takes besides logits."""
        real = torch.tensor(rows["length"])
        inputs = {}
        for name in self.input_names:
            if name == "attention_mask":
                inputs[name] = (torch.arange(length) < real[:, None]).long()
                continue
            inputs[name] = torch.full((len(real), length), (self.tokenizer.pad_token_id or 0) * (name == "input_ids"))
            for row, values in zip(inputs[name], rows[name], strict=True):
                row[: len(values)] = torch.tensor(values)
        return inputs, self.labels(rows, inputs)

    @abstractmethod
    def labels(self, rows: dict[str, list], inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the loss takes besides logits, by `label_names`; the first dimension is that of the samples."""

    # ------------------------------------------------------------------ loss, score

    @abstractmethod
    def loss(self, logits: torch.Tensor, labels: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss of each sample, in fp32, whatever it is batched with: `logits_shape` -> (batch,)"""

    def judge(self, logits: torch.Tensor, labels: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """In an evaluation: the loss of each sample, and what `score` takes of it. (batch,), (batch, ...)"""
        return self.loss(logits, labels), logits

    @abstractmethod
    def score(self, judged: dict[int, np.ndarray]) -> tuple[dict[str, float], dict[str, str] | None]:
        """`metrics`, and predictions by the examples' ids if there are any, from what `judge` gave for every row."""
