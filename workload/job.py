"""A job: flags, data, model and devices, brought together and checked in an order that wastes nobody's time."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import huggingface_hub
import torch
import torch.distributed as dist
import transformers

from workload.arguments import Arguments
from workload.batches import PAD_TO_MULTIPLE_OF, Batches, BatchSplit, split_batch
from workload.checkpoints import Checkpoint, newest_checkpoint
from workload.errors import InputError
from workload.launch.gpus import device_type
from workload.launch.processes import Processes, join
from workload.launch.start import launch, started_at
from workload.models.layers import ORDERED_LAYERS, TENSOR_PLANS
from workload.models.recomputation import recompute_layers
from workload.models.tensor_plans import check_shared_tokens, check_tensor_group
from workload.optimizer import warmup_steps
from workload.output_folder import output_folder
from workload.precision import choose_precision
from workload.storage import check_names, keep_sockets_short

if TYPE_CHECKING:
    from transformers import PreTrainedModel  # takes seconds

    from workload.tasks.task import Task

RECOMPUTE = "_recompute"  # ends a strategy's name with --activation_checkpointing
UNTIMED_STEPS = 5  # at the start, or a quarter of a very short run


@dataclass
class Job:
    """The model and the data to train on, the devices, and the number of steps."""

    strategy: str
    arguments: Arguments
    task: "Task"
    processes: Processes
    devices: int
    stages: int
    schedule: str | None  # a pipeline's order of work
    batch_split: BatchSplit
    precision: str
    steps: int
    eval_steps: int
    steps_an_epoch: int
    folder: Path
    started_at: float  # seconds since the epoch; for a resumed run, as if its earlier attempts had just ended
    checkpoint: Checkpoint | None  # to resume from
    settings: dict | None = None  # the configuration of the strategy's library, see `prepare`

    @property
    def setting(self) -> dict:
        """The settings that a run must share with its earlier attempts for their measurements to count."""
        return {"strategy": self.strategy, "device": self.processes.device.type, "devices": self.devices,
                "stages": self.stages, "schedule": self.schedule, **dataclasses.asdict(self.batch_split)}

    @property
    def batch_split_per_process(self) -> BatchSplit:
        """The split as each process sees it, which may drive several devices."""
        return self.batch_split.of_processes(len(self.processes.devices))

    @property
    def remaining_steps(self) -> int:
        """Steps this attempt runs; a resumed one includes its discarded first step."""
        return self.steps - self.checkpoint.step + 1 if self.checkpoint else self.steps

    @property
    def untimed_steps(self) -> int:
        """Steps at the start that are off the clock: caches fill, libraries choose their kernels."""
        return min(UNTIMED_STEPS, self.steps // 4)

    @property
    def noise_scale_steps(self) -> int:
        """Steps from one sample of the noise scale to the next. By default short runs are sampled more often: an
        interval needs 20 samples. Only the run's length decides, so that all its attempts sample the same steps.
        """
        given = self.arguments.noise_scale_steps
        return min(max(self.steps // 40, 1), 16) if given is None else given

    def resolved_flags(self) -> dict[str, Any]:
        """Every flag with the value that was used, defaults filled in."""
        return dataclasses.asdict(self.arguments) | {
            "model": self.task.model_name, "from_scratch": self.task.from_scratch,
            "tokenizer": self.task.tokenizer_name, "max_seq_length": self.task.max_length,
            "doc_stride": getattr(self.task, "stride", None),
            "micro_batch_size": self.batch_split.micro_batch_size, "num_gpus": self.devices,
            "precision": self.precision, "cpu_threads": self.processes.cpu_threads,
            "warmup_steps": warmup_steps(self.arguments, self.steps), "eval_steps": self.eval_steps,
            "noise_scale_steps": self.noise_scale_steps,
            "run_name": self.folder.name,
            **({"stages": self.stages, "micro_batches": self.batch_split.micro_batches}
               if hasattr(self.arguments, "stages") else {}),
            **({"tensor_parallel": self.devices // self.batch_split.replicas}
               if hasattr(self.arguments, "tensor_parallel") else {})}

    def build_model(self, device: torch.device | str) -> "PreTrainedModel":
        """The Hugging Face model, the same on every rank, in the type that its weights are trained in."""
        model = self.task.build_model()
        if self.arguments.activation_checkpointing:
            recompute_layers(model, self.task.model_name)
        return model.to(device, self.weights_dtype)  # pyright: ignore[reportArgumentType]  transformers hides its self

    @property
    def weights_dtype(self) -> torch.dtype:
        """fp32 but for `--precision bf16_native`; autocast casts the weights that it multiplies with."""
        return torch.bfloat16 if self.precision == "bf16_native" else torch.float32

    def batches(self, split: Literal["train", "validation"], replica: int, needed: bool = True) -> Batches:
        """The global batches of the training or the evaluation data, and `replica`'s share of them."""
        return Batches(self.task.samples(split), self.task.collate, self.batch_split_per_process, replica,
                       self.processes.device, self.task.max_length, self.arguments.length_grouping, needed)


def prepare(strategy: str, arguments: Arguments, devices: int, stages: int = 1, micro_batches: int | None = None,
            schedule: str | None = None, pieces_a_stage: int = 1, devices_a_process: int = 1,
            complete_settings: Callable[[BatchSplit, str], dict] | None = None, tensor_group: int = 0,
            shares_tokens: bool = False) -> Job:
    """Check everything, start the processes, and load the data.

    Flags, model and files are checked before processes are started. Where this process is not one of as many as were
    asked for, it starts them and exits with them: only they return from here.

    Args:
        stages: devices that one copy of the model is spread over.
        micro_batches: per replica and step, where the strategy decides it.
        schedule: the order in which a pipeline works through the micro-batches.
        pieces_a_stage: pieces of the model on each stage; more than one if they are not consecutive.
        devices_a_process: devices that one process drives.
        complete_settings: checks and completes the configuration of the strategy's library, from the split of the
            batch and the precision.
        tensor_group: devices over which every layer is split; 0 for strategies that split none.
        shares_tokens: whether they split the tokens of a sample as well.

    Raises:
        InputError: anything that a user can mend.
    """
    import datasets

    from workload.tasks.registry import open_task

    for library in (transformers, huggingface_hub):
        library.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    check_names(arguments)
    strategy += RECOMPUTE * arguments.activation_checkpointing  # a row of its own
    batch_split = split_batch(arguments, devices // stages // max(tensor_group, 1), micro_batches)
    precision = choose_precision(arguments.precision, arguments.tf32, torch.device(device_type()))
    settings = complete_settings(batch_split, precision) if complete_settings else None
    folder = output_folder(arguments, strategy, devices, stages, batch_split, precision)
    datasets.disable_progress_bars()
    task = open_task(arguments)
    if schedule and task.config.model_type not in ORDERED_LAYERS:
        raise InputError(f"--model {task.model_name}: a {task.config.model_type!r} model cannot be cut into stages "
                         f"here; {', '.join(ORDERED_LAYERS)} can")
    layers, needed = task.config.num_hidden_layers, "one" if pieces_a_stage == 1 else pieces_a_stage
    if stages * pieces_a_stage > layers:
        raise InputError(f"--stages {stages}: {task.model_name} has {layers} layers, and every stage needs {needed}; "
                         f"use at most {layers // pieces_a_stage}")
    if tensor_group:
        check_tensor_group(task.model_name, task.config, list(TENSOR_PLANS), tensor_group, devices)
    if shares_tokens:
        check_shared_tokens(task.max_length, PAD_TO_MULTIPLE_OF[device_type()], tensor_group)
    if arguments.target_f1 is not None and "f1" not in task.metrics:
        raise InputError(f"--target_f1: {task.name} has no F1; use --target_loss")
    if arguments.max_steps:
        _check_steps(arguments, arguments.max_steps)
    launch(devices // devices_a_process)

    processes = join(devices // devices_a_process, arguments.cpu_threads, devices_a_process,
                     arguments.hang_timeout_s, sends_messages=stages > 1)
    if processes.local_rank == 0:  # fills the cache for the others of its machine
        if processes.is_main:
            task.check_model()
            datasets.enable_progress_bars()
        keep_sockets_short()
        task.load()
        datasets.disable_progress_bars()
    processes.wait()
    if processes.local_rank != 0:
        task.load()

    for split, features in task.features.items():
        if not len(features):  # text that is shorter than one block
            raise InputError(f"{task.files[split] or split}: holds less than one sample of {task.max_length} tokens")
    samples = len(task.samples("train"))
    if samples < arguments.global_batch_size:
        raise InputError(f"--global_batch_size {arguments.global_batch_size}: the training data has only {samples} "
                         "samples")
    steps_an_epoch = samples // arguments.global_batch_size
    steps = arguments.max_steps or arguments.epochs * steps_an_epoch
    _check_steps(arguments, steps)
    checkpoint = [newest_checkpoint(folder) if processes.is_main and arguments.resume != "never" else None]
    dist.broadcast_object_list(checkpoint)
    if arguments.resume == "always" and checkpoint[0] is None:
        raise InputError(f"--resume: {folder} holds no checkpoint; --resume auto, or --overwrite, begins anew")
    return Job(strategy, arguments, task, processes, devices, stages, schedule, batch_split, precision, steps,
               arguments.eval_steps or steps_an_epoch, steps_an_epoch, folder, started_at(), checkpoint[0],
               settings)


def _check_steps(arguments: Arguments, steps: int) -> None:
    """Refuse fewer steps than --warmup_steps and --profile_steps need."""
    warmup_steps(arguments, steps)
    most = steps - min(UNTIMED_STEPS, steps // 4) - 2  # one step warms the profiler up, one is left to be timed
    if arguments.profile_steps > max(most, 0):
        raise InputError(f"--profile_steps {arguments.profile_steps}: the run has {steps} steps, of which at most "
                         f"{max(most, 0)} can be profiled")
