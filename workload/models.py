"""Configurations, tokenizers and weights from the Hugging Face Hub, a local folder, or the embedded tiny model."""

import os
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from workload.errors import InputError
from workload.hub import go_offline_without_network

TINY = "tiny"
TINY_FOLDER = Path(__file__).parents[1] / "data" / "tiny_bert"
SPECIAL_TOKENS = 3  # [CLS] question [SEP] context [SEP]


def folder_or_name(model: str) -> str:
    """What `from_pretrained` is to open.

    Raises:
        InputError: `model` is written like a path, and there is no such folder.
    """
    if model == TINY:
        return str(TINY_FOLDER)
    if not os.path.isdir(model) and (model.startswith((".", "/", "~")) or model.count("/") > 1):
        raise InputError(f"--model {model}: no such folder")
    if not os.path.isdir(model):
        go_offline_without_network()
    return model


def load_config(model: str, model_type: str, dropout: float | None) -> PretrainedConfig:
    """The configuration of `model`, its dropouts overridden by `dropout`.

    Raises:
        InputError: nothing there, no network, or another kind of model than `model_type`.
    """
    try:
        config = AutoConfig.from_pretrained(folder_or_name(model))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(_not_loaded(model, "config.json", error)) from error
    if config.model_type != model_type:
        raise InputError(f"--model {model}: its config.json says {config.model_type!r}; this task takes a "
                         f"{model_type!r} model")
    if dropout is not None:
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            if getattr(config, name, None) is not None:
                setattr(config, name, dropout)
    return config


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The fast tokenizer of `model`; slow ones give no character offsets."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder_or_name(model), use_fast=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(_not_loaded(model, "a tokenizer", error)) from error
    if not tokenizer.is_fast:
        raise InputError(f"--model {model}: has no fast tokenizer (tokenizer.json or vocab.txt)")
    return tokenizer


def load_model(kind: type, model: str, config: PretrainedConfig, seed: int) -> torch.nn.Module:
    """A `PreTrainedModel` of `kind` with the weights of `model`.

    New weights (a head's, or all of `tiny`'s) are drawn from `seed`: every rank calls this with the same one and so
    holds the same weights.
    """
    torch.manual_seed(seed)
    if model == TINY:
        return kind._from_config(config, attn_implementation="sdpa")
    try:
        return kind.from_pretrained(folder_or_name(model), config=config, attn_implementation="sdpa",
                                    dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(_not_loaded(model, "its weights", error)) from error


def _not_loaded(model: str, what: str, error: Exception) -> str:
    first_line = str(error).strip().split("\n")[0]
    if os.path.isdir(folder_or_name(model)):
        return f"--model {model}: cannot read {what} in this folder ({first_line})"
    return (f"--model {model}: no such folder, and {what} cannot be had from the Hugging Face Hub (no network, or no "
            f"model of this name); give a local folder, or --model {TINY} ({first_line})")
