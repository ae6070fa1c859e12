"""BERT with PyTorch's own pipeline parallelism, torch.distributed.pipelining, in one of five schedules.

    python torch_pipeline.py --num_gpus 4 --schedule 1f1b
    torchrun --nproc-per-node 4 torch_pipeline.py --stages 2 --schedule zero_bubble --micro_batches 8
    python torch_pipeline.py --sample --model tiny --num_gpus 2 --schedule zbv --max_steps 300 --learning_rate 1e-3

As in pipeline.py a batch goes through the devices in micro-batches. A schedule is the order in which they do it:

    gpipe        all forward passes, then all backward passes
    1f1b         backward as soon as possible, which holds fewer activations and idles as long
    interleaved  1f1b with two pieces of the model on each device: a micro-batch goes round twice, and less is idle
    zero_bubble  interleaved; backward first makes the gradients that the device before waits for, and those of the
                 weights when there is nothing more urgent
    zbv          zero_bubble there and back: the first device holds the first and the last piece
"""

import functools
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from measurement.noise_scale import GradientNoise
from measurement.pipelines.timeline import on_timeline
from measurement.run import Part, Run
from workload.arguments import TorchPipelineArguments, parse_arguments
from workload.batches import Share
from workload.errors import one_line_errors
from workload.job import prepare
from workload.launch.groups import new_groups
from workload.launch.processes import leave
from workload.launch.start import devices_asked_for
from workload.models.layers import ordered_layers
from workload.optimization import Optimization
from workload.pipelines.pieces import Piece, cut, is_counted, save_model, share_over
from workload.pipelines.schedules import plan_pipeline
from workload.precision import autocast, keep_casts
from workload.training_state import names_in_model


def main() -> None:
    arguments = parse_arguments(TorchPipelineArguments)
    devices = devices_asked_for(arguments.num_gpus)
    plan = plan_pipeline(arguments, devices)
    job = prepare("torch_pipeline", arguments, devices, plan.stages, plan.micro_batches, plan.name,
                  plan.pieces_a_device)
    # These take seconds, so not before the flags are known to be good.
    from torch.distributed.pipelining import PipelineStage, schedules

    from measurement.pipelines.torch_timeline import actions_of, watch_schedule
    task, processes, device = job.task, job.processes, job.processes.device
    size, replicas = job.batch_split.micro_batch_size, job.batch_split.replicas

    # --- the strategy: the ordered layers in pieces, one or two for each device of a pipeline
    grid = torch.arange(devices).view(plan.stages, replicas)  # as DeepSpeed numbers them: replicas are neighbours
    stage, replica = divmod(processes.rank, replicas)
    stage_group, replica_group = new_groups(grid.T.tolist()), new_groups(grid.tolist())
    all_pieces, mine = cut(ordered_layers(job.build_model("cpu")), plan.pieces), plan.pieces_of(stage)
    ends = [plan.stage_of(piece) for piece in (0, plan.pieces - 1)]  # may share a weight, of which each gets a copy
    ends_group = new_groups(grid[ends].T.tolist()) if ends[0] != ends[1] else None
    shared = share_over(all_pieces, mine, ends_group)
    layers_of = {number: all_pieces[number] for number in mine}
    pieces = {number: Piece(layers, autocast(job.precision, device)) for number, layers in layers_of.items()}
    layers = {name: layer for part in layers_of.values() for name, layer in part.items()}
    model = torch.nn.ModuleList(pieces.values())
    model.to(device)
    # ---

    parameters = list(model.parameters())
    noise = GradientNoise(parameters, job.batch_split, job.noise_scale_steps, shared)
    optimization = Optimization(job, names_in_model(layers, all_pieces, shared is not None), noise, stage_group)
    is_end = not {0, plan.pieces - 1}.isdisjoint(pieces)  # the first piece feeds the model, the last computes its loss
    training = job.batches("train", replica, needed=is_end)
    evaluation = job.batches("validation", replica, needed=is_end)

    def mean_loss(logits: torch.Tensor, number: torch.Tensor, labels: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        return optimization.scaler.scale(task.loss(logits, labels[int(number)]).mean() / plan.micro_batches)

    @functools.lru_cache(maxsize=16)
    def pipeline(length: int, is_padded: bool, is_training: bool):
        """The schedule for batches of this shape; its buffers take no other. `meta` tensors have a shape only."""
        tokens = torch.empty(size, length, dtype=torch.int64, device="meta")
        hidden = torch.empty(size, length, task.config.hidden_size, dtype=parameters[0].dtype, device="meta",
                             requires_grad=True)
        names = [name for name in task.input_names if is_padded or name != "attention_mask"]
        between = (hidden, tokens) if "attention_mask" in names else (hidden,)
        logits = torch.empty(task.logits_shape(size, length), device="meta")
        stages = [PipelineStage(piece, number, plan.pieces, device, group=stage_group,
                                input_args=between if number else (tokens,) * len(names),
                                output_args=between if number < plan.pieces - 1 else logits)
                  for number, piece in pieces.items()]
        kind = schedules.get_schedule_class(plan.torch_name)
        made = kind(stages if plan.pieces_a_device > 1 else stages[0], plan.micro_batches,
                    mean_loss if is_training else None, scale_grads=False)  # mean_loss divides by the micro-batches
        if not is_training and plan.pieces_a_device > 1:  # there is no backward pass, over which zbv would trip
            forward = (schedules.FORWARD, schedules.SEND_F, schedules.RECV_F)
            made.pipeline_order_with_comms = {
                device: [action for action in actions if action.computation_type in forward]
                for device, actions in made.pipeline_order_with_comms.items()}
        return made

    def inputs(share: Share) -> list[torch.Tensor]:
        """The inputs of all micro-batches together, for the schedule to cut up; empty where the rank needs none."""
        parts = zip(*(each.inputs.values() for each in share.micro_batches), strict=True)
        return [torch.cat(part) for part in parts]

    def forward(share: Share) -> Iterator[tuple[torch.Tensor, torch.Tensor]] | None:
        model.eval()
        logits = pipeline(share.length, share.is_padded, is_training=False).step(*inputs(share))
        if logits is None:
            return None
        labels = (micro_batch.labels for micro_batch in share.micro_batches)
        return (task.losses_and_outputs(*pair) for pair in zip(logits.split(size), labels, strict=True))

    part = Part(replica, stage, list(layers), sum(p.numel() for p in parameters if is_counted(p)))
    torch.manual_seed(arguments.seed + processes.rank)  # dropout differs between devices
    with Run(job, part, actions=actions_of(pipeline(task.max_length, True, is_training=True))) as run:
        for step, share in run.training_steps(training, optimization.state):
            model.train()
            optimization.begin_step(step, share.micro_batches)
            timeline = run.timeline()

            # --- the strategy: forward and backward of all micro-batches, in the schedule's order over the devices
            order = pipeline(share.length, share.is_padded, is_training=True)
            losses: list[torch.Tensor] = []  # they come where the last piece is
            labels = [micro_batch.labels for micro_batch in share.micro_batches]
            with watch_schedule(order, timeline), keep_casts(job.precision, device):
                order.step(*inputs(share), target=torch.arange(plan.micro_batches), loss_kwargs={"labels": labels},
                           losses=losses, return_outputs=False)
            if shared:
                with on_timeline(timeline, "reduce"):
                    shared.add_up_gradients()
            if replicas > 1:  # then the average over the replicas, in one message
                with on_timeline(timeline, "reduce"):
                    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
                    vector = parameters_to_vector(gradients)
                    dist.all_reduce(vector, group=replica_group)
                    vector_to_parameters(vector.div_(replicas), gradients)
            loss = sum(losses, torch.zeros((), device=device)).detach() / optimization.scale / replicas
            dist.all_reduce(loss)
            # ---

            with on_timeline(timeline, "optimizer"):
                update = optimization.step()
            run.record_step(loss, update)
            run.evaluate_if_due(evaluation, forward)

        if arguments.save_model:
            save_model(task, layers, replica, run.folder / "model")
        run.finish()
    leave()


if __name__ == "__main__":
    with one_line_errors():
        main()
