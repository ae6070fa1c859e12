"""BERT with DeepSpeed's pipeline parallelism: the layers are cut into stages, one device each.

    python pipeline.py --num_gpus 4
    deepspeed --num_gpus 4 pipeline.py --stages 2 --micro_batches 8
    python pipeline.py --sample --model tiny --num_gpus 2 --max_steps 300 --learning_rate 1e-3

A batch goes through in micro-batches, so that stages work at the same time: while one is at micro-batch 2, the one
before it is at 3. With more devices than stages there are several such pipelines, each with its slice of the batch.
"""

import functools
import itertools
from collections.abc import Iterable

import torch

from measurement.noise_scale import GradientNoise
from measurement.pipelines.deepspeed_timeline import watch_instructions
from measurement.run import Part, Run
from workload.arguments import PipelineArguments, parse_arguments
from workload.batches import Share, plan_stages
from workload.deepspeed_settings.checks import check_pipeline
from workload.deepspeed_settings.config import complete_config, read_deepspeed_config
from workload.errors import one_line_errors
from workload.evaluation import evaluate
from workload.job import prepare
from workload.launch.processes import devices_asked_for, join_deepspeed, leave, quiet_libraries
from workload.models.layers import Layer, ordered_layers, shared_weight
from workload.optimizer import (
    build_optimizer,
    build_scaler,
    build_schedule,
    clip_by_global_norm,
    keep_casts,
    loss_scale,
    skip_if_nonfinite,
)
from workload.pipelines.pieces import SharedWeight, cut, is_counted, save_model
from workload.training_state import TrainingState, names_in_model


def main() -> None:
    arguments = parse_arguments(PipelineArguments)
    devices = devices_asked_for(arguments.num_gpus)
    stages, micro_batches = plan_stages(arguments.stages, arguments.micro_batches, arguments.global_batch_size, devices)
    config = read_deepspeed_config(arguments)
    check_pipeline(config)
    job = prepare("pipeline", arguments, devices, stages, micro_batches, schedule="1f1b",
                  complete_settings=functools.partial(complete_config, config, arguments, 0, False))
    task, processes, device = job.task, job.processes, job.processes.device

    def judge(logits: torch.Tensor, labels: tuple[torch.Tensor, ...]) -> torch.Tensor | tuple[torch.Tensor, ...]:
        labels = dict(zip(task.label_names, labels, strict=True))
        return task.loss(logits, labels).mean() if module.training else task.judge(logits, labels)

    # --- the strategy: the ordered layers in pieces of about the same cost, a stage each. Where the first and the last
    # layer share a weight, both their stages keep a copy, and DeepSpeed adds up the copies' gradients.
    pieces = cut(ordered_layers(task.build_model()), stages)
    shared = shared_weight({name: layer for piece in pieces for name, layer in piece.items()})
    deepspeed = join_deepspeed()

    def in_pipeline(layer: Layer):
        if shared is None or getattr(layer.module, "weight", None) is not shared:
            return layer
        return deepspeed.pipe.TiedLayerSpec("shared", Layer, layer.module, layer.run, tied_weight_attr="module.weight",
                                            forward_fn=lambda _, activation: layer(activation))

    class Pipeline(deepspeed.pipe.PipelineModule):
        def _partition_layers(self, method: str) -> None:  # DeepSpeed's methods count parameters, or layers
            self.parts = [0, *itertools.accumulate(map(len, pieces))]
            self._set_bounds(self.parts[self.stage_id], self.parts[self.stage_id + 1])

    specs = [in_pipeline(layer) for piece in pieces for layer in piece.values()]
    with quiet_libraries():
        module = Pipeline(specs, num_stages=stages, loss_fn=judge)
    layers = pieces[module.stage_id]
    module._layer_specs.clear()  # it holds on to the other stages' layers as well
    copies = [SharedWeight([tied["module"].module.weight], tied["group"]) for tied in module.tied_comms.values()]
    # ---

    parameters = list(module.parameters())
    optimizer = build_optimizer(parameters, arguments)
    schedule = build_schedule(optimizer, arguments, job.steps)

    with quiet_libraries():
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, lr_scheduler=schedule, config=job.settings)
    # With one replica there is nobody to average gradients with; DeepSpeed would copy them all to find that out.
    engine.pipeline_enable_backward_allreduce = job.split.replicas > 1
    stage, replica = engine.stage_id, engine.grid.get_data_parallel_rank()
    stage_group = engine.grid.get_pipe_parallel_group()
    scaler = build_scaler(job.precision, device, stage_group)
    if job.precision == "fp16":
        engine.torch_autocast_z0_gradscaler = scaler  # DeepSpeed's own lets each stage skip a step for itself
    if job.precision == "bf16_native":
        module.to(torch.bfloat16)
    state = TrainingState(names_in_model(layers, pieces, shared is not None), optimizer, schedule, scaler,
                          processes.devices)

    noise = GradientNoise(parameters, job.split.replicas * micro_batches, 1 / micro_batches,
                          arguments.noise_scale_steps, *copies)
    is_end = engine.is_first_stage() or engine.is_last_stage()  # the first feeds the model, the last computes its loss
    training = job.batches("train", replica, needed=is_end)
    evaluation = job.batches("validation", replica, needed=is_end)
    shape = None

    def through_pipeline(share: Share):
        """What DeepSpeed takes the micro-batches from; stages agree anew on what they exchange if its shape changes."""
        nonlocal shape
        if shape != (share.length, share.is_padded):
            engine.reset_activation_shape()
            shape = share.length, share.is_padded
        return ((tuple(micro_batch.inputs.values()), tuple(micro_batch.labels.values()))
                for micro_batch in share.micro_batches)

    def forward(share: Share) -> Iterable[tuple[torch.Tensor, torch.Tensor]] | None:
        engine.total_loss = None  # here DeepSpeed adds up what `judge` gives, and trips where its shape changes
        return engine.eval_batch(through_pipeline(share), reduce_output=None, bcast_loss=False)

    grad_norm = torch.full((), float("inf"), device=device)

    def clip(*_) -> None:
        nonlocal grad_norm
        grad_norm = clip_by_global_norm(parameters, arguments.max_grad_norm, stage_group)
        skip_if_nonfinite(optimizer, grad_norm, arguments)

    # `train_batch` runs a whole step. DeepSpeed's own clipping there counts the first stage's gradients only.
    optimizer.register_step_pre_hook(clip)

    part = Part(replica, stage, list(layers), sum(p.numel() for p in parameters if is_counted(p)))
    torch.manual_seed(arguments.seed + processes.rank)  # dropout differs between devices
    with Run(job, part, job.settings) as run:
        for step, share in run.training_steps(training, state):
            noise.begin_step(step, share.micro_batches)
            learning_rate, scale = schedule.get_last_lr()[0], loss_scale(scaler, device)
            grad_norm = torch.full((), float("inf"), device=device)  # stays if fp16 overflows and the step is skipped

            # --- the strategy: forward and backward of all micro-batches, interleaved over the stages, then a step
            with watch_instructions(engine, run.timeline()), keep_casts(job.precision, device):
                loss = engine.train_batch(through_pipeline(share))
            # ---

            run.record_step(loss, grad_norm, learning_rate, noise.end_step(grad_norm, scale))
            if run.evaluation_is_due():
                run.record_evaluation(lambda: evaluate(task, evaluation, processes, forward))

        if arguments.save_model:
            save_model(task, layers, replica, processes.is_main, run.folder / "model")
        run.finish()
    leave()


if __name__ == "__main__":
    with one_line_errors():
        main()
