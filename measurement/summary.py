"""summary.csv, one row with the same columns for every strategy, and why one is empty; ranks.csv, a row per rank."""

import os
import time
from collections.abc import Iterable

from measurement import metrics
from measurement.monitor import mean
from measurement.peak_rates import peak_tflops, utilization_pct
from measurement.pipelines.idle_replay import mean_seconds, replayed_bubble_pct
from measurement.pipelines.timeline import (
    COMPUTE,
    Span,
    bubble_pct,
    bubble_schedule_pct,
    imbalance_pct,
    seconds_by_kind,
    wall_s,
)
from measurement.results import (
    COMPLETE,
    ENERGY,
    PROFILED,
    RANK_COLUMNS,
    STAGE_TIMES,
    SUMMARY_COLUMNS,
    YES,
    deepspeed_settings,
)
from workload.deepspeed_settings.config import tuned_by


def describe_ranks(ranks: list[dict], reports: list[dict], spans: list[Span]) -> list[dict]:
    """The rows of ranks.csv, and some columns beside, which only `summarize` reads.

    Args:
        ranks: each rank's device and part of the model.
        reports: what each rank measured.
        spans: the measured step of a pipeline; empty for others.
    """
    devices = {rank: readings for report in reports for rank, readings in report["devices"].items()}
    rows = []
    for rank, report in zip(ranks, reports, strict=True):
        row = rank | devices.get(rank["rank"], {}) | report["costs"] | {
            "device": " + ".join(device["device"] for device in rank["devices"]),
            "data_s_per_step": report["data_s_per_step"]}
        if report["peak_gib"] is not None:
            row["peak_memory_gib"] = report["peak_gib"]
        if spans:
            seconds = seconds_by_kind([span for span in spans
                                       if (span.replica, span.stage) == (rank["replica"], rank["stage"])])
            row["idle_s_per_step"] = wall_s(spans) - sum(seconds[kind] for kind in COMPUTE)
            seconds["backward"] += seconds.pop("weight", 0)
            row |= {name: seconds[name.removesuffix("_s_per_step")] for name in STAGE_TIMES}
        rows.append(row)
    return rows


def summarize(run, ranks: list[dict], spans: list[Span], missing: dict[str, str]) -> tuple[dict, dict[str, str]]:
    """The row of a `Run` that has been evaluated, and the reason for each column that stays empty.

    Args:
        ranks: what `describe_ranks` gave.
        spans: the measured step of a pipeline; empty for others.
        missing: columns that the monitor could not read, and why.
    """
    empty = dict(missing)
    if run.job.schedule is None:
        empty["schedule"] = "not a pipeline"
    if run.deepspeed_config is None:
        empty["deepspeed_settings"] = "DeepSpeed takes no part"
    row = _setting(run, ranks) | _quality(run, empty) | _speed(run, ranks, empty) | _devices(run, ranks, empty)
    row |= _efficiency(run, row["throughput_samples_per_s"], empty) | _parts_of_a_step(run, ranks, spans, empty)
    for name in SUMMARY_COLUMNS:
        if row.get(name) is None:
            empty.setdefault(name, "not measured with --measure throughput" if not run.measures_all else "unknown")
    return ({name: row.get(name) for name in SUMMARY_COLUMNS},
            {name: reason for name, reason in empty.items() if row.get(name) is None})


def rows_without_extras(ranks: list[dict]) -> list[dict]:
    """The rows as ranks.csv takes them."""
    return [{name: row.get(name) for name in RANK_COLUMNS} for row in ranks]


def _setting(run, ranks: list[dict]) -> dict:
    job, flags = run.job, run.job.resolved_flags()
    as_given = ("task", "global_batch_size", "micro_batch_size", "precision", "max_seq_length", "seed",
                "reference_batch_size", "cpu_threads")
    description = run.record.description
    cpu = f"CPU {description['cpu']['name']}"
    names = sorted({device["gpu"] or cpu for rank in ranks for device in rank["devices"]})
    return {name: flags[name] for name in as_given} | {
        "run_name": run.folder.name, "strategy": job.strategy, "workload": description["workload"],
        "hardware": ", ".join([" + ".join(names), *description["environment"]]),
        "model": os.path.basename(os.path.normpath(job.task.model_name)), "devices": job.devices,
        "nodes": len({rank["node"] for rank in ranks}),
        "replicas": job.split.replicas, "pipeline_stages": job.stages, "schedule": job.schedule,
        "micro_batches": job.split.micro_batches, "forward_samples": job.split.micro_batch_size,
        "tuned_by": tuned_by(flags.get("deepspeed_config")),
        "optimizer_steps": run.step, "samples": run.samples,
        "skipped_steps": run.record.skipped_steps if run.measures_all else None,
        "epoch_workload": description["epoch_workload"],
        "deepspeed_settings": deepspeed_settings(description["deepspeed_config"]), COMPLETE: YES}


def _quality(run, empty: dict) -> dict:
    evaluation, arguments = run.record.evaluation, run.arguments
    for name in ("exact_match", "f1", "accuracy", "accuracy_mismatched", "perplexity"):
        if name not in evaluation.metrics:
            empty[name] = f"not a metric of {run.job.task.name}"
    is_asked = arguments.target_f1 is not None or arguments.target_loss is not None
    for name in ("time_to_target_s", "samples_to_target"):
        empty[name] = "no evaluation reached the target" if is_asked else "no --target_f1 or --target_loss was given"
    for name in ("target_f1", "target_loss"):
        empty[name] = "not given"
    return {"validation_loss": evaluation.validation_loss, **evaluation.metrics, "target_f1": arguments.target_f1,
            "target_loss": arguments.target_loss, **run.record.target_reached}


def _speed(run, ranks: list[dict], empty: dict) -> dict:
    work, seconds = run.throughput.work, run.throughput.seconds
    peak, source = run.arguments.peak_tflops, "--peak_tflops"
    if peak is None:
        gpus = {device["gpu"] for rank in ranks for device in rank["devices"]}
        peak, source = (peak_tflops(gpus.pop(), run.job.precision) if len(gpus) == 1
                        else (None, "the run's GPUs differ; --peak_tflops gives one rate for all"))
    run.record.description["peak_tflops_source"] = source
    if peak is None:
        _because(source, empty, ("peak_tflops", "mfu_pct", "hfu_pct"))
    if run.shape is None:
        _because(f"no FLOP formula for a {run.job.task.config.model_type!r} model", empty,
                 ("model_flops_per_sample", "mfu_pct", "hfu_pct"))
    epochs = run.record.epoch_seconds
    if run.measures_all:
        empty["epoch_s"] = f"the run ended before its first epoch, of {run.job.steps_an_epoch} steps"
    row = {"runtime_s": run.record.elapsed(time.time()), "peak_tflops": peak, "throughput_samples_per_s": None,
           "epoch_s": mean(epochs)}
    if not work.steps:
        _because("no step after those that are not timed", empty, (
            "throughput_samples_per_s", "throughput_tokens_per_s", "mfu_pct", "hfu_pct", "model_flops_per_sample",
            "data_s_per_step"))
        return row
    return row | {
        "throughput_samples_per_s": work.samples / seconds, "throughput_tokens_per_s": work.tokens / seconds,
        # None instead of 0 where no formula counts the FLOPs.
        "model_flops_per_sample": work.model_flops / work.samples or None,
        "mfu_pct": peak and utilization_pct(work.model_flops, seconds, run.job.devices, peak) or None,
        "hfu_pct": peak and utilization_pct(work.hardware_flops, seconds, run.job.devices, peak) or None,
        # All wait for the rank that takes longest.
        "data_s_per_step": max(rank["data_s_per_step"] for rank in ranks)}


def _devices(run, ranks: list[dict], empty: dict) -> dict:
    def readings(name: str) -> list[float]:
        return [rank[name] for rank in ranks if rank.get(name) is not None]

    energy, in_window = readings("energy_j"), readings("window_energy_j")
    if run.job.checkpoint:  # what earlier attempts took is not known
        energy, in_window = [], []
        _because("the run went on from a checkpoint, and its meters did not", empty,
                 ("energy_j", "energy_j_per_1000_samples"))
    if run.measures_all:
        for name in ("gpu_utilization_pct", "cpu_utilization_pct", "peak_memory_gib", *ENERGY):
            empty.setdefault(name, "no sample of it while throughput was measured")
    samples = run.throughput.work.samples
    return {"gpu_utilization_pct": mean(readings("gpu_utilization_pct")),
            "cpu_utilization_pct": mean(readings("cpu_utilization_pct")),
            "peak_memory_gib": max(readings("peak_memory_gib"), default=None),
            # A sum over some of the devices would pass for one over all.
            "energy_j": sum(energy) if len(energy) == len(ranks) else None,
            "energy_j_per_1000_samples": 1000 * sum(in_window) / samples if len(in_window) == len(ranks) and samples
            else None,
            "power_w": mean(readings("power_w")), "temperature_c": max(readings("temperature_c"), default=None),
            "throttled_pct": mean(readings("throttled_pct"))}


def _efficiency(run, throughput: float | None, empty: dict) -> dict:
    job, arguments = run.job, run.arguments
    noise = metrics.noise_scale(run.record.noise_norms, job.split_of_processes.micro_batch_size,
                                arguments.global_batch_size)
    efficiency = None if noise.samples is None else metrics.statistical_efficiency(
        noise.samples, arguments.global_batch_size, arguments.reference_batch_size)
    jitter = run.record.loss_jitter()
    published = None if jitter is None else metrics.published_statistical_efficiency(jitter, job.split.micro_batch_size)
    for name in ("noise_scale_samples", "noise_scale_negative_pct", "statistical_efficiency", "goodput_samples_per_s"):
        empty[name] = noise.reason or "no step after those that are not timed"
    for name in ("published_stats_efficiency", "published_goodput"):
        empty[name] = "no two steps were recorded" if jitter is None else "no step after those that are not timed"
    return {"noise_scale_samples": noise.samples, "noise_scale_negative_pct": noise.negative_pct,
            "statistical_efficiency": efficiency, "published_stats_efficiency": published,
            "goodput_samples_per_s": metrics.goodput(throughput, efficiency) if throughput and efficiency else None,
            "published_goodput": metrics.goodput(throughput, published) if throughput and published else None}


def _parts_of_a_step(run, ranks: list[dict], spans: list[Span], empty: dict) -> dict:
    row = {}
    if spans:
        row = {"bubble_pct": bubble_pct(spans), "imbalance_pct": imbalance_pct(spans),
               "bubble_schedule_pct": (
                   replayed_bubble_pct(run.actions, mean_seconds(run.actions, spans)) if run.actions else
                   bubble_schedule_pct(run.job.stages, run.job.split.micro_batches)),
               **{name: mean([rank[name] for rank in ranks]) for name in STAGE_TIMES}}
    elif run.measures_all:
        _because("not a pipeline", empty, ("bubble_pct", "bubble_schedule_pct", "imbalance_pct", *STAGE_TIMES))
    if run.profiler:
        # A mean over the ranks that know would pass a part off as the whole.
        row |= {name: mean([rank[name] for rank in ranks]) for name in PROFILED
                if all(rank.get(name) is not None for rank in ranks)}
        _because("the trace does not say how large NCCL's messages were", empty,
                 ("collective_mib_per_step", "point_to_point_mib_per_step"))
        if not run.profiler.sees_device:
            _because("PyTorch's profiler cannot trace GPUs here (no CUPTI)", empty, PROFILED)
    else:
        _because("no --profile_steps was given", empty, PROFILED)
    return row


def _because(reason: str, empty: dict, names: Iterable[str]) -> None:
    empty.update(dict.fromkeys(names, reason))
