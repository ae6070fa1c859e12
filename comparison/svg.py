"""Charts as SVG text, drawn without a library: small, sharp at any size, and readable by a script.

Every chart is inked with `currentColor`, so that it follows the page. Elements of one row share `data-row`, by which
`page.js` hides it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from matplotlib.ticker import MaxNLocator

from comparison.digits import mean_text
from measurement.pipelines.spans import COLOURS, Span

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 300, 64, 24, 10, 40
BAR, LONGEST_LABEL = 26, 44  # pixels of a bar with its gap; characters
FEW_POINTS = 30  # of a curve, so that each is marked
STAGE = 34  # pixels of a stage's row in a timeline
SAME = 1e-4  # relative: values that are closer are drawn as equal
DASHES = {"-": "", "--": "7 4", ":": "2 4", "-.": "8 3 2 3"}


@dataclass(frozen=True)
class Row:
    """What a chart shows of one row of the tables.

    Args:
        number: of the row in its group, by which it is hidden.
        colour, line: as in the figures; see `figures.looks`.
        curves: each of (points, 2): x, y.
    """

    number: int
    name: str
    colour: str
    line: object = "-"
    curves: Sequence[np.ndarray] = field(default_factory=list)

    @property
    def stroke(self) -> str:
        colour = "currentColor" if self.colour == "#000000" else self.colour
        dash = DASHES.get(self.line, "9 3 2 3 2 3") if isinstance(self.line, str) else "9 3 2 3 2 3"
        return f'stroke="{colour}"' + (f' stroke-dasharray="{dash}"' if dash else "")


@dataclass(frozen=True)
class Bar:
    """A bar with the text beside it, and the ends of its interval, if it has one."""

    row: Row
    value: float
    text: str
    low: float = float("nan")
    high: float = float("nan")


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST_LABEL else text[:LONGEST_LABEL - 1] + "…"


def bars(values: Sequence[Bar], label: str) -> str:
    """A horizontal bar for each row, its name above it."""
    height = TOP + 2 * BAR * len(values) + 4
    longest = max([max(bar.value, bar.high if bar.high == bar.high else 0) for bar in values] + [0]) or 1.0
    scale = (WIDTH - 220) / longest
    shown = []
    for place, bar in enumerate(values):
        y = TOP + 2 * BAR * place
        colour = "currentColor" if bar.row.colour == "#000000" else bar.row.colour
        parts = [_text(2, y + 14, shortened(bar.row.name), tip=bar.row.name),
                 f'<rect x="2" y="{y + 19}" width="{max(bar.value, 0) * scale:.1f}" height="{BAR - 6}" '
                 f'fill="{colour}"/>']
        end = max(bar.value, 0)
        if bar.low == bar.low:
            high = bar.high if bar.high == bar.high else longest
            y1 = y + 19 + (BAR - 6) / 2
            parts.append(f'<path d="M{2 + bar.low * scale:.1f} {y1}H{2 + high * scale:.1f}" class="error"/>')
            end = max(end, high)
        parts.append(_text(8 + end * scale, y + 34, bar.text, kind="value"))
        shown.append(f'<g data-row="{bar.row.number}">{"".join(parts)}</g>')
    return _svg(WIDTH, height, label, shown)


def lines(rows: Sequence[Row], x_label: str, y_label: str, ideal: np.ndarray | None = None) -> str:
    """A line for each curve of each row, over common axes; the points of short ones are marked, and say their values.

    Args:
        ideal: (points, 2), drawn thin and grey.
    """
    everything = np.concatenate([*(curve for row in rows for curve in row.curves),
                                 *([ideal] if ideal is not None else [])])
    x_of, x_marks = _axis(everything[:, 0], LEFT, WIDTH - RIGHT)
    y_of, y_marks = _axis(everything[:, 1], HEIGHT - BOTTOM, TOP)
    shown = _frame(x_of, x_marks, y_of, y_marks, x_label, y_label)
    if ideal is not None:
        shown.append(f'<polyline points="{_points(ideal, x_of, y_of)}" class="ideal"><title>ideal</title></polyline>')
    for row in rows:
        parts = [f"<title>{escape(row.name)}</title>"]
        for curve in row.curves:
            parts.append(f'<polyline points="{_points(curve, x_of, y_of)}" fill="none" {row.stroke}/>')
            parts += [f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3.5" fill="{row.colour}"><title>'
                      f"{escape(row.name)}: {x:g}, {mean_text(y)}</title></circle>"
                      for x, y in (curve if len(curve) <= FEW_POINTS else ())]
        shown.append(f'<g data-row="{row.number}" class="curve">{"".join(parts)}</g>')
    return _svg(WIDTH, HEIGHT, f"{y_label} over {x_label}", shown)


def timeline(spans: Sequence[Span], label: str) -> str:
    """A row for each stage over the time of a step. It widens with its element, without its text being stretched."""
    stages = sorted({(span.replica, span.stage) for span in spans})
    start, end = min(span.start for span in spans), max(span.end for span in spans)
    percent = 100 / (end - start)
    shown = []
    for place, (replica, stage) in enumerate(stages):
        y = 4 + STAGE * place
        for span in spans:
            if (span.replica, span.stage) != (replica, stage):
                continue
            x, width = percent * (span.start - start), percent * (span.end - span.start)
            low = span.kind in ("send", "receive", "load")
            shown.append(f'<rect x="{x:.3f}%" y="{y + 20 * low}" width="{width:.3f}%" height="{8 if low else 26}" '
                         f'fill="{COLOURS.get(span.kind, "#999999")}" fill-opacity="{0.6 if span.piece else 1}"><title>'
                         f"replica {replica}, stage {stage}: {escape(span.kind)} {escape(span.label)}, "
                         f"{1000 * (span.end - span.start):.2f} ms</title></rect>")
            if width > 1.2 and not low:
                shown.append(f'<text x="{x + width / 2:.3f}%" y="{y + 17}" text-anchor="middle" class="number">'
                             f"{escape(span.label)}</text>")
    seconds = end - start
    height = 4 + STAGE * len(stages) + 16
    shown += [f'<text x="{x}%" y="{height - 3}" text-anchor="{anchor}" class="tick">{1000 * part * seconds:.4g} ms'
              "</text>" for x, anchor, part in ((0, "start", 0), (50, "middle", 0.5), (100, "end", 1))]
    return (f'<svg class="timeline" width="100%" height="{height}" role="img" aria-label="{escape(label)}">'
            f'{"".join(shown)}</svg>')


def thinned(curve: np.ndarray, most: int = 150) -> np.ndarray:
    """Means of stretches of a curve of (points, 2), so that it has at most so many points."""
    if len(curve) <= most:
        return curve
    return np.array([stretch.mean(axis=0) for stretch in np.array_split(curve, most)])


def _axis(values: np.ndarray, first: float, last: float):
    """From a value to pixels, and the values to mark."""
    low, high = float(values.min()), float(values.max())
    if high - low <= SAME * abs(high):  # rounding is not worth a scale of its own
        low, high = low - 0.05 * abs(low), high + 0.05 * abs(high) + (not high)
    marks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    low, high = min(low, marks[0]), max(high, marks[-1])
    return (lambda value: first + (last - first) * (value - low) / (high - low)), marks


def _frame(x_of, x_marks, y_of, y_marks, x_label: str, y_label: str) -> list[str]:
    found = []
    for mark in y_marks:
        found.append(f'<path d="M{LEFT} {y_of(mark):.1f}H{WIDTH - RIGHT}" class="grid"/>')
        found.append(_text(LEFT - 6, y_of(mark) + 4, f"{mark:.6g}", kind="tick", anchor="end"))
    found += [_text(x_of(mark), HEIGHT - BOTTOM + 16, f"{mark:.6g}", kind="tick", anchor="middle") for mark in x_marks]
    found.append(_text((LEFT + WIDTH) / 2, HEIGHT - 6, x_label, kind="tick", anchor="middle"))
    found.append(f'<text transform="translate(13 {HEIGHT / 2 - 12}) rotate(-90)" text-anchor="middle" class="tick">'
                 f"{escape(shortened(y_label))}</text>")
    return found


def _points(curve: np.ndarray, x_of, y_of) -> str:
    return " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in curve)


def _text(x: float, y: float, text: str, kind: str = "name", anchor: str = "start", tip: str = "") -> str:
    title = f"<title>{escape(tip)}</title>" if tip else ""
    return (f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{title}'
            f"{escape(text)}</text>")


def _svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    return (f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>')
