"""How a run ends: finished, with a summary; stopped, with a checkpoint; or failed."""

import sys
import time
from pathlib import Path
from typing import NoReturn

from measurement.columns import RANK_COLUMNS, SUMMARY_COLUMNS
from measurement.environment import is_out_of_memory
from measurement.peak_rates import peak_tflops
from measurement.pipelines.idle_replay import Actions
from measurement.pipelines.spans import draw, typical_step, watched_steps, write_trace
from measurement.recorder import Recorder
from measurement.run_json import mark_ended
from measurement.run_result import RankReport, RunResult
from measurement.summary import summarize
from measurement.table import Table
from workload.batches import OrderHash
from workload.checkpoints import newest_checkpoint
from workload.errors import InputError, storage_problem
from workload.job import Job
from workload.launch.processes import TRY_AGAIN, leave

FEW_TIMED_STEPS = 10  # a rate from fewer is said to be


def finish(job: Job, recorder: Recorder, reports: list[RankReport], actions: Actions | None,
           profile_has_devices: bool | None) -> None:
    """Write the summary and mark the run finished; on rank 0, after the last evaluation.

    Args:
        reports: of each rank.
        actions, profile_has_devices: see `RunResult`.
    """
    watched = watched_steps([report.spans for report in reports])
    evaluation = recorder.evaluation
    assert evaluation is not None, "the last step is always followed by an evaluation"
    peak, source = _peak_tflops(job, recorder.run_json.content["ranks"])
    result = RunResult(
        run_json=recorder.run_json.content, batch_split=job.batch_split,
        gradient_samples=job.batch_split_per_process.micro_batch_size,
        stages=job.stages, schedule=job.schedule, actions=actions, steps_per_epoch=job.steps_an_epoch,
        runtime_s=recorder.elapsed(time.time()), evaluation=evaluation,
        target_reached=recorder.target_reached, losses=recorder.losses, noise_norms=recorder.noise_norms,
        epoch_s=recorder.epoch_s, skipped_steps=recorder.skipped_steps, peak_tflops=peak,
        peak_tflops_source=source, reports=reports, watched_steps=list(watched.values()),
        profile_has_devices=profile_has_devices)
    summary = summarize(result)
    if watched:
        step = typical_step(watched)
        write_trace(watched[step], job.folder / "timeline.json")
        draw(watched[step], f"{job.folder.name}: step {step}", job.folder / "timeline.png")
    for name, columns, rows in (("ranks.csv", RANK_COLUMNS, summary.ranks),
                                ("summary.csv", SUMMARY_COLUMNS, [summary.row])):
        table = Table(job.folder / name, columns)
        for row in rows:
            table.add(**row)
        table.close()
    recorder.close()
    recorder.run_json.finish(OrderHash.combine([report.progress.order_total for report in reports]), summary.empty,
                             source, [report.matrix_product_s for report in reports])
    rate = f"{summary.row['throughput_samples_per_s'] or float('nan'):.1f} samples/s"
    if (timed := result.progress.work.steps) < FEW_TIMED_STEPS:
        rate += f" (from {timed} timed step{'s' * (timed != 1)} only)"
    print(f"{job.folder.name}: {result.progress.samples} samples in {result.runtime_s:.0f} s, {rate}, "
          f"validation loss {result.evaluation.validation_loss:.4f}, "
          + ", ".join(f"{name} {value:.2f}" for name, value in result.evaluation.metrics.items())
          + f" -> {job.folder}", flush=True)


def _peak_tflops(job: Job, ranks: list[dict]) -> tuple[float | None, str]:
    """The peak rate of one device of the run, and where it is from; or None, and why."""
    if job.arguments.peak_tflops is not None:
        return job.arguments.peak_tflops, "--peak_tflops"
    gpus = {device["gpu"] for rank in ranks for device in rank["devices"]}
    if len(gpus) > 1:
        return None, "the run's GPUs differ; --peak_tflops gives one rate for all"
    return peak_tflops(gpus.pop(), job.precision)


def stop(folder: Path, step: int, reason: str, is_main: bool) -> NoReturn:
    """Exit after a stop request; the checkpoint of `step` has been written."""
    if is_main:
        mark_ended(folder / "run.json", "stopped", f"{reason}, after step {step}")
        print(f"{folder.name}: stopped by {reason} after step {step}, with a checkpoint; repeat the command with "
              "--resume to continue", file=sys.stderr, flush=True)
    leave(TRY_AGAIN)


def fail(folder: Path, nonfinite: str | None, is_main: bool) -> NoReturn:
    """Exit because a loss or gradient became NaN or infinite.

    Args:
        nonfinite: on rank 0, where that was first seen.
    """
    if is_main:
        last = newest_checkpoint(folder)
        reason = (f"{nonfinite}; last good checkpoint: {last.folder.name if last else 'none'}. Use a lower "
                  "--learning_rate, or --skip_nonfinite to leave such steps out")
        mark_ended(folder / "run.json", "failed", reason)
        print("error:", reason, file=sys.stderr, flush=True)
    leave(1)


def end_badly(job: Job, error: BaseException, stop_reason: str | None) -> None:
    """Record which error ends this rank. What a user can fix is reported in one line.

    Args:
        stop_reason: what told this rank to stop before, if anything did.

    Raises:
        InputError: the disk is full, or cannot be written to.
        SystemExit: out of memory.
    """
    is_exit = isinstance(error, SystemExit)  # DeepSpeed's autotuner ends its trials with one
    status = "out_of_memory" if is_out_of_memory(error) else "stopped" if is_exit else "failed"
    reason = f"rank {job.processes.rank}: {type(error).__name__}: {error}"
    if stop_reason:  # then this error is most likely a consequence of other ranks having been stopped
        reason = f"stopped by {stop_reason}: another rank died, or the job was cancelled; {reason}"
    mark_ended(job.folder / "run.json", status, reason)
    if status == "out_of_memory":
        print(f"error: out of memory on {job.processes.device}; lower --micro_batch_size (now "
              f"{job.batch_split.micro_batch_size})", file=sys.stderr, flush=True)
        sys.exit(1)
    if problem := storage_problem(error, job.folder):
        raise InputError(problem) from error
