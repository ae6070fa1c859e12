"""A strategy script that measures everything in one stretch of steps, and nothing in the next.

Started by measurement_overhead.py. ALTERNATING_SCRIPT names the script, ALTERNATING_RESULT the JSON file that is
written: whether each stretch was measured, its seconds and its tokens.
"""

import importlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measurement.clock import synchronize
from measurement.monitor import Monitor
from measurement.noise_scale import GradientNoise
from measurement.run import Run
from workload.errors import one_line_errors

STRETCH = 16  # steps: in each measured one the noise scale is sampled once
ORDER = (True, False, False, True)  # so that a machine that slows down steadily favours neither

is_measured = True
stretches: list[dict] = []


class AlternatingRun(Run):
    def training_steps(self, batches, training):
        global is_measured
        began, tokens = None, 0
        for step, share in super().training_steps(batches, training):
            number, place = divmod(step - 1, STRETCH)
            if place == 0:
                synchronize(self.device)
                now = time.perf_counter()
                if began is not None:
                    stretches.append({"measured": is_measured, "seconds": now - began, "tokens": tokens})
                began, tokens = now, 0
                self.measures_all = is_measured = ORDER[number % len(ORDER)]
            tokens += self.work.padded_tokens
            yield step, share


def only_if_measured(method: Callable) -> Callable:
    return lambda *arguments: method(*arguments) if is_measured else None


def main() -> None:
    script: Any = importlib.import_module(os.environ["ALTERNATING_SCRIPT"])
    script.Run = AlternatingRun
    leave, script.leave = script.leave, lambda: None  # it ends the process
    GradientNoise.begin_step = only_if_measured(GradientNoise.begin_step)
    Monitor._sample = only_if_measured(Monitor._sample)
    script.main()
    if os.environ["RANK"] == "0":
        Path(os.environ["ALTERNATING_RESULT"]).write_text(json.dumps(stretches))
    leave()


if __name__ == "__main__":
    with one_line_errors():
        main()
