"""The documents keep up with the code."""

import ast
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.figures import draw
from docs.records import renew
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
DOCUMENTS = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted(DOCS.rglob("*.md"))]


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
    named = [f"tests/{name}.py" for name in re.findall(r"(?<!::)\b(test_\w+)(?:\.py|`)", text)]
    named += [f"{name.replace('.', '/')}.py" for name in re.findall(r" -m ((?:benchmarks|tests)[.\w]+)", text)]
    named += re.findall(r"\bbenchmarks/\w+\.\w+", text)
    assert not [path for path in named if not (ROOT / path).is_file()]
    assert "python benchmarks/" not in text, "they are started by python -m"


def cells(line: str) -> list[str]:
    """Of a row of a Markdown table."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def anchors(document: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_cell_of_a_table_is_too_long_to_read(document):
    rows = [line for line in document.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert not [cell for line in rows for cell in cells(line) if len(cell) > 300]


def test_the_readme_is_read_in_five_minutes():
    shown = re.sub("<!--.*?-->", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)
    assert len(shown.split()) <= 1200


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_figures_are_those_of_the_records_they_name(document):
    text = document.read_text(encoding="utf-8")
    assert renew(text) == text, "python -m docs.records"


RECORDS = """<!-- records: imdb_scaling_cpu_2_cores -->
Loss 0.111<!-- = ddp-1dev-batch32.validation_loss[3] -->, F1 as they are: 0, +0.0<!-- = min(*.devices);
1 *
max(*.devices) -->.

| | devices <!-- {}.devices --> | of two <!-- {}.devices; 2 * {}.devices --> |
|---|--:|--:|
| one <!-- ddp-1dev-batch32 --> | 9 | 9 of **9.0** |
| four <!-- ddp-4dev-batch32 --> | | 1 of 1 |
"""


def test_figures_are_renewed_with_the_digits_they_have():
    text = renew("Before: 5<!-- a comment -->.\n" + RECORDS)
    assert "Before: 5<!--" in text and "Loss 0.354<!--" in text and "1, +4.0<!--" in text
    assert text.endswith("| 1 | 1 of **2.0** |\n| four <!-- ddp-4dev-batch32 --> | | 4 of 8 |\n")
    assert renew(text) == text


@pytest.mark.parametrize("figure, words", [
    ("5<!-- = ddp-9dev.devices -->", "no run ddp-9dev"),
    ("5<!-- = ddp-1dev-batch32.device -->", "cannot be worked out"),
    ("5<!-- = *.devices -->", "not one figure: 1, 2, 4"),
    ("none<!-- = ddp-1dev-batch32.devices -->", "too few numbers"),
    ("5<!-- = ddp-1dev-batch32.gpu_utilization_pct -->", "not one figure: nan"),
])
def test_a_figure_that_no_record_gives_is_named(figure, words):
    with pytest.raises(ValueError, match=words):
        renew(f"<!-- records: imdb_scaling_cpu_2_cores -->\n{figure}")


LINKING = [*DOCUMENTS, ROOT / "CONTRIBUTING.md", ROOT / "data" / "README.md", ROOT / "results/published/README.md"]


@pytest.mark.parametrize("document", LINKING, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if not re.match("https?:", target):
            path, _, anchor = target.partition("#")
            file = (document.parent / path).resolve() if path else document
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


def test_the_figures_are_what_their_script_draws_and_are_shown():
    figures = draw.figures()
    shown = set()
    for document in (ROOT / "README.md", DOCS / "strategies.md"):
        shown |= set(re.findall(r"\((?:docs/)?figures/(\w+\.svg)\)", document.read_text(encoding="utf-8")))
    assert shown == figures.keys() == {path.name for path in (DOCS / "figures").glob("*.svg")}
    for name, content in figures.items():
        assert (DOCS / "figures" / name).read_text(encoding="utf-8") == content, "python -m docs.figures.draw"
        ElementTree.fromstring(content)


def test_a_whole_model_is_on_the_devices_together():
    for name, picture in draw.PICTURES.items():
        for share in picture.holds.values():
            held = sum(end - begin for device in range(draw.DEVICES) for begin, end in share(device))
            assert held >= 1, name


# ---------------------------------------------------------------------- private_apis.md

LIBRARIES = {"torch", "deepspeed", "transformers", "accelerate", "datasets", "huggingface_hub"}
PRIVATE_APIS = (DOCS / "private_apis.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PRIVATE_APIS.splitlines()
        if line.startswith("| ") and not line.startswith("| API ")]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_a_private_api_is_where_its_row_says_and_has_that_test(row):
    apis, files, _, tests = row
    sources = {file: (DOCS.parent / file).read_text(encoding="utf-8") for file in quoted(files)}

    def is_in(source: str, api: str) -> bool:
        return api in source or re.search(rf"\b{re.escape(api.rpartition('.')[2])}\b", source) is not None

    assert sources and quoted(apis)
    for api in quoted(apis):
        assert any(is_in(source, api) for source in sources.values()), api
    for file, source in sources.items():
        assert any(is_in(source, api) for api in quoted(apis)), file
    named = re.findall(r"`(test_\w+)::(test_\w+)`", tests)
    assert len(named) == len(quoted(tests)) > 0
    for module, function in named:
        assert f"\ndef {function}(" in (DOCS.parent / "tests" / f"{module}.py").read_text(encoding="utf-8")
    assert max(map(len, row)) <= 300


def private_names_and_patches(tree: ast.AST) -> Iterator[str]:
    """Private attributes, and what is assigned to a library's module."""
    modules = {name.asname or name.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import)
               for name in node.names if name.name.split(".")[0] in LIBRARIES}
    modules |= {name.asname or name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
                and str(node.module).split(".")[0] in LIBRARIES for name in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            is_patch = isinstance(node.ctx, ast.Store) and ast.unparse(node).split(".")[0] in modules
            if is_patch or re.match("_[^_]", node.attr) and ast.unparse(node.value) not in ("self", "super()", "os"):
                yield node.attr


def test_every_private_attribute_and_every_patch_of_a_library_is_listed():
    files = [path for pattern in ("*.py", "workload/**/*.py", "measurement/**/*.py", "benchmarks/*.py")
             for path in DOCS.parent.glob(pattern)]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    ours = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    found = {name for tree in trees for name in private_names_and_patches(tree)} - ours
    listed = {api.rpartition(".")[2] for row in ROWS for api in quoted(row[0])}
    assert len(found) > 10 and found <= listed, found - listed
