"""How far do strategies scale beyond any machine at hand: 8 to 1,024 GPUs, for BERT-base and GPT-2 small?

    python -m benchmarks.many_devices            # the table and the figure of docs/scaling.md

From one public rate and links.csv, by the recipes of `prediction/`: for each number of devices, strategy, network and
noise scale the global batch and the setting of the highest goodput, for a larger batch keeps more devices busy, but
each of its samples advances training less.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.public_figures import VOCABULARY, assumed
from measurement.metrics import statistical_efficiency
from prediction.calibration import Calibration
from prediction.links import Links, by_data_sheet, read_links
from prediction.predict import predict
from prediction.search import settings
from prediction.setting import Setting
from workload.argument_checks import divisors

FIGURE = Path(__file__).resolve().parents[1] / "docs" / "scaling.svg"
DEVICES = [8, 16, 32, 64, 128, 256, 512, 1024]
NODE, REFERENCE = 8, 16
BERT_RATE, BERT_LENGTH = 812, 384  # samples/s on an H100, fp16; see docs/notes/public_figures.md
LAUNCH_S, OPERATIONS = 5e-6, 1020  # of a micro-batch, as benchmarks/README.md counts them
NETWORKS = ("infiniband-ndr", "ethernet-25")
NOISE_SCALES = (87, 1087)
LARGEST_BATCH = 2**15
MOST_TOKENS = 64 * BERT_LENGTH  # in a micro-batch: BERT-base's activations then take some 30 GiB
MOST_MICRO_BATCHES = 16
PAYS = 1.2  # twice the devices are worth it if they give so many times the goodput
STRATEGIES = {"data parallel (DDP)": "ddp", "FSDP": "fsdp", "tensor parallel": "tensor_parallel",
              "pipeline": "pipeline"}


@dataclass(frozen=True)
class Point:
    """The best setting for so many devices."""

    setting: Setting
    goodput: float


def models() -> dict[str, Calibration]:
    """BERT-base at its public rate, and GPT-2 small if as many floating-point operations a second are done."""
    floor = LAUNCH_S * OPERATIONS
    bert_layer, gpt_layer = (24 * 768**2 + 4 * length * 768 for length in (BERT_LENGTH, 1024))
    operations = BERT_LENGTH * 12 * bert_layer * BERT_RATE  # a second, forward
    gpt_s = 1024 * (12 * gpt_layer + 2 * 768 * VOCABULARY["GPT"]) / operations
    return {"BERT-base, length 384": assumed(12, 768, VOCABULARY["BERT"], BERT_LENGTH, 1 / BERT_RATE, False,
                                             floor_s=floor),
            "GPT-2 small, length 1024": assumed(12, 768, VOCABULARY["GPT"], 1024, gpt_s, True, floor_s=floor)}


def links(devices: int, network: str) -> Links:
    """NVLink in nodes of 8. Half precision halves what is sent, which twice the bandwidth stands for."""
    sheets = {name: replace(sheet, bytes_per_s=2 * sheet.bytes_per_s) for name, sheet in read_links().items()}
    return Links(by_data_sheet(sheets["nvlink-4"], divisors(devices)), sheets[network], NODE)


def candidates(base: str, devices: int, batch: int, length: int) -> Iterator[Setting]:
    """Settings of one strategy, without activation checkpointing, whose micro-batches fit a device."""
    for setting in settings(devices, batch, 12, (2, 4), shares_tokens=False):
        fits = setting.micro_batch_size * length <= MOST_TOKENS and setting.micro_batches <= MOST_MICRO_BATCHES
        if setting.base == base and fits and not setting.recomputes and setting.reshards and not (
                base == "fsdp" and setting.group not in (None, NODE)):
            yield setting


def rates(calibration: Calibration, base: str, devices: int, network: str) -> list[tuple[Setting, float]]:
    """Every batch and setting of one strategy with its samples/s."""
    found, batch, between = [], max(devices // NODE, REFERENCE), links(devices, network)
    while batch <= LARGEST_BATCH:
        found += [(setting, predict(calibration, setting, 1, links=between).throughput_samples_per_s)
                  for setting in candidates(base, devices, batch, calibration.max_length)]
        batch *= 2
    return found


def best(found: list[tuple[Setting, float]], noise_scale: float) -> Point | None:
    """The highest goodput of all."""
    points = [Point(setting, rate * statistical_efficiency(noise_scale, setting.global_batch_size, REFERENCE))
              for setting, rate in found]
    return max(points, key=lambda point: point.goodput, default=None)


def main() -> None:
    known = models()
    cases = [(model, name, network) for model in known for network in NETWORKS for name in STRATEGIES]
    lines: dict[tuple[str, str, str, int], list[Point | None]] = {}
    with tqdm(total=len(cases) * len(DEVICES), unit="point") as bar:
        for model, name, network in cases:
            for devices in DEVICES:
                found = rates(known[model], STRATEGIES[name], devices, network)
                for noise in NOISE_SCALES:
                    lines.setdefault((model, name, network, noise), []).append(best(found, noise))
                bar.update()
    print("| model | network | noise scale | strategy | " + " | ".join(map(str, DEVICES)) + " | pays up to |")
    print("|---|---|--:|---|" + "--:|" * (len(DEVICES) + 1))
    for (model, name, network, noise), points in lines.items():
        cells = [f"{point.goodput:,.0f} ({point.setting.global_batch_size})" if point else "—" for point in points]
        print(f"| {model} | {network} | {noise} | {name} | " + " | ".join(cells) + f" | {pays_up_to(points)} |")
    draw(lines)
    print(f"Wrote {FIGURE}")


def pays_up_to(points: list[Point | None]) -> int:
    """The most devices up to which each doubling paid."""
    for devices, one, two in zip(DEVICES, points, points[1:], strict=False):
        if one is None or two is None or two.goodput < PAYS * one.goodput:
            return devices
    return DEVICES[-1]


def draw(lines: dict[tuple[str, str, str, int], list[Point | None]]) -> None:
    """Goodput over devices: a panel for each model, a line for each strategy, for the smaller noise scale paler."""
    matplotlib.rcParams["svg.fonttype"] = "none"
    matplotlib.rcParams["svg.hashsalt"] = "scaling"  # the same file each time
    names = list(dict.fromkeys(model for model, *_ in lines))
    colours = dict(zip(STRATEGIES, ("#0072B2", "#CC79A7", "#A6761D", "#D55E00"), strict=True))
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    for axes, model in zip(figure.subplots(1, len(names)), names, strict=True):
        for (which, name, network, noise), points in lines.items():
            if which == model and network == NETWORKS[0]:
                axes.plot(DEVICES, [point.goodput if point else math.nan for point in points], color=colours[name],
                          marker="o", markersize=3, linestyle="-" if noise == NOISE_SCALES[-1] else ":",
                          label=name if noise == NOISE_SCALES[-1] else None)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set_xticks(DEVICES, list(map(str, DEVICES)))
        axes.set_xlabel("GPUs, in nodes of 8")
        axes.set_title(model, loc="left", fontsize=10)
        axes.grid(color="0.9")
    figure.axes[0].set_ylabel("predicted goodput (samples/s)")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(FIGURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
