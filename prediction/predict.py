"""Step time, throughput, communication, idle time and memory of one setting, from a calibration."""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from prediction import memory, recipes
from prediction.calibration import Calibration
from prediction.costs import FP32, Batch, Layer
from prediction.events import COMMUNICATION, COMPUTE, Work, simulate

GIB, MIB = 2**30, 2**20
SORTED_BATCHES = 50  # batches sorted by length together, as in `workload.batches`
STEPS = 20  # whose mean is predicted
MASK = 8  # bytes a token of the mask, as it is sent


@dataclass(frozen=True)
class Setting:
    """A strategy and its settings, in the names of summary.csv.

    Args:
        strategy: such as "ddp", "zero2", "fsdp_no_reshard", "pipeline".
        schedule: of a pipeline.
        actions: of a schedule that has no closed form; see `recipes.Actions`.
        stage_of: the stage of each piece, where stages have several.
        tensor_group: devices that share out each layer.
    """

    strategy: str
    devices: int
    micro_batches: int
    micro_batch_size: int
    pipeline_stages: int = 1
    schedule: str = ""
    actions: recipes.Actions | None = None
    stage_of: tuple[int, ...] | None = None
    tensor_group: int = 1

    @property
    def replicas(self) -> int:
        return self.devices // self.pipeline_stages // self.tensor_group

    @property
    def global_batch_size(self) -> int:
        return self.replicas * self.micro_batches * self.micro_batch_size


@dataclass(frozen=True)
class Prediction:
    """Of one setting, per step; in the units of summary.csv."""

    step_s: float
    throughput_samples_per_s: float
    exposed_communication_s_per_step: float
    bubble_pct: float | None  # of pipelines
    wire_mib_per_step: float  # of the device that sends most
    peak_memory_gib: float
    timeline: list[Work]  # of the last step


ENGINE_OF = {"ddp": "ddp", "fsdp": "fsdp", "fsdp_no_reshard": "fsdp", "pipeline": "pipeline",
             "torch_pipeline": "torch_pipeline", "tensor_parallel": "tensor_parallel",
             **{f"zero{stage}": f"zero{stage}" for stage in (1, 2, 3)}}


def predict(calibration: Calibration, setting: Setting, steps: int = STEPS, seed: int = 0) -> Prediction:
    """Simulate some steps on batches of the task's own lengths, grouped as the runs group them.

    Raises:
        KeyError: a strategy without a recipe.
    """
    lengths = batch_lengths(calibration, setting.global_batch_size, steps, seed)
    costs, pieces = calibration.costs(ENGINE_OF[setting.strategy]), cut(calibration.layers, setting)
    seconds, work, exposed = [], [], []
    simulated: dict[int, tuple[float, list[Work]]] = {}
    for length in lengths:
        if length not in simulated:
            work = issue(calibration, setting, Batch(setting.micro_batches, setting.micro_batch_size, length), pieces)
            simulated[length] = simulate(work, costs.slowdown), work
        taken, work = simulated[length]
        seconds.append(taken)
        exposed.append(exposed_s(work))
    sent: dict[int, float] = {}
    for each in work:
        for device, _ in each.streams:
            sent[device] = sent.get(device, 0.0) + each.bytes
    mean = statistics.mean(seconds)
    return Prediction(mean, setting.global_batch_size / mean, statistics.mean(exposed),
                      bubble_pct(work) if setting.schedule else None, max(sent.values()) / MIB,
                      memory_gib(calibration, setting, pieces, max(lengths)), work)


def batch_lengths(calibration: Calibration, global_batch_size: int, steps: int, seed: int) -> list[int]:
    """Padded lengths of so many batches, drawn as `workload.batches` draws them."""
    draw = random.Random(seed)
    samples = draw.choices(calibration.lengths, k=global_batch_size * max(SORTED_BATCHES, steps))
    batches = []
    for first in range(0, len(samples), global_batch_size * SORTED_BATCHES):
        stretch = sorted(samples[first:first + global_batch_size * SORTED_BATCHES])
        batches += [max(stretch[at:at + global_batch_size]) for at in range(0, len(stretch), global_batch_size)]
    multiple = calibration.multiple
    return [min(-(-length // multiple) * multiple, calibration.max_length) for length in draw.sample(batches, steps)]


def cut(layers: Sequence[Layer], setting: Setting) -> list[list[Layer]]:
    """The layers of each piece: repeated layers in equal parts, the embedding before and the head behind them."""
    count = len(setting.stage_of) if setting.stage_of else setting.pipeline_stages
    whole = [layer for layer in layers if layer.kind == "layer"]
    first = next(place for place, layer in enumerate(layers) if layer.kind == "layer")
    bounds = [round(number * len(whole) / count) for number in range(count + 1)]
    pieces = [whole[low:high] for low, high in zip(bounds, bounds[1:], strict=False)]
    pieces[0] = [*layers[:first], *pieces[0]]
    pieces[-1] = [*pieces[-1], *layers[first + len(whole):]]
    return pieces


def issue(calibration: Calibration, setting: Setting, batch: Batch, pieces: list[list[Layer]]) -> list[Work]:
    """The work of one step."""
    costs = calibration.costs(ENGINE_OF[setting.strategy])
    common = calibration.layers, batch, costs, setting.devices
    match setting.strategy:
        case "ddp":
            return recipes.ddp(*common)
        case "zero1" | "zero2" | "zero3":
            return recipes.zero(*common, stage=int(setting.strategy[-1]))
        case "fsdp" | "fsdp_no_reshard":
            return recipes.fsdp(*common, reshards=setting.strategy == "fsdp")
        case "tensor_parallel":
            return recipes.tensor_parallel(*common, calibration.hidden, FP32)
    if setting.actions:
        actions = setting.actions
    elif setting.schedule == "gpipe":
        actions = recipes.gpipe(setting.pipeline_stages, setting.micro_batches)
    else:
        actions = recipes.one_forward_one_backward(setting.pipeline_stages, setting.micro_batches)
    message = batch.tokens * (FP32 * calibration.hidden + MASK)
    stage_of = setting.stage_of or range(setting.pipeline_stages)
    return recipes.pipeline(pieces, stage_of, actions, batch, costs, setting.replicas, message)


def memory_gib(calibration: Calibration, setting: Setting, pieces: list[list[Layer]], length: int) -> float:
    """Peak memory of the device that needs most."""
    engine, layers = calibration.engines[ENGINE_OF[setting.strategy]], calibration.layers
    activations = GIB * engine.token_gib * setting.micro_batch_size * length
    match setting.strategy:
        case "ddp":
            needed = memory.ddp(layers, activations)
        case "zero1" | "zero2" | "zero3":
            needed = memory.zero(layers, activations, setting.devices, int(setting.strategy[-1]))
        case "fsdp" | "fsdp_no_reshard":
            needed = memory.fsdp(layers, activations, setting.devices, setting.strategy == "fsdp")
        case "tensor_parallel":
            needed = memory.tensor_parallel(layers, activations, setting.tensor_group)
        case _:
            stages = setting.pipeline_stages
            stage_of = setting.stage_of or range(stages)
            held = [[layer for place, piece in enumerate(pieces) if stage_of[place] == stage for layer in piece]
                    for stage in range(stages)]
            share = [activations * sum(layer.kind == "layer" for layer in each)
                     / sum(layer.kind == "layer" for layer in layers) for each in held]
            under_way = [setting.micro_batches if setting.schedule == "gpipe" else
                         min(setting.micro_batches, stages - stage) for stage in range(stages)]
            needed = memory.pipeline(held, share, under_way)
    return engine.base_gib + needed / GIB


def exposed_s(work: Sequence[Work]) -> float:
    """Seconds of a step in which a device communicates and does not compute; the mean over devices."""
    devices = {device for each in work for device, _ in each.streams}
    return statistics.mean(_exposed_on(device, work) for device in devices)


def _exposed_on(device: int, work: Sequence[Work]) -> float:
    edges = []
    for each in work:
        for stream in each.streams:
            if stream[0] == device and each.end > each.start:
                edges += [(each.start, stream[1], 1), (each.end, stream[1], -1)]
    running, exposed, before = {COMPUTE: 0, COMMUNICATION: 0}, 0.0, 0.0
    for moment, kind, change in sorted(edges):
        if running[COMMUNICATION] and not running[COMPUTE]:
            exposed += moment - before
        running[kind] += change
        before = moment
    return exposed


def bubble_pct(work: Sequence[Work]) -> float:
    """Share of a step without its update in which stages neither go forward nor backward, in percent."""
    passes = [each for each in work if each.kind in ("forward", "backward", "weight")]
    stages = len({each.streams[0][0] for each in passes})
    updates = sum(each.end - each.start for each in work if each.kind == "optimizer") / stages
    whole = max(each.end for each in work) - updates
    return 100 * (1 - sum(each.end - each.start for each in passes) / (stages * whole))
