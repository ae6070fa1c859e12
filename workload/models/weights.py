"""Stored weights: read as tensors only, and refused unless they belong to the model that is built.

`transformers` alone would draw missing weights at random and ignore superfluous ones.
"""

import json
import re
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig

from workload.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel  # takes seconds

WEIGHTS = ("model.safetensors", "model.safetensors.index.json",
           "pytorch_model.bin", "pytorch_model.bin.index.json")  # the first that exists is used
FLOATING = {"F64", "F32", "F16", "BF16"}  # as safetensors names types
WRAPPERS = ("model", "state_dict", "model_state_dict", "module")  # keys under which training scripts store the weights
ADDED = ("module.", "_orig_mod.")  # prefixes of all names, from DataParallel and DDP, and from torch.compile
# Buffers stored by older versions of transformers; nothing in them is learned.
OLD_BUFFERS = re.compile(r"(^|\.)(position_ids|token_type_ids|attn\.bias|attn\.masked_bias|inv_freq)$")
POINTER = b"version https://git-lfs.github.com/spec/"
ZIP, PICKLE = b"PK", b"\x80"  # the first bytes of a .bin from torch.save, and from PyTorch before 1.6


def is_pointer(file: Path | str) -> bool:
    """Whether a file is a git-lfs pointer, left in place of a file that git-lfs has not fetched."""
    return _first_bytes(file, len(POINTER)) == POINTER


def refuse_pointers(flag: str, folder: str | Path, *patterns: str) -> None:
    """Refuse a folder, given by `--flag`, in which a file that matches a pattern is a git-lfs pointer.

    Raises:
        InputError: names the file.
    """
    for pattern in patterns:
        for file in sorted(Path(folder).glob(pattern)):
            if file.is_file() and is_pointer(file):
                raise InputError(f"--{flag} {folder}: {file.name} is a git-lfs pointer, not the file itself; run "
                                 "`git lfs pull` there")


def weight_files(folder: str | Path) -> list[Path]:
    """The files of a folder that `from_pretrained` reads weights from: one, or an index and its shards.

    Raises:
        InputError: there are none, or the index cannot be read.
    """
    own = json.loads(Path(folder, "config.json").read_text(encoding="utf-8")).get("transformers_weights")
    found = next((Path(folder, name) for name in ([own] if own else WEIGHTS) if Path(folder, name).exists()), None)
    if found is None:
        raise InputError(f"--model {folder}: holds no weights ({own or 'model.safetensors or pytorch_model.bin'}); add "
                         "--from_scratch true to begin with random ones")
    if found.suffix != ".json":
        return [found]
    refuse_pointers("model", folder, found.name)
    try:
        shards = sorted(set(json.loads(found.read_text(encoding="utf-8"))["weight_map"].values()))
        if not shards:
            raise ValueError("its weight_map is empty")
        return [found, *(Path(folder, name) for name in shards)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--model {folder}: {found.name} is no index of weights ({error})") from error


def refuse_unreadable_weights(folder: str) -> None:
    """Refuse a local folder whose weights are missing, truncated or not weights at all.

    Raises:
        InputError: names the file and the problem.
    """
    for file in (file for file in weight_files(folder) if file.suffix != ".json"):
        refuse_pointers("model", folder, file.name)
        problem = _problem_with(file)
        if problem:
            raise InputError(f"--model {folder}: {file.name} {problem}; fetch or save it again")


def _problem_with(file: Path) -> str | None:
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                names = [name for name in list(tensors.keys()) if name.endswith("weight")]
                types = {tensors.get_slice(name).get_dtype() for name in names}
            return f"holds {min(types - FLOATING)} values, no floating-point weights" if types - FLOATING else None
        start = _first_bytes(file, 2)
        if start.startswith(ZIP):
            zipfile.ZipFile(file).close()
        elif not start.startswith(PICKLE):
            return "holds no weights: neither a zip file nor a pickle"
    except FileNotFoundError:
        return "is missing"
    except (OSError, SafetensorError, zipfile.BadZipFile) as error:
        return f"cannot be read, it may have been cut off ({error})"
    return None


def _first_bytes(file: Path | str, count: int) -> bytes:
    with open(file, "rb") as opened:
        return opened.read(count)


def load_weights(kind: type, model: str, config: PretrainedConfig) -> "tuple[PreTrainedModel, list[str]]":
    """The model with its stored weights in fp32, and the names of its parameters that were not stored.

    Raises:
        InputError: the weights belong to another model. Only a whole head may be missing from them or superfluous.
    """
    try:
        loaded, info = kind.from_pretrained(
            model, config=config, dtype=torch.float32, trust_remote_code=False, weights_only=True,
            ignore_mismatched_sizes=True, output_loading_info=True)  # mismatches are refused below
    except UnpicklingError as error:
        raise InputError(f"--model {model}: its weights are a pickle that holds more than tensors, which could run "
                         "code, so it is not opened; use a folder with model.safetensors") from error
    except SafetensorError as error:
        raise InputError(f"--model {model}: its weights cannot be read ({error})") from error
    except RuntimeError as error:
        if "meta tensor" not in str(error).lower():  # the symptom of a shared weight of another shape
            raise
        raise InputError(f"--model {model}: its weights do not fit: a shared one has another shape than config.json "
                         "says; use the config.json they were saved with") from error
    _refuse_other_weights(model, loaded, info)
    damaged = next((name for name, parameter in loaded.named_parameters() if not parameter.isfinite().all()), None)
    if damaged:
        raise InputError(f"--model {model}: its weights are damaged: {damaged} holds NaN or infinite values")
    return loaded, sorted(info["missing_keys"])


def head_of(model: "PreTrainedModel") -> list[str]:
    """The names of a model's parameters outside its base model, the output layer's last; none if it has no head."""
    prefix = model.base_model_prefix + "."
    return [] if model.base_model is model else [
        name for name, _ in model.named_parameters() if not name.startswith(prefix)]


def _refuse_other_weights(name: str, model: "PreTrainedModel", info: dict) -> None:
    """Refuse weights unless they differ from the model's by a whole head at most.

    Args:
        info: of `from_pretrained`: missing_keys, unexpected_keys, mismatched_keys.
    """
    base, prefix, head = model.base_model, model.base_model_prefix + ".", head_of(model)
    parts = {part for part, _ in (*base.named_children(), *base.named_parameters(recurse=False))}
    parts.discard("pooler")  # belongs to the head

    def is_of_base(key: str) -> bool:
        return base is model or key.removeprefix(prefix).split(".")[0] in parts

    for key, stored, needed in sorted(info["mismatched_keys"]):
        raise InputError(f"--model {name}: its weights do not fit: {key} is {tuple(stored)}, but {tuple(needed)} is "
                         "needed here; use a model whose config.json and head agree with the weights and the task")
    missing = sorted(info["missing_keys"])
    unexpected = sorted(key for key in info["unexpected_keys"] if not OLD_BUFFERS.search(key))
    output = head[-1].split(".")[0] if head else None  # the module of the output layer
    stored_output = [key for key in head if key.split(".")[0] == output and key not in info["missing_keys"]]
    # A pooler, or another layer below the output, may be stored without the output layer, but not the reverse.
    lacking = [key for key in missing if is_of_base(key) or stored_output]
    if lacking:
        raise InputError(f"--model {name}: its weights lack {_first_of(lacking)}"
                         f"{_instead(lacking, unexpected, prefix)}")
    left_over = [key for key in unexpected if is_of_base(key)]
    if left_over:
        raise InputError(f"--model {name}: its weights hold {_first_of(left_over)}, for which the model of its "
                         "config.json has no place; use the config.json they were saved with")


def _instead(lacking: list[str], unexpected: list[str], prefix: str) -> str:
    """The end of an error message: the name that the weights hold instead, if any, and what to do."""
    for key in unexpected:
        for name in lacking:
            for plain in (name, name.removeprefix(prefix)):
                added = key.removesuffix(plain)
                if key.endswith(f".{plain}") and (plain == name or added in ADDED):
                    return f", but hold {key}; take {added!r} off their names"
    wrapper = next((key for key in WRAPPERS if key in unexpected), None)
    if wrapper:
        return f", but hold {wrapper!r}; save what that holds by itself"
    return f"{f', but hold {unexpected[0]}' if unexpected else ''}; save the model again with save_pretrained"


def _first_of(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more tensors" if len(names) > 1 else "")
