"""`bert_baseline.py` whose second rank takes 12 s longer to save its trace of the profiled steps."""

import time

import bert_baseline
from measurement.profiling import StepProfiler
from workload.errors import one_line_errors

save = StepProfiler.save


def save_slowly(profiler: StepProfiler) -> None:
    if profiler.processes.rank == 1:
        time.sleep(12)
    save(profiler)


StepProfiler.save = save_slowly

if __name__ == "__main__":
    with one_line_errors():
        bert_baseline.main()
