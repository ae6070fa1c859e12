"""Whether two runs computed the same: losses, gradient norms, noise, final weights, and the order of samples.

The tests and `verify.py` compare with the same function.
"""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from measurement.table import read_rows

LEAST_LIMIT, LARGEST_LIMIT = 1e-5, 1e-4  # relative; the yardstick is taken as at least 1e-6
TIMES_THE_ROUNDING = 10
# steps.csv's columns, and the power that brings them to the scale of a loss or a norm.
COLUMNS = {"loss": ("train_loss", 1.0), "gradient norm": ("grad_norm", 1.0),
           "noise of micro-batches": ("micro_batch_squared_norm", 0.5),
           "noise of the batch": ("batch_squared_norm", 0.5)}
WEIGHTS, VALIDATION, ORDER = "weights", "validation loss", "order of samples"


class Computation:
    """What a finished run computed, read from its folder.

    Raises:
        FileNotFoundError, KeyError, ValueError: it was not finished, or without `--save_model`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_json = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        self.steps, [self.summary] = read_rows(folder / "steps.csv"), read_rows(folder / "summary.csv")

    def column(self, name: str) -> np.ndarray:
        """A column of steps.csv; NaN where it is empty. (steps,)"""
        return np.array([float(row[name] or "nan") for row in self.steps])

    @property
    def family(self) -> str:
        """The model's `config.model_type`."""
        return self.run_json["model"]["family"]

    @cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        """The saved weights by their Hugging Face names, as fp32."""
        tensors = {}
        for path in sorted((self.folder / "model").glob("*.safetensors")):
            tensors |= load_file(path)
        return {name: tensor.float() for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Difference:
    """How far two runs are apart in one quantity."""

    relative: float  # the largest over steps; for weights, norm of the difference by norm of the weights
    where: str  # the step or the parameter of the largest
    by_step: tuple[float, ...] = ()  # for what is recorded in every step

    def exceeds(self, limit: float) -> bool:
        """Whether it is more than `limit`; NaN is."""
        return not self.relative <= limit

    def in_words(self, limit: float) -> str:
        """How far, and from where on it exceeds `limit`."""
        first = next((step for step, value in enumerate(self.by_step, start=1) if not value <= limit), None)
        return f"{self.relative:.1e} " + (f"at {self.where}" if first is None else f"from step {first} on")


def differences(run: Computation, reference: Computation) -> dict[str, Difference]:
    """The differences by quantity; the order of samples differs by 0 or 1.

    A quantity that one of the runs did not record is infinitely different.
    """
    found = {ORDER: Difference(float(run.run_json["order_hash"] != reference.run_json["order_hash"]), "order_hash")}
    for quantity, (column, power) in COLUMNS.items():
        found[quantity] = _of_steps(run.column(column) ** power, reference.column(column) ** power)
    loss, expected = (float(each.summary["validation_loss"]) for each in (run, reference))
    found[VALIDATION] = Difference(abs(loss - expected) / abs(expected), "the evaluation")
    found[WEIGHTS] = _of_weights(run.weights, reference.weights)
    return found


def _of_steps(values: np.ndarray, expected: np.ndarray) -> Difference:
    if len(values) != len(expected):
        return Difference(float("inf"), f"step {min(len(values), len(expected)) + 1}, which one of them lacks")
    relative = np.nan_to_num(np.abs(values - expected) / np.abs(expected), nan=np.inf)
    return Difference(float(relative.max()), f"step {1 + relative.argmax()}", tuple(relative.tolist()))


def _of_weights(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> Difference:
    """All weights together, without those whose true gradient is zero; names the parameter that is furthest off."""
    if weights.keys() != expected.keys():
        return Difference(float("inf"), min(weights.keys() ^ expected.keys()))
    compared = [name for name in expected if name not in without_gradient(expected)]
    apart = {name: float((weights[name] - expected[name]).norm()) for name in compared}
    total = float(torch.stack([expected[name].norm() for name in compared]).norm())
    return Difference(float(np.linalg.norm(list(apart.values()))) / total, max(apart, key=lambda name: apart[name]))


def without_gradient(names) -> set[str]:
    """The two biases in front of a softmax over tokens, which does not see them: SQuAD's output and the last LayerNorm.

    Their gradient is rounding, of which Adam makes whole steps.
    """
    if "qa_outputs.bias" not in names:
        return set()
    norms = [name for name in names if name.lower().replace("_", "").endswith("layernorm.bias")]
    last = max(norms, key=lambda name: ([int(number) for number in re.findall(r"\d+", name)], name), default=None)
    return {"qa_outputs.bias", *filter(None, [last])}


def limits(references: list[Computation]) -> dict[str, float]:
    """The largest difference by quantity that rounding explains: ten times that between runs of one device.

    Args:
        references: runs of one device that differ in the size of their micro-batches only; their noise is compared
            where it is of the same micro-batches, so it has the limit of the gradient norms.
    """
    first, *others = references
    found = [differences(other, first) for other in others]
    limit = {}
    for quantity in ("loss", "gradient norm", VALIDATION, WEIGHTS):
        rounding = max((each[quantity].relative for each in found), default=0.0)
        limit[quantity] = min(max(TIMES_THE_ROUNDING * rounding, LEAST_LIMIT), LARGEST_LIMIT)
    return limit | {name: limit["gradient norm"] for name in COLUMNS if name.startswith("noise")} | {ORDER: 0.0}
