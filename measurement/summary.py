"""summary.csv: one row with the same columns for every strategy, and why a column is empty.

Pure functions of a `RunResult`: nothing here reads a clock, a file or a device.
"""

import math
import os
import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

from measurement import metrics
from measurement.columns import (
    CODE_COLUMNS,
    COMPLETE,
    ENERGY,
    FROM_NOISE,
    HIGH,
    INTERVALS,
    LOW,
    MACHINE,
    NO,
    PROFILED,
    RANK_COLUMNS,
    STAGE_TIMES,
    SUMMARY_COLUMNS,
    YES,
    deepspeed_settings,
)
from measurement.environment import hardware_name
from measurement.monitor import mean
from measurement.peak_rates import utilization_pct
from measurement.pipelines.idle_replay import mean_seconds, replayed_bubble_pct
from measurement.pipelines.spans import (
    bubble_pct,
    bubble_schedule_pct,
    imbalance_pct,
)
from measurement.rank_rows import describe_ranks
from measurement.run_result import RunResult
from workload.deepspeed_settings.config import tuned_by

UNTIMED = "no step after those that are not timed"
UNKNOWN = "unknown"


class Summary(NamedTuple):
    """The content of a run's last files.

    Attributes:
        row: of summary.csv.
        ranks: the rows of ranks.csv.
        empty: for each empty column of the row, the reason.
    """

    row: dict[str, Any]
    ranks: list[dict[str, Any]]
    empty: dict[str, str]


def summarize(result: RunResult) -> Summary:
    """The summary of a run that has been evaluated."""
    ranks = describe_ranks(result)
    empty = dict(result.reports[0].missing)
    row = _setting(result, empty) | _code(result, empty) | _quality(result, empty) | _speed(result, ranks, empty)
    row |= _devices(result, ranks, empty) | _parts_of_a_step(result, ranks, empty)
    row |= _efficiency(result, row["throughput_samples_per_s"], empty)
    for name in SUMMARY_COLUMNS:
        if row.get(name) is None:
            empty.setdefault(name, UNKNOWN if result.measures_all else "not measured with --measure throughput")
    return Summary({name: row.get(name) for name in SUMMARY_COLUMNS},
                   [{name: rank.get(name) for name in RANK_COLUMNS} for rank in ranks],
                   {name: reason for name, reason in empty.items() if row.get(name) is None})


def _setting(result: RunResult, empty: dict) -> dict:
    flags, run_json, split = result.flags, result.run_json, result.batch_split
    as_given = ("task", "global_batch_size", "micro_batch_size", "precision", "max_seq_length", "seed",
                "reference_batch_size", "cpu_threads")
    gpus = [device["gpu"] for rank in run_json["ranks"] for device in rank["devices"]]
    if result.schedule is None:
        empty["schedule"] = "not a pipeline"
    if run_json["deepspeed_config"] is None:
        empty["deepspeed_settings"] = "DeepSpeed is not used"
    return {name: flags[name] for name in as_given} | {
        "run_name": run_json["run_name"], "strategy": run_json["strategy"], "workload": run_json["workload"],
        "hardware": hardware_name(gpus, run_json["cpu"]["name"], run_json["environment"]),
        "model": os.path.basename(os.path.normpath(flags["model"])), "devices": flags["num_gpus"],
        "nodes": len({rank["node"] for rank in run_json["ranks"]}),
        "replicas": split.replicas, "pipeline_stages": result.stages, "schedule": result.schedule,
        "micro_batches": split.micro_batches, "forward_samples": split.micro_batch_size,
        "tuned_by": tuned_by(flags.get("deepspeed_config")),
        "optimizer_steps": result.progress.step, "samples": result.progress.samples,
        "skipped_steps": result.skipped_steps if result.measures_all else None,
        "epoch_workload": run_json["epoch_workload"],
        "deepspeed_settings": deepspeed_settings(run_json["deepspeed_config"]), COMPLETE: YES}


def _code(result: RunResult, empty: dict) -> dict:
    """Which code ran. Where attempts differ, all their values: such a row must not pass for one of either code."""
    empty["script_digest"] = "the script's file could not be read"
    _because("git's state is not known: no checkout, or no git", empty, ("commit", "dirty"))
    row = {}
    for name in CODE_COLUMNS:
        found = list(dict.fromkeys(attempt.get(name) for attempt in result.run_json["attempts"]))
        if name == "dirty":
            row[name] = YES if True in found else NO if None not in found else None
        else:
            row[name] = None if found == [None] else " + ".join(value or UNKNOWN for value in found)
    return row


def _quality(result: RunResult, empty: dict) -> dict:
    evaluation, flags = result.evaluation, result.flags
    for name in ("exact_match", "f1", "accuracy", "accuracy_mismatched", "perplexity"):
        if name not in evaluation.metrics:
            empty[name] = f"not a metric of {flags['task']}"
    has_target = flags["target_f1"] is not None or flags["target_loss"] is not None
    _because("no evaluation reached the target" if has_target else "no --target_f1 or --target_loss was given", empty,
             ("time_to_target_s", "samples_to_target"))
    _because("not given", empty, ("target_f1", "target_loss"))
    return {"validation_loss": evaluation.validation_loss, **evaluation.metrics, "target_f1": flags["target_f1"],
            "target_loss": flags["target_loss"], **result.target_reached}


def _speed(result: RunResult, ranks: list[dict], empty: dict) -> dict:
    work, seconds = result.progress.work, result.progress.throughput_s
    peak, devices = result.peak_tflops, result.flags["num_gpus"]
    if peak is None:
        _because(result.peak_tflops_source, empty, ("peak_tflops", "mfu_pct", "hfu_pct"))
    if not work.model_flops:
        _because(f"no FLOP formula for a {result.run_json['model']['family']!r} model", empty,
                 ("model_flops_per_sample", "mfu_pct", "hfu_pct"))
    if result.measures_all:
        empty["epoch_s"] = (f"the run ended before its first epoch, of {result.steps_per_epoch} steps"
                            if result.progress.step < result.steps_per_epoch else
                            "no step of an epoch that was trained to its end was timed")
    row = {"runtime_s": result.runtime_s, "peak_tflops": peak, "throughput_samples_per_s": None,
           "epoch_s": result.epoch_s}
    if not work.steps:
        _because(UNTIMED, empty, ("throughput_samples_per_s", "throughput_tokens_per_s", "mfu_pct", "hfu_pct",
                                  "model_flops_per_sample", "data_s_per_step"))
        return row
    return row | {
        "throughput_samples_per_s": work.samples / seconds, "throughput_tokens_per_s": work.tokens / seconds,
        # None instead of 0 where no formula counts the FLOPs.
        "model_flops_per_sample": work.model_flops / work.samples or None,
        "mfu_pct": peak and utilization_pct(work.model_flops, seconds, devices, peak) or None,
        "hfu_pct": peak and utilization_pct(work.hardware_flops, seconds, devices, peak) or None,
        # All ranks wait for the slowest.
        "data_s_per_step": max(rank["data_s_per_step"] for rank in ranks)}


def _devices(result: RunResult, ranks: list[dict], empty: dict) -> dict:
    def readings(name: str) -> list[float]:
        return [rank[name] for rank in ranks if rank.get(name) is not None]

    energy, in_window = readings("energy_j"), readings("window_energy_j")
    if len(result.run_json["attempts"]) > 1:
        energy, in_window = [], []
        _because("the run was resumed from a checkpoint, and the energy of earlier attempts is not known", empty,
                 ("energy_j", "energy_j_per_1000_samples"))
    if result.measures_all:
        for name in ("gpu_utilization_pct", "cpu_utilization_pct", "peak_memory_gib", *ENERGY, *MACHINE):
            empty.setdefault(name, "no sample of it while throughput was measured, or the system does not tell")
    samples = result.progress.work.samples
    return {"gpu_utilization_pct": mean(readings("gpu_utilization_pct")),
            "cpu_utilization_pct": mean(readings("cpu_utilization_pct")),
            "peak_memory_gib": max(readings("peak_memory_gib"), default=None),
            # A sum over some of the devices would pass for the sum over all.
            "energy_j": sum(energy) if len(energy) == len(ranks) else None,
            "energy_j_per_1000_samples": 1000 * sum(in_window) / samples if len(in_window) == len(ranks) and samples
            else None,
            "power_w": mean(readings("power_w")), "temperature_c": max(readings("temperature_c"), default=None),
            "throttled_pct": mean(readings("throttled_pct")),
            "machine_drift_pct": max(readings("machine_drift_pct"), key=abs, default=None),
            # All ranks wait for those on the busiest node.
            "other_load_pct": max(readings("other_load_pct"), default=None),
            "steal_pct": max(readings("steal_pct"), default=None),
            "cpu_clock_mhz": mean(readings("cpu_clock_mhz")), "sm_clock_mhz": mean(readings("sm_clock_mhz"))}


def _efficiency(result: RunResult, throughput: float | None, empty: dict) -> dict:
    batch, reference = result.flags["global_batch_size"], result.flags["reference_batch_size"]
    noise = metrics.noise_scale(result.noise_norms, result.gradient_samples, batch)
    efficiency = None if noise.samples is None else metrics.statistical_efficiency(noise.samples, batch, reference)
    low, high = metrics.efficiency_interval(noise, batch, reference) or (None, None)
    unbounded = noise.high is not None and math.isinf(noise.high)
    jitter = _mean_change(result.losses)
    published = None if jitter is None else metrics.published_statistical_efficiency(jitter,
                                                                                     result.batch_split.micro_batch_size)
    _because(noise.reason or UNTIMED, empty, (*FROM_NOISE, "noise_scale_negative_pct", "effective_sampled_steps"))
    _because(noise.interval_reason or UNTIMED, empty, INTERVALS)
    if unbounded:
        empty["noise_scale_samples" + HIGH] = "unbounded: the lower end of the interval of |G|^2 is not positive"
    _because("no two steps were recorded" if jitter is None else UNTIMED, empty,
             ("published_stats_efficiency", "published_goodput"))
    values = {"noise_scale_samples": (noise.samples, noise.low, None if unbounded else noise.high),
              "statistical_efficiency": (efficiency, low, high),
              # Throughput counts as known.
              "goodput_samples_per_s": [metrics.goodput(throughput, value) if throughput and value else None
                                        for value in (efficiency, low, high)]}
    return {name + end: value for name, found in values.items()
            for end, value in zip(("", LOW, HIGH), found, strict=True)} | {
        "noise_scale_negative_pct": noise.negative_pct,
        "sampled_steps": noise.steps if result.measures_all else None,
        "effective_sampled_steps": noise.effective_steps, "published_stats_efficiency": published,
        "published_goodput": metrics.goodput(throughput, published) if throughput and published else None}


def _mean_change(losses: list[float]) -> float | None:
    """Mean absolute difference between the losses of consecutive steps; infinite ones and NaN are left out."""
    changes = [abs(after - before) for before, after in zip(losses, losses[1:], strict=False)]
    return mean([change for change in changes if math.isfinite(change)])


def _parts_of_a_step(result: RunResult, ranks: list[dict], empty: dict) -> dict:
    row, steps, actions = {}, result.watched_steps, result.actions
    if steps:
        bubbles = [bubble_pct(step) for step in steps]
        row = {"bubble_pct": mean(bubbles), "bubble_sd_pct": statistics.stdev(bubbles) if len(bubbles) > 1 else None,
               "imbalance_pct": imbalance_pct([span for step in steps for span in step]),
               "bubble_schedule_pct": (
                   replayed_bubble_pct(actions, mean_seconds(actions, steps)) if actions else
                   bubble_schedule_pct(result.stages, result.batch_split.micro_batches)),
               **{name: mean([rank[name] for rank in ranks]) for name in STAGE_TIMES}}
        empty["bubble_sd_pct"] = "only one step was watched"
    elif result.measures_all:
        _because("not a pipeline", empty,
                 ("bubble_pct", "bubble_sd_pct", "bubble_schedule_pct", "imbalance_pct", *STAGE_TIMES))
    if result.profile_has_devices is None:
        _because("no --profile_steps was given", empty, PROFILED)
        return row
    # A mean over some of the ranks would pass for the mean over all.
    row |= {name: mean([rank[name] for rank in ranks]) for name in PROFILED
            if all(rank.get(name) is not None for rank in ranks)}
    _because("the trace does not say how large NCCL's messages were", empty,
             ("collective_mib_per_step", "point_to_point_mib_per_step"))
    empty["collective_wire_mib_per_step"] = "the trace does not say how many processes each collective spanned"
    if not result.profile_has_devices:
        _because("PyTorch's profiler cannot trace GPUs here (no CUPTI)", empty, PROFILED)
    return row


def _because(reason: str, empty: dict, names: Iterable[str]) -> None:
    empty.update(dict.fromkeys(names, reason))
