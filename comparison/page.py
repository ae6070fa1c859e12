"""report.html: tables, figures and provenance of a comparison on one page that needs nothing else."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from comparison import svg
from comparison.figures import Members, looks
from comparison.predicted import PREDICTED
from comparison.rows import MEAN
from comparison.scaling import scaled, with_lines
from comparison.settings import RATE, shown_names
from comparison.study import DRIFT, Study
from comparison.tables import Part, Table, value_text
from measurement.columns import HIGH, LOW
from measurement.pipelines.spans import COLOURS, read_trace

HERE = Path(__file__).parent
METRICS = HERE.parent / "docs" / "metrics.md"
BARS = (RATE, "goodput_samples_per_s", "peak_memory_gib", "exposed_communication_s_per_step")
# What a run's code and machine were; of run.json, else of summary.csv.
PROVENANCE = {"command": "command", "started": "started (UTC)", "source_digest": "source digest", "commit": "commit",
              "dirty": "uncommitted changes", "torch": "torch", "transformers": "transformers",
              "deepspeed": "deepspeed", "hardware": "hardware", DRIFT: "machine's drift %"}


@dataclass(frozen=True)
class Section:
    """A group of comparable rows on the page.

    Args:
        sentences: of the verdict.
        parts: paragraphs and tables.
    """

    heading: str
    rows: pd.DataFrame
    sentences: Sequence[str]
    parts: Sequence[Part]


def write_page(path: Path, sections: Sequence[Section], others: Sequence[Part], members: Members, study: Study) -> None:
    """Write the page.

    Args:
        others: what follows the groups, such as notes, in Markdown.
    """
    definitions = read_definitions()
    body = ["<h1>Comparison of training runs</h1>", '<section class="verdict"><h2>In short</h2>']
    for section in sections:
        body += [f"<h3>{_inline(section.heading)}</h3>"] if len(sections) > 1 else []
        body.append("<ul>" + "".join(f"<li>{_inline(each)}</li>" for each in section.sentences) + "</ul>")
    body.append("</section>")
    for section in sections:
        body += ['<section class="group">', f"<h2>{_inline(section.heading)}</h2>",
                 *(to_html(part, definitions) for part in section.parts), *charts(section.rows, members, study),
                 "</section>"]
    body += ["<section>", *(to_html(part, definitions) for part in others), "</section>",
             "<section><h2>Every run</h2>", to_html(provenance(members), definitions), "</section>"]
    page = (HERE / "page.html").read_text(encoding="utf-8")
    for name, text in (("style", (HERE / "page.css").read_text(encoding="utf-8")),
                       ("script", (HERE / "page.js").read_text(encoding="utf-8")), ("body", "\n".join(body))):
        page = page.replace(f"[[{name}]]", text, 1)
    path.write_text(page, encoding="utf-8", errors="replace")


def read_definitions() -> dict[str, str]:
    """What docs/metrics.md says of each column, as plain text; the first that it says counts."""
    found: dict[str, str] = {}
    if not METRICS.is_file():
        return found
    for line in METRICS.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) > 1 and cells[0].startswith("`"):
            meaning = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", cells[2 if len(cells) > 2 else 1])
            meaning = re.sub(r"`|\\(?=\|)", "", meaning)
            for name in re.findall(r"`([a-z0-9_]+)`", cells[0]):
                found.setdefault(name, meaning)
    return found


# ---------------------------------------------------------------------- Markdown, as far as reports use it

def to_html(part: Part, definitions: Mapping[str, str]) -> str:
    """A heading, a list, a paragraph or a table."""
    if isinstance(part, Table):
        return _table(part, definitions)
    if heading := re.match(r"(#+) (.*)", part):
        level = len(heading[1])
        return f"<h{level}>{_inline(heading[2])}</h{level}>"
    if part.startswith("- "):
        items = re.split(r"\n- ", part[2:])
        return "<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in items) + "</ul>"
    return f"<p>{_inline(part)}</p>"


def _inline(text: str) -> str:
    """Text with its `code`. Names in it may be of any script and direction."""
    return "<bdi>" + re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(" ".join(text.split()))) + "</bdi>"


def _table(table: Table, definitions: Mapping[str, str]) -> str:
    """A table whose columns can be sorted, each with its definition."""
    heads = []
    for place, (title, *_) in enumerate(table.columns):
        definition = definitions.get(table.metrics[place], "") if table.metrics else ""
        tip = f'<span class="tip" role="tooltip">{escape(definition)}</span>' if definition else ""
        heads.append(f'<th scope="col"><button type="button">{escape(title)}{tip}</button></th>')
    lines = []
    for first, *others in zip(*(column[1:] for column in table.columns), strict=True):
        cells = "".join(f"<td><bdi>{escape(cell)}</bdi></td>" for cell in others)
        lines.append(f'<tr><th scope="row"><bdi>{escape(first)}</bdi></th>{cells}</tr>')
    return (f'<div class="wide" tabindex="0"><table><thead><tr>{"".join(heads)}</tr></thead>'
            f'<tbody>{"".join(lines)}</tbody></table></div>')


# ---------------------------------------------------------------------- figures

def charts(group: pd.DataFrame, members: Members, study: Study) -> list[str]:
    """The figures of a group, with a legend whose buttons hide and show its rows."""
    rows = [svg.Row(place, name, colour, line) for place, (name, (colour, line, _, _)) in enumerate(
        zip(shown_names(group), looks(group, study), strict=True))]
    places = dict(zip(group.index, rows, strict=True))
    found = [*_bars(group, rows, study), *_curves(group, places, members, study), *_scaling(group, study),
             *_predicted(group, rows)]
    timelines = _timelines(group, places, members)
    if not found and not timelines:
        return []
    buttons = "".join(f'<button type="button" aria-pressed="true" data-row="{row.number}"><svg width="28" height="10">'
                      f'<path d="M0 5H28" stroke-width="3" {row.stroke}/></svg><bdi>{escape(row.name)}</bdi></button>'
                      for row in rows)
    return [f'<div class="legend" role="group" aria-label="rows shown">{buttons}</div>', '<div class="charts">',
            *found, "</div>", *timelines]


def _figure(title: str, drawing: str, kind: str = "") -> str:
    return f'<figure class="{kind}"><figcaption>{escape(title)}</figcaption>{drawing}</figure>'


def _bars(group: pd.DataFrame, rows: Sequence[svg.Row], study: Study) -> list[str]:
    found = []
    for metric in (each for each in study.metrics if each.column in BARS):
        column, bars = metric.column, []
        for row, (_, each) in zip(rows, group.iterrows(), strict=True):
            value, half = each[column], each[column + MEAN[1]]
            low, high = (each.get(column + end, np.nan) for end in (LOW, HIGH))
            if pd.notna(value):
                ends = (low, high) if pd.notna(low) else (value - half, value + half)
                bars.append(svg.Bar(row, float(value), value_text(each, column), *map(float, ends)))
        if bars:
            title = f"{metric.label} ({metric.unit})" if metric.unit else metric.label
            found.append(_figure(title, svg.bars(bars, title)))
    return found


def _curves(group: pd.DataFrame, places: Mapping[Any, svg.Row], members: Members, study: Study) -> list[str]:
    found = []
    for curve in study.curves:
        for axis in (axis for axis in curve.axes if axis in ("samples", "elapsed_s")):
            drawn = []
            for index in group.index:
                tables = [run.curves[curve.column][[axis, curve.column]].dropna().to_numpy(float)
                          for run in members[index] if curve.column in run.curves]
                if tables := [svg.thinned(table) for table in tables if len(table)]:
                    row = places[index]
                    drawn.append(svg.Row(row.number, row.name, row.colour, row.line, tables))
            if drawn:
                title = f"{curve.label} over {study.axes[axis].split()[0]}"
                found.append(_figure(title, svg.lines(drawn, study.axes[axis], curve.label)))
    return found


def _scaling(group: pd.DataFrame, study: Study) -> list[str]:
    points = scaled(group, "own_speedup")
    if points.empty:
        return []
    points = with_lines(points, study)
    firsts = points.drop_duplicates("line")
    drawn = []
    for place, (name, (colour, line, _, _)) in enumerate(zip(firsts["line"], looks(firsts, study), strict=True)):
        curve = points[points["line"] == name].sort_values("devices")[["devices", "own_speedup"]].to_numpy(float)
        drawn.append(svg.Row(-1 - place, name, colour, line, [curve]))  # a line is several rows: it is not hidden
    most = float(points["devices"].max())
    return [_figure("throughput, x one device of the same strategy; thin: ideal",
                    svg.lines(drawn, "devices", "speedup", np.array([[1, 1], [most, most]])))]


def _predicted(group: pd.DataFrame, rows: Sequence[svg.Row]) -> list[str]:
    if PREDICTED[RATE] not in group or group[PREDICTED[RATE]].isna().all():
        return []
    pairs = group[[RATE, PREDICTED[RATE]]].to_numpy(float)
    drawn = [svg.Row(row.number, row.name, row.colour, row.line, [pair[None]])
             for row, pair in zip(rows, pairs, strict=True) if not np.isnan(pair).any()]
    most = 1.1 * np.nanmax(pairs)
    return [_figure("predicted beside measured throughput (samples/s); on the line: as predicted",
                    svg.lines(drawn, "measured", "predicted", np.array([[0, 0], [most, most]])))]


def _timelines(group: pd.DataFrame, places: Mapping[Any, svg.Row], members: Members) -> list[str]:
    """One step of each pipeline, of its first run."""
    found, kinds = [], set()
    for index in group.index:
        for run in members[index][:1]:
            try:
                spans = read_trace(run.folder / "timeline.json")
            except (OSError, ValueError):
                continue
            if spans:
                name = places[index].name
                kinds |= {span.kind for span in spans}
                tools = ('<div class="zoom"><button type="button" data-zoom="2">wider</button>'
                         '<button type="button" data-zoom="0.5">narrower</button></div>')
                found.append(_figure(f"one step of {name}", f'{tools}<div class="wide" tabindex="0">'
                                     f"{svg.timeline(spans, f'one step of {name}')}</div>", "timeline"))
    if not found:
        return []
    key = "".join(f'<span><i style="background:{colour}"></i>{kind}</span>' for kind, colour in COLOURS.items()
                  if kind in kinds)
    return ["<h3>Pipelines: one step, a row for each stage</h3>", f'<p class="key">{key}</p>', *found]


# ---------------------------------------------------------------------- provenance

def provenance(members: Members) -> Table:
    """A line for each run."""
    runs = [run for several in members.values() for run in several]
    columns = [["run", *(str(run.summary["folder"]) for run in runs)]]
    for name, title in PROVENANCE.items():
        values = [run.description.get(name, run.summary.get(name)) for run in runs]
        columns.append([title, *("" if value is None or value != value else
                                 f"{value:+.1f}" if isinstance(value, float) else str(value) for value in values)])
    return Table(columns, ("", *PROVENANCE))
