"""What may import what, seen from a fresh interpreter; and how quickly the package itself comes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("transformers", "accelerate", "peft", "datasets")


def modules(package: str) -> list[str]:
    files = sorted((ROOT / package).rglob("*.py"))
    return [".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for f in files]


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("layer", ["tabular.core", "tabular", "rlhf"])
def test_layers(layer):
    """tabular.core stands on torch alone; tabular never meets the language side; rlhf takes only tabular.core."""
    names = [m for m in modules(layer.split(".")[0]) if m.startswith(layer)]
    found = loaded_by("\n".join(f"import {name}" for name in names))
    ours = {name for name in found if name.split(".")[0] in ("tabular", "rlhf", "scripts")}
    if layer == "tabular.core":
        assert ours <= {"tabular", *(m for m in ours if m.startswith("tabular.core"))}
        assert not found & {"numba", "gymnasium", *HEAVY}
    elif layer == "tabular":
        assert not any(name.startswith("rlhf") for name in ours)
        assert not found & set(HEAVY)
    else:
        assert not any(name.startswith("tabular.") and not name.startswith("tabular.core") for name in ours)
        assert "gymnasium" not in found
    assert not any(name.startswith("scripts") for name in found)


@pytest.mark.parametrize(
    "statement", ["import rlhf", "import rlhf.cli.main", "import rlhf.config.jobs", "import tabular"]
)
def test_light_imports_load_nothing_heavy(statement):
    assert not loaded_by(statement) & {"torch", "numpy", "pandas", "matplotlib", *HEAVY}


def test_every_name_of_the_package_is_there():
    import rlhf

    assert all(getattr(rlhf, name) is not None for name in rlhf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'PPOTrainr'"):
        _ = rlhf.PPOTrainr
