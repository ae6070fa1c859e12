"""Classification of texts or pairs of texts: the code that IMDB and MNLI share."""

import inspect
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

import datasets
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from datasets import Dataset

from workload.errors import InputError
from workload.models.encoder_config import ENCODER_CLASSIFIER
from workload.models.loading import UNNAMED, output_names
from workload.models.weights import head_of
from workload.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel  # takes seconds


class Classification(Task):
    """A sample is a text, or a pair of texts, truncated to `max_seq_length` tokens. It belongs to one class."""

    classes: ClassVar[tuple[str, ...]]
    class_numbers: ClassVar[dict[str, int]]  # lower-case names in models and files -> index in `classes`
    order: list[int]  # the class of each output of the model
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
        names = [str(name) for _, name in sorted(output_names(self.config).items())]
        is_unnamed = all(map(UNNAMED.fullmatch, names))
        self.order = [self.class_number(name) for name in names]
        self.other_classes: list[str] = []  # the model's classes, if they are not this task's
        if sorted(self.order) != list(range(len(self.classes))):
            self.order = list(range(len(self.classes)))
            self.other_classes = [] if is_unnamed else names
        self.is_named = not self.other_classes and not is_unnamed
        if not self.is_named:
            self.config.id2label = {output: self.classes[number] for output, number in enumerate(self.order)}
            self.config.label2id = {name: output for output, name in self.config.id2label.items()}

    def class_number(self, name: str) -> int:
        """Index in `classes` of a model's name for a class (also LABEL_0 and so on); -1 if it is none of them."""
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
        """The index of the output that should be largest. (batch,)"""
        return {"label": torch.from_numpy(np.argsort(self.order)[rows["label"].to_numpy()])}

    @property
    def model_class(self) -> type:
        from transformers import AutoModelForSequenceClassification

        if self.config.model_type == ENCODER_CLASSIFIER:
            import workload.models.encoder_classifier  # noqa: F401  registers it with AutoModel...

        return AutoModelForSequenceClassification

    def load_model(self) -> "PreTrainedModel":
        model = super().load_model()
        self.taken = inspect.signature(model.forward).parameters  # FNet takes no mask: it mixes all tokens
        head = head_of(model)
        if self.other_classes and not self.from_scratch and not (head and head[-1] in self.fresh_parameters):
            raise InputError(f"--model {self.model_name}: its head tells apart {', '.join(self.other_classes)}, not "
                             f"{', '.join(self.classes)}; use a model without a head, or with one for this task")
        return model

    def build_model(self) -> "PreTrainedModel":
        model = super().build_model()
        self.model_record |= {"outputs": [self.classes[number] for number in self.order],
                              "outputs_named_by": "the model" if self.is_named else "the task"}
        return model

    def check_model(self) -> None:
        super().check_model()
        assert self._loaded is not None  # from now until `build_model`
        self._try_out(self._loaded)

    def _try_out(self, model: "PreTrainedModel") -> None:
        """Refuse a model that cannot take samples of full length, or whose scores depend on masked padding."""
        long, short = "a " * self.max_length, "a"
        pair = [long, short] if self.examples["train"][0]["pair"] is not None else [None, None]
        features = self._tokenise({"id": ["0", "1"], "text": [long, short], "pair": pair, "label": [0, 0]}, [0, 1])
        rows = pa.table(features)
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
        """Scores of the classes from a whole model. (batch, classes)"""
        return model(**{name: tensor for name, tensor in inputs.items() if name in self.taken}).logits

    def logits_shape(self, samples: int, length: int) -> tuple[int, ...]:
        """(batch, classes)"""
        return samples, len(self.classes)

    def loss(self, logits: torch.Tensor, labels: dict[str, torch.Tensor]) -> torch.Tensor:
        """Cross-entropy, in fp32: (batch, classes) -> (batch,)"""
        return F.cross_entropy(logits.float(), labels["label"], reduction="none")

    def score(self, outputs: dict[int, np.ndarray]) -> tuple[dict[str, float], dict[str, str]]:
        """Accuracies in percent, and the name of the class predicted for each id.

        Args:
            outputs: row of the validation samples -> logits. (classes,)
        """
        features = self.samples("validation")
        chosen = np.array([self.order[outputs[row].argmax()] for row in range(len(features))])
        right = chosen == np.array(features["label"])
        names = [self.classes[number] for number in chosen]
        return self.accuracies(right), dict(zip(self.prediction_ids(), names, strict=True))

    def prediction_ids(self) -> list[str]:
        """The ids of the validation samples in predictions.json."""
        return self.samples("validation")["feature_id"][:]

    @abstractmethod
    def accuracies(self, right: np.ndarray) -> dict[str, float]:
        """The `metrics` in percent.

        Args:
            right: whether each validation sample was classified correctly. (samples,)
        """
