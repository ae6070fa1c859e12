"""Configurations, tokenizers and weights from the Hugging Face Hub, a local folder, or an embedded model.

Nothing that is read here can run code of its own.
"""

import os
from pathlib import Path
from pickle import UnpicklingError

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from workload.encoder_config import ENCODER_CLASSIFIER, EncoderClassifierConfig
from workload.errors import InputError
from workload.hub import go_offline_without_network

TINY = "tiny"
EMBEDDED = (TINY, ENCODER_CLASSIFIER)  # values of --model that are no name on the Hub; they have no trained weights
DATA = Path(__file__).parents[1] / "data"


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
            _refuse_own_code("model", model, PretrainedConfig.get_config_dict(folder_or_name(model))[0])
            # False is not the default: left out, transformers asks on the terminal, and runs the code upon a "y".
            config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(_not_loaded("model", model, "config.json", error)) from error
    if dropout is not None:
        for name, value in config.to_dict().items():
            is_dropout = "dropout" in name or name.endswith("_pdrop")  # as BERT and as GPT-2 name them
            if is_dropout and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(config, name, dropout)
    return config


def load_tokenizer(name: str, flag: str) -> PreTrainedTokenizerBase:
    """The fast tokenizer of that name or folder, which `--flag` gave; slow ones give no character offsets."""
    try:
        _refuse_own_code(flag, name, get_tokenizer_config(folder_or_name(name, flag)))
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(_not_loaded(flag, name, "a tokenizer", error)) from error
    if not tokenizer.is_fast:
        raise InputError(f"--{flag} {name}: has no fast tokenizer (tokenizer.json or vocab.txt)")
    return tokenizer


def load_model(kind: type, model: str, config: PretrainedConfig, seed: int, from_scratch: bool) -> torch.nn.Module:
    """A `PreTrainedModel` of `kind` (or an `AutoModelFor...`) with the weights of `model`, or random ones.

    New weights (a head's, or all) are drawn from `seed`: every rank calls this with the same one and so holds the same
    weights.
    """
    torch.manual_seed(seed)
    if from_scratch:
        make = getattr(kind, "from_config", None) or kind._from_config
        return make(config, attn_implementation="sdpa")
    try:
        return kind.from_pretrained(folder_or_name(model), config=config, attn_implementation="sdpa",
                                    dtype=torch.float32, trust_remote_code=False, weights_only=True)
    except UnpicklingError as error:
        raise InputError(f"--model {model}: its weights are a pickle that holds more than tensors, which could run "
                         "code, so it is not opened; a folder with model.safetensors fits") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(_not_loaded("model", model, "its weights", error)) from error


def write_model(task, state: dict[str, torch.Tensor], folder: Path) -> None:
    """Write a whole model's weights, brought together from several ranks, for `from_pretrained`."""
    model = task.build_model()
    model.load_state_dict(state)
    model.save_pretrained(folder)
    task.tokenizer.save_pretrained(folder)


def _refuse_own_code(flag: str, name: str, content: dict) -> None:
    """Refuse what names Python files of its own, even where transformers would quietly take its own class instead."""
    if content.get("auto_map"):
        raise InputError(f"--{flag} {name}: names code of its own (auto_map in its .json), which is never run here; "
                         "a model and a tokenizer that transformers has classes for fit")


def _not_loaded(flag: str, name: str, what: str, error: Exception) -> str:
    first_line = str(error).strip().split("\n")[0]
    if os.path.isdir(folder_or_name(name, flag)):
        return f"--{flag} {name}: cannot read {what} in this folder ({first_line})"
    return (f"--{flag} {name}: no such folder, and {what} cannot be had from the Hugging Face Hub (no network, or no "
            f"model of this name); give a local folder, or --model {TINY} ({first_line})")
