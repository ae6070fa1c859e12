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

DOCS = Path(__file__).resolve().parents[1] / "docs"


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


@pytest.mark.parametrize("document", ["metrics.md", "reliability.md", "security.md"])
def test_the_tests_that_a_document_names_exist(document):
    named = set(re.findall(r"`(test_\w+)`", (DOCS / document).read_text(encoding="utf-8")))
    assert named and all((DOCS.parent / "tests" / f"{name}.py").is_file() for name in named)
