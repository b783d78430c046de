"""Every setting of a PPO job changes a run in a visible way, or is rejected: none is silently ignored."""

import hashlib
import importlib.util
import json
import shutil
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from rlhf.config.jobs import PPOJob
from rlhf.config.parsing import flat_settings, from_dict, setting_types
from rlhf.errors import UserError
from rlhf.models import distribution, trunk
from rlhf.trainers.ppo import PPOTrainer

WITHOUT_EFFECT = ("output", "data.streaming", "reward.device", "eval.judge.device")
"""The run folder's name does not change its content, nor does the place where rows or reward models are kept."""

MIX = {"good": {"function": "{good}", "weight": 0.5}, "repeats": {"rule": "repetition"}}
"""Two sources and their weights."""

GAME = {
    "reward.function": None,
    "environment.path": "{game}",
    "environment.max_tokens": 40,
    "environment.max_turns": 3,
    "generation.max_new_tokens": 4,
}
"""A run in an environment."""

# Setting -> (settings that it needs, another value). A value in braces is replaced by a path.
CASES = {
    "seed": ({}, 7),
    "resume": ({}, "{nowhere}"),
    "export": ({"model.lora.rank": 2}, "merged"),
    "trackers": ({}, ["tensorboard"]),
    "model.path": ({}, "{gpt2}"),
    "model.dtype": ({}, "bfloat16"),
    "model.mixed_precision": ({}, "bf16"),
    "model.attn_implementation": ({}, "no_such_kernel"),
    "model.matmul_precision": ({}, "high"),
    "model.compile": ({}, True),
    "model.load_in_4bit": ({"model.lora.rank": 2}, True),
    "model.shard": ({}, True),
    "model.gradient_checkpointing": ({}, True),
    "model.trust_remote_code": ({"model.path": "{remote}"}, True),
    "model.chat_template": ({"data.path": "{chats}"}, "{template}"),
    "model.lora.rank": ({"model.lora.rank": 2}, 4),
    "model.lora.alpha": ({"model.lora.rank": 2}, 64.0),
    "model.lora.targets": ({"model.lora.rank": 2}, ["q_proj"]),
    "data.path": ({}, "{other prompts}"),
    "data.more": ({}, ["{other prompts}"]),
    "data.shares": ({"data.more": ["{other prompts}"]}, [0.9, 0.1]),
    "data.split": ({}, "test"),
    "data.eval_path": ({}, "{other prompts}"),
    "data.eval_split": ({"data.path": "{folder}"}, "test"),
    "data.eval_fraction": ({}, 0.5),
    "data.max_prompt_length": ({"data.too_long": "truncate"}, 2),
    "data.too_long": ({"data.max_prompt_length": 3, "data.too_long": "truncate"}, "drop"),
    "generation.max_new_tokens": ({}, 5),
    "generation.temperature": ({}, 0.5),
    "generation.min_new_tokens": ({}, 6),
    "generation.suppress_ids": ({}, [8, 9, 10, 11, 12, 13]),
    "generation.stop_ids": ({}, [10, 11, 12]),
    "generation.stop_strings": ({}, ["film", "good", "dull", "no"]),
    "generation.max_rows": ({}, 2),
    "generation.engine": ({}, "static"),
    "reward.model": ({"reward.function": None, "reward.model": "{reward}"}, "{other reward}"),
    "reward.function": ({}, "{other function}"),
    "reward.url": ({"reward.function": None, "reward.url": "{server}"}, "{other server}"),
    "reward.token_env": ({"reward.function": None, "reward.url": "{server}"}, "NO_SUCH_VARIABLE"),
    "reward.retries": ({"reward.function": None, "reward.url": "{away}", "reward.retries": 1}, 0),
    "reward.max_in_flight": ({"reward.function": None, "reward.url": "{counting}", "reward.batch_size": 1}, 1),
    "reward.label": ({"reward.function": None, "reward.model": "{labels}", "reward.label": "0"}, "1"),
    "reward.chat_template": (
        {
            "data.path": "{chats}",
            "model.chat_template": "{template}",
            "reward.function": None,
            "reward.model": "{reward}",
        },
        "{template}",
    ),
    "reward.rule": ({"reward.function": None, "reward.rule": "repetition"}, "word_list"),
    "reward.parameters": ({"reward.function": "{scaled}"}, {"scale": 3.0}),
    "reward.sources": (
        {"reward.function": None, "reward.sources": MIX},
        MIX | {"length": {"function": "{other function}"}},
    ),
    "reward.timeout": ({"reward.function": "{thread}"}, 600.0),
    "reward.on_error": ({"reward.on_error": "skip"}, "stop"),
    "reward.max_error_fraction": (
        {"reward.function": "{failing}", "reward.on_error": "skip", "reward.max_error_fraction": 0.9},
        0.0,
    ),
    "reward.batch_size": ({"reward.function": None, "reward.model": "{reward}"}, 1),
    "reward.batch_tokens": ({"reward.function": None, "reward.model": "{reward}"}, 40),
    "reward.normalize": ({"reward.function": None, "reward.model": "{reward}"}, False),
    "reward.offload": ({"reward.function": None, "reward.model": "{reward}"}, True),
    "reward.dtype": ({"reward.function": None, "reward.model": "{reward}"}, "bfloat16"),
    "reward.truncated": ({}, "mask"),
    "reward.missing_eos_penalty": ({}, 3.0),
    "reward.overlong_penalty": ({"reward.truncated": "overlong", "reward.overlong_buffer": 4}, 5.0),
    "reward.overlong_buffer": ({"reward.truncated": "overlong", "reward.overlong_buffer": 4}, 2),
    "reward.running_scale": ({}, True),
    "reward.clip": ({}, 0.05),
    "reward.min_length": ({}, 4),
    "reward.short_penalty": ({"reward.min_length": 4}, 5.0),
    "environment.path": (GAME, "{other game}"),
    "environment.parameters": (GAME, {"bonus": 3.0}),
    "environment.max_turns": (GAME, 1),
    "environment.max_tokens": (GAME, 8),
    "environment.chat": (GAME | {"model.chat_template": "{template}"}, True),
    "environment.timeout": (
        GAME | {"environment.path": "{slow game}", "reward.on_error": "skip", "reward.max_error_fraction": 0.9},
        0.001,
    ),
    "ppo.total_episodes": ({}, 24),
    "ppo.rollout_batch_size": ({}, 4),
    "ppo.minibatch_size": ({}, 8),
    "ppo.microbatch_size": ({}, 1),
    "ppo.microbatch_tokens": ({"ppo.microbatch_size": 16}, 30),
    "ppo.ppo_epochs": ({}, 1),
    "ppo.samples_per_prompt": ({}, 2),
    "ppo.lr": ({}, 5e-3),
    "ppo.lr_schedule": ({}, "constant"),
    "ppo.warmup_steps": ({}, 1),
    "ppo.adam_betas": ({}, (0.5, 0.5)),
    "ppo.adam_eps": ({}, 1.0),
    "ppo.weight_decay": ({}, 1.0),
    "ppo.adam_fused": ({}, False),
    "ppo.adam_8bit": ({}, True),
    "ppo.offload_optimizer": ({}, True),
    "ppo.max_grad_norm": ({"ppo.adam_eps": 1.0}, 1e-3),
    "ppo.estimator": ({"ppo.samples_per_prompt": 2}, "rloo"),
    "ppo.gamma": ({}, 0.5),
    "ppo.lam": ({}, 0.1),
    "ppo.lam_critic": ({}, 0.1),
    "ppo.lam_length_alpha": ({}, 0.3),
    "ppo.grpo_divide_by_std": ({"ppo.estimator": "grpo", "ppo.samples_per_prompt": 4}, False),
    "ppo.skip_equal_groups": ({"ppo.estimator": "grpo", "ppo.samples_per_prompt": 4}, True),
    "ppo.refill_rounds": (
        {"ppo.estimator": "rloo", "ppo.samples_per_prompt": 2, "ppo.skip_equal_groups": True}
        | {"generation.max_new_tokens": 1},
        2,
    ),
    "ppo.whiten_advantages": ({}, False),
    "ppo.whiten_rewards": ({"ppo.whiten_advantages": False}, True),
    "ppo.policy_loss": ({}, "kl_penalty"),
    "ppo.clip_range": ({}, 1e-4),
    "ppo.clip_range_high": ({}, 1e-4),
    "ppo.dual_clip": ({}, 1.001),
    "ppo.old_logprobs": ({}, "sampler"),
    "ppo.log_ratio_clamp": ({}, 1e-4),
    "ppo.kl_penalty_beta": ({"ppo.policy_loss": "kl_penalty"}, 50.0),
    "ppo.kl_penalty_target": ({"ppo.policy_loss": "kl_penalty"}, 10.0),
    "ppo.clip_range_value": ({}, 1e-4),
    "ppo.vf_coef": ({}, 5.0),
    "ppo.ent_coef": ({}, 0.5),
    "ppo.loss_aggregation": ({}, "sequence"),
    "ppo.target_kl": ({}, 1e-9),
    "ppo.kl_coef": ({}, 3.0),
    "ppo.kl_target": ({}, 0.01),
    "ppo.kl_controller": ({"ppo.kl_target": 0.01}, "ziegler"),
    "ppo.kl_gain": ({"ppo.kl_target": 0.01}, 3.0),
    "ppo.kl_horizon": ({"ppo.kl_target": 0.01}, 50),
    "ppo.kl_estimator": ({"ppo.kl_coef": 3.0}, "full"),
    "ppo.use_reference": ({"ppo.kl_coef": 0.0}, False),
    "ppo.offload_reference": ({}, True),
    "ppo.reference_update_steps": ({}, 1),
    "ppo.reference_update_rate": ({"ppo.reference_update_steps": 1}, 0.5),
    "ppo.kl_placement": ({"ppo.kl_coef": 3.0, "ppo.kl_estimator": "k2"}, "loss"),
    "critic.kind": ({}, "separate"),
    "critic.init": ({"critic.kind": "separate"}, "{gpt2}"),
    "critic.head_init": ({}, "normal"),
    "critic.lr": ({}, 0.1),
    "critic.warmup_steps": ({}, 1),
    "critic.pretraining_steps": ({}, 2),
    "critic.pretraining_patience": ({"critic.pretraining_steps": 4}, 1),
    "ptx.path": ({}, "{texts}"),
    "ptx.split": ({"ptx.path": "{texts}"}, "test"),
    "ptx.coef": ({"ptx.path": "{texts}"}, 9.0),
    "ptx.batch_size": ({"ptx.path": "{texts}"}, 2),
    "ptx.max_length": ({"ptx.path": "{texts}"}, 3),
    "eval.every": ({}, 1),
    "eval.prompts": ({}, 2),
    "eval.samples": ({}, 1),
    "eval.batch_size": ({}, 1),
    "eval.patience": ({"eval.every": 1, "ppo.total_episodes": 32, "reward.function": "{constant}"}, 1),
    "eval.judge.sources": ({}, {"second": {"function": "{other function}"}}),
    "eval.judge.url": ({"eval.judge.url": "{server}"}, "{other server}"),
    "eval.judge.token_env": ({"eval.judge.url": "{server}"}, "NO_SUCH_VARIABLE"),
    "eval.judge.retries": ({"eval.judge.url": "{away}", "eval.judge.retries": 1}, 0),
    "eval.judge.max_in_flight": ({"eval.judge.url": "{counting}", "eval.judge.batch_size": 1}, 1),
    "eval.judge.label": ({"eval.judge.model": "{labels}", "eval.judge.label": "0"}, "1"),
    "eval.judge.chat_template": (
        {"data.path": "{chats}", "model.chat_template": "{template}", "eval.judge.model": "{reward}"},
        "{template}",
    ),
    "eval.judge.rule": ({}, "repetition"),
    "eval.judge.parameters": ({"eval.judge.function": "{scaled}"}, {"scale": 3.0}),
    "eval.judge.timeout": ({"eval.judge.function": "{thread}"}, 600.0),
    "eval.judge.model": ({}, "{reward}"),
    "eval.judge.function": ({}, "{other function}"),
    "eval.judge.batch_size": ({"eval.judge.model": "{reward}"}, 1),
    "eval.judge.batch_tokens": ({"eval.judge.model": "{reward}"}, 20),
    "eval.judge.normalize": ({"eval.judge.model": "{reward}"}, False),
    "eval.judge.offload": ({"eval.judge.model": "{reward}"}, True),
    "eval.judge.dtype": ({"eval.judge.model": "{reward}"}, "bfloat16"),
    "checkpoint.every": ({}, 1),
    "checkpoint.keep": ({"checkpoint.every": 1}, 1),
}


ENDS_A_RUN = ("reward.max_error_fraction", "reward.retries", "eval.judge.retries", "environment.timeout")
"""Settings whose values are limits, above which a run ends."""

BASE = {
    "output": "runs/none",
    "data.path": "{prompts}",
    "reward.function": "{good}",
    "ppo.total_episodes": 16,
    "ppo.lr": 2e-2,
}
"""A run of two steps with a learning rate at which every change is visible."""


def test_every_setting_has_a_case():
    assert set(setting_types(PPOJob)) == set(CASES) | set(WITHOUT_EFFECT)


@pytest.fixture(scope="module")
def reward_server():
    """The address of a server: `/length` and `/words` score, `/away` answers every second request, and `/counting` has
    other scores for requests that come two at a time.
    """
    pair = threading.Barrier(2)
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            requests.append(self.path)
            away = self.path == "/away" and requests.count("/away") % 2 == 1
            together = False
            if self.path == "/counting":
                try:
                    pair.wait(0.2)
                    together = True
                except threading.BrokenBarrierError:
                    pair.reset()
            scores = [len(c.split() if self.path == "/words" else c) + 5.0 * together for c in body["completions"]]
            content = json.dumps({"scores": scores}).encode()
            self.send_response(503 if away else 200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def paths(models, reward_folder, reward_server, build, tmp_path_factory):
    """The paths that replace the values in braces."""
    import datasets
    from transformers import AutoModelForSequenceClassification

    root = tmp_path_factory.mktemp("paths")
    words = ("good", "bad", "dull", "fine", "warm", "cold")
    prompts = [{"prompt": f"a {w} {v}", "wanted": w} for w in words for v in words]
    chats = [{"prompt": [{"role": "user", "content": f"{w} {v}"}]} for w in words for v in words]
    texts = [{"text": f"the film is {w} and {v}"} for w in words for v in words]
    for name, rows in (("other", prompts), ("chats", chats), ("texts", texts)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = {"train": datasets.Dataset.from_list(prompts), "test": datasets.Dataset.from_list(prompts[:6])}
    datasets.DatasetDict(parts).save_to_disk(str(root / "folder"))
    own = [{"prompt": " ".join(words[(i + j) % 6] for j in range(1 + i % 4)), "wanted": "a"} for i in range(40)]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    (root / "reward.py").write_text(
        "def f(prompts, completions, **columns):\n    return [len(c) for c in completions]\n\n\n"
        "def g(prompts, completions, **columns):\n"
        "    return [c.count('good') + c.count('e') / 9 for c in completions]\n\n\n"
        "def scaled(completions, scale=1.0):\n    return [scale * len(c) for c in completions]\n\n\n"
        "def thread(completions):\n    import threading\n"
        "    return [float(threading.current_thread() is threading.main_thread())] * len(completions)\n\n\n"
        "def constant(completions):\n    return [1.0] * len(completions)\n\n\n"
        "def failing(completions, step):\n"
        "    return [float('nan') if step == 1 and i == 0 else 1.0 for i, _ in enumerate(completions)]\n\n\n"
        "class Game:\n"
        "    def __init__(self, bonus=0.0):\n        self.bonus = bonus\n"
        "    def reset(self, prompt):\n        return prompt\n"
        "    def step(self, text):\n        return 'and no', len(text) + self.bonus\n\n\n"
        "class Other(Game):\n"
        "    def step(self, text):\n        return None, text.count('good')\n\n\n"
        "class Slow(Game):\n"
        "    def step(self, text):\n        import time\n        time.sleep(0.05)\n        return super().step(text)\n"
    )
    (root / "template").write_text("{% for m in messages %}{{ m['content'] }} {% endfor %}")
    for name, seed in (("reward", 1), ("other_reward", 2)):
        torch.manual_seed(seed)
        config = build.config("llama", num_labels=1)
        config.score_mean, config.score_std = 0.3, 2.0
        AutoModelForSequenceClassification.from_config(config).save_pretrained(root / name)
        build.tokenizer().save_pretrained(root / name)
    AutoModelForSequenceClassification.from_config(build.config("llama", num_labels=3)).save_pretrained(root / "labels")
    build.tokenizer().save_pretrained(root / "labels")
    remote = root / "remote"  # a model with its code in the same folder
    shutil.copytree(models("llama"), remote)
    settings = json.loads((remote / "config.json").read_text())
    settings |= {"auto_map": {"AutoModelForCausalLM": "own.Own", "AutoConfig": "own.OwnConfig"}, "model_type": "own"}
    (remote / "config.json").write_text(json.dumps(settings))
    (remote / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\n\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n\n\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    return {
        "{nowhere}": str(root / "nowhere"),
        "{gpt2}": str(models("gpt2")),
        "{remote}": str(remote),
        "{chats}": str(root / "chats.jsonl"),
        "{template}": str(root / "template"),
        "{prompts}": str(root / "prompts.jsonl"),
        "{good}": f"{root / 'reward.py'}:g",
        "{other prompts}": str(root / "other.jsonl"),
        "{folder}": str(root / "folder"),
        "{texts}": str(root / "texts.jsonl"),
        "{reward}": str(root / "reward"),
        "{other reward}": str(root / "other_reward"),
        "{other function}": f"{root / 'reward.py'}:f",
        "{labels}": str(root / "labels"),
        "{server}": f"{reward_server}/length",
        "{other server}": f"{reward_server}/words",
        "{away}": f"{reward_server}/away",
        "{counting}": f"{reward_server}/counting",
        "{scaled}": f"{root / 'reward.py'}:scaled",
        "{thread}": f"{root / 'reward.py'}:thread",
        "{constant}": f"{root / 'reward.py'}:constant",
        "{failing}": f"{root / 'reward.py'}:failing",
        "{game}": f"{root / 'reward.py'}:Game",
        "{other game}": f"{root / 'reward.py'}:Other",
        "{slow game}": f"{root / 'reward.py'}:Slow",
    }


def with_settings(job, settings):
    """The job with other settings, by their dotted names; impossible ones are rejected here."""
    values = flat_settings(job) | settings
    tree: dict = {}
    for key, value in values.items():
        *groups, name = key.split(".")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[name] = value
    return from_dict(PPOJob, tree)


@pytest.fixture(autouse=True)
def fresh_accelerator(monkeypatch):
    """Each test starts without the accelerator of the one before, on a CPU that is fast at bfloat16."""
    monkeypatch.setattr("rlhf.run.precision.bf16_slowdown", lambda: 0.5)
    monkeypatch.setattr("rlhf.rewards.servers.FIRST_WAIT", 0.01)
    yield
    AcceleratorState._reset_state(True)


def visible_result(job, output, capsys, monkeypatch):
    """Everything visible of a run: numbers, texts, files, terminal output, and the shapes of all forward passes."""
    shapes = []
    compiled_layers = []

    def recorded(function):
        def call(*args, **kwargs):
            shapes.append(tuple(tuple(x.shape) for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)))
            return function(*args, **kwargs)

        return call

    from rlhf.rewards import models as reward_models

    with monkeypatch.context() as patch:
        patch.setattr(trunk, "text_states", recorded(trunk.text_states))
        patch.setattr(reward_models, "sequence_scores", recorded(reward_models.sequence_scores))
        patch.setattr("rlhf.rollouts.sampling.compute_logits", recorded(distribution.compute_logits))
        patch.setattr(torch.nn.Module, "compile", lambda layer, **options: compiled_layers.append(type(layer).__name__))
        AcceleratorState._reset_state(True)  # as in a new process
        try:
            trainer = PPOTrainer(replace(job, output=str(output)))
            trainer.train()
        except UserError as error:
            return f"rejected: {error}"
    layers = [m for m in trainer.policy.modules() if getattr(m, "gradient_checkpointing", False)]
    result = {"shapes": shapes, "recomputed layers": len(layers), "printed": capsys.readouterr().out}
    result |= {"compiled": compiled_layers, "precision": torch.get_float32_matmul_precision()}
    result["printed"] = result["printed"].replace(str(output), "")
    for name in ("metrics", "eval", "samples", "pretraining"):
        rows = (
            [json.loads(x) for x in (output / f"{name}.jsonl").read_text().splitlines()]
            if (output / f"{name}.jsonl").exists()
            else []
        )
        result[name] = [{k: v for k, v in r.items() if not k.startswith(("time", "through", "memory"))} for r in rows]
    result["files"] = sorted(str(p.relative_to(output)) for p in output.rglob("*") if "tfevents" not in p.name)
    weights = [p for p in (output / "model").iterdir() if p.suffix == ".safetensors"]
    result["weights"] = [hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(weights)]
    return json.dumps(result, sort_keys=True)


@pytest.fixture(scope="module")
def baselines():
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("key", CASES)
def test_another_value_changes_the_run_or_is_rejected(job, paths, baselines, key, tmp_path, capsys, monkeypatch):
    if key == "model.load_in_4bit" and importlib.util.find_spec("bitsandbytes") is not None:
        pytest.skip("bitsandbytes cannot multiply matrices as small as those of the test's model on a CPU")

    def filled(value):
        if isinstance(value, dict):
            return {name: filled(item) for name, item in value.items()}
        if isinstance(value, list):
            return [filled(item) for item in value]
        return paths.get(value, value) if isinstance(value, str) else value

    context, value = CASES[key]
    before = with_settings(job, {name: filled(v) for name, v in (BASE | context).items()})
    baseline = json.dumps(flat_settings(before), default=str, sort_keys=True)
    if baseline not in baselines:
        baselines[baseline] = visible_result(before, tmp_path / "before", capsys, monkeypatch)
    changed = with_settings(before, {key: filled(value)})
    assert flat_settings(changed)[key] != flat_settings(before)[key]
    after = visible_result(changed, tmp_path / "after", capsys, monkeypatch)
    assert after != baselines[baseline]
    if after.startswith("rejected") and key not in ENDS_A_RUN:
        assert not Path(tmp_path / "after").exists()
