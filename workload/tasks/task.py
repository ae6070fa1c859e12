"""What all tasks have in common: where model and data come from, what is cached, how samples become tensors."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
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

from measurement.flops import TransformerShape
from workload.arguments import Arguments
from workload.digests import tokenizer_digest
from workload.errors import InputError
from workload.hub import go_offline_without_network
from workload.launch.processes import usable_cores
from workload.models.layers import transformer_modules
from workload.models.loading import (
    EMBEDDED,
    TINY,
    check_model_files,
    load_config,
    load_model,
    load_tokenizer,
    vocabulary_size,
)
from workload.tasks.files import check_path, file_digest, read_some
from workload.tasks.limits import limited

EXAMPLES_A_PROCESS = 5_000  # at least, when tokenising
# Part of the cache keys, so that what another version of this code has read is not reused.
CODE = Hasher.hash([file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py"))])


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
        self.fresh_parameters: list[str] = []  # names of those that begin at random, once the model is loaded
        self.model_record: dict = {}  # what run.json says of the model, once it is built
        self._loaded: torch.nn.Module | None = None
        self._choose_model()
        self.files: dict[str, str | None] = self._files_given()
        if arguments.sample:
            self.files = {split: str(path) for split, path in self.sample.items()}
        for path in filter(None, self.files.values()):
            check_path(path)
        self.data_digest = {split: self.digest(path) for split, path in self.files.items() if path}
        self.examples: dict[str, Dataset] = {}
        self.draws: dict[str, dict | None] = {}  # how a limit drew the examples; None where all were kept
        for split, path in self.files.items():
            examples = self._from_file(split) if path else self._from_hub(split)
            flag = "max_train_examples" if split == "train" else "max_eval_examples"
            self.examples[split], self.draws[split] = limited(
                examples, self._classes(split, examples), getattr(arguments, flag), f"--{flag}", path or split)

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
        tokens = vocabulary_size(self.tokenizer)
        if self.from_scratch:
            self.config.vocab_size = tokens
        elif tokens > self.config.vocab_size:
            raise InputError(f"--tokenizer {self.tokenizer_name}: has {tokens} tokens, but {self.model_name} knows "
                             f"{self.config.vocab_size} only; use the tokenizer that it was trained with, or give the "
                             "model room with resize_token_embeddings")
        if not self.from_scratch:
            check_model_files(self.model_source)
        most, given = self.most_positions(), arguments.max_seq_length
        if given and given > most:
            raise InputError(f"--max_seq_length {given}: {self.model_name} takes at most {most} tokens")
        self.max_length = given or min(self.default_length, most)

    def most_positions(self) -> int:
        """Tokens that the model takes; a tokenizer knows of positions that are reserved, as RoBERTa's.

        Models whose positions are relative name no number, or one below 1.
        """
        most = getattr(self.config, "max_position_embeddings", None) or 0
        return min(most, self.tokenizer.model_max_length) if most > 0 else self.tokenizer.model_max_length

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
    def input_names(self) -> tuple[str, ...]:
        """What the model takes, in the order of `ordered_layers`' first."""
        has_types = getattr(self.config, "type_vocab_size", 0) > 0
        return "input_ids", *["token_type_ids"] * has_types, "attention_mask"

    @abstractmethod
    def logits_shape(self, samples: int, length: int) -> tuple[int, ...]:
        """Of what the model gives for so many samples, padded to `length` tokens."""

    def check_model(self) -> None:
        """Load the model, for `build_model` to take, so that one that is no good is refused before data is tokenised.

        Raises:
            InputError: its weights are not those of this model, or it cannot do this task.
        """
        self._loaded = self.load_model()

    def build_model(self) -> torch.nn.Module:
        """The Hugging Face model, the same on every rank."""
        model, self._loaded = self._loaded or self.load_model(), None
        from workload.models.attention import (
            use_masks_as_given,  # the seconds that this import takes no launcher need spend
        )
        from workload.models.dropout import pack_dropout

        use_masks_as_given()
        if not torch.cuda.is_available():
            pack_dropout(model)
        if self.arguments.compile:  # one layer after the other: they are alike, so only the first takes long
            for layer in transformer_modules(model).values():
                layer.compile()
        self.model_record = {"attention": model.config._attn_implementation,
                             "initialised": "all" if self.from_scratch else self.fresh_parameters}
        return model

    @property
    @abstractmethod
    def model_class(self) -> type:
        """The Hugging Face class, or an `AutoModelFor...`; imported late, as that takes seconds."""

    def load_model(self) -> torch.nn.Module:
        """The Hugging Face model as it is on the disk, or with new weights."""
        model, self.fresh_parameters = load_model(self.model_class, self.model_source, self.config, self.arguments.seed,
                                                  self.from_scratch)
        return model

    def logits(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """What a whole model gives for a micro-batch. See `logits_shape`."""
        return model(**inputs).logits

    # ------------------------------------------------------------------ data

    example_word: ClassVar[str] = "example"
    digest = staticmethod(file_digest)  # SHA-256 of everything that `read` reads from a path

    def _files_given(self) -> dict[str, str | None]:
        return {"train": self.arguments.train_file, "validation": self.arguments.eval_file}

    @staticmethod
    @abstractmethod
    def read(path: str, **options) -> Iterator[dict]:
        """The examples of a local file or folder, one at a time."""

    def _reading(self, split: str) -> dict:
        """What `read` is called with; all that the examples depend on."""
        return {"path": os.path.abspath(self.files[split]), "digest": self.data_digest[split] + CODE}

    def _from_file(self, split: str) -> Dataset:
        """The examples of a local file, read and checked once, then taken from the cache of `datasets`."""
        try:
            return Dataset.from_generator(read_some, features=self.columns, gen_kwargs={
                "read": self.read, "example_word": self.example_word, "reading": self._reading(split)})
        except DatasetGenerationError as error:
            raise error.__cause__ or error from None  # what `read` says

    @abstractmethod
    def _from_hub(self, split: str) -> Dataset:
        """The examples of a split from the Hub."""

    def _classes(self, split: str, examples: Dataset) -> np.ndarray:
        """The class of each example, in proportion to which limits draw; all equal without classes. (examples,)"""
        return np.zeros(len(examples), dtype=int)

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
        """Tokenise all parts, or take them from the cache of `datasets`, which maps files into memory."""
        self.features: dict[str, Dataset] = {}
        tokenizer = tokenizer_digest(self.tokenizer)
        for split, examples in self.examples.items():
            dropped = self.scoring_columns if split == "train" else []
            # What the result depends on; `datasets` would hash the tokenizer's changing state as well.
            fingerprint = Hasher.hash([CODE, self.name, examples._fingerprint, tokenizer, dropped,
                                       *self._tokenised_by()])
            self.features[split] = examples.map(
                self._tokenise_without, fn_kwargs={"columns": dropped}, with_indices=True, batched=True,
                remove_columns=examples.column_names, num_proc=self._tokenising_processes(len(examples)),
                desc=f"tokenising {split}", new_fingerprint=fingerprint)

    def _tokenising_processes(self, examples: int) -> int | None:
        """Where it pays: each costs about a second to start."""
        processes = min(usable_cores(), examples // EXAMPLES_A_PROCESS)
        return processes if processes > 1 else None

    def _tokenised_by(self) -> list:
        """Settings that features depend on, besides the tokenizer."""
        return [self.max_length, self.input_names, self.has_token_types]

    @property
    def has_token_types(self) -> bool:
        """Whether the tokenizer tells the two texts of a pair apart, and the model too."""
        return "token_type_ids" in self.tokenizer.model_input_names and getattr(self.config, "type_vocab_size", 0) > 1

    def token_inputs(self, encoded: BatchEncoding) -> dict[str, list[list[int]]]:
        """What a tokenizer gives, as far as the model takes it; token types of 0 where there is only one."""
        return {name: encoded[name] if name == "input_ids" or self.has_token_types
                else [[0] * len(tokens) for tokens in encoded["input_ids"]]
                for name in self.input_names if name != "attention_mask"}

    @abstractmethod
    def _tokenise(self, examples: dict[str, list], indices: list[int]) -> dict[str, list]:
        """Features of some examples: `feature_id`, `input_ids`, `length`, and what `collate` and `score` take."""

    def _tokenise_without(self, examples: dict[str, list], indices: list[int], columns: list[str]) -> dict[str, list]:
        return {name: values for name, values in self._tokenise(examples, indices).items() if name not in columns}

    def samples(self, part: str) -> Dataset:
        """The features of "train", or all of "validation"."""
        return self.features[part]

    def collate(self, rows: pa.Table, length: int,
                is_padded: bool = True) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Pad rows of `samples` to (rows, length): what the model takes, and what the loss takes besides logits.

        Args:
            is_padded: whether the model gets a mask, if it takes one; False where all rows of the global batch are of
                this length.
        """
        # NumPy throughout: it uses one thread, and leaves the others to the step that is being computed meanwhile.
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
