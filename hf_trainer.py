"""BERT with Hugging Face's Trainer, which picks DDP; or with a DeepSpeed configuration ZeRO, never a pipeline.

    python hf_trainer.py --num_gpus 4
    torchrun --nproc-per-node 4 hf_trainer.py
    deepspeed --num_gpus 4 hf_trainer.py --deepspeed_config experiments/zero2.json

The loop over steps is the Trainer's own: forward, backward, clipping, optimizer. It takes its micro-batches from
`micro_batches` below, which hands it a step's worth, waits until it asks for the next, and then records the step.
"""

import functools
import warnings
from collections.abc import Iterator

import torch

from measurement.noise_scale import GradientNoise
from measurement.run import Part, Run
from workload.arguments import TrainerArguments, parse_arguments
from workload.deepspeed_settings.checks import check_trainer
from workload.deepspeed_settings.config import complete_config, read_deepspeed_config
from workload.errors import InputError, one_line_errors
from workload.evaluation import whole_model
from workload.job import prepare
from workload.launch.processes import join_deepspeed, leave
from workload.launch.start import devices_asked_for
from workload.models.loading import write_model
from workload.optimization import Optimization
from workload.optimizer import skip_if_nonfinite
from workload.precision import build_scaler
from workload.terminal import quiet_libraries


def main() -> None:
    arguments = parse_arguments(TrainerArguments)
    complete, stage = None, 0
    if arguments.deepspeed_config is not None:
        config = read_deepspeed_config(arguments)
        stage = zero_stage(config, arguments)
        complete = functools.partial(complete_config, config, arguments, stage, False)
    job = prepare(f"hf_trainer_zero{stage}" if stage else "hf_trainer", arguments,
                  devices_asked_for(arguments.num_gpus), complete_settings=complete)
    config = job.settings
    if config:
        config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True  # in any type
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # DeepSpeed does
    task, processes, device = job.task, job.processes, job.processes.device

    replica = processes.rank
    model = job.build_model(device)
    part = Part.whole(model, replica)
    named_parameters = list(model.named_parameters())
    noise = GradientNoise(model.parameters(), job.batch_split, job.noise_scale_steps)
    training, evaluation = job.batches("train", replica), job.batches("validation", replica)

    if config:
        join_deepspeed()  # as the Trainer would
    with quiet_libraries():
        import transformers  # its Trainer takes seconds, so not before the flags are known to be good

    # --- the strategy: the Trainer decides; ours are the order of the samples, the loss, the optimizer, the schedule
    class Trainer(transformers.Trainer):
        loss_is_scaled_for_ga = False  # each loss is a mean over its micro-batch

        # Not a DataLoader, but the Trainer does no more than iterate over it.
        def get_train_dataloader(self) -> Iterator[dict]:  # pyright: ignore[reportIncompatibleMethodOverride]
            return loader

        def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
            self.optimizer = optimization.optimizer  # with DeepSpeed it ignores the one given to its constructor
            return self.optimizer

        def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
            self.lr_scheduler = optimization.lr_schedule
            return self.lr_scheduler

        def compute_loss(self, model: torch.nn.Module, inputs: dict, *_, **__) -> torch.Tensor:
            loss = task.loss(task.logits(model, inputs["inputs"]), inputs["labels"]).mean()
            self.loss_of_step += loss.detach() / job.batch_split.micro_batches
            return loss

        def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor | float | None:
            self.grad_norm = super()._clip_grad_norm(model)
            skip_if_nonfinite(optimization.optimizer, torch.as_tensor(self.grad_norm), arguments)
            return self.grad_norm

    with quiet_libraries():
        trainer = Trainer(model, transformers.TrainingArguments(
            str(job.folder), max_steps=job.remaining_steps,
            per_device_train_batch_size=job.batch_split.micro_batch_size,
            gradient_accumulation_steps=job.batch_split.micro_batches, max_grad_norm=arguments.max_grad_norm,
            bf16=job.precision == "bf16" and not config, fp16=job.precision == "fp16" and not config,
            deepspeed=config, use_cpu=device.type == "cpu", ddp_find_unused_parameters=False,
            ddp_broadcast_buffers=False, seed=arguments.seed, save_strategy="no", logging_strategy="no",
            logging_nan_inf_filter=False, report_to="none", disable_tqdm=True))
    accelerator = trainer.accelerator
    if job.precision == "fp16" and device.type == "cpu" and not config:
        # There it would train in fp32 and not say so.
        accelerator.native_amp, accelerator.scaler = True, build_scaler(job.precision, device)
    # ---

    optimization = Optimization(job, named_parameters, noise, scaler=accelerator.scaler)

    def micro_batches() -> Iterator[dict]:
        if config:
            assert trainer.deepspeed is not None  # by the time that the Trainer asks for its first micro-batch
            optimization.under_zero(trainer.deepspeed.optimizer)
        for step, share in run.training_steps(training, optimization.state):
            optimization.begin_step(step)
            trainer.loss_of_step = torch.zeros((), device=device)

            # --- the strategy: the Trainer does the step with these
            for micro_batch in share.micro_batches:
                yield {"inputs": micro_batch.inputs, "labels": micro_batch.labels}
            loss = processes.mean(trainer.loss_of_step)
            # ---

            run.record_step(loss, optimization.end_step(trainer.grad_norm))
            run.evaluate_if_due(evaluation, forward)

    forward = whole_model(job, model)
    torch.set_num_threads(processes.cpu_threads)  # the Trainer sets another number where OMP_NUM_THREADS is not set
    torch.manual_seed(arguments.seed + processes.rank)  # dropout differs between devices
    loader = micro_batches()
    with Run(job, part, config) as run:
        with quiet_libraries():
            trainer.train()
        next(loader, None)  # the Trainer asks for nothing after its last step, which is still to be recorded
        if arguments.save_model:
            weights = accelerator.get_state_dict(trainer.model_wrapped)
            if processes.is_main:  # accelerate declares no type, and pyright infers too many
                write_model(task, weights, run.folder / "model")  # pyright: ignore[reportArgumentType]
        run.finish()
    leave()


def zero_stage(config: dict, arguments: TrainerArguments) -> int:
    """ZeRO's stage in a DeepSpeed configuration.

    Raises:
        InputError: a configuration or a precision with which the Trainer would train something else.
    """
    check_trainer(config)
    where = f"--deepspeed_config {arguments.deepspeed_config}: zero_optimization"
    zero = config.get("zero_optimization") or {}
    stage = zero.get("stage")
    if stage not in (1, 2, 3):
        raise InputError(f"{where}.stage is {stage}; use 1, 2 or 3. Without DeepSpeed the Trainer uses DDP")
    for part in ("offload_optimizer", "offload_param"):
        if (zero.get(part) or {}).get("device", "none") not in ("none", "auto"):
            raise InputError(f"{where}.{part}: the Trainer would put another optimizer in our place; use zero.py "
                             "--offload")
    if arguments.compile and stage == 3:
        raise InputError(f"{where}.stage 3 and --compile do not go together, as in zero.py; use stage 2")
    if arguments.precision == "bf16_native":
        raise InputError("--precision bf16_native: ZeRO would keep an fp32 copy of the parameters; use --precision "
                         "bf16")
    return stage


if __name__ == "__main__":
    with one_line_errors():
        main()
