"""BERT with PyTorch's FSDP2 (`fully_shard`): data parallelism whose devices keep a shard each of what DDP keeps whole.

    python fsdp.py --num_gpus 4
    torchrun --nproc-per-node 4 fsdp.py --reshard_after_forward false
    python fsdp.py --sample --model tiny --num_gpus 2 --max_steps 300 --learning_rate 1e-3

Every device takes its slice of each batch, and keeps one shard of every parameter, of its gradient and of its
optimizer states. A transformer layer is gathered from all devices just before it is run, and given back after its
forward pass (as ZeRO-3 does) or, with --reshard_after_forward false, at the end of the step (as ZeRO-2).
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from measurement.noise_scale import GradientNoise
from measurement.run import Part, Run
from workload.arguments import FsdpArguments, parse_arguments
from workload.batches import Share
from workload.errors import one_line_errors
from workload.evaluation import evaluate
from workload.job import prepare
from workload.launch.processes import devices_asked_for, leave
from workload.models.layers import layer_names, transformer_modules
from workload.models.loading import write_model
from workload.optimizer import (
    autocast,
    build_optimizer,
    build_scaler,
    build_schedule,
    clip_by_global_norm,
    loss_scale,
    skip_if_nonfinite,
)
from workload.shards import LocalShards, ShardedTrainingState


def main() -> None:
    arguments = parse_arguments(FsdpArguments)
    gathers_bf16 = arguments.gather_precision == "bf16"
    kind = "_no_reshard" * (not arguments.reshard_after_forward) + "_bf16_gather" * gathers_bf16
    job = prepare("fsdp" + kind, arguments, devices_asked_for(arguments.num_gpus))
    task, processes, device = job.task, job.processes, job.processes.device

    # --- the strategy: a shard of every parameter on every device, and a slice of the batch for each. What is gathered
    # together is one transformer layer; all the rest, in the model's own shards, is gathered for a whole forward pass.
    # `--precision bf16` is autocast, as in every strategy: products in bf16 of fp32 parameters. FSDP's own mixed
    # precision comes on top, if asked for: it rounds parameters before they travel, instead of after.
    replica = processes.rank
    model = task.build_model().to(dtype=torch.bfloat16 if job.precision == "bf16_native" else None)
    devices = init_device_mesh(device.type, (processes.count,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if gathers_bf16 else None,
                                  reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in transformer_modules(model).values():
        fully_shard(module, mesh=devices, mp_policy=policy, reshard_after_forward=arguments.reshard_after_forward)
    fully_shard(model, mesh=devices, mp_policy=policy)  # moves shards to the device, so that none ever holds all
    # ---

    parameters = list(model.parameters())
    shards = LocalShards(parameters)
    optimizer = build_optimizer(shards.values(), arguments)
    schedule = build_schedule(optimizer, arguments, job.steps)
    scaler = build_scaler(job.precision, device)
    state = ShardedTrainingState(model.named_parameters(), shards, optimizer, schedule, scaler, processes.devices)
    micro_batches_a_step = job.split.micro_batches
    noise = GradientNoise(whole_parameters(model), job.split.replicas * micro_batches_a_step, 1 / micro_batches_a_step,
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

            # --- the strategy: whole gradients add up on the device; with the last micro-batch they are averaged over
            # all, and each device keeps its shard of the mean
            for number, micro_batch in enumerate(share.micro_batches, start=1):
                is_last = number == micro_batches_a_step
                model.set_requires_gradient_sync(is_last)
                model.set_reshard_after_backward(is_last or arguments.reshard_after_forward)
                with autocast(job.precision, device):
                    logits = task.logits(model, micro_batch.inputs)
                micro_loss = task.loss(logits, micro_batch.labels).mean() / micro_batches_a_step
                scaler.scale(micro_loss).backward()
                loss += micro_loss.detach()
            dist.all_reduce(loss)
            loss /= job.split.replicas
            shards.take_gradients()
            # ---

            scaler.unscale_(optimizer)
            grad_norm = clip_by_global_norm(shards.values(), arguments.max_grad_norm, dist.group.WORLD)
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
            # Tensor by tensor from all devices, to rank 0's CPU alone.
            weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
            if processes.is_main:
                write_model(task, weights, run.folder / "model")
        run.finish()
    leave()


def whole_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters as forward and backward see them, where alone the hooks of `GradientNoise` fire.

    FSDP puts them in the place of the shards while a layer is gathered. They are the same tensors each time, only
    their memory comes and goes; here they are made, one module's at a time.
    """
    whole = []
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            whole += [parameter for parameter in module.parameters() if not isinstance(parameter, DTensor)]
            module.reshard()
    return whole


if __name__ == "__main__":
    with one_line_errors():
        main()
