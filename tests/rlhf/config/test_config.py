"""Settings: which values are rejected and with which message; files and options have the same meaning."""

import ast
import math
import re
from functools import partial
from pathlib import Path
from types import NoneType
from typing import get_args, get_origin

import pytest
import yaml

from rlhf.config import checks, commands, dpo, environment, jobs, ppo, scores, shared
from rlhf.config.commands import BestOfNJob, DemoJob, EvaluateJob, GenerateJob, ReportJob
from rlhf.config.compare import CompareJob
from rlhf.config.dpo import DPOConfig
from rlhf.config.environment import EnvironmentConfig
from rlhf.config.jobs import DPOJob, PPOJob, RewardJob, SFTJob
from rlhf.config.parsing import from_dict, parse, setting_types, to_yaml
from rlhf.config.ppo import CriticConfig, PPOConfig, PTXConfig
from rlhf.config.run_settings import evaluation_of_run
from rlhf.config.scores import JudgeConfig, RewardConfig, SourceSettings, WeightedSource
from rlhf.config.shared import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    GenerationConfig,
    LoraConfig,
    ModelConfig,
    ScratchConfig,
)
from rlhf.config.training import TrainingConfig
from rlhf.errors import UserError

ROOT = Path(__file__).parents[3]
NEEDED = ["--model.path", "m", "--data.path", "d", "--reward.function", "f.py:g"]
JOBS = {
    PPOJob: NEEDED,
    SFTJob: NEEDED[:4],
    RewardJob: NEEDED[:4],
    DPOJob: NEEDED[:4],
    EvaluateJob: NEEDED[:4],
    BestOfNJob: NEEDED,
    GenerateJob: ["--model", "m", "--prompt", "p"],
    CompareJob: ["--annotator", "ada"],
    ReportJob: ["--run", "r"],
    DemoJob: [],
}
"""Classes of jobs, with the settings that each needs."""
TRAINING_JOBS = (PPOJob, SFTJob, RewardJob, DPOJob)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ppo.lrr", "1"], "unknown setting ppo.lrr; did you mean ppo.lr?"),
        (["--pp.lr", "1"], "unknown setting pp.lr; did you mean ppo.lr?"),
        (["--lr=1"], "unknown setting lr; did you mean ppo.lr?"),
        (["--data.pth", "x"], "unknown setting data.pth; did you mean data.path?"),
        (["--ppo.lr", "fast"], "ppo.lr is fast, but must be a finite number"),
        (["--ppo.ppo_epochs", "1.5"], "ppo.ppo_epochs is 1.5, but must be a whole number"),
        (["--model.dtype", "fp8"], "model.dtype is fp8, but must be one of float32, bfloat16, float16, auto"),
        (["--ppo.lr", "-1"], "ppo.lr is -1.0, but must be positive"),
        (["--ppo.lr", "nan"], "ppo.lr is nan, but must be a finite number"),
        (["--ppo.lam", "1.1"], "ppo.lam is 1.1, but must be between 0 and 1"),
        (["--ppo.gamma", "-0.1"], "ppo.gamma is -0.1, but must be between 0 and 1"),
        (["--ppo.clip_range", "1"], "ppo.clip_range is 1.0, but must be below 1"),
        (["--ppo.kl_coef", "-0.1"], "ppo.kl_coef is -0.1, but must be at least 0"),
        (["--ppo.kl_target", "0"], "ppo.kl_target is 0.0, but must be null or positive"),
        (
            ["--ppo.minibatch_size", "48"],
            "ppo.minibatch_size is 48, but must be a divisor of ppo.rollout_batch_size = 64, such as 16, 32, 64",
        ),
        (["--generation.temperature", "0"], "generation.temperature is 0.0, but must be positive"),
        (["--generation.stop_ids", "[]"], "generation.stop_ids is [], but must be null or not empty"),
        (["--model.lora.rank", "-2"], "model.lora.rank is -2"),
        (["--data.eval_fraction", "1"], "data.eval_fraction is 1.0, but must be at least 0 and below 1"),
        (
            ["--ppo.lr", "1" + 400 * "0"],
            "--ppo.lr has more digits than a number can have here; write it as 1e-5 or 1e6",
        ),
        (["--checkpoint.keep", "0"], "checkpoint.keep is 0, but must be null or positive"),
        (["--reward.model", "r"], "reward.model and reward.function are both set"),
        (["--reward.function", "file.py"], "reward.function is 'file.py', but must be of the form file.py:name"),
        (["--config", "none.yaml"], "config file none.yaml does not exist"),
        (["--generation.top_k", "50"], "generation.top_k is not supported, because it changes the distribution"),
        (["--generation.repetition_penalty", "1.1"], "generation.repetition_penalty is not supported, because it"),
        (["--ppo.cliprange", "0.1"], "unknown setting ppo.cliprange; it is called ppo.clip_range here"),
        (["--model", "runs/sft"], "model is a section, not a setting; it holds model.path, model.dtype"),
        (["ppo.lr=1"], "takes no argument 'ppo.lr=1'; did you mean --ppo.lr=1?"),
        (["runs/sft"], "takes no argument 'runs/sft'; name its setting, one of `"),
        (["--nothing_like_it", "1"], "unknown setting nothing_like_it; --help lists all settings"),
        (["--response_length", "53"], "unknown setting response_length; it is called generation.max_new_tokens here"),
    ],
)
def test_a_bad_setting_is_rejected_with_its_full_name(options, message):
    with pytest.raises(UserError) as error:
        parse(PPOJob, [*NEEDED, *options])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (PPOJob, NEEDED[2:], "model.path is not set; give it with --model.path or in a --config file"),
        (SFTJob, ["--data.path", "d"], "set one of model.path (start from a model) and scratch.model_type"),
        (SFTJob, [*NEEDED[:4], "--scratch.num_heads", "3"], "scratch.num_heads is 3"),
        (SFTJob, [*NEEDED[:4], "--training.epochs", "0"], "training.epochs is 0.0, but must be positive"),
        (RewardJob, ["--model.path", "m"], "data.path is not set"),
    ],
)
def test_a_job_without_a_required_setting_is_rejected(kind, options, message):
    with pytest.raises(UserError) as error:
        parse(kind, options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ppo: {lrr: 1}", "unknown setting ppo.lrr; did you mean ppo.lr?"),
        ("ppo: {lr: fast}", "ppo.lr is fast, but must be a finite number"),
        ("ppo: [1, 2", "is not valid YAML"),
        ("- a\n- b", "holds a list"),
    ],
)
def test_a_mistake_in_a_file_names_the_file_or_the_key(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        parse(PPOJob, ["--config", str(tmp_path / "c.yaml"), *NEEDED])
    assert message in str(error.value)


def test_later_files_override_earlier_ones_and_options_override_files(tmp_path):
    (tmp_path / "a.yaml").write_text("ppo: {lr: 1.0e-3, gamma: 0.9, lam: 0.8}")
    (tmp_path / "b.yaml").write_text("ppo: {lr: 1e-4, gamma: 0.5}")
    job = parse(
        PPOJob, ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml"), "--ppo.gamma=0.7", *NEEDED]
    )
    assert (job.ppo.lr, job.ppo.gamma, job.ppo.lam) == (1e-4, 0.7, 0.8)


LORA = ["--model.lora.rank", "2", "--model.lora.targets", "[q_proj, v_proj]"]


@pytest.mark.parametrize(("kind", "options"), [(kind, LORA if kind in TRAINING_JOBS else []) for kind in JOBS])
def test_a_written_config_parses_back_to_the_same_job(kind, options, tmp_path):
    job = parse(
        kind,
        [*JOBS[kind], "--output", "te:st", *options],
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
def test_every_setting_is_used_somewhere(kind):
    """A setting that no code uses would be silently ignored."""
    package = ROOT / "rlhf"
    code = "".join(f.read_text() for f in package.rglob("*.py") if f.parent.name != "config")
    # Inside rlhf/config, only a property counts as use; a check of the value does not.
    properties = "".join(f.read_text().partition("@property")[2] for f in (package / "config").glob("*.py"))
    for key in setting_types(kind):
        leaf = key.rsplit(".", 1)[-1]
        assert re.search(rf"\.{leaf}\b", code) or re.search(rf"self\.{leaf}\b", properties), key


def test_every_setting_has_a_help_text():
    """The string under each field, which `--help` prints; the help of a group is its class's docstring."""
    trees = [ast.parse(file.read_text()) for file in (ROOT / "rlhf" / "config").glob("*.py")]
    without_help = [
        f"{cls.name}.{ast.unparse(item.target)}"
        for tree in trees
        for cls in tree.body
        if isinstance(cls, ast.ClassDef) and cls.name.endswith(("Config", "Job"))
        for item, after in zip(cls.body, [*cls.body[1:], None], strict=True)
        if isinstance(item, ast.AnnAssign)
        and not ast.unparse(item.annotation).endswith(("Config", "ClassVar[str]"))
        and not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant))
    ]
    assert without_help == []


@pytest.mark.parametrize("options", [["--ppo.total_episodes", "1e3"], ["--ppo.total_episodes=1E+3"]])
def test_whole_numbers_may_be_written_with_an_exponent(options):
    assert parse(PPOJob, [*NEEDED, *options]).ppo.total_episodes == 1000
    with pytest.raises(UserError, match=r"ppo\.total_episodes is 1\.5, but must be a whole number"):
        parse(PPOJob, [*NEEDED, "--ppo.total_episodes", "1.5e0"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0, but must be null or positive"),
        ({"temperature": -0.5}, "temperature is -0.5, but must be null or at least 0"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1, but must be null or at least 0"),
        (
            {"min_new_tokens": 4, "max_new_tokens": 4},
            "min_new_tokens is 4, but must be null, or at least 0 and below max_new_tokens = 4",
        ),
        ({"stop_ids": []}, "stop_ids is [], but must be null or not empty"),
        ({"stop_strings": [""]}, "stop_strings is [''], but must be without empty strings"),
        ({"min_new_tokens": 3, "max_new_tokens": 4, "stop_strings": [], "temperature": 0.0}, None),
        ({"min_new_tokens": 0}, None),
    ],
)
def test_settings_of_generate_are_checked(settings, message):
    assert rejection(GenerateJob, {"model": "m", "prompt": "p", **settings}) == message


MIX = """
reward:
  clip: 3.0
  sources:
    style: {rule: pattern, parameters: {pattern: "12"}, weight: 0.5}
    quality: {model: runs/reward, batch_size: 16}
"""
MODEL_AND_DATA = ["--model.path", "m", "--data.path", "d"]
STYLE = WeightedSource(rule="pattern", parameters={"pattern": "12"}, weight=0.5)


@pytest.mark.parametrize(
    ("options", "sources"),
    [
        ([], {"style": STYLE, "quality": WeightedSource(model="runs/reward", batch_size=16)}),
        (
            ["--reward.sources.quality.weight", "0", "--reward.sources.quality.batch_size=8"],
            {"style": STYLE, "quality": WeightedSource(model="runs/reward", batch_size=8, weight=0.0)},
        ),
        (["--reward.sources.quality", "null"], {"style": STYLE}),
        (["--reward.sources={new: {function: a.py:b}}"], {"new": WeightedSource(function="a.py:b")}),
        (
            ["--reward.sources.quality=null", "--reward.sources.style.parameters.pattern", "a|b"],
            {"style": WeightedSource(rule="pattern", parameters={"pattern": "a|b"}, weight=0.5)},
        ),
        (["--reward={sources: {quality: null}}"], {"style": STYLE}),
        (
            [
                "--reward.sources.quality=null",
                "--reward.sources.n.rule=repetition",
                "--reward.sources.n.parameters.n=2",
            ],
            {"style": STYLE, "n": WeightedSource(rule="repetition", parameters={"n": 2})},
        ),
    ],
)
def test_a_mix_is_set_in_files_and_options_of_which_later_ones_win(options, sources, tmp_path):
    (tmp_path / "mix.yaml").write_text(MIX)
    job = parse(PPOJob, [*MODEL_AND_DATA, "--config", str(tmp_path / "mix.yaml"), *options])
    assert job.reward == RewardConfig(clip=3.0, sources=sources)
    assert from_dict(PPOJob, yaml.safe_load(to_yaml(job))) == job


def test_a_later_file_adds_to_a_mix_or_removes_it(tmp_path):
    (tmp_path / "mix.yaml").write_text(MIX)
    (tmp_path / "more.yaml").write_text("reward: {sources: {style: {weight: 2}, third: {rule: repetition}}}")
    (tmp_path / "none.yaml").write_text("reward: {sources: {}, model: r}")
    files = [word for name in ("mix", "more") for word in ("--config", str(tmp_path / f"{name}.yaml"))]
    sources = parse(PPOJob, [*MODEL_AND_DATA, *files]).reward.sources
    assert {name: source.weight for name, source in sources.items()} == {"style": 2.0, "quality": 1.0, "third": 1.0}
    reward = parse(PPOJob, [*MODEL_AND_DATA, *files, "--config", str(tmp_path / "none.yaml")]).reward
    assert (reward.sources, reward.model) == ({}, "r")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--reward.sources.a.wieght", "1"],
            "unknown setting reward.sources.a.wieght; did you mean reward.sources.a.we",
        ),
        (
            ["--reward.sources.a.b.c", "1"],
            "unknown setting reward.sources.a.b.c; reward.sources.a takes model, label",
        ),
        (["--reward.sources.a.weight", "x"], "reward.sources.a.weight is x, but must be a finite number"),
        (["--reward.sources.a.weight", "1"], "reward.sources.a has no source; set one of its model, function, rule,"),
        (
            ["--reward.sources.a b.rule", "pattern"],
            "reward.sources has a source named 'a b', but names are letters, dig",
        ),
        (["--reward.sources", "[1]"], "reward.sources is [1], but must be settings under names, such as {name: ...}"),
        (["--reward.sources.a", "3"], "reward.sources.a is 3, but must be settings, such as {model: runs/reward}"),
        (["--reward.sources.a.rule"], "option --reward.sources.a.rule needs a value"),
        (
            ["--reward.sources.a.rule", "pattern", "--reward.sources.a.weight", "0"],
            "every weight in reward.sources is 0, so that there is no score; give one a weight",
        ),
        (
            ["--reward.sources.a.rule", "pattern", "--reward.sources.a.model", "r"],
            "reward.sources.a.model and reward.sources.a.rule are both set, but scores have one source; unset one, as ",
        ),
        (["--reward.sources.a.model", "r", "--reward.sources.a.timeout", "0"], "reward.sources.a.timeout is 0.0, but "),
        (
            ["--eval.judge.sources.x.batch_size", "8"],
            "eval.judge.sources.x has no source; set one of its model, function, rule",
        ),
        (
            ["--reward.rule", "pattern", "--reward.parameters", "3"],
            "reward.parameters is 3, but must be settings under",
        ),
    ],
)
def test_mistakes_in_mappings_are_named_in_full(options, message):
    with pytest.raises(UserError) as error:
        parse(PPOJob, [*MODEL_AND_DATA, *options])
    assert str(error.value).startswith(message)


def test_the_settings_of_one_source_have_a_help(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(PPOJob, [*MODEL_AND_DATA, "--reward.sources.help"])
    assert exit_.value.code == 0
    assert "weight" in capsys.readouterr().out


def test_code_and_secrets_named_by_a_run_folder_need_an_option(tmp_path):
    """In every source of a mix and in every judge."""
    reward = tmp_path / "reward.py"
    reward.write_text("def f(completions):\n    return [0.0 for _ in completions]\n")
    for option in ("--reward.sources.a.function", "--eval.judge.sources.b.function"):
        score = [] if option.startswith("--reward") else ["--reward.model", "r"]
        job = parse(PPOJob, [*MODEL_AND_DATA, *score, option, f"{reward}:f"])
        (tmp_path / "config.yaml").write_text(to_yaml(job))
        with pytest.raises(UserError, match=rf"names the function .*reward.py:f.*give it as {option} .*reward.py:f"):
            evaluation_of_run(tmp_path, [])
        assert evaluation_of_run(tmp_path, [f"{option}={reward}:f"]).reward == job.reward


def test_a_secret_that_a_run_folder_sends_needs_an_option(tmp_path):
    options = ["--reward.url", "http://x/score", "--reward.token_env", "TOKEN"]
    (tmp_path / "config.yaml").write_text(to_yaml(parse(PPOJob, [*MODEL_AND_DATA, *options])))
    with pytest.raises(UserError, match="sends the environment variable TOKEN to http://x/score; if that is"):
        evaluation_of_run(tmp_path, [])
    assert evaluation_of_run(tmp_path, ["--reward.token_env=TOKEN"]).reward.token_env == "TOKEN"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", "reward.url is 'localhost:8000', but must be http:// or https:// and an address"),
        ("http://user:word@host/score", "reward.url has a user name or password, which would be written to files"),
    ],
)
def test_addresses_are_checked(url, message):
    with pytest.raises(UserError, match=message):
        RewardConfig(url=url)


@pytest.mark.parametrize(("typed", "ids"), [("7", [7]), ("[7, 8]", [7, 8]), ("null", None)])
def test_one_number_of_a_list_needs_no_brackets(typed, ids):
    assert parse(PPOJob, [*NEEDED, "--generation.stop_ids", typed]).generation.stop_ids == ids


def test_a_section_may_be_set_as_a_whole(tmp_path):
    (tmp_path / "ppo.yaml").write_text("lr: 0.5\n")
    for value in ("{lr: 0.5}", str(tmp_path / "ppo.yaml")):
        assert parse(PPOJob, [*NEEDED, "--ppo", value]).ppo == PPOConfig(lr=0.5)


def test_steps_and_minibatches_follow_from_the_batch_sizes():
    config = PPOConfig(total_episodes=1000, rollout_batch_size=64, minibatch_size=16)
    assert (config.steps, config.minibatches) == (16, 4)
    config.check_processes(4)
    with pytest.raises(UserError, match="is 16, but must be a multiple of the 3 processes, such as 15"):
        config.check_processes(3)


def test_an_evaluation_takes_its_settings_from_the_run(tmp_path):
    job = parse(PPOJob, [*NEEDED, "--generation.temperature", "0.7", "--model.lora.rank", "4", "--seed", "5"])
    (tmp_path / "config.yaml").write_text(to_yaml(job))
    evaluation = evaluation_of_run(tmp_path, ["--eval.prompts", "7"])
    assert (evaluation.model.path, evaluation.baseline, evaluation.seed) == (str(tmp_path / "model"), "m", 5)
    assert (evaluation.generation, evaluation.reward, evaluation.eval.prompts) == (job.generation, job.reward, 7)
    assert evaluation.model.lora.rank == 0


def test_an_evaluation_runs_code_inside_the_run_folder_only_by_name(tmp_path):
    file = tmp_path / "score.py"
    source = ["--model.path", "m", "--data.path", "p.jsonl", "--reward.function", f"{file}:score"]
    (tmp_path / "config.yaml").write_text(to_yaml(parse(PPOJob, source)))
    with pytest.raises(UserError, match=r"score.py:score, whose file lies in the run folder; .*--reward.function"):
        evaluation_of_run(tmp_path, [])
    job = evaluation_of_run(tmp_path, ["--reward.function", f"{file}:score"])
    assert job.reward.function == f"{file}:score"


# ------------------------------------------------------------------------------------- every value that is rejected

GROUPS = {
    "model": ModelConfig,
    "model.lora": LoraConfig,
    "scratch": ScratchConfig,
    "data": DataConfig,
    "generation": GenerationConfig,
    "reward": RewardConfig,
    "environment": EnvironmentConfig,
    "eval.judge": JudgeConfig,
    "eval": EvalConfig,
    "checkpoint": CheckpointConfig,
    "training": TrainingConfig,
    "ppo": PPOConfig,
    "critic": CriticConfig,
    "ptx": PTXConfig,
    "dpo": DPOConfig,
}


def job_of(**groups):
    """A PPO job; `ppo={"lr": 1.0}` for its groups, as a file would have it."""
    model = {"path": "m"} | groups.pop("model", {})
    if "lora" in model:
        model["lora"] = LoraConfig(**model["lora"])
    made = {
        name: GROUPS[name](**settings) if isinstance(settings, dict) else settings for name, settings in groups.items()
    }
    return PPOJob(model=ModelConfig(**model), **made)


def rejection(make, settings):
    """The error message of a group or a job for these settings; None if they are accepted."""
    try:
        make(**settings)
    except UserError as error:
        return str(error)
    return None


POSITIVE = {
    "scratch": ("vocab_size", "hidden_size", "num_layers", "num_heads", "max_positions"),
    "data": ("max_prompt_length",),
    "model.lora": ("alpha",),
    "generation": ("max_new_tokens",),
    "reward": ("overlong_buffer", "batch_size", "max_in_flight"),
    "environment": ("max_turns", "max_tokens"),
    "eval.judge": ("batch_size", "max_in_flight"),
    "eval": ("prompts", "batch_size"),
    "training": ("epochs", "batch_size", "microbatch_size", "max_length", "lr", "adam_eps", "max_grad_norm"),
    "ppo": (
        *("total_episodes", "rollout_batch_size", "minibatch_size", "microbatch_size", "ppo_epochs"),
        *("samples_per_prompt", "lr", "max_grad_norm", "adam_eps", "clip_range", "log_ratio_clamp"),
        *("kl_penalty_beta", "kl_penalty_target", "reference_update_rate"),
    ),
    "critic": ("pretraining_patience",),
    "ptx": ("coef", "batch_size"),
    "dpo": ("beta",),
}
NULL_OR_POSITIVE = {
    "generation": ("max_rows",),
    "reward": ("clip", "batch_tokens", "timeout"),
    "environment": ("timeout",),
    "eval.judge": ("batch_tokens", "timeout"),
    "eval": ("patience",),
    "checkpoint": ("keep",),
    "critic": ("lr",),
    "ppo": (
        *("microbatch_tokens", "clip_range_value", "kl_target", "kl_horizon", "target_kl", "clip_range_high"),
        *("lam_length_alpha", "reference_update_steps"),
    ),
}
NOT_NEGATIVE = {
    "reward": ("min_length", "overlong_penalty", "retries"),
    "eval.judge": ("retries",),
    "generation": ("temperature",),
    "eval": ("every", "samples"),
    "checkpoint": ("every",),
    "training": ("warmup_steps", "weight_decay", "eval_every"),
    "ppo": ("warmup_steps", "weight_decay", "vf_coef", "ent_coef", "kl_coef", "kl_gain", "refill_rounds"),
    "critic": ("warmup_steps", "pretraining_steps"),
}


def number(group, name, value):
    """The number in the setting's own type."""
    return float(value) if "float" in str(setting_types(GROUPS[group])[name]) else value


VALUES = [
    *((g, {n: number(g, n, bad)}, n, "positive") for g, names in POSITIVE.items() for n in names for bad in (0, -1)),
    *(
        (g, {n: number(g, n, bad)}, n, "null or positive")
        for g, names in NULL_OR_POSITIVE.items()
        for n in names
        for bad in (0, -1)
    ),
    *((g, {n: number(g, n, -1)}, n, "at least 0") for g, names in NOT_NEGATIVE.items() for n in names),
    *(("ppo", {n: bad}, n, "between 0 and 1") for n in ("gamma", "lam") for bad in (-0.1, 1.1, math.nan)),
    *(("ppo", {"lam_critic": bad}, "lam_critic", "null or between 0 and 1") for bad in (-0.1, 1.1, math.nan)),
    *(("ppo", {n: math.nan}, n, "positive") for n in ("lr", "clip_range", "kl_penalty_target")),
    *(("ppo", {"dual_clip": bad}, "dual_clip", "null or above 1") for bad in (0.0, 1.0)),
    ("ppo", {"clip_range": 1.0}, "clip_range", "below 1"),
    ("ppo", {"reference_update_rate": 1.5}, "reference_update_rate", "at most 1"),
    *(
        (group, {"model": "r", "device": bad}, "device", "a device as torch names it: cpu, cuda, cuda:1, mps, ...")
        for group in ("reward", "eval.judge")
        for bad in ("GPU 1", "cuda:", "cuda:x")
    ),
    *(("ppo", {"adam_betas": bad}, "adam_betas", "at least 0 and below 1") for bad in ((0.9, 1.0), (-0.1, 0.9))),
    (
        *("ppo", {"use_reference": False}, "use_reference"),
        "true unless ppo.kl_coef is 0, because the KL penalty needs the reference",
    ),
    (
        *("ppo", {"minibatch_size": 48}, "minibatch_size"),
        "a divisor of ppo.rollout_batch_size = 64, such as 16, 32, 64",
    ),
    (
        *("ppo", {"samples_per_prompt": 3}, "samples_per_prompt"),
        "a divisor of ppo.rollout_batch_size = 64, such as 1, 2, 4",
    ),
    (
        *("ppo", {"warmup_steps": 2, "total_episodes": 128}, "warmup_steps"),
        "below the run's 2 steps (ppo.total_episodes / ppo.rollout_batch_size)",
    ),
    (
        *("ppo", {"kl_horizon": 12, "kl_target": 6.0}, "kl_horizon"),
        "above a fifth of ppo.rollout_batch_size = 64, or one step could take kl_coef to 0",
    ),
    *(
        ("ppo", {"estimator": e, "samples_per_prompt": 1}, "samples_per_prompt", condition)
        for e in ("rloo", "grpo")
        for condition in [f"at least 2 with ppo.estimator {e}, which compares the responses to a prompt"]
    ),
    ("model.lora", {"rank": -1}, "rank", "0 (train all weights) or a positive rank"),
    *(("scratch", {"dropout": bad}, "dropout", "at least 0 and below 1") for bad in (-0.1, 1.0)),
    ("scratch", {"vocab_size": 259}, "vocab_size", "at least 260 (256 bytes, special tokens)"),
    ("scratch", {"num_heads": 3}, "num_heads", "a divisor of scratch.hidden_size = 128, such as 1, 2, 4"),
    (
        *("scratch", {"hidden_size": 12, "num_heads": 4}, "hidden_size"),
        "an even multiple of scratch.num_heads = 4, because rotary embeddings rotate pairs of coordinates",
    ),
    *(("data", {"eval_fraction": bad}, "eval_fraction", "at least 0 and below 1") for bad in (-0.1, 1.0)),
    ("data", {"more": ["b"], "shares": [1.0]}, "shares", "a list of 2 numbers, one a dataset"),
    *(
        (*("data", {"more": ["b"], "shares": bad}, "shares"), "a list of shares of at least 0.001 that add up to 1")
        for bad in ([0.5, 0.6], [1.0, 0.0], [0.9999, 0.0001])
    ),
    ("generation", {"stop_ids": []}, "stop_ids", "null or not empty"),
    *(
        ("generation", {"min_new_tokens": bad}, "min_new_tokens", "at least 0 and below generation.max_new_tokens = 64")
        for bad in (-1, 64, 65)
    ),
    ("generation", {"stop_strings": ["a", ""]}, "stop_strings", "without empty strings"),
    *(
        ("reward", {"on_error": "skip", "max_error_fraction": bad}, "max_error_fraction", "at least 0 and below 1")
        for bad in (1.0, -0.1)
    ),
    ("reward", {"min_length": 1, "short_penalty": -1.0}, "short_penalty", "at least 0, because it is subtracted"),
    ("reward", {"missing_eos_penalty": -1.0}, "missing_eos_penalty", "null or at least 0, because it is subtracted"),
    *(
        (g, {"function": "f.py"}, "function", "of the form file.py:name or module:name")
        for g in ("reward", "eval.judge")
    ),
    *(("training", {"adam_betas": bad}, "adam_betas", "at least 0 and below 1") for bad in ((0.9, 1.0), (-0.1, 0.9))),
    *(
        ("dpo", {"label_smoothing": bad}, "label_smoothing", "at least 0 and below 0.5")
        for bad in (-0.1, 0.5, math.nan)
    ),
    *(("ptx", {"path": "t", "max_length": bad}, "max_length", "at least 2") for bad in (1, 0)),
]


@pytest.mark.parametrize(("group", "settings", "name", "condition"), VALUES)
def test_every_value_out_of_range_is_rejected(group, settings, name, condition):
    value = settings[name]
    assert rejection(GROUPS[group], settings) == f"{group}.{name} is {value!r}, but must be {condition}"


WITHOUT_CRITIC = {"rloo": {"samples_per_prompt": 2}, "grpo": {"samples_per_prompt": 2}, "reinforce_pp": {}, "remax": {}}
OTHER = {"lam": 0.5, "lam_critic": 0.5, "lam_length_alpha": 0.05, "vf_coef": 0.2, "clip_range_value": None}
"""Values that are not the defaults."""
SOURCES = {"reward": WeightedSource(rule="pattern"), "eval.judge": SourceSettings(rule="pattern")}
OF_ONE_SOURCE = {
    **{"model": "r", "function": "f.py:g", "rule": "pattern", "parameters": {"n": 2}, "timeout": 3.0},
    **{
        "batch_size": 8,
        "batch_tokens": 8,
        "normalize": False,
        "label": "good",
        "chat_template": "t.jinja",
        "dtype": "bfloat16",
        "device": "cuda:1",
        "offload": True,
    },
    **{"url": "http://x/", "token_env": "T", "retries": 2, "max_in_flight": 2},
}
"""Settings of one source, at other values than their defaults."""

UNUSED = [
    *(
        (group, {"batch_tokens": 512, "batch_size": 8}, "batch_size", f"{group}.batch_tokens limits the forward passes")
        for group in ("reward", "eval.judge")
    ),
    (
        *("ppo", {"microbatch_tokens": 512, "microbatch_size": 8}, "microbatch_size"),
        "ppo.microbatch_tokens limits the forward passes",
    ),
    *(
        ("ppo", {"estimator": e, **more, name: OTHER[name]}, name, f"ppo.estimator {e} has no critic")
        for e, more in WITHOUT_CRITIC.items()
        for name in ppo.CRITIC_SETTINGS
    ),
    *(
        (
            *("ppo", {"estimator": e, "samples_per_prompt": 2, "gamma": 0.9}, "gamma"),
            f"ppo.estimator {e} rewards whole responses",
        )
        for e in ("rloo", "grpo")
    ),
    *(
        ("ppo", {"estimator": e, **more, "grpo_divide_by_std": False}, "grpo_divide_by_std", f"ppo.estimator is {e}")
        for e, more in (WITHOUT_CRITIC | {"gae": {}}).items()
        if e != "grpo"
    ),
    (
        *("ppo", {"lam_length_alpha": 0.05, "lam": 0.9}, "lam"),
        "ppo.lam_length_alpha sets lambda for each response",
    ),
    ("ppo", {"kl_penalty_beta": 2.0}, "kl_penalty_beta", "ppo.policy_loss is clip"),
    ("ppo", {"kl_penalty_target": 0.02}, "kl_penalty_target", "ppo.policy_loss is clip"),
    *(
        ("ppo", {"policy_loss": "kl_penalty", name: value}, name, "ppo.policy_loss is kl_penalty")
        for name, value in {"clip_range": 0.1, "clip_range_high": 0.28, "dual_clip": 3.0}.items()
    ),
    *(
        (
            *("ppo", {"estimator": e, "skip_equal_groups": True}, "skip_equal_groups"),
            f"ppo.estimator {e} does not compare the responses to a prompt",
        )
        for e in ("gae", "reinforce_pp", "remax")
    ),
    ("ppo", {"refill_rounds": 2}, "refill_rounds", "ppo.skip_equal_groups is false"),
    (
        *("ppo", {"use_reference": False, "kl_coef": 0.0, "offload_reference": True}, "offload_reference"),
        "ppo.use_reference is false",
    ),
    *(
        (group, {"adam_8bit": True, "adam_fused": False}, "adam_fused", f"{group}.adam_8bit has a kernel of its own")
        for group in ("ppo", "training")
    ),
    (
        *("ppo", {"use_reference": False, "kl_coef": 0.0, "reference_update_steps": 2}, "reference_update_steps"),
        "ppo.use_reference is false",
    ),
    ("ppo", {"reference_update_rate": 0.5}, "reference_update_rate", "ppo.reference_update_steps is null"),
    ("ppo", {"kl_horizon": 5000}, "kl_horizon", "ppo.kl_target is null"),
    ("ppo", {"kl_gain": 1.0}, "kl_gain", "ppo.kl_target is null"),
    ("ppo", {"kl_controller": "ziegler"}, "kl_controller", "ppo.kl_target is null"),
    (
        *("ppo", {"kl_target": 6.0, "kl_controller": "ziegler", "kl_gain": 1.0}, "kl_gain"),
        "ppo.kl_controller is ziegler",
    ),
    *(
        ("ppo", {"kl_coef": 0.0, **settings}, name, "ppo.kl_coef is 0, which the adaptive controller cannot raise")
        for name, settings in {
            "kl_target": {"kl_target": 6.0},
            "kl_estimator": {"kl_estimator": "full"},
        }.items()
    ),
    ("data", {"shares": [1.0]}, "shares", "data.more is empty"),
    ("dpo", {"loss": "ipo", "label_smoothing": 0.1}, "label_smoothing", "dpo.loss is ipo"),
    ("model.lora", {"alpha": 32.0}, "alpha", "model.lora.rank is 0"),
    ("model.lora", {"targets": ["q_proj"]}, "targets", "model.lora.rank is 0"),
    *(
        ("environment", {name: value}, name, "environment.path is null")
        for name, value in {
            "parameters": {"a": 1},
            "max_turns": 2,
            "max_tokens": 9,
            "chat": True,
            "timeout": 1.0,
        }.items()
    ),
    ("reward", {"short_penalty": 2.0}, "short_penalty", "reward.min_length is 0"),
    ("eval", {"every": 0, "patience": 2}, "patience", "eval.every is 0"),
    ("reward", {"max_error_fraction": 0.5}, "max_error_fraction", "reward.on_error is stop"),
    *(
        (group, {"model": "r", name: value}, name, f"only {group}.function and {group}.rule read it")
        for group in ("reward", "eval.judge")
        for name, value in {"parameters": {"n": 2}}.items()
    ),
    *(
        (
            *(group, {"model": "r", "timeout": 5.0}, "timeout"),
            f"only {group}.function and {group}.rule and {group}.url read it",
        )
        for group in ("reward", "eval.judge")
    ),
    *(
        (*(group, {"rule": "pattern", "batch_size": 8}, "batch_size"), f"only {group}.model and {group}.url read it")
        for group in ("reward", "eval.judge")
    ),
    *(
        (group, {"rule": "pattern", name: value}, name, f"only {group}.model reads it")
        for group in ("reward", "eval.judge")
        for name, value in {
            "normalize": False,
            "batch_tokens": 8,
            "label": "good",
            "chat_template": "t",
            "dtype": "bfloat16",
            "device": "cuda:1",
            "offload": True,
        }.items()
    ),
    *(
        (group, {"model": "r", name: value}, name, f"only {group}.url reads it")
        for group in ("reward", "eval.judge")
        for name, value in {"token_env": "T", "retries": 2, "max_in_flight": 2}.items()
    ),
    *(
        (group, {"url": "http://x/", "normalize": False}, "normalize", f"only {group}.model reads it")
        for group in ("reward", "eval.judge")
    ),
    *(
        (group, {"sources": {"a": source}, name: value}, name, f"{group}.sources names the sources")
        for group, source in SOURCES.items()
        for name, value in OF_ONE_SOURCE.items()
    ),
    *(
        (group, {"function": "f.py:g", name: value}, name, f"{group}.function returns the scores")
        for group in ("reward", "eval.judge")
        for name, value in {
            "batch_size": 8,
            "batch_tokens": 8,
            "normalize": False,
            "dtype": "auto",
            "device": "cpu",
            "offload": True,
        }.items()
    ),
    *(
        (group, {"model": "r", "device": "cpu", "offload": True}, "offload", f"{group}.device is cpu")
        for group in ("reward", "eval.judge")
    ),
    ("critic", {"pretraining_patience": 3}, "pretraining_patience", "critic.pretraining_steps is 0"),
    *(
        (
            "critic",
            {"kind": kind, "init": "x"},
            "init",
            f"critic.kind is {kind}, and only separate starts from weights that it names",
        )
        for kind in ("auto", "shared", "adapter")
    ),
    *(
        ("ptx", {name: value}, name, "ptx.path is null")
        for name, value in {"split": "test", "coef": 2.0, "batch_size": 4, "max_length": 64}.items()
    ),
    *(
        (
            "reward",
            {"truncated": kind, "missing_eos_penalty": 2.0},
            "missing_eos_penalty",
            f"reward.truncated is {kind}",
        )
        for kind in ("overlong", "bootstrap", "mask")
    ),
    *(
        ("reward", {"truncated": kind, name: value}, name, f"reward.truncated is {kind}")
        for kind in ("replace", "subtract", "bootstrap", "mask")
        for name, value in {"overlong_penalty": 2.0, "overlong_buffer": 4}.items()
    ),
]


@pytest.mark.parametrize(("group", "settings", "name", "reason"), UNUSED)
def test_every_setting_without_effect_is_rejected(group, settings, name, reason):
    message = rejection(GROUPS[group], settings) or ""
    start, _, default = message.partition(f"; remove it, or override it with its default, --{group}.{name} ")
    assert start == f"{group}.{name} is {settings[name]!r}, but it has no effect because {reason}"
    fixed = {**settings, name: yaml.safe_load(default)}  # the option in the message is a way out of this message
    assert f"{group}.{name} is" not in (rejection(GROUPS[group], fixed) or "")


COMBINATIONS = [
    *(
        (
            partial(job, model=ModelConfig(path="m"), data=DataConfig(path="d", more=["b"])),
            {},
            f"data.more is ['b'], but it has no effect because {command} trains on one dataset; remove it, or override "
            "it with its default, --data.more []",
        )
        for job, command in ((SFTJob, "rlhf sft"), (RewardJob, "rlhf reward"), (DPOJob, "rlhf dpo"))
    ),
    (
        job_of,
        {"generation": {"temperature": 0.0}},
        "generation.temperature is 0.0, but must be positive, because PPO learns from responses that vary",
    ),
    (
        partial(job_of, model={"lora": {"rank": 2}}),
        {"ppo": {"offload_reference": True}},
        "ppo.offload_reference is True, but it has no effect because model.lora.rank is set, and the reference is the "
        "policy's own frozen base; remove it, or override it with its default, --ppo.offload_reference false",
    ),
    *(
        (
            partial(job_of, model={"shard": True}),
            {"ppo": {name: True}},
            f"ppo.{name} is True, but it has no effect because model.shard is true, and each process holds only a "
            f"share of it; remove it, or override it with its default, --ppo.{name} false",
        )
        for name in ("offload_reference", "offload_optimizer")
    ),
    (
        ModelConfig,
        {"load_in_4bit": True},
        "model.load_in_4bit is true and model.lora.rank is 0, but 4-bit weights cannot be trained; train adapters "
        "on them with --model.lora.rank 16",
    ),
    *(
        (
            GROUPS[group],
            {"model": "r", "function": "f.py:g"},
            f"{group}.model and {group}.function are both set, but scores have one source; unset one, as with "
            f"--{group}.function null",
        )
        for group in ("reward", "eval.judge")
    ),
    (
        job_of,
        {"environment": {"path": "e.py:E"}, "reward": {"function": "f.py:g"}},
        "environment.path gives the scores, but a reward source is set too; unset one, as with --environment.path null",
    ),
    *(
        (
            job_of,
            {"environment": {"path": "e.py:E"}, "ppo": {name: value}},
            f"ppo.{name} {value} works on one turn, but environment.path lets the policy take several; change one",
        )
        for name, value in (("old_logprobs", "sampler"), ("estimator", "remax"))
    ),
    (
        job_of,
        {"environment": {"path": "e.py:E"}, "generation": {"min_new_tokens": 2}},
        "generation.min_new_tokens is 2, but with environment.path it would apply to each turn when sampled and to the "
        "whole episode when trained on; set it to 0",
    ),
    (
        job_of,
        {"environment": {"path": "e.py:E", "max_tokens": 3}, "generation": {"max_new_tokens": 8}},
        "environment.max_tokens is 3, but must be at least generation.max_new_tokens = 8, the longest turn",
    ),
    (
        job_of,
        {"environment": {"path": "e.py"}},
        "environment.path is 'e.py', but must be of the form file.py:Class or module:Class",
    ),
    (
        job_of,
        {"ppo": {"vf_coef": 0.0}, "critic": {"warmup_steps": 1}},
        "ppo.vf_coef is 0, but must be positive with critic.warmup_steps or critic.pretraining_steps, which train the "
        "critic alone",
    ),
    (
        PPOConfig,
        {"estimator": "reinforce_pp", "whiten_advantages": False},
        "ppo.whiten_advantages is false, but whitening by the batch is the only baseline of ppo.estimator "
        "reinforce_pp; set it to null",
    ),
    (
        PPOConfig,
        {"kl_placement": "loss"},
        "ppo.kl_estimator is k1 and ppo.kl_placement is loss, but the gradient of k1 as a loss is zero in expectation, "
        "so that it would not bound the KL; use k2, k3 or full",
    ),
    (
        PPOConfig,
        {"old_logprobs": "sampler", "policy_loss": "kl_penalty"},
        "ppo.old_logprobs is sampler, but ppo.policy_loss kl_penalty needs the policy's forward pass over the "
        "responses; set ppo.old_logprobs to recomputed, or ppo.policy_loss to clip",
    ),
    (
        PPOConfig,
        {"old_logprobs": "sampler", "kl_estimator": "full"},
        "ppo.old_logprobs is sampler, but the token rewards of ppo.kl_estimator full need the policy's forward pass "
        "over the responses; set ppo.old_logprobs to recomputed, or ppo.kl_estimator to k1, k2 or k3",
    ),
    (
        CriticConfig,
        {"kind": "separate", "init": "x", "head_init": "normal"},
        "critic.head_init is 'normal', but critic.init = 'x' includes the value head; remove one of them",
    ),
    (
        job_of,
        {"critic": {"kind": "adapter"}},
        "critic.kind is adapter, but model.lora.rank is 0, and an adapter critic shares the frozen base of a policy "
        "with adapters; set --model.lora.rank 16, or critic.kind to shared or separate",
    ),
    (
        job_of,
        {"critic": {"kind": "separate", "init": "reward"}},
        "critic.init is reward, but reward.model is not set; set it, or critic.init to a path",
    ),
    (
        job_of,
        {"critic": {"kind": "separate", "init": "reward"}, "reward": {"function": "f.py:g"}},
        "critic.init is reward, but reward.model is not set; set it, or critic.init to a path",
    ),
    (
        job_of,
        {"critic": {"warmup_steps": 2}, "ppo": {"total_episodes": 128}},
        "critic.warmup_steps is 2, but must be below the run's 2 steps, or the policy is never trained",
    ),
    *(
        (
            job_of,
            {"reward": {"truncated": "bootstrap"}, "ppo": {"estimator": e, **more}},
            f"reward.truncated is bootstrap, but ppo.estimator {e} has no critic to bootstrap from; use replace, "
            "subtract, overlong or mask",
        )
        for e, more in WITHOUT_CRITIC.items()
    ),
    *(
        (
            job_of,
            {"critic": settings, "ppo": {"estimator": "remax"}},
            f"critic.{name} is {settings[name]!r}, but it has no effect because ppo.estimator remax has no critic; "
            f"remove it, or override it with its default, --critic.{name} {default}",
        )
        for name, settings, default in [
            ("kind", {"kind": "separate"}, "auto"),
            ("head_init", {"head_init": "normal"}, "zero"),
            ("lr", {"lr": 1e-3}, "null"),
            ("warmup_steps", {"warmup_steps": 3}, "0"),
            ("pretraining_steps", {"pretraining_steps": 3}, "0"),
        ]
    ),
    (
        job_of,
        {"reward": {"truncated": "overlong", "overlong_buffer": 9}, "generation": {"max_new_tokens": 8}},
        "reward.overlong_buffer is 9, but must be at most generation.max_new_tokens = 8",
    ),
    (
        job_of,
        {"reward": {"min_length": 9}, "generation": {"max_new_tokens": 8}},
        "reward.min_length is 9, but must be at most generation.max_new_tokens = 8, or every response is too short",
    ),
    *(
        (kind, {"seed": seed, **more}, f"seed is {seed}, but must be at least 0 and below 2**32")
        for kind, more in {
            PPOJob: {"model": ModelConfig(path="m")},
            SFTJob: {"model": ModelConfig(path="m"), "data": DataConfig(path="d")},
            RewardJob: {"model": ModelConfig(path="m"), "data": DataConfig(path="d")},
            EvaluateJob: {"model": ModelConfig(path="m"), "data": DataConfig(path="d")},
        }.items()
        for seed in (-1, 2**32)
    ),
    *(
        (
            kind,
            {"model": ModelConfig(path="m"), "data": DataConfig(path="d"), "export": "merged"},
            "export is merged, but model.lora.rank is 0, so that there is no adapter to merge and model/ holds whole "
            "weights anyway; remove it, or set the rank",
        )
        for kind in (PPOJob, SFTJob)
    ),
    *(
        (kind, settings, f"{key} is not set; give it with --{key} or in a --config file")
        for kind, settings, key in [
            (PPOJob, {}, "model.path"),
            (SFTJob, {"model": ModelConfig(path="m")}, "data.path"),
            (RewardJob, {"data": DataConfig(path="d")}, "model.path"),
            (RewardJob, {"model": ModelConfig(path="m")}, "data.path"),
            (EvaluateJob, {"data": DataConfig(path="d")}, "model.path"),
            (EvaluateJob, {"model": ModelConfig(path="m")}, "data.path"),
        ]
    ),
    *(
        (
            SFTJob,
            {"data": DataConfig(path="d"), **settings},
            "set one of model.path (start from a model) and scratch.model_type (train a new one)",
        )
        for settings in ({}, {"model": ModelConfig(path="m"), "scratch": ScratchConfig(model_type="llama")})
    ),
]


@pytest.mark.parametrize(("make", "settings", "message"), COMBINATIONS)
def test_every_impossible_combination_is_rejected(make, settings, message):
    assert rejection(make, settings) == message


ACCEPTED = [
    (GenerationConfig, {"temperature": 0.0}),
    (PPOConfig, {"kl_coef": 0.0, "use_reference": False}),
    (PPOConfig, {"gamma": 0.0, "lam": 0.0, "lam_critic": 0.0, "kl_coef": 0.0, "vf_coef": 0.0}),
    (PPOConfig, {"gamma": 1.0, "lam": 1.0, "lam_critic": 1.0, "dual_clip": 1.01, "clip_range": 0.99}),
    (PPOConfig, {"clip_range_value": None, "target_kl": None, "clip_range_high": None, "warmup_steps": 0}),
    (PPOConfig, {"warmup_steps": 1, "total_episodes": 128}),
    (PPOConfig, {"warmup_steps": 2, "total_episodes": 128, "lr_schedule": "constant"}),
    (PPOConfig, {"kl_target": 6.0, "kl_horizon": 13}),
    (PPOConfig, {"kl_target": 6.0, "kl_gain": 0.0}),
    (PPOConfig, {"kl_target": 6.0, "kl_controller": "ziegler", "kl_horizon": 10_000}),
    (PPOConfig, {"lam_length_alpha": 0.05, "lam_critic": 1.0}),
    (PPOConfig, {"policy_loss": "kl_penalty", "kl_penalty_beta": 2.0, "kl_penalty_target": 0.02}),
    *((PPOConfig, {"kl_placement": "loss", "kl_estimator": kind}) for kind in ("k2", "k3", "full")),
    *((PPOConfig, {"estimator": e, **more}) for e, more in WITHOUT_CRITIC.items()),
    (PPOConfig, {"old_logprobs": "sampler", "kl_placement": "loss", "kl_estimator": "full"}),
    (PPOConfig, {"estimator": "grpo", "samples_per_prompt": 4, "grpo_divide_by_std": False}),
    (PPOConfig, {"estimator": "reinforce_pp", "gamma": 0.9, "whiten_advantages": True}),
    (PPOConfig, {"estimator": "remax", "gamma": 0.9, "samples_per_prompt": 2}),
    (GenerationConfig, {"max_new_tokens": 1, "min_new_tokens": 0}),
    (GenerationConfig, {"max_new_tokens": 8, "min_new_tokens": 7, "max_rows": 1, "stop_strings": ["a"]}),
    (RewardConfig, {"missing_eos_penalty": None, "clip": None, "min_length": 1, "short_penalty": 0.0}),
    (RewardConfig, {"truncated": "subtract", "missing_eos_penalty": 2.0}),
    (RewardConfig, {"truncated": "overlong", "overlong_penalty": 0.0, "overlong_buffer": 1}),
    (LoraConfig, {"rank": 0}),
    (ModelConfig, {"load_in_4bit": True, "lora": LoraConfig(rank=1)}),
    (CriticConfig, {"kind": "separate", "init": "x", "lr": None}),
    (CriticConfig, {"head_init": "normal", "pretraining_steps": 1, "pretraining_patience": 1}),
    (PTXConfig, {"path": "t", "max_length": 2, "batch_size": 1}),
    (ScratchConfig, {"vocab_size": 260, "dropout": 0.0, "hidden_size": 8, "num_heads": 4}),
    (job_of, {"critic": {"kind": "adapter"}, "model": {"lora": {"rank": 1}}}),
    (job_of, {"export": "merged", "model": {"lora": {"rank": 1}}}),
    (job_of, {"critic": {"kind": "separate", "init": "reward"}, "reward": {"model": "r"}}),
    (job_of, {"critic": {"warmup_steps": 1}, "ppo": {"total_episodes": 128}}),
    (job_of, {"reward": {"truncated": "bootstrap"}}),
    (job_of, {"reward": {"truncated": "overlong", "overlong_buffer": 8}, "generation": {"max_new_tokens": 8}}),
    (job_of, {"reward": {"min_length": 8}, "generation": {"max_new_tokens": 8}}),
    *(
        (job_of, {"reward": {"truncated": "mask"}, "ppo": {"estimator": e, **more}})
        for e, more in WITHOUT_CRITIC.items()
    ),
    (job_of, {"seed": 2**32 - 1}),
]


@pytest.mark.parametrize(("make", "settings"), ACCEPTED)
def test_values_at_the_edge_of_their_range_are_accepted(make, settings):
    assert rejection(make, settings) is None


def test_every_check_fails_in_one_of_the_cases_above(monkeypatch):
    """Every condition that the cases evaluate is violated by one of them."""
    evaluated, violated = set(), set()
    original_reject_unused = checks.reject_unused

    def generic(text):
        return re.sub(r"\d+|(?<=estimator )\w+(?= has)", "*", text)

    def check(holds, key, value, condition):
        evaluated.add((key, generic(condition)))
        if not holds:
            violated.add((key, generic(condition)))
            raise UserError(key)

    def reject_unused(group, names, reason, section=None):
        evaluated.update((f"{section or group.section}.{name}", generic(reason)) for name in names)
        try:
            original_reject_unused(group, names, reason, section)
        except UserError as error:
            violated.add((str(error).split(" is ")[0], generic(reason)))
            raise

    for module in (checks, commands, dpo, environment, jobs, ppo, scores, shared):
        monkeypatch.setattr(module, "check", check)
        monkeypatch.setattr(module, "reject_unused", reject_unused, raising=False)
    cases = [(GROUPS[group], settings) for group, settings, *_ in VALUES + UNUSED]
    for make, settings in cases + [(make, settings) for make, settings, _ in COMBINATIONS] + ACCEPTED:
        rejection(make, settings)
    # These need another setting, which is rejected before them.
    never_violated = {(f"critic.{name}", "ppo.estimator * has no critic") for name in ("init", "pretraining_patience")}
    never_violated |= {("ppo.kl_placement", "ppo.kl_coef is *, which the adaptive controller cannot raise")}
    of_named_sources = {(key, reason) for key, reason in evaluated if ".sources." in key}  # as those of one source
    assert evaluated - violated - of_named_sources == never_violated
    assert len(violated) > 90


@pytest.mark.parametrize("setting", [{"offload": True}, {"device": "cuda:1"}])
def test_sharded_reward_models_have_no_place_of_their_own(setting):
    with pytest.raises(UserError, match=rf"model\.shard is true and a source has {next(iter(setting))}"):
        PPOJob(model=ModelConfig(path="m", shard=True), reward=RewardConfig(model="r", **setting))


def test_whitening_follows_the_setting_or_else_the_estimators_paper():
    whitens = {
        e: [PPOConfig(estimator=e, **more, whiten_advantages=setting).whitens for setting in (None, True)]
        for e, more in (WITHOUT_CRITIC | {"gae": {}}).items()
    }
    assert whitens == {
        "gae": [True, True],
        "reinforce_pp": [True, True],
        "rloo": [False, True],
        "grpo": [False, True],
        "remax": [False, True],
    }
    assert PPOConfig(whiten_advantages=False).whitens is False
    assert PPOConfig(estimator="grpo", samples_per_prompt=4).prompts_per_step == 16
    assert [PPOConfig(estimator=e, **more).has_critic for e, more in WITHOUT_CRITIC.items()] == [False] * 4


def test_time_scale_of_the_adaptive_kl_coefficient():
    """With pi a share of the run, but never so few rollout batches that the coefficient follows noise."""
    batches = {"rollout_batch_size": 64, "minibatch_size": 64, "kl_target": 6.0}
    assert PPOConfig(total_episodes=64 * 80, **batches).kl_time_scale == 64 * 10
    assert PPOConfig(total_episodes=64 * 16, **batches).kl_time_scale == 64 * 8
    assert PPOConfig(total_episodes=64 * 80, kl_controller="ziegler", **batches).kl_time_scale == 10_000
    assert PPOConfig(total_episodes=64 * 80, kl_horizon=99, **batches).kl_time_scale == 99


@pytest.mark.parametrize("kind", [PPOJob, SFTJob, RewardJob])
def test_null_for_a_setting_that_may_not_be_null_is_reported(kind, tmp_path):
    """In a YAML file the command-line library lets null pass for any type."""
    may_not_be_null = {
        key: hint
        for key, hint in setting_types(kind).items()
        if NoneType not in (hint, *get_args(hint)) and get_origin(hint) is not dict  # of which null takes everything
    }
    assert len(may_not_be_null) >= 30
    for key in may_not_be_null:
        section, _, name = key.rpartition(".")
        lines = [f"{'  ' * depth}{part}:" for depth, part in enumerate(section.split("."))] if section else []
        (tmp_path / "null.yaml").write_text("\n".join([*lines, f"{'  ' * len(lines)}{name}: null"]))
        with pytest.raises(UserError, match=f"^{key} is null, but must be "):
            parse(kind, ["--output", "o", "--config", str(tmp_path / "null.yaml")])


def test_null_for_a_section_and_deep_nesting_are_reported(tmp_path):
    (tmp_path / "null.yaml").write_text("ppo: null")
    with pytest.raises(UserError, match="ppo"):
        parse(PPOJob, ["--output", "o", "--config", str(tmp_path / "null.yaml")])
    (tmp_path / "deep.yaml").write_text("[" * 5000)
    with pytest.raises(UserError, match=r"deep.yaml is nested too deeply for settings"):
        parse(PPOJob, ["--output", "o", "--config", str(tmp_path / "deep.yaml")])
