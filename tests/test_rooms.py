"""Which part of the project may import which."""

import ast

from tests.shared.runs import ROOT


def imported_modules(file):
    """The modules that a file imports anywhere, also within functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: line {node.lineno}: a relative import"
            yield node.module


def test_the_workload_does_not_import_the_measurement():
    found = {f"{file.relative_to(ROOT)} imports {module}" for file in (ROOT / "workload").rglob("*.py")
             for module in imported_modules(file) if module.split(".")[0] == "measurement"}
    assert not found
