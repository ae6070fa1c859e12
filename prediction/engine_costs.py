"""Each engine's own costs, from steps of its script: on one device, and on all of them for its exchanges."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from types import MappingProxyType

import numpy as np
from scipy.optimize import least_squares, root_scalar
from tqdm import tqdm

from measurement.environment import GIB
from measurement.table import read_rows
from prediction.calibration import RECOMPUTE, SMALLEST_RATIO, Calibration, Engine
from prediction.costs import FP32, Batch, Layer, PassCost
from prediction.events import simulate
from prediction.predict import issue
from prediction.setting import Setting
from workload.errors import InputError
from workload.launch import launcher
from workload.launch.gpus import only_gpu

# Of a run on one device: micro-batches, and samples in each. The first two tell apart what a micro-batch and a step
# cost, the last two what samples do. The first is that of a run on all devices, on each of them.
SHAPES = ((4, 4), (1, 4), (1, 16))
# The first steps of a process are slow. Where a step takes long, fewer are made.
UNTIMED, TIMED, FEWEST_UNTIMED, FEWEST_TIMED = 6, 8, 2, 4
TIMED_S = 2.0
MOST_DRIFT = 0.1  # of the machine, for a run to be corrected for its speed
OUTLIER = 0.1  # relative errors beyond this count less and less (soft L1)
LONGEST_EXCHANGE_S = 1.0
# name: script, flags
ENGINES = {"ddp": ("bert_baseline.py",), RECOMPUTE: ("bert_baseline.py", "--activation_checkpointing"),
           "hf_trainer": ("hf_trainer.py",),
           **{f"zero{stage}": ("zero.py", "--stage", str(stage)) for stage in (1, 2, 3)},
           "fsdp": ("fsdp.py",), "tensor_parallel": ("tensor_parallel.py",), "pipeline": ("pipeline.py",),
           "torch_pipeline": ("torch_pipeline.py",)}
EXCHANGES_LIKE = {RECOMPUTE: "ddp", "hf_trainer": "ddp"}  # whose exchanges are another engine's


@dataclass(frozen=True)
class EngineRun:
    """What one run of a script showed.

    Args:
        steps: each timed step's batch on one replica, and its seconds.
        peak_gib: of memory.
        power_w: of a device; None where it is not measured.
        tokens: of the largest micro-batch.
        product_s: see `product_s`; None if the machine was too unsteady to tell.
    """

    steps: list[tuple[Batch, float]]
    peak_gib: float
    tokens: int
    product_s: float | None
    power_w: float | None = None

    def at_speed(self, product_s: float) -> "EngineRun":
        """As it would have been on a machine whose matrix products take so long."""
        slower = product_s / self.product_s if self.product_s else 1.0
        return replace(self, steps=[(batch, taken * slower) for batch, taken in self.steps])


def product_s(run_folder: Path) -> float | None:
    """Seconds of a run's fixed matrix products, the mean over all ranks, before and after training.

    It tells how fast the machine was; None if before and after differ too much to tell of the time between.
    """
    run = json.loads((run_folder / "run.json").read_text(encoding="utf-8"))
    before, after = (statistics.mean(each["matrix_product_s"]) for each in (run["attempts"][-1], run["at_the_end"]))
    return (before + after) / 2 if abs(after / before - 1) < MOST_DRIFT else None


def measure_engines(flags: list[str], devices: int, step_s: float, bar: tqdm) -> dict[str, list[EngineRun]]:
    """Each engine's runs on one device, in each of `SHAPES`, so many at a time as there are devices.

    Args:
        step_s: about what a step of the largest shape takes.
    """
    free: SimpleQueue[dict[str, str]] = SimpleQueue()  # environments that show a run a GPU that no other uses
    for device in range(devices):
        free.put(only_gpu(device))

    def measure(name: str, micro_batches: int, size: int) -> EngineRun:
        own = ["--stages", "1"] if "pipeline" in name else []
        settings = free.get()
        try:
            return _run(name, own, flags, 1, Batch(micro_batches, size, 0), step_s, bar, settings)
        finally:
            free.put(settings)

    wanted = [(name, *shape) for name in ENGINES for shape in SHAPES]
    # The last ones have company to their end, too: alone, a process on shared cores is up to twice as fast.
    company = wanted[:devices - 1]
    with ThreadPoolExecutor(devices) as pool:  # threads that wait for processes
        found = list(pool.map(lambda each: measure(*each), wanted + company))
    count = len(SHAPES)
    return {name: found[count * place:count * (place + 1)] for place, name in enumerate(ENGINES)}


def _run(name: str, own: list[str], flags: list[str], devices: int, batch: Batch, step_s: float,
         bar: tqdm, settings: Mapping[str, str] = MappingProxyType({})) -> EngineRun:
    """Train some steps of one engine.

    Args:
        own: flags that say how it uses its devices.
        batch: of a replica; its length is the data's.
        settings: of the environment, besides what this process has.
    """
    timed, untimed = (int(np.clip(part * TIMED_S / step_s, fewest, most)) for part, fewest, most in (
        (1.0, FEWEST_TIMED, TIMED), (0.5, FEWEST_UNTIMED, UNTIMED)))
    script, *more = ENGINES[name]
    replicas = devices if not own else 1
    shape = ["--micro_batches", str(batch.micro_batches)] if "pipeline" in name else [
        "--micro_batch_size", str(batch.samples)]
    samples = replicas * batch.micro_batches * batch.samples
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, script, *more, *own, *flags, "--num_gpus", str(devices), *shape,
                   "--global_batch_size", str(samples), "--max_steps", str(untimed + timed), "--noise_scale_steps", "0",
                   "--profile_steps", "0", "--max_eval_examples", "4", "--output_dir", folder, "--run_name", "run"]
        environment = {name: value for name, value in os.environ.items() if name not in launcher.VARIABLES}
        environment |= settings
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], env=environment)
        if done.returncode:
            raise InputError(f"{script} on {devices} device{'s' * (devices > 1)}: "
                             f"{done.stderr.strip().splitlines()[-1]}")
        run = Path(folder, "run")
        steps, summary, product = read_rows(run / "steps.csv"), read_rows(run / "summary.csv")[0], product_s(run)
    bar.update()
    lengths = [round(tokens / samples) for tokens in np.diff([0.0, *(float(row["padded_tokens"]) for row in steps)])]
    return EngineRun([(replace(batch, length=length), float(row["step_s"]))
                      for row, length in zip(steps[untimed:], lengths[untimed:], strict=True)],
                     float(summary["peak_memory_gib"]), batch.samples * max(lengths), product,
                     float(summary["power_w"]) if summary["power_w"] else None)


def fit_engine(passes: Mapping[str, Mapping[str, PassCost]], update_s: float, parameters: int,
               layers: tuple[Layer, ...], runs: list[EngineRun]) -> Engine:
    """Fit a step = ratio x (its layers and the update by themselves) + micro-batches x micro_batch_s + step_s."""
    steps = [step for run in runs for step in run.steps]
    seconds = np.array([taken for _, taken in steps])
    alone = np.array([update_s + batch.micro_batches * sum(passes[layer.kind][kind].seconds(batch) for layer in layers
                                                for kind in ("forward", "backward")) for batch, _ in steps])
    terms = np.stack([alone, [batch.micro_batches for batch, _ in steps], np.ones(len(steps))], axis=1)
    terms /= seconds[:, None]
    # Noisy steps alone could say that passes cost nothing: then predictions would not depend on tokens at all.
    ratio, micro_batch_s, step_s = least_squares(
        lambda costs: terms @ costs - 1, [1.0, 0.0, 0.0], bounds=([SMALLEST_RATIO, 0, 0], np.inf), x_scale="jac",
        loss="soft_l1", f_scale=OUTLIER).x.tolist()
    small, *_, large = sorted(runs, key=lambda run: run.tokens)
    token_gib = max((large.peak_gib - small.peak_gib) / max(large.tokens - small.tokens, 1), 0.0)
    base = max(small.peak_gib - token_gib * small.tokens - 4 * FP32 * parameters / GIB, 0.0)
    return Engine(ratio, micro_batch_s, step_s, base, token_gib)


# ---------------------------------------------------------------------- exchanges

def exchange_settings(devices: int, layers: int, tensor_groups: tuple[int, ...]) -> dict[str, Setting]:
    """How each engine is run on all devices: as so many replicas, or as one in so many parts, if the model has them."""
    if devices == 1:
        return {}
    found = {name: Setting(name, devices, *SHAPES[0]) for name in ("ddp", "zero1", "zero2", "zero3", "fsdp")}
    if devices in tensor_groups:
        found["tensor_parallel"] = Setting("tensor_parallel", devices, *SHAPES[0], group=devices)
    if devices <= layers:
        found |= {name: Setting(name, devices, *SHAPES[0], pipeline_stages=devices, schedule="1f1b")
                  for name in ("pipeline", "torch_pipeline")}
    return found


def measure_exchanges(calibration: Calibration, flags: list[str], step_s: float, bar: tqdm) -> Calibration:
    """The calibration with each engine's seconds for an exchange, from its run on all devices."""
    engines = dict(calibration.engines)
    count = calibration.depth
    for name, setting in exchange_settings(calibration.devices, count, calibration.tensor_groups).items():
        own = {"tensor_parallel": ["--tensor_parallel", str(setting.devices)],
               "pipeline": ["--stages", str(setting.devices)],
               "torch_pipeline": ["--stages", str(setting.devices), "--schedule", "1f1b"]}.get(name, [])
        run = _run(name, own, flags, setting.devices, Batch(*SHAPES[0], 0), step_s, bar)
        run = run.at_speed(calibration.facts["matrix_product_s"])
        engines[name] = replace(engines[name], exchange_s=fit_exchange(calibration, setting, run.steps))
    for name, other in EXCHANGES_LIKE.items():
        engines[name] = replace(engines[name], exchange_s=engines[other].exchange_s)
    return replace(calibration, engines=engines)


def fit_exchange(calibration: Calibration, setting: Setting, steps: list[tuple[Batch, float]]) -> float:
    """The seconds that an exchange must cost for simulated steps to take as long as measured ones, in the median."""
    costs = calibration.costs(setting)

    def error(exchange_s: float) -> float:
        own = replace(costs, exchange_s=exchange_s)
        simulated = {batch: simulate(issue(calibration, setting, batch, own), own.slowdown, own.crowding)
                     for batch in {batch for batch, _ in steps}}
        return statistics.median(simulated[batch] / taken - 1 for batch, taken in steps)

    if error(0.0) >= 0 or error(LONGEST_EXCHANGE_S) <= 0:
        return 0.0
    return float(root_scalar(error, bracket=(0.0, LONGEST_EXCHANGE_S), xtol=1e-6).root)
