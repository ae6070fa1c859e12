"""DeepSpeed's settings: the file as it stands, and what the flags decide. A file that says otherwise is refused."""

import json
from typing import Any

from workload.arguments import Arguments
from workload.batches import Split
from workload.errors import InputError


def read_deepspeed_config(path: str) -> dict[str, Any]:
    """The settings in a JSON file.

    Raises:
        InputError: no such file, not JSON, not an object.
    """
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except OSError as error:
        raise InputError(f"--deepspeed_config {path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"--deepspeed_config {path}: not JSON ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"--deepspeed_config {path}: should be a JSON object")
    for block in ("optimizer", "fp16", "bf16", "torch_autocast", "zero_optimization"):
        if not isinstance(config.get(block, {}), dict):
            raise InputError(f"--deepspeed_config {path}: {block} should be an object")
    return config


def complete_config(config: dict[str, Any], arguments: Arguments, split: Split, precision: str) -> dict[str, Any]:
    """The file's settings with those that the flags decide; "auto" in the file agrees with any flag.

    Raises:
        InputError: the file contradicts a flag, or would change the workload.
    """
    decided = {"train_batch_size": ("global_batch_size", arguments.global_batch_size),
               "train_micro_batch_size_per_gpu": ("micro_batch_size", split.micro_batch_size),
               "gradient_accumulation_steps": ("micro_batches", split.micro_batches),
               "gradient_clipping": ("max_grad_norm", arguments.max_grad_norm)}
    for key, (flag, value) in decided.items():
        _refuse_other(key, config.get(key, "auto"), flag, value)
    optimizer = config.get("optimizer", {})
    _refuse_other("optimizer.type", optimizer.get("type", "auto"), "learning_rate's AdamW", "AdamW")
    for key, flag in (("lr", "learning_rate"), ("eps", "adam_epsilon"), ("weight_decay", "weight_decay")):
        found = optimizer.get("params", {}).get(key, "auto")
        _refuse_other(f"optimizer.params.{key}", found, flag, getattr(arguments, flag))
    if "scheduler" in config:
        raise InputError("DeepSpeed config: scheduler is set, but the schedule comes from --lr_scheduler; take it out")
    for key in ("fp16", "bf16", "torch_autocast"):
        if config.get(key, {}).get("enabled", False) is True:
            raise InputError(f"DeepSpeed config: {key}.enabled is true, but precision comes from --precision; take it "
                             "out")
    if config.get("zero_optimization", {}).get("stage", 0) != 0:
        raise InputError("DeepSpeed config: zero_optimization.stage is not 0, but a pipeline's stages hold their "
                         "parameters and optimizer states whole; take it out")

    completed = {key: value for key, value in config.items() if key not in ("optimizer", "fp16", "bf16")}
    completed |= {key: value for key, (_, value) in decided.items()}
    # DeepSpeed would clip by the norm of the first stage's gradients alone; workload/optimizer.py clips instead.
    completed["gradient_clipping"] = 0.0
    if precision in ("bf16", "fp16"):
        completed["torch_autocast"] = {"enabled": True, "dtype": {"bf16": "bfloat16", "fp16": "float16"}[precision]}
    return completed


def _refuse_other(key: str, found: Any, flag: str, value: Any) -> None:
    if found != "auto" and found != value:
        raise InputError(f"DeepSpeed config: {key} is {found}, but --{flag} says {value}; take it out or let them "
                         "agree")
