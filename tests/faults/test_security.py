"""Files that somebody else made, and what they may not do: each of these would write a file if its code were run."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from stages import ENV, ROOT

from rlhf.models.loading import load_tokenizer
from rlhf.run.manifest import write_manifest

pytestmark = pytest.mark.faults


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return Path.write_text, (self.canary, "code was run")


@pytest.fixture
def canary(tmp_path):
    """The file that must not exist at the end."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code of a file was run"


def rlhf(*arguments, **options):
    """Exit status, and standard output and error together, of a command without a terminal."""
    command = [sys.executable, "-m", "rlhf.cli.main", *map(str, arguments)]
    options = {"capture_output": True, "text": True, "env": ENV, "stdin": subprocess.DEVNULL} | options
    done = subprocess.run(command, timeout=300, **options)
    return done.returncode, done.stdout + done.stderr


def assert_refused(status, output, *words):
    assert status == 2, output
    assert "Traceback" not in output
    for word in words:
        assert word in output


@pytest.mark.parametrize("part", ["optimizer.pt", "rng.pt"])
@pytest.mark.parametrize("name", ["ppo", "sft"])
def test_pickle_in_a_checkpoint(stage, tmp_path, canary, name, part):
    """A pickle with code in a checkpoint, whose manifest fits, is not run."""
    made = stage(name)
    run = tmp_path / "run"
    assert made.run(run)[0] == 0
    checkpoint = sorted(run.glob("checkpoints/step_*"))[-2]
    (checkpoint / part).write_bytes(pickle.dumps(Payload(canary)))
    write_manifest(checkpoint)  # whoever can change a file can write a manifest that fits
    shutil.rmtree(run / "model")
    assert_refused(*made.run(run, "--resume", str(checkpoint)), "cannot resume from", part)


@pytest.mark.parametrize("kind", ["policy", "reward model", "adapter"])
def test_pickle_in_a_model(stage, tmp_path, canary, models, reward_folder, kind):
    """A model of pickled weights with code in them is not loaded."""
    folder = tmp_path / "evil"
    shutil.copytree(reward_folder if kind == "reward model" else models("llama"), folder)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    name = "pytorch_model.bin"
    if kind == "adapter":
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(models("llama"))})
        )
        load_tokenizer(str(models("llama"))).save_pretrained(folder)
        name = "adapter_model.bin"
    if kind == "policy":
        torch.save({"x": Payload(canary)}, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(Payload(canary)))
    option = "--reward.model" if kind == "reward model" else "--model.path"
    more = ["--reward.function", "null"] if kind == "reward model" else []
    assert_refused(*stage("ppo").run(tmp_path / "run", option, str(folder), *more), "error: ")


@pytest.mark.parametrize("kind", ["policy", "reward model", "tokenizer"])
def test_code_of_a_model_folder(stage, tmp_path, canary, models, reward_folder, kind):
    """A model whose config names a Python file in its folder: the file is not imported."""
    folder = tmp_path / "evil"
    shutil.copytree(reward_folder if kind == "reward model" else models("llama"), folder)
    (folder / "own.py").write_text(f"open({str(canary)!r}, 'w').write('code was run')\nclass Own: pass\n")
    file = folder / ("tokenizer_config.json" if kind == "tokenizer" else "config.json")
    classes = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", "own.Own"]}
    settings = json.loads(file.read_text()) | {"auto_map": classes}
    if kind != "tokenizer":
        settings["model_type"] = "own"
    else:
        settings["tokenizer_class"] = "OwnTokenizer"
    file.write_text(json.dumps(settings))
    option = "--reward.model" if kind == "reward model" else "--model.path"
    more = ["--reward.function", "null"] if kind == "reward model" else []
    status, output = stage("ppo").run(tmp_path / "run", option, str(folder), *more)
    assert "Traceback" not in output
    assert status == (0 if kind == "tokenizer" and "error" not in output else 2), output


def test_objects_in_a_settings_file(stage, tmp_path, canary):
    """A settings file whose YAML tags name Python objects constructs none."""
    made = stage("ppo")
    tag = f'!!python/object/apply:os.system ["touch {canary}"]'
    made.config.write_text(made.config.read_text().replace("seed: ", f"seed: {tag} #", 1))
    assert_refused(*made.run(tmp_path / "run"), "error: ")


def test_chat_template(stage, tmp_path, canary, models):
    """A chat template that reaches for Python's modules is stopped by its sandbox."""
    template = tmp_path / "evil.jinja"
    template.write_text(
        "{{ messages.__class__.__mro__[1].__subclasses__() }}{{ ''.__class__.__base__.__subclasses__() }}"
        "{{ self.__init__.__globals__.__builtins__.open('" + str(canary) + "', 'w').write('code was run') }}"
    )
    prompts = tmp_path / "chats.jsonl"
    rows = [{"prompt": [{"role": "user", "content": f"the film {i}"}]} for i in range(40)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--model.chat_template", str(template), "--data.path", str(prompts)]
    assert_refused(*stage("ppo").run(tmp_path / "run", *options), "error: ")


def test_reward_function_in_a_run_folder(stage, tmp_path, canary):
    """A run folder that names a reward function inside it: `rlhf evaluate` does not run it unless it is named."""
    run = tmp_path / "run"
    assert stage("ppo").run(run)[0] == 0
    (run / "evil.py").write_text(f"open({str(canary)!r}, 'w').write('code was run')\ndef f(**_): return []\n")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["reward"]["function"] = f"{run}/evil.py:f"
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    assert_refused(*rlhf("evaluate", run), "evil.py")


@pytest.mark.parametrize("command", ["report", "watch page"])
def test_scripts_in_responses(stage, tmp_path, command):
    """Markup in prompts and responses is text in the report, and no script of it runs."""
    run = tmp_path / "run"
    assert stage("ppo").run(run)[0] == 0
    evil = "</script><script>document.title='ran'</script><img src=x onerror=alert(1)>"
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        row["prompt"] = row["completion"] = evil
        row["tokens"] = [evil] * len(row.get("tokens", []))
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = tmp_path / "page.html"
    runs = [run] if command == "report" else [run, shutil.copytree(run, tmp_path / "other")]
    status, output = rlhf("report", *runs, "--output", page)
    assert status == 0, output
    text = page.read_text()
    assert "<img src=x" not in text
    assert "</script><script>document" not in text


def test_secrets(stage, tmp_path):
    """A token for a reward server is in no file and no message, whatever happens."""
    secret = "s3cret-" + os.urandom(8).hex()
    made = stage("ppo")
    options = ["--reward.function", "null", "--reward.url", "http://127.0.0.1:9/score", "--reward.retries", "0"]
    options += ["--reward.token_env", "REWARD_TOKEN"]
    ENV["REWARD_TOKEN"] = secret
    try:
        status, output = made.run(tmp_path / "run", *options)
    finally:
        del ENV["REWARD_TOKEN"]
    assert status == 2
    assert secret not in output
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert files
    assert not any(secret.encode() in path.read_bytes() for path in files)


def test_checkpoint_of_tabular(tmp_path, canary):
    """A pickle with code in a checkpoint of `tabular` is not run."""
    run = tmp_path / "run"

    def tabular(*options):
        command = [sys.executable, "-m", "tabular.cli.main", "run", *options]
        return subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=300, cwd=ROOT)

    done = tabular("q_learning", "--env", "FrozenLake-v1", "--steps", "200", "--seeds", "1", "--output", str(run))
    assert done.returncode == 0, done.stderr
    (run / "seed_0" / "checkpoint.pt").write_bytes(pickle.dumps(Payload(canary)))
    done = tabular("--resume", str(run), "--steps", "400")
    assert "Traceback" not in done.stderr
    assert done.returncode != 0
    assert "checkpoint.pt" in done.stderr + done.stdout
