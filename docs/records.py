"""Figures of the documents that come from records: `python -m docs.records` writes them again; a test compares them.

Comments, which no reader of the rendered page sees, say where a figure comes from:

    <!-- records: bert_squad_cpu_2_cores -->       from here on: the runs in this folder of results/reference/
    DDP trains 287<!-- = ddp-2dev.throughput_samples_per_s --> samples/s.

    | run                    | samples/s <!-- {}.throughput_samples_per_s --> |
    |------------------------|--:|
    | DDP x 2 <!-- ddp-2dev --> | 287 |

A figure keeps the digits that it is written with. An expression is arithmetic with columns of summary.csv;
`run.validation_loss[3]` is that of the third evaluation. Several, with `;` between them, belong to the last numbers
before the comment. Columns `mean_of_10_held_change`, `as_pipeline` and the like are what published formulas make of a
run. `zero*.runtime_s` is a list, of which min, max, mean, or half (of the mean's 95 % interval over
seeds) make one figure; by itself it stands for runs that are all equal in the digits shown. In a table a figure's
expression is its column's, with its row's for {}, or the other way round. `<!-- table: FOLDER -->` precedes the first
table that plots.py makes of a folder. After `<!-- records: prediction/errors.csv -->` a run is MODEL-TASK-DEVICES,
core-each, cores-shared or all, and its columns are what the errors of these runs come to.
"""

import ast
import operator
import re
import statistics
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from comparison.report import tables
from comparison.rows import compare
from comparison.runs import find_runs
from comparison.statistics import estimate
from experiments.published_records import read_run, run_tables
from measurement.table import read_rows
from plots import REFERENCE, STUDY
from prediction.planning import ERRORS, covering
from workload.errors import InputError

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCE = re.compile(r"<!-- records: (\S+) -->")
TABLE = re.compile(r"(<!-- table: (\S+) -->\n+)((?:\|.*\n)+)")
ROWS = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
COMMENT = re.compile(r"<!-- (=?)\s*([^>]*?)\s*-->", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])[+-]?\d+(?:,\d{3})*(?:\.\d+)?")
COLUMN = re.compile(r"([a-z*][\w*-]*)\.([a-z]\w*)(?:\[(\d+)\])?")

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
             ast.FloorDiv: operator.floordiv}

Values = Mapping[str, Mapping[str, object]]  # run -> column -> value


def main() -> None:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        if (renewed := renew(text)) != text:
            document.write_text(renewed, encoding="utf-8")
            print(f"renewed {document.relative_to(ROOT)}")


def renew(text: str) -> str:
    """A document with the figures of today's records.

    Raises:
        ValueError: an expression names no run, has no value, or stands behind too few numbers.
    """
    text = TABLE.sub(lambda match: match[1] + printed_table(match[2]), text)
    first, *others = SOURCE.split(text)
    parts = [first]
    for folder, part in zip(others[::2], others[1::2], strict=True):
        values = read_errors() if folder.endswith(".csv") else read_records(folder)
        parts += [f"<!-- records: {folder} -->", renew_part(part, values)]
    return "".join(parts)


def renew_part(text: str, values: Values) -> str:
    """Its tables, then what stands between them."""
    pieces, end = [], 0
    for table in ROWS.finditer(text):
        pieces += [renew_prose(text[end:table.start()], values), renew_table(table[0], values)]
        end = table.end()
    return "".join(pieces) + renew_prose(text[end:], values)


def renew_prose(text: str, values: Values) -> str:
    pieces, end = [], 0
    for comment in COMMENT.finditer(text):
        before = text[end:comment.start()]
        pieces += [with_figures(before, comment[2], values) if comment[1] else before, comment[0]]
        end = comment.end()
    return "".join(pieces) + text[end:]


def renew_table(text: str, values: Values) -> str:
    lines = text.splitlines()
    columns = [comment_of(cell) for cell in lines[0].split("|")]
    for number, line in enumerate(lines[2:], start=2):
        cells = line.split("|")
        row = comment_of(cells[1])
        for place, column in enumerate(columns[2:], start=2):
            if row and column and NUMBER.search(cells[place]) and not COMMENT.search(cells[place]):
                whole = row.replace("{}", column) if "{}" in row else column.replace("{}", row)
                cells[place] = with_figures(cells[place], whole, values)
        lines[number] = "|".join(renew_prose(cell, values) for cell in cells)
    return "\n".join(lines) + "\n"


def comment_of(cell: str) -> str:
    found = COMMENT.search(cell)
    return found[2] if found and not found[1] else ""


def with_figures(text: str, expressions: str, values: Values) -> str:
    """The text with its last numbers replaced, one for each expression."""
    several = expressions.split(";")
    numbers = list(NUMBER.finditer(text))[-len(several):]
    if len(numbers) < len(several):
        raise ValueError(f"{expressions!r} stands behind too few numbers: {text[-40:]!r}")
    for number, expression in reversed(list(zip(numbers, several, strict=True))):
        figure = written(evaluate(expression, values), number[0], expression)
        text = text[:number.start()] + figure + text[number.end():]
    return text


def written(found: float | list[float], before: str, expression: str) -> str:
    """A value with the digits and the sign of the figure that it replaces."""
    digits = len(before.partition(".")[2])
    sign = "+" if before[0] == "+" else ""
    several = {f"{value:{sign},.{digits}f}" for value in (found if isinstance(found, list) else [found])}
    if len(several) != 1 or "nan" in several:
        raise ValueError(f"{expression!r} is not one figure: {', '.join(sorted(several))}")
    return several.pop()


def evaluate(expression: str, values: Values) -> float | list[float]:
    def column(name: str, column: str, place: int | None = None) -> float | list[float]:
        found = [_value(each, column, place) for run, each in values.items() if fnmatch(run, name)]
        if not found:
            raise ValueError(f"{expression!r}: there is no run {name}, only {', '.join(values)}")
        return found if "*" in name else found[0]

    one_line = " ".join(expression.split())
    code = COLUMN.sub(lambda match: f"column{(match[1], match[2], *([int(match[3])] if match[3] else []))}", one_line)
    functions: dict[str, Callable] = {"column": column, "min": min, "max": max, "mean": statistics.fmean, "half": half}

    def work_out(node: ast.expr) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.UnaryOp(op=ast.USub()):
                return -work_out(node.operand)
            case ast.BinOp():
                return OPERATORS[type(node.op)](work_out(node.left), work_out(node.right))
            case ast.Call(func=ast.Name(id=name)):
                return functions[name](*map(work_out, node.args))
        raise TypeError("it is no arithmetic")

    try:
        return work_out(ast.parse(code, mode="eval").body)
    except (KeyError, TypeError, IndexError, SyntaxError) as error:
        raise ValueError(f"{expression!r} cannot be worked out: {error!r}") from None


def _value(run: Mapping[str, object], column: str, place: int | None) -> float:
    if place is None:
        return float(run[column])  # type: ignore[arg-type]
    return float(run["curves"][column][column].iloc[place - 1])  # type: ignore[index]


def half(values: list[float]) -> float:
    return float(estimate(np.array(values)[:, None]).half_width[0])


@cache
def read_records(folder: str) -> Values:
    return {run.folder.name: {**run.summary, **by_published_formulas(run.folder), "curves": run.curves}
            for run in find_runs(REFERENCE / folder, STUDY)}


def by_published_formulas(run: Path) -> dict[str, float]:
    """What experiments/published_records.py prints of a run: `mean_of_10_held_change`, `as_pipeline`, ..."""
    try:
        curve, _, rates = run_tables(*read_run(run)).values()
    except InputError:
        return {}  # too short a run
    ways = {re.sub(r"\W+", "_", f"{way} {figure}").strip("_"): value
            for way, figures in curve.to_dict("index").items() for figure, value in figures.items()}
    return ways | dict(zip(("as_baseline", "as_pipeline"), rates["samples/s"], strict=False))


@cache
def printed_table(folder: str) -> str:
    rows, _ = compare(find_runs(REFERENCE / folder, STUDY), STUDY)
    _, group = next(iter(rows.groupby("group")))
    return f"{tables(group, STUDY)[0]}\n"


@cache
def read_errors() -> Values:
    """Of the steady runs of a model, task and number of devices the median error and what nine in ten are within.

    Also of all runs, of those with a core for each process, and of those whose processes shared cores.
    """
    by_name: dict[str, list[dict[str, str]]] = {}
    for row in read_rows(ERRORS):
        cores = "cores-shared" if int(row["devices"]) > int(row["cores"]) else "core-each"
        for name in (f"{row['model'].lower()}-{row['task']}-{row['devices']}", cores, "all"):
            by_name.setdefault(name, []).append(row)
    return {name: dict(sums(several)) for name, several in by_name.items()}


def sums(rows: list[dict[str, str]]) -> Iterator[tuple[str, float]]:
    steady = [row for row in rows if row["is_steady"] == "True"]
    yield "runs", len(rows)
    yield "steady", len(steady)
    for prefix, several in (("", steady), ("all_", rows)):
        for name in ("throughput", "uncorrected", "memory"):
            errors = [abs(float(row[f"{name}_error_pct"])) for row in several]
            if errors:
                yield f"{prefix}{name}", statistics.median(errors)
                yield f"{prefix}{name}_most", covering(errors)


if __name__ == "__main__":
    main()
