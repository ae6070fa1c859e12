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
from torch.utils.checkpoint import checkpoint

from measurement.noise_scale import GradientNoise
from measurement.pipelines.deepspeed_timeline import watch_instructions
from measurement.run import Part, Run
from workload.arguments import PipelineArguments, parse_arguments
from workload.batches import Share, plan_stages
from workload.deepspeed_settings.checks import check_pipeline
from workload.deepspeed_settings.config import complete_config, read_deepspeed_config
from workload.errors import one_line_errors
from workload.job import prepare
from workload.launch.processes import join_deepspeed, leave
from workload.launch.start import devices_asked_for
from workload.models.layers import Layer, TransformerLayer, ordered_layers, shared_weight
from workload.optimization import Optimization
from workload.pipelines.pieces import SharedWeight, cut, is_counted, save_model
from workload.precision import keep_casts
from workload.terminal import quiet_libraries
from workload.training_state import names_in_model


def main() -> None:
    arguments = parse_arguments(PipelineArguments)
    devices = devices_asked_for(arguments.num_gpus)
    stages, micro_batches = plan_stages(arguments.stages, arguments.micro_batches, arguments.global_batch_size, devices)
    config = read_deepspeed_config(arguments)
    check_pipeline(config)
    job = prepare("pipeline", arguments, devices, stages, micro_batches, schedule="1f1b",
                  complete_settings=functools.partial(complete_config, config, arguments, 0, False))
    task, processes, device = job.task, job.processes, job.processes.device

    def loss_or_outputs(logits: torch.Tensor,
                        labels: tuple[torch.Tensor, ...]) -> torch.Tensor | tuple[torch.Tensor, ...]:
        by_name = dict(zip(task.label_names, labels, strict=True))
        return task.loss(logits, by_name).mean() if module.training else task.losses_and_outputs(logits, by_name)

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
        # The last two take effect with --activation_checkpointing. DeepSpeed's own function would forget autocast.
        module = Pipeline(specs, num_stages=stages, loss_fn=loss_or_outputs,
                          activation_checkpoint_func=functools.partial(checkpoint, use_reentrant=False),
                          checkpointable_layers=[TransformerLayer.__name__])
    layers = pieces[module.stage_id]
    module._layer_specs.clear()  # it holds on to the other stages' layers as well
    copies = [SharedWeight([tied["module"].module.weight], tied["group"]) for tied in module.tied_comms.values()]
    # ---

    noise = GradientNoise(module.parameters(), job.batch_split, job.noise_scale_steps, next(iter(copies), None))
    stage_group = module.mpu().get_pipe_parallel_group()
    optimization = Optimization(job, names_in_model(layers, pieces, shared is not None), noise, stage_group)
    # A step is `train_batch`. DeepSpeed's own clipping there counts the first stage's gradients only.
    optimization.optimizer.register_step_pre_hook(optimization.clip)
    with quiet_libraries():
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimization.optimizer,
                                          lr_scheduler=optimization.lr_schedule, config=job.settings)
    # With one replica there is nobody to average gradients with; DeepSpeed would copy them all to find that out.
    engine.pipeline_enable_backward_allreduce = job.batch_split.replicas > 1
    stage, replica = engine.stage_id, engine.grid.get_data_parallel_rank()
    if job.precision == "fp16":
        engine.torch_autocast_z0_gradscaler = optimization.scaler  # DeepSpeed's own lets each stage skip a step alone
    module.to(job.weights_dtype)

    is_end = engine.is_first_stage() or engine.is_last_stage()  # the first feeds the model, the last computes its loss
    training = job.batches("train", replica, needed=is_end)
    evaluation = job.batches("validation", replica, needed=is_end)
    shape = None

    def through_pipeline(share: Share):
        """The micro-batches in DeepSpeed's form; if their shape changes, stages agree anew on what they exchange."""
        nonlocal shape
        if shape != (share.length, share.is_padded):
            engine.reset_activation_shape()
            shape = share.length, share.is_padded
        return ((tuple(micro_batch.inputs.values()), tuple(micro_batch.labels.values()))
                for micro_batch in share.micro_batches)

    def forward(share: Share) -> Iterable[tuple[torch.Tensor, torch.Tensor]] | None:
        engine.total_loss = None  # the sum of the last evaluation's outputs, whose shape may differ
        return engine.eval_batch(through_pipeline(share), reduce_output=None, bcast_loss=False)

    part = Part(replica, stage, list(layers), sum(p.numel() for p in module.parameters() if is_counted(p)))
    torch.manual_seed(arguments.seed + processes.rank)  # dropout differs between devices
    with Run(job, part, job.settings) as run:
        for step, share in run.training_steps(training, optimization.state):
            optimization.begin_step(step, share.micro_batches)

            # --- the strategy: forward and backward of all micro-batches, interleaved over the stages, then a step
            with watch_instructions(engine, run.timeline()), keep_casts(job.precision, device):
                loss = engine.train_batch(through_pipeline(share))
            # ---

            run.record_step(loss, optimization.end_step())
            run.evaluate_if_due(evaluation, forward)

        if arguments.save_model:
            save_model(task, layers, replica, run.folder / "model")
        run.finish()
    leave()


if __name__ == "__main__":
    with one_line_errors():
        main()
