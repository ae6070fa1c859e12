"""The documents keep up with the code."""

import re
from pathlib import Path

import pytest

from measurement.columns import (
    DEVICE_COLUMNS,
    RANK_COLUMNS,
    STEP_COLUMNS,
    SUMMARY_COLUMNS,
    epoch_columns,
    evaluation_columns,
)

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
DOCUMENTS = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted(DOCS.glob("*.md"))]


@pytest.mark.parametrize("file, columns", [
    ("summary.csv", SUMMARY_COLUMNS), ("steps.csv", STEP_COLUMNS), ("devices.csv", DEVICE_COLUMNS),
    ("ranks.csv", RANK_COLUMNS), ("evaluations.csv", evaluation_columns(())),
    ("epochs.csv", epoch_columns(())),
])
def test_metrics_explains_every_column_and_no_other(file, columns):
    text = (DOCS / "metrics.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {re.escape(file)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)[1]
    first_cells = " ".join(line.split("|")[1] for line in section.splitlines() if line.startswith("|"))
    explained = re.findall(r"`(\w+)`", first_cells)
    if file == "evaluations.csv":
        assert set(columns) <= set(re.findall(r"`(\w+)`", section))
        return
    assert len(explained) == len(set(explained))
    missing = set(columns) - set(explained) - {"elapsed_s"}
    assert not missing and set(explained) <= set(columns)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_tests_and_benchmarks_that_a_document_names_exist(document):
    text = document.read_text(encoding="utf-8")
    named = [f"tests/{name}.py" for name in re.findall(r"\b(test_\w+)(?:\.py|`)", text)]
    named += [f"{name.replace('.', '/')}.py" for name in re.findall(r" -m ((?:benchmarks|tests)[.\w]+)", text)]
    named += re.findall(r"\bbenchmarks/\w+\.\w+", text)
    assert not [path for path in named if not (ROOT / path).is_file()]
    assert "python benchmarks/" not in text, "they are started by python -m"
