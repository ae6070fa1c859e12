"""What a pretended device was given to do in the steps that are measured, and what made the host wait for it."""

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
    """Count while the run's throughput clock is open; whenever it closes write `folder`/rankN.json.

    A wait is listed by the line that asked for it, an operation by its name: calls, and bytes written by copies. A call
    of a fused or foreach operation is one operation, whatever the number of its tensors.
    """
    from measurement.clock import ThroughputClock

    waits: Counter[tuple[str, str]] = Counter()
    operations: Counter[str] = Counter()
    written: Counter[str] = Counter()
    before: dict[ThroughputClock, dict[str, tuple[int, int]]] = {}
    begin, end = ThroughputClock.open, ThroughputClock.close

    def open_(clock):
        begin(clock)
        before[clock] = device.operations()

    def close(clock):
        then = before.pop(clock, None)
        if then is not None:
            for name, (calls, size) in device.operations().items():
                calls_then, size_then = then.get(name, (0, 0))
                operations[name] += calls - calls_then
                written[name] += size - size_then
        end(clock)
        write(clock.work.steps)

    def note(what: str) -> None:
        if any(clock.is_open for clock in before):
            waits[_line(), what] += 1

    def write(steps: int) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        counts = {
            "steps": steps,
            "waits": [{"line": line, "what": what, "per_step": count / max(steps, 1)}
                      for (line, what), count in waits.most_common()],
            "operations": {name: {"per_step": count / max(steps, 1), "bytes_per_step": written[name] / max(steps, 1)}
                           for name, count in operations.most_common() if count}}
        Path(folder, f"rank{os.environ['RANK']}.json").write_text(json.dumps(counts, indent=1))

    for name, method in (("open", open_), ("close", close)):
        setattr(ThroughputClock, name, method)
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
