"""Configurations, tokenizers and weights from the Hugging Face Hub, a local folder, or an embedded model.

Nothing that is read here can run code of its own.
"""

import os
import re
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from workload.errors import InputError
from workload.hub import go_offline_without_network
from workload.models.encoder_config import ENCODER_CLASSIFIER, EncoderClassifierConfig
from workload.models.weights import load_weights, refuse_pointers, refuse_unreadable_weights

TINY = "tiny"
EMBEDDED = (TINY, ENCODER_CLASSIFIER)  # values of --model that are no name on the Hub; they have no trained weights
DATA = Path(__file__).parents[2] / "data"
# What transformers raises upon a folder that does not hold together.
NOT_LOADED = (OSError, ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError, ImportError,
              StrictDataclassError)
UNNAMED = re.compile(r"(?:LABEL_)?(\d+)", re.IGNORECASE)  # what transformers calls an output that nobody has named
MOST_SHOWN = 200  # characters of what a library says
CASED = 0.01  # share of words with a capital from which on a vocabulary is cased; accents and names of tokens are fewer


def folder_or_name(model: str, flag: str = "model") -> str:
    """What `from_pretrained` is to open.

    Raises:
        InputError: `model` is written like a path, and there is no such folder.
    """
    if not os.path.isdir(model) and (model.startswith((".", "/", "~")) or model.count("/") > 1):
        raise InputError(f"--{flag} {model}: no such folder")
    if not os.path.isdir(model):
        go_offline_without_network()
    return model


def load_config(model: str, dropout: float | None) -> PretrainedConfig:
    """The configuration of `model`, its dropouts overridden by `dropout`.

    Raises:
        InputError: nothing there, no network, or a model that wants to bring its own code.
    """
    if model == ENCODER_CLASSIFIER:
        config = EncoderClassifierConfig()
    else:
        try:
            refuse_pointers("model", folder_or_name(model), "config.json")
            content = PretrainedConfig.get_config_dict(model)[0]
            _refuse_own_code("model", model, content)
            # False is not the default: left out, transformers asks on the terminal, and runs the code upon a "y".
            config = AutoConfig.from_pretrained(model, trust_remote_code=False)
            _name_outputs(config, content)
        except NOT_LOADED as error:
            raise InputError(_not_loaded("model", model, "config.json", error)) from error
    config._attn_implementation = None  # PyTorch's, where the model can do with it, whatever it was saved with
    if dropout is not None:
        for name, value in config.to_dict().items():
            is_dropout = "dropout" in name or name.endswith("_pdrop")  # as BERT and as GPT-2 name them
            if is_dropout and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(config, name, dropout)
    return config


def _name_outputs(config: PretrainedConfig, content: dict) -> None:
    """Take a model's names for its outputs also from `label2id`, where `id2label` has none.

    Raises:
        ValueError: the two contradict each other.
    """
    names = {str(name): int(number) for name, number in (content.get("label2id") or {}).items()}
    is_named = not all(map(UNNAMED.fullmatch, names))
    if is_named and all(UNNAMED.fullmatch(str(name)) for name in (content.get("id2label") or {}).values()):
        config.id2label = {number: name for name, number in names.items()}
    if is_named and any(names.get(name, number) != number for number, name in config.id2label.items()):
        raise ValueError("its id2label and label2id contradict each other")


def load_tokenizer(name: str, flag: str) -> PreTrainedTokenizerBase:
    """The fast tokenizer of that name or folder, which `--flag` gave; slow ones give no character offsets."""
    try:
        refuse_pointers(flag, folder_or_name(name, flag), "token*.json", "*vocab*", "merges.txt", "*.model")
        settings = get_tokenizer_config(name)
        _refuse_own_code(flag, name, settings)
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False)
        if "do_lower_case" not in settings and _lowers_a_cased_vocabulary(tokenizer, name):
            tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False, do_lower_case=False)
    except NOT_LOADED as error:
        raise InputError(_not_loaded(flag, name, "a tokenizer", error)) from error
    if not tokenizer.is_fast:
        raise InputError(f"--{flag} {name}: has no fast tokenizer (tokenizer.json or vocab.txt)")
    return tokenizer


def _lowers_a_cased_vocabulary(tokenizer: PreTrainedTokenizerBase, name: str) -> bool:
    """Whether a folder's vocab.txt has words with capitals, to which transformers' default would never come.

    A tokenizer.json says itself what it does.
    """
    if os.path.exists(os.path.join(name, "tokenizer.json")) or not os.path.isdir(name):
        return False
    normalizer = tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None
    if normalizer is None or normalizer.normalize_str("A") != "a":
        return False
    words = [word for word in tokenizer.get_vocab() if not word.startswith(("[", "<"))]  # not [CLS], not <s>
    return sum(word != word.lower() for word in words) > CASED * len(words)


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows that an embedding needs: `len` counts words, which are fewer where numbers have been left out."""
    return max(tokenizer.get_vocab().values()) + 1


def check_model_files(model: str) -> None:
    """Refuse a local folder whose weights are not there or cannot be read; nothing is loaded."""
    if os.path.isdir(model):
        refuse_unreadable_weights(model)


def load_model(kind: type, model: str, config: PretrainedConfig, seed: int,
               from_scratch: bool) -> tuple[torch.nn.Module, list[str]]:
    """A `PreTrainedModel` of `kind` (or an `AutoModelFor...`) with the weights of `model`, or random ones.

    New weights (a head's, or all) are drawn from `seed`: every rank calls this with the same one and so holds the same
    weights. Attention is PyTorch's SDPA, or transformers' own ("eager") where the model has no other.

    Returns:
        the model; the names of the parameters that were drawn.

    Raises:
        InputError: weights that cannot be read, or that are not those of this model.
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


def save_whole(task, model: torch.nn.Module, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Write a model and its tokenizer for `from_pretrained`; `weights` in the place of those that it holds."""
    model.save_pretrained(folder, state_dict=weights)
    task.tokenizer.save_pretrained(folder)


def write_model(task, state: dict[str, torch.Tensor], folder: Path) -> None:
    """Write a whole model's weights, brought together from several ranks, for `from_pretrained`."""
    model = task.build_model()
    model.load_state_dict(state)
    save_whole(task, model, folder)


def _refuse_own_code(flag: str, name: str, content: dict) -> None:
    """Refuse what names Python files of its own, even where transformers would quietly take its own class instead."""
    if content.get("auto_map"):
        raise InputError(f"--{flag} {name}: names code of its own (auto_map in its .json), which is never run here; "
                         "use a model and a tokenizer that transformers has classes for")


def _not_loaded(flag: str, name: str, what: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    reason = reason if len(reason) <= MOST_SHOWN else reason[:MOST_SHOWN] + "..."
    if isinstance(error, KeyError):  # whose text is the key alone
        reason = f"unknown {reason}"
    if os.path.isdir(folder_or_name(name, flag)):
        return f"--{flag} {name}: cannot read {what} in this folder ({reason})"
    return (f"--{flag} {name}: no such folder, and {what} cannot be had from the Hugging Face Hub (no network, or no "
            f"model of this name); give a local folder, or --model {TINY} ({reason})")
