"""Helper of on_gpu.sh: a model of BERT-base's shape, and text whose lengths follow SQuAD's, where there is no network.

The model has random weights and the embedded vocabulary. A context is paragraphs of the embedded sample in a row, as
many as a length asks for that is drawn from a log-normal distribution. Its mean and deviation are those of a part of
SQuAD v2 (390 contexts, with BERT's vocabulary: 176 tokens on average, 5 % above 348), so that a window of 384 tokens
holds about 193. It takes as long to train as SQuAD v2 does; what is learned means nothing.
"""

import itertools
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

DATA = Path(__file__).resolve().parents[1] / "data"
LOG_MEAN, LOG_DEVIATION = 5.05, 0.47  # of a context's tokens
LONGER_QUESTIONS = 8  # tokens by which SQuAD's questions are longer than the sample's; contexts make up for it
LENGTH = 33  # tokens of a paragraph of the sample, on average
CONTEXTS = {"train": 2000, "eval": 100}
# The other values are the defaults of transformers, which are BERT-base's: 12 layers of width 768.
CONFIG = {"architectures": ["BertForQuestionAnswering"], "model_type": "bert"}
VOCABULARY = 30522  # tokens; those that the embedded vocabulary lacks occur in no text, but have their embeddings


def write_inputs(folder: Path) -> list[str]:
    """Write model and data, the same each time; returns the flags that name them."""
    model = folder / "bert-base-shape"
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    embedded = DATA / "tiny_bert"
    shutil.copy(embedded / "tokenizer_config.json", model)
    content = json.loads((embedded / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"[unused{number}]": number for number in range(len(vocabulary), VOCABULARY)}
    (model / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (model / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary), encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(embedded / "tokenizer.json"))
    for split, count in CONTEXTS.items():
        sample = json.loads((DATA / "squad_v2" / f"{split}.json").read_text(encoding="utf-8"))
        paragraphs = [paragraph for article in sample["data"] for paragraph in article["paragraphs"]]
        texts = [paragraph["context"] for paragraph in paragraphs]
        lengths = [len(encoded.ids) for encoded in tokenizer.encode_batch(texts, add_special_tokens=False)]
        contexts = list(_contexts(list(zip(paragraphs, lengths, strict=True)), count, random.Random(0)))
        content = {"version": "v2.0", "data": [{"title": "lengths of SQuAD", "paragraphs": contexts}]}
        (folder / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return ["--model", str(model), "--from_scratch", "true", "--train_file", str(folder / "train.json"),
            "--eval_file", str(folder / "eval.json")]


def _contexts(paragraphs: list[tuple[dict[str, Any], int]], count: int,
              generator: random.Random) -> Iterator[dict[str, Any]]:
    """SQuAD's paragraphs, each with the questions on one of those that it is made of."""
    rounds = (generator.sample(paragraphs, len(paragraphs)) for _ in itertools.count())
    one_by_one = itertools.chain.from_iterable(rounds)
    for number in range(count):
        wanted = generator.lognormvariate(LOG_MEAN, LOG_DEVIATION) + LONGER_QUESTIONS
        part, tokens = next(one_by_one)
        parts = [part["context"]]
        while wanted - tokens > LENGTH / 2:
            part, length = next(one_by_one)
            parts.append(part["context"])
            tokens += length
        yield {"context": " ".join(parts), "qas": _moved(part["qas"], len(" ".join(parts)) - len(parts[-1]), number)}


def _moved(questions: list[dict[str, Any]], by: int, number: int) -> list[dict[str, Any]]:
    """The questions of a paragraph that begins `by` characters into context `number`."""
    return [question | {
        "id": f"{number}-{question['id']}",
        "answers": [answer | {"answer_start": answer["answer_start"] + by} for answer in question["answers"]]}
        for question in questions]
