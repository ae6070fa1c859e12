"""Every setting of every strategy for so many devices and one global batch."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace

from prediction.setting import Setting
from workload.argument_checks import divisors
from workload.pipelines.dealing import TORCH_NAMES, can_run

WHOLE_MODELS = ("ddp", "zero1", "zero2", "zero3", "fsdp", "hf_trainer")


def settings(devices: int, global_batch_size: int, layers: int, tensor_groups: Sequence[int] = (),
             shares_tokens: bool = True) -> Iterator[Setting]:
    """All that the scripts can run: micro-batches, stages, schedules, groups, each with and without recomputing.

    Args:
        layers: the model's repeated ones.
        tensor_groups: sizes of groups that its layers can be split over.
        shares_tokens: whether --sequence_parallel fits the lengths of batches.
    """
    for shape in _shapes(devices, layers, tensor_groups, shares_tokens):
        if global_batch_size % shape.replicas:
            continue
        share = global_batch_size // shape.replicas
        for count in divisors(share):
            found = replace(shape, micro_batches=count, micro_batch_size=share // count)
            if shape.base != "torch_pipeline":
                yield found
                yield replace(found, recomputes=True)
            elif can_run(shape.schedule, shape.pipeline_stages, count):
                yield found
                if shape.schedule not in ("zero_bubble", "zbv"):  # which cannot
                    yield replace(found, recomputes=True)


def _shapes(devices: int, layers: int, tensor_groups: Sequence[int], shares_tokens: bool) -> Iterator[Setting]:
    """Strategies with their groups and stages, of any micro-batch."""
    groups = [each for each in divisors(devices) if 1 < each < devices]
    for base in WHOLE_MODELS:
        yield Setting(base, devices, 1, 1)
        if base in ("fsdp", "zero3"):
            yield from (Setting(base, devices, 1, 1, group=group) for group in groups)
    if devices > 1:
        yield Setting("fsdp", devices, 1, 1, reshards=False)
    for group in tensor_groups:
        if group > 1 and devices % group == 0:
            for tokens in (False, True)[:1 + shares_tokens]:
                for shards in (False, True)[:1 + (group < devices)]:
                    yield Setting("tensor_parallel", devices, 1, 1, group=group, shares_tokens=tokens,
                                  shards_replicas=shards)
    for stages in divisors(devices):
        if 1 < stages <= layers:
            yield Setting("pipeline", devices, 1, 1, stages, "1f1b")
        for schedule, (_, pieces) in TORCH_NAMES.items():
            if stages > 1 and stages * pieces <= layers:
                yield Setting("torch_pipeline", devices, 1, 1, stages, schedule)


def command(setting: Setting, common: Sequence[str]) -> str:
    """The script, the flags that all settings have in common, and those of this one."""
    flags = {"--num_gpus": setting.devices}
    if setting.base.startswith("zero"):
        script = "zero.py"
        flags |= {"--stage": setting.base[-1], "--secondary_shard_group": setting.group}
    elif setting.base == "fsdp":
        script = "fsdp.py"
        flags |= {"--shard_group": setting.group, "--reshard_after_forward": None if setting.reshards else "false"}
    elif setting.base == "tensor_parallel":
        script = "tensor_parallel.py"
        flags |= {"--tensor_parallel": setting.group, "--sequence_parallel": "" if setting.shares_tokens else None,
                  "--shard_replicas": "" if setting.shards_replicas else None}
    elif setting.base in ("pipeline", "torch_pipeline"):
        script = f"{setting.base}.py"
        flags |= {"--stages": setting.pipeline_stages, "--micro_batches": setting.micro_batches,
                  "--schedule": setting.schedule if setting.base == "torch_pipeline" else None}
    else:
        script = {"ddp": "bert_baseline.py", "hf_trainer": "hf_trainer.py"}[setting.base]
    flags |= {"--micro_batch_size": setting.micro_batch_size} if "--micro_batches" not in flags else {}
    flags |= {"--global_batch_size": setting.global_batch_size,
              "--activation_checkpointing": "" if setting.recomputes else None}
    return " ".join([f"python {script}", *map(shlex.quote, common),
                     *(f"{name} {value}".strip() for name, value in flags.items() if value is not None)])
