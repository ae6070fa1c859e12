"""Refuses settings of a DeepSpeed config before anything is loaded.

These are settings that DeepSpeed itself does not know or accept, and those that would change the training, not only
how it is spread over devices: then a comparison's rows would differ in more than the strategy. DeepSpeed silently
ignores unknown keys at the top level, and in those blocks that are plain dictionaries.
"""

import copy
import difflib
import importlib.util
import json
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from workload.errors import InputError
from workload.launch.processes import import_deepspeed
from workload.terminal import quiet_libraries

WHERE = "DeepSpeed config: "
# `complete_config` compares these with the flags; see flags.py.
DECIDED = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
           "optimizer", "scheduler", "fp16", "bf16", "bfloat16", "torch_autocast", "communication_data_type",
           "data_types")
SCALARS = {"steps_per_print": float, "wall_clock_breakdown": bool, "memory_breakdown": bool, "dump_state": bool,
           "disable_python_gc": bool, "zero_allow_untested_optimizer": bool, "vocabulary_size": int,
           "pipeline.activation_checkpoint_interval": int, "pipeline.pipe_partitioned": bool,
           "pipeline.grad_partitioned": bool, "pipeline.use_reentrant": bool, "optimizer.type": str,
           "optimizer.params": dict, "scheduler.params": dict}
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
# Blocks that DeepSpeed checks, and the classes with which it does.
MODELS = {"zero_optimization": "runtime.zero.config.DeepSpeedZeroConfig",
          "fp16": "runtime.precision_config.DeepSpeedFP16Config",
          "bf16": "runtime.precision_config.DeepSpeedBF16Config",
          "bfloat16": "runtime.precision_config.DeepSpeedBF16Config",
          "tensorboard": "monitor.config.TensorBoardConfig", "wandb": "monitor.config.WandbConfig",
          "csv_monitor": "monitor.config.CSVConfig", "comet": "monitor.config.CometConfig",
          "comms_logger": "comm.config.CommsLoggerConfig",
          "timers.throughput": "utils.config.DeepSpeedThroughputTimerConfig"}
# Blocks that it does not check, and their keys: as listed, or the attributes of a class that reads them.
DICTIONARIES = {"pipeline": ("stages", "partition", "seed_layers", "activation_checkpoint_interval",
                             "pipe_partitioned", "grad_partitioned", "use_reentrant"),
                "aio": ("block_size", "queue_depth", "intra_op_parallelism", "single_submit", "overlap_events",
                        "use_gds"),
                "timers": ("throughput",), "optimizer": ("type", "params", "legacy_fusion"),
                "scheduler": ("type", "params"),
                "torch_autocast": ("enabled", "dtype", "lower_precision_safe_modules"),
                "data_types": ("grad_accum_dtype", "param_dtype", "buffer_dtype", "keep_in_fp32_modules"),
                "autotuning": "autotuning.config.DeepSpeedAutotuningConfig",
                "flops_profiler": "profiling.config.DeepSpeedFlopsProfilerConfig"}
# Settings that would change the arithmetic or the data, and the only value that does not. OFF stands for none, false,
# and a block that is not enabled.
OFF = None
CHANGES = {"prescale_gradients": False, "gradient_predivide_factor": 1, "gradient_allreduce_op": "mean",
           "managed_gradient_accumulation": True, "zero_force_ds_cpu_optimizer": False, "sequence_parallel_size": 1,
           **{f"zero_optimization.{key}": value for key, value in {
               "zero_quantized_weights": False, "zero_quantized_gradients": False, "compute_grad_norm": True,
               "zero_quantized_nontrainable_weights": False, "zenflow": OFF, "offload_optimizer.ratio": 1,
               "offload_optimizer.super_offload": False}.items()},
           "data_types.keep_in_fp32_modules": OFF,
           **dict.fromkeys(["data_efficiency", "curriculum_learning", "compression_training", "progressive_layer_drop",
                            "quantize_training", "weight_quantization", "sparse_gradients", "sparse_attention",
                            "eigenvalue", "amp", "hybrid_engine", "tensor_parallel", "expert_parallel", "compile",
                            "elasticity"], OFF)}
# Settings that the scripts would not follow, in the same way.
IGNORED = {"pipeline.stages": "auto", "pipeline.partition": "best", "pipeline.seed_layers": False,
           **dict.fromkeys(["activation_checkpointing", "checkpoint", "datastates_ckpt", "nebula",
                            "dataloader_drop_last", "disable_allgather", "use_data_before_expert_parallelism",
                            "seq_parallel_communication_data_type"], OFF)}
IN_WORDS = {float: "a number above 0", int: "a whole number, at least 0", bool: "true or false", str: "a name",
            dict: "an object"}
MONITORS = {"tensorboard": "tensorboard", "wandb": "wandb", "comet": "comet_ml"}  # and the packages that they need


def check_settings(config: dict[str, Any]) -> None:
    """Refuse keys and values that DeepSpeed does not take, and those that would change the training.

    Raises:
        InputError: names the first such key, and its value.
    """
    _refuse_unknown("", config, [key for key in (*DECIDED, *SCALARS, "log_level", *MODELS, *DICTIONARIES, *CHANGES,
                                                 *IGNORED) if "." not in key])
    for key, kind in SCALARS.items():
        value = get_setting(config, key)
        is_right = type(value) in (kind, int) and value > 0 if kind is float else type(value) is kind
        if value is not None and (not is_right or kind is int and value < 0):
            raise InputError(f"{WHERE}{key} is {shown(value)}; use {IN_WORDS[kind]}")
    if config.get("log_level", "info") not in LOG_LEVELS:
        raise InputError(f"{WHERE}log_level is {shown(config['log_level'])}; use {' or '.join(LOG_LEVELS)}")
    for key, keys in DICTIONARIES.items():
        block = get_setting(config, key)
        if block is not None:
            _refuse_unknown(f"{key}.", block, vars(_deepspeeds(keys)({})) if isinstance(keys, str) else keys)
    for key, name in MODELS.items():
        block = get_setting(config, key)
        if block is not None:
            check_block(key, block, _deepspeeds(name))
    for settings, reason in ((CHANGES, "would change the training, not only how it is spread over devices"),
                             (IGNORED, "would have no effect here")):
        for key, expected in settings.items():
            value = get_setting(config, key)
            is_same = value == expected and isinstance(value, bool) == isinstance(expected, bool)
            if not is_same and not (_is_off(value) if expected is OFF else value is None):
                raise InputError(f"{WHERE}{key} is {shown(value)}, which {reason}; take it out")
    _refuse_on(config, ("pipeline.activation_checkpoint_interval", "pipeline.use_reentrant"),
               "--activation_checkpointing decides what is computed again")
    for key, package in MONITORS.items():
        if config.get(key, {}).get("enabled") and not importlib.util.find_spec(package):
            raise InputError(f"{WHERE}{key}.enabled is true, but the package {package} is not installed")
    _ask_deepspeed(config)


def check_pipeline(config: dict[str, Any]) -> None:
    """Refuse settings that fail within DeepSpeed's pipelines, because their timers are started twice."""
    _refuse_on(config, ("wall_clock_breakdown", "flops_profiler", "autotuning"), "DeepSpeed's pipelines fail with it")


def check_trainer(config: dict[str, Any]) -> None:
    """Refuse settings that the Trainer would ignore."""
    _refuse_on(config, ("autotuning",), "DeepSpeed's autotuner works with zero.py only")


def _refuse_on(config: dict[str, Any], keys: Iterable[str], reason: str) -> None:
    for key in keys:
        if not _is_off(value := get_setting(config, key)):
            raise InputError(f"{WHERE}{key} is {shown(value)}, but {reason}; take it out")


def get_setting(config: dict[str, Any], key: str) -> Any:
    """The value of a dotted key, None if there is none.

    Raises:
        InputError: something on the way is no object.
    """
    value, *names = config, *key.split(".")
    for number, name in enumerate(names):
        value = value.get(name)
        if value is None:
            return None
        if number < len(names) - 1 and not isinstance(value, dict):
            raise InputError(f"{WHERE}{'.'.join(names[:number + 1])} is {shown(value)}; it should be an object")
    return value


def check_block(key: str, block: Any, model: type[BaseModel]) -> BaseModel:
    """A block as an instance of DeepSpeed's own class.

    Raises:
        InputError: it refuses the block; names the key and its value.
    """
    if not isinstance(block, dict):
        raise InputError(f"{WHERE}{key} is {shown(block)}; it should be an object")
    try:
        with quiet_libraries():
            return model(**block)
    except AssertionError as error:  # of settings that contradict each other
        raise InputError(f"{WHERE}{key}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, (key, *first["loc"])))
        if first["type"] == "extra_forbidden":
            raise InputError(_unknown(path, first["input"], _names(model))) from error
        found = f"{path} is {shown(first['input'])}" if first["loc"] else path  # else its values contradict each other
        reason = first["msg"].replace("Input should", "it should").replace("2, 3 or 3", "2 or 3")
        raise InputError(f"{WHERE}{found}; {reason}") from error


def parsed_block(config: dict[str, Any], key: str) -> Any:
    """One of the blocks in `MODELS` as an instance of DeepSpeed's own class, whose fields hold the defaults as well."""
    return check_block(key, config.get(key, {}), _deepspeeds(MODELS[key]))


def shown(value: Any) -> str:
    """A value as it stands in the file, shortened."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _deepspeeds(name: str) -> type:
    import_deepspeed()
    module, _, name = f"deepspeed.{name}".rpartition(".")
    return getattr(importlib.import_module(module), name)


def _ask_deepspeed(config: dict[str, Any]) -> None:
    """Refuse a config that this version of DeepSpeed refuses, such as one with a feature that it has dropped."""
    alone = {"train_batch_size": 1, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    kind = _deepspeeds("runtime.config.DeepSpeedConfig")
    try:
        with quiet_libraries():
            kind(copy.deepcopy(config) | alone)
    except Exception as error:  # noqa: BLE001  of a dozen unrelated kinds
        raise InputError(f"{WHERE}DeepSpeed refuses it: {str(error) or type(error).__name__}") from error


def _names(model: type[BaseModel]) -> list[str]:
    """The keys of a block, and of the blocks in it."""
    names = []
    for name, field in model.model_fields.items():
        names.append(field.alias or name)
        for kind in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                names += _names(kind)
    return names


def _refuse_unknown(where: str, block: Any, known: Iterable[str]) -> None:
    if not isinstance(block, dict):
        raise InputError(f"{WHERE}{where[:-1]} is {shown(block)}; it should be an object")
    for key, value in block.items():
        if key not in known:
            raise InputError(_unknown(where + key, value, known))


def _unknown(key: str, value: Any, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key.rpartition(".")[2], known, n=1)
    meant = f"did you mean {close[0]}?" if close else "take it out"
    return f"{WHERE}{key} is {shown(value)}, but DeepSpeed has no such setting; {meant}"


def _is_off(value: Any) -> bool:
    """Whether a value is null, false or 0, or a block that is not enabled or in which everything is off."""
    if isinstance(value, dict):
        return value.get("enabled") is False or all(map(_is_off, value.values()))
    return value is None or value == 0
