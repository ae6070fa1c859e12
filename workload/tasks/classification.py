"""Texts, or pairs of texts, that belong to one class each: what IMDB and MNLI have in common."""

import inspect
from abc import abstractmethod
from typing import ClassVar

import datasets
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from datasets import Dataset

from workload.errors import InputError
from workload.models.encoder_config import ENCODER_CLASSIFIER
from workload.models.loading import UNNAMED
from workload.models.weights import head_of
from workload.tasks.task import Task


class Classification(Task):
    """A sample is a text, or a pair of texts, cut to at most `max_seq_length` tokens. One class is right."""

    classes: ClassVar[tuple[str, ...]]
    class_numbers: ClassVar[dict[str, int]]  # what models and files call the classes, in small letters
    order: list[int]  # which class each output of the model stands for
    columns = datasets.Features({"id": datasets.Value("string"), "text": datasets.Value("string"),
                                 "pair": datasets.Value("string"), "label": datasets.Value("int64")})
    outputs_per_token = 0
    label_names = ("label",)

    def _check_config(self) -> None:
        if self.config.model_type != ENCODER_CLASSIFIER:
            from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as ENCODERS

            if self.config.model_type not in ENCODERS or self.config.is_encoder_decoder:
                raise InputError(f"--model {self.model_name}: a {self.config.model_type!r} model is no encoder; use "
                                 "one, such as a 'bert' model")
        names = [str(self.config.id2label[number]) for number in sorted(self.config.id2label)]
        is_unnamed = all(map(UNNAMED.fullmatch, names))
        self.order = [self.class_number(name) for name in names]
        self.other_classes: list[str] = []  # that the model names, where they are not ours
        if sorted(self.order) != list(range(len(self.classes))):
            self.order = list(range(len(self.classes)))
            self.other_classes = [] if is_unnamed else names
        self.is_named = not self.other_classes and not is_unnamed
        if not self.is_named:
            self.config.id2label = {output: self.classes[number] for output, number in enumerate(self.order)}
            self.config.label2id = {name: output for output, name in self.config.id2label.items()}

    def class_number(self, name: str) -> int:
        """Index in `classes` of what a model calls a class, LABEL_0 and so on too; -1 where it is none of them."""
        number = UNNAMED.fullmatch(name)
        return int(number[1]) if number else self.class_numbers.get(name.strip().lower(), -1)

    def _choose_model(self) -> None:
        super()._choose_model()
        if self.tokenizer.pad_token_id is None:
            raise InputError(f"--tokenizer {self.tokenizer_name}: has no padding token; use an encoder's tokenizer, "
                             "such as a 'bert' model's")

    def _classes(self, split: str, examples: Dataset) -> np.ndarray:
        labels = examples.select_columns("label").with_format("numpy")[:]["label"]
        if len(found := np.unique(labels)) == 1:
            raise InputError(f"{self.files[split] or split}: every example is {self.classes[found[0]]!r}; use data of "
                             "at least two classes")
        return labels

    def _tokenise(self, examples: dict[str, list], indices: list[int]) -> dict[str, list]:
        pairs = None if examples["pair"][0] is None else examples["pair"]
        encoded = self.tokenizer(examples["text"], pairs, truncation=True, max_length=self.max_length)
        return {"feature_id": examples["id"], "length": [len(tokens) for tokens in encoded["input_ids"]],
                "label": examples["label"], **self.token_inputs(encoded)}

    def labels(self, rows: pa.Table, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The outputs that should be largest. (batch,)"""
        return {"label": torch.from_numpy(np.argsort(self.order)[rows["label"].to_numpy()])}

    @property
    def model_class(self) -> type:
        from transformers import AutoModelForSequenceClassification

        if self.config.model_type == ENCODER_CLASSIFIER:
            import workload.models.encoder_classifier  # noqa: F401  makes it known to AutoModel...

        return AutoModelForSequenceClassification

    def load_model(self) -> torch.nn.Module:
        model = super().load_model()
        self.taken = inspect.signature(model.forward).parameters  # FNet, which mixes all tokens, takes no mask
        head = head_of(model)
        if self.other_classes and not self.from_scratch and not (head and head[-1] in self.fresh_parameters):
            raise InputError(f"--model {self.model_name}: its head tells apart {', '.join(self.other_classes)}, not "
                             f"{', '.join(self.classes)}; use a model without a head, or with one for this task")
        return model

    def build_model(self) -> torch.nn.Module:
        model = super().build_model()
        self.model_record |= {"outputs": [self.classes[number] for number in self.order],
                              "outputs_named_by": "the model" if self.is_named else "the task"}
        return model

    def check_model(self) -> None:
        super().check_model()
        self._try_out(self._loaded)

    def _try_out(self, model: torch.nn.Module) -> None:
        """Refuse a model that cannot take samples of full length, or whose answers depend on padding that it masks."""
        long, short = "a " * self.max_length, "a"
        pair = [long, short] if self.examples["train"][0]["pair"] is not None else [None, None]
        features = self._tokenise({"id": ["0", "1"], "text": [long, short], "pair": pair, "label": [0, 0]}, [0, 1])
        rows = Dataset.from_dict(features).with_format("arrow")[:]
        length = features["length"][1]
        try:
            with torch.no_grad():
                together = self.logits(model.eval(), self.collate(rows, self.max_length, True)[0])
                alone = self.logits(model, self.collate(rows.slice(1), length, False)[0])
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise InputError(f"--model {self.model_name}: a {self.config.model_type!r} model cannot do this task here "
                             f"({str(error).strip().splitlines()[0]}); use a 'bert' model") from error
        if "attention_mask" in self.taken and not torch.allclose(together[1:], alone, rtol=1e-3, atol=1e-3):
            raise InputError(f"--model {self.model_name}: the scores of a {self.config.model_type!r} model depend on "
                             "the padding behind a text; use a 'bert' model")

    def logits(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Scores of the classes, from a whole model. (batch, classes)"""
        return model(**{name: tensor for name, tensor in inputs.items() if name in self.taken}).logits

    def logits_shape(self, samples: int, length: int) -> tuple[int, ...]:
        """A score for each class."""
        return samples, len(self.classes)

    def loss(self, logits: torch.Tensor, labels: dict[str, torch.Tensor]) -> torch.Tensor:
        """Cross-entropy, in fp32: (batch, classes) -> (batch,)"""
        return F.cross_entropy(logits.float(), labels["label"], reduction="none")

    def score(self, judged: dict[int, np.ndarray]) -> tuple[dict[str, float], dict[str, str]]:
        """Accuracies in percent, and the predicted classes, from the logits of every evaluation sample."""
        features = self.samples("validation")
        chosen = np.array([self.order[judged[row].argmax()] for row in range(len(features))])
        right = chosen == np.array(features["label"])
        names = [self.classes[number] for number in chosen]
        return self.accuracies(right), dict(zip(self.prediction_ids(), names, strict=True))

    def prediction_ids(self) -> list[str]:
        """What predictions.json calls the evaluation samples."""
        return self.samples("validation")["feature_id"][:]

    @abstractmethod
    def accuracies(self, right: np.ndarray) -> dict[str, float]:
        """`metrics` from whether each evaluation sample was put into its class. (samples,)"""
