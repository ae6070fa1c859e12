"""Records torch.distributed.pipelining on a timeline: what its stages compute, and when they wait for each other."""

import contextlib
from collections.abc import Callable, Iterator

import torch.distributed as dist
from torch.distributed.pipelining import schedules
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, PipelineScheduleSingle

from measurement.pipelines.idle_replay import Action, Actions
from measurement.pipelines.timeline import StepTimeline

KINDS = {"F": "forward", "B": "backward", "I": "backward", "W": "weight"}  # PyTorch's abbreviations


def actions_of(schedule: PipelineScheduleSingle | PipelineScheduleMulti) -> Actions | None:
    """Each device's actions under `schedule`; None for GPipe and 1F1B, whose idle share has a formula.

    (In torch 2.13 the `pipeline_order` of 1F1B counts the last device's micro-batches from 1, but runs them right.)
    """
    if isinstance(schedule, PipelineScheduleSingle):
        return None
    return [[Action(KINDS[action.computation_type.value], action.stage_index, action.microbatch_index)
             for action in schedule.pipeline_order[device] if action and action.microbatch_index is not None]
            for device in sorted(schedule.pipeline_order)]


@contextlib.contextmanager
def watch_schedule(schedule: PipelineScheduleSingle | PipelineScheduleMulti,
                   timeline: StepTimeline | None) -> Iterator[None]:
    """Record what `schedule` does within this context on `timeline`, if there is one.

    A stage's call for one micro-batch is compute; the last stage's loss counts as forward. The schedule's waits between
    them are sending or receiving; a combined send and receive (1F1B) counts as receiving.
    """
    if timeline is None:
        yield
        return
    stages = [schedule._stage] if isinstance(schedule, PipelineScheduleSingle) else schedule._stages

    def of_chunk(kind: str, piece: int, function: Callable) -> Callable:
        def call(chunk: int, *args, **kwargs):
            with timeline.span(kind, chunk, piece):
                return function(chunk, *args, **kwargs)
        return call

    def compute_loss(stage, output, targets, chunk: int, *args) -> None:
        with timeline.span("forward", chunk, stages.index(stage)) if stage.is_last else contextlib.nullcontext():
            maybe_compute_loss(stage, output, targets, chunk, *args)

    kinds: dict[int, str] = {}

    def begin(operations: list[dist.P2POp], *args, **kwargs) -> list[dist.Work]:
        works = begin_messages(operations, *args, **kwargs)
        kinds[id(works)] = "receive" if any(each.op is dist.irecv for each in operations) else "send"
        return works

    def wait(works: list[dist.Work]) -> None:
        with timeline.span(kinds[id(works)]) if works else contextlib.nullcontext():
            wait_for_messages(works)

    maybe_compute_loss = schedule._maybe_compute_loss
    begin_messages, wait_for_messages = schedules._batch_p2p, schedules._wait_batch_p2p
    schedules._batch_p2p, schedules._wait_batch_p2p = begin, wait
    # Private, and its last parameters differ between versions of PyTorch.
    schedule._maybe_compute_loss = compute_loss  # pyright: ignore[reportAttributeAccessIssue]
    methods = {"forward_one_chunk": "forward", "backward_one_chunk": "backward", "backward_weight_one_chunk": "weight"}
    for piece, stage in enumerate(stages):
        for method, kind in methods.items():
            setattr(stage, method, of_chunk(kind, piece, getattr(stage, method)))
    try:
        yield
    finally:
        schedules._batch_p2p, schedules._wait_batch_p2p = begin_messages, wait_for_messages
        del schedule._maybe_compute_loss  # the classes' own are visible again
        for stage in stages:
            for method in methods:
                delattr(stage, method)
