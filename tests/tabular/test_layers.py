"""Imports between the folders of `tabular` go one way, lazy imports included."""

import ast
from pathlib import Path

import pytest

import tabular

ROOT = Path(tabular.__file__).parent
BASE = {"core", "compiled", "history", "text"}
LAYERS = {
    "core": set(),
    "planning": BASE,
    "envs": BASE | {"planning"},
    "td": BASE | {"planning", "envs"},
    "deep": BASE | {"planning", "envs"},
    "experiments": BASE | {"planning", "envs", "td", "deep"},
}
"""Folder -> the parts of `tabular` that it may import beside itself."""


def imported_parts(file):
    """The first name below `tabular` of each import in a file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (module.split(".")[1] for module in modules if module.startswith("tabular."))


@pytest.mark.parametrize("folder", LAYERS)
def test_a_folder_imports_only_what_lies_below_it(folder):
    for file in (ROOT / folder).rglob("*.py"):
        forbidden = set(imported_parts(file)) - LAYERS[folder] - {folder}
        assert not forbidden, f"{file.relative_to(ROOT)} imports {', '.join(sorted(forbidden))}"
