"""Seconds of single layers and of the optimizer's update, each measured by itself on one device."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from measurement.clock import synchronize
from prediction.costs import Batch, Layer, PassCost
from workload.job import Job
from workload.optimizer import build_optimizer

SIZES = ((1, 1), (4, 1), (4, 2), (1, 4), (8, 4))  # samples, quarters of the longest length
REPEATS = 3


def measure_layers(job: Job, modules: list[torch.nn.Module],
                   layers: tuple[Layer, ...]) -> dict[str, dict[str, PassCost]]:
    """Seconds of every pass of the embeddings, of one repeated layer, and of the head, fitted over sizes."""
    task, device = job.task, job.processes.device
    found: dict[str, dict[str, list[float]]] = {}
    batches = [Batch(1, samples, max(task.max_length * quarters // 4, 8)) for samples, quarters in SIZES]
    for batch in batches:
        tokens = torch.randint(5, 100, (batch.samples, batch.length), device=device)
        activation: Any = tuple(tokens if name == "input_ids" else torch.zeros_like(tokens)
                                for name in task.input_names if name != "attention_mask")
        timed: dict[str, dict[str, float]] = {}
        for module, layer in zip(modules, layers, strict=True):
            seconds, activation = _time_passes(module, activation, device, is_timed=layer.kind not in timed
                                               or layer.kind != "layer")
            for name, value in seconds.items():
                kind = timed.setdefault(layer.kind, {})
                kind[name] = kind.get(name, 0.0) + value
        for kind, seconds in timed.items():
            for name, value in seconds.items():
                found.setdefault(kind, {}).setdefault(name, []).append(value)
    # Embeddings that are several ordered layers are measured together, and counted once for each of them.
    count = {kind: 1 if kind == "layer" else sum(layer.kind == kind for layer in layers) for kind in found}
    return {kind: {name: fit_pass(batches, [value / count[kind] for value in values])
                   for name, values in passes.items()} for kind, passes in found.items()}


def _time_passes(module: torch.nn.Module, activation: Any, device: torch.device,
                 is_timed: bool) -> tuple[dict[str, float], Any]:
    """Medians of a layer's passes, in seconds, and its output without a history."""
    def inputs() -> Any:
        return tuple(each.detach().requires_grad_(each.is_floating_point()) for each in activation)

    output = module(inputs())
    first = output[0] if isinstance(output, tuple) else output
    after = (first.detach(), *(output[1:] if isinstance(output, tuple) else ()))
    if not is_timed:
        return {}, after
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    measured: dict[str, list[float]] = {}
    for _ in range(REPEATS):
        given = inputs()
        forward, output = _timed(lambda given=given: module(given), device)
        first = output[0] if isinstance(output, tuple) else output
        into = [each for each in given if each.requires_grad]
        gradient = torch.ones_like(first)
        for name, wanted in (("inputs", into), ("weights", parameters), ("backward", [*into, *parameters])):
            taken = 0.0
            if wanted:
                taken, _ = _timed(lambda wanted=wanted, first=first, gradient=gradient: torch.autograd.grad(
                    first, wanted, gradient, retain_graph=True, allow_unused=True), device)
            measured.setdefault(name, []).append(taken)
        measured.setdefault("forward", []).append(forward)
    return {name: statistics.median(values) for name, values in measured.items()}, after


def measure_update(job: Job, parameters: list[torch.nn.Parameter]) -> float:
    """Seconds of the optimizer's step and of clipping, for each parameter."""
    optimizer = build_optimizer(parameters, job.arguments)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    update()
    seconds = [_timed(update, job.processes.device)[0] for _ in range(REPEATS)]
    return statistics.median(seconds) / sum(parameter.numel() for parameter in parameters)


def _timed(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    synchronize(device)
    began = time.perf_counter()
    result = call()
    synchronize(device)
    return time.perf_counter() - began, result


def fit_pass(batches: list[Batch], seconds: list[float]) -> PassCost:
    """Non-negative least squares of relative errors of a + b tokens + c tokens x length; the shortest is the floor."""
    terms = np.array([[1, batch.tokens, batch.tokens * batch.length] for batch in batches], dtype=float)
    measured = np.array(seconds)
    if not measured.any():
        return PassCost(0.0, 0.0, 0.0, 0.0)
    a, b, c = nnls(terms / measured[:, None], np.ones(len(batches)))[0].tolist()
    return PassCost(float(measured.min()), a, b, c)
