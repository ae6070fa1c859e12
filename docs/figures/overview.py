"""The README's figure: how a pipeline of four stages works off a step, and how fast the small study's runs were."""

from collections.abc import Iterator
from pathlib import Path

from docs.figures.svg import svg, text
from measurement.pipelines.idle_replay import Actions, replay, replayed_bubble_pct
from measurement.pipelines.spans import COLOURS
from measurement.table import read_rows
from prediction.schedules import one_forward_one_backward

STUDY = Path(__file__).parents[2] / "results" / "reference" / "study_cpu_2_cores"
WIDTH, HEIGHT, TOP, LEGEND = 840, 206, 36, 176  # pixels
STAGES, MICRO_BATCHES, SECONDS = 4, 8, {"forward": 1.0, "backward": 2.0}
LEFT, ROW, UNIT = 56, 32, 13  # of the timeline
BARS_LEFT, BARS_WIDTH, BAR_ROW = 640, 150, 26
BAR_COLOURS = {"ddp": "#0072B2", "pipeline": "#D55E00"}
INK = "<style>.ink { fill: #1f2328 } .tiny { font-size: 10px }</style>"  # on colours that white cannot be read on


def draw_overview() -> str:
    def parts() -> Iterator[str]:
        yield INK
        yield from timeline(one_forward_one_backward(STAGES, MICRO_BATCHES))
        yield from bars()

    return svg(HEIGHT, list(parts()), "One step of a 1F1B pipeline of 4 stages, and the throughput of five runs", WIDTH)


def timeline(actions: Actions) -> Iterator[str]:
    """A row for each stage, a cell for each pass, from its start to its end."""
    ends = replay(actions, SECONDS)
    yield text(4, 18, f"One step of a 1F1B pipeline: {STAGES} stages, {MICRO_BATCHES} micro-batches", "title")
    for stage, queue in enumerate(actions):
        y = TOP + stage * ROW
        yield text(4, y + 17, f"stage {stage}", "small")
        yield f'<rect x="{LEFT}" y="{y}" width="{max(ends.values()) * UNIT:g}" height="{ROW - 6}" class="empty"/>'
        for action in queue:
            width = SECONDS[action.kind] * UNIT
            x = LEFT + ends[action] * UNIT - width
            yield (f'<rect x="{x + .5:g}" y="{y}" width="{width - 1:g}" height="{ROW - 6}" '
                   f'fill="{COLOURS[action.kind]}"/>')
            yield text(x + width / 2, y + 17, str(action.micro_batch + 1),
                       "on tiny" if action.kind == "forward" else "ink tiny", "middle")
    x = LEFT
    for kind in SECONDS:
        yield f'<rect x="{x}" y="{LEGEND - 9}" width="12" height="10" fill="{COLOURS[kind]}"/>'
        yield text(x + 16, LEGEND, kind, "small")
        x += 76
    yield f'<rect x="{x}" y="{LEGEND - 9}" width="12" height="10" class="empty"/>'
    yield text(x + 16, LEGEND, f"idle: {replayed_bubble_pct(actions, SECONDS):.0f} % by the schedule alone", "small")
    yield text(LEFT, LEGEND + 18, "A backward pass takes two forward passes; sending takes no time.", "small")


def bars() -> Iterator[str]:
    """A bar for each run of the study."""
    runs = study()
    [loss] = {f"{loss:.3f}" for _, _, _, loss in runs}
    most = max(rate for _, _, rate, _ in runs)
    left = BARS_LEFT - 114
    yield text(left, 18, "Samples a second: 2 CPU cores, no GPU", "title")
    for row, (name, strategy, rate, _) in enumerate(runs):
        y = TOP + row * BAR_ROW
        width = rate / most * BARS_WIDTH
        yield text(BARS_LEFT - 8, y + 14, name, "small", "end")
        yield (f'<rect x="{BARS_LEFT}" y="{y}" width="{width:.1f}" height="{BAR_ROW - 6}" '
               f'fill="{BAR_COLOURS[strategy]}"/>')
        yield text(BARS_LEFT + width + 6, y + 14, f"{rate:.0f}", "small")
    yield text(left, LEGEND, f"A tiny BERT, one seed; validation loss {loss} in every run.", "small")
    yield text(left, LEGEND + 18, "Overheads of small operations: nothing about GPUs.", "small")


def study() -> list[tuple[str, str, float, float]]:
    """Name, strategy, samples a second and validation loss of each run: DDP first, by the number of devices."""
    rows = [row for path in STUDY.glob("*/summary.csv") for row in read_rows(path)]

    def name(row: dict[str, str]) -> str:
        if row["strategy"] == "pipeline":
            return f"pipeline, {row['pipeline_stages']} stages"
        return "1 device" if row["devices"] == "1" else f"DDP x {row['devices']}"

    rows.sort(key=lambda row: (row["strategy"], int(row["devices"])))
    return [(name(row), row["strategy"], float(row["throughput_samples_per_s"]), float(row["validation_loss"]))
            for row in rows]
