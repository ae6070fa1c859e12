"""The model half of a task: which model and tokenizer the flags choose, and how the model is prepared for training."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from workload.arguments import Arguments
from workload.errors import InputError
from workload.launch.gpus import device_type
from workload.models.families import shape_of
from workload.models.flops import TransformerShape
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

if TYPE_CHECKING:
    from transformers import PreTrainedModel  # takes seconds


class TaskModel(ABC):
    """A task's model and tokenizer.

    Attributes:
        model_name, tokenizer_name: as the flags or the defaults give them.
        model_source: name on the Hub, or folder, that the model's files come from.
        from_scratch: whether the model starts from random weights.
        config, tokenizer: of `transformers`.
        max_length: tokens of a sample, at most.
        outputs_per_token: of the head, for FLOPs; 0 for a classifier's head, which sees one vector per sample.
        fresh_parameters: names of the parameters that start from random values, once the model has been loaded.
        model_record: the entry `model` of run.json, once the model has been built.

    Raises (from the constructor):
        InputError: a model, a tokenizer or a flag that cannot be used. No weights have been loaded by then.
    """

    default_model: ClassVar[str]  # on the Hub, or an embedded one
    default_from_scratch: ClassVar[bool] = False
    default_length: ClassVar[int]  # tokens of a sample, at most
    tiny: ClassVar[Path]  # folder of the embedded small model
    outputs_per_token: int

    def __init__(self, arguments: Arguments) -> None:
        self.arguments = arguments
        self.fresh_parameters: list[str] = []
        self.model_record: dict = {}
        self._loaded: PreTrainedModel | None = None
        self._choose_model()

    # ------------------------------------------------------------------ choosing

    def _choose_model(self) -> None:
        arguments = self.arguments
        self.model_name = arguments.model or self.default_model
        is_embedded = self.model_name in EMBEDDED
        by_default = is_embedded or arguments.model is None and self.default_from_scratch
        self.from_scratch = by_default if arguments.from_scratch is None else arguments.from_scratch
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

    @abstractmethod
    def _check_config(self) -> None:
        """Refuse a model that this task cannot use, and adapt its configuration to the task."""

    def _own_tokenizer(self) -> str:
        """The default of --tokenizer: the model's own."""
        return self.model_source

    def most_positions(self) -> int:
        """The most tokens that the model takes.

        The tokenizer's limit counts too: it excludes reserved positions, such as RoBERTa's. Models with relative
        positions have no `max_position_embeddings`, or a value below 1.
        """
        most = getattr(self.config, "max_position_embeddings", None) or 0
        return min(most, self.tokenizer.model_max_length) if most > 0 else self.tokenizer.model_max_length

    @property
    def new_layers(self) -> list[str]:
        """The layers that a pretrained model has no weights for, once it has been loaded."""
        return [] if self.from_scratch else list(dict.fromkeys(
            name.rpartition(".")[0] for name in self.fresh_parameters))

    # ------------------------------------------------------------------ inputs and outputs

    @property
    def input_names(self) -> tuple[str, ...]:
        """The model's inputs, in the order in which the first of `ordered_layers` takes them."""
        has_types = getattr(self.config, "type_vocab_size", 0) > 0
        return "input_ids", *["token_type_ids"] * has_types, "attention_mask"

    @property
    def has_token_types(self) -> bool:
        """Whether both tokenizer and model tell the two texts of a pair apart."""
        return "token_type_ids" in self.tokenizer.model_input_names and getattr(self.config, "type_vocab_size", 0) > 1

    @abstractmethod
    def logits_shape(self, samples: int, length: int) -> tuple[int, ...]:
        """Shape of the logits for `samples` samples padded to `length` tokens."""

    @property
    def shape(self) -> TransformerShape | None:
        """The dimensions that the model's FLOPs depend on; None if no formula is known for its family."""
        return shape_of(self.config, self.outputs_per_token)

    def logits(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The logits of a whole model for a micro-batch, see `logits_shape`."""
        return model(**inputs).logits

    # ------------------------------------------------------------------ loading

    @property
    @abstractmethod
    def model_class(self) -> type:
        """The Hugging Face class, or an `AutoModelFor...`. Imported only when needed, because that takes seconds."""

    def load_model(self) -> "PreTrainedModel":
        """The Hugging Face model with its stored weights, or with random ones.

        Raises:
            InputError: its weights cannot be used.
        """
        model, self.fresh_parameters = load_model(self.model_class, self.model_source, self.config, self.arguments.seed,
                                                  self.from_scratch)
        return model

    def check_model(self) -> None:
        """Load the model before the data is tokenised, so that an unusable one is refused early; `build_model` uses it.

        Raises:
            InputError: its weights belong to another model, or it cannot do this task.
        """
        self._loaded = self.load_model()

    def build_model(self) -> "PreTrainedModel":
        """The Hugging Face model ready for training, the same on every rank."""
        model, self._loaded = self._loaded or self.load_model(), None
        # Imported here because it takes seconds, which a launcher need not spend.
        from workload.models.attention import use_masks_as_given
        from workload.models.dropout import pack_dropout

        use_masks_as_given()
        if device_type() == "cpu":
            pack_dropout(model)
        if self.arguments.compile:  # layer by layer: they are alike, so only the first takes long to compile
            for layer in transformer_modules(model).values():
                layer.compile()
        self.model_record = {"attention": model.config._attn_implementation,
                             "initialised": "all" if self.from_scratch else self.fresh_parameters}
        return model
