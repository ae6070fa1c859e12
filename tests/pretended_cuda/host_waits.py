"""What made the host wait for a pretended device within the steps that are measured, by the line that asked for it."""

import json
import os
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import torch

PROJECT, LIBRARIES = Path(__file__).resolve().parents[2], Path(torch.__file__).parents[1]
PASSED_OVER = tuple(map(str, (Path(__file__).parent, LIBRARIES / "torch", LIBRARIES / "deepspeed/accelerator")))


def install(device: ModuleType, folder: str) -> None:
    """Count while the run's throughput clock is open; at the end write `folder`/rankN.json."""
    from measurement.clock import ThroughputClock

    counts: Counter[tuple[str, str]] = Counter()
    clocks: set[ThroughputClock] = set()
    begin, end = ThroughputClock.open, ThroughputClock.close

    def open_(clock):
        begin(clock)
        clocks.add(clock)

    def close(clock):
        clocks.discard(clock)
        end(clock)
        write(clock.work.steps)

    def note(what: str) -> None:
        if any(clock.is_open for clock in clocks):
            counts[_line(), what] += 1

    def write(steps: int) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        waits = [{"line": line, "what": what, "per_step": count / max(steps, 1)}
                 for (line, what), count in counts.most_common()]
        path = Path(folder, f"rank{os.environ['RANK']}.json")
        path.write_text(json.dumps({"steps": steps, "waits": waits}, indent=1))

    ThroughputClock.open, ThroughputClock.close = open_, close
    device.on_wait(note)


def _line() -> str:
    """The innermost line outside of PyTorch, as file:line:function."""
    frame = sys._getframe(1)
    while frame is not None:
        path = os.path.abspath(frame.f_code.co_filename)
        if not path.startswith(PASSED_OVER):
            for root in (LIBRARIES, PROJECT):
                if Path(path).is_relative_to(root):
                    return f"{Path(path).relative_to(root)}:{frame.f_lineno}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "the backward pass, in a thread of its own"
