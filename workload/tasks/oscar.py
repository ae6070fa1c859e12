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
HUB_BYTES = 100_000_000  # of text to download
EVALUATED = 20  # one document in this many is held out for evaluation
TEXT = ("content", "text")  # keys of the text in a line of JSON: OSCAR's, and the most common one
IS_JSON = {".jsonl": True, ".ndjson": True, ".json": True, ".txt": False}  # the last of these suffixes in a name counts


def read_documents(path: str, digest: str = "") -> Iterator[dict]:
    """The documents of a text file, one at a time; `.gz` and `.zst` are decompressed.

    `.jsonl`, `.ndjson` and `.json` hold one object per line, with the text as "content" (OSCAR 23.01) or "text"; blank
    lines are skipped. In any other file blank lines separate the documents.

    Yields:
        text (str).

    Args:
        path: of a local file, or a URL that `fsspec` supports.
        digest: of the file; part of the cache key of `datasets`.

    Raises:
        InputError: not text, a line that is not such an object, or JSON in a file with another suffix.
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
    """The text of a document from line `number` of a JSON file."""
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
    """The documents of one split among the first `HUB_BYTES` of OSCAR's text, while it is being downloaded."""
    documents = read_documents(path)
    first = list(itertools.islice(documents, 1))  # before the bar appears: the Hub may refuse access
    with tqdm(total=HUB_BYTES, desc=f"OSCAR for {split}", unit="B", unit_scale=True, leave=False) as bar:
        for number, document in enumerate(itertools.chain(first, documents)):
            if (number % EVALUATED == EVALUATED - 1) == (split == "validation"):
                yield document
            bar.update(len(document["text"].encode()))
            if bar.n >= HUB_BYTES:
                return


class Oscar(Task):
    """A sample is a block of exactly `max_seq_length` tokens from documents joined by end-of-text tokens."""

    name = "oscar"
    default_model = "gpt2"
    default_from_scratch = True
    default_length = 1024
    tiny = DATA / "tiny_gpt2"
    sample = {"train": DATA / "oscar" / "train.jsonl", "validation": DATA / "oscar" / "eval.jsonl"}
    columns = datasets.Features({"text": datasets.Value("string")})
    metrics = ("perplexity",)
    label_names = ("input_ids",)
    example_word = "document"
    read = staticmethod(read_documents)

    def _check_config(self) -> None:
        if self.config.model_type != "gpt2":
            raise InputError(f"--model {self.model_name}: its config.json says {self.config.model_type!r}; this task "
                             "takes a 'gpt2' model")
        self.config.use_cache = False  # the cache of keys and values serves only to generate text

    def _choose_model(self) -> None:
        super()._choose_model()
        if self.tokenizer.eos_token_id is None:
            raise InputError(f"--tokenizer {self.tokenizer_name}: has no end-of-text token to put between documents; "
                             "use a 'gpt2' tokenizer")
        self.outputs_per_token = self.config.vocab_size  # a score for every token of the vocabulary

    @property
    def input_names(self) -> tuple[str, ...]:
        """Without a mask: every sample is a full block of tokens."""
        return ("input_ids",)

    def _from_hub(self, split: str) -> Dataset:
        go_offline_without_network()
        try:
            return Dataset.from_generator(read_from_hub, features=self.columns,
                                          gen_kwargs={"path": HUB_FILE, "split": split})
        except Exception as error:  # noqa: BLE001  the Hub's clients raise dozens of unrelated kinds
            causes = list(itertools.islice(_causes(error), 10))
            reason = str(causes[-1]).strip().split("\n")[0] or type(causes[-1]).__name__
            raise InputError(
                f"OSCAR 23.01 cannot be downloaded from the Hugging Face Hub. It is gated: accept its licence on "
                f"{HUB_PAGE}, then `hf auth login` or set HF_TOKEN. Or take any text: --train_file and --eval_file "
                f"(.txt, .jsonl, .jsonl.zst), or --sample ({reason})") from error

    def _tokenising_processes(self, examples: int) -> None:
        """Only this process: with several, the blocks would depend on their number."""
        return

    def _tokenise(self, examples: dict[str, list], indices: list[int]) -> dict[str, list]:
        """Cut some documents into blocks. The tokens after the last full block are dropped."""
        end = self.tokenizer.eos_token_id
        encoded = self.tokenizer(examples["text"], return_attention_mask=False, add_special_tokens=False, verbose=False)
        tokens = np.concatenate([np.array([*document, end]) for document in encoded["input_ids"]]).astype(np.int64)
        blocks = tokens[: len(tokens) // self.max_length * self.max_length].reshape(-1, self.max_length)
        return {"feature_id": [f"{indices[0]}:{number}" for number in range(len(blocks))], "input_ids": list(blocks),
                "length": [self.max_length] * len(blocks)}

    @property
    def model_class(self) -> type:
        from transformers import GPT2LMHeadModel

        return GPT2LMHeadModel

    def logits_shape(self, samples: int, length: int) -> tuple[int, ...]:
        """(batch, length, vocabulary)"""
        return samples, length, self.config.vocab_size

    def labels(self, rows: pa.Table, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tokens themselves. (batch, length)"""
        return {"input_ids": inputs["input_ids"]}

    def loss(self, logits: torch.Tensor, labels: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean cross-entropy in fp32 of all tokens but the first, each given those before it.

        (batch, length, vocabulary) -> (batch,)
        """
        samples, length, _ = logits.shape
        following = F.pad(labels["input_ids"][:, 1:], (0, 1), value=-100)  # cross_entropy skips the last
        losses = F.cross_entropy(logits.float().flatten(0, 1), following.flatten(), reduction="none")
        return losses.view(samples, length).sum(1) / (length - 1)

    def losses_and_outputs(self, logits: torch.Tensor,
                           labels: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The losses twice: perplexity needs nothing else. (batch,), (batch,)"""
        losses = self.loss(logits, labels)
        return losses, losses

    def score(self, outputs: dict[int, np.ndarray]) -> tuple[dict[str, float], None]:
        """Perplexity: e to the power of the mean cross-entropy per token. All samples have the same length."""
        return {"perplexity": math.exp(np.mean(list(outputs.values()), dtype=np.float64))}, None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its cause, the cause's cause, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
