"""Which strategy for so many devices: every setting predicted, the best of each strategy, and how sure that is."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from measurement.table import read_rows
from prediction.calibration import Calibration
from prediction.links import Links
from prediction.predict import Prediction, memory_gib, predict
from prediction.search import settings
from prediction.setting import Setting

ERRORS = Path(__file__).with_name("errors.csv")
COVERED = 0.9  # of the errors measured, which a band covers
SEARCHED, SHOWN = 2, 20  # batches that a setting is predicted for: while searching, and for the best ones
MOST_DEVICES = 1024


@dataclass(frozen=True)
class Band:
    """By how much predictions may be off, in percent of what is predicted: nine in ten of those measured were not."""

    throughput_pct: float
    memory_pct: float


@dataclass(frozen=True)
class Option:
    """A setting, what it needs, and what it does.

    Args:
        prediction: None if it does not fit.
        needed_gib: on the device that needs most.
    """

    setting: Setting
    needed_gib: float
    prediction: Prediction | None

    @property
    def rate(self) -> float:
        """Samples a second; 0 if it does not fit."""
        return self.prediction.throughput_samples_per_s if self.prediction else 0.0


@dataclass(frozen=True)
class Plan:
    """All settings for so many devices.

    Args:
        memory_gib: of a device.
        best: by strategy, the fastest setting that fits, or else the one that needs least memory; the fastest first.
        would_fit: by strategy of which nothing fits, the devices on which something does; None if up to 1,024 none do.
    """

    devices: int
    global_batch_size: int
    memory_gib: float
    band: Band
    options: list[Option]
    best: dict[str, Option]
    would_fit: dict[str, int | None]


def read_band(shares_cores: bool, path: Path = ERRORS) -> Band:
    """The band from errors measured by `benchmarks.prediction`, on processes that share cores or on those that do not.

    Errors of runs whose machine drifted are not among them.
    """
    rows = [row for row in read_rows(path) if row["is_steady"] == "True"]
    rows = [row for row in rows if (int(row["devices"]) > int(row["cores"])) == shares_cores] or rows
    return Band(*(covering(float(row[f"{name}_error_pct"]) for row in rows) for name in ("throughput", "memory")))


def covering(errors: Iterable[float]) -> float:
    """What nine in ten of the errors are within."""
    sizes = sorted(map(abs, errors))
    return sizes[math.ceil(COVERED * len(sizes)) - 1]


def plan(calibration: Calibration, devices: int, global_batch_size: int, links: Links, memory: float, band: Band,
         done: Callable[[], object] = lambda: None) -> Plan:
    """Predict all settings; the best of each strategy for more batches than the others.

    Args:
        memory: of a device, in GiB.
        done: called after each setting.
    """
    options = []
    for setting in all_settings(calibration, devices, global_batch_size):
        needed = memory_gib(calibration, setting, max(calibration.lengths))
        fits = needed * (1 + band.memory_pct / 100) <= memory
        options.append(Option(setting, needed, predict(calibration, setting, SEARCHED, links=links) if fits else None))
        done()
    found = {base: replace(option, prediction=predict(calibration, option.setting, SHOWN, links=links))
             if option.prediction else option for base, option in best_of_each(options).items()}
    options = [next((better for better in found.values() if better.setting == option.setting), option)
               for option in options]
    best = dict(sorted(found.items(), key=lambda item: -item[1].rate))
    lacking = {base: would_fit(calibration, base, devices, global_batch_size, memory, band)
               for base, option in best.items() if not option.prediction}
    return Plan(devices, global_batch_size, memory, band, options, best, lacking)


def all_settings(calibration: Calibration, devices: int, global_batch_size: int) -> list[Setting]:
    found = settings(devices, global_batch_size, calibration.depth, calibration.tensor_groups)
    return [setting for setting in found
            if not setting.shares_tokens or calibration.multiple % setting.tensor_group == 0]


def best_of_each(options: Sequence[Option]) -> dict[str, Option]:
    """By strategy, the fastest setting that fits, or else the one that needs least memory."""
    found: dict[str, Option] = {}
    for option in options:
        other = found.get(option.setting.base)
        if other is None or (option.rate, -option.needed_gib) > (other.rate, -other.needed_gib):
            found[option.setting.base] = option
    return found


def largest_micro_batches(options: Sequence[Option]) -> dict[str, int]:
    """By strategy, the samples of the largest micro-batch that fits, without computing activations again."""
    found: dict[str, int] = {}
    for option in options:
        if option.prediction and not option.setting.recomputes:
            size = option.setting.micro_batch_size
            found[option.setting.base] = max(size, found.get(option.setting.base, 0))
    return found


def verdict(best: Mapping[str, Option], band: Band, name: Callable[[Setting], str]) -> str:
    """One sentence: the fastest strategy, if it is ahead by more than predictions may be off; else those it ties with.

    Args:
        name: of a setting, as users know it.
    """
    fitting = [option for option in best.values() if option.prediction]
    if not fitting:
        return "Nothing fits."
    first, *others = fitting
    close = [option for option in others if first.rate / option.rate - 1 <= band.throughput_pct / 100]
    if not others:
        return f"Only {name(first.setting)} fits."
    if not close:
        ahead = 100 * (first.rate / others[0].rate - 1)
        return (f"{name(first.setting)} is the fastest, {ahead:.0f} % ahead of {name(others[0].setting)}; nine in ten "
                f"predictions were off by at most {band.throughput_pct:.0f} %.")
    names = [name(option.setting) for option in (first, *close)]
    return (f"No strategy is clearly the fastest: {', '.join(names[:-1])} and {names[-1]} lie within the "
            f"{band.throughput_pct:.0f} % by which nine in ten predictions were off at most.")


def would_fit(calibration: Calibration, base: str, devices: int, global_batch_size: int, memory: float,
              band: Band) -> int | None:
    """The smallest doubling of devices on which a strategy fits, if the batch is `grown`; None up to 1,024."""
    while (devices := 2 * devices) <= MOST_DEVICES:
        batch = grown(global_batch_size, devices)
        if any(memory_gib(calibration, setting, max(calibration.lengths)) * (1 + band.memory_pct / 100) <= memory
               for setting in all_settings(calibration, devices, batch) if setting.base == base):
            return devices
    return None


def grown(batch: int, devices: int) -> int:
    """The smallest batch, of at least this one, that gives each device as many samples."""
    return -(-batch // devices) * devices
