"""BERT with plain data parallelism: PyTorch DistributedDataParallel (DDP). One process is the single-device reference.

    python bert_baseline.py --num_gpus 4
    torchrun --nproc-per-node 4 bert_baseline.py
    python bert_baseline.py --sample --model tiny --num_gpus 2 --max_steps 300 --learning_rate 1e-3

Every device holds the whole model and takes its slice of each batch; after the last micro-batch of a step DDP
averages the gradients over the devices.
"""

import contextlib

import torch
from torch.nn.parallel import DistributedDataParallel

from measurement.noise_scale import GradientNoise
from measurement.run import Part, Run
from workload.arguments import Arguments, parse_arguments
from workload.errors import one_line_errors
from workload.evaluation import whole_model
from workload.job import prepare
from workload.launch.processes import leave
from workload.launch.start import devices_asked_for
from workload.models.loading import save_whole
from workload.optimization import Optimization
from workload.precision import autocast, keep_casts


def main() -> None:
    arguments = parse_arguments(Arguments)
    job = prepare("ddp", arguments, devices_asked_for(arguments.num_gpus))
    task, processes, device = job.task, job.processes, job.processes.device

    # --- the strategy: a whole copy of the model on every device, and a slice of the batch for each
    replica = processes.rank
    model = parallel = job.build_model(device)
    no_sync = contextlib.nullcontext
    if processes.count > 1:
        parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)  # gradients are not copied to be sent
        parallel.broadcast_buffers = False  # they hold positions, which never change
        no_sync = parallel.no_sync
    # ---

    noise = GradientNoise(model.parameters(), job.batch_split, job.noise_scale_steps)
    optimization = Optimization(job, model.named_parameters(), noise)
    training, evaluation = job.batches("train", replica), job.batches("validation", replica)
    forward = whole_model(job, model)
    torch.manual_seed(arguments.seed + processes.rank)  # dropout differs between devices
    with Run(job, Part.whole(model, replica)) as run:
        for step, share in run.training_steps(training, optimization.state):
            model.train()
            optimization.begin_step(step)
            loss = torch.zeros((), device=device)

            # --- the strategy: gradients add up on the device; with the last micro-batch they are averaged over all
            with keep_casts(job.precision, device):
                for number, micro_batch in enumerate(share.micro_batches, start=1):
                    is_last = number == job.batch_split.micro_batches
                    if is_last and parallel is not model:
                        torch.clear_autocast_cache()  # so that gradients are sent as they come; see keep_casts
                    with contextlib.nullcontext() if is_last else no_sync():
                        with autocast(job.precision, device):
                            logits = task.logits(parallel, micro_batch.inputs)
                        loss += optimization.backward(task.loss(logits, micro_batch.labels).mean())
            loss = processes.mean(loss)
            # ---

            run.record_step(loss, optimization.step())
            run.evaluate_if_due(evaluation, forward)

        if arguments.save_model and processes.is_main:
            save_whole(task, model, run.folder / "model")
        run.finish()
    leave()


if __name__ == "__main__":
    with one_line_errors():
        main()
