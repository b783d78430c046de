"""Tiny real models with tokenizers of their own, made once a session; nothing comes from a network."""

import os

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_WAIT_POLICY="PASSIVE")
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # threads of several test processes slow each other

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf.config.jobs import PPOJob
from rlhf.config.ppo import PPOConfig
from rlhf.config.scores import RewardConfig
from rlhf.config.shared import CheckpointConfig, DataConfig, EvalConfig, GenerationConfig, ModelConfig

torch.set_num_threads(1)  # two spinning threads on a busy machine are slower than one

WORDS = "the film is a good bad fine dull warm cold story with heart and no end in sight of it".split()  # noqa: SIM905
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(pad: str | None = "<|pad|>", bos: str | None = None, chat: bool = False) -> Any:
    """A word-level tokenizer; `pad=None` leaves it without a padding token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<|unk|>", "<|end|>", "<|pad|>", "<|start|>", "<|user|>", "<|assistant|>", "<|system|>"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *WORDS])}, unk_token="<|unk|>"))
    core.add_special_tokens(special)
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos is not None:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, special.index(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<|unk|>", eos_token="<|end|>", pad_token=pad, bos_token=bos
    )
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    return tokenizer


def make_config(kind: str, **changes: Any) -> Any:
    from transformers import AutoConfig

    sizes = {
        "vocab_size": 7 + len(WORDS),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    default = AutoConfig.for_model(kind)
    return AutoConfig.for_model(kind, **{k: v for k, v in sizes.items() if hasattr(default, k)}, **changes)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`models("llama")`: the folder of a tiny random model; `pad=None`, `bos=...`, `chat=True` shape its tokenizer."""
    from transformers import AutoModelForCausalLM

    made: dict[tuple[Any, ...], Path] = {}

    def folder(kind: str = "llama", **tokenizer: Any) -> Path:
        key = (kind, *sorted(tokenizer.items()))
        if key not in made:
            path = tmp_path_factory.mktemp(kind)
            torch.manual_seed(0)
            lm = AutoModelForCausalLM.from_config(make_config(kind))
            with torch.no_grad():
                for p in lm.parameters():  # far enough from uniform that mistakes show
                    p.mul_(3.0) if p.dim() > 1 else p
            lm.save_pretrained(path)
            make_tokenizer(**tokenizer).save_pretrained(path)
            made[key] = path
        return made[key]

    return folder


@pytest.fixture(scope="session")
def load_script() -> Callable[[Path], Any]:
    """`load_script(path)`: a script, which is in no package, as a module."""

    def load(path: Path) -> Any:
        name = "_".join(path.with_suffix("").parts[-3:])
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random reward model."""
    from transformers import AutoModelForSequenceClassification

    path = tmp_path_factory.mktemp("reward")
    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_config(make_config("llama", num_labels=1)).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    """40 prompts of one to four words, with a column for the reward function."""
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": " ".join(WORDS[(i + j) % len(WORDS)] for j in range(1 + i % 4)), "wanted": WORDS[i % 3]}
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def reward_file(tmp_path: Path) -> Path:
    """A reward function: the share of `good` among the words."""
    path = tmp_path / "my_reward.py"
    path.write_text(
        "def good(prompts, completions, **columns):\n"
        "    return [c.split().count('good') / max(1, len(c.split())) for c in completions]\n"
    )
    return path


@pytest.fixture
def job(tmp_path: Path, models: Callable[..., Path], prompts_file: Path, reward_file: Path) -> PPOJob:
    """A PPO run of three steps that takes a second."""
    return PPOJob(
        output=str(tmp_path / "run"),
        trackers=[],
        model=ModelConfig(path=str(models("llama"))),
        data=DataConfig(path=str(prompts_file), eval_fraction=0.2),
        generation=GenerationConfig(max_new_tokens=8),
        reward=RewardConfig(function=f"{reward_file}:good"),
        ppo=PPOConfig(
            total_episodes=24, rollout_batch_size=8, minibatch_size=4, microbatch_size=2, ppo_epochs=2, lr=1e-3
        ),
        eval=EvalConfig(every=0, prompts=4, samples=2),
        checkpoint=CheckpointConfig(every=0),
    )


@pytest.fixture
def change() -> Callable[..., PPOJob]:
    """`change(job, ppo={"lr": 1.0}, seed=3)`: the job with other settings."""

    def changed(job: Any, **groups: Any) -> Any:
        return replace(
            job, **{k: replace(getattr(job, k), **v) if isinstance(v, dict) else v for k, v in groups.items()}
        )

    return changed


@pytest.fixture(scope="session")
def build() -> SimpleNamespace:
    """`build.config("bert")`, `build.tokenizer(pad=None)`: parts of custom models."""
    return SimpleNamespace(config=make_config, tokenizer=make_tokenizer)
