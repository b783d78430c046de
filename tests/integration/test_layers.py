"""Directions of imports between packages and folders, and light imports."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("transformers", "accelerate", "peft", "datasets")

_BASE = {"errors", "records", "config"}
_LAYERS = _BASE | {"models", "data", "run", "rewards", "environments", "rollouts", "evaluation"}
MAY_IMPORT = {
    "errors": set(),
    "records": set(),
    "config": {"errors"},
    "models": _BASE,
    "data": _BASE,
    "run": _BASE | {"models"},
    "rewards": _BASE | {"models", "data"},
    "environments": _BASE | {"rewards"},
    "rollouts": _BASE | {"models", "data", "run", "rewards", "environments"},
    "evaluation": _LAYERS - {"evaluation"},
    "trainers": _LAYERS | {"report.report", "report.health", "report.model_card"},
    "report": {"errors", "run.files", "run.lock", "run.trends"},
    "web": {"errors"},
    "people": (_LAYERS - {"environments", "evaluation"}) | {"web"},
    "watch": {"config", "errors", "report", "run", "web"},
    "demo": _LAYERS | {"trainers", "report"},
    "cli": _LAYERS | {"trainers", "report", "people", "demo", "watch"},
}
"""For each folder or file of rlhf: the folders and modules that its modules may import, its own folder aside."""


def modules(package: str) -> list[str]:
    files = sorted((ROOT / package).rglob("*.py"))
    return [".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for f in files]


def imports_of(module: str, existing: set[str]) -> set[str]:
    """The modules that a module's source imports anywhere, in functions too, out of those that exist."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    imported = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from package import module` imports the module, `from module import name` only the module itself.
            imported |= {name if name in existing else str(node.module) for name in names}
    return imported & existing


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("layer", ["tabular.core", "tabular", "rlhf"])
def test_packages_import_in_one_direction(layer):
    """tabular.core imports torch alone; tabular imports nothing of rlhf; rlhf imports only tabular.core."""
    names = [m for m in modules(layer.split(".")[0]) if m.startswith(layer)]
    loaded = loaded_by("\n".join(f"import {name}" for name in names))
    local = {name for name in loaded if name.split(".")[0] in ("tabular", "rlhf", "scripts")}
    if layer == "tabular.core":
        assert local <= {"tabular", *(m for m in local if m.startswith("tabular.core"))}
        assert not loaded & {"numba", "gymnasium", *HEAVY}
    elif layer == "tabular":
        assert not any(name.startswith("rlhf") for name in local)
        assert not loaded & set(HEAVY)
    else:
        assert not any(name.startswith("tabular.") and not name.startswith("tabular.core") for name in local)
        assert "gymnasium" not in loaded
    assert not any(name.startswith("scripts") for name in loaded)


def test_folders_of_rlhf_import_in_one_direction():
    """Imports inside functions count as well."""
    existing = set(modules("rlhf"))
    forbidden = []
    for module in sorted(existing - {"rlhf"}):
        folder = module.split(".")[1]
        for imported in sorted(imports_of(module, existing - {"rlhf"})):
            name = imported.removeprefix("rlhf.")
            if name.split(".")[0] != folder and not {name, name.split(".")[0]} & MAY_IMPORT[folder]:
                forbidden.append(f"{module} imports {imported}")
    assert not forbidden


@pytest.mark.parametrize("package", ["rlhf", "tabular"])
def test_modules_have_no_import_cycles(package):
    """Imports inside functions count as well."""
    existing = set(modules(package))
    graph = {module: imports_of(module, existing) for module in existing}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@pytest.mark.parametrize(
    "statement", ["import rlhf", "import rlhf.cli.main", "import rlhf.config.jobs", "import tabular"]
)
def test_light_imports_load_nothing_heavy(statement):
    assert not loaded_by(statement) & {"torch", "numpy", "pandas", "matplotlib", *HEAVY}


def test_every_public_name_can_be_imported():
    import rlhf

    assert all(getattr(rlhf, name) is not None for name in rlhf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'PPOTrainr'"):
        _ = rlhf.PPOTrainr
