"""What a run measured, as plain data: it goes from the ranks to the summary, and into checkpoints and back."""

from dataclasses import dataclass
from typing import Any

from measurement.clock import Work
from measurement.pipelines.idle_replay import Actions
from measurement.pipelines.spans import Span
from workload.batches import BatchSplit
from workload.evaluation import Evaluation


@dataclass(frozen=True)
class Progress:
    """How far one rank is, and its part of what is measured over the whole run; a checkpoint saves it.

    Attributes:
        step: the last completed step.
        samples, real_tokens, padded_tokens: trained so far, over all devices.
        order_total: this rank's part of the order hash, see `OrderHash`.
        throughput_s: seconds for which throughput was measured.
        work: done in those seconds.
    """

    step: int
    samples: int
    real_tokens: int
    padded_tokens: int
    order_total: int
    throughput_s: float
    work: Work


@dataclass(frozen=True)
class RankReport:
    """What one rank measured.

    Attributes:
        progress: at the end of the run.
        spans: what this rank did in each recorded step of a pipeline; empty for other strategies.
        devices: for each rank whose devices this one monitors, the readings in the columns of ranks.csv.
        missing: columns that the monitor could not read, and why.
        profile: costs of a profiled step, in the columns of ranks.csv.
        peak_memory_gib: the most memory that PyTorch had allocated at a time; None on a CPU.
        matrix_product_s: of its device after training; None with `--measure throughput`.
    """

    progress: Progress
    spans: dict[int, list[Span]]
    devices: dict[int, dict[str, float | None]]
    missing: dict[str, str]
    profile: dict[str, float | None]
    peak_memory_gib: float | None
    matrix_product_s: float | None


@dataclass(frozen=True)
class RunResult:
    """All that the summary of a finished run is made of.

    Attributes:
        run_json: the content of run.json: flags, versions, attempts, each rank's devices and part of the model.
        batch_split: how a global batch is split over devices.
        gradient_samples: samples in a micro-batch whose gradient the noise scale samples: those of one process.
        stages, schedule: of a pipeline; 1 and None for other strategies.
        actions: what each device of a pipeline does in order; None where a formula gives the schedule's idle share.
        steps_per_epoch: optimizer steps.
        runtime_s: from the user's command to the summary, over all attempts.
        evaluation: the last one.
        target_reached: `time_to_target_s` and `samples_to_target`; empty if the target was never reached.
        losses: of every recorded step.
        noise_norms: of every sampled step the mean squared norm of micro-batches' gradients, and the global batch's.
        epoch_s: average epoch time; None if no epoch with timed steps was completed.
        skipped_steps: steps whose gradients were not finite, so that nothing was updated.
        peak_tflops, peak_tflops_source: of one device, and where the rate is from; or None, and why.
        reports: of each rank.
        watched_steps: what all ranks did in each recorded step; empty if this is no pipeline.
        profile_has_devices: whether the traces of `--profile_steps` show device time; None if nothing was profiled.
    """

    run_json: dict[str, Any]
    batch_split: BatchSplit
    gradient_samples: int
    stages: int
    schedule: str | None
    actions: Actions | None
    steps_per_epoch: int
    runtime_s: float
    evaluation: Evaluation
    target_reached: dict[str, float]
    losses: list[float]
    noise_norms: list[tuple[float, float]]
    epoch_s: float | None
    skipped_steps: int
    peak_tflops: float | None
    peak_tflops_source: str
    reports: list[RankReport]
    watched_steps: list[list[Span]]
    profile_has_devices: bool | None

    @property
    def progress(self) -> Progress:
        """Rank 0's."""
        return self.reports[0].progress

    @property
    def flags(self) -> dict[str, Any]:
        """Every flag with the value that was used."""
        return self.run_json["flags"]

    @property
    def measures_all(self) -> bool:
        return self.flags["measure"] == "all"
