"""BERT with plain data parallelism: PyTorch DistributedDataParallel (DDP). One process is the single-device reference.

    python bert_baseline.py --num_gpus 4
    torchrun --nproc-per-node 4 bert_baseline.py
    python bert_baseline.py --sample --model tiny --num_gpus 2 --max_steps 300 --learning_rate 1e-3

Every device holds the whole model and takes its slice of each batch; after the last micro-batch of a step DDP
averages the gradients over the devices.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from measurement.noise_scale import GradientNoise
from measurement.run import Part, Run
from workload.arguments import Arguments, parse_arguments
from workload.batches import Share
from workload.errors import one_line_errors
from workload.evaluation import evaluate
from workload.job import prepare
from workload.launch.processes import devices_asked_for, leave
from workload.models.layers import layer_names
from workload.optimizer import (
    autocast,
    build_optimizer,
    build_scaler,
    build_schedule,
    clip_by_global_norm,
    keep_casts,
    loss_scale,
    skip_if_nonfinite,
)
from workload.training_state import TrainingState


def main() -> None:
    arguments = parse_arguments(Arguments)
    job = prepare("ddp", arguments, devices_asked_for(arguments.num_gpus))
    task, processes, device = job.task, job.processes, job.processes.device

    # --- the strategy: a whole copy of the model on every device, and a slice of the batch for each
    replica = processes.rank
    model = task.build_model().to(device, dtype=torch.bfloat16 if job.precision == "bf16_native" else None)
    parallel = model
    if processes.count > 1:
        parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)  # gradients are not copied to be sent
        parallel.broadcast_buffers = False  # they hold positions, which never change
    # ---

    parameters = list(model.parameters())
    optimizer = build_optimizer(parameters, arguments)
    schedule = build_schedule(optimizer, arguments, job.steps)
    scaler = build_scaler(job.precision, device)
    state = TrainingState(model.named_parameters(), optimizer, schedule, scaler, processes.devices)
    micro_batches_a_step = job.split.micro_batches
    noise = GradientNoise(parameters, job.split.replicas * micro_batches_a_step, 1 / micro_batches_a_step,
                          arguments.noise_scale_steps)
    training, evaluation = job.batches("train", replica), job.batches("validation", replica)

    def forward(share: Share) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        model.eval()
        for micro_batch in share.micro_batches:
            with autocast(job.precision, device):
                logits = task.logits(model, micro_batch.inputs)
            yield task.judge(logits, micro_batch.labels)

    part = Part(replica, stage=0, layers=layer_names(model), parameters=sum(p.numel() for p in parameters))
    torch.manual_seed(arguments.seed + processes.rank)  # dropout differs between devices
    with Run(job, part) as run:
        for step, share in run.training_steps(training, state):
            model.train()
            noise.begin_step(step)
            loss = torch.zeros((), device=device)

            # --- the strategy: gradients add up on the device; with the last micro-batch they are averaged over all
            with keep_casts(job.precision, device):
                for number, micro_batch in enumerate(share.micro_batches, start=1):
                    is_last = number == micro_batches_a_step
                    if is_last and parallel is not model:
                        torch.clear_autocast_cache()  # so that gradients are sent as they come; see keep_casts
                    with contextlib.nullcontext() if is_last or parallel is model else parallel.no_sync():
                        with autocast(job.precision, device):
                            logits = task.logits(parallel, micro_batch.inputs)
                        micro_loss = task.loss(logits, micro_batch.labels).mean() / micro_batches_a_step
                        scaler.scale(micro_loss).backward()
                    loss += micro_loss.detach()
            dist.all_reduce(loss)
            loss /= job.split.replicas
            # ---

            scaler.unscale_(optimizer)
            grad_norm = clip_by_global_norm(parameters, arguments.max_grad_norm)
            skip_if_nonfinite(optimizer, grad_norm, arguments)
            norms = noise.end_step(grad_norm, loss_scale(scaler, device))
            scaler.step(optimizer)
            scaler.update()
            learning_rate = schedule.get_last_lr()[0]
            schedule.step()
            optimizer.zero_grad()
            run.record_step(loss, grad_norm, learning_rate, norms)
            if run.evaluation_is_due():
                run.record_evaluation(lambda: evaluate(task, evaluation, processes, forward))

        if arguments.save_model and processes.is_main:
            model.save_pretrained(run.folder / "model")
            task.tokenizer.save_pretrained(run.folder / "model")
        run.finish()
    leave()


if __name__ == "__main__":
    with one_line_errors():
        main()
