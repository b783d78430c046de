"""The commands as a user types them: valid input on tiny models, then the mistakes that users make."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from rlhf.cli.main import main
from rlhf.config.parsing import to_yaml

ROOT = Path(__file__).parents[2]


def rlhf(capsys, *argv) -> tuple[int, str]:
    """Exit status and all output of one command."""
    try:
        status = main([str(a) for a in argv])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    out = capsys.readouterr()
    return status, out.out + out.err


def refused(capsys, *argv) -> str:
    """The one-line message of a command that must fail because of its input."""
    status, output = rlhf(capsys, *argv)
    assert status == 2, output
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, output
    return lines[0]


@pytest.fixture
def config(job, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(to_yaml(job))
    return path


# ------------------------------------------------------------------------------------------------------- good input


def test_all_stages_run_by_commands(capsys, tmp_path):
    """From two jsonl files to a report: sft from nothing, reward, ppo, evaluate, generate, report."""
    lines = [f"the film number {i} is {'good and warm' if i % 2 else 'bad and cold'} ." for i in range(64)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    pairs = [{"chosen": a, "rejected": b} for a, b in zip(lines[1::2], lines[::2], strict=True)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"the film number {i}"}) + "\n" for i in range(20))
    )
    small = ["--training.batch_size", "8", "--training.max_length", "32", "--checkpoint.every", "0", "--trackers", "[]"]
    sft, reward, ppo = tmp_path / "sft", tmp_path / "reward", tmp_path / "ppo"

    status, output = rlhf(
        capsys, "sft", "--scratch.model_type", "gpt2", "--scratch.vocab_size", "300", "--scratch.hidden_size", "32",
        "--data.path", tmp_path / "text.jsonl", "--output", sft, "--training.lr", "3e-3", "--training.epochs", "3",
        *small,
    )  # fmt: skip
    assert status == 0, output
    status, output = rlhf(
        capsys, "reward", "--model.path", sft, "--data.path", tmp_path / "pairs.jsonl", "--output", reward,
        "--data.eval_fraction", "0.2", "--training.lr", "3e-3", *small,
    )  # fmt: skip
    assert status == 0, output
    status, output = rlhf(
        capsys, "ppo", "--model.path", sft, "--data.path", tmp_path / "prompts.jsonl", "--reward.model", reward,
        "--output", ppo, "--data.eval_fraction", "0.2", "--generation.max_new_tokens", "12",
        "--ppo.total_episodes", "16", "--ppo.rollout_batch_size", "8", "--ppo.minibatch_size", "8",
        "--eval.prompts", "4",
    )  # fmt: skip
    assert status == 0, output
    assert "2 steps of 8 responses" in output
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "eval.jsonl", "samples.jsonl", "report.html"):
        assert (ppo / name).stat().st_size > 0, name
    assert list(ppo.rglob("events.out.tfevents*"))

    status, output = rlhf(capsys, "evaluate", ppo, "--output", tmp_path / "evaluation")
    assert status == 0, output
    result = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert result["before"]["kl"] == 0.0
    first = json.loads((tmp_path / "evaluation" / "samples.jsonl").read_text().splitlines()[0])
    assert first["prompt"] in output  # the answers stand side by side
    assert 0 <= result["after"]["win_rate"] <= 1
    logged = json.loads((ppo / "eval.jsonl").read_text().splitlines()[0])
    assert result["before"]["score"] == pytest.approx(logged["score"], abs=1e-5)  # the start, measured twice

    status, output = rlhf(capsys, "generate", ppo, "--prompt", "the film", "--max_new_tokens", "5")
    assert status == 0
    assert output.startswith("the film")
    file = tmp_path / "completions.jsonl"
    assert rlhf(capsys, "generate", ppo, "--file", tmp_path / "prompts.jsonl", "--count", "2", "--output", file)[0] == 0
    assert len(file.read_text().splitlines()) == 40
    assert "exists" in refused(capsys, "generate", ppo, "--prompt", "x", "--output", file)

    (ppo / "report.html").unlink()
    assert rlhf(capsys, "report", ppo)[0] == 0
    assert (ppo / "report.html").exists()


@pytest.mark.parametrize("kind", ["shared", "separate", "adapter"])
def test_generate_loads_a_checkpoint_of_every_kind_of_critic(capsys, config, job, kind):
    options = ["--checkpoint.every", "1", "--model.lora.rank", "2", "--critic.kind", kind]
    assert rlhf(capsys, "ppo", "--config", config, *options)[0] == 0
    last = Path(job.output) / "checkpoints" / "latest"
    status, output = rlhf(capsys, "generate", last, "--prompt", "the film", "--max_new_tokens", "4")
    assert status == 0, output
    assert output.startswith("the film")


@pytest.mark.parametrize("command", ["ppo", "sft"])
def test_an_adapter_loads_from_any_folder_and_can_be_merged(
    capsys, config, models, tmp_path, prompts_file, monkeypatch, command
):
    """The base is a relative path where the run is started; the merged model needs neither the base nor PEFT."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name in ("work", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    shutil.copytree(models("llama"), "base")
    options = ["--config", config]
    if command == "sft":
        (tmp_path / "text.jsonl").write_text('{"text": "the film is good"}\n' * 16)
        options = ["--data.path", tmp_path / "text.jsonl", "--training.batch_size", "8", "--training.lr", "0.1"]
    options += ["--model.path", "base", "--model.lora.rank", "2", "--trackers", "[]", "--data.eval_fraction", "0"]
    for export in ("adapter", "merged"):
        status, output = rlhf(capsys, command, *options, "--output", export, "--export", export)
        assert status == 0, output
    monkeypatch.chdir(tmp_path / "elsewhere")
    adapter = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "work" / "adapter" / "model")
    ids = torch.tensor([[7, 8, 9]])
    expected = adapter(ids).logits
    assert rlhf(capsys, "generate", tmp_path / "work" / "adapter", "--prompt", "the film")[0] == 0
    shutil.rmtree(tmp_path / "work" / "base")
    folder = tmp_path / "work" / "merged" / "model"
    assert not (folder / "adapter_config.json").exists()
    with torch.no_grad():
        torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(folder)(ids).logits, expected.detach())
        with adapter.disable_adapter():
            assert not torch.allclose(adapter(ids).logits, expected)
    assert AutoTokenizer.from_pretrained(folder)("the film").input_ids == [7, 8]


@pytest.fixture
def run_with_stop_strings(capsys, config, job):
    """A PPO run whose responses end at one of four words or after 6 tokens, sampled at temperature 0.9."""
    words = ["film", "good", "dull", "no"]
    options = ["--generation.stop_strings", json.dumps(words), "--generation.max_new_tokens", "6"]
    more = ["--generation.temperature", "0.9", "--generation.min_new_tokens", "2", "--checkpoint.every", "1"]
    assert rlhf(capsys, "ppo", "--config", config, *options, *more)[0] == 0
    return Path(job.output), set(words)


def responses_of(capsys, model, file, *options):
    """The words of 20 responses to one prompt."""
    file.unlink(missing_ok=True)
    command = ["generate", model, "--prompt", "the", "--count", "20", "--output", file, *options]
    status, output = rlhf(capsys, *command)
    assert status == 0, output
    return [json.loads(line)["response"].split() for line in file.read_text().splitlines()], output


@pytest.mark.parametrize("part", ["", "model", "checkpoints/latest"])
def test_generate_samples_as_the_run_did(capsys, tmp_path, run_with_stop_strings, part):
    run, words = run_with_stop_strings
    responses, output = responses_of(capsys, run / part, tmp_path / "out.jsonl")
    assert not words & {word for response in responses for word in response}  # cut at the word, which is left out
    assert max(map(len, responses)) <= 6
    assert "settings of the run: max_new_tokens 6, temperature 0.9, min_new_tokens 2, stop_strings ['film'," in output


def test_options_of_generate_override_the_runs_settings(capsys, tmp_path, run_with_stop_strings):
    run, words = run_with_stop_strings
    responses, _ = responses_of(capsys, run, tmp_path / "out.jsonl", "--stop_strings", "[]", "--max_new_tokens", "9")
    assert words & {word for response in responses for word in response}
    assert max(map(len, responses)) > 6
    short, _ = responses_of(capsys, run, tmp_path / "out.jsonl", "--max_new_tokens", "1")  # below the run's minimum
    assert max(map(len, short)) == 1
    greedy, _ = responses_of(capsys, run, tmp_path / "out.jsonl", "--temperature", "0")
    assert len(set(map(tuple, greedy))) == 1


def test_the_exported_step_is_the_best_one_after_penalties(capsys, config, job, tmp_path):
    """A reward for many words and a high penalty for cut responses: the plain score is best before training."""
    (tmp_path / "words.py").write_text("def f(completions):\n    return [float(len(c.split())) for c in completions]\n")
    status, output = rlhf(
        capsys, "ppo", "--config", config, "--reward.function", f"{tmp_path}/words.py:f", "--ppo.lr", "0.01",
        "--reward.missing_eos_penalty", "20", "--eval.every", "1", "--ppo.total_episodes", "64", "--eval.prompts", "8",
    )  # fmt: skip
    assert status == 0, output
    rows = [json.loads(line) for line in (Path(job.output) / "eval.jsonl").read_text().splitlines()]
    best = max(rows, key=lambda row: row["penalised_score"])
    assert best["step"] > 0
    assert best["score"] < rows[0]["score"]
    assert f"the model of step {best['step']}, which has the best held-out score after penalties, " in output
    assert f"{best['penalised_score']:.3f}" in output
    assert "holds the untrained model" not in output
    assert "The score did not rise" not in output


def test_a_run_that_exports_the_start_says_so(capsys, config, job, tmp_path):
    (tmp_path / "same.py").write_text("def f(completions):\n    return [0.5 for _ in completions]\n")
    options = ["--reward.function", f"{tmp_path}/same.py:f", "--reward.missing_eos_penalty", "null"]
    status, output = rlhf(capsys, "ppo", "--config", config, *options)
    assert status == 0, output
    assert "the model of step 0, which has the best held-out score, 0.500, is in" in output
    assert f"WARNING: {job.output}/model holds the untrained model, because no evaluation after the" in output


def test_resume_auto_starts_and_continues(capsys, config, job):
    options = ["ppo", "--config", config, "--resume", "auto", "--checkpoint.every", "1"]
    assert rlhf(capsys, *options, "--ppo.total_episodes", "8", "--ppo.lr_schedule", "constant")[0] == 0
    status, output = rlhf(capsys, *options, "--ppo.lr_schedule", "constant")
    assert status == 0, output
    assert "+  total_episodes: 24" in output  # the changed setting is printed
    steps = [json.loads(line)["step"] for line in (Path(job.output) / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]


@pytest.mark.parametrize("script", ["train_sft.py", "train_reward.py", "train_dpo.py", "train_ppo.py"])
def test_a_script_ends_with_one_line_for_an_unknown_setting(script, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / script, "--data.pth", "x"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip() == "error: unknown setting data.pth; did you mean data.path?"


# -------------------------------------------------------------------------------------------------------- bad input


def test_an_unknown_command_is_answered_with_the_nearest_one(capsys):
    assert refused(capsys, "evalute") == "error: unknown command 'evalute'; did you mean evaluate?"
    assert rlhf(capsys, "--help")[0] == 0


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("grpo", "it is `rlhf ppo --ppo.estimator grpo --ppo.samples_per_prompt 8`"),
        ("kto", "there is none here"),
    ],
)
def test_commands_of_other_trainers_are_not_answered_with_a_similar_name(capsys, name, answer):
    assert f"error: unknown command '{name}'; {answer}" in refused(capsys, name, "--model.path", "m")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.path", "/no/such/folder"], "model folder /no/such/folder does not exist"),
        (["--model.path", "."], "folder . holds no model: there is no config.json"),
        (["--data.path", "/no/such.jsonl"], "data file /no/such.jsonl does not exist"),
        (["--data.path", "data.doc"], "data file data.doc ends in '.doc'; supported: .json, .jsonl, .csv, .tsv, "),
        (["--reward.function", "/no/such.py:f"], "reward function file /no/such.py does not exist"),
        (["--reward.function", "json:nothing"], "json has no function 'nothing'; it has "),
        (["--reward.function", "no_such_module:f"], "cannot import no_such_module for the reward function"),
        (["--reward.function", "null"], "no score: set reward.model to a reward model or reward.function"),
        (["--generation.max_new_tokens", "500"], "tokens, but"),
        (["--generation.stop_ids", "[9999]"], "generation.stop_ids names 9999, but the model's tokens are 0 to"),
        (
            ["--ppo.rollout_batch_size", "64", "--ppo.minibatch_size", "64"],
            "fewer than the 64 of one batch (ppo.rollout_batch_size = 64",
        ),
        (["--data.max_prompt_length", "2"], "prompts are longer than data.max_prompt_length = 2 tokens (row"),
        (["--resume", "nowhere"], "cannot resume from nowhere: weights.safetensors is missing"),
        (["--model.lora.rank", "2", "--model.lora.targets", "[nothing]"], "model.lora.targets is ['nothing']"),
        (["--trackers", "[wandb]"], "trackers names wandb, which is not installed: pip install 'tabular-rlhf[wandb]'"),
        (["--model.chat_template", "none.jinja"], "model.chat_template none.jinja does not exist"),
    ],
)
def test_bad_settings_of_ppo_are_rejected_before_the_run_folder_is_made(
    capsys, config, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.doc").write_text("x")
    assert message in refused(capsys, "ppo", "--config", config, *options)
    assert not (tmp_path / "run").exists()  # nothing was begun


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("[]", "has no rows"),
        ("not json at all\n", "cannot read data from"),
        ('{"text": "a"}\n', "has no column 'prompt'; it has 'text'"),
        ('{"prompt": "a"}\n{"prompt": null}\n', "row 2: 'prompt' is null"),
        ('{"prompt": "a"}\n{"prompt": "  "}\n', "row 2: 'prompt' is empty"),
        ('{"prompt": [{"role": "user", "content": "hi"}]}\n', "the tokenizer has no chat template"),
    ],
)
def test_bad_data_is_rejected_with_its_row(capsys, config, tmp_path, content, message):
    file = tmp_path / "bad.jsonl"
    file.write_text(content)
    assert message in refused(capsys, "ppo", "--config", config, "--data.path", file)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", "raised ZeroDivisionError: division by zero"),
        ("return [1.0]", "returned 1 scores for 4 completions"),
        ("return [float('nan')] * len(completions)", "returned nan for the completion"),
        ("return ['good'] * len(completions)", "returned 'good' for the completion"),
        ("return 'good'", "returned 'good', but must return a list of numbers"),
        ("return None", "returned None, but must return a list of numbers"),
    ],
)
def test_a_bad_reward_function_is_an_error_that_names_the_fault(capsys, config, tmp_path, body, message):
    file = tmp_path / "bad_reward.py"
    file.write_text(f"def f(prompts, completions, **columns):\n    {body}\n")
    output = refused(capsys, "ppo", "--config", config, "--reward.function", f"{file}:f")
    assert message in output
    assert ("raised" not in message) or f"({file}, line 2)" in output


def test_the_file_of_a_reward_function_runs_once(capsys, config, tmp_path):
    """What stands at its top, a model that it loads, say, must not be paid for twice."""
    file, log = tmp_path / "once.py", tmp_path / "log"
    body = "def f(prompts, completions, **columns):\n    return [0.0 for _ in prompts]\n"
    file.write_text(f"open({str(log)!r}, 'a').write('x')\n" + body)
    assert rlhf(capsys, "ppo", "--config", config, "--reward.function", f"{file}:f")[0] == 0
    assert log.read_text() == "x"


def test_a_reward_function_without_kwargs_gets_what_it_names(capsys, config, tmp_path):
    (tmp_path / "r.py").write_text("def f(completions):\n    return [0.0 for _ in completions]\n")
    status, output = rlhf(capsys, "ppo", "--config", config, "--reward.function", f"{tmp_path}/r.py:f")
    assert status == 0, output


@pytest.mark.parametrize(
    ("signature", "column", "message"),
    [
        ("completions, answer, **_", "wanted", "needs an argument 'answer', but {data} has no such column; there are "),
        ("completions, **_", "completions", "{data} has a column 'completions', but reward functions such as "),
        ("completions, **_", "prompts", "{data} has a column 'prompts', but reward functions such as "),
    ],
)
def test_columns_and_arguments_that_do_not_match_are_seen_before_a_model_is_loaded(
    capsys, config, tmp_path, monkeypatch, signature, column, message
):
    (tmp_path / "r.py").write_text(f"def f({signature}):\n    return [0.0 for _ in completions]\n")
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": "the film", column: "good"}) + "\n" for _ in range(20)))
    monkeypatch.setattr("rlhf.trainers.setup.load_causal_lm", None)
    options = ["--data.path", data, "--reward.function", f"{tmp_path}/r.py:f"]
    assert message.format(data=data) in refused(capsys, "ppo", "--config", config, *options)
    evaluate = ["--model.path", "{model}", "--data.path", data, "--reward.function", f"{tmp_path}/r.py:f"]
    monkeypatch.setattr("rlhf.evaluation.command.load_causal_lm", None)
    evaluate[1] = yaml.safe_load(config.read_text())["model"]["path"]
    assert message.format(data=data) in refused(capsys, "evaluate", *evaluate)


def test_dropped_prompts_are_reported_and_leave_a_held_out_set_of_full_size(capsys, config, job):
    """Of 40 prompts, 20 have at most 2 words; a fifth of these 20 is held out."""
    status, output = rlhf(capsys, "ppo", "--config", config, "--data.max_prompt_length", "2", "--data.too_long", "drop")
    assert status == 0, output
    assert "16 prompts to train on, 4 held out" in output
    assert "20 prompts are longer than data.max_prompt_length = 2 tokens and were dropped" in output


def test_prompts_and_texts_from_plain_text_files(capsys, config, tmp_path, models):
    (tmp_path / "lines.txt").write_text("".join(f"the film is {w}\n" for w in ["good", "bad", "dull", "fine"] * 10))
    assert rlhf(capsys, "ppo", "--config", config, "--data.path", tmp_path / "lines.txt")[0] == 0
    status, output = rlhf(
        capsys, "sft", "--model.path", models("llama"), "--data.path", tmp_path / "lines.txt", "--output",
        tmp_path / "sft", "--trackers", "[]", "--training.batch_size", "8", "--checkpoint.every", "0",
    )  # fmt: skip
    assert status == 0, output


def test_conversations_are_prompts_up_to_the_last_turn_of_the_user(capsys, config, job, tmp_path, models):
    turns = [{"role": "user", "content": "the film"}, {"role": "assistant", "content": "good"}]
    (tmp_path / "talks.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 20)
    options = ["--data.path", tmp_path / "talks.jsonl", "--model.path", models("llama", chat=True)]
    status, output = rlhf(capsys, "ppo", "--config", config, *options)
    assert status == 0, output
    sample = json.loads((Path(job.output) / "samples.jsonl").read_text().splitlines()[0])
    assert sample["prompt"] == "<|user|>the film<|end|><|assistant|>"


def test_a_model_of_the_wrong_kind_is_rejected(capsys, config, tmp_path, models, reward_folder, build):
    from transformers import AutoModel, AutoModelForSequenceClassification

    assert "LlamaForSequenceClassification, which is no causal" in refused(
        capsys, "ppo", "--config", config, "--model.path", reward_folder
    )
    assert "LlamaForCausalLM, which is no reward model; train one" in refused(
        capsys, "ppo", "--config", config, "--reward.function", "null", "--reward.model", models("llama")
    )
    AutoModel.from_config(build.config("bert")).save_pretrained(tmp_path / "bert")
    assert "BertModel, which is no causal language model" in refused(
        capsys, "ppo", "--config", config, "--model.path", tmp_path / "bert"
    )
    AutoModelForSequenceClassification.from_config(build.config("llama", num_labels=3)).save_pretrained(
        tmp_path / "three"
    )
    build.tokenizer().save_pretrained(tmp_path / "three")
    assert "has 3 labels (LABEL_0, LABEL_1, LABEL_2), but a score is one number; name the one to use" in refused(
        capsys, "ppo", "--config", config, "--reward.function", "null", "--reward.model", tmp_path / "three"
    )


def test_a_tokenizer_without_an_end_token(capsys, config, tmp_path, models):
    folder = tmp_path / "endless"
    shutil.copytree(models("llama"), folder)
    for name, keys in (("tokenizer_config.json", ["eos_token"]), ("config.json", ["eos_token_id"])):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({k: None if k in keys else v for k, v in content.items()}))
    (folder / "generation_config.json").unlink()
    message = refused(capsys, "ppo", "--config", config, "--model.path", folder)
    assert "names an end token, so no response could end; name its ids with --generation.stop_ids" in message
    assert rlhf(capsys, "ppo", "--config", config, "--model.path", folder, "--generation.stop_ids", "[1]")[0] == 0


def test_a_tokenizer_without_padding_or_with_pad_as_end_works(capsys, config, models, tmp_path):
    for name, pad in (("none", None), ("end", "<|end|>")):
        status, output = rlhf(
            capsys, "ppo", "--config", config, "--model.path", models("llama", pad=pad), "--output", tmp_path / name
        )
        assert status == 0, output


def test_an_existing_run_folder_is_left_alone(capsys, config, job):
    folder = Path(job.output)
    folder.mkdir()
    (folder / "diary.txt").write_text("mine")
    message = refused(capsys, "ppo", "--config", config)
    assert "exists; continue it with --resume auto, or name another with --output" in message
    assert "is not a run folder" in refused(capsys, "ppo", "--config", config, "--resume", "auto")
    assert [p.name for p in folder.iterdir()] == ["diary.txt"]


def test_a_full_disk_is_seen_before_the_first_step(capsys, config, job, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 100, 0))
    assert "has 0 MB free, but a run with this model takes about" in refused(capsys, "ppo", "--config", config)
    assert not Path(job.output).exists()


def test_a_checkpoint_with_a_part_missing(capsys, config, job):
    assert rlhf(capsys, "ppo", "--config", config, "--checkpoint.every", "1")[0] == 0
    damaged = Path(job.output) / "checkpoints" / "step_000003"
    (damaged / "optimizer.pt").unlink()
    assert "step_000003: optimizer.pt is missing" in refused(capsys, "ppo", "--config", config, "--resume", damaged)
    status, output = rlhf(capsys, "ppo", "--config", config, "--resume", "auto")
    assert status == 0
    assert "step_000003 is damaged: optimizer.pt is missing; it is not used" in output


def test_a_checkpoint_of_another_model(capsys, config, job, models):
    assert rlhf(capsys, "ppo", "--config", config, "--checkpoint.every", "1")[0] == 0
    message = refused(capsys, "ppo", "--config", config, "--resume", "auto", "--model.path", models("gpt2"))
    assert "does not fit this model" in message


def test_report_of_a_missing_folder_is_rejected(capsys, tmp_path):
    assert "there is no run folder" in refused(capsys, "report", tmp_path / "none")


def test_generate_refuses_reward_models(capsys, reward_folder):
    assert "no causal language model" in refused(capsys, "generate", reward_folder, "--prompt", "x")


def test_sft_without_the_right_columns(capsys, tmp_path, prompts_file, models):
    base = ["sft", "--model.path", models("llama"), "--output", tmp_path / "s"]
    assert "but demonstrations need 'text'" in refused(capsys, *base, "--data.path", prompts_file)
    (tmp_path / "t.jsonl").write_text('{"text": "the film"}\n')
    assert "fewer than training.batch_size = 32" in refused(capsys, *base, "--data.path", tmp_path / "t.jsonl")


def test_reward_without_the_right_columns(capsys, tmp_path, prompts_file, models):
    base = ["reward", "--model.path", models("llama"), "--output", tmp_path / "r"]
    assert "has no column 'chosen'; it has 'prompt', 'wanted'" in refused(capsys, *base, "--data.path", prompts_file)


def test_dpo_from_pairs_to_a_model_that_generates(capsys, tmp_path, models):
    """A run with adapters, a checkpoint of it, its report, and the mistakes of a user."""
    pairs = [
        {"prompt": f"the film {w} ", "chosen": "is good", "rejected": f"is {w} bad"} for w in ("a", "of", "it", "in")
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs * 5))
    base = ["dpo", "--model.path", models("llama"), "--data.path", data]
    options = ["--training.batch_size", "8", "--model.lora.rank", "2", "--export", "merged", "--checkpoint.every", "1"]
    run = tmp_path / "run"
    status, output = rlhf(capsys, *base, "--output", run, *options, "--data.eval_fraction", "0.2")
    assert status == 0, output
    assert f"model in {run / 'model'}" in output
    assert "chosen_reward" in (run / "report.html").read_text()
    assert not (run / "model" / "adapter_config.json").exists()
    for model in (run, run / "checkpoints" / "latest"):
        status, output = rlhf(capsys, "generate", model, "--prompt", "the film", "--max_new_tokens", "3")
        assert status == 0, output
    files = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert "exists; continue it with --resume auto" in refused(capsys, *base, "--output", run, *options)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == files
    other = ["--output", tmp_path / "other"]
    assert "has no column 'chosen'; it has 'text'" in refused(
        capsys, *base, *other, "--data.path", _file(tmp_path / "t.jsonl", '{"text": "a"}\n')
    )
    assert "row 1: 'rejected' is empty" in refused(
        capsys, *base, *other, "--data.path", _file(tmp_path / "e.jsonl", '{"chosen": "a", "rejected": ""}\n')
    )
    for option, message in (
        (["--training.batch_size", "32"], "holds 19 examples to train on, fewer than training.batch_size = 32"),
        (["--dpo.beta", "0"], "dpo.beta is 0.0, but must be positive"),
        (["--dpo.label_smoothing", "0.5"], "dpo.label_smoothing is 0.5, but must be at least 0 and below 0.5"),
        (["--dpo.loss", "ipo", "--dpo.label_smoothing", "0.1"], "it has no effect because dpo.loss is ipo"),
        (["--export", "merged"], "export is merged, but model.lora.rank is 0"),
        (["--beta", "0.2"], "did you mean dpo.beta?"),
    ):
        assert message in refused(capsys, *base, *other, *option)
    assert not (tmp_path / "other").exists()


def test_best_of_n_of_a_model_and_of_a_run(capsys, config, job, tmp_path, models):
    """As a baseline, and as a data set that sft takes."""
    options = ["--data.path", job.data.path, "--reward.function", job.reward.function, "--n", "3"]
    length = ["--generation.max_new_tokens", "12", "--eval.prompts", "4"]
    status, output = rlhf(capsys, "best-of-n", models("llama"), *options, *length)
    assert status == 0, output
    assert "best of 3" in output
    summary = json.loads(output.splitlines()[-1])
    assert summary["kl_bound"] == pytest.approx(0.431946, abs=1e-6)  # log 3 - 2/3
    file = tmp_path / "best.jsonl"
    status, output = rlhf(capsys, "best-of-n", models("llama"), *options, *length, "--output", file)
    assert status == 0, output
    assert f"with the best of 3 responses in {file}" in output
    assert "exists; name another with --output" in refused(
        capsys, "best-of-n", models("llama"), *options, *length, "--output", file
    )
    sft = ["sft", "--model.path", models("llama"), "--data.path", file, "--output", tmp_path / "sft"]
    status, output = rlhf(capsys, *sft, "--training.batch_size", "4", "--trackers", "[]")
    assert status == 0, output
    assert rlhf(capsys, "ppo", "--config", config)[0] == 0
    status, output = rlhf(capsys, "best-of-n", job.output, "--n", "2")
    assert status == 0, output
    assert json.loads(output.splitlines()[-1])["prompts"] == 4  # eval.prompts of the run
    assert "set reward.model or reward.function" in refused(
        capsys, "best-of-n", models("llama"), "--data.path", job.data.path
    )


def test_evaluate_compares_policies_with_the_settings_of_a_run(capsys, config, job, tmp_path, models):
    """A run, the model it started from by another path, and the best of two responses: one table and one page."""
    assert rlhf(capsys, "ppo", "--config", config)[0] == 0
    other = tmp_path / "other"
    shutil.copytree(models("llama"), other)
    folder = tmp_path / "comparison"
    status, output = rlhf(capsys, "evaluate", job.output, other, "--best_of", "[2]", "--output", folder)
    assert status == 0, output
    assert f"page in {folder / 'comparison.html'}" in output
    result = json.loads(output.splitlines()[-1])
    assert list(result["policies"]) == ["start", "best of 2", "run", "other"]
    assert result["win_rates"]["other"]["start"]["win_rate"] == 0.5
    assert output.count("wins against") == 4
    assert sorted(p.name for p in folder.iterdir()) == ["comparison.html", "evaluation.json", "samples.jsonl"]
    assert "comparison exists" in refused(capsys, "evaluate", job.output, other, "--output", folder)
    options = ["--data.path", job.data.path, "--reward.function", job.reward.function, "--eval.prompts", "4"]
    status, output = rlhf(capsys, "evaluate", models("llama"), other, *options)  # no run among them
    assert status == 0, output
    status, output = rlhf(capsys, "evaluate", job.output, "--best_of", "[2]")
    assert status == 0, output
    assert list(json.loads(output.splitlines()[-1])["policies"]) == ["start", "best of 2", "run"]
    assert "data.path is not set" in refused(capsys, "evaluate", models("llama"), other)


def _file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_run_killed_by_sigkill_resumes_exactly(job, change, tmp_path):
    """SIGKILL in the middle of a run; the resumed run ends with the weights of one that was never killed."""
    import signal
    import time

    from safetensors.torch import load_file

    steps = change(job, checkpoint={"every": 1}, ppo={"total_episodes": 8 * 12})
    script, env = ROOT / "scripts" / "train_ppo.py", {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    config = tmp_path / "job.yaml"
    config.write_text(to_yaml(steps))

    def start(name, *more):
        return subprocess.Popen(
            [sys.executable, script, "--config", config, "--output", tmp_path / name, *more], env=env, cwd=tmp_path,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    victim = start("killed")
    while not (tmp_path / "killed" / "checkpoints" / "step_000003").exists():
        assert victim.poll() is None, victim.stderr.read().decode()
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not (tmp_path / "killed" / "model").exists()
    again, whole = start("killed", "--resume", "auto"), start("whole")
    assert again.wait(240) == 0, again.stderr.read().decode()
    assert whole.wait(240) == 0, whole.stderr.read().decode()
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "-1"], "seed is -1, but must be at least 0 and below 2**32"),
        (["--seed", "99999999999999999999999"], "but must be at least 0 and below 2**32"),
        (
            ["--reward.missing_eos_penalty", "-5"],
            "reward.missing_eos_penalty is -5.0, but must be null or at least 0",
        ),
        (["--config"], "option --config needs a value"),
        (["--config", "empty.yaml"], "empty.yaml has no settings"),
        (["--config", "latin.yaml"], "latin.yaml is not UTF-8"),
        (["--config", "section.yaml"], "section.yaml: ppo is a section, not a setting; it holds ppo.lr, "),
        (["--output", "latin.yaml/run"], "run folder latin.yaml/run cannot be created: latin.yaml is a file"),
        (["--data.path", "latin.jsonl"], "latin.jsonl"),
        (["--model.path", "no/such"], "no/such (no such folder, so it was looked up on the hub)"),
    ],
)
def test_other_mistakes_of_users_are_rejected(capsys, config, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    (tmp_path / "latin.yaml").write_bytes("output: caf\xe9\n".encode("latin-1"))
    (tmp_path / "section.yaml").write_text("ppo: 3\n")
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "caf\xe9"}\n'.encode("latin-1"))
    assert message in refused(capsys, "ppo", "--config", config, *options)


def test_generate_without_options_shortens_responses_to_the_context(capsys, models):
    """The tiny model's context holds 128 tokens, less than the default length of a response."""
    command = ["generate", models("llama"), "--prompt", "the film is"]
    assert main([str(x) for x in command]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("the film is")
    assert "responses are shortened to" in err
    assert "context length of 128, and the longest prompt has" in err


def test_temperature_0_is_greedy_and_the_same_for_every_seed(capsys, models):
    command = ["generate", models("llama"), "--prompt", "the film", "--max_new_tokens", "6", "--seed"]
    greedy = {rlhf(capsys, *command, seed, "--temperature", "0") for seed in (1, 2)}
    sampled = {rlhf(capsys, *command, seed) for seed in (1, 2)}
    assert len(greedy) == 1
    assert len(sampled) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", " "], "prompt is empty"),
        (["--prompt", "the film is " * 60], "exceed the context length of"),
        (["--prompt", "the film", "--max_new_tokens", "500"], "exceed the context length of"),
    ],
)
def test_generate_refuses_before_it_samples(capsys, models, options, message):
    assert message in refused(capsys, "generate", models("llama"), *options)


def test_a_finished_run_is_left_as_it_is(capsys, config, job):
    assert rlhf(capsys, "ppo", "--config", config, "--checkpoint.every", "1")[0] == 0
    files = {p: p.read_bytes() for p in Path(job.output).rglob("*") if p.is_file()}
    status, output = rlhf(capsys, "ppo", "--config", config, "--resume", "auto", "--ppo.lr", "0.5")
    assert status == 0
    assert "is finished at step 3; to continue, raise ppo.total_episodes" in output
    assert {p: p.read_bytes() for p in Path(job.output).rglob("*") if p.is_file()} == files


def test_a_run_that_failed_at_once_can_be_started_again(capsys, config, job, tmp_path):
    (tmp_path / "none.py").write_text("def f(prompts, completions, **columns):\n    return None\n")
    refused(capsys, "ppo", "--config", config, "--reward.function", f"{tmp_path}/none.py:f")
    assert sorted(p.name for p in Path(job.output).iterdir()) == [".lock", "config.yaml", "environment.json"]
    assert rlhf(capsys, "ppo", "--config", config)[0] == 0


def test_the_best_model_of_an_abandoned_branch_is_ignored(capsys, config, job):
    """Back to step 1, whose best was the start, while `checkpoints/best` holds the old branch's step 3."""
    options = ["ppo", "--config", config, "--checkpoint.every", "1", "--eval.every", "1"]
    assert rlhf(capsys, *options)[0] == 0
    folder = Path(job.output) / "checkpoints"
    (folder / "best" / "step").write_text("3\n")
    status, output = rlhf(capsys, *options, "--resume", folder / "step_000001")
    assert status == 0, output
    rows = [json.loads(line) for line in (Path(job.output) / "eval.jsonl").read_text().splitlines()]
    best = max(rows[-2:], key=lambda row: row["penalised_score"])["step"]
    assert f"the model of step {best}, which has" in output
    assert (folder / "best" / "step").read_text() == f"{best}\n"


def test_other_rewards_start_a_new_search_for_the_best(capsys, config, job, tmp_path):
    (tmp_path / "low.py").write_text("def f(prompts, completions, **columns):\n    return [-100.0 for _ in prompts]\n")
    options = ["ppo", "--config", config, "--checkpoint.every", "1", "--eval.every", "1"]
    assert rlhf(capsys, *options)[0] == 0
    more = ["--resume", "auto", "--ppo.total_episodes", "32", "--reward.function", f"{tmp_path}/low.py:f"]
    more += ["--reward.missing_eos_penalty", "null"]
    status, output = rlhf(capsys, *options, *more)
    assert status == 0, output
    assert "the model of step 4, which has the best held-out score, -100.000" in output
