"""The command line: one dataclass of flags, with the same meaning in every script.

A flag that was *given* and contradicts another one, or would be ignored, is refused before anything is loaded.
Defaults never contradict anything.
"""

import argparse
import dataclasses
import difflib
import os
import sys
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from transformers import HfArgumentParser

from workload.errors import InputError


def flag(help_text: str, default=None, **options):
    """A dataclass field whose help text shows in `--help`; `options` go to argparse."""
    return field(default=default, metadata={"help": help_text, **options})


@dataclass
class Arguments:
    """The flags that every script takes."""

    task: Literal["squad_v2", "imdb", "mnli", "oscar"] = flag("what is learned", "squad_v2")
    model: str | None = flag("Hub name or local folder; `tiny`: the embedded small model, random weights. "
                             "Default: the task's own")
    from_scratch: bool | None = flag("random weights in the shape of --model. Default: only where it has no others, "
                                     "and for oscar's own GPT-2")
    tokenizer: str | None = flag("Hub name or local folder. Default: the model's own")
    train_file: str | None = flag("training data in the task's official format. Default: the Hub's dataset")
    eval_file: str | None = flag("evaluation data in the task's official format. Default: the Hub's dataset")
    eval_mismatched_file: str | None = flag("mnli: evaluation data of other genres, for accuracy_mismatched")
    sample: bool = flag("train and evaluate on the small embedded sample", False)
    max_train_examples: int | None = flag("keep the first N training examples")
    max_eval_examples: int | None = flag("keep the first N evaluation examples")
    max_seq_length: int | None = flag("tokens in a sample. Default: squad_v2 384, imdb 256, mnli 128, oscar 1024, "
                                       "or all that the model takes")
    doc_stride: int | None = flag("squad_v2: tokens that two windows of one context share. Default: 128, or a third "
                                   "of a window")
    answerable_only: bool = flag("squad_v2 without its unanswerable questions", False)

    length_grouping: bool = flag("batches of samples of similar length, which leaves little padding; false: plain "
                                 "shuffling", True)
    global_batch_size: int = flag("samples per optimizer step, over all devices", 64)
    micro_batch_size: int | None = flag("samples per forward pass on one device. Default: the largest that leaves "
                                        "at least 4 micro-batches a step over all devices")
    epochs: int = flag("passes over the training data", 5)
    max_steps: int | None = flag("optimizer steps; takes the place of --epochs")
    learning_rate: float = flag("AdamW's peak learning rate", 3e-5)
    lr_scheduler: Literal["linear", "constant"] = flag("learning rate by optimizer step", "linear")
    warmup_steps: int | None = flag("steps of linear warm-up. Default: a tenth of the steps, at most 500")
    weight_decay: float = flag("AdamW's decoupled decay; never on biases and LayerNorm", 0.01)
    max_grad_norm: float = flag("clip gradients to this global norm", 1.0)
    adam_epsilon: float = flag("AdamW's epsilon", 1e-8)
    skip_nonfinite: bool = flag("leave out steps whose loss or gradients are not finite, and count them; default: stop",
                                False)
    dropout: float | None = flag("overrides every dropout of the model. Default: the model's own")
    precision: Literal["fp32", "bf16", "fp16", "bf16_native"] | None = flag(
        "bf16, fp16: autocast over fp32 parameters; bf16_native: bf16 parameters. "
        "Default: fp32 on a CPU, bf16 on a GPU that has it")
    tf32: bool = flag("with --precision fp32 on a GPU: matrix products round their factors to 10 bits, which tensor "
                      "cores take", False)
    compile: bool = flag("torch.compile for the transformer layers; worth its start in long runs", False)

    num_gpus: int | None = flag("processes, one per device; without GPUs CPU processes. Default: all visible GPUs")
    cpu_threads: int | None = flag("threads per process. Default: cores // processes of this machine")
    seed: int = flag("new weights, order, dropout", 0)
    eval_steps: int | None = flag("evaluate every N steps besides at the end. Default: once an epoch")
    reference_batch_size: int = flag("the batch against which statistical efficiency is stated", 16)
    noise_scale_steps: int = flag("sample the gradient noise scale every N steps; 0: never", 16)
    profile_steps: int = flag("after the warm-up, profile N steps off the clock: communication, host and device "
                              "seconds; the traces are kept", 0)
    target_f1: float | None = flag("record when an evaluation's F1 first reaches this, in percent")
    target_loss: float | None = flag("record when an evaluation's loss first falls to this")
    peak_tflops: float | None = flag("peak rate of one device in this precision, for mfu_pct. "
                                     "Default: from a table of GPUs")
    measure: Literal["all", "throughput"] = flag("`throughput`: nothing but the clock and the evaluations, to see "
                                                 "what measuring costs", "all")

    output_dir: str = flag("where run folders go", "results")
    run_name: str | None = flag("name of the run's folder. Default: made from the settings")
    overwrite: bool = flag("replace a run folder of the same name", False)
    checkpoint_steps: int | None = flag("write a checkpoint every N steps, off the clock; the last two are kept. "
                                        "Default: only when told to stop")
    hang_timeout_s: float = flag("end a run whose step takes longer than this, and say which rank is missing", 600.0)
    resume: Literal["never", "always", "auto"] = flag(
        "go on from the run's last checkpoint; `auto`: or begin, or end at once where the run is finished", "never",
        nargs="?", const="always")
    save_model: bool = flag("write model/ into the run folder, for `from_pretrained`", False)

    def __post_init__(self) -> None:
        self.given: frozenset[str] = frozenset()  # names of the flags on the command line; see parse_arguments


@dataclass
class StageArguments(Arguments):
    """What pipelines take besides."""

    stages: int | None = flag("devices that the layers are spread over. Default: all; "
                              "devices / stages is the number of replicas")
    micro_batches: int | None = flag("micro-batches that a step sends through the pipeline. "
                                     "Default: 4 x stages, at most what the batch allows")


@dataclass
class PipelineArguments(StageArguments):
    """What DeepSpeed's pipeline takes besides."""

    deepspeed_config: str = flag("DeepSpeed's own settings", "ds_config.json")


@dataclass
class TorchPipelineArguments(StageArguments):
    """What PyTorch's pipeline takes besides."""

    schedule: Literal["gpipe", "1f1b", "interleaved", "zero_bubble", "zbv"] = flag(
        "order in which devices work off the micro-batches; the last three put two pieces of the model on each device",
        "1f1b")


@dataclass
class ZeroArguments(Arguments):
    """What DeepSpeed's ZeRO takes besides."""

    stage: Literal[0, 1, 2, 3] = flag("what the devices share out: 0 nothing, 1 the optimizer's states, 2 and the "
                                      "gradients, 3 and the parameters", 2)
    offload: bool = flag("keep the optimizer's states in the CPU's memory and update there", False)
    deepspeed_config: str = flag("DeepSpeed's own settings", "ds_config.json")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.offload and self.stage == 0:
            raise InputError("--offload moves what --stage 1, 2 or 3 share out; --stage 0 shares out nothing")
        if self.compile and self.stage == 3:
            raise InputError("--compile: with --stage 3 DeepSpeed gathers parameters in the midst of the layers, for "
                             "each of which the compiler would start anew; --stage 2, or fsdp.py, fits")
        if self.offload and self.precision == "bf16_native":
            raise InputError("--offload: on the CPU DeepSpeed updates fp32 parameters only; --precision bf16 fits")


@dataclass
class TrainerArguments(Arguments):
    """What hf_trainer.py takes besides."""

    deepspeed_config: str | None = flag("DeepSpeed's own settings, with a ZeRO stage. Default: no DeepSpeed, but DDP")


@dataclass
class FsdpArguments(Arguments):
    """What FSDP takes besides."""

    reshard_after_forward: bool = flag("give a layer's gathered parameters back after its forward pass, and gather "
                                       "them again for the backward pass; false: keep them until the step's end", True)
    gather_precision: Literal["fp32", "bf16"] = flag(
        "type in which parameters are gathered; bf16: half the bytes, with --precision bf16 only, and LayerNorms and "
        "embeddings are rounded as well", "fp32")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gather_precision == "bf16" and self.precision != "bf16":
            raise InputError(f"--gather_precision bf16: the products are in {self.precision or 'another type'}; "
                             "--precision bf16 fits")


OF_ONE_TASK = {"doc_stride": "squad_v2", "answerable_only": "squad_v2", "eval_mismatched_file": "mnli"}

A = TypeVar("A", bound=Arguments)


class _Parser(HfArgumentParser):
    def error(self, message: str) -> None:
        raise InputError(message)


def parse_arguments(kind: type[A], command: list[str] | None = None) -> A:
    """Read the flags (`sys.argv` by default).

    Raises:
        InputError: unknown or abbreviated flags, values out of range, flags that contradict each other.
    """
    command = sys.argv[1:] if command is None else list(command)
    # DeepSpeed's launcher hands every process this flag; LOCAL_RANK says the same.
    command = [word for word in command if not word.startswith("--local_rank=")]
    parser = _Parser(kind, allow_abbrev=False, description=kind.__doc__,
                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    arguments, unknown = parser.parse_args_into_dataclasses(command, return_remaining_strings=True,
                                                            look_for_args_file=False)
    names = [f.name for f in dataclasses.fields(kind)]
    if unknown:
        close = difflib.get_close_matches(unknown[0].split("=")[0], [f"--{name}" for name in names], n=1)
        meant = f"did you mean {close[0]}? " if close else ""
        raise InputError(f"unknown flag {unknown[0]}; {meant}{os.path.basename(sys.argv[0])} --help lists all")
    words = {word.split("=")[0] for word in command}
    arguments.given = frozenset(name for name in names if f"--{name}" in words)
    _check(arguments)
    return arguments


def _check(arguments: Arguments) -> None:
    given = arguments.given

    def refuse_together(first: str, second: str, instead: str) -> None:
        if {first, second} <= given:
            raise InputError(f"--{first} and --{second} contradict each other; {instead}")

    refuse_together("sample", "train_file", "give one of them")
    refuse_together("sample", "eval_file", "give one of them")
    refuse_together("sample", "eval_mismatched_file", "give one of them")
    refuse_together("max_steps", "epochs", "give one of them")
    refuse_together("overwrite", "resume", "give one of them")
    if arguments.resume != "never" and arguments.profile_steps:
        raise InputError("--resume: a profile is of a run in one piece; leave --profile_steps out to go on")
    for one, other in (("train_file", "eval_file"), ("eval_file", "train_file")):
        if one in given and other not in given:
            raise InputError(f"--{one} needs --{other} beside it: both from files, or both from the Hub")
    if "eval_mismatched_file" in given and "eval_file" not in given:
        raise InputError("--eval_mismatched_file needs --train_file and --eval_file beside it")
    for name, task in OF_ONE_TASK.items():
        if name in given and arguments.task != task:
            raise InputError(f"--{name} would be ignored by --task {arguments.task}; it is for --task {task}")
    if arguments.lr_scheduler == "constant" and arguments.warmup_steps:
        raise InputError("--warmup_steps would be ignored by --lr_scheduler constant; use linear, or leave it out")

    if arguments.tf32 and arguments.precision not in (None, "fp32"):
        raise InputError(f"--tf32 would be ignored by --precision {arguments.precision}; --precision fp32 fits")

    refuse_together("target_f1", "target_loss", "give one of them")
    if arguments.measure == "throughput":
        for name in ("noise_scale_steps", "profile_steps"):
            if getattr(arguments, name) and name in given:
                raise InputError(f"--{name} would be ignored by --measure throughput; leave one of them out")
        arguments.noise_scale_steps = 0

    at_least = {"max_train_examples": 1, "max_eval_examples": 1, "max_seq_length": 8, "doc_stride": 0,
                "global_batch_size": 1, "micro_batch_size": 1, "epochs": 1, "max_steps": 1, "warmup_steps": 0,
                "weight_decay": 0, "num_gpus": 1, "cpu_threads": 1, "seed": 0, "eval_steps": 1,
                "reference_batch_size": 1, "noise_scale_steps": 0, "profile_steps": 0, "dropout": 0, "stages": 1,
                "micro_batches": 1, "checkpoint_steps": 1}
    for name, smallest in at_least.items():
        value = getattr(arguments, name, None)
        if value is not None and not value >= smallest:
            raise InputError(f"--{name} {value}: must be at least {smallest}")
    for name in ("learning_rate", "max_grad_norm", "adam_epsilon", "target_f1", "target_loss", "peak_tflops",
                 "hang_timeout_s"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"--{name} {value}: must be a number above 0")
    if arguments.dropout is not None and not arguments.dropout < 1:
        raise InputError(f"--dropout {arguments.dropout}: must be below 1")
    if arguments.target_f1 is not None and arguments.target_f1 > 100:
        raise InputError(f"--target_f1 {arguments.target_f1}: F1 is in percent, at most 100")
    name = arguments.run_name
    if name is not None and (name in ("", ".", "..") or os.path.basename(name) != name):
        raise InputError(f"--run_name {name!r}: must be the plain name of a folder; --output_dir says where")
