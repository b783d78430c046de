"""What a run does not import, and the collector's state after start-up."""

import subprocess
import sys

from rlhf.config.parsing import to_yaml

UNUSED = {"datasets", "pandas", "pyarrow", "tensorboard", "peft", "matplotlib", "wandb", "bitsandbytes", "numba"}


def run_python(code, *argv):
    done = subprocess.run([sys.executable, "-c", code, *map(str, argv)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_on_jsonl_prompts_without_adapters_imports_only_what_it_needs(job, tmp_path):
    (tmp_path / "job.yaml").write_text(to_yaml(job))
    code = "import sys\nfrom rlhf.cli.main import main\nassert main(['ppo', *sys.argv[1:]]) == 0\nprint(*sys.modules)"
    imported = set(run_python(code, "--config", tmp_path / "job.yaml", "--trackers", "[]").split())
    assert (tmp_path / "run" / "report.html").exists()
    assert "torch" in imported
    assert not imported & UNUSED


def test_libraries_are_imported_once_and_exempt_from_garbage_collection():
    code = (
        "import gc, sys\n"
        "from rlhf.run.startup import import_libraries\n"
        "import_libraries()\n"
        "assert 'transformers.modeling_utils' in sys.modules\n"
        "frozen = gc.get_freeze_count()\n"
        "data = [[] for _ in range(1000)]\n"
        "import_libraries()\n"
        "print(gc.isenabled(), frozen > 100_000, gc.get_freeze_count() - frozen)"
    )
    assert run_python(code).split() == ["True", "True", "0"]
