"""The instruments of a run on one rank: clocks, profiler, monitor and heartbeat, paused and resumed together."""

import torch

from measurement.clock import StepClock, ThroughputClock, Work
from measurement.environment import GIB
from measurement.heartbeat import Heartbeat
from measurement.machine_state import product_seconds
from measurement.monitor import Monitor, start_monitor
from measurement.pipelines.spans import Span
from measurement.profiling import StepProfiler
from measurement.recorder import Recorder
from measurement.run_result import Progress, RankReport
from workload.job import Job


class Instruments:
    """Measures a run's training steps. Paused at first, and whenever something other than training happens.

    Args:
        job: what is trained, and on what.
        ranks: all ranks, as `devices_of_rank` describes them.
        recorder: on rank 0, writes the rows of steps that have ended.
    """

    def __init__(self, job: Job, ranks: list[dict], recorder: Recorder | None) -> None:
        processes, arguments = job.processes, job.arguments
        self.device, self.devices, self.recorder = processes.device, processes.devices, recorder
        self.profiler: StepProfiler | None = None
        self.steps_to_skip = job.untimed_steps
        if profiled := arguments.profile_steps:
            first = job.untimed_steps + 2  # the profiler warms up on the step before
            self.steps_to_skip = first + profiled - 1
            self.profiler = StepProfiler(first, self.steps_to_skip, processes, job.folder / "profile")
        self.throughput = ThroughputClock(self.device, self.steps_to_skip)
        # A new padded length makes GPUs choose kernels and the compiler compile: such a step is not timed.
        self.new_lengths_are_slow = self.device.type == "cuda" or arguments.compile
        self.lengths_seen: set[int] = set()
        self.measures_all = arguments.measure == "all"
        self.monitor: Monitor | None = None  # on the first rank of each node
        if processes.local_rank == 0 and self.measures_all:
            self.monitor = start_monitor(job, ranks, ranks[processes.rank]["node"])
        self.heartbeat = Heartbeat(job.folder / "run.json", processes.rank, ranks, arguments.hang_timeout_s)
        if self.device.type == "cuda":
            for device in self.devices:
                torch.cuda.reset_peak_memory_stats(device)

    def resume(self) -> None:
        """Training begins or resumes. Synchronizes the devices."""
        self.throughput.open()
        if self.profiler:
            self.profiler.resume()
        self._begin_stretch()

    def _begin_stretch(self) -> None:
        """Begin a stretch of steps without a pause; the devices have been synchronized.

        Otherwise its first step would last from the end of what this rank did before, and include waiting for ranks
        that are not done with it.
        """
        self.clock = StepClock(self.device)
        if self.recorder:
            self.recorder.begin_stretch(self.clock.began)
        if self.monitor and self.throughput.is_open:
            self.monitor.open_window()

    def pause(self) -> None:
        """Training pauses or ends. Synchronizes the devices; afterwards the rows of all steps have been written."""
        self.heartbeat.pause()
        if self.profiler:
            self.profiler.pause()
        self.throughput.close()
        if self.monitor:
            self.monitor.close_window()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if self.recorder:
            self.recorder.write_steps()

    def begin_step(self, step: int) -> None:
        """Step `step` begins, with loading its batch."""
        if self.profiler:
            self.profiler.begin_step(step)

    def pause_if_slow(self, length: int) -> bool:
        """Pause for a step that should not be timed because its padded length is new; whether it did.

        The same on every rank.
        """
        is_new = length not in self.lengths_seen
        self.lengths_seen.add(length)
        is_slow = is_new and self.new_lengths_are_slow and self.throughput.is_open
        if is_slow:
            self.pause()
        return is_slow

    def end_step(self, step: int, work: Work) -> None:
        """Count a step that the host has issued to the devices."""
        if self.profiler and self.profiler.end_step(step):
            self.pause()
            self.profiler.save()
            self.resume()
        was_open = self.throughput.is_open
        self.throughput.count(work)
        if self.throughput.is_open and not was_open:  # the steps to skip are over
            if self.recorder:
                self.recorder.write_steps()
            self._begin_stretch()
        if self.monitor:
            self.monitor.check()

    def stop(self, progress: Progress, spans: dict[int, list[Span]]) -> RankReport:
        """Stop the monitor's thread; returns what this rank measured.

        Args:
            progress, spans: see `RankReport`.

        Raises:
            OSError: devices.csv could not be written.
        """
        peak_memory_gib = None
        if self.device.type == "cuda":
            peak_memory_gib = max(map(torch.cuda.max_memory_allocated, self.devices)) / GIB
        return RankReport(
            progress=progress, spans=spans,
            devices=self.monitor.stop() if self.monitor else {}, missing=self.monitor.missing if self.monitor else {},
            profile=self.profiler.costs if self.profiler else {}, peak_memory_gib=peak_memory_gib,
            matrix_product_s=product_seconds(self.devices) if self.measures_all else None)
