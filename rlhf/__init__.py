"""Token-level PPO for language models on plain `accelerate`.

The public names are imported when they are first used, so that `import rlhf` is fast.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_MODULE_OF = {
    "PPOJob": "config.jobs",
    "SFTJob": "config.jobs",
    "RewardJob": "config.jobs",
    "DPOJob": "config.jobs",
    "EvaluateJob": "config.commands",
    "parse": "config.parsing",
    "UserError": "errors",
    "Prompts": "records",
    "Rollout": "records",
    "PPOBatch": "records",
    "PPOTrainer": "trainers.ppo",
    "make_rollout": "rollouts.external",
    "train_sft": "trainers.sft",
    "train_reward_model": "trainers.reward_model",
    "train_dpo": "trainers.dpo",
    "evaluate_policy": "evaluation.command",
    "write_report": "report.report",
}
__all__ = [*_MODULE_OF, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'rlhf' has no attribute {name!r}")
    return getattr(import_module(f"rlhf.{_MODULE_OF[name]}"), name)
