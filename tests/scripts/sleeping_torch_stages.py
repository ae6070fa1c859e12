"""PyTorch's schedules over layers that only sleep, so that their bubbles are known; prints what the timelines measure.

    torchrun --nproc-per-node 2 -m tests.scripts.sleeping_torch_stages 4

Each process has two layers. Each of a layer's passes takes 300 ms: forward, backward for its input, for its weight.
The argument is the number of micro-batches.
"""

import json
import sys
import time

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import get_schedule_class

from measurement.clock import synchronize
from measurement.pipelines.idle_replay import mean_seconds, replayed_bubble_pct
from measurement.pipelines.spans import bubble_pct, bubble_schedule_pct
from measurement.pipelines.timeline import StepTimeline
from measurement.pipelines.torch_timeline import actions_of, watch_schedule
from workload.pipelines.dealing import TORCH_NAMES
from workload.pipelines.schedules import PipelinePlan

UNIT_S = 0.3  # a virtual machine that slept takes some 10 ms to go on


class Sleep(torch.autograd.Function):
    @staticmethod
    def forward(context, x, forward_s, backward_s):
        context.backward_s = backward_s
        time.sleep(forward_s)
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        time.sleep(context.backward_s)
        return gradient.clone(), None, None


class SleepingLayer(torch.nn.Module):
    seconds = 0.0  # of each pass

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return Sleep.apply(x * Sleep.apply(self.weight, 0, self.seconds), self.seconds, self.seconds)


def main() -> None:
    micro_batches = int(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    cpu, rank, devices = torch.device("cpu"), dist.get_rank(), dist.get_world_size()
    measured = {}
    for name, names in TORCH_NAMES.items():
        plan = PipelinePlan(name, *names, devices, micro_batches)
        example, layers = torch.empty(1, 4, requires_grad=True), 2 // plan.pieces_a_device
        stages = [PipelineStage(torch.nn.Sequential(*(SleepingLayer() for _ in range(layers))), piece, plan.pieces, cpu,
                                input_args=example, output_args=example) for piece in plan.pieces_of(rank)]
        kind = get_schedule_class(plan.torch_name)
        schedule = kind(stages if plan.pieces_a_device > 1 else stages[0], micro_batches,
                        lambda x, label: (x - label).square().mean(), scale_grads=False)
        for watched in (False, True):  # the first step makes connections, and does not sleep
            SleepingLayer.seconds = UNIT_S * watched
            synchronize(cpu)
            timeline = StepTimeline(0, rank, cpu)
            with watch_schedule(schedule, timeline if watched else None):
                schedule.step(*([torch.ones(micro_batches, 4)] if rank == 0 else []),
                              target=torch.zeros(micro_batches, 4))
        spans = [None] * devices
        dist.all_gather_object(spans, timeline.spans())
        spans = [span for each in spans for span in each]
        actions = actions_of(schedule)
        expected = (replayed_bubble_pct(actions, mean_seconds(actions, [spans])) if actions else
                    bubble_schedule_pct(devices, micro_batches))
        measured[name] = {"bubble_pct": bubble_pct(spans), "bubble_schedule_pct": expected}
    if rank == 0:
        print(json.dumps(measured))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
