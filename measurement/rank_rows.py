"""ranks.csv: a row for each process. Pure functions of a `RunResult`."""

from typing import Any

from measurement.columns import STAGE_TIMES
from measurement.machine_state import drift_pct
from measurement.monitor import mean
from measurement.pipelines.spans import forward_backward_s, idle_s, seconds_by_kind
from measurement.run_result import RunResult


def describe_ranks(result: RunResult) -> list[dict[str, Any]]:
    """The rows of ranks.csv, and some values that only the summary uses."""
    devices = {rank: readings for report in result.reports for rank, readings in report.devices.items()}
    rows = []
    for rank, report in zip(result.run_json["ranks"], result.reports, strict=True):
        work = report.progress.work
        row = rank | devices.get(rank["rank"], {}) | report.profile | {
            "device": " + ".join(device["device"] for device in rank["devices"]),
            "data_s_per_step": work.data_s / max(work.steps, 1)}
        if report.peak_memory_gib is not None:
            row["peak_memory_gib"] = report.peak_memory_gib
        row["machine_drift_pct"] = drift_pct(_matrix_products(result, rank["rank"]))
        if steps := result.watched_steps:
            stage = rank["replica"], rank["stage"]
            seconds = seconds_by_kind([span for step in steps for span in step if (span.replica, span.stage) == stage])
            seconds["backward"] += seconds.pop("weight", 0)
            row |= {name: seconds[name.removesuffix("_s_per_step")] / len(steps) for name in STAGE_TIMES} | {
                "idle_s_per_step": mean([idle_s(step)[stage] for step in steps]),
                "bubble_pct": mean([100 * idle_s(step)[stage] / forward_backward_s(step) for step in steps])}
        rows.append(row)
    return rows


def _matrix_products(result: RunResult, rank: int) -> list[float]:
    """Seconds of a rank's matrix products: at the start of each attempt on as many processes, and at the end."""
    attempts = [attempt.get("matrix_product_s") or [] for attempt in result.run_json["attempts"]]
    products = [attempt[rank] for attempt in attempts if len(attempt) == len(result.reports)]
    return [product for product in (*products, result.reports[rank].matrix_product_s) if product is not None]
