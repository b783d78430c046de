"""The folders import only what CONTRIBUTING.md allows them, imports inside functions included."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def folder_tables() -> dict[str, dict[str, set[str]]]:
    """Package -> folder -> the folders of the same package that it may import, from the tables of CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Folders")[1].split("\n## ")[0]
    tables: dict[str, dict[str, set[str]]] = {}
    for package in ("rlhf", "tabular"):
        table = text.split(f"| folder of `{package}` |")[1].split("\n\n")[0]
        rows = [line for line in table.split("\n") if line.startswith("| `")]
        allowed: dict[str, set[str]] = {}
        previous: set[str] = set()
        for row in rows:
            _, names, _, imports, _ = row.split("|")
            listed = set(re.findall(r"`(\w+)`", imports))
            if "all above" in imports:
                listed |= set(allowed)
            elif "the above" in imports:
                listed |= previous
            previous = listed
            allowed |= dict.fromkeys(re.findall(r"`(\w+)`", names), listed)
        tables[package] = allowed
    return tables


TABLES = folder_tables()


def imported_folders(file: Path, package: str) -> set[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == package and len(part) > 1}


@pytest.mark.parametrize("package", ["rlhf", "tabular"])
def test_the_guide_names_every_folder(package):
    items = [path for path in (ROOT / package).iterdir() if path.name not in ("__pycache__", "__init__.py")]
    folders = {path.stem for path in items if path.suffix == ".py" or any(path.glob("*.py"))}
    assert set(TABLES[package]) == folders


@pytest.mark.parametrize("package", ["rlhf", "tabular"])
def test_folders_import_only_what_the_guide_allows(package):
    for folder, allowed in TABLES[package].items():
        path = ROOT / package / folder
        for file in [path.with_suffix(".py")] if path.with_suffix(".py").is_file() else sorted(path.rglob("*.py")):
            forbidden = imported_folders(file, package) - allowed - {folder, "__version__"}
            assert not forbidden, f"{file.relative_to(ROOT)} imports {sorted(forbidden)}, which CONTRIBUTING.md forbids"


def test_the_guides_order_has_no_cycles():
    for allowed in TABLES.values():
        order = list(allowed)
        for i, folder in enumerate(order):
            assert not allowed[folder] & set(order[i + 1 :]), folder
