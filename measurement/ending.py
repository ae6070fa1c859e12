"""How a run ends: finished, with a summary; stopped, with a checkpoint; or failed."""

import sys
from typing import NoReturn

import torch
import torch.distributed as dist

from measurement.environment import GIB, is_out_of_memory
from measurement.pipelines.timeline import draw, typical_step, write_trace
from measurement.results import RANK_COLUMNS, SUMMARY_COLUMNS, Table
from measurement.signals import mark_ended
from measurement.summary import describe_ranks, rows_without_extras, summarize
from workload.checkpoints import newest_checkpoint
from workload.errors import InputError, storage_problem
from workload.launch.processes import TRY_AGAIN, leave


def finish(run) -> None:
    """Write the summary and call the run finished, after the last evaluation."""
    mine = {"rank": run.processes.rank, "order": run.order.total,
            "spans": {step: timeline.spans() for step, timeline in run.timelines.items()},
            "devices": run.monitor.stop() if run.monitor else {}, "missing": getattr(run.monitor, "missing", {}),
            "data_s_per_step": run.throughput.work.data_s / max(run.throughput.work.steps, 1),
            "costs": run.profiler.costs if run.profiler else {},
            "peak_gib": (max(map(torch.cuda.max_memory_allocated, run.processes.devices)) / GIB
                         if run.device.type == "cuda" else None)}
    reports = [None] * run.processes.count
    dist.all_gather_object(reports, mine)
    if not run.is_main:
        return
    step, spans = typical_step([report["spans"] for report in reports])
    rows = describe_ranks(run.ranks, reports, spans)
    summary, empty = summarize(run, rows, spans, reports[0]["missing"])
    if spans:
        write_trace(spans, run.folder / "timeline.json")
        draw(spans, f"{run.folder.name}: step {step}", run.folder / "timeline.png")
    for name, columns, content in (("ranks.csv", RANK_COLUMNS, rows_without_extras(rows)),
                                   ("summary.csv", SUMMARY_COLUMNS, [summary])):
        table = Table(run.folder / name, columns)
        for row in content:
            table.add(**row)
        table.close()
    run.record.finish(run.order.combine([report["order"] for report in reports]), empty)
    evaluation = run.record.evaluation
    print(f"{run.folder.name}: {run.samples} samples in {summary['runtime_s']:.0f} s, "
          f"{summary['throughput_samples_per_s'] or float('nan'):.1f} samples/s, "
          f"validation loss {evaluation.validation_loss:.4f}, "
          + ", ".join(f"{name} {value:.2f}" for name, value in evaluation.metrics.items())
          + f" -> {run.folder}", flush=True)


def stop(run, reason: str) -> NoReturn:
    """A rank was told to; the checkpoint is written."""
    if run.is_main:
        run.bar.close()
        mark_ended(run.folder / "run.json", "stopped", f"{reason}, after step {run.step}")
        print(f"{run.folder.name}: stopped by {reason} after step {run.step}, with a checkpoint; the same "
              "command with --resume goes on", file=sys.stderr, flush=True)
    leave(TRY_AGAIN)


def fail(run) -> NoReturn:
    """Training came upon what is no number."""
    if run.is_main:
        run.bar.close()
        last = newest_checkpoint(run.folder)
        reason = (f"{run.record.nonfinite}; last good checkpoint: {last.folder.name if last else 'none'}. Lower "
                  "--learning_rate, or --skip_nonfinite leaves such steps out")
        mark_ended(run.folder / "run.json", "failed", reason)
        print("error:", reason, file=sys.stderr, flush=True)
    leave(1)


def end_badly(run, error: BaseException) -> None:
    """An error ends this rank: the record says which, and what a user can mend is said in one line.

    Raises:
        InputError: the disk takes nothing more.
        SystemExit: the memory did not suffice.
    """
    is_exit = isinstance(error, SystemExit)  # as DeepSpeed's autotuner ends its trials
    status = "out_of_memory" if is_out_of_memory(error) else "stopped" if is_exit else "failed"
    reason = f"rank {run.processes.rank}: {type(error).__name__}: {error}"
    if run.stop_watch and run.stop_watch.reason:  # what fails then fails because others were stopped
        reason = f"stopped by {run.stop_watch.reason}: another rank died, or the job was cancelled; {reason}"
    mark_ended(run.folder / "run.json", status, reason)
    if status == "out_of_memory":
        print(f"error: out of memory on {run.device}; lower --micro_batch_size (now "
              f"{run.job.split.micro_batch_size})", file=sys.stderr, flush=True)
        sys.exit(1)
    if problem := storage_problem(error, run.folder):
        raise InputError(problem) from error
