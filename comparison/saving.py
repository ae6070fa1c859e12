"""Draw figures and save them, on all cores: Matplotlib uses one, and a study of many runs has hundreds of figures."""

import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from matplotlib.figure import Figure

from comparison.progress import progress_bar
from workload.cores import usable_cores

Drawing = Callable[[], Figure | None]  # None if there turns out to be nothing to draw
FIGURES_A_PROCESS = 10  # fewer are not worth another process
MOST_PROCESSES = 8  # each has a copy of what it changes in memory

_jobs: list[tuple[Path, Drawing]] = []  # of a process that draws


def save_figures(drawings: Mapping[Path, Drawing]) -> int:
    """Draw each figure and save it under its path. Returns how many there were to draw."""
    jobs = list(drawings.items())
    processes = min(usable_cores(), MOST_PROCESSES, 1 + len(jobs) // FIGURES_A_PROCESS)
    bar = {"total": len(jobs), "desc": "drawing", "unit": "figure"}
    if processes == 1:
        return sum(progress_bar((_save(*job) for job in jobs), **bar))
    with ProcessPoolExecutor(processes, initializer=_begin, initargs=(jobs,)) as pool:
        return sum(progress_bar(pool.map(_save_number, range(len(jobs))), **bar))


def _begin(jobs: list[tuple[Path, Drawing]]) -> None:
    """Take the jobs over. Ctrl-C is for the process that waits for this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _jobs[:] = jobs


def _save_number(number: int) -> bool:
    return _save(*_jobs[number])


def _save(path: Path, drawing: Drawing) -> bool:
    """Whether there was something to draw."""
    if (figure := drawing()) is None:
        return False
    if engine := figure.get_layout_engine():
        engine.execute(figure)  # `savefig` alone would draw everything once more in order to do so
        figure.set_layout_engine(None)
    figure.savefig(path)
    return True
