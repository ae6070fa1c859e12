"""Configurations, tokenizers and weights from the Hugging Face Hub, a local folder, or an embedded model."""

import os
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

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
        InputError: nothing there, or no network.
    """
    if model == ENCODER_CLASSIFIER:
        config = EncoderClassifierConfig()
    else:
        try:
            config = AutoConfig.from_pretrained(folder_or_name(model))
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
        tokenizer = AutoTokenizer.from_pretrained(folder_or_name(name, flag), use_fast=True)
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
                                    dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(_not_loaded("model", model, "its weights", error)) from error


def write_model(task, state: dict[str, torch.Tensor], folder: Path) -> None:
    """Write a whole model's weights, brought together from several ranks, for `from_pretrained`."""
    model = task.build_model()
    model.load_state_dict(state)
    model.save_pretrained(folder)
    task.tokenizer.save_pretrained(folder)


def _not_loaded(flag: str, name: str, what: str, error: Exception) -> str:
    first_line = str(error).strip().split("\n")[0]
    if os.path.isdir(folder_or_name(name, flag)):
        return f"--{flag} {name}: cannot read {what} in this folder ({first_line})"
    return (f"--{flag} {name}: no such folder, and {what} cannot be had from the Hugging Face Hub (no network, or no "
            f"model of this name); give a local folder, or --model {TINY} ({first_line})")
