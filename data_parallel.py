"""BERT with torch.nn.DataParallel: one process that feeds all GPUs; what PyTorch had before DDP, and advises against.

    python data_parallel.py                       # all visible GPUs
    python data_parallel.py --num_gpus 2
    python data_parallel.py --sample --model tiny --max_steps 300 --learning_rate 1e-3

GPU 0 holds the model and the optimizer. In every forward pass the model is copied to the other GPUs and the samples are
cut over all; logits come back to GPU 0, as do the gradients in the backward pass, where they are summed. Without a GPU
nothing is spread: it runs on one device, the CPU, and run.json says so.
"""

from collections.abc import Iterator

import torch

from measurement.noise_scale import GradientNoise
from measurement.run import Part, Run
from workload.arguments import Arguments, parse_arguments
from workload.batches import Share
from workload.errors import InputError, one_line_errors
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
    loss_scale,
    skip_if_nonfinite,
)
from workload.training_state import TrainingState


class Logits(torch.nn.Module):
    """What a GPU runs, in a thread of its own: DataParallel tells it that autocast is on, but not in which type."""

    def __init__(self, task, model: torch.nn.Module, precision: str) -> None:
        super().__init__()
        self.task, self.model, self.precision = task, model, precision

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        with autocast(self.precision, inputs["input_ids"].device):
            return self.task.logits(self.model, inputs)


def gpus_asked_for(num_gpus: int | None) -> int:
    """Devices of this one process; 1 where there is no GPU.

    Raises:
        InputError: more than the GPUs of this machine.
    """
    devices, visible = devices_asked_for(num_gpus), torch.cuda.device_count()
    if devices > max(visible, 1):
        raise InputError(f"{devices} devices asked for, but DataParallel is one process on one machine, which shows "
                         f"{visible} GPUs; use --num_gpus {max(visible, 1)}")
    return devices


def main() -> None:
    arguments = parse_arguments(Arguments)
    if arguments.compile:  # a compiled layer goes on with the first device's weights, whatever copy it is called on
        raise InputError("--compile would be wrong with DataParallel, which copies the layers for each forward pass; "
                         "use bert_baseline.py")
    devices = gpus_asked_for(arguments.num_gpus)
    job = prepare("data_parallel", arguments, devices, devices_a_process=devices)
    task, processes, device = job.task, job.processes, job.processes.device

    # --- the strategy: the whole model on the first device, copied to the others in every forward pass
    model = task.build_model().to(device, dtype=torch.bfloat16 if job.precision == "bf16_native" else None)
    parallel = torch.nn.DataParallel(Logits(task, model, job.precision), device_ids=list(range(devices)))
    # ---

    parameters = list(model.parameters())
    optimizer = build_optimizer(parameters, arguments)
    schedule = build_schedule(optimizer, arguments, job.steps)
    scaler = build_scaler(job.precision, device)
    state = TrainingState(model.named_parameters(), optimizer, schedule, scaler, processes.devices)
    micro_batches_a_step = job.split.micro_batches  # each as large as a micro-batch for every device
    noise = GradientNoise(parameters, micro_batches_a_step, 1 / micro_batches_a_step, arguments.noise_scale_steps)
    training, evaluation = job.batches("train", replica=0), job.batches("validation", replica=0)

    def forward(share: Share) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        model.eval()
        for micro_batch in share.micro_batches:
            yield task.judge(parallel(micro_batch.inputs), micro_batch.labels)

    part = Part(replica=0, stage=0, layers=layer_names(model), parameters=sum(p.numel() for p in parameters))
    torch.manual_seed(arguments.seed)
    for gpu in parallel.device_ids:  # dropout differs between devices
        torch.cuda.default_generators[gpu].manual_seed(arguments.seed + gpu)
    note = None if parallel.device_ids else "no GPU: DataParallel ran on one device, the CPU, and spread nothing"
    with Run(job, part, note=note) as run:
        for step, share in run.training_steps(training, state):
            model.train()
            noise.begin_step(step)
            loss = torch.zeros((), device=device)

            # --- the strategy: each micro-batch goes over all devices; gradients add up on the first
            for micro_batch in share.micro_batches:
                logits = parallel(micro_batch.inputs)
                micro_loss = task.loss(logits, micro_batch.labels).mean() / micro_batches_a_step
                scaler.scale(micro_loss).backward()
                loss += micro_loss.detach()
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

        if arguments.save_model:
            model.save_pretrained(run.folder / "model")
            task.tokenizer.save_pretrained(run.folder / "model")
        run.finish()
    leave()


if __name__ == "__main__":
    with one_line_errors():
        main()
