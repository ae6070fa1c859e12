"""BERT with torch.nn.DataParallel: one process feeds all GPUs. It preceded DDP, and PyTorch advises against it.

    python data_parallel.py                       # all visible GPUs
    python data_parallel.py --num_gpus 2
    python data_parallel.py --sample --model tiny --max_steps 300 --learning_rate 1e-3

GPU 0 holds the model and the optimizer. In every forward pass the model is copied to the other GPUs and the samples are
cut over all; logits come back to GPU 0, as do the gradients in the backward pass, where they are summed. Without a GPU
nothing is spread: it runs on one device, the CPU, and run.json says so.
"""

import torch

from measurement.noise_scale import GradientNoise
from measurement.run import Part, Run
from workload.arguments import Arguments, parse_arguments
from workload.errors import InputError, one_line_errors
from workload.evaluation import whole_model
from workload.job import prepare
from workload.launch.gpus import visible_gpus
from workload.launch.processes import leave
from workload.launch.start import devices_asked_for
from workload.models.loading import save_whole
from workload.optimization import Optimization
from workload.precision import autocast


class WithAutocast(torch.nn.Module):
    """The model under autocast. DataParallel's thread of each GPU inherits that autocast is on, but not its type."""

    def __init__(self, model: torch.nn.Module, precision: str) -> None:
        super().__init__()
        self.model, self.precision = model, precision

    def forward(self, **inputs: torch.Tensor):
        with autocast(self.precision, inputs["input_ids"].device):
            return self.model(**inputs)


def gpus_asked_for(num_gpus: int | None) -> int:
    """Devices of this one process; 1 where there is no GPU.

    Raises:
        InputError: more than the GPUs of this machine.
    """
    devices, visible = devices_asked_for(num_gpus), visible_gpus()
    if devices > max(visible, 1):
        raise InputError(f"{devices} devices asked for, but DataParallel is one process on one machine, which shows "
                         f"{visible} GPUs; use --num_gpus {max(visible, 1)}")
    return devices


def main() -> None:
    arguments = parse_arguments(Arguments)
    if arguments.compile:  # a compiled layer keeps using the first device's weights, whatever copy it is called on
        raise InputError("--compile would be wrong with DataParallel, which copies the layers for each forward pass; "
                         "use bert_baseline.py")
    devices = gpus_asked_for(arguments.num_gpus)
    job = prepare("data_parallel", arguments, devices, devices_a_process=devices)
    task, device = job.task, job.processes.device

    # --- the strategy: the whole model on the first device, copied to the others in every forward pass
    model = job.build_model(device)
    parallel = torch.nn.DataParallel(WithAutocast(model, job.precision), device_ids=list(range(devices)))
    # ---

    noise = GradientNoise(model.parameters(), job.batch_split_per_process, job.noise_scale_steps)
    optimization = Optimization(job, model.named_parameters(), noise)
    training, evaluation = job.batches("train", replica=0), job.batches("validation", replica=0)
    forward = whole_model(job, model, called=parallel)
    torch.manual_seed(arguments.seed)
    for gpu in parallel.device_ids:  # dropout differs between devices
        torch.cuda.default_generators[gpu].manual_seed(arguments.seed + gpu)
    note = None if parallel.device_ids else "no GPU: DataParallel ran on one device, the CPU, and spread nothing"
    with Run(job, Part.whole(model, replica=0), note=note) as run:
        for step, share in run.training_steps(training, optimization.state):
            model.train()
            optimization.begin_step(step)
            loss = torch.zeros((), device=device)

            # --- the strategy: each micro-batch is cut over all devices; gradients add up on the first
            for micro_batch in share.micro_batches:
                logits = task.logits(parallel, micro_batch.inputs)
                loss += optimization.backward(task.loss(logits, micro_batch.labels).mean())
            # ---

            run.record_step(loss, optimization.step())
            run.evaluate_if_due(evaluation, forward)

        if arguments.save_model:
            save_whole(task, model, run.folder / "model")
        run.finish()
    leave()


if __name__ == "__main__":
    with one_line_errors():
        main()
