"""summary.csv: one row with the same columns for every strategy, and why a column is empty."""

import os
import time

from measurement import metrics
from measurement.timeline import Span, bubble_pct, bubble_schedule_pct, imbalance_pct


def summarize(run, spans: list[Span], peaks_gib: list[float | None]) -> tuple[dict, dict[str, str]]:
    """The row of a `Run` that has been evaluated, and the reason for each column that stays empty.

    Args:
        spans: the measured step of a pipeline; empty for others.
        peaks_gib: each rank's peak of GPU memory.
    """
    job, arguments, clock = run.job, run.arguments, run.throughput
    empty = dict(run.monitor.missing)
    flags = job.resolved_flags()
    row = {name: flags[name] for name in ("task", "global_batch_size", "micro_batch_size", "precision",
                                          "max_seq_length", "seed", "reference_batch_size", "cpu_threads")}
    row |= {"run_name": run.folder.name, "strategy": job.strategy, "workload": run.description["workload"],
            "hardware": run.hardware,
            "model": os.path.basename(os.path.normpath(job.task.model_name)), "devices": job.devices,
            "replicas": job.split.replicas, "pipeline_stages": job.stages,
            "micro_batches": job.split.micro_batches, "optimizer_steps": run.step, "samples": run.samples,
            "runtime_s": run.elapsed(time.time()), "validation_loss": run.evaluation.validation_loss,
            **run.evaluation.metrics}
    for name in ("exact_match", "f1", "accuracy"):
        if name not in row:
            empty[name] = f"not a metric of {job.task.name}"

    throughput = clock.samples / clock.seconds if clock.samples else None
    if throughput is None:
        empty["throughput_samples_per_s"] = empty["throughput_tokens_per_s"] = "no step after the warm-up"
    row |= {"throughput_samples_per_s": throughput,
            "throughput_tokens_per_s": clock.tokens / clock.seconds if clock.samples else None,
            "gpu_utilization_pct": run.monitor.mean_utilization("gpu"),
            "cpu_utilization_pct": run.monitor.mean_utilization("cpu"),
            "peak_memory_gib": (max(peaks_gib) if run.device.type == "cuda"
                                else run.monitor.peak_process_memory_gib or None)}
    for name in ("gpu_utilization_pct", "cpu_utilization_pct", "peak_memory_gib"):
        if row[name] is None:
            empty.setdefault(name, "the measured steps were over before a first sample")

    noise = metrics.noise_scale(run.noise_norms, job.split.micro_batch_size, arguments.global_batch_size)
    efficiency = None if noise.samples is None else metrics.statistical_efficiency(
        noise.samples, arguments.global_batch_size, arguments.reference_batch_size)
    row |= {"noise_scale_samples": noise.samples, "noise_scale_negative_pct": noise.negative_pct,
            "statistical_efficiency": efficiency,
            "goodput_samples_per_s": metrics.goodput(throughput, efficiency) if throughput and efficiency else None}
    for name in ("noise_scale_samples", "noise_scale_negative_pct", "statistical_efficiency",
                 "goodput_samples_per_s"):
        if row[name] is None:
            empty[name] = noise.reason or empty["throughput_samples_per_s"]
    if spans:
        row |= {"bubble_pct": bubble_pct(spans), "imbalance_pct": imbalance_pct(spans),
                "bubble_schedule_pct": bubble_schedule_pct(job.stages, job.split.micro_batches)}
    else:
        empty |= dict.fromkeys(("bubble_pct", "bubble_schedule_pct", "imbalance_pct"), "not a pipeline")
    return row, empty
