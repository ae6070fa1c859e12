"""How far off are predictions for tables that others published of BERT and GPT-2 on many GPUs?

    python -m benchmarks.public_figures                       # each row of public_figures.csv, then errors by table

A table's one-device row gives the seconds of a micro-batch, split over the layers by their floating-point
operations; data sheets give the links. Nothing else is known: no host's cost, no update, no slowdown. Rows of more
devices are then predicted. docs/notes/public_figures.md says where the tables are from, and which were rejected.
"""

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measurement.table import read_rows
from prediction.calibration import RECOMPUTE, Calibration, Engine
from prediction.costs import FP32, Layer, PassCost
from prediction.links import DataSheet, Links, by_data_sheet, read_links
from prediction.planning import covering
from prediction.predict import predict
from prediction.setting import ENGINES, Setting
from workload.argument_checks import divisors
from workload.flag_groups import Parser

TABLE = Path(__file__).with_suffix(".csv")
HALF = ("fp16", "bf16")
VOCABULARY = {"BERT": 30522, "GPT": 50257}
# What an A100's links and an HDR network reach of their data sheets, and their latency.
NODE, NETWORK = "nvlink-3", "infiniband-hdr"
EFFICIENCY = {NODE: 0.783, NETWORK: 0.964}  # of links.csv


def assumed(layers: int, hidden: int, vocabulary: int, length: int, sample_s: float, is_causal: bool,
            recomputes: bool = False, floor_s: float = 0.0) -> Calibration:
    """A calibration from one number: seconds of a sample, forward and backward.

    They are split by floating-point operations a token: 24 h^2 + 4 s h of a layer, 2 h V of a language model's
    head (Narayanan et al. 2021, appendix); backward passes take twice as long as forward, and once more as long where
    activations are computed again.

    Args:
        length: of all samples, in tokens.
        is_causal: a language model, whose head makes logits for each token and shares the embedding's weight.
        floor_s: what the host needs to issue a micro-batch, forward and backward.
    """
    layer = 24 * hidden**2 + 4 * length * hidden
    head = 2 * hidden * vocabulary if is_causal else 0
    token_s = sample_s / length / (layers * layer + head) / (4 if recomputes else 3)

    def passes(operations: float) -> dict[str, PassCost]:
        times = {"forward": 1, "backward": 3 if recomputes else 2, "inputs": 1, "weights": 1}
        floors = {name: floor_s * times[name] / 3 / layers if operations == layer else 0.0 for name in times}
        return {name: PassCost(floors[name], 0, times[name] * operations * token_s, 0) for name in times}

    tensors = (hidden * hidden,) * 4 + (4 * hidden * hidden,) * 2
    stack = (Layer("embedding", (hidden * (vocabulary + length),)),
             *[Layer("layer", tensors, step_cost=layer)] * layers, Layer("head", (hidden * hidden,), step_cost=head))
    engines = dict.fromkeys([*ENGINES.values(), RECOMPUTE], Engine(1, 0, 0, 0, 0))
    return Calibration({}, 1, 1, stack, FP32 * hidden * vocabulary if is_causal else 0, hidden, FP32, (length,), (), 0,
                       1, length, {"embedding": passes(0), "layer": passes(layer), "head": passes(head)},
                       0.0, engines, (), 1.0, True)


def links_by(row: Mapping[str, str]) -> Links:
    """A table's links. In half precision half of the bytes pass them, which twice the bandwidth stands for."""
    sheets, faster = read_links(), 2 if row["precision"] in HALF else 1

    def sheet(name: str, gb_per_s: str) -> DataSheet:
        known = sheets[name]
        return DataSheet(known.joins, 1e9 * faster * float(gb_per_s) * EFFICIENCY[name],
                         "device" if name == NODE else "node", known.latency_s)

    node, devices = int(row["devices_per_node"]), int(row["devices"])
    network = sheet(NETWORK, row["network_gb_per_s"]) if row["network_gb_per_s"] else None
    return Links(by_data_sheet(sheet(NODE, row["link_gb_per_s"]), divisors(devices)), network,
                 node if network else math.inf)


def setting_by(row: Mapping[str, str]) -> Setting:
    """What a row ran, such as `dp8+pp4`."""
    devices, count, size = (int(row[name]) for name in ("devices", "accumulation", "micro_batch_size"))
    parts = {kind: int(number) for kind, number in re.findall(r"(tp|pp)(\d+)", row["strategy"])}
    if "pp" in parts:
        return Setting("pipeline", devices, count, size, parts["pp"], "1f1b")
    if "tp" in parts:
        return Setting("tensor_parallel", devices, count, size, group=parts["tp"])
    base = row["strategy"] if row["strategy"] in ENGINES else "ddp"
    return Setting("ddp" if base == "zero0" else base, devices, count, size)


def same(row: Mapping[str, str]) -> tuple[str, ...]:
    """What a row shares with the one-device row that it is predicted from."""
    strategy = row["strategy"] if row["strategy"].startswith("zero") else ""
    size = "" if "+" in row["strategy"] or "tp" in row["strategy"] else row["micro_batch_size"]
    return (*(row[name] for name in ("table", "model", "sequence_length", "precision", "gpu")), strategy, size)


def predicted_rows() -> list[dict[str, Any]]:
    """Every row of more than one device with its prediction, and those without a one-device row."""
    rows = read_rows(TABLE)
    singles: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        if row["devices"] == "1":
            singles[same(row)] = row
            singles.setdefault((*same(row)[:-1], ""), row)
    found = []
    for row in rows:
        if row["devices"] == "1":
            continue
        single = singles.get(same(row))
        error = None
        if single:
            is_causal = row["model"].startswith("GPT")
            calibration = assumed(int(row["layers"]), int(row["hidden"]), VOCABULARY["GPT" if is_causal else "BERT"],
                                  int(row["sequence_length"]), 1 / float(single["samples_per_s"]), is_causal,
                                  row["table"].startswith("DLPerf") and is_causal)
            rate = predict(calibration, setting_by(row), 1, links=links_by(row)).throughput_samples_per_s
            error = 100 * (rate / float(row["samples_per_s"]) - 1)
        found.append({**row, "error_pct": error, "is_joined": int(row["devices"]) > int(row["devices_per_node"])})
    return found


def main() -> None:
    parser = Parser()
    parser.add_argument("--rows", action="store_true", help="print every row, too")
    options = parser.parse_args()
    rows = predicted_rows()
    if options.rows:
        print("| table | GPU | model | length | precision | strategy | GPUs | micro-batch | accumulation | samples/s | "
              "prediction off by % |")
        print("|---|---|---|--:|---|---|--:|--:|--:|--:|--:|")
        for row in rows:
            error = "no one-GPU row" if row["error_pct"] is None else f"{row['error_pct']:+.1f}"
            print("| " + " | ".join(row[name] for name in (
                "table", "gpu", "model", "sequence_length", "precision", "strategy", "devices", "micro_batch_size",
                "accumulation", "samples_per_s")) + f" | {error} |")
        print()
    groups: dict[tuple[str, bool], list[float]] = defaultdict(list)
    for row in rows:
        if row["error_pct"] is not None:
            groups[row["table"], row["is_joined"]].append(row["error_pct"])
    print("| table | nodes | rows | median error % | median absolute error % | 90 % of errors within ± % | range % |")
    print("|---|---|--:|--:|--:|--:|--:|")
    everything = {("all", joined): [error for (_, is_joined), errors in groups.items() if is_joined == joined
                                    for error in errors] for joined in (False, True)}
    for (table, is_joined), errors in {**groups, **everything}.items():
        print(f"| {table} | {'several' if is_joined else 'one'} | {len(errors)} | {statistics.median(errors):+.1f} | "
              f"{statistics.median(map(abs, errors)):.1f} | {covering(errors):.1f} | {min(errors):+.1f} to "
              f"{max(errors):+.1f} |")


if __name__ == "__main__":
    main()
