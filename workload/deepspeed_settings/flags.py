"""Refuses settings of a DeepSpeed config that contradict the flags, or the AdamW and loss scaling of all strategies."""

from typing import Any

from workload.argument_checks import group_size
from workload.arguments import Arguments, ZeroArguments
from workload.deepspeed_settings.checks import WHERE, get_setting, parsed_block, shown
from workload.errors import InputError

# Settings of every strategy's AdamW that no flag decides, under their names in DeepSpeed's `optimizer.params`.
ADAMW = {"betas": [0.9, 0.999], "bias_correction": True, "adam_w_mode": True, "amsgrad": False, "torch_adam": True}
# Settings of every strategy's fp16 loss scaling, under their names in DeepSpeed's `fp16`.
LOSS_SCALING = {"loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 2000, "hysteresis": 1,
                "consecutive_hysteresis": False, "auto_cast": False, "fp16_master_weights_and_grads": False}


def check_optimizer(config: dict[str, Any], arguments: Arguments) -> None:
    """Refuse any optimizer but every strategy's AdamW, and any schedule: --lr_scheduler decides it."""
    if config.get("scheduler"):
        raise InputError(f"{WHERE}scheduler is set, but the schedule comes from --lr_scheduler; take it out")
    optimizer = config.get("optimizer", {})
    if str(optimizer.get("type", "AdamW")).lower() != "adamw":
        raise InputError(f"{WHERE}optimizer.type is {shown(optimizer['type'])}, but every strategy trains with AdamW; "
                         "take it out")
    refuse_other("optimizer.legacy_fusion", optimizer.get("legacy_fusion", False), "every strategy's AdamW has", False)
    flags = {"lr": "learning_rate", "eps": "adam_epsilon", "weight_decay": "weight_decay",
             "max_grad_norm": "max_grad_norm"}
    for key, found in (get_setting(config, "optimizer.params") or {}).items():
        if key in flags:
            refuse_other(f"optimizer.params.{key}", found, f"--{flags[key]} says", getattr(arguments, flags[key]))
        elif key in ADAMW:
            refuse_other(f"optimizer.params.{key}", found, "every strategy's AdamW has", ADAMW[key])
        else:
            raise InputError(f"{WHERE}optimizer.params.{key} is {shown(found)}, but every strategy's AdamW has no such "
                             "setting; take it out")


def check_precision(config: dict[str, Any], precision: str, dtype: str) -> None:
    """Refuse settings that contradict --precision.

    Args:
        dtype: the type of parameters and gradients.
    """
    blocks = {key: parsed_block(config, key) for key in ("fp16", "bf16", "bfloat16")}
    is_on = {key: block.enabled for key, block in blocks.items()}
    is_on["torch_autocast"] = config.get("torch_autocast", {}).get("enabled", False) is not False
    for key in filter(is_on.get, is_on):
        raise InputError(f"{WHERE}{key}.enabled is true, but precision comes from --precision; take it out")
    for key in ("bf16", "bfloat16"):
        for name in blocks[key].model_fields_set:
            default = type(blocks[key]).model_fields[name].default
            refuse_other(f"{key}.{name}", getattr(blocks[key], name), f"--precision {precision} needs", default)
    if precision == "fp16":
        for name, found in config.get("fp16", {}).items():
            if name != "enabled":
                refuse_other(f"fp16.{name}", found, "every strategy's loss scaling has",
                             LOSS_SCALING.get(name, "no such setting"))
    for key in ("communication_data_type", "data_types.grad_accum_dtype", "data_types.param_dtype",
                "data_types.buffer_dtype"):
        refuse_other(key, get_setting(config, key) or dtype, f"with --precision {precision} it is", dtype)


def check_offload(zero: dict[str, Any], offload: bool) -> None:
    """Refuse settings that contradict --offload."""
    for key in ("offload_optimizer", "offload_param", "cpu_offload", "cpu_offload_param"):
        value = zero.get(key)
        device = value.get("device", "unsaid") if isinstance(value, dict) else "cpu" if value else "none"
        agreeing = ("cpu", "auto", "unsaid") if offload and key == "offload_optimizer" else ("none", "auto")
        if value is not None and device not in agreeing:
            raise InputError(f"{WHERE}zero_optimization.{key} is {shown(value)}; take it out, zero.py --offload "
                             "decides what is kept on the CPU")


def check_second_copy(arguments: ZeroArguments, devices: int) -> None:
    """Refuse a --secondary_shard_group in a stage without shards of parameters, or that does not divide the devices."""
    if arguments.secondary_shard_group and arguments.stage != 3:
        raise InputError(f"--secondary_shard_group: in stage {arguments.stage} each device holds all parameters, so "
                         "there is nothing to keep a second copy of; use --stage 3")
    group_size("secondary_shard_group", arguments.secondary_shard_group, devices)


def refuse_other(key: str, found: Any, who_says: str, value: Any) -> None:
    """Raise an `InputError` if a setting differs from the value that flags or strategies give it."""
    if found != value or isinstance(found, bool) != isinstance(value, bool):
        raise InputError(f"{WHERE}{key} is {shown(found)}, but {who_says} {shown(value)}; take it out or let "
                         "them agree")
