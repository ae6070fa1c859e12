"""Texts, or pairs of texts, that belong to one class each: what IMDB and MNLI have in common."""

from abc import abstractmethod
from typing import ClassVar

import datasets
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from datasets import Dataset

from workload.encoder_config import ENCODER_CLASSIFIER
from workload.errors import InputError
from workload.models import load_model
from workload.tasks.task import Task


class Classification(Task):
    """A sample is a text, or a pair of texts, cut to at most `max_seq_length` tokens. One class is right."""

    classes: ClassVar[tuple[str, ...]]
    columns = datasets.Features({"id": datasets.Value("string"), "text": datasets.Value("string"),
                                 "pair": datasets.Value("string"), "label": datasets.Value("int64")})
    outputs_per_token = 0
    label_names = ("label",)

    def _check_config(self) -> None:
        if self.config.is_encoder_decoder:
            raise InputError(f"--model {self.model_name}: a {self.config.model_type!r} model has a decoder; this task "
                             "takes an encoder, such as a 'bert' model")
        self.config.num_labels = len(self.classes)
        self.config.id2label = dict(enumerate(self.classes))
        self.config.label2id = {name: number for number, name in enumerate(self.classes)}

    def _choose_model(self) -> None:
        super()._choose_model()
        if self.tokenizer.pad_token_id is None:
            raise InputError(f"--model {self.model_name}: its tokenizer has no padding token; this task takes an "
                             "encoder, such as a 'bert' model")

    @property
    def input_names(self) -> tuple[str, ...]:
        """What the tokenizer gives, as far as the model takes it."""
        is_own = self.config.model_type == ENCODER_CLASSIFIER
        has_types = not is_own and "token_type_ids" in self.tokenizer.model_input_names
        return "input_ids", *["token_type_ids"] * has_types, "attention_mask"

    def _classes(self, split: str, examples: Dataset) -> np.ndarray:
        labels = examples.select_columns("label").with_format("numpy")[:]["label"]
        if len(found := np.unique(labels)) == 1:
            raise InputError(f"{self.files[split] or split}: every example is {self.classes[found[0]]!r}; use data of "
                             "at least two classes")
        return labels

    def _tokenised_by(self) -> list:
        return [self.max_length, self.input_names]

    def _tokenise(self, examples: dict[str, list], indices: list[int]) -> dict[str, list]:
        pairs = None if examples["pair"][0] is None else examples["pair"]
        encoded = self.tokenizer(examples["text"], pairs, truncation=True, max_length=self.max_length)
        return {"feature_id": examples["id"], "length": [len(tokens) for tokens in encoded["input_ids"]],
                "label": examples["label"],
                **{name: encoded[name] for name in self.input_names if name != "attention_mask"}}

    def labels(self, rows: pa.Table, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The right classes' numbers. (batch,)"""
        return {"label": torch.tensor(rows["label"].to_numpy())}

    def load_model(self) -> torch.nn.Module:
        from transformers import AutoModelForSequenceClassification  # seconds, which checking can do without

        if self.config.model_type == ENCODER_CLASSIFIER:
            import workload.encoder_classifier  # noqa: F401  makes it known to AutoModel...

        return load_model(AutoModelForSequenceClassification, self.model_source, self.config, self.arguments.seed,
                          self.from_scratch)

    def logits_shape(self, samples: int, length: int) -> tuple[int, ...]:
        """A score for each class."""
        return samples, len(self.classes)

    def loss(self, logits: torch.Tensor, labels: dict[str, torch.Tensor]) -> torch.Tensor:
        """Cross-entropy, in fp32: (batch, classes) -> (batch,)"""
        return F.cross_entropy(logits.float(), labels["label"], reduction="none")

    def score(self, judged: dict[int, np.ndarray]) -> tuple[dict[str, float], dict[str, str]]:
        """Accuracies in percent, and the predicted classes, from the logits of every evaluation sample."""
        features = self.samples("validation")
        chosen = np.array([judged[row].argmax() for row in range(len(features))])
        right = chosen == np.array(features["label"])
        names = [self.classes[number] for number in chosen]
        return self.accuracies(right), dict(zip(self.prediction_ids(), names, strict=True))

    def prediction_ids(self) -> list[str]:
        """What predictions.json calls the evaluation samples."""
        return self.samples("validation")["feature_id"][:]

    @abstractmethod
    def accuracies(self, right: np.ndarray) -> dict[str, float]:
        """`metrics` from whether each evaluation sample was put into its class. (samples,)"""
