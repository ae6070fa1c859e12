"""Stored weights: read as tensors only, and refused unless they are those of the model that is built.

`transformers` draws anew whatever it does not find in them, and leaves out whatever it has no place for.
"""

import json
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig

from workload.errors import InputError

WEIGHTS = ("model.safetensors", "model.safetensors.index.json",
           "pytorch_model.bin", "pytorch_model.bin.index.json")  # the first that is there counts
POINTER = b"version https://git-lfs.github.com/spec/"
ZIP, PICKLE = b"PK", b"\x80"  # how a .bin begins: torch.save's, and that of PyTorch before 1.6


def is_pointer(file: Path | str) -> bool:
    """Whether a file is what git leaves in its place when git-lfs has not fetched it."""
    return _first_bytes(file, len(POINTER)) == POINTER


def refuse_pointers(flag: str, folder: str, *patterns: str) -> None:
    """Refuse a folder in which a file of such a name is a git-lfs pointer."""
    for pattern in patterns:
        for file in sorted(Path(folder).glob(pattern)):
            if file.is_file() and is_pointer(file):
                raise InputError(f"--{flag} {folder}: {file.name} is a git-lfs pointer, not the file itself; run "
                                 "`git lfs pull` there")


def refuse_unreadable_weights(folder: str) -> None:
    """Refuse a local folder without weights, or with files of them that are missing, cut off or something else.

    Raises:
        InputError: names the file, and says what is wrong with it.
    """
    found = next((Path(folder, name) for name in WEIGHTS if Path(folder, name).exists()), None)
    if found is None:
        raise InputError(f"--model {folder}: holds no weights (model.safetensors or pytorch_model.bin); add "
                         "--from_scratch true to begin with random ones")
    refuse_pointers("model", folder, found.name)
    files = [found]
    if found.suffix == ".json":
        try:
            index = json.loads(found.read_text(encoding="utf-8"))
            files = [Path(folder, name) for name in sorted(set(index["weight_map"].values()))]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"--model {folder}: {found.name} is no index of weights ({error})") from error
    for file in files:
        refuse_pointers("model", folder, file.name)
        problem = _problem_with(file)
        if problem:
            raise InputError(f"--model {folder}: {file.name} {problem}; fetch or save it again")


def _problem_with(file: Path) -> str | None:
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt"):
                return None
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


def load_weights(kind: type, model: str, config: PretrainedConfig) -> tuple[torch.nn.Module, list[str]]:
    """The model with its stored weights, in fp32; and the names of its parameters that these do not hold.

    Raises:
        InputError: the weights are not this model's. Only a whole head may be missing from them, and only a head left
            over.
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
    _refuse_other_weights(model, loaded, info)
    damaged = next((name for name, parameter in loaded.named_parameters() if not parameter.isfinite().all()), None)
    if damaged:
        raise InputError(f"--model {model}: its weights are damaged: {damaged} holds NaN or infinite values")
    return loaded, sorted(info["missing_keys"])


def _refuse_other_weights(name: str, model: torch.nn.Module, info: dict) -> None:
    """Refuse weights of which more than a whole head is missing, left over, or of another shape.

    Args:
        info: what `from_pretrained` says of the tensors by name: missing_keys, unexpected_keys, mismatched_keys.
    """
    base, prefix = model.base_model, model.base_model_prefix + "."
    parts = {part for part, _ in (*base.named_children(), *base.named_parameters(recurse=False))}
    parts.discard("pooler")  # the first layer of a head

    def is_of_base(key: str) -> bool:
        return base is model or key.removeprefix(prefix).split(".")[0] in parts

    for key, stored, needed in sorted(info["mismatched_keys"]):
        raise InputError(f"--model {name}: its weights do not fit: {key} is {tuple(stored)}, but {tuple(needed)} is "
                         "needed here; use a model whose config.json and head agree with the weights and the task")
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    modules = {key.rpartition(".")[0] for key in model.state_dict() if key not in info["missing_keys"]}
    lacking = [key for key in missing if is_of_base(key) or key.rpartition(".")[0] in modules]  # of a head the half
    if lacking:
        instead = f", but hold {unexpected[0]}" if unexpected else ""
        prefixed = next((key for key in unexpected if key.endswith(f".{lacking[0]}")), None)
        remedy = (f"take {prefixed.removesuffix(lacking[0])!r} off their names" if prefixed
                  else "save the model again with save_pretrained")
        raise InputError(f"--model {name}: its weights lack {_first_of(lacking)}{instead}; {remedy}")
    left_over = [key for key in unexpected if is_of_base(key)]
    if left_over:
        raise InputError(f"--model {name}: its weights hold {_first_of(left_over)}, for which the model of its "
                         "config.json has no place; use the config.json they were saved with")


def _first_of(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more tensors" if len(names) > 1 else "")
