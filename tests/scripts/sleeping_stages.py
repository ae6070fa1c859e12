"""A DeepSpeed pipeline whose layers only sleep, so that its bubble is known; prints what its timeline measures.

The optimizer sleeps as well, for 4 units, which the bubble must not show.

    torchrun --nproc-per-node 4 -m tests.scripts.sleeping_stages '[1, 1, 1, 1]' 8

The first argument gives each stage's forward time in units of 300 ms (backward takes twice that), the second the
number of micro-batches.
"""

import json
import sys
import time

import torch
import torch.distributed as dist

from measurement.clock import synchronize
from measurement.pipelines.deepspeed_timeline import watch_instructions
from measurement.pipelines.spans import bubble_pct, bubble_schedule_pct, imbalance_pct
from measurement.pipelines.timeline import StepTimeline
from workload.launch.processes import join_deepspeed
from workload.terminal import quiet_libraries

UNIT_S = 0.3  # a virtual machine that slept takes some 10 ms to go on


class Sleep(torch.autograd.Function):
    @staticmethod
    def forward(context, x, seconds):
        context.seconds = seconds
        time.sleep(seconds)
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        time.sleep(2 * context.seconds)
        return gradient.clone(), None


class SleepingLayer(torch.nn.Module):
    unit_s = 0.0

    def __init__(self, units: int) -> None:
        super().__init__()
        self.units, self.weight = units, torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return Sleep.apply(x * self.weight, self.unit_s * self.units)


def main() -> None:
    units, micro_batches = json.loads(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    deepspeed = join_deepspeed()
    with quiet_libraries():
        module = deepspeed.pipe.PipelineModule([SleepingLayer(unit) for unit in units], num_stages=len(units),
                                               loss_fn=lambda x, label: (x - label).square().mean(),
                                               partition_method="uniform")
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
        optimizer.register_step_pre_hook(lambda *_: time.sleep(4 * SleepingLayer.unit_s))
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config={
            "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": micro_batches})
    cpu = torch.device("cpu")
    for step in (1, 2):  # the first agrees on shapes, and does not sleep
        SleepingLayer.unit_s = UNIT_S * (step == 2)
        synchronize(cpu)
        timeline = StepTimeline(0, engine.stage_id, cpu)
        batches = iter([(torch.ones(1, 4), torch.zeros(1, 4))] * micro_batches)
        with watch_instructions(engine, timeline if step == 2 else None):
            engine.train_batch(batches)
    spans = [None] * dist.get_world_size()
    dist.all_gather_object(spans, timeline.spans())
    spans = [span for each in spans for span in each]
    if dist.get_rank() == 0:
        print(json.dumps({"bubble_pct": bubble_pct(spans), "imbalance_pct": imbalance_pct(spans),
                          "bubble_schedule_pct": bubble_schedule_pct(len(units), micro_batches)}))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
