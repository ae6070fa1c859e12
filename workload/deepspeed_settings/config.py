"""DeepSpeed's settings: those of the file, and those that flags decide. A file that contradicts a flag is refused."""

import base64
import contextlib
import json
import os
from pathlib import Path
from typing import Any

import hjson

from workload.arguments import Arguments, PipelineArguments, TrainerArguments, ZeroArguments
from workload.batches import BatchSplit
from workload.deepspeed_settings.checks import WHERE, check_settings, parsed_block, shown
from workload.deepspeed_settings.flags import check_offload, check_optimizer, check_precision, refuse_other
from workload.errors import InputError

BASE64 = "eyJ"  # {" in base64
ROOT = Path(__file__).resolve().parents[2]


def read_deepspeed_config(arguments: PipelineArguments | ZeroArguments | TrainerArguments) -> dict[str, Any]:
    """The settings in `--deepspeed_config`, by default in the file beside the scripts, without those left open.

    The file is JSON, also with comments and trailing commas, which DeepSpeed accepts. Its autotuner hands the settings
    to its trials in base64.

    Raises:
        InputError: no such file, not JSON, or a setting that `check_settings` refuses.
    """
    path = arguments.deepspeed_config
    assert path is not None  # without a config there is no DeepSpeed
    where = f"--deepspeed_config {path}"
    try:
        if path.startswith(BASE64):
            text = base64.urlsafe_b64decode(path).decode()
        else:
            text = (Path(path) if "deepspeed_config" in arguments.given else ROOT / path).read_text("utf-8-sig")
        content = _parse(text)
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{where}: should be a JSON object")
    if isinstance(content.get("zero_optimization"), bool):  # an old way to ask for stage 1
        content["zero_optimization"] = {"stage": int(content["zero_optimization"])}
    # DeepSpeed and the Trainer resolve "auto" in this block. A null gradient_clipping contradicts --max_grad_norm.
    config: dict[str, Any] = {
        key: value if key == "zero_optimization" else _without_open(value) for key, value in content.items()
        if value != "auto" and (value is not None or key == "gradient_clipping")}
    check_settings(config)
    if config.get("zero_optimization", {}).get("stage", "auto") != "auto":
        config["zero_optimization"]["stage"] = int(parsed_block(config, "zero_optimization").stage)  # may be "2"
    return config


def follow_config(config: dict[str, Any], arguments: ZeroArguments, devices: int) -> None:
    """Let the file decide --stage and --micro_batch_size where they were not given.

    From DeepSpeed's autotuner (`autotuning.enabled`) it decides them in any case, and the batch. A trial's record goes
    beside the tuner's own files; nothing is measured but what the tuner measures, and it ends the processes after a
    few steps, so that the record never says finished. `deepspeed --autotuning run` at last repeats the best trial's
    command in order to train; that is an ordinary run.

    Raises:
        InputError: a batch of no size, or settings to be tuned that were not handed to the tuner.
    """
    stage = config.get("zero_optimization", {}).get("stage", "auto")
    micro_batch_size = _whole_number(config, "train_micro_batch_size_per_gpu")
    tuner = config.get("autotuning", {})
    is_tuned = tuner.get("enabled", False)
    if is_tuned and "metric_path" not in tuner:
        raise InputError(f"{WHERE}autotuning.enabled is true, but DeepSpeed's autotuner did not start this; "
                         "take it out, or start with deepspeed --autotuning run")
    if stage != "auto" and (is_tuned or "stage" not in arguments.given):
        arguments.stage = stage
    if micro_batch_size and (is_tuned or "micro_batch_size" not in arguments.given):
        arguments.micro_batch_size, share = micro_batch_size, arguments.global_batch_size // devices
        if not is_tuned and share % micro_batch_size:
            raise InputError(f"{WHERE}train_micro_batch_size_per_gpu is {micro_batch_size}, but {share} samples a "
                             "device cannot be divided into that; take it out, or give another --global_batch_size")
    if not is_tuned:
        return
    assert micro_batch_size is not None  # the tuner always sets it
    accumulation = _whole_number(config, "gradient_accumulation_steps") or 1
    arguments.global_batch_size = micro_batch_size * accumulation * devices
    if os.path.exists(tuner["metric_path"]):  # written by the trial, which was this command as well
        del config["autotuning"]
        return
    arguments.output_dir, arguments.run_name, arguments.overwrite = os.path.dirname(tuner["metric_path"]), "run", True
    arguments.max_steps = arguments.eval_steps = tuner.get("end_profile_step", 5) + 2  # one more than it lets run
    arguments.warmup_steps = None
    arguments.measure, arguments.noise_scale_steps, arguments.profile_steps = "throughput", 0, 0


def tuned_by(path: str | None) -> str:
    """Whether DeepSpeed's `autotuner` chose the settings in a run's --deepspeed_config; else `hand`.

    The autotuner hands them over in base64, and keeps the best ones in ds_config_optimal.json.
    """
    is_tuned = path and (path.startswith(BASE64) or os.path.basename(path) == "ds_config_optimal.json")
    return "autotuner" if is_tuned else "hand"


def complete_config(config: dict[str, Any], arguments: Arguments, zero_stage: int, offload: bool, split: BatchSplit,
                    precision: str) -> dict[str, Any]:
    """The file's settings with those that the flags decide.

    Args:
        zero_stage: ZeRO's stage; 0 for a strategy without ZeRO.
        offload: whether ZeRO keeps the optimizer's states on the CPU.
        split, precision: as `prepare` derived them from the flags.

    Raises:
        InputError: the file contradicts a flag, or would change the workload.
    """
    decided = {"train_batch_size": (arguments.global_batch_size, "--global_batch_size says"),
               "train_micro_batch_size_per_gpu": (split.micro_batch_size, "--micro_batch_size says"),
               "gradient_accumulation_steps": (split.micro_batches, "--global_batch_size and --micro_batch_size make"),
               "gradient_clipping": (arguments.max_grad_norm, "--max_grad_norm says")}
    for key, (value, who) in decided.items():
        if key in config:
            refuse_other(key, config[key], who, value)
    check_optimizer(config, arguments)
    is_bf16 = precision == "bf16_native" and zero_stage > 0
    check_precision(config, precision, "bf16" if is_bf16 else "fp32")
    zero = config.get("zero_optimization", {})
    if zero.get("stage", "auto") not in ("auto", zero_stage):
        raise InputError(f"{WHERE}zero_optimization.stage is {zero['stage']}, but this run's is {zero_stage}; take it "
                         "out, zero.py --stage decides it")
    check_offload(zero, offload)
    group = getattr(arguments, "secondary_shard_group", None) or 1
    if zero.get("zero_hpz_partition_size", "auto") not in ("auto", group):
        raise InputError(f"{WHERE}zero_optimization.zero_hpz_partition_size is "
                         f"{shown(zero['zero_hpz_partition_size'])}, but this run's is {group}; take it out, zero.py "
                         "--secondary_shard_group decides it")

    completed = {key: value for key, value in config.items()
                 if key not in ("optimizer", "scheduler", "fp16", "bf16", "bfloat16")}
    completed |= {key: value for key, (value, _) in decided.items()}
    completed["zero_optimization"] = {key: value for key, value in zero.items() if "offload" not in key}
    completed["zero_optimization"]["stage"] = zero_stage
    if group > 1:
        completed["zero_optimization"]["zero_hpz_partition_size"] = group
    if isinstance(arguments, PipelineArguments):
        every = int(arguments.activation_checkpointing)  # layers; 0 for none
        # `use_reentrant` would put DeepSpeed's own function in the place of PyTorch's.
        pipeline = {key: value for key, value in config.get("pipeline", {}).items() if key != "use_reentrant"}
        completed["pipeline"] = pipeline | {"activation_checkpoint_interval": every}
    if zero_stage == 0:
        # DeepSpeed would clip a pipeline by the norm of the first stage's gradients alone, and without ZeRO it does
        # not tell the norm; workload/optimizer.py clips instead.
        completed["gradient_clipping"] = 0.0
    if offload:
        completed["zero_optimization"]["offload_optimizer"] = (zero.get("offload_optimizer") or {}) | {"device": "cpu"}
        # AdamW stays PyTorch's, as everywhere; DeepSpeed's own would have to be compiled, with CUDA's compiler.
        completed["zero_force_ds_cpu_optimizer"] = False
    if precision in ("bf16", "fp16"):
        # Without the empty list ZeRO would send gradients and parameters in the short type.
        completed["torch_autocast"] = {"enabled": True, "dtype": {"bf16": "bfloat16", "fp16": "float16"}[precision],
                                       "lower_precision_safe_modules": []}
    elif is_bf16:
        # Without the last two ZeRO would keep a second copy of the parameters, in fp32.
        completed["bf16"] = {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    return completed


def _whole_number(config: dict[str, Any], key: str) -> int | None:
    """A setting that counts something; None where it is left open.

    Raises:
        InputError: it is not a whole number above 0.
    """
    value = config.get(key)
    if value is None:
        return None
    if type(value) not in (int, float) or value < 1 or value % 1:
        raise InputError(f"{WHERE}{key} is {shown(value)}; use a whole number above 0")
    return int(value)


def _parse(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_repetition, parse_constant=_refuse_constant)
    except json.JSONDecodeError:
        with contextlib.suppress(hjson.HjsonDecodeError):
            if text.strip():  # Hjson would make an empty object of an empty file
                return hjson.loads(text, object_pairs_hook=_without_repetition)
        raise  # this error points to the place, and Hjson's mostly to the end of the file


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def _without_open(value: Any) -> Any:
    """A block without the settings that are null or "auto"."""
    if not isinstance(value, dict):
        return value
    return {key: _without_open(part) for key, part in value.items() if part is not None and part != "auto"}


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    block = dict(pairs)
    if len(block) < len(pairs):
        repeated = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise InputError(f"{WHERE}{repeated} is set twice; keep one of them")
    return block
