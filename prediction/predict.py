"""Step time, throughput, communication, idle time and memory of one setting, from a calibration."""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from measurement.pipelines.spans import Span, bubble_pct
from prediction import memory, recipes
from prediction.calibration import Calibration
from prediction.costs import FP32, Batch, Costs, Layer
from prediction.events import COMMUNICATION, COMPUTE, START, Work, simulate
from prediction.links import Links
from prediction.pipelines import pipeline
from prediction.schedules import ORDERS
from prediction.setting import Setting
from workload.pipelines.dealing import TORCH_NAMES, cut_costs, pieces_of

GIB, MIB = 2**30, 2**20
SORTED_BATCHES = 50  # batches sorted by length together, as in `workload.batches`
STEPS = 20  # whose mean is predicted
MASK = 8  # bytes a token of the mask, as it is sent


@dataclass(frozen=True)
class Prediction:
    """Of one setting, per step; in the units of summary.csv.

    Args:
        bubble_pct: of pipelines.
        wire_mib_per_step: of the device that sends most.
        timeline: of the last step.
    """

    step_s: float
    throughput_samples_per_s: float
    exposed_communication_s_per_step: float
    bubble_pct: float | None
    wire_mib_per_step: float
    peak_memory_gib: float
    timeline: list[Work]


def predict(calibration: Calibration, setting: Setting, steps: int = STEPS,
            links: Links | None = None) -> Prediction:
    """Simulate some steps on batches of the task's own lengths, grouped as the runs group them.

    Args:
        links: among the setting's devices. (default: those measured)

    Raises:
        KeyError: the calibration has no links for groups of this size, or no such engine.
    """
    lengths = batch_lengths(calibration, setting.global_batch_size, steps)
    costs = calibration.costs(setting, links)
    simulated: dict[int, tuple[float, list[Work]]] = {}
    for length in dict.fromkeys(lengths):
        batch = Batch(setting.micro_batches, setting.micro_batch_size, length)
        work = issue(calibration, setting, batch, costs)
        simulated[length] = simulate(work, costs.slowdown, costs.crowding), work
    mean = statistics.mean(simulated[length][0] for length in lengths)
    exposed = statistics.mean(exposed_s(simulated[length][1]) for length in lengths)
    work = simulated[lengths[-1]][1]
    sent: dict[int, float] = {}
    for each in work:
        for device, _ in each.streams:
            sent[device] = sent.get(device, 0.0) + each.bytes
    return Prediction(mean, setting.global_batch_size / mean, exposed,
                      bubble_pct(spans(work)) if setting.schedule else None, max(sent.values()) / MIB,
                      memory_gib(calibration, setting, max(lengths)), work)


def batch_lengths(calibration: Calibration, global_batch_size: int, steps: int) -> list[int]:
    """Padded lengths of so many batches, drawn as `workload.batches` draws them."""
    draw = random.Random(0)
    samples = draw.choices(calibration.lengths, k=global_batch_size * max(SORTED_BATCHES, steps))
    batches = []
    for first in range(0, len(samples), global_batch_size * SORTED_BATCHES):
        stretch = sorted(samples[first:first + global_batch_size * SORTED_BATCHES])
        batches += [max(stretch[at:at + global_batch_size]) for at in range(0, len(stretch), global_batch_size)]
    multiple = calibration.multiple
    return [min(-(-length // multiple) * multiple, calibration.max_length) for length in draw.sample(batches, steps)]


def deal_out(layers: Sequence[Layer], setting: Setting) -> tuple[list[Sequence[Layer]], list[int]]:
    """The layers of each piece, cut as the scripts cut them, and the stage of each piece."""
    stages = setting.pipeline_stages
    pieces = stages * TORCH_NAMES[setting.schedule][1]
    stage_of = {piece: stage for stage in range(stages) for piece in pieces_of(setting.schedule, stage, stages)}
    ends = cut_costs([layer.step_cost for layer in layers], pieces)
    return [layers[begin:end] for begin, end in ends], [stage_of[piece] for piece in range(pieces)]


def issue(calibration: Calibration, setting: Setting, batch: Batch, costs: Costs) -> list[Work]:
    """The work of one step."""
    layers, devices = calibration.layers, setting.devices
    match setting.base:
        case "ddp" | "hf_trainer":
            return recipes.ddp(layers, batch, costs, devices)
        case "zero0" | "zero1" | "zero2" | "zero3":
            return recipes.zero(layers, batch, costs, devices, int(setting.base[-1]), setting.group)
        case "fsdp":
            return recipes.fsdp(layers, batch, costs, devices, setting.reshards, setting.group,
                                FP32 // 2 if setting.gathers_bf16 else FP32)
        case "tensor_parallel":
            group = setting.tensor_group
            return recipes.tensor_parallel(recipes.shared_out(layers, group), batch, costs, group, setting.replicas,
                                           calibration.hidden, calibration.value_bytes, setting.shares_tokens,
                                           setting.shards_replicas)
    pieces, stage_of = deal_out(layers, setting)
    actions = ORDERS[setting.schedule](setting.pipeline_stages, setting.micro_batches)
    message = batch.tokens * (calibration.value_bytes * calibration.hidden + MASK)
    return pipeline(pieces, stage_of, actions, batch, costs, setting.replicas, message, calibration.tied_bytes)


def memory_gib(calibration: Calibration, setting: Setting, length: int) -> float:
    """Peak memory of the device that needs most."""
    engine, layers = calibration.engine(setting), calibration.layers
    activations = GIB * engine.token_gib * setting.micro_batch_size * length
    match setting.base:
        case "ddp" | "hf_trainer":
            needed = memory.ddp(layers, activations)
        case "zero0" | "zero1" | "zero2" | "zero3":
            needed = memory.zero(layers, activations, setting.devices, int(setting.base[-1]), setting.group)
        case "fsdp":
            needed = memory.fsdp(layers, activations, setting.group or setting.devices, setting.reshards)
        case "tensor_parallel":
            needed = memory.tensor_parallel(recipes.shared_out(layers, setting.tensor_group), activations,
                                            setting.replicas if setting.shards_replicas else 1)
        case _:
            needed = _pipeline_memory(calibration, setting, activations)
    return engine.base_gib + needed / GIB


def _pipeline_memory(calibration: Calibration, setting: Setting, activations: float) -> float:
    """Bytes of the largest stage, whose activations are its part of the repeated layers'."""
    pieces, stage_of = deal_out(calibration.layers, setting)
    actions = ORDERS[setting.schedule](setting.pipeline_stages, setting.micro_batches)
    held = [[layer for place, piece in enumerate(pieces) if stage_of[place] == stage for layer in piece]
            for stage in range(setting.pipeline_stages)]
    share = [activations * sum(layer.kind == "layer" for layer in each) / calibration.depth for each in held]
    return memory.pipeline(held, share, [memory.under_way(queue) for queue in actions])


def spans(work: Sequence[Work]) -> list[Span]:
    """A predicted step as spans, to be drawn as measured ones are."""
    names = {"send/receive": "send", "all-reduce": "reduce", "reduce-scatter": "reduce", "all-gather": "load"}
    return [Span(0, device, names.get(each.kind, each.kind), each.number, each.start, each.end)
            for each in work for device, _ in each.streams if each.end > each.start and each.kind != START]


def exposed_s(work: Sequence[Work]) -> float:
    """Seconds of a step in which a device communicates and does not compute; the mean over devices."""
    devices = {device for each in work for device, _ in each.streams}
    return statistics.mean(_exposed_on(device, work) for device in devices)


def _exposed_on(device: int, work: Sequence[Work]) -> float:
    edges = []
    for each in work:
        for stream in each.streams if each.kind != START else ():
            if stream[0] == device and each.end > each.start:
                edges += [(each.start, stream[1], 1), (each.end, stream[1], -1)]
    running, exposed, before = {COMPUTE: 0, COMMUNICATION: 0}, 0.0, 0.0
    for moment, kind, change in sorted(edges):
        if running[COMMUNICATION] and not running[COMPUTE]:
            exposed += moment - before
        running[kind] += change
        before = moment
    return exposed
