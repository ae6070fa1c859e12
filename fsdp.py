"""BERT with PyTorch's FSDP2 (`fully_shard`): data parallelism in which each device keeps one shard of the model.

    python fsdp.py --num_gpus 4
    torchrun --nproc-per-node 4 fsdp.py --reshard_after_forward false
    python fsdp.py --num_gpus 4 --shard_group 2
    python fsdp.py --sample --model tiny --num_gpus 2 --max_steps 300 --learning_rate 1e-3

Every device takes its slice of each batch, and keeps one shard of every parameter, of its gradient and of its
optimizer states. A transformer layer is gathered from all devices just before it runs, and freed after its forward
pass (as in ZeRO-3) or, with --reshard_after_forward false, at the end of the step (as in ZeRO-2). With --shard_group N
every N neighbours hold a sharded copy of the model (hybrid sharding): layers are gathered from these only, and of other
groups a device gets nothing but gradients of its own shards.
"""

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from measurement.noise_scale import GradientNoise
from measurement.run import Part, Run
from workload.argument_checks import group_size
from workload.arguments import FsdpArguments, parse_arguments
from workload.errors import one_line_errors
from workload.evaluation import whole_model
from workload.job import prepare
from workload.launch.processes import leave
from workload.launch.start import devices_asked_for
from workload.models.layers import transformer_modules
from workload.models.loading import write_model
from workload.optimization import Optimization
from workload.precision import autocast
from workload.shards import LocalShards, whole_parameters


def main() -> None:
    arguments = parse_arguments(FsdpArguments)
    gathers_bf16 = arguments.gather_precision == "bf16"
    devices = devices_asked_for(arguments.num_gpus)
    in_group = group_size("shard_group", arguments.shard_group, devices)
    kind = "_no_reshard" * (not arguments.reshard_after_forward) + "_bf16_gather" * gathers_bf16
    kind += f"_hybrid{in_group}" * (in_group < devices)
    job = prepare("fsdp" + kind, arguments, devices)
    task, processes, device = job.task, job.processes, job.processes.device

    # --- the strategy: a shard of every parameter on every device, and a slice of the batch for each. One transformer
    # layer is gathered at a time; the other parameters, in the model's own shards, for a whole forward pass.
    # `--precision bf16` is autocast, as in every strategy: products in bf16 of fp32 parameters. FSDP's own mixed
    # precision comes on top, if asked for: it rounds parameters before they travel, instead of after.
    replica = processes.rank
    model = job.build_model("cpu")
    # The last dimension shards a copy of the model. If there are several, gradients are averaged over copies, too.
    shape = {"copies": devices // in_group} if in_group < devices else {}
    shape["shards"] = in_group
    mesh = init_device_mesh(device.type, tuple(shape.values()), mesh_dim_names=tuple(shape))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if gathers_bf16 else None,
                                  reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in transformer_modules(model).values():
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=arguments.reshard_after_forward)
    # The model itself, with FSDP's methods. Its shards move to the device only now, so that no device ever holds all.
    sharded = fully_shard(model, mesh=mesh, mp_policy=policy)
    # ---

    noise = GradientNoise(whole_parameters(model), job.batch_split, job.noise_scale_steps)
    optimization = Optimization(job, model.named_parameters(), noise, group=mesh.get_group("shards"),
                                shards=LocalShards(model.parameters()))
    training, evaluation = job.batches("train", replica), job.batches("validation", replica)
    forward = whole_model(job, model)
    torch.manual_seed(arguments.seed + processes.rank)  # dropout differs between devices
    with Run(job, Part.whole(model, replica)) as run:
        for step, share in run.training_steps(training, optimization.state):
            model.train()
            optimization.begin_step(step)
            loss = torch.zeros((), device=device)

            # --- the strategy: whole gradients add up on the device; with the last micro-batch they are averaged over
            # all, and each device keeps its shard of the mean
            for number, micro_batch in enumerate(share.micro_batches, start=1):
                is_last = number == job.batch_split.micro_batches
                sharded.set_requires_gradient_sync(is_last)
                sharded.set_reshard_after_backward(is_last or arguments.reshard_after_forward)
                with autocast(job.precision, device):
                    logits = task.logits(model, micro_batch.inputs)
                loss += optimization.backward(task.loss(logits, micro_batch.labels).mean())
            loss = processes.mean(loss)
            # ---

            run.record_step(loss, optimization.step())
            run.evaluate_if_due(evaluation, forward)

        if arguments.save_model:
            # Tensor by tensor from all devices, to rank 0's CPU alone.
            weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
            if processes.is_main:
                write_model(task, weights, run.folder / "model")
        run.finish()
    leave()


if __name__ == "__main__":
    with one_line_errors():
        main()
