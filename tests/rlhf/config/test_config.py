"""Settings: what is refused and in which words, and that files and options mean the same."""

import ast
import math
import re
from pathlib import Path

import pytest
import yaml

from rlhf.config import jobs as config_room
from rlhf.config import ppo as ppo_settings
from rlhf.config import shared as settings
from rlhf.config.aliases import ALIASES, UNSUPPORTED
from rlhf.config.jobs import (
    CheckpointConfig,
    CriticConfig,
    DataConfig,
    EvalConfig,
    EvaluateJob,
    GenerationConfig,
    JudgeConfig,
    LoraConfig,
    ModelConfig,
    PPOConfig,
    PPOJob,
    PTXConfig,
    RewardConfig,
    RewardJob,
    ScratchConfig,
    SFTJob,
    TrainingConfig,
    evaluation_of,
)
from rlhf.config.parsing import from_dict, keys_of, parse, to_yaml
from rlhf.errors import UserError

ROOT = Path(__file__).parents[3]
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
        kind,
        [
            *(*JOBS[kind], "--data.eval_split", "te:st", "--seed=3"),
            *("--model.lora.rank", "2", "--model.lora.targets", "[q_proj, v_proj]"),
        ],
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
    package = ROOT / "rlhf"
    code = "".join(f.read_text() for f in package.rglob("*.py") if f.parent.name != "config")
    # A check of a value is no use of it, a property is.
    properties = "".join(f.read_text().partition("@property")[2] for f in (package / "config").glob("*.py"))
    for key in keys_of(kind):
        leaf = key.rsplit(".", 1)[-1]
        assert re.search(rf"\.{leaf}\b", code) or re.search(rf"self\.{leaf}\b", properties), key


def test_every_setting_says_what_it_is():
    """A string under each field: `--help` prints it."""
    trees = [ast.parse((ROOT / "rlhf" / "config" / f"{name}.py").read_text()) for name in ("shared", "ppo")]
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


@pytest.mark.parametrize("options", [["--ppo.total_episodes", "1e3"], ["--ppo.total_episodes=1E+3"]])
def test_whole_numbers_may_be_written_with_an_exponent(options):
    assert parse(PPOJob, [*NEEDED, *options]).ppo.total_episodes == 1000
    with pytest.raises(UserError, match=r"ppo\.total_episodes: Expected a int\. Got value: 1\.5"):
        parse(PPOJob, [*NEEDED, "--ppo.total_episodes", "1.5e0"])


def test_names_from_elsewhere_lead_to_settings_that_exist():
    known = keys_of(PPOJob)
    assert set(ALIASES.values()) <= set(known)
    assert not set(UNSUPPORTED) & {key.rsplit(".", 1)[-1] for key in known}


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


# ------------------------------------------------------------------------------------- every value that is refused

GROUPS = {
    "model": ModelConfig,
    "model.lora": LoraConfig,
    "scratch": ScratchConfig,
    "data": DataConfig,
    "generation": GenerationConfig,
    "reward": RewardConfig,
    "eval.judge": JudgeConfig,
    "eval": EvalConfig,
    "checkpoint": CheckpointConfig,
    "training": TrainingConfig,
    "ppo": PPOConfig,
    "critic": CriticConfig,
    "ptx": PTXConfig,
}


def job_of(**groups):
    """A PPO job; `ppo={"lr": 1.0}` for its groups, as a file would have it."""
    model = {"path": "m"} | groups.pop("model", {})
    if "lora" in model:
        model["lora"] = LoraConfig(**model["lora"])
    made = {name: GROUPS[name](**given) if isinstance(given, dict) else given for name, given in groups.items()}
    return PPOJob(model=ModelConfig(**model), **made)


def refusal(make, given):
    """What a group or a job says to settings that cannot be; None where it takes them."""
    try:
        make(**given)
    except UserError as error:
        return str(error)
    return None


POSITIVE = {
    "scratch": ("vocab_size", "hidden_size", "num_layers", "num_heads", "max_positions"),
    "data": ("max_prompt_length",),
    "model.lora": ("alpha",),
    "generation": ("max_new_tokens", "temperature"),
    "reward": ("overlong_buffer", "batch_size"),
    "eval.judge": ("batch_size",),
    "eval": ("prompts", "batch_size"),
    "training": ("epochs", "batch_size", "microbatch_size", "max_length", "lr", "adam_eps", "max_grad_norm"),
    "ppo": (
        *("total_episodes", "rollout_batch_size", "minibatch_size", "microbatch_size", "ppo_epochs"),
        *("samples_per_prompt", "kl_horizon", "lr", "max_grad_norm", "adam_eps", "clip_range", "log_ratio_clamp"),
        *("kl_penalty_beta", "kl_penalty_target"),
    ),
    "critic": ("pretraining_patience",),
    "ptx": ("coef", "batch_size"),
}
NULL_OR_POSITIVE = {
    "generation": ("max_rows",),
    "reward": ("clip",),
    "checkpoint": ("keep",),
    "critic": ("lr",),
    "ppo": ("clip_range_value", "kl_target", "target_kl", "clip_range_high", "lam_length_alpha"),
}
NOT_NEGATIVE = {
    "reward": ("min_length", "overlong_penalty"),
    "eval": ("every", "samples"),
    "checkpoint": ("every",),
    "training": ("warmup_steps", "weight_decay", "eval_every"),
    "ppo": ("warmup_steps", "weight_decay", "vf_coef", "ent_coef", "kl_coef"),
    "critic": ("warmup_steps", "pretraining_steps"),
}


def number(group, name, value):
    """The number in the setting's own type."""
    return float(value) if "float" in str(keys_of(GROUPS[group])[name]) else value


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
    *(("ppo", {"adam_betas": bad}, "adam_betas", "at least 0 and below 1") for bad in ((0.9, 1.0), (-0.1, 0.9))),
    (
        *("ppo", {"minibatch_size": 48}, "minibatch_size"),
        "a divisor of ppo.rollout_batch_size = 64; near: 16, 32, 64",
    ),
    (
        *("ppo", {"samples_per_prompt": 3}, "samples_per_prompt"),
        "a divisor of ppo.rollout_batch_size = 64; near: 1, 2, 4",
    ),
    (
        *("ppo", {"warmup_steps": 2, "total_episodes": 128}, "warmup_steps"),
        "below the run's 2 steps (ppo.total_episodes / ppo.rollout_batch_size)",
    ),
    (
        *("ppo", {"kl_horizon": 12, "kl_target": 6.0}, "kl_horizon"),
        "above a fifth of ppo.rollout_batch_size = 64, or kl_coef could fall to 0 at once",
    ),
    *(
        ("ppo", {"estimator": e, "samples_per_prompt": 1}, "samples_per_prompt", need)
        for e in ("rloo", "grpo")
        for need in [f"at least 2 with ppo.estimator {e}, which compares the responses to a prompt"]
    ),
    ("model.lora", {"rank": -1}, "rank", "0 (train all weights) or a positive rank"),
    *(("scratch", {"dropout": bad}, "dropout", "at least 0 and below 1") for bad in (-0.1, 1.0)),
    ("scratch", {"vocab_size": 259}, "vocab_size", "at least 260 (256 bytes, special tokens)"),
    ("scratch", {"num_heads": 3}, "num_heads", "a divisor of scratch.hidden_size = 128, such as 1, 2, 4"),
    (
        *("scratch", {"hidden_size": 12, "num_heads": 4}, "hidden_size"),
        "an even multiple of scratch.num_heads = 4, for rotary positions turn pairs of numbers",
    ),
    *(("data", {"eval_fraction": bad}, "eval_fraction", "at least 0 and below 1") for bad in (-0.1, 1.0)),
    ("generation", {"stop_ids": []}, "stop_ids", "null or not empty"),
    *(
        ("generation", {"min_new_tokens": bad}, "min_new_tokens", "at least 0 and below generation.max_new_tokens = 64")
        for bad in (-1, 64, 65)
    ),
    ("generation", {"stop_strings": ["a", ""]}, "stop_strings", "without empty strings"),
    ("reward", {"min_length": 1, "short_penalty": -1.0}, "short_penalty", "at least 0; it is subtracted"),
    ("reward", {"missing_eos_penalty": -1.0}, "missing_eos_penalty", "null or at least 0; it is subtracted"),
    *(
        (g, {"function": "f.py"}, "function", "of the form file.py:name or module:name")
        for g in ("reward", "eval.judge")
    ),
    *(("training", {"adam_betas": bad}, "adam_betas", "in [0, 1)") for bad in ((0.9, 1.0), (-0.1, 0.9))),
    *(("ptx", {"path": "t", "max_length": bad}, "max_length", "at least 2") for bad in (1, 0)),
]


@pytest.mark.parametrize(("group", "given", "name", "need"), VALUES)
def test_every_impossible_value_is_refused(group, given, name, need):
    value = given[name]
    assert refusal(GROUPS[group], given) == f"{group}.{name} is {value!r}, but it must be {need}"


WITHOUT_CRITIC = {"rloo": {"samples_per_prompt": 2}, "grpo": {"samples_per_prompt": 2}, "reinforce_pp": {}, "remax": {}}
OTHER = {"lam": 0.5, "lam_critic": 0.5, "lam_length_alpha": 0.05, "vf_coef": 0.2, "clip_range_value": None}
"""Values that are not the defaults."""
UNREAD = [
    *(
        ("ppo", {"estimator": e, **more, name: OTHER[name]}, name, f"ppo.estimator {e} has no critic")
        for e, more in WITHOUT_CRITIC.items()
        for name in ppo_settings.CRITIC_ONLY
    ),
    *(
        (
            *("ppo", {"estimator": e, "samples_per_prompt": 2, "gamma": 0.9}, "gamma"),
            f"ppo.estimator {e} pays whole responses",
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
    ("ppo", {"kl_horizon": 5000}, "kl_horizon", "ppo.kl_target is null"),
    *(
        ("ppo", {"kl_coef": 0.0, **given}, name, "ppo.kl_coef is 0, from which no controller rises")
        for name, given in {
            "kl_target": {"kl_target": 6.0},
            "kl_estimator": {"kl_estimator": "full"},
        }.items()
    ),
    ("model.lora", {"alpha": 32.0}, "alpha", "model.lora.rank is 0"),
    ("model.lora", {"targets": ["q_proj"]}, "targets", "model.lora.rank is 0"),
    ("reward", {"short_penalty": 2.0}, "short_penalty", "reward.min_length is 0"),
    *(
        (group, {"function": "f.py:g", name: value}, name, f"{group}.function gives its scores as they are")
        for group in ("reward", "eval.judge")
        for name, value in {"batch_size": 8, "normalize": False}.items()
    ),
    ("critic", {"pretraining_patience": 3}, "pretraining_patience", "critic.pretraining_steps is 0"),
    *(
        ("critic", {"kind": kind, "init": "x"}, "init", f"critic.kind {kind} stands on the policy's weights")
        for kind in ("shared", "adapter")
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
        for kind in ("replace", "bootstrap", "mask")
        for name, value in {"overlong_penalty": 2.0, "overlong_buffer": 4}.items()
    ),
]


@pytest.mark.parametrize(("group", "given", "name", "why"), UNREAD)
def test_every_value_that_would_not_be_read_is_refused(group, given, name, why):
    expected = f"{group}.{name} is {given[name]!r}, but it would never be read: {why}; drop it"
    assert refusal(GROUPS[group], given) == expected


COMBINATIONS = [
    (
        ModelConfig,
        {"load_in_4bit": True},
        "model.load_in_4bit is true and model.lora.rank is 0, but weights of 4 bits cannot be trained; train adapters "
        "on them with --model.lora.rank 16",
    ),
    *(
        (
            GROUPS[group],
            {"model": "r", "function": "f.py:g"},
            f"{group}.model and {group}.function are both set; scores come from one source: unset one of them",
        )
        for group in ("reward", "eval.judge")
    ),
    (
        job_of,
        {"ppo": {"vf_coef": 0.0}, "critic": {"warmup_steps": 1}},
        "ppo.vf_coef is 0, so a critic that learns first would learn nothing; raise it",
    ),
    (
        PPOConfig,
        {"estimator": "reinforce_pp", "whiten_advantages": False},
        "ppo.whiten_advantages is false, but the batch's mean and deviation are all the baseline that ppo.estimator "
        "reinforce_pp has; leave it null",
    ),
    (
        PPOConfig,
        {"kl_placement": "loss"},
        "ppo.kl_estimator is k1 and ppo.kl_placement is loss, but as a loss k1's gradient is zero in expectation and "
        "nothing would hold the policy; use k2, k3 or full there",
    ),
    (
        CriticConfig,
        {"kind": "separate", "init": "x", "head_init": "normal"},
        "critic.head_init is 'normal', but the value head comes with critic.init = 'x'; drop one of them",
    ),
    (
        job_of,
        {"critic": {"kind": "adapter"}},
        "critic.kind is adapter, but model.lora.rank is 0: an adapter critic shares the frozen base of an adapted "
        "policy; set --model.lora.rank 16, or critic.kind to shared or separate",
    ),
    (
        job_of,
        {"critic": {"kind": "separate", "init": "reward"}},
        "critic.init is reward, but there is no reward.model to take the critic from",
    ),
    (
        job_of,
        {"critic": {"kind": "separate", "init": "reward"}, "reward": {"function": "f.py:g"}},
        "critic.init is reward, but there is no reward.model to take the critic from",
    ),
    (
        job_of,
        {"critic": {"warmup_steps": 2}, "ppo": {"total_episodes": 128}},
        "critic.warmup_steps is 2, but it must be below the run's 2 steps, or the policy would never learn",
    ),
    *(
        (
            job_of,
            {"reward": {"truncated": "bootstrap"}, "ppo": {"estimator": e, **more}},
            f"reward.truncated is bootstrap, but ppo.estimator {e} has no critic to say what a cut response was worth; "
            "use replace, overlong or mask",
        )
        for e, more in WITHOUT_CRITIC.items()
    ),
    *(
        (
            job_of,
            {"critic": given, "ppo": {"estimator": "remax"}},
            f"critic.{name} is {given[name]!r}, but it would never be read: ppo.estimator remax has no critic; drop it",
        )
        for name, given in {
            "kind": {"kind": "separate"},
            "head_init": {"head_init": "normal"},
            "lr": {"lr": 1e-3},
            "warmup_steps": {"warmup_steps": 3},
            "pretraining_steps": {"pretraining_steps": 3},
        }.items()
    ),
    (
        job_of,
        {"reward": {"truncated": "overlong", "overlong_buffer": 9}, "generation": {"max_new_tokens": 8}},
        "reward.overlong_buffer is 9, but it must be at most generation.max_new_tokens = 8",
    ),
    (
        job_of,
        {"reward": {"min_length": 9}, "generation": {"max_new_tokens": 8}},
        "reward.min_length is 9, but it must be at most generation.max_new_tokens = 8, or every response is too short",
    ),
    *(
        (kind, {"seed": seed, **more}, f"seed is {seed}, but it must be at least 0 and below 2**32")
        for kind, more in {
            PPOJob: {"model": ModelConfig(path="m")},
            SFTJob: {"model": ModelConfig(path="m"), "data": DataConfig(path="d")},
            RewardJob: {"model": ModelConfig(path="m"), "data": DataConfig(path="d")},
            EvaluateJob: {"model": ModelConfig(path="m"), "data": DataConfig(path="d")},
        }.items()
        for seed in (-1, 2**32)
    ),
    *(
        (kind, given, f"{key} is not set; give it with --{key} or in a --config file")
        for kind, given, key in [
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
            {"data": DataConfig(path="d"), **given},
            "set one of model.path (start from a model) and scratch.model_type (train a new one)",
        )
        for given in ({}, {"model": ModelConfig(path="m"), "scratch": ScratchConfig(model_type="llama")})
    ),
]


@pytest.mark.parametrize(("make", "given", "message"), COMBINATIONS)
def test_every_impossible_combination_is_refused(make, given, message):
    assert refusal(make, given) == message


TAKEN = [
    (PPOConfig, {"gamma": 0.0, "lam": 0.0, "lam_critic": 0.0, "kl_coef": 0.0, "vf_coef": 0.0}),
    (PPOConfig, {"gamma": 1.0, "lam": 1.0, "lam_critic": 1.0, "dual_clip": 1.01, "clip_range": 0.99}),
    (PPOConfig, {"clip_range_value": None, "target_kl": None, "clip_range_high": None, "warmup_steps": 0}),
    (PPOConfig, {"warmup_steps": 1, "total_episodes": 128}),
    (PPOConfig, {"warmup_steps": 2, "total_episodes": 128, "lr_schedule": "constant"}),
    (PPOConfig, {"kl_target": 6.0, "kl_horizon": 13}),
    (PPOConfig, {"lam_length_alpha": 0.05, "lam_critic": 1.0}),
    (PPOConfig, {"policy_loss": "kl_penalty", "kl_penalty_beta": 2.0, "kl_penalty_target": 0.02}),
    *((PPOConfig, {"kl_placement": "loss", "kl_estimator": kind}) for kind in ("k2", "k3", "full")),
    *((PPOConfig, {"estimator": e, **more}) for e, more in WITHOUT_CRITIC.items()),
    (PPOConfig, {"estimator": "grpo", "samples_per_prompt": 4, "grpo_divide_by_std": False}),
    (PPOConfig, {"estimator": "reinforce_pp", "gamma": 0.9, "whiten_advantages": True}),
    (PPOConfig, {"estimator": "remax", "gamma": 0.9, "samples_per_prompt": 2}),
    (GenerationConfig, {"max_new_tokens": 1, "min_new_tokens": 0}),
    (GenerationConfig, {"max_new_tokens": 8, "min_new_tokens": 7, "max_rows": 1, "stop_strings": ["a"]}),
    (RewardConfig, {"missing_eos_penalty": None, "clip": None, "min_length": 1, "short_penalty": 0.0}),
    (RewardConfig, {"truncated": "overlong", "overlong_penalty": 0.0, "overlong_buffer": 1}),
    (LoraConfig, {"rank": 0}),
    (ModelConfig, {"load_in_4bit": True, "lora": LoraConfig(rank=1)}),
    (CriticConfig, {"kind": "separate", "init": "x", "lr": None}),
    (CriticConfig, {"head_init": "normal", "pretraining_steps": 1, "pretraining_patience": 1}),
    (PTXConfig, {"path": "t", "max_length": 2, "batch_size": 1}),
    (ScratchConfig, {"vocab_size": 260, "dropout": 0.0, "hidden_size": 8, "num_heads": 4}),
    (job_of, {"critic": {"kind": "adapter"}, "model": {"lora": {"rank": 1}}}),
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


@pytest.mark.parametrize(("make", "given"), TAKEN)
def test_what_lies_just_inside_is_taken(make, given):
    assert refusal(make, given) is None


def test_no_check_is_without_a_case_above(monkeypatch):
    """All that the cases make any group look at is refused in one of them."""
    asked, refused = set(), set()
    original_reject_unused = settings.reject_unused

    def reason(text):
        return re.sub(r"\d+|(?<=estimator )\w+(?= has)", "*", text)

    def check(ok, key, value, need):
        asked.add((key, reason(need)))
        if not ok:
            refused.add((key, reason(need)))
            raise UserError(key)

    def reject_unused(group, prefix, names, why):
        asked.update((f"{prefix}.{name}", reason(why)) for name in names)
        try:
            original_reject_unused(group, prefix, names, why)
        except UserError as error:
            refused.add((str(error).split(" is ")[0], reason(why)))
            raise

    for room in (settings, ppo_settings, config_room):
        monkeypatch.setattr(room, "check", check)
        monkeypatch.setattr(room, "reject_unused", reject_unused)
    cases = [(GROUPS[group], given) for group, given, *_ in VALUES + UNREAD]
    for make, given in cases + [(make, given) for make, given, _ in COMBINATIONS] + TAKEN:
        refusal(make, given)
    # These need another setting, which is refused before them.
    never = {(f"critic.{name}", "ppo.estimator * has no critic") for name in ("init", "pretraining_patience")}
    never |= {("ppo.kl_placement", "ppo.kl_coef is *, from which no controller rises")}
    assert asked - refused == never
    assert len(refused) > 90


def test_whitening_is_as_said_or_as_the_estimator_s_paper_has_it():
    whitens = {
        e: [PPOConfig(estimator=e, **more, whiten_advantages=said).whitens for said in (None, True)]
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
