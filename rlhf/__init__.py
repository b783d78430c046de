"""Token-level PPO for language models on plain `accelerate`.

The names below are loaded when they are first used, so that `import rlhf` costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "PPOJob": "config",
    "SFTJob": "config",
    "RewardJob": "config",
    "EvaluateJob": "config",
    "parse": "parsing",
    "UserError": "errors",
    "Prompts": "types",
    "Rollout": "types",
    "PPOBatch": "types",
    "PPOTrainer": "ppo",
    "make_rollout": "own",
    "train_sft": "sft",
    "train_reward_model": "reward_modeling",
    "evaluate_policy": "evaluation",
    "write_report": "report",
}
__all__ = [*_HOME, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rlhf' has no attribute {name!r}")
    return getattr(import_module(f"rlhf.{_HOME[name]}"), name)
