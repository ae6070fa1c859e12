"""Configurations, tokenizers and weights from the Hugging Face Hub, a local folder, or an embedded model.

No code that comes with a model is ever run.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from workload.errors import InputError
from workload.hub import go_offline_without_network
from workload.models.encoder_config import ENCODER_CLASSIFIER, EncoderClassifierConfig
from workload.models.weights import load_weights, refuse_pointers, refuse_unreadable_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel  # takes seconds

    from workload.tasks.task import Task  # which imports this module

TINY = "tiny"
EMBEDDED = (TINY, ENCODER_CLASSIFIER)  # values of --model that are not names on the Hub; no trained weights
DATA = Path(__file__).parents[2] / "data"
# Exceptions of transformers for a folder with inconsistent or broken files.
NOT_LOADED = (OSError, ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError, ImportError,
              StrictDataclassError)
UNNAMED = re.compile(r"(?:LABEL_)?(\d+)", re.IGNORECASE)  # the default names of outputs in transformers
MOST_SHOWN = 200  # characters of a library's error message
CASED = 0.01  # a vocabulary is cased if more than this share of its words has capitals; special tokens are fewer


def folder_or_name(model: str, flag: str = "model") -> str:
    """Check the argument of `from_pretrained`, and use the cache alone if the Hub cannot be reached.

    Raises:
        InputError: `model` is written like a path, but there is no such folder.
    """
    if not os.path.isdir(model) and (model.startswith((".", "/", "~")) or model.count("/") > 1):
        raise InputError(f"--{flag} {model}: no such folder")
    if not os.path.isdir(model):
        go_offline_without_network()
    return model


def load_config(model: str, dropout: float | None) -> PretrainedConfig:
    """The configuration of `model`, with its dropouts replaced by `dropout` unless that is None.

    Raises:
        InputError: there is no such model, no network, or the model comes with its own code.
    """
    if model == ENCODER_CLASSIFIER:
        config = EncoderClassifierConfig()
    else:
        try:
            refuse_pointers("model", folder_or_name(model), "config.json")
            content = PretrainedConfig.get_config_dict(model)[0]
            _refuse_own_code("model", model, content)
            # By default transformers would ask on the terminal, and run the code if the answer is yes.
            config = AutoConfig.from_pretrained(model, trust_remote_code=False)
            _name_outputs(config, content)
        except NOT_LOADED as error:
            raise InputError(_not_loaded("model", model, "config.json", error)) from error
    config._attn_implementation = None  # SDPA if the model supports it, whatever it was saved with
    if dropout is not None:
        for name, value in config.to_dict().items():
            is_dropout = "dropout" in name or name.endswith("_pdrop")  # in BERT; in GPT-2
            if is_dropout and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(config, name, dropout)
    return config


def output_names(config: PretrainedConfig) -> dict[int, str]:
    """The names of a classifier's outputs by number. `transformers` invents them ("LABEL_0") where none are given."""
    assert config.id2label is not None
    return {int(number): name for number, name in config.id2label.items()}


def _name_outputs(config: PretrainedConfig, content: dict) -> None:
    """Name a model's outputs by `label2id` if `id2label` does not name them.

    Raises:
        ValueError: the two contradict each other.
    """
    names = {str(name): int(number) for name, number in (content.get("label2id") or {}).items()}
    is_named = not all(map(UNNAMED.fullmatch, names))
    if is_named and all(UNNAMED.fullmatch(str(name)) for name in (content.get("id2label") or {}).values()):
        config.id2label = {number: name for name, number in names.items()}
    if is_named and any(names.get(name, number) != number for number, name in output_names(config).items()):
        raise ValueError("its id2label and label2id contradict each other")


def load_tokenizer(name: str, flag: str) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a name or folder given by `--flag`. Slow tokenizers have no character offsets.

    Raises:
        InputError: there is none, or its files cannot be used.
    """
    try:
        refuse_pointers(flag, folder_or_name(name, flag), "token*.json", "*vocab*", "merges.txt", "*.model")
        settings = get_tokenizer_config(name)
        _refuse_own_code(flag, name, settings)
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False)
        if "do_lower_case" not in settings and _lowers_a_cased_vocabulary(tokenizer, name):
            tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False, do_lower_case=False)
    except NOT_LOADED as error:
        raise InputError(_not_loaded(flag, name, "a tokenizer", error)) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(f"--{flag} {name}: has no fast tokenizer (tokenizer.json or vocab.txt)")
    return tokenizer


def _lowers_a_cased_vocabulary(tokenizer: PreTrainedTokenizerBase, name: str) -> bool:
    """Whether a folder has nothing but a cased vocab.txt, while transformers would lower-case all text by default.

    A tokenizer.json says itself whether it lower-cases.
    """
    if os.path.exists(os.path.join(name, "tokenizer.json")) or not os.path.isdir(name):
        return False
    normalizer = tokenizer.backend_tokenizer.normalizer if isinstance(tokenizer, PreTrainedTokenizerFast) else None
    if normalizer is None or normalizer.normalize_str("A") != "a":
        return False
    words = [word for word in tokenizer.get_vocab() if not word.startswith(("[", "<"))]  # not [CLS], not <s>
    return sum(word != word.lower() for word in words) > CASED * len(words)


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows that an embedding needs. `len(tokenizer)` counts tokens, which are fewer if some numbers are unused."""
    return max(tokenizer.get_vocab().values()) + 1


def check_model_files(model: str) -> None:
    """Refuse a local folder whose weights are missing or unreadable. Nothing is loaded.

    Raises:
        InputError: names the file and the problem.
    """
    if os.path.isdir(model):
        refuse_unreadable_weights(model)


def load_model(kind: type, model: str, config: PretrainedConfig, seed: int,
               from_scratch: bool) -> "tuple[PreTrainedModel, list[str]]":
    """A model with the weights of `model`, or with random ones.

    Random weights (of the head, or all) are drawn from `seed`: every rank passes the same one, so all hold the same
    weights. Attention is PyTorch's SDPA, or transformers' own ("eager") if the model supports nothing else.

    Args:
        kind: a `PreTrainedModel` or an `AutoModelFor...`.

    Returns:
        The model; the names of the parameters that were drawn.

    Raises:
        InputError: weights that cannot be read, or that belong to another model.
    """
    torch.manual_seed(seed)
    try:
        if not from_scratch:
            return load_weights(kind, folder_or_name(model), config)
        made = (getattr(kind, "from_config", None) or kind._from_config)(config)
    except NOT_LOADED as error:
        what = "config.json" if from_scratch else "its weights"
        raise InputError(_not_loaded("model", model, what, error)) from error
    return made, [name for name, _ in made.named_parameters()]


def save_whole(task: "Task", model: "PreTrainedModel", folder: Path) -> None:
    """Write a model and its tokenizer for `from_pretrained`."""
    model.save_pretrained(folder)
    task.tokenizer.save_pretrained(folder)


def write_model(task: "Task", state: Mapping[str, Any], folder: Path) -> None:
    """Write a whole model's weights, gathered from several ranks, for `from_pretrained`."""
    model = task.build_model()
    model.load_state_dict(state)
    save_whole(task, model, folder)


def _refuse_own_code(flag: str, name: str, content: dict) -> None:
    """Refuse a model that names its own Python files, even if transformers would silently use its own class instead."""
    if content.get("auto_map"):
        raise InputError(f"--{flag} {name}: names code of its own (auto_map in its .json), which is never run here; "
                         "use a model and a tokenizer that transformers has classes for")


def _not_loaded(flag: str, name: str, what: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    reason = reason if len(reason) <= MOST_SHOWN else reason[:MOST_SHOWN] + "..."
    if isinstance(error, KeyError):  # its text is nothing but the key
        reason = f"unknown {reason}"
    if os.path.isdir(folder_or_name(name, flag)):
        return f"--{flag} {name}: cannot read {what} in this folder ({reason})"
    first_sentence = reason.split(". ")[0]
    return (f"--{flag} {name}: no such folder, and {what} cannot be downloaded from the Hugging Face Hub (no network, "
            f"or no model of this name); give a local folder, or --model {TINY} ({first_sentence})")
