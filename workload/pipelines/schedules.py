"""The plan of a pipeline that `torch_pipeline.py` is asked for: schedule, stages, pieces, micro-batches."""

from dataclasses import dataclass

from workload.argument_checks import divisors
from workload.arguments import TorchPipelineArguments
from workload.batches import plan_stages
from workload.errors import InputError
from workload.pipelines.dealing import TORCH_NAMES, can_run, pieces_of


@dataclass(frozen=True)
class PipelinePlan:
    """How the devices of one pipeline share the pieces of a model, and the schedule in which they work."""

    name: str
    torch_name: str  # for `get_schedule_class`
    pieces_a_device: int
    stages: int
    micro_batches: int

    @property
    def pieces(self) -> int:
        """Number of pieces the model is cut into."""
        return self.stages * self.pieces_a_device

    def pieces_of(self, stage: int) -> list[int]:
        """Numbers of the pieces on a device."""
        return pieces_of(self.name, stage, self.stages)

    def stage_of(self, piece: int) -> int:
        """The device that holds a piece."""
        return next(stage for stage in range(self.stages) if piece in self.pieces_of(stage))


def plan_pipeline(arguments: TorchPipelineArguments, devices: int) -> PipelinePlan:
    """The plan that `--schedule`, `--stages` and `--micro_batches` ask for, with defaults filled in.

    Raises:
        InputError: devices or micro-batches that the schedule cannot run with.
    """
    name = arguments.schedule
    stages, micro_batches = plan_stages(arguments.stages, arguments.micro_batches, arguments.global_batch_size, devices)
    if not can_run(name, stages, micro_batches):
        share = arguments.global_batch_size // (devices // stages)
        fits = [n for n in divisors(share) if can_run(name, stages, n)]
        if arguments.micro_batches or not fits:
            reason = (f"are fewer than {stages} stages" if name == "1f1b" else
                      f"cannot be divided into {micro_batches // stages} equal rounds over {stages} stages")
            in_words = " or ".join(map(str, fits[-4:])) or "another --global_batch_size"
            raise InputError(f"--schedule {name}: {micro_batches} micro-batches {reason}; use {in_words}")
        micro_batches = max((n for n in fits if n <= 4 * stages), default=min(fits))
    return PipelinePlan(name, *TORCH_NAMES[name], stages, micro_batches)
