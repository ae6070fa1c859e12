"""How often the noise scale's 95 % interval holds the truth, in simulated runs whose noise scale is known.

    python -m benchmarks.noise_interval               # two minutes on one core
    python -m benchmarks.noise_interval --runs 4000

A simulated run has gradients G_t + e of 64 numbers. |G_t|^2 and tr(Sigma) vary from step to step and fall over
training; e is drawn per sample with a covariance whose eigenvalues fall by a power law, and with a scale of its own per
sample, so that some samples weigh much more. Every 4th step is sampled. The truth is the sum of tr(Sigma) over *all*
steps divided by that of |G_t|^2. Prints, in percent, how many intervals hold it, for the jackknife on three scales, how
many runs have no value, and how many intervals no upper end; the range over micro-batches of 4, 8 and 16.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit
from tqdm import tqdm

from measurement.metrics import gradient_moments, noise_scale
from workload.flag_groups import Parser

BATCH, DIMENSIONS, EVERY = 32, 64, 4
OTHER_SCALES = {"log phi": (np.log, np.exp), "phi": (np.positive, np.positive)}  # there, and back


class Gradients(NamedTuple):
    """What makes estimates of single steps noisy."""

    power: float  # Sigma's eigenvalues are k^-power
    tail: float  # standard deviation of the logarithm of a sample's scale
    varying: float  # standard deviation of log |G_t|^2 around its trend
    falls_to: float  # |G_t|^2 at the end of a run, relative to its beginning


# Powers of 0.7, 1.1 and 1.45 make 30, 11 and 5 effective eigenvalues, (sum l)^2 / sum l^2. "as in the study": single
# steps' estimates of |G|^2 scatter as much as in results/reference/study_cpu_2_cores, by 2 to 3 times their mean.
KINDS = {"mild": Gradients(0.7, 0.7, 0.5, 1.0), "as in the study": Gradients(1.1, 0.7, 0.5, 0.25),
         "harsh": Gradients(1.45, 1.0, 1.0, 0.25)}


def simulate(kind: Gradients, phi: float, steps: int, small: int, runs: int,
             rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Squared norms of micro-batches and batches, and each run's true noise scale. (runs, steps, 2), (runs,)"""
    time = (np.arange(steps * EVERY) + 0.5) / (steps * EVERY)
    trend = kind.falls_to**time
    g_squared = trend * np.exp(kind.varying * rng.standard_normal((runs, len(time))))
    trace = trend**0.3 * np.exp(0.3 * rng.standard_normal(g_squared.shape))
    trace *= phi * np.exp((kind.varying**2 - 0.3**2) / 2) * trend.mean() / (trend**0.3).mean()
    truth = trace.sum(axis=1) / g_squared.sum(axis=1)
    g_squared, trace = g_squared[:, EVERY - 1::EVERY, None], trace[:, EVERY - 1::EVERY, None]  # (runs, steps, 1)
    eigenvalues = np.arange(1, DIMENSIONS + 1) ** -kind.power
    roots = np.sqrt(eigenvalues / eigenvalues.sum())  # the gradient lies where the noise does
    shape = (runs, steps, BATCH // small)
    weights = np.exp(2 * kind.tail * rng.standard_normal((*shape, small)) - 2 * kind.tail**2)  # with mean 1
    scale = np.sqrt(weights.sum(axis=-1) / small**2 * trace)  # (runs, steps, micro_batches)
    noise = rng.standard_normal((*shape, DIMENSIONS), dtype=np.float32) * roots.astype(np.float32)
    gradients = (np.sqrt(g_squared) * roots)[:, :, None] + scale[..., None] * noise
    means = gradients.mean(axis=2)
    return np.stack([(gradients**2).sum(axis=-1).mean(axis=-1), (means**2).sum(axis=-1)], axis=-1), truth


def jackknife(norms: np.ndarray, small: int, scale: str) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the intervals on another scale, NaN where it has none. (runs, steps, 2) -> (runs,), (runs,)"""
    there, back = OTHER_SCALES[scale]
    g_squared, trace = gradient_moments(norms[..., 0], norms[..., 1], small, BATCH)  # (runs, steps)
    steps, sums = trace.shape[1], (trace.sum(axis=1), g_squared.sum(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        without = there((sums[0][:, None] - trace) / (sums[1][:, None] - g_squared))
        error = np.sqrt((steps - 1) / steps * ((without - without.mean(axis=1)[:, None]) ** 2).sum(axis=1))
        middle, half_width = there(sums[0] / sums[1]), stdtrit(steps - 1, 0.975) * error
    return back(middle - half_width), back(middle + half_width)


def coverage(kind: Gradients, phi: float, steps: int, small: int, runs: int,
             rng: np.random.Generator) -> dict[str, float]:
    """Percentages: runs without a value; of the others the intervals without an upper end, and those that hold phi.

    `1 / phi` is the interval of `metrics.noise_scale`.
    """
    norms, truth = simulate(kind, phi, steps, small, runs, rng)
    found = [noise_scale(run, small, BATCH) for run in norms.tolist()]
    known = np.array([one.low is not None for one in found])
    ends = np.array([(one.low, one.high) for one in found if one.low is not None])
    truth = truth[known]
    held = {"1 / phi": (ends[:, 0] <= truth) & (truth <= ends[:, 1])}
    for scale in OTHER_SCALES:
        low, high = jackknife(norms[known], small, scale)
        held[scale] = (low <= truth) & (truth <= high)
    return {"no value": 100 * float((~known).mean()), "no upper end": 100 * float(np.isinf(ends[:, 1]).mean()),
            **{name: 100 * float(values.mean()) for name, values in held.items()}}


def main() -> None:
    parser = Parser()
    parser.add_argument("--runs", type=int, default=1000, help="simulated runs of each setting")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    names = ["1 / phi", *OTHER_SCALES, "no value", "no upper end"]
    print(f"| gradients | phi | sampled steps | {' | '.join(names)} |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    settings = [(kind, phi, steps) for kind in KINDS for phi in (10, 50, 100, 200) for steps in (20, 40, 100)]
    for kind, phi, steps in tqdm(settings, unit="setting"):
        found = [coverage(KINDS[kind], phi, steps, small, options.runs, rng) for small in (4, 8, 16)]
        cells = [f"{min(one[name] for one in found):.1f} to {max(one[name] for one in found):.1f}" for name in names]
        print(f"| {kind} | {phi} | {steps} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
