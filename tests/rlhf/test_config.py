"""Settings: what is refused and in which words, and that files and options mean the same."""

import ast
from pathlib import Path

import pytest
import yaml

from rlhf.config import EvaluateJob, PPOConfig, PPOJob, RewardJob, SFTJob, evaluation_of
from rlhf.errors import UserError
from rlhf.names import ABSENT, HERE
from rlhf.parsing import from_dict, keys_of, parse, to_yaml

ROOT = Path(__file__).parents[2]
NEEDED = ["--model.path", "m", "--data.path", "d", "--reward.function", "f.py:g"]
JOBS = {
    PPOJob: NEEDED,
    SFTJob: NEEDED[:4],
    RewardJob: NEEDED[:4],
    EvaluateJob: NEEDED[:4],
}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ppo.lrr", "1"], "unknown setting ppo.lrr; did you mean ppo.lr?"),
        (["--pp.lr", "1"], "unknown setting pp.lr; did you mean ppo.lr?"),
        (["--lr=1"], "unknown setting lr; did you mean ppo.lr?"),
        (["--data.pth", "x"], "unknown setting data.pth; did you mean data.path?"),
        (["--ppo.lr", "fast"], "ppo.lr: Expected a float. Got value: fast"),
        (["--ppo.ppo_epochs", "1.5"], "ppo.ppo_epochs: Expected a int. Got value: 1.5"),
        (["--model.dtype", "fp8"], "model.dtype: Expected a Literal['float32', 'bfloat16', 'float16', 'auto']"),
        (["--ppo.lr", "-1"], "ppo.lr is -1.0, but it must be positive"),
        (["--ppo.lr", "nan"], "ppo.lr: Expected a float. Got value: nan"),
        (["--ppo.lam", "1.1"], "ppo.lam is 1.1, but it must be between 0 and 1"),
        (["--ppo.gamma", "-0.1"], "ppo.gamma is -0.1, but it must be between 0 and 1"),
        (["--ppo.clip_range", "1"], "ppo.clip_range is 1.0, but it must be below 1"),
        (["--ppo.kl_coef", "-0.1"], "ppo.kl_coef is -0.1, but it must be at least 0"),
        (["--ppo.kl_target", "0"], "ppo.kl_target is 0.0, but it must be null or positive"),
        (
            ["--ppo.minibatch_size", "48"],
            "ppo.minibatch_size is 48, but it must be a divisor of ppo.rollout_batch_size = 64; near: 16, 32, 64",
        ),
        (["--generation.temperature", "0"], "generation.temperature is 0.0, but it must be positive"),
        (["--generation.stop_ids", "[]"], "generation.stop_ids is [], but it must be null or not empty"),
        (["--model.lora.rank", "-2"], "model.lora.rank is -2"),
        (["--data.eval_fraction", "1"], "data.eval_fraction is 1.0, but it must be at least 0 and below 1"),
        (["--checkpoint.keep", "0"], "checkpoint.keep is 0, but it must be null or positive"),
        (["--reward.model", "r"], "reward.model and reward.function are both set"),
        (["--reward.function", "file.py"], "reward.function is 'file.py', but it must be of the form file.py:name"),
        (["--config", "none.yaml"], "config file none.yaml does not exist"),
        (["--generation.top_k", "50"], "there is no setting generation.top_k: it would change the distribution"),
        (["--generation.repetition_penalty", "1.1"], "there is no setting generation.repetition_penalty: it would"),
        (["--ppo.cliprange", "0.1"], "unknown setting ppo.cliprange; here it is ppo.clip_range"),
        (["--response_length", "53"], "unknown setting response_length; here it is generation.max_new_tokens"),
    ],
)
def test_bad_settings_are_refused_with_the_full_name(options, message):
    with pytest.raises(UserError) as error:
        parse(PPOJob, [*NEEDED, *options])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (PPOJob, NEEDED[2:], "model.path is not set; give it with --model.path or in a --config file"),
        (SFTJob, ["--data.path", "d"], "set one of model.path (start from a model) and scratch.model_type"),
        (SFTJob, [*NEEDED[:4], "--scratch.num_heads", "3"], "scratch.num_heads is 3"),
        (SFTJob, [*NEEDED[:4], "--training.epochs", "0"], "training.epochs is 0.0, but it must be positive"),
        (RewardJob, ["--model.path", "m"], "data.path is not set"),
    ],
)
def test_impossible_jobs_are_refused(kind, options, message):
    with pytest.raises(UserError) as error:
        parse(kind, options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ppo: {lrr: 1}", "unknown setting ppo.lrr; did you mean ppo.lr?"),
        ("ppo: {lr: fast}", "ppo.lr: Expected a float. Got value: fast"),
        ("ppo: [1, 2", "is not valid YAML"),
        ("- a\n- b", "holds a list"),
    ],
)
def test_mistakes_in_files_name_the_file_or_the_key(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        parse(PPOJob, ["--config", str(tmp_path / "c.yaml"), *NEEDED])
    assert message in str(error.value)


def test_later_files_and_options_win(tmp_path):
    (tmp_path / "a.yaml").write_text("ppo: {lr: 1.0e-3, gamma: 0.9, lam: 0.8}")
    (tmp_path / "b.yaml").write_text("ppo: {lr: 1e-4, gamma: 0.5}")
    job = parse(
        PPOJob, ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml"), "--ppo.gamma=0.7", *NEEDED]
    )
    assert (job.ppo.lr, job.ppo.gamma, job.ppo.lam) == (1e-4, 0.7, 0.8)


@pytest.mark.parametrize("kind", JOBS)
def test_a_written_config_parses_back_to_the_same_job(kind, tmp_path):
    job = parse(
        kind, [*JOBS[kind], "--data.eval_split", "te:st", "--model.lora.targets", "[q_proj, v_proj]", "--seed=3"]
    )
    (tmp_path / "config.yaml").write_text(to_yaml(job))
    assert parse(kind, ["--config", str(tmp_path / "config.yaml")]) == job
    assert from_dict(kind, yaml.safe_load(to_yaml(job))) == job


def test_every_shipped_config_parses():
    kinds = {"sft": SFTJob, "reward": RewardJob, "ppo": PPOJob}
    files = sorted((ROOT / "configs").glob("*.yaml"))
    assert len(files) >= 4
    for file in files:
        parse(kinds[file.name.split("_")[0]], ["--config", str(file)])


@pytest.mark.parametrize("kind", JOBS)
def test_every_setting_is_read_somewhere(kind):
    """An option that nothing reads is a lie."""
    code = "".join(f.read_text() for f in (ROOT / "rlhf").glob("*.py") if f.name != "config.py")
    config = (ROOT / "rlhf" / "config.py").read_text()
    for key in keys_of(kind):
        leaf = key.rsplit(".", 1)[-1]
        assert f".{leaf}" in code or f"self.{leaf}" in config.split("@property", 1)[1], key


def test_every_setting_says_what_it_is():
    """A string under each field: `--help` prints it."""
    trees = [ast.parse((ROOT / "rlhf" / f"{name}.py").read_text()) for name in ("settings", "ppo_settings")]
    silent = [
        f"{cls.name}.{ast.unparse(item.target)}"
        for tree in trees
        for cls in tree.body
        if isinstance(cls, ast.ClassDef) and not cls.name.endswith("Job")
        for item, after in zip(cls.body, [*cls.body[1:], None], strict=True)
        if isinstance(item, ast.AnnAssign)
        and not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant))
    ]
    assert silent == ["ModelConfig.lora", "EvalConfig.judge"]  # groups, whose classes say it


def test_names_from_elsewhere_lead_to_settings_that_exist():
    known = keys_of(PPOJob)
    assert set(HERE.values()) <= set(known)
    assert not set(ABSENT) & {key.rsplit(".", 1)[-1] for key in known}


def test_batch_arithmetic():
    config = PPOConfig(total_episodes=1000, rollout_batch_size=64, minibatch_size=16)
    assert (config.steps, config.minibatches) == (16, 4)
    config.check_processes(4)
    with pytest.raises(UserError, match="which 3 processes cannot share evenly; use a multiple of 3, such as 15"):
        config.check_processes(3)


def test_an_evaluation_takes_its_settings_from_the_run(tmp_path):
    job = parse(PPOJob, [*NEEDED, "--generation.temperature", "0.7", "--model.lora.rank", "4", "--seed", "5"])
    (tmp_path / "config.yaml").write_text(to_yaml(job))
    found = evaluation_of(tmp_path, ["--eval.prompts", "7"])
    assert (found.model.path, found.baseline, found.seed) == (str(tmp_path / "model"), "m", 5)
    assert (found.generation, found.reward, found.eval.prompts) == (job.generation, job.reward, 7)
    assert found.model.lora.rank == 0
