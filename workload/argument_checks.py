"""Refuses flags before anything is loaded: out of range, contradicting each other, or given but without effect.

Defaults never contradict anything: only flags that were *given* are compared.
"""

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from workload.errors import InputError

if TYPE_CHECKING:
    from workload.arguments import Arguments  # which imports this module

OF_ONE_TASK = {"doc_stride": "squad_v2", "answerable_only": "squad_v2", "eval_mismatched_file": "mnli"}


def check_arguments(arguments: "Arguments") -> None:
    """Check a command's flags.

    Raises:
        InputError: names the first flag that is refused.
    """
    # --sample false, or --resume never, asks for nothing.
    given = {name for name in arguments.given
             if getattr(arguments, name) is not False and getattr(arguments, name) != "never"}

    def refuse_together(first: str, second: str, instead: str) -> None:
        if {first, second} <= given:
            raise InputError(f"--{first} and --{second} contradict each other; {instead}")

    refuse_together("sample", "train_file", "give one of them")
    refuse_together("sample", "eval_file", "give one of them")
    refuse_together("sample", "eval_mismatched_file", "give one of them")
    refuse_together("max_steps", "epochs", "give one of them")
    refuse_together("overwrite", "resume", "give one of them")
    if arguments.resume != "never" and arguments.profile_steps:
        raise InputError("--resume: only an uninterrupted run can be profiled; leave --profile_steps out to resume")
    for one, other in (("train_file", "eval_file"), ("eval_file", "train_file")):
        if one in given and other not in given:
            raise InputError(f"--{one} needs --{other} beside it: both from files, or both from the Hub")
    if "eval_mismatched_file" in given and "eval_file" not in given:
        raise InputError("--eval_mismatched_file needs --train_file and --eval_file beside it")
    for name, task in OF_ONE_TASK.items():
        if name in given and arguments.task != task:
            raise InputError(f"--{name} would be ignored by --task {arguments.task}; it is for --task {task}")
    if arguments.lr_scheduler == "constant" and arguments.warmup_steps:
        raise InputError("--warmup_steps would be ignored by --lr_scheduler constant; use linear, or leave it out")

    if arguments.tf32 and arguments.precision not in (None, "fp32"):
        raise InputError(f"--tf32 would be ignored by --precision {arguments.precision}; use --precision fp32")

    if arguments.report_to:
        check_tracker(arguments.report_to)

    refuse_together("target_f1", "target_loss", "give one of them")
    if arguments.measure == "throughput":
        for name in ("noise_scale_steps", "profile_steps"):
            if getattr(arguments, name) and name in given:
                raise InputError(f"--{name} would be ignored by --measure throughput; leave one of them out")
        arguments.noise_scale_steps = 0

    at_least = {"max_train_examples": 1, "max_eval_examples": 1, "max_seq_length": 8, "doc_stride": 0,
                "global_batch_size": 1, "micro_batch_size": 1, "epochs": 1, "max_steps": 1, "warmup_steps": 0,
                "weight_decay": 0, "num_gpus": 1, "cpu_threads": 1, "seed": 0, "eval_steps": 1,
                "reference_batch_size": 1, "noise_scale_steps": 0, "profile_steps": 0, "dropout": 0, "stages": 1,
                "micro_batches": 1, "checkpoint_steps": 1, "shard_group": 2, "secondary_shard_group": 2,
                "tensor_parallel": 1}
    for name, smallest in at_least.items():
        value = getattr(arguments, name, None)
        if value is not None and not value >= smallest:
            raise InputError(f"--{name} {value}: must be at least {smallest}")
    for name in ("learning_rate", "max_grad_norm", "adam_epsilon", "target_f1", "target_loss", "peak_tflops",
                 "hang_timeout_s"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"--{name} {value}: must be a number above 0")
    if arguments.dropout is not None and not arguments.dropout < 1:
        raise InputError(f"--dropout {arguments.dropout}: must be below 1")
    if arguments.target_f1 is not None and arguments.target_f1 > 100:
        raise InputError(f"--target_f1 {arguments.target_f1}: F1 is in percent, at most 100")
    name = arguments.run_name
    if name is not None and (name in ("", ".", "..") or os.path.basename(name) != name):
        raise InputError(f"--run_name {name!r}: must be the plain name of a folder; --output_dir says where")


def divisors(number: int) -> list[int]:
    """From 1 to the number itself."""
    return [each for each in range(1, number + 1) if number % each == 0]


def group_size(flag: str, size: int | None, devices: int) -> int:
    """Devices in each group that a flag asks for; without the flag all of them.

    Raises:
        InputError: the devices cannot be divided into such groups; says what fits.
    """
    if size is None or devices % size == 0:
        return size or devices
    fitting = [str(number) for number in divisors(devices) if number > 1]
    raise InputError(f"--{flag} {size}: {devices} device{'s' * (devices > 1)} cannot be divided into groups of {size}; "
                     + (f"use {' or '.join(fitting)}" if fitting else "leave it out"))


def check_tracker(name: str) -> None:
    """Refuse a tracker that cannot be used.

    Raises:
        InputError: its package is missing, or nobody is logged in.
    """
    if find_spec(name) is None:
        raise InputError(f"--report_to {name}: the package {name} is not installed; python -m pip install {name}")
    if name == "wandb" and os.environ.get("WANDB_MODE") not in ("offline", "disabled"):
        import wandb

        if not wandb.api.api_key:
            raise InputError("--report_to wandb: nobody is logged in; run wandb login, or set WANDB_MODE=offline")
