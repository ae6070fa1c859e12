"""BERT with DeepSpeed's ZeRO: data parallelism whose devices share out what DDP keeps on every one of them.

    python zero.py --num_gpus 4 --stage 3
    deepspeed --num_gpus 4 zero.py --stage 2 --offload
    python zero.py --sample --model tiny --num_gpus 2 --stage 1 --max_steps 300 --learning_rate 1e-3

Every device computes with the whole model on its slice of each batch. What it keeps is a part only: of the
optimizer's states (--stage 1), of the gradients as well (2), and of the parameters as well (3); those of a layer are
then gathered from all devices just before the layer is run, and kept until the backward pass has used them while
there are fewer than `stage3_max_live_parameters`. --stage 0 shares out nothing, as DDP.
"""

import contextlib
import functools
import warnings
from collections.abc import Iterator

import torch
import torch.distributed as dist

from measurement.noise_scale import GradientNoise
from measurement.run import Part, Run
from workload.arguments import ZeroArguments, parse_arguments
from workload.batches import Share
from workload.deepspeed_settings.config import complete_config, follow_config, read_deepspeed_config
from workload.errors import one_line_errors
from workload.evaluation import evaluate
from workload.job import prepare
from workload.launch.processes import devices_asked_for, join_deepspeed, leave, quiet_libraries
from workload.models.layers import layer_names
from workload.models.loading import write_model
from workload.optimizer import (
    build_optimizer,
    build_scaler,
    build_schedule,
    clip_by_global_norm,
    keep_casts,
    loss_scale,
    norm_on_device,
    replace_zero_loss_scaler,
    skip_if_nonfinite,
)
from workload.training_state import TrainingState, ZeroTrainingState


def main() -> None:
    arguments = parse_arguments(ZeroArguments)
    devices = devices_asked_for(arguments.num_gpus)
    config = read_deepspeed_config(arguments)
    follow_config(config, arguments, devices)
    job = prepare(f"zero{arguments.stage}" + "_offload" * arguments.offload, arguments, devices,
                  complete_settings=functools.partial(complete_config, config, arguments, arguments.stage,
                                                      arguments.offload))
    task, processes, device = job.task, job.processes, job.processes.device

    replica = processes.rank
    model = task.build_model().to(device, dtype=torch.bfloat16 if job.precision == "bf16_native" else None)
    parameters = list(model.parameters())
    part = Part(replica, stage=0, layers=layer_names(model), parameters=sum(p.numel() for p in parameters))
    optimizer = build_optimizer(parameters, arguments)
    schedule = build_schedule(optimizer, arguments, job.steps)

    # --- the strategy: DeepSpeed takes model and optimizer, and leaves each device its part of their tensors
    deepspeed = join_deepspeed()
    with quiet_libraries():
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=job.settings)
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # DeepSpeed's calls
    # ---

    if arguments.stage == 0:
        scaler = build_scaler(job.precision, device)
        engine.torch_autocast_z0_gradscaler = scaler if scaler.is_enabled() else None
        optimizer.register_step_pre_hook(lambda *_: clip())  # DeepSpeed would as well, but keeps the norm to itself
        state = TrainingState(model.named_parameters(), optimizer, schedule, scaler, processes.devices)
    else:
        if job.precision == "fp16":
            replace_zero_loss_scaler(engine.optimizer)
        state = ZeroTrainingState(model.named_parameters(), optimizer, schedule, engine.optimizer,
                                  processes.devices)

    micro_batches_a_step = job.split.micro_batches
    noise = GradientNoise(parameters, job.split.replicas * micro_batches_a_step, 1 / micro_batches_a_step,
                          arguments.noise_scale_steps)
    training, evaluation = job.batches("train", replica), job.batches("validation", replica)
    grad_norm = torch.full((), float("inf"), device=device)

    def clip() -> None:
        nonlocal grad_norm
        grad_norm = clip_by_global_norm(parameters, arguments.max_grad_norm)
        skip_if_nonfinite(optimizer, grad_norm, arguments)

    def forward(share: Share) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        model.eval()
        for micro_batch in share.micro_batches:
            yield task.judge(task.logits(engine, micro_batch.inputs), micro_batch.labels)

    torch.manual_seed(arguments.seed + processes.rank)  # dropout differs between devices
    with Run(job, part, job.settings) as run:
        for step, share in run.training_steps(training, state):
            model.train()
            noise.begin_step(step)
            loss = torch.zeros((), device=device)
            scale = (loss_scale(scaler, device) if arguments.stage == 0
                     else torch.full((1,), engine.optimizer.loss_scale, device=device))
            grad_norm = torch.full((), float("inf"), device=device)  # stays if fp16 overflows and the step is skipped

            # --- the strategy: gradients are averaged over all devices, and what is shared out goes to its owner
            with keep_casts(job.precision, device) if arguments.stage < 2 else contextlib.nullcontext():
                for micro_batch in share.micro_batches:
                    if engine.is_gradient_accumulation_boundary():
                        torch.clear_autocast_cache()  # so that gradients are sent as they come; see keep_casts
                    logits = task.logits(engine, micro_batch.inputs)
                    micro_loss = task.loss(logits, micro_batch.labels).mean()
                    loss += engine.backward(micro_loss).detach()  # divides by the number of micro-batches
                    engine.step()  # clips and updates with the last micro-batch of a step; before, it only counts
            dist.all_reduce(loss)
            loss /= job.split.replicas
            # ---

            if arguments.stage > 0:
                grad_norm = norm_on_device(engine.get_global_grad_norm(), device)
            norms = noise.end_step(grad_norm, scale)
            learning_rate = schedule.get_last_lr()[0]
            schedule.step()
            run.record_step(loss, grad_norm, learning_rate, norms)
            if run.evaluation_is_due():
                run.record_evaluation(lambda: evaluate(task, evaluation, processes, forward))

        if arguments.save_model:
            save_model(task, model, processes.is_main, run.folder / "model")
        run.finish()
    leave()


def save_model(task, model: torch.nn.Module, is_main: bool, folder) -> None:
    """Gather the parameters one by one, each from all devices, into a Hugging Face model on rank 0's CPU."""
    import deepspeed

    state = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        with deepspeed.zero.GatheredParameters(parameter):
            if is_main:
                state[name] = parameter.detach().to("cpu", copy=True)
    if is_main:
        write_model(task, state, folder)


if __name__ == "__main__":
    with one_line_errors():
        main()
