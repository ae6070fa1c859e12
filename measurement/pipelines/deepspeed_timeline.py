"""Records DeepSpeed's pipeline engine on a timeline: each instruction of its schedule, as the engine runs it."""

import contextlib
from collections.abc import Iterator

from measurement.pipelines.timeline import StepTimeline

KINDS = {"LoadMicroBatch": "load", "ForwardPass": "forward", "BackwardPass": "backward", "SendActivation": "send",
         "SendGrad": "send", "RecvActivation": "receive", "RecvGrad": "receive", "ReduceGrads": "reduce",
         "ReduceTiedGrads": "reduce", "OptimizerStep": "optimizer"}


@contextlib.contextmanager
def watch_instructions(engine, timeline: StepTimeline | None) -> Iterator[None]:
    """Record what `engine` does within this context on `timeline`, if there is one."""
    if timeline is None:
        yield
        return
    engine._INSTRUCTION_MAP = {instruction: timeline.timed(KINDS[instruction.__name__], function)
                               for instruction, function in type(engine)._INSTRUCTION_MAP.items()}
    try:
        yield
    finally:
        del engine._INSTRUCTION_MAP  # the class's own is visible again
