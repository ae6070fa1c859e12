"""The formulas, as pure functions with their sources."""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class NoiseScale:
    """The gradient noise scale of a run.

    `samples` is None where it cannot be stated; `reason` then says why.
    """

    samples: float | None
    negative_pct: float | None  # share of the sampled steps whose estimate of |G|^2 was negative
    reason: str | None = None


def gradient_moments(small_squared: float, large_squared: float, small: int, large: int) -> tuple[float, float]:
    """Unbiased estimates of |G|^2 and tr(Sigma) from squared gradient norms at two batch sizes.

    McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", appendix A.1.

    Args:
        small_squared: mean squared norm of gradients over `small` samples.
        large_squared: squared norm of the gradient over `large` samples.
    """
    g_squared = (large * large_squared - small * small_squared) / (large - small)
    trace = (small_squared - large_squared) / (1 / small - 1 / large)
    return g_squared, trace


def noise_scale(norms: Iterable[tuple[float, float]], small: int, large: int) -> NoiseScale:
    """phi = tr(Sigma) / |G|^2 in samples, from pairs (small_squared, large_squared) of many steps.

    The ratio of the sums over steps: the mean of the steps' ratios is biased, as is clamping each step. Not
    preconditioned (Pollux, OSDI 2021, preconditions for Adam).
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

    (phi + M0) / (phi + M): 1 where gradients are all noise, M0 / M where they are none. Above 1 for M below M0.
    """
    return (noise_scale_samples + reference_batch) / (noise_scale_samples + batch)


def goodput(throughput: float, efficiency: float) -> float:
    """Samples a second, counted as far as they bring training forward (Pollux, OSDI 2021, equation 3)."""
    return throughput * efficiency


def published_statistical_efficiency(jitter: float, micro_batch_size: int) -> float:
    """What DannyMeb/BERT-Parallelism-Efficiency calls statistical efficiency: loss change per sample of a forward pass.

    It measures how much the logged loss jumps from step to step, not progress: see docs/published_results.md. Kept
    so that published figures can be put beside ours.

    Args:
        jitter: mean over steps of |loss[t - 1] - loss[t]|.
        micro_batch_size: samples in one device's forward pass; 16 in the published runs.
    """
    return jitter / micro_batch_size
