"""From a trained policy to a folder that plain `from_pretrained` loads, and the files beside it that hold a critic."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from rlhf.config.shared import ModelConfig
from rlhf.errors import UserError
from rlhf.models.actor_critic import ActorCritic, new_value_head
from rlhf.models.adapters import CRITIC, POLICY, has_adapters
from rlhf.models.loading import is_adapter, load_causal_lm
from rlhf.models.trunk import restore_dropout

VALUE_HEAD = "value_head.safetensors"
"""Beside an exported policy: its critic's value head."""
CRITIC_TRUNK = "critic"
"""Beside an exported policy: the folder of a separate critic's trunk."""


def export_policy(
    policy: ActorCritic,
    tokenizer: Any,
    folder: Path,
    config: ModelConfig,
    dropout_rates: Mapping[str, float],
    merged: bool = False,
) -> None:
    """Write a policy as `export_lm` does, with its original dropout rates, and its critic beside it.

    A critic that is an adapter over the base is left out of merged weights.
    """
    restore_dropout(policy.lm, dropout_rates)
    export_lm(policy.lm, tokenizer, folder, config, merged)
    if not (merged and policy.critic == "adapter"):
        _save_critic(policy, folder)


def export_lm(lm: Any, tokenizer: Any, folder: Path, config: ModelConfig, merged: bool = False) -> None:
    """Write what plain `from_pretrained` loads: whole weights, or an adapter as PEFT saves it.

    An adapter that was trained on top of another one belongs to merged weights that no folder holds, so it is merged.

    Args:
        merged: write an adapter merged into its base, which is loaded again for it: `lm` stays as it is, and a base
            that was quantised for training is not quantised.
    """
    stacked = config.lora.rank > 0 and config.path is not None and is_adapter(config.path)
    if stacked or not has_adapters(lm):
        (lm.merge_and_unload() if stacked else lm).save_pretrained(folder)
    elif merged:
        with tempfile.TemporaryDirectory() as adapter:
            lm.save_pretrained(adapter, selected_adapters=[POLICY])
            whole = ModelConfig(path=adapter, dtype=config.dtype, trust_remote_code=config.trust_remote_code)
            load_causal_lm(whole).save_pretrained(folder)
    else:  # a reward model's adapter over the same base is not part of the policy
        lm.save_pretrained(folder, selected_adapters=[name for name in (POLICY, CRITIC) if name in lm.peft_config])
    tokenizer.save_pretrained(folder)


def _save_critic(policy: ActorCritic, folder: Path) -> None:
    from safetensors.torch import save_file

    if policy.critic is None:
        return
    if policy.critic == "separate":
        policy.critic_lm.save_pretrained(folder / CRITIC_TRUNK)
    weights = {name: p.detach().cpu().contiguous() for name, p in policy.value_head.named_parameters()}
    save_file(weights, str(folder / VALUE_HEAD))


def load_value_head(folder: Path) -> nn.Linear:
    """The value head beside an exported policy.

    Raises:
        UserError: there is none.
    """
    from safetensors.torch import load_file

    path = folder / VALUE_HEAD
    if not path.exists():
        raise UserError(f"critic.init holds a critic's trunk but no value head: {path} is missing")
    stored = load_file(str(path))
    head = new_value_head(stored["weight"].shape[1])
    head.load_state_dict(stored)
    return head
