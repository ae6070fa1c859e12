"""How a model's layers are cut into pieces, and the pieces dealt out to stages. Needs no torch, for predictions."""

import functools
import itertools
import math
from collections.abc import Sequence

# Of each schedule of torch_pipeline.py PyTorch's name and the pieces of a stage.
TORCH_NAMES = {"gpipe": ("GPipe", 1), "1f1b": ("1F1B", 1), "interleaved": ("Interleaved1F1B", 2),
               "zero_bubble": ("InterleavedZeroBubble", 2), "zbv": ("ZBVZeroBubble", 2)}


def pieces_of(schedule: str, stage: int, stages: int) -> list[int]:
    """Numbers of a stage's pieces: dealt out in rounds; for zbv there and back again, like a V."""
    pieces = stages * TORCH_NAMES[schedule][1]
    return [stage, pieces - 1 - stage] if schedule == "zbv" else list(range(stage, pieces, stages))


def can_run(schedule: str, stages: int, micro_batches: int) -> bool:
    """Whether PyTorch's schedule can run this number of micro-batches."""
    if schedule == "1f1b":
        return micro_batches >= stages
    if schedule in ("interleaved", "zero_bubble"):
        return micro_batches % max(micro_batches // stages, 1) == 0
    return True


def cut_costs(costs: Sequence[float], pieces: int) -> list[tuple[int, int]]:
    """Cut a row of costs into consecutive pieces that cost as nearly the same as possible: begin and end of each."""
    total = sum(costs)

    @functools.cache
    def best(begin: int, pieces: int) -> tuple[float, tuple[int, ...]]:
        """The best cut of the layers from `begin` on: its badness, and the ends of its pieces."""
        if pieces == 0:
            return 0.0 if begin == len(costs) else math.inf, ()
        found = []
        for end in range(begin + 1, len(costs) - pieces + 2):
            rest, later = best(end, pieces - 1)
            # A high power makes the slowest piece decide, and the next slowest among equals.
            found.append(((sum(costs[begin:end]) / total) ** 20 + rest, (end, *later)))
        return min(found)

    return list(itertools.pairwise((0, *best(0, pieces)[1])))
