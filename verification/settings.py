"""The settings to verify: every strategy that fits so many devices, and the one-device runs it is compared with."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workload.argument_checks import divisors
from workload.batches import PAD_TO_MULTIPLE_OF
from workload.pipelines.dealing import TORCH_NAMES, can_run

PROJECT = Path(__file__).resolve().parents[1]
STEPS = 6
MICRO_BATCH_SIZE = 4
MAX_GRAD_NORM = 1.0
RECOMPUTE = "--activation_checkpointing"
ZERO_2 = PROJECT / "experiments" / "zero2.json"
# Nothing is random but the order of samples, which the seed decides; gradients are clipped.
EXACT = ("--max_steps", str(STEPS), "--precision", "fp32", "--dropout", "0", "--learning_rate", "3e-5",
         "--warmup_steps", "0", "--max_grad_norm", str(MAX_GRAD_NORM), "--noise_scale_steps", "1",
         "--max_eval_examples", "16", "--save_model")


@dataclass(frozen=True)
class Setting:
    """A command to verify."""

    name: str
    script: str
    flags: tuple[str, ...]
    devices: int
    devices_a_process: int = 1
    micro_batch_size: int = MICRO_BATCH_SIZE  # of a process, whose gradients the noise scale samples

    @property
    def processes(self) -> int:
        return self.devices // self.devices_a_process


def micro_batches(devices: int) -> int:
    """Micro-batches of a step over all devices: at least 8, and 2 for each device."""
    return devices * max(2, math.ceil(8 / devices))


def batch_flags(devices: int) -> tuple[str, ...]:
    """The global batch of every setting and reference."""
    return "--global_batch_size", str(MICRO_BATCH_SIZE * micro_batches(devices))


def references(devices: int) -> list[Setting]:
    """One device with three sizes of micro-batch, whose differences are rounding; the first is the reference.

    Among them is what all devices take in a forward pass together, as DataParallel's one process does.
    """
    batch = micro_batches(devices)
    parts = sorted({1, devices}) + [number for number in divisors(batch) if number not in (1, devices)]
    return [Setting(f"one device, micro-batches of {MICRO_BATCH_SIZE * part}", "bert_baseline.py",
                    ("--num_gpus", "1", "--micro_batch_size", str(MICRO_BATCH_SIZE * part)), 1,
                    micro_batch_size=MICRO_BATCH_SIZE * part) for part in parts[:3]]


def settings(devices: int, layers: int | None, has_gpus: bool, tensor_groups: Sequence[int] = (),
             max_length: int = 0) -> list[Setting]:
    """Every strategy and setting that fits.

    Args:
        layers: the model's transformer layers; None if it cannot be cut into stages.
        tensor_groups: the sizes of tensor groups that its layers can be split over.
        max_length: tokens of a sample, at most.
    """
    def setting(name: str, script: str, *flags: str) -> Setting:
        return Setting(f"{name} x {devices}", script, ("--num_gpus", str(devices), *flags), devices)

    size = "--micro_batch_size", str(MICRO_BATCH_SIZE)
    groups = [number for number in divisors(devices) if 1 < number < devices]
    found = [setting("DDP", "bert_baseline.py", *size)] if devices > 1 else []
    if has_gpus:
        found.append(Setting(f"DataParallel x {devices}", "data_parallel.py", ("--num_gpus", str(devices), *size),
                             devices, devices, MICRO_BATCH_SIZE * devices))
    found += [setting(f"ZeRO-{stage}", "zero.py", "--stage", str(stage), *size) for stage in range(4)]
    found += [setting("ZeRO-3 offload", "zero.py", "--stage", "3", "--offload", *size),
              setting("FSDP", "fsdp.py", *size),
              setting("FSDP no reshard", "fsdp.py", "--reshard_after_forward", "false", *size),
              *(setting(f"ZeRO-3 hpZ in groups of {group}", "zero.py", "--stage", "3", "--secondary_shard_group",
                        str(group), *size) for group in groups),
              *(setting(f"FSDP in groups of {group}", "fsdp.py", "--shard_group", str(group), *size)
                for group in groups),
              setting("HF Trainer", "hf_trainer.py", *size),
              setting("HF Trainer ZeRO-2", "hf_trainer.py", "--deepspeed_config", str(ZERO_2), *size),
              setting("DDP recompute", "bert_baseline.py", RECOMPUTE, *size),
              setting("ZeRO-3 recompute", "zero.py", "--stage", "3", RECOMPUTE, *size),
              setting("FSDP recompute", "fsdp.py", RECOMPUTE, *size)]
    found += _tensor_parallel(devices, tensor_groups, max_length, "cuda" if has_gpus else "cpu")
    return found + (_pipelines(devices, layers) if layers else [])


def _tensor_parallel(devices: int, groups: Sequence[int], max_length: int, device: str) -> list[Setting]:
    found = []
    for group in (number for number in groups if number > 1 or devices == 1):
        replicas = devices // group
        kinds = [""]
        if group > 1 and max_length % group == 0 == PAD_TO_MULTIPLE_OF[device] % group:
            kinds.append("sequence")
        kinds += [f"{kind} FSDP".strip() for kind in kinds] if replicas > 1 else []
        for kind in kinds:
            flags = ["--sequence_parallel"] * ("sequence" in kind) + ["--shard_replicas"] * ("FSDP" in kind)
            shape = f"{replicas} x {group}" if replicas > 1 else f"x {group}"
            found.append(Setting(" ".join(["tensor parallel", *kind.split(), shape]), "tensor_parallel.py",
                                 ("--num_gpus", str(devices), "--tensor_parallel", str(group), *flags,
                                  "--micro_batch_size", str(MICRO_BATCH_SIZE)), devices))
    return found


def _pipelines(devices: int, layers: int) -> list[Setting]:
    found = []
    for stages in divisors(devices):
        replicas = devices // stages
        if stages > layers or stages == 1 and devices > 1:
            continue
        batches = micro_batches(devices) // replicas
        shape = f"{replicas} x {stages}" if replicas > 1 else f"x {stages}"
        flags = "--num_gpus", str(devices), "--stages", str(stages), "--micro_batches", str(batches)
        found.append(Setting(f"DeepSpeed pipeline {shape}", "pipeline.py", flags, devices))
        found.append(Setting(f"DeepSpeed pipeline recompute {shape}", "pipeline.py", (*flags, RECOMPUTE), devices))
        for name, (_, pieces) in TORCH_NAMES.items():
            if stages * pieces <= layers and can_run(name, stages, batches) and (stages > 1 or pieces == 1):
                found.append(Setting(f"PyTorch {name} {shape}", "torch_pipeline.py",
                                     (*flags, "--schedule", name), devices))
    return found
