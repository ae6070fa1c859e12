"""One step of a pipeline as spans of time: what each stage did when, how long it was idle, and how that is drawn.

Needs no torch: predicted steps are spans, too.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from workload.atomic_files import write_text
from workload.terminal import quiet_libraries

COMPUTE = ("forward", "backward", "weight")  # weight: weights' gradients, if computed later than the inputs'
COLOURS = {"forward": "#0072B2", "backward": "#E69F00", "weight": "#F0E442", "optimizer": "#009E73",
           "reduce": "#CC79A7", "send": "#999999", "receive": "#999999", "load": "#56B4E9"}  # Okabe and Ito
Stage = tuple[int, int]  # its replica, and its number in it


@dataclass(frozen=True)
class Span:
    """A piece of work of one stage, from `start` to `end` in seconds.

    `number` is the micro-batch index for compute spans, else a running count per kind within the step.
    """

    replica: int
    stage: int
    kind: str
    number: int
    start: float
    end: float
    piece: int = 0  # index of the stage's piece of the model, if it holds several

    @property
    def label(self) -> str:
        """The number; a prime marks the second piece."""
        return f"{self.number}" + "'" * self.piece


def watched_steps(reports: list[dict[int, list[Span]]]) -> dict[int, list[Span]]:
    """All ranks' spans in each recorded step; empty if nothing was recorded.

    Args:
        reports: for each rank, its spans by step.
    """
    steps = {step: [span for report in reports for span in report[step]] for step in reports[0]}
    return {step: spans for step, spans in steps.items() if spans}


def typical_step(steps: dict[int, list[Span]]) -> int:
    """The recorded step of median duration.

    Args:
        steps: of each recorded step, all ranks' spans; see `watched_steps`.
    """
    return sorted(steps, key=lambda step: wall_s(steps[step]))[(len(steps) - 1) // 2]


def wall_s(spans: list[Span]) -> float:
    """Seconds from the first start to the last end."""
    return max(span.end for span in spans) - min(span.start for span in spans)


def seconds_by_kind(spans: list[Span]) -> defaultdict[str, float]:
    """Total seconds of the spans of each kind."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for span in spans:
        seconds[span.kind] += span.end - span.start
    return seconds


def compute_s(spans: list[Span]) -> dict[Stage, float]:
    """Seconds in which each stage of each replica went forward or backward."""
    seconds = dict.fromkeys(sorted({(span.replica, span.stage) for span in spans}), 0.0)
    for span in spans:
        if span.kind in COMPUTE:
            seconds[span.replica, span.stage] += span.end - span.start
    return seconds


def idle_s(spans: list[Span]) -> dict[Stage, float]:
    """Seconds in which each stage neither went forward nor backward, until the step's last backward pass has ended.

    What follows is left out: the rest of gradients' reduction and the optimizer, which every strategy has. A stage that
    comes to it while another still computes is idle.
    """
    return {stage: forward_backward_s(spans) - seconds for stage, seconds in compute_s(spans).items()}


def forward_backward_s(spans: list[Span]) -> float:
    """Seconds from the first start on any stage to the end of the last forward or backward work on any stage."""
    return max(span.end for span in spans if span.kind in COMPUTE) - min(span.start for span in spans)


def bubble_pct(spans: list[Span]) -> float:
    """Idle share of all stages in one step, in percent: sum of `idle_s` / (stages x `forward_backward_s`)."""
    idle = idle_s(spans).values()
    return 100 * sum(idle) / (len(idle) * forward_backward_s(spans))


def bubble_schedule_pct(stages: int, micro_batches: int) -> float:
    """Idle share of the GPipe and 1F1B schedules if all stages take equally long, in percent: (p-1)/(m+p-1).

    No bound where stages differ: with 2 stages, 2 micro-batches, and forward as long as backward, 1F1B leaves 25 % idle
    instead of 33 % where the first stage takes twice as long as the second.

    Huang et al. 2019 (GPipe); Narayanan et al. 2021 for 1F1B.
    """
    return 100 * (stages - 1) / (micro_batches + stages - 1)


def imbalance_pct(spans: list[Span]) -> float:
    """By how much the slowest stage's compute seconds exceed the stages' mean, in percent."""
    seconds = compute_s(spans)
    return 100 * (max(seconds.values()) * len(seconds) / sum(seconds.values()) - 1)


def write_trace(spans: list[Span], path: Path) -> None:
    """Write a Chrome trace for Perfetto: a process per replica, a thread per stage, times in microseconds."""
    begin = min(span.start for span in spans)
    events: list[dict] = []
    for replica, stage in sorted({(span.replica, span.stage) for span in spans}):
        events.append({"name": "process_name", "ph": "M", "pid": replica, "args": {"name": f"replica {replica}"}})
        events.append({"name": "thread_name", "ph": "M", "pid": replica, "tid": stage,
                       "args": {"name": f"stage {stage}"}})
    events += [{"name": f"{span.kind} {span.label}", "cat": span.kind, "ph": "X", "pid": span.replica,
                "tid": span.stage, "ts": round((span.start - begin) * 1e6, 1),
                "dur": round((span.end - span.start) * 1e6, 1)} for span in spans]
    write_text(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))


def read_trace(path: Path) -> list[Span]:
    """The spans that `write_trace` wrote; their labels' numbers count within a stage's piece.

    Raises:
        OSError, ValueError: there is no such file, or it is something else.
    """
    try:
        spans = []
        for event in json.loads(path.read_text(encoding="utf-8"))["traceEvents"]:
            if event["ph"] == "X":
                label = event["name"].removeprefix(event["cat"] + " ")
                number = label.rstrip("'")
                start = event["ts"] / 1e6
                spans.append(Span(int(event["pid"]), int(event["tid"]), str(event["cat"]), int(number), start,
                                  start + event["dur"] / 1e6, len(label) - len(number)))
        return spans
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no timeline") from error


def draw(spans: list[Span], title: str, path: Path) -> None:
    """Draw a row per stage, with the micro-batch's number on each compute span; idle time is white.

    Spans of a stage's second piece of the model are paler, with a prime after the number.
    """
    with quiet_libraries():  # Matplotlib warns if the home folder cannot be written to
        from matplotlib.figure import Figure  # imported here: it takes most of a second, and only rank 0 draws

    begin = min(span.start for span in spans)
    rows = sorted({(span.replica, span.stage) for span in spans})
    figure = Figure(figsize=(12, 1.6 + 0.55 * len(rows)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    end_ms = max(span.end - begin for span in spans) * 1000
    for span in spans:
        place, start, width = rows.index((span.replica, span.stage)), span.start - begin, span.end - span.start
        is_wait = span.kind in ("send", "receive")
        axes.barh(place, 1000 * width, left=1000 * start, height=0.22 if is_wait else 0.8, color=COLOURS[span.kind],
                  edgecolor="white", linewidth=0.3, alpha=0.6 if is_wait or span.piece else 1)
        if span.kind in COMPUTE and 1000 * width > 0.012 * end_ms:
            axes.text(1000 * (start + width / 2), place, span.label, ha="center", va="center", fontsize=7,
                      color="white" if span.kind == "forward" else "black")
    several = len({replica for replica, _ in rows}) > 1
    axes.set_yticks(range(len(rows)), [f"replica {r}, stage {s}" if several else f"stage {s}" for r, s in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, end_ms)
    axes.set_xlabel("time (ms)")
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    kinds = dict.fromkeys(kind.replace("receive", "send") for kind in COLOURS if any(s.kind == kind for s in spans))
    handles = [axes.barh(0, 0, color=COLOURS[kind], label="send, receive (and waiting)" if kind == "send" else kind)
               for kind in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    figure.savefig(path)
