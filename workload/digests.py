"""Digests of the model, the tokenizer and the data of a job. A path, or a name on the Hub, may hold others tomorrow."""

import contextlib
import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
from tqdm import tqdm

from workload.cores import usable_cores
from workload.errors import InputError
from workload.models.weights import weight_files

if TYPE_CHECKING:
    from datasets import Dataset  # takes a second
    from transformers import PreTrainedTokenizerFast

    from workload.tasks.task import Task  # which imports this module

CONFIG = "config.json"
CHUNK = 2**24  # bytes


def content_of(task: "Task") -> dict[str, Any]:
    """Digests of a task's model, tokenizer and data, to be called on one rank only: it reads all weights once.

    Returns:
        model: SHA-256 of config and weights; of random weights the config only.
        hub_commit: of a model from the Hub, else None.
        tokenizer: SHA-256 of how it splits texts into which tokens.
        data: split -> SHA-256: of the file, or of the examples that came from the Hub.
    """
    folder, commit = _model_folder(task.model_source)
    files = [folder / CONFIG] if folder else []
    if folder and not task.from_scratch:
        with contextlib.suppress(InputError) if commit else contextlib.nullcontext():  # the commit identifies them
            files += weight_files(folder)
    digests = _file_digests(files)
    model = [[file.name, digest] for file, digest in zip(files, digests, strict=True)] or task.model_name
    return {"model": json_digest(model), "hub_commit": commit, "tokenizer": tokenizer_digest(task.tokenizer),
            "data": {split: task.data_digest[split] if path else examples_digest(task.examples[split])
                     for split, path in task.files.items()}}


def _model_folder(source: str) -> tuple[Path | None, str | None]:
    """The folder with a loaded model's files, and their commit if they are from the Hub; None in place of either."""
    if os.path.isdir(source):
        return Path(source), None
    cached = huggingface_hub.try_to_load_from_cache(source, CONFIG)
    return (Path(cached).parent, Path(cached).parent.name) if isinstance(cached, str) else (None, None)


def _file_digests(files: list[Path]) -> list[str]:
    """SHA-256 of each file, several at a time; under a bar where it takes long."""
    total = sum(file.stat().st_size for file in files)
    with tqdm(total=total, desc="hashing the model", unit="B", unit_scale=True, leave=False, delay=2,
              mininterval=0.5 if sys.stderr.isatty() else 20.0) as bar:
        def digest_of(path: Path) -> str:
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                while chunk := file.read(CHUNK):
                    digest.update(chunk)
                    bar.update(len(chunk))
            return digest.hexdigest()

        with ThreadPoolExecutor(usable_cores()) as pool:
            return list(pool.map(digest_of, files))


def tokenizer_digest(tokenizer: "PreTrainedTokenizerFast") -> str:
    """SHA-256 of everything that determines how texts become tokens, in whichever files it is stored."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    for name in ("truncation", "padding"):  # left over from its last call
        rules.pop(name, None)
    return json_digest([rules, tokenizer.special_tokens_map, tokenizer.model_input_names, tokenizer.truncation_side])


def examples_digest(examples: "Dataset") -> str:
    """SHA-256 of examples in their order."""
    digest = hashlib.sha256()
    for batch in examples.iter(1000):
        digest.update(json.dumps(batch, sort_keys=True).encode())
    return digest.hexdigest()


def json_digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
