"""BERT with DeepSpeed's ZeRO: data parallelism in which devices divide what DDP keeps whole on each.

    python zero.py --num_gpus 4 --stage 3
    deepspeed --num_gpus 4 zero.py --stage 2 --offload
    python zero.py --num_gpus 4 --stage 3 --secondary_shard_group 2
    python zero.py --sample --model tiny --num_gpus 2 --stage 1 --max_steps 300 --learning_rate 1e-3

Every device computes with the whole model on its slice of each batch, but keeps only a part of the optimizer's states
(--stage 1), also of the gradients (2), and also of the parameters (3). In stage 3 the parameters of a layer are
gathered from all devices just before it runs, and kept for the backward pass as long as fewer than
`stage3_max_live_parameters` are gathered. With --secondary_shard_group (ZeRO++'s hpZ) every N neighbours keep a second
copy in shards: only the first gathering after an update is from all devices. --stage 0 divides nothing, like DDP.
"""

import contextlib
import functools
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from measurement.noise_scale import GradientNoise
from measurement.run import Part, Run
from workload.arguments import ZeroArguments, parse_arguments
from workload.deepspeed_settings.config import complete_config, follow_config, read_deepspeed_config
from workload.deepspeed_settings.flags import check_second_copy
from workload.errors import one_line_errors
from workload.evaluation import whole_model
from workload.job import prepare
from workload.launch.processes import join_deepspeed, leave
from workload.launch.start import devices_asked_for
from workload.models.loading import write_model
from workload.optimization import Optimization
from workload.precision import keep_casts
from workload.terminal import quiet_libraries

if TYPE_CHECKING:
    from workload.tasks.task import Task  # with libraries that take a second to import


def main() -> None:
    arguments = parse_arguments(ZeroArguments)
    devices = devices_asked_for(arguments.num_gpus)
    config = read_deepspeed_config(arguments)
    follow_config(config, arguments, devices)
    check_second_copy(arguments, devices)
    kind = "_offload" * arguments.offload
    kind += f"_hpz{arguments.secondary_shard_group}" if arguments.secondary_shard_group else ""
    job = prepare(f"zero{arguments.stage}" + kind, arguments, devices,
                  complete_settings=functools.partial(complete_config, config, arguments, arguments.stage,
                                                      arguments.offload))
    task, processes, device = job.task, job.processes, job.processes.device

    replica = processes.rank
    model = job.build_model(device)
    part = Part.whole(model, replica)
    noise = GradientNoise(model.parameters(), job.batch_split, job.noise_scale_steps)
    optimization = Optimization(job, model.named_parameters(), noise)

    # --- the strategy: DeepSpeed takes model and optimizer, and leaves each device its part of their tensors
    deepspeed = join_deepspeed()
    with quiet_libraries():
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimization.optimizer, config=job.settings)
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # DeepSpeed's calls
    if arguments.stage > 0:
        optimization.under_zero(engine.optimizer)
    else:  # it would clip as well, but keeps the norm to itself
        optimization.optimizer.register_step_pre_hook(optimization.clip)
        engine.torch_autocast_z0_gradscaler = optimization.scaler if optimization.scaler.is_enabled() else None
    # ---

    training, evaluation = job.batches("train", replica), job.batches("validation", replica)
    forward = whole_model(job, model, called=engine)
    torch.manual_seed(arguments.seed + processes.rank)  # dropout differs between devices
    with Run(job, part, job.settings) as run:
        for step, share in run.training_steps(training, optimization.state):
            model.train()
            optimization.begin_step(step)
            loss = torch.zeros((), device=device)

            # --- the strategy: gradients are averaged over all devices, and what is sharded goes to its owner
            with keep_casts(job.precision, device) if arguments.stage < 2 else contextlib.nullcontext():
                for micro_batch in share.micro_batches:
                    if engine.is_gradient_accumulation_boundary():
                        torch.clear_autocast_cache()  # so that gradients are sent as they come; see keep_casts
                    logits = task.logits(engine, micro_batch.inputs)
                    micro_loss = task.loss(logits, micro_batch.labels).mean()
                    loss += engine.backward(micro_loss).detach()  # divides by the number of micro-batches
                    engine.step()  # clips and updates with the last micro-batch of a step; before, it only counts
            loss = processes.mean(loss)
            # ---

            optimization.lr_schedule.step()
            run.record_step(loss, optimization.end_step(engine.get_global_grad_norm() if arguments.stage else None))
            run.evaluate_if_due(evaluation, forward)

        if arguments.save_model:
            save_model(task, model, processes.is_main, run.folder / "model")
        run.finish()
    leave()


def save_model(task: "Task", model: torch.nn.Module, is_main: bool, folder: Path) -> None:
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
