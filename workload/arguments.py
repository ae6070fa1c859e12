"""The command line: one dataclass of flags, with the same meaning in every script.

The flags of all scripts are checked in `argument_checks.py`; those of one script where they are declared, below.
"""

import argparse
import dataclasses
import sys
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, TypeVar

from transformers import HfArgumentParser

from workload.argument_checks import check_arguments, divisors
from workload.errors import InputError
from workload.flag_groups import Formatter, about_script, grouped, unknown_flag
from workload.launch import launcher


def flag(help_text: str, default: Any = None, **options: Any) -> Any:
    """A dataclass field whose help text shows in `--help`; `options` go to argparse. Any, as `dataclasses.field`."""
    return field(default=default, metadata={"help": help_text, **options})


@dataclass
class Arguments:
    """The flags that every script takes."""

    task: Literal["squad_v2", "imdb", "mnli", "oscar"] = flag("what is learned", "squad_v2")
    sample: bool = flag("train and evaluate on the small embedded sample", False)

    train_file: str | None = flag("training data in the task's official format. Default: the Hub's dataset")
    eval_file: str | None = flag("evaluation data in the task's official format. Default: the Hub's dataset")
    eval_mismatched_file: str | None = flag("mnli: evaluation data of other genres, for accuracy_mismatched")
    max_train_examples: int | None = flag("train on N examples: one random draw, the same for every --seed, in the "
                                          "file's order; imdb, mnli: of each class in proportion")
    max_eval_examples: int | None = flag("evaluate on N examples, drawn in the same way; mnli: on N of each file")
    max_seq_length: int | None = flag("tokens in a sample. Default: squad_v2 384, imdb 256, mnli 128, oscar 1024, "
                                       "or all that the model takes")
    doc_stride: int | None = flag("squad_v2: tokens that two windows of one context share. Default: 128, or a third "
                                   "of a window")
    answerable_only: bool = flag("squad_v2 without its unanswerable questions", False)

    model: str | None = flag("Hub name or local folder; `tiny`: the embedded small model, random weights. "
                             "Default: the task's own")
    from_scratch: bool | None = flag("random weights in the shape of --model. Default: only where it has no others, "
                                     "and for oscar's own GPT-2")
    tokenizer: str | None = flag("Hub name or local folder. Default: the model's own")
    dropout: float | None = flag("overrides every dropout of the model. Default: the model's own")
    activation_checkpointing: bool = flag("compute each transformer layer's activations again in the backward pass "
                                          "instead of keeping them: less memory, about a third more work", False)
    compile: bool = flag("torch.compile for the transformer layers; worth its start in long runs", False)

    global_batch_size: int = flag("samples per optimizer step, over all devices", 64)
    micro_batch_size: int | None = flag("samples per forward pass on one device. Default: the largest that leaves "
                                        "at least 4 micro-batches a step over all devices")
    length_grouping: bool = flag("batches of samples of similar length, which leaves little padding; false: plain "
                                 "shuffling", True)

    epochs: int = flag("passes over the training data", 5)
    max_steps: int | None = flag("optimizer steps; takes the place of --epochs")
    learning_rate: float = flag("AdamW's peak learning rate", 3e-5)
    lr_scheduler: Literal["linear", "constant"] = flag("linear: warm-up, then down to 0; constant: neither", "linear")
    warmup_steps: int | None = flag("steps of linear warm-up. Default: a tenth of the steps, at most 500")
    weight_decay: float = flag("AdamW's decoupled decay; never on biases and LayerNorm", 0.01)
    max_grad_norm: float = flag("clip gradients to this global norm", 1.0)
    adam_epsilon: float = flag("AdamW's epsilon", 1e-8)
    skip_nonfinite: bool = flag("leave out steps whose loss or gradients are not finite, and count them; default: stop",
                                False)
    seed: int = flag("random seed of new weights, the order of samples, and dropout", 0)

    precision: Literal["fp32", "bf16", "fp16", "bf16_native"] | None = flag(
        "bf16, fp16: autocast over fp32 parameters; bf16_native: bf16 parameters. "
        "Default: fp32 on a CPU, bf16 on a GPU that has it")
    tf32: bool = flag("with --precision fp32 on a GPU: matrix products in TF32, on tensor cores", False)

    num_gpus: int | None = flag("devices, one process each; without GPUs CPU processes. Default: all visible GPUs, "
                                "or 1")
    device: Literal["cpu"] | None = flag("`cpu`: CPU processes although there are GPUs. Default: GPUs, if any")
    cpu_threads: int | None = flag("threads per process. Default: cores // processes of this machine")
    hang_timeout_s: float = flag("end a run whose step takes longer than this, and say which rank is missing", 600.0)

    eval_steps: int | None = flag("evaluate every N steps and at the end. Default: once an epoch")
    reference_batch_size: int = flag("the batch against which statistical efficiency is stated", 16)
    noise_scale_steps: int | None = flag("sample the gradient noise scale every N steps; 0: never. Default: a 40th of "
                                         "the steps, at most 16")
    profile_steps: int = flag("after the warm-up, profile N steps off the clock: communication, host and device "
                              "seconds; the traces are kept", 0)
    target_f1: float | None = flag("record when an evaluation's F1 first reaches this, in percent")
    target_loss: float | None = flag("record when an evaluation's loss first falls to this")
    peak_tflops: float | None = flag("peak rate of one device in this precision, for mfu_pct. "
                                     "Default: from a table of GPUs")
    measure: Literal["all", "throughput"] = flag("`throughput`: nothing but the clock and the evaluations, to see "
                                                 "what measuring costs", "all")

    output_dir: str = flag("where run folders go", "results")
    report_to: Literal["tensorboard", "wandb"] | None = flag("also send each row to this tracker, off the clock")
    run_name: str | None = flag("name of the run's folder. Default: made from the settings")
    overwrite: bool = flag("replace a run folder of the same name", False)
    checkpoint_steps: int | None = flag("write a checkpoint every N steps, off the clock; the last two are kept. "
                                        "Default: only on SIGTERM, SIGUSR1 or Ctrl-C")
    resume: Literal["never", "always", "auto"] = flag(
        "resume from the run's last checkpoint; `auto`: start if there is none, exit at once if the run is finished",
        "never", nargs="?", const="always")
    save_model: bool = flag("write model/ into the run folder, for `from_pretrained`", False)

    def __post_init__(self) -> None:
        self.given: frozenset[str] = frozenset()  # names of the flags on the command line; see parse_arguments


@dataclass
class StageArguments(Arguments):
    """The flags that pipelines take besides."""

    stages: int | None = flag("devices that the layers are spread over. Default: all; "
                              "devices / stages is the number of replicas")
    micro_batches: int | None = flag("micro-batches that a step sends through the pipeline. "
                                     "Default: 4 x stages, at most what the batch allows")


@dataclass
class PipelineArguments(StageArguments):
    """The flags that DeepSpeed's pipeline takes besides."""

    deepspeed_config: str = flag("file with DeepSpeed's own settings. Default: the one beside the script",
                                 "ds_config.json")


@dataclass
class TorchPipelineArguments(StageArguments):
    """The flags that PyTorch's pipeline takes besides."""

    schedule: Literal["gpipe", "1f1b", "interleaved", "zero_bubble", "zbv"] = flag(
        "order in which devices work off the micro-batches; the last three put two pieces of the model on each device",
        "1f1b")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activation_checkpointing and self.schedule in ("zero_bubble", "zbv"):
            raise InputError(f"--activation_checkpointing: --schedule {self.schedule} splits the backward pass, and "
                             "would compute each layer again for every part of it; use --schedule interleaved")


@dataclass
class ZeroArguments(Arguments):
    """The flags that DeepSpeed's ZeRO takes besides."""

    stage: Literal[0, 1, 2, 3] = flag("what ZeRO partitions over the devices: 0 nothing, 1 optimizer states, 2 also "
                                      "gradients, 3 also parameters", 2)
    offload: bool = flag("keep the optimizer's states in the CPU's memory and update there", False)
    secondary_shard_group: int | None = flag(
        "stage 3, ZeRO++'s hpZ: each group of N neighbouring ranks keeps a second, sharded copy of the parameters and "
        "gathers from it, except for the first time after an update; N must divide the devices. Default: none")
    deepspeed_config: str = flag("file with DeepSpeed's own settings. Default: the one beside the script",
                                 "ds_config.json")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.secondary_shard_group and self.offload:
            raise InputError("--secondary_shard_group spends memory for less communication, --offload saves it; leave "
                             "one of them out")
        if self.offload and self.stage == 0:
            raise InputError("--offload moves what --stage 1, 2 or 3 partitions; --stage 0 partitions nothing")
        if self.compile and self.stage == 3:
            raise InputError("--compile: with --stage 3 DeepSpeed gathers parameters in the midst of the layers, for "
                             "each of which the compiler would start anew; use --stage 2, or fsdp.py")
        if self.offload and self.precision == "bf16_native":
            raise InputError("--offload: on the CPU DeepSpeed updates fp32 parameters only; use --precision bf16")


@dataclass
class TrainerArguments(Arguments):
    """The flags that hf_trainer.py takes besides."""

    deepspeed_config: str | None = flag("file with DeepSpeed's own settings, among them a ZeRO stage. Default: no "
                                        "DeepSpeed, but DDP")


@dataclass
class FsdpArguments(Arguments):
    """The flags that FSDP takes besides."""

    reshard_after_forward: bool = flag("give a layer's gathered parameters back after its forward pass, and gather "
                                       "them again for the backward pass; false: keep them until the step's end", True)
    shard_group: int | None = flag("hybrid sharding (HSDP): the model is sharded within groups of N neighbouring "
                                   "ranks and replicated across groups; N must divide the devices. Default: one group")
    gather_precision: Literal["fp32", "bf16"] = flag(
        "type in which parameters are gathered; bf16: half the bytes, with --precision bf16 only, and LayerNorms and "
        "embeddings are rounded as well", "fp32")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gather_precision == "bf16" and self.precision != "bf16":
            raise InputError(f"--gather_precision bf16: the products are in {self.precision or 'another type'}; "
                             "use --precision bf16")


@dataclass
class TensorParallelArguments(Arguments):
    """The flags that tensor parallelism takes besides."""

    tensor_parallel: int | None = flag("devices over which each layer is split. Default: all; devices / "
                                       "tensor_parallel is the number of replicas")
    sequence_parallel: bool = flag("LayerNorm, dropout and residuals run on each device's part of the tokens only",
                                   False)
    shard_replicas: bool = flag("also shard parameters, gradients and optimizer states over the replicas (FSDP2)",
                                False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compile:
            raise InputError("--compile: not with tensor parallelism, whose layers exchange activations in their "
                             "midst; use fsdp.py")

    def tensor_group(self, devices: int) -> int:
        """The devices over which each layer is split, of all `devices`.

        Raises:
            InputError: the devices cannot be divided into groups of so many.
        """
        group = self.tensor_parallel or devices
        if devices % group:
            fits = " or ".join(map(str, divisors(devices)))
            raise InputError(f"--tensor_parallel {group}: {devices} devices cannot be divided into groups of that "
                             f"many; use {fits}")
        if self.shard_replicas and group == devices:
            raise InputError(f"--shard_replicas: all {devices} devices make up one tensor group, so there are no "
                             "replicas to shard over; use --tensor_parallel with fewer")
        return group


A = TypeVar("A", bound=Arguments)


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def parse_arguments(kind: type[A], command: list[str] | None = None) -> A:
    """Read the flags (`sys.argv` by default).

    Raises:
        InputError: unknown or abbreviated flags, values out of range, flags that contradict each other.

    `--device cpu` takes effect here: GPUs are hidden before anything looks for them.
    """
    words = sys.argv[1:] if command is None else list(command)
    parser = _Parser(
        grouped(kind, Arguments),  # pyright: ignore[reportArgumentType]  declared as NewTypes, though any dataclass is meant
        **about_script(), allow_abbrev=False, usage="%(prog)s [flags]", formatter_class=Formatter)
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # old launchers add it
    names = [f.name for f in dataclasses.fields(kind)]
    not_given = object()  # argparse fills in a default only where there is no value yet
    values, unknown = parser.parse_known_args(words, argparse.Namespace(**dict.fromkeys(names, not_given)))
    if unknown:
        raise InputError(unknown_flag(unknown[0], [f"--{name}" for name in names]))
    if values.local_rank not in (None, launcher.local_rank()):
        raise InputError(f"--local_rank {values.local_rank}: launchers set this flag; leave it out")
    given = {name: getattr(values, name) for name in names if getattr(values, name) is not not_given}
    arguments = kind(**given)
    arguments.given = frozenset(given)
    check_arguments(arguments)
    if arguments.device == "cpu":
        from workload.launch.gpus import use_cpu  # which imports torch, for seconds

        use_cpu()
    return arguments
