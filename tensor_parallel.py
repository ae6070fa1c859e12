"""BERT with PyTorch's tensor parallelism (`parallelize_module`): every layer is split over the devices.

    python tensor_parallel.py --num_gpus 4 --sequence_parallel
    torchrun --nproc-per-node 4 tensor_parallel.py --tensor_parallel 2 --shard_replicas
    python tensor_parallel.py --sample --model tiny --num_gpus 2 --max_steps 300 --learning_rate 1e-3

The devices of a tensor group read the same samples. Each computes with some of the attention heads and a part of the
feed-forward network; after either the outputs of all are added up, twice in a layer's forward pass and twice in its
backward pass. Embeddings, LayerNorms and the head are on every device. With --sequence_parallel LayerNorms and dropouts
work on a part of the tokens each. Several tensor groups are replicas, as the devices of bert_baseline.py are, or with
--shard_replicas as those of fsdp.py (2-D parallelism).
"""

import contextlib
import warnings

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from measurement.noise_scale import GradientNoise
from measurement.run import Part, Run
from workload.arguments import TensorParallelArguments, parse_arguments
from workload.errors import one_line_errors
from workload.evaluation import whole_model
from workload.job import prepare
from workload.launch.processes import leave
from workload.launch.start import devices_asked_for
from workload.models.layers import layer_names, tensor_plan, transformer_modules
from workload.models.loading import write_model
from workload.models.recomputation import recompute_layers
from workload.models.replicated_dropout import ReplicatedDropout
from workload.models.tensor_plans import TensorPlan, arrange_layers
from workload.optimization import Optimization
from workload.precision import autocast, keep_casts
from workload.shards import whole_parameters
from workload.tensor_shards import DATA, TENSOR, TensorShards, counted_elements


def main() -> None:
    arguments = parse_arguments(TensorParallelArguments)
    devices = devices_asked_for(arguments.num_gpus)
    group_size = arguments.tensor_group(devices)
    kind = "_sequence" * arguments.sequence_parallel + "_fsdp" * arguments.shard_replicas
    job = prepare("tensor_parallel" + kind, arguments, devices, tensor_group=group_size,
                  shares_tokens=arguments.sequence_parallel)
    task, processes, device = job.task, job.processes, job.processes.device

    # --- the strategy: neighbours make up a tensor group, over which each layer is split; the groups are replicas
    replicas, (replica, tensor_rank) = devices // group_size, divmod(processes.rank, group_size)
    mesh = (init_device_mesh(device.type, (replicas, group_size), mesh_dim_names=(DATA, TENSOR)) if replicas > 1 else
            init_device_mesh(device.type, (group_size,), mesh_dim_names=(TENSOR,)))
    model = job.build_model("cpu")
    layers, plan, names = transformer_modules(model), tensor_plan(model), layer_names(model)
    arrangements = arrange_layers(layers, plan, group_size)
    share_out(list(layers.values()), plan, mesh[TENSOR], arguments.sequence_parallel)
    part = Part(replica, 0, names, counted_elements(model, tensor_rank), tensor_rank)
    sharded: FSDPModule | None = None
    if arguments.shard_replicas:
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        warnings.filterwarnings("ignore", r"FSDP2-wrapped module \(\w+\) returned a view")  # none is changed in place
        for module in layers.values():
            fully_shard(module, mesh=mesh[DATA], mp_policy=policy)
        sharded = fully_shard(model, mesh=mesh[DATA], mp_policy=policy)
    else:
        torch.nn.Module.to(model, device)
    # ---

    dropout = ReplicatedDropout(device, arguments.seed + processes.count + replica)
    dropout.attach(plan.replicated_dropouts(model, layers, arguments.sequence_parallel))
    if arguments.activation_checkpointing:
        recompute_layers(model, task.model_name, dropout.contexts)
    shards = TensorShards(model, arrangements, tensor_rank, dropout)
    noise = GradientNoise(whole_parameters(model) if sharded else model.parameters(), job.batch_split,
                          job.noise_scale_steps, counted=shards.counted_gradient)
    optimization = Optimization(job, model.named_parameters(), noise, shards=shards,
                                group=dist.group.WORLD if sharded else mesh.get_group(TENSOR))
    training, evaluation = job.batches("train", replica), job.batches("validation", replica)
    forward = whole_model(job, model)
    torch.manual_seed(arguments.seed + processes.rank)  # dropout differs between devices, but see ReplicatedDropout
    with Run(job, part) as run:
        for step, share in run.training_steps(training, optimization.state):
            model.train()
            optimization.begin_step(step)
            loss = torch.zeros((), device=device)

            # --- the strategy: layers exchange activations and their gradients; after the last micro-batch gradients
            # are averaged over the replicas, by FSDP layer by layer, else in one message
            with contextlib.nullcontext() if sharded else keep_casts(job.precision, device):
                for number, micro_batch in enumerate(share.micro_batches, start=1):
                    if sharded:
                        sharded.set_requires_gradient_sync(number == job.batch_split.micro_batches)
                    with autocast(job.precision, device):
                        logits = task.logits(model, micro_batch.inputs)
                    loss += optimization.backward(task.loss(logits, micro_batch.labels).mean())
            shards.take_gradients()
            if replicas > 1 and not sharded:
                gradients = [shard.grad for shard in shards.values() if shard.grad is not None]
                vector = parameters_to_vector(gradients)
                dist.all_reduce(vector, group=mesh.get_group(DATA))
                vector_to_parameters(vector.div_(replicas), gradients)
            loss = processes.mean(loss)
            # ---

            run.record_step(loss, optimization.step())
            run.evaluate_if_due(evaluation, forward)

        if arguments.save_model:
            weights = shards.whole_weights()
            if processes.is_main:
                write_model(task, weights, run.folder / "model")
        run.finish()
    leave()


def share_out(layers: list[torch.nn.Module], plan: TensorPlan, group: DeviceMesh, shares_tokens: bool) -> None:
    """Share out transformer layers over a tensor group.

    Args:
        shares_tokens: whether each device has its own tokens between the shared linear layers.
    """
    hidden = Shard(1) if shares_tokens else Replicate()  # of (batch, length, hidden), between the linear layers
    for layer in layers:
        styles: dict[str, ParallelStyle] = {name: ColwiseParallel(input_layouts=hidden) for name in plan.columns}
        styles |= {name: RowwiseParallel(output_layouts=hidden) for name in plan.rows}
        if plan.shared_input:  # prepared once, so that the gradients of its uses are added up before they are sent
            styles[plan.shared_input] = PrepareModuleInput(input_layouts=hidden, desired_input_layouts=Replicate())
            styles |= {name: ColwiseParallel() for name in plan.columns if name.startswith(plan.shared_input)}
        if shares_tokens:
            styles |= {name: SequenceParallel(use_local_output=True) for name in plan.norms}
        parallelize_module(layer, group, styles, src_data_rank=None)  # each rank has made the same weights
    if shares_tokens:  # tokens are dealt out before the first layer and gathered behind the last
        def moved(tensor: torch.Tensor, held: Placement, wanted: Placement) -> torch.Tensor:
            whole = DTensor.from_local(tensor, group, [held], run_check=False)
            return whole.redistribute(placements=[wanted]).to_local()

        def deal_out(_: torch.nn.Module, inputs: tuple) -> tuple:
            return moved(inputs[0], Replicate(), hidden), *inputs[1:]

        def gather(_: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
            return moved(output, hidden, Replicate())

        layers[0].register_forward_pre_hook(deal_out)
        layers[-1].register_forward_hook(gather)


if __name__ == "__main__":
    with one_line_errors():
        main()
