"""OSCAR: predict the next token of text from the web."""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from datasets import Dataset
from tqdm import tqdm

from workload.errors import InputError
from workload.hub import go_offline_without_network
from workload.models.loading import DATA
from workload.tasks.files import HALF_CHARACTER, open_text, parse_json
from workload.tasks.task import Task

HUB_FILE = "hf://datasets/oscar-corpus/OSCAR-2301/en_meta/en_meta_part_1.jsonl.zst"
HUB_PAGE = "https://huggingface.co/datasets/oscar-corpus/OSCAR-2301"
HUB_BYTES = 100_000_000  # of text that are taken from there
EVALUATED = 20  # every so manyth document is kept from training, for evaluation
TEXT = ("content", "text")  # where a line of JSON has its text: OSCAR's, and most others'
IS_JSON = {".jsonl": True, ".ndjson": True, ".json": True, ".txt": False}  # the last of these in a name counts


def read_documents(path: str, digest: str = "") -> Iterator[dict]:
    """The documents of a text file, one at a time; `.gz` and `.zst` are unpacked on the way.

    `.jsonl`, `.ndjson` and `.json` have an object a line with the text as "content" (OSCAR 23.01) or "text"; blank
    lines are skipped. In any other file blank lines part the documents.

    Yields:
        text (str).

    Args:
        path: of a local file, or an address that `fsspec` knows.
        digest: of the file; part of the key under which `datasets` caches what this yields.

    Raises:
        InputError: not text, a line that is no such object, or such lines in any other file.
    """
    suffixes = (suffix.lower() for suffix in reversed(Path(path).suffixes))
    is_json = next((IS_JSON[suffix] for suffix in suffixes if suffix in IS_JSON), False)
    with open_text(path) as file:
        filled = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        if is_json:
            yield from ({"text": _text_of(line.rstrip(), path, number)} for number, line in filled)
            return
        number, first = next(filled, (1, ""))
        if _is_document(first):
            raise InputError(f"{path}: line {number}: is JSON; use a name that ends in .jsonl for such a file")
        lines = itertools.groupby(itertools.chain([first], file), key=lambda line: not line.strip())
        yield from ({"text": "".join(part).strip()} for is_blank, part in lines if not is_blank)


def _text_of(line: str, path: str, number: int) -> str:
    """The text of a document from a line of JSON, the `number`-th of its file."""
    document = parse_json(line, path, number)
    members = map(document.get, TEXT) if isinstance(document, dict) else ()
    texts = [each for each in members if isinstance(each, str)]
    if not texts:
        raise InputError(f"{path}: line {number}: no object with a text as {' or '.join(map(repr, TEXT))}")
    text, *others = [each for each in texts if each.strip()] or texts
    if any(other.strip() != text.strip() for other in others):
        raise InputError(f"{path}: line {number}: its {' and '.join(map(repr, TEXT))} differ; remove one of them")
    if HALF_CHARACTER.search(text):
        raise InputError(f"{path}: line {number}: holds half of a surrogate pair, which is not text")
    return text


def _is_document(line: str) -> bool:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and not document.keys().isdisjoint(TEXT)


def read_from_hub(path: str, split: str) -> Iterator[dict]:
    """The first `HUB_BYTES` of OSCAR's text, read as it arrives, and of those the documents of one split."""
    documents = read_documents(path)
    first = list(itertools.islice(documents, 1))  # before there is a bar: the Hub may refuse it
    with tqdm(total=HUB_BYTES, desc=f"OSCAR for {split}", unit="B", unit_scale=True, leave=False) as bar:
        for number, document in enumerate(itertools.chain(first, documents)):
            if (number % EVALUATED == EVALUATED - 1) == (split == "validation"):
                yield document
            bar.update(len(document["text"].encode()))
            if bar.n >= HUB_BYTES:
                return


class Oscar(Task):
    """A sample is a block of exactly `max_seq_length` tokens of documents that end-of-text tokens join."""

    name = "oscar"
    default_model = "gpt2"
    default_from_scratch = True
    default_length = 1024
    tiny = DATA / "tiny_gpt2"
    sample = {"train": DATA / "oscar" / "train.jsonl", "validation": DATA / "oscar" / "eval.jsonl"}
    columns = datasets.Features({"text": datasets.Value("string")})
    metrics = ("perplexity",)
    input_names = label_names = ("input_ids",)
    example_word = "document"
    read = staticmethod(read_documents)

    def _check_config(self) -> None:
        if self.config.model_type != "gpt2":
            raise InputError(f"--model {self.model_name}: its config.json says {self.config.model_type!r}; this task "
                             "takes a 'gpt2' model")
        self.config.use_cache = False  # of keys and values, for writing texts

    def _choose_model(self) -> None:
        super()._choose_model()
        if self.tokenizer.eos_token_id is None:
            raise InputError(f"--tokenizer {self.tokenizer_name}: has no end-of-text token to put between documents; "
                             "use a 'gpt2' tokenizer")

    @property
    def outputs_per_token(self) -> int:
        """A score for each token that may come next."""
        return self.config.vocab_size

    def _from_hub(self, split: str) -> Dataset:
        go_offline_without_network()
        try:
            return Dataset.from_generator(read_from_hub, features=self.columns,
                                          gen_kwargs={"path": HUB_FILE, "split": split})
        except Exception as error:  # noqa: BLE001  the Hub's clients raise dozens of unrelated kinds
            causes = list(itertools.islice(_causes(error), 10))
            reason = str(causes[-1]).strip().split("\n")[0] or type(causes[-1]).__name__
            raise InputError(
                f"OSCAR 23.01 cannot be had from the Hugging Face Hub. It is gated: accept its licence on {HUB_PAGE}, "
                "then `hf auth login` or set HF_TOKEN. Or take any text: --train_file and --eval_file (.txt, .jsonl, "
                f".jsonl.zst), or --sample ({reason})") from error

    def _tokenising_processes(self, examples: int) -> None:
        """One: which documents make up a block would depend on the number."""
        return

    def _tokenise(self, examples: dict[str, list], indices: list[int]) -> dict[str, list]:
        """Blocks of some documents; what is left behind the last whole block, less than one, is dropped."""
        end = self.tokenizer.eos_token_id
        encoded = self.tokenizer(examples["text"], return_attention_mask=False, add_special_tokens=False, verbose=False)
        tokens = np.concatenate([np.append(document, end) for document in encoded["input_ids"]]).astype(np.int64)
        blocks = tokens[: len(tokens) // self.max_length * self.max_length].reshape(-1, self.max_length)
        return {"feature_id": [f"{indices[0]}:{number}" for number in range(len(blocks))], "input_ids": list(blocks),
                "length": [self.max_length] * len(blocks)}

    @property
    def model_class(self) -> type:
        from transformers import GPT2LMHeadModel

        return GPT2LMHeadModel

    def logits_shape(self, samples: int, length: int) -> tuple[int, ...]:
        """Scores of every token of the vocabulary as the next one."""
        return samples, length, self.config.vocab_size

    def labels(self, rows: pa.Table, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tokens themselves. (batch, length)"""
        return {"input_ids": inputs["input_ids"]}

    def loss(self, logits: torch.Tensor, labels: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean cross-entropy of each token but the first, given those before it, in fp32.

        (batch, length, vocabulary) -> (batch,)
        """
        samples, length, _ = logits.shape
        following = F.pad(labels["input_ids"][:, 1:], (0, 1), value=-100)  # cross_entropy skips the last
        losses = F.cross_entropy(logits.float().flatten(0, 1), following.flatten(), reduction="none")
        return losses.view(samples, length).sum(1) / (length - 1)

    def judge(self, logits: torch.Tensor, labels: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The losses say it all. (batch,), (batch,)"""
        losses = self.loss(logits, labels)
        return losses, losses

    def score(self, judged: dict[int, np.ndarray]) -> tuple[dict[str, float], None]:
        """Perplexity: e to the mean cross-entropy of a token. All samples are of one length."""
        return {"perplexity": math.exp(np.mean(list(judged.values()), dtype=np.float64))}, None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
