"""Drawing the examples that `--max_train_examples` and `--max_eval_examples` keep."""

from typing import TYPE_CHECKING

import numpy as np

from workload.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset  # takes a second

DRAW_SEED = 1  # not --seed: runs with different seeds are compared, so they must use the same examples


def limited(examples: "Dataset", classes: np.ndarray, limit: int | None, flag: str,
            source: str) -> tuple["Dataset", dict | None]:
    """Keep `limit` examples, drawn at random, in the file's order.

    Args:
        classes: the class of each example; all equal if there are no classes. (examples,)
        flag, source: for error messages, where the limit and the examples come from.

    Returns:
        The examples; for run.json, how they were drawn, or None if all are kept.

    Raises:
        InputError: a limit below the number of classes.
    """
    if limit is None or limit >= len(examples):
        return examples, None
    count = len(np.unique(classes))
    if limit < count:
        raise InputError(f"{flag} {limit}: {source} has {count} classes, and at least one example of each is needed; "
                         f"use {count} or more")
    return examples.select(draw(classes, limit)), {"from": len(examples), "seed": DRAW_SEED, "by_class": count > 1}


def draw(classes: np.ndarray, limit: int) -> np.ndarray:
    """Draw `limit` examples without replacement, from each class in proportion and at least one if possible.

    The same arguments always give the same draw. A larger limit keeps every example that a smaller one keeps.

    Args:
        classes: the class of each example. (examples,)

    Returns:
        Indices, ascending. (limit,)
    """
    # RandomState, unlike Generator, gives the same numbers in every version of NumPy.
    order = np.random.RandomState(DRAW_SEED).permutation(len(classes))
    shuffled = classes[order]
    turn = np.empty(len(order))  # an example's rank within its class, divided by the class's size
    for each in np.unique(classes):
        members = np.flatnonzero(shuffled == each)
        turn[members] = (np.arange(len(members)) + 0.5) / len(members)
        turn[members[0]] = 0
    return np.sort(order[np.argsort(turn, kind="stable")[:limit]])
