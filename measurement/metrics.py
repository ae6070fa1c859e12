"""The formulas of the study as pure functions, each with its source."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

Number = TypeVar("Number", float, np.ndarray)
FEWEST_STEPS = 20  # sampled steps below which a run gives no interval: its coverage has not been shown for fewer
CONFIDENCE = 0.95


@dataclass(frozen=True)
class NoiseScale:
    """The gradient noise scale of a run, and its 95 % interval over sampled steps.

    `samples` is None if it cannot be estimated, `low` and `high` if the interval cannot; `reason` and
    `interval_reason` then say why.
    """

    samples: float | None
    steps: int  # sampled, with finite norms
    effective_steps: float | None = None  # (sum w)^2 / sum w^2 over the steps' own estimates w of |G|^2 (Kish 1965)
    negative_pct: float | None = None  # share of the sampled steps whose own estimate of |G|^2 is negative
    reason: str | None = None
    low: float | None = None
    high: float | None = None  # infinite if the steps do not bound it: the lower end of |G|^2 is not positive
    interval_reason: str | None = None

    def without(self, reason: str) -> "NoiseScale":
        """The same with the reason why there is neither value nor interval."""
        return replace(self, reason=reason, interval_reason=reason)


def gradient_moments(small_squared: Number, large_squared: Number, small: int, large: int) -> tuple[Number, Number]:
    """Unbiased estimates of |G|^2 and tr(Sigma) from squared gradient norms at two batch sizes.

    McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", appendix A.1.

    Args:
        small_squared: mean squared norm of the gradients of batches of `small` samples.
        large_squared: squared norm of the gradient of a batch of `large` samples.
    """
    g_squared = (large * large_squared - small * small_squared) / (large - small)
    trace = (small_squared - large_squared) / (1 / small - 1 / large)
    return g_squared, trace


def noise_scale(norms: Iterable[tuple[float, float]], small: int, large: int) -> NoiseScale:
    """phi = tr(Sigma) / |G|^2 in samples, from pairs (small_squared, large_squared) of many steps.

    It is the ratio of the sums over steps, because the mean of per-step ratios is biased, and so is clamping each
    step. Not preconditioned (Pollux, OSDI 2021, preconditions for Adam).
    """
    pairs = np.array([pair for pair in norms if all(math.isfinite(value) for value in pair)]).reshape(-1, 2)
    found = NoiseScale(None, len(pairs))
    if small >= large:
        return found.without("one micro-batch makes up the whole batch: two batch sizes are needed")
    if not found.steps:
        return found.without("no step was sampled after the warm-up")
    g_squared, trace = gradient_moments(pairs[:, 0], pairs[:, 1], small, large)  # (steps,) each
    sum_g, sum_trace = float(g_squared.sum()), float(trace.sum())
    squares = float((g_squared**2).sum())
    found = replace(found, negative_pct=100 * float((g_squared < 0).mean()),
                    effective_steps=sum_g**2 / squares if squares else None)
    if sum_g <= 0 or sum_trace < 0:
        return found.without("the estimate summed over steps is not positive: too few steps")
    found = replace(found, samples=sum_trace / sum_g)
    if found.steps < FEWEST_STEPS:
        return replace(found, interval_reason=f"too few steps: {found.steps} were sampled, and an interval needs "
                                              f"{FEWEST_STEPS}")
    if not (sum_trace - trace > 0).all():
        return replace(found, interval_reason="no more than one sampled step has gradient noise")
    low, high = _interval(g_squared, trace)
    return replace(found, low=low, high=high)


def _interval(g_squared: np.ndarray, trace: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of sum(trace) / sum(g_squared), by the jackknife over steps. (steps,), (steps,) -> two ends

    Student's t on the scale of 1 / phi = |G|^2 / tr(Sigma): |G|^2 is what is uncertain, and in a denominator it makes
    the estimate skewed. `benchmarks/noise_interval.py` has how often the intervals on this and other scales hold the
    truth. An upper end is infinite where the interval of 1 / phi reaches down to 0.
    """
    from scipy.special import stdtrit  # quantiles of Student's t; here, for not even --help would be quick with it

    steps = len(trace)
    ratio = g_squared.sum() / trace.sum()
    without = (g_squared.sum() - g_squared) / (trace.sum() - trace)  # without each step in turn
    error = math.sqrt((steps - 1) / steps * ((without - without.mean()) ** 2).sum())
    half_width = stdtrit(steps - 1, (1 + CONFIDENCE) / 2) * error
    return float(1 / (ratio + half_width)), float(1 / (ratio - half_width)) if ratio > half_width else math.inf


def statistical_efficiency(noise_scale_samples: float, batch: int, reference_batch: int) -> float:
    """Progress per sample at `batch`, relative to `reference_batch` (Pollux, OSDI 2021, equation 5).

    (phi + M0) / (phi + M): 1 if gradients are pure noise, M0 / M if they have none. Above 1 if M is below M0.
    Monotonic in phi, so that an interval's ends are the images of phi's: see `efficiency_interval`.
    """
    if math.isinf(noise_scale_samples):
        return 1.0
    return (noise_scale_samples + reference_batch) / (noise_scale_samples + batch)


def efficiency_interval(noise: NoiseScale, batch: int, reference_batch: int) -> tuple[float, float] | None:
    """The interval of `statistical_efficiency` that belongs to that of phi; None without one."""
    if noise.low is None or noise.high is None:
        return None
    ends = [statistical_efficiency(end, batch, reference_batch) for end in (noise.low, noise.high)]
    return min(ends), max(ends)  # the efficiency falls with phi where the batch is below the reference


def goodput(throughput: float, efficiency: float) -> float:
    """Samples per second, weighted by how much they advance training (Pollux, OSDI 2021, equation 3).

    Not the share of time that is productive, which others call goodput (such as Google's ml-goodput-measurement).
    """
    return throughput * efficiency


def published_statistical_efficiency(jitter: float, micro_batch_size: int) -> float:
    """Loss change per sample of a forward pass: DannyMeb/BERT-Parallelism-Efficiency's "statistical efficiency".

    It measures how much the logged loss jumps from step to step, not progress: see docs/notes/published_results.md. It
    is kept so that published figures can be compared with ours.

    Args:
        jitter: mean over steps of |loss[t - 1] - loss[t]|.
        micro_batch_size: samples in one device's forward pass; 16 in the published runs.
    """
    return jitter / micro_batch_size
