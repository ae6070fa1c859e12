"""Trackers that people use, fed from the tables that a run writes: while it trains, or when it has finished."""

import logging
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from measurement.table import read_rows

PROJECT = "parallel-training-compared"  # in wandb
SUMMARY = "summary.csv"
TABLES = ("steps.csv", "evaluations.csv", "epochs.csv")


class Tracking:
    """One run in a tracker. Use it on rank 0, off the clock.

    Args:
        name: of the tracker, see --report_to.
        folder: of the run; tensorboard's events go there.
        flags: of the run, to be shown with it.
        after_step: rows up to this step have been sent before.
    """

    def __init__(self, name: str, folder: Path, flags: dict[str, Any], after_step: int = 0) -> None:
        from accelerate import tracking  # takes a second to import

        # Its own asks for accelerate's view of the processes, which would set threads and devices.
        tracking.logger = logging.getLogger(tracking.__name__)
        self.folder, self.sent = folder, after_step
        if name == "tensorboard":
            self.tracker: Any = tracking.TensorBoardTracker("tensorboard", folder)
        else:
            settings = {"console": "off", "quiet": True}
            self.tracker = tracking.WandBTracker(PROJECT, name=folder.name, dir=str(folder), settings=settings)
        self.tracker.main_process_only = False  # this is the main process; accelerate need not find out
        self.tracker.start()
        self.tracker.store_init_configuration({name: value for name, value in flags.items() if value is not None})

    def send(self) -> None:
        """Send what the tables have beyond the last step that was sent: one message a step, as trackers want it."""
        for step, values in sorted(_by_step(self.folder).items()):
            if step > self.sent:
                self.tracker.log(values, step=step)
                self.sent = step

    def finish(self) -> None:
        """Send the rest and the summary, if there is one, and close."""
        self.send()
        if (self.folder / SUMMARY).is_file():
            [row] = read_rows(self.folder / SUMMARY)
            self.tracker.log({f"summary/{name}": value for name, value in _numbers(row).items()}, step=self.sent)
        self.tracker.finish()


def send_finished(name: str, runs: Mapping[Path, dict[str, Any]]) -> int:
    """Send finished runs; those that the tracker has are left alone. Returns how many were sent.

    Args:
        runs: their folders, each with its flags.
    """
    new = [folder for folder in runs if not (folder / name).exists()]
    for folder in tqdm(new, desc=name, unit="run", leave=False):
        Tracking(name, folder, runs[folder]).finish()
    return len(new)


def _by_step(folder: Path) -> dict[int, dict[str, float]]:
    """All values of each step, named by their table and column."""
    found: dict[int, dict[str, float]] = defaultdict(dict)
    for table in TABLES:
        for row in read_rows(folder / table) if (folder / table).is_file() else []:
            kind = table.removesuffix(".csv")
            found[int(row["step"])] |= {f"{kind}/{name}": value for name, value in _numbers(row).items()
                                        if name != "step"}
    return found


def _numbers(row: dict[str, str]) -> dict[str, float]:
    found = {}
    for name, text in row.items():
        try:
            found[name] = float(text)
        except ValueError:  # a name, or empty
            continue
    return found
