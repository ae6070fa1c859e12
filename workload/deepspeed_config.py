"""DeepSpeed's settings: the file as it stands, and what the flags decide. A file that says otherwise is refused."""

import base64
import json
import os
from typing import Any

from workload.arguments import Arguments, ZeroArguments
from workload.batches import Split
from workload.errors import InputError

BASE64 = "eyJ"  # what {" is in base64


def read_deepspeed_config(path: str) -> dict[str, Any]:
    """The settings in a JSON file; or in base64, which is how DeepSpeed's autotuner hands them to its trials.

    Raises:
        InputError: no such file, not JSON, not an object.
    """
    try:
        if path.startswith(BASE64):
            return json.loads(base64.urlsafe_b64decode(path))
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


def follow_config(config: dict[str, Any], arguments: ZeroArguments, devices: int) -> None:
    """Let the file decide --stage and --micro_batch_size where they were not given.

    From DeepSpeed's autotuner (`autotuning.enabled`) it decides them in any case, and the batch. A trial's record goes
    beside the tuner's own files; nothing is measured but what the tuner measures, and it ends the processes after a
    few steps, so that the record never says finished. `deepspeed --autotuning run` at last repeats the best trial's
    command in order to train; that is an ordinary run.

    Raises:
        InputError: ZeRO has no such stage, or settings to be tuned were not handed to the tuner.
    """
    stage = config.get("zero_optimization", {}).get("stage", "auto")
    micro_batch_size = config.get("train_micro_batch_size_per_gpu", "auto")
    tuner = config.get("autotuning", {})
    is_tuned = tuner.get("enabled", False)
    if is_tuned and "metric_path" not in tuner:
        raise InputError("DeepSpeed config: autotuning.enabled is true, but DeepSpeed's autotuner did not start this; "
                         "take it out, or start with deepspeed --autotuning run")
    if stage not in ("auto", 0, 1, 2, 3):
        raise InputError(f"DeepSpeed config: zero_optimization.stage is {stage}; 0, 1, 2 or 3 fits")
    if stage != "auto" and (is_tuned or "stage" not in arguments.given):
        arguments.stage = stage
    if micro_batch_size != "auto" and (is_tuned or "micro_batch_size" not in arguments.given):
        arguments.micro_batch_size = micro_batch_size
    if not is_tuned:
        return
    accumulation = config.get("gradient_accumulation_steps", "auto")
    arguments.global_batch_size = micro_batch_size * (1 if accumulation == "auto" else accumulation) * devices
    if os.path.exists(tuner["metric_path"]):  # written by the trial, which was this command as well
        del config["autotuning"]
        return
    arguments.output_dir, arguments.run_name, arguments.overwrite = os.path.dirname(tuner["metric_path"]), "run", True
    arguments.max_steps = arguments.eval_steps = tuner.get("end_profile_step", 5) + 2  # one more than it lets run
    arguments.warmup_steps = None
    arguments.measure, arguments.noise_scale_steps, arguments.profile_steps = "throughput", 0, 0


def tuned_by(path: str | None) -> str:
    """Who chose the settings in a run's --deepspeed_config: `hand`, or `autotuner`, DeepSpeed's.

    It hands them over in base64, and keeps its best ones in a file of this name.
    """
    is_tuned = path and (path.startswith(BASE64) or os.path.basename(path) == "ds_config_optimal.json")
    return "autotuner" if is_tuned else "hand"


def complete_config(config: dict[str, Any], arguments: Arguments, split: Split, precision: str, zero_stage: int = 0,
                    offload: bool = False) -> dict[str, Any]:
    """The file's settings with those that the flags decide; "auto" in the file agrees with any flag.

    Args:
        zero_stage: of ZeRO; 0 where it has no part in the strategy.
        offload: whether ZeRO keeps the optimizer's states on the CPU.

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
    zero = config.get("zero_optimization", {})
    if zero.get("stage", "auto") not in ("auto", zero_stage):
        raise InputError(f"DeepSpeed config: zero_optimization.stage is {zero['stage']}, but this run's is "
                         f"{zero_stage}; take it out, zero.py --stage decides it")
    for key in ("offload_param", "cpu_offload", "cpu_offload_param", *["offload_optimizer"] * (not offload)):
        if key in zero:
            raise InputError(f"DeepSpeed config: zero_optimization.{key} is set; take it out, zero.py --offload "
                             "decides what is kept on the CPU")

    completed = {key: value for key, value in config.items() if key not in ("optimizer", "fp16", "bf16")}
    completed |= {key: value for key, (_, value) in decided.items()}
    completed["zero_optimization"] = zero | {"stage": zero_stage}
    if zero_stage == 0:
        # DeepSpeed would clip a pipeline by the norm of the first stage's gradients alone, and without ZeRO it does
        # not tell the norm; workload/optimizer.py clips instead.
        completed["gradient_clipping"] = 0.0
    if offload:
        completed["zero_optimization"]["offload_optimizer"] = zero.get("offload_optimizer", {}) | {"device": "cpu"}
        # AdamW stays PyTorch's, as everywhere; DeepSpeed's own would have to be compiled, with CUDA's compiler.
        completed["zero_force_ds_cpu_optimizer"] = False
    if precision in ("bf16", "fp16"):
        # Without the empty list ZeRO would send gradients and parameters in the short type.
        completed["torch_autocast"] = {"enabled": True, "dtype": {"bf16": "bfloat16", "fp16": "float16"}[precision],
                                       "lower_precision_safe_modules": []}
    elif precision == "bf16_native" and zero_stage > 0:
        # Without the last two ZeRO would keep a second copy of the parameters, in fp32.
        completed["bf16"] = {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    return completed


def _refuse_other(key: str, found: Any, flag: str, value: Any) -> None:
    if found != "auto" and found != value:
        raise InputError(f"DeepSpeed config: {key} is {found}, but --{flag} says {value}; take it out or let them "
                         "agree")
