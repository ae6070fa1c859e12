"""The formulas of the study as pure functions, each with its source."""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class NoiseScale:
    """The gradient noise scale of a run.

    `samples` is None if it cannot be estimated; `reason` then says why.
    """

    samples: float | None
    negative_pct: float | None  # share of the sampled steps whose own estimate of |G|^2 is negative
    reason: str | None = None


def gradient_moments(small_squared: float, large_squared: float, small: int, large: int) -> tuple[float, float]:
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
    norms = [pair for pair in norms if all(math.isfinite(value) for value in pair)]
    if small >= large:
        return NoiseScale(None, None, "one micro-batch makes up the whole batch: two batch sizes are needed")
    if not norms:
        return NoiseScale(None, None, "no step was sampled after the warm-up")
    moments = [gradient_moments(*pair, small, large) for pair in norms]
    g_squared = sum(g for g, _ in moments)
    trace = sum(t for _, t in moments)
    negative_pct = 100 * sum(g < 0 for g, _ in moments) / len(moments)
    if g_squared <= 0 or trace < 0:
        return NoiseScale(None, negative_pct, "the estimate summed over steps is not positive: too few steps")
    return NoiseScale(trace / g_squared, negative_pct)


def statistical_efficiency(noise_scale_samples: float, batch: int, reference_batch: int) -> float:
    """Progress per sample at `batch`, relative to `reference_batch` (Pollux, OSDI 2021, equation 5).

    (phi + M0) / (phi + M): 1 if gradients are pure noise, M0 / M if they have none. Above 1 if M is below M0.
    """
    return (noise_scale_samples + reference_batch) / (noise_scale_samples + batch)


def goodput(throughput: float, efficiency: float) -> float:
    """Samples per second, weighted by how much they advance training (Pollux, OSDI 2021, equation 3)."""
    return throughput * efficiency


def published_statistical_efficiency(jitter: float, micro_batch_size: int) -> float:
    """Loss change per sample of a forward pass: DannyMeb/BERT-Parallelism-Efficiency's "statistical efficiency".

    It measures how much the logged loss jumps from step to step, not progress: see docs/published_results.md. It is
    kept so that published figures can be compared with ours.

    Args:
        jitter: mean over steps of |loss[t - 1] - loss[t]|.
        micro_batch_size: samples in one device's forward pass; 16 in the published runs.
    """
    return jitter / micro_batch_size
