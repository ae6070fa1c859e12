"""SQuAD v2: find the answer to a question in a text, or see that the text does not hold it."""

import os
from pathlib import Path

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from datasets.fingerprint import Hasher

from workload.arguments import Arguments
from workload.errors import InputError
from workload.hub import go_offline_without_network
from workload.models import SPECIAL_TOKENS, load_config, load_model, load_tokenizer
from workload.tasks.squad_files import file_digest, read_squad
from workload.tasks.squad_score import predict_answers, score_answers

HUB_DATASET = "rajpurkar/squad_v2"
SAMPLE = Path(__file__).parents[2] / "data" / "squad_v2"
COLUMNS = datasets.Features({
    "id": datasets.Value("string"), "question": datasets.Value("string"), "context": datasets.Value("string"),
    "answers": {"text": datasets.List(datasets.Value("string")),
                "answer_start": datasets.List(datasets.Value("int32"))},
})


class SquadV2:
    """The job: its model, its windows ("features"), its loss and its scores.

    A sample is one window of at most `max_seq_length` tokens: [CLS] question [SEP] part of the context [SEP].
    Windows of one context overlap by `doc_stride` tokens. Where a window does not hold the answer, it points at [CLS].

    Raises (from the constructor):
        InputError: a file, a model or a flag that cannot be used; nothing large has been loaded by then.
    """

    name = "squad_v2"
    default_model = "bert-base-uncased"  # on the Hub
    metrics = ("exact_match", "f1")
    outputs_per_token = 2  # start and end
    label_names = ("start", "end", "attention_mask")
    scoring_columns = ["example_index", "offsets"]  # of the features; training has no use for them

    def __init__(self, arguments: Arguments) -> None:
        self.arguments = arguments
        self.model_name = arguments.model or self.default_model
        self.files = {"train": arguments.train_file, "validation": arguments.eval_file}
        if arguments.sample:
            self.files = {"train": str(SAMPLE / "train.json"), "validation": str(SAMPLE / "eval.json")}
        for path in filter(None, self.files.values()):
            if not os.path.isfile(path):
                raise InputError(f"{path}: no such file")
        self.config = load_config(self.model_name, "bert", arguments.dropout)
        self._choose_lengths()
        self.tokenizer = load_tokenizer(self.model_name)
        self.data_digest = {}
        for split, path in self.files.items():
            if path:
                self.data_digest[split] = file_digest(path)
                if not sum(1 for _ in read_squad(path, arguments.answerable_only)):  # all, so that all are checked
                    raise InputError(f"{path}: holds no question" + " with an answer" * arguments.answerable_only)
            else:
                self._from_hub(split)

    def _choose_lengths(self) -> None:
        given, most = self.arguments, self.config.max_position_embeddings
        self.max_length = given.max_seq_length or min(384, most)
        if self.max_length > most:
            raise InputError(f"--max_seq_length {self.max_length}: {self.model_name} takes at most {most} tokens")
        self.stride = min(128, self.max_length // 3) if given.doc_stride is None else given.doc_stride
        # Beside the stride a window needs room for one token of the question and one new token of the context.
        most = self.max_length - SPECIAL_TOKENS - 2
        if self.stride > most:
            raise InputError(f"--doc_stride {self.stride}: leaves no room in windows of {self.max_length} tokens; "
                             f"at most {most} fits")

    def _from_hub(self, split: str) -> Dataset:
        go_offline_without_network()
        try:
            return datasets.load_dataset(HUB_DATASET, split=split)
        except Exception as error:  # noqa: BLE001  the Hub's clients raise dozens of unrelated kinds
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise InputError(f"{HUB_DATASET} cannot be had from the Hugging Face Hub (no network?); give local files "
                             f"with --train_file and --eval_file, or --sample ({reason})") from error

    # ------------------------------------------------------------------ data

    def load(self) -> None:
        """Tokenise both parts, or take them from the cache of `datasets`."""
        arguments = self.arguments
        self.examples = {}
        self.features = {}
        # Before the first use: calling the tokenizer changes what it is written as.
        tokenizer = self.tokenizer.backend_tokenizer.to_str()
        for split, limit in (("train", arguments.max_train_examples), ("validation", arguments.max_eval_examples)):
            examples = self._examples(split)
            if limit:
                examples = examples.select(range(min(limit, len(examples))))
            self.examples[split] = examples
            self.features[split] = examples.map(
                self._windows, with_indices=True, batched=True, remove_columns=examples.column_names,
                desc=f"tokenising {split}",
                # What the result depends on; `datasets` would hash the tokenizer's changing state as well.
                new_fingerprint=Hasher.hash([examples._fingerprint, tokenizer, self.max_length, self.stride, "2"]))

    def _examples(self, split: str) -> Dataset:
        answerable_only = self.arguments.answerable_only
        if self.files[split]:
            return Dataset.from_generator(read_squad, features=COLUMNS, gen_kwargs={
                "path": os.path.abspath(self.files[split]), "answerable_only": answerable_only,
                "digest": self.data_digest[split]})
        examples = self._from_hub(split).remove_columns("title")
        if answerable_only:
            examples = examples.filter(lambda answers: bool(answers["text"]), input_columns="answers")
        return examples

    def _windows(self, examples: dict[str, list], indices: list[int]) -> dict[str, list]:
        """Cut questions and contexts into windows, and place each answer in them."""
        encoded = self.tokenizer(
            self._cut_questions(examples["question"]), examples["context"], truncation="only_second",
            max_length=self.max_length, stride=self.stride, return_overflowing_tokens=True,
            return_offsets_mapping=True, return_attention_mask=False)
        made: dict[str, list] = {name: [] for name in ("feature_id", "example_index", "input_ids", "token_type_ids",
                                                       "length", "start", "end", "offsets")}
        window_of: dict[int, int] = {}
        for row, example in enumerate(encoded["overflow_to_sample_mapping"]):
            in_context = np.array([part == 1 for part in encoded.sequence_ids(row)])
            offsets = np.where(in_context[:, None], np.array(encoded["offset_mapping"][row]), -1)
            answers = examples["answers"][example]
            start, end = 0, 0  # [CLS]
            if answers["text"]:
                begin, behind = self._tokenised_part(answers["answer_start"][0], answers["text"][0])
                start, end = place_answer(offsets, begin, behind)
            window_of[example] = window_of.get(example, -1) + 1
            values = (f"{examples['id'][example]}:{window_of[example]}", indices[example], encoded["input_ids"][row],
                      encoded["token_type_ids"][row], len(offsets), start, end, offsets.tolist())
            for name, value in zip(made, values, strict=True):
                made[name].append(value)
        return made

    def _cut_questions(self, questions: list[str]) -> list[str]:
        """Cut a question that leaves its context no more room than the stride; the tokenizer would die of it."""
        most = self.max_length - SPECIAL_TOKENS - self.stride - 1
        encoded = self.tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True,
                                 return_attention_mask=False)
        cut = []
        for question, offsets in zip(questions, encoded["offset_mapping"], strict=True):
            if len(offsets) > most:
                # Not within a character of several tokens (a Korean syllable): half of it cannot be left out.
                kept = max(n for n in range(most + 1) if n == 0 or offsets[n - 1][1] <= offsets[n][0])
                question = question[:offsets[kept][0]]
            cut.append(question)
        return cut

    def _tokenised_part(self, answer_start: int, answer: str) -> tuple[int, int]:
        """An answer's first character in the context and the one after its last, without what no token holds.

        At its ends there may be characters that the tokenizer drops: spaces, zero-width marks, loose accents.
        """
        normalizer = self.tokenizer.backend_tokenizer.normalizer
        held = [n for n, character in enumerate(answer)
                if (normalizer.normalize_str(character) if normalizer else character).strip()]
        return (answer_start + held[0], answer_start + held[-1] + 1) if held else (answer_start, answer_start)

    def collate(self, rows: dict[str, list], length: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Pad rows of `features` to (rows, length): what the model takes, and what the loss takes besides logits."""
        real = torch.tensor(rows["length"])
        inputs = {name: torch.full((len(real), length), padding)
                  for name, padding in (("input_ids", self.tokenizer.pad_token_id), ("token_type_ids", 0))}
        for name, padded in inputs.items():
            for row, values in zip(padded, rows[name], strict=True):
                row[: len(values)] = torch.tensor(values)
        inputs["attention_mask"] = (torch.arange(length) < real[:, None]).long()
        labels = {"start": torch.tensor(rows["start"]), "end": torch.tensor(rows["end"]),
                  "attention_mask": inputs["attention_mask"]}
        return inputs, labels

    # ------------------------------------------------------------------ model, loss, score

    def build_model(self) -> torch.nn.Module:
        """The Hugging Face model, the same on every rank."""
        from transformers import BertForQuestionAnswering  # takes seconds, which checking the flags can do without

        return load_model(BertForQuestionAnswering, self.model_name, self.config, self.arguments.seed)

    def logits(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Start and end logits of a whole model. (batch, length, 2)"""
        output = model(**inputs)
        return torch.stack([output.start_logits, output.end_logits], dim=-1)

    def loss(self, logits: torch.Tensor, labels: dict[str, torch.Tensor]) -> torch.Tensor:
        """Cross-entropy of start and end, in fp32, over real tokens only. (batch, length, 2) -> (batch,)

        `BertForQuestionAnswering` leaves padding in the softmax: there a sample's loss depends on what it is batched
        with. Here it does not.
        """
        logits = logits.float().masked_fill(labels["attention_mask"][:, :, None] == 0, -1e9)
        return (F.cross_entropy(logits[..., 0], labels["start"], reduction="none")
                + F.cross_entropy(logits[..., 1], labels["end"], reduction="none")) / 2

    def score(self, logits: dict[int, np.ndarray]) -> tuple[dict[str, float], dict[str, str]]:
        """Exact match and F1, and the answers, from the logits of every evaluation feature: row -> (length, 2)."""
        examples = self.examples["validation"]
        answers = predict_answers(examples, self.features["validation"], logits, not self.arguments.answerable_only)
        return score_answers(examples, answers), answers


def place_answer(offsets: np.ndarray, begin: int, end: int) -> tuple[int, int]:
    """First and last token of an answer in a window; (0, 0), which is [CLS], where the window does not hold all of it.

    Args:
        offsets: characters of each token in the context; -1 for tokens outside of it. (length, 2)
        begin, end: the answer's first character and the one after its last; `_tokenised_part`.
    """
    tokens = np.flatnonzero(offsets[:, 0] >= 0)
    if begin == end or not len(tokens) or offsets[tokens[0], 0] > begin or offsets[tokens[-1], 1] < end:
        return 0, 0
    first = np.searchsorted(offsets[tokens, 1], begin, side="right")  # the first to end behind `begin`
    last = np.searchsorted(offsets[tokens, 0], end, side="left") - 1  # the last to start before `end`
    return int(tokens[first]), int(tokens[last])
