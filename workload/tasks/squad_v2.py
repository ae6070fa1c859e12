"""SQuAD v2: find the answer to a question in a text, or recognise that the text does not contain it."""

import datasets
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from datasets import Dataset

from workload.arguments import Arguments
from workload.errors import InputError
from workload.models.loading import DATA
from workload.tasks.squad_files import read_squad
from workload.tasks.squad_score import predict_answers, score_answers
from workload.tasks.task import Task

HUB_DATASET = "rajpurkar/squad_v2"


class SquadV2(Task):
    """A sample is one window of at most `max_seq_length` tokens: [CLS] question [SEP] part of the context [SEP].

    Windows of one context overlap by `doc_stride` tokens. A window without the answer has [CLS] as its start and end.
    """

    name = "squad_v2"
    default_model = "bert-base-uncased"
    default_length = 384
    tiny = DATA / "tiny_bert"
    sample = {"train": DATA / "squad_v2" / "train.json", "validation": DATA / "squad_v2" / "eval.json"}
    columns = datasets.Features({
        "id": datasets.Value("string"), "question": datasets.Value("string"), "context": datasets.Value("string"),
        "answers": {"text": datasets.List(datasets.Value("string")),
                    "answer_start": datasets.List(datasets.Value("int32"))},
    })
    metrics = ("exact_match", "f1")
    outputs_per_token = 2  # start and end
    label_names = ("start", "end", "attention_mask")
    scoring_columns = ["example_index", "offsets"]
    read = staticmethod(read_squad)

    def __init__(self, arguments: Arguments) -> None:
        self.example_word = "question" + " with an answer" * arguments.answerable_only
        super().__init__(arguments)

    def _check_config(self) -> None:
        if self.config.model_type != "bert":
            raise InputError(f"--model {self.model_name}: its config.json says {self.config.model_type!r}; this task "
                             "takes a 'bert' model")
        self.config.num_labels = 2  # start and end of an answer, whatever the stored head was for

    def _choose_model(self) -> None:
        super()._choose_model()
        begins = self.tokenizer("a", "a")["input_ids"][0]
        if self.tokenizer.pad_token_id is None or begins != self.tokenizer.cls_token_id:
            raise InputError(f"--tokenizer {self.tokenizer_name}: does not put [CLS] first, or has no padding token; "
                             "use a 'bert' tokenizer")
        given = self.arguments.doc_stride
        self.stride = min(128, self.max_length // 3) if given is None else given
        # Besides the stride a window needs room for one token of the question and one new token of the context.
        self.special_tokens = self.tokenizer.num_special_tokens_to_add(pair=True)  # 3 for BERT: [CLS] and two [SEP]
        most = self.max_length - self.special_tokens - 2
        if self.stride > most:
            raise InputError(f"--doc_stride {self.stride}: leaves no room in windows of {self.max_length} tokens; "
                             f"use at most {most}")

    # ------------------------------------------------------------------ data

    def _reading(self, split: str, path: str) -> dict:
        return super()._reading(split, path) | {"answerable_only": self.arguments.answerable_only}

    def _from_hub(self, split: str) -> Dataset:
        examples = self.load_from_hub(HUB_DATASET, split=split).remove_columns("title")
        if self.arguments.answerable_only:
            examples = examples.filter(lambda answers: bool(answers["text"]), input_columns="answers")
        return examples

    def _tokenised_by(self) -> list:
        return [*super()._tokenised_by(), self.stride]

    def _tokenise(self, examples: dict[str, list], indices: list[int]) -> dict[str, list]:
        """Cut questions and contexts into windows, and locate the answer in each."""
        encoded = self.tokenizer(
            self._cut_questions(examples["question"]), examples["context"], truncation="only_second",
            max_length=self.max_length, stride=self.stride, return_overflowing_tokens=True,
            return_offsets_mapping=True, return_attention_mask=False)
        tokens = self.token_inputs(encoded)
        made: dict[str, list] = {name: [] for name in ("feature_id", "example_index", *tokens, "length", "start", "end",
                                                       "offsets")}
        window_of: dict[int, int] = {}
        for row, example in enumerate(encoded["overflow_to_sample_mapping"]):
            in_context = np.array([sequence == 1 for sequence in encoded.sequence_ids(row)])
            offsets = np.where(in_context[:, None], np.array(encoded["offset_mapping"][row]), -1)
            answers = examples["answers"][example]
            start, end = 0, 0  # [CLS]
            if answers["text"]:
                begin, behind = self._without_dropped_ends(answers["answer_start"][0], answers["text"][0])
                start, end = place_answer(offsets, begin, behind)
            window_of[example] = window_of.get(example, -1) + 1
            values = (f"{examples['id'][example]}:{window_of[example]}", indices[example],
                      *(values[row] for values in tokens.values()), len(offsets), start, end, offsets)
            for name, value in zip(made, values, strict=True):
                made[name].append(value)
        return made

    def _cut_questions(self, questions: list[str]) -> list[str]:
        """Truncate questions that leave their context no more room than the stride, which would crash the tokenizer."""
        most = self.max_length - self.special_tokens - self.stride - 1
        encoded = self.tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True,
                                 return_attention_mask=False)
        cut = []
        for question, offsets in zip(questions, encoded["offset_mapping"], strict=True):
            if len(offsets) > most:
                # A character of several tokens, such as a Korean syllable, is kept or dropped as a whole.
                kept = max(n for n in range(most + 1) if n == 0 or offsets[n - 1][1] <= offsets[n][0])
                question = question[:offsets[kept][0]]
            cut.append(question)
        return cut

    def _without_dropped_ends(self, answer_start: int, answer: str) -> tuple[int, int]:
        """The begin and end of an answer in its context, without characters at its ends that belong to no token.

        The tokenizer drops spaces, zero-width marks and isolated accents.

        Returns:
            The answer's first character, and the one after its last.
        """
        normalizer = self.tokenizer.backend_tokenizer.normalizer
        held = [n for n, character in enumerate(answer)
                if (normalizer.normalize_str(character) if normalizer else character).strip()]
        return (answer_start + held[0], answer_start + held[-1] + 1) if held else (answer_start, answer_start)

    def labels(self, rows: pa.Table, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """First and last token of each answer (batch,), and the mask over real tokens (batch, length)."""
        return {**{name: torch.tensor(rows[name].to_numpy()) for name in ("start", "end")},
                "attention_mask": inputs["attention_mask"]}

    # ------------------------------------------------------------------ model, loss, score

    @property
    def model_class(self) -> type:
        from transformers import BertForQuestionAnswering

        return BertForQuestionAnswering

    def logits_shape(self, samples: int, length: int) -> tuple[int, ...]:
        """(batch, length, 2): scores of each token as an answer's start and as its end."""
        return samples, length, 2

    def logits(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Start and end logits of a whole model. (batch, length, 2)"""
        output = model(**inputs)
        return torch.stack([output.start_logits, output.end_logits], dim=-1)

    def loss(self, logits: torch.Tensor, labels: dict[str, torch.Tensor]) -> torch.Tensor:
        """Cross-entropy of start and end, in fp32, over real tokens only. (batch, length, 2) -> (batch,)

        In `BertForQuestionAnswering` the softmax includes padding, so that a sample's loss depends on the rest of its
        batch. Here it does not.
        """
        logits = logits.float().masked_fill(labels["attention_mask"][:, :, None] == 0, -1e9)
        return (F.cross_entropy(logits[..., 0], labels["start"], reduction="none")
                + F.cross_entropy(logits[..., 1], labels["end"], reduction="none")) / 2

    def score(self, outputs: dict[int, np.ndarray]) -> tuple[dict[str, float], dict[str, str]]:
        """Exact match and F1 in percent, and the answers by the questions' ids.

        Args:
            outputs: row of the validation samples -> logits. (length, 2)
        """
        examples = self.examples["validation"]
        answers = predict_answers(examples, self.features["validation"], outputs, not self.arguments.answerable_only)
        return score_answers(examples, answers), answers


def place_answer(offsets: np.ndarray, begin: int, end: int) -> tuple[int, int]:
    """First and last token of an answer in a window, or (0, 0), which is [CLS], if the window does not hold all of it.

    Args:
        offsets: characters of each token in the context; -1 for tokens outside it. (length, 2)
        begin, end: the answer's first character and the one after its last.
    """
    tokens = np.flatnonzero(offsets[:, 0] >= 0)
    if begin == end or not len(tokens) or offsets[tokens[0], 0] > begin or offsets[tokens[-1], 1] < end:
        return 0, 0
    first = np.searchsorted(offsets[tokens, 1], begin, side="right")  # the first that ends after `begin`
    last = np.searchsorted(offsets[tokens, 0], end, side="left") - 1  # the last that starts before `end`
    return int(tokens[first]), int(tokens[last])
