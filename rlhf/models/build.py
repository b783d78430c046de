"""The policy and the critic that a job asks for: which weights they start from, and which of them are trained."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlhf.config.jobs import PPOJob
from rlhf.config.shared import ModelConfig
from rlhf.errors import UserError
from rlhf.models.actor_critic import ActorCritic, disable_dropout, new_value_head, unwrap_peft
from rlhf.models.adapters import CRITIC, checkpointing_contexts, is_critic_adapter_weight
from rlhf.models.loading import add_lora, context_length_of, load_causal_lm, load_reward_model, load_tokenizer, resolve

HEAD = "value_head.safetensors"
TRUNK = "critic"
"""Beside an exported policy: its critic's value head, and the folder of a critic's own trunk."""


def build_policy(job: PPOJob, lm: Any) -> ActorCritic:
    """Actor and critic over a language model that is loaded, its dropout off.

    Raises:
        UserError: `critic.init` cannot be a critic of this policy.
    """
    kind = job.critic.kind if job.ppo.has_critic else None
    head = trunk = None
    if kind == "separate":
        trunk, head = build_separate_trunk(job, lm)
    if kind is not None and head is None:
        features = unwrap_peft(lm).get_output_embeddings().in_features
        head = new_value_head(features, job.critic.head_init, job.seed)
    lm = add_lora(lm, job.model.lora, "CAUSAL_LM")
    if kind == "adapter":
        lm.add_adapter(CRITIC, lm.peft_config["default"])
        for name, p in lm.named_parameters():
            if is_critic_adapter_weight(name):
                p.requires_grad_(True)
        if job.model.gradient_checkpointing:
            contexts = {"use_reentrant": False, "context_fn": checkpointing_contexts(lm)}
            unwrap_peft(lm).gradient_checkpointing_enable(gradient_checkpointing_kwargs=contexts)
    return ActorCritic(lm, kind, trunk, head)


def build_separate_trunk(job: PPOJob, lm: Any) -> tuple[Any, nn.Linear | None]:
    """A trunk that only the critic uses, in float32 for it is trained whole; and its head, where one comes with it."""
    assert job.model.path is not None
    init = job.reward.model if job.critic.init == "reward" else job.critic.init
    if init is None:
        if job.model.load_in_4bit:
            raise UserError(
                "critic.kind is separate and would copy the policy, but model.load_in_4bit holds weights that cannot "
                "be trained; name critic.init, or use critic.kind adapter"
            )
        return copy.deepcopy(lm.base_model).float(), None
    _check_tokens(job, init)
    trunk, head = load_critic(init, job.model.trust_remote_code)
    context_length, needed = context_length_of(trunk.config), context_length_of(lm.config)
    if context_length is not None and needed is not None and context_length < needed:
        raise UserError(f"critic.init {init} reads at most {context_length} tokens, but the policy reads {needed}")
    disable_dropout(trunk)
    if job.model.gradient_checkpointing:
        trunk.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return trunk.float(), head


def load_critic(path: str, trust_remote_code: bool = False) -> tuple[Any, nn.Linear | None]:
    """Trunk and value head from a run folder with a critic, a reward model, or a language model (which has no head)."""
    from transformers import AutoConfig, AutoModel

    folder = Path(resolve(path))
    stored = folder / HEAD
    if (folder / TRUNK / "config.json").exists():
        return AutoModel.from_pretrained(folder / TRUNK), _stored_head(stored)
    if (folder / "adapter_config.json").exists():
        return load_causal_lm(ModelConfig(path=path)).base_model, _stored_head(stored) if stored.exists() else None
    kinds = AutoConfig.from_pretrained(str(folder)).architectures or []
    if any("SequenceClassification" in kind for kind in kinds):
        model = load_reward_model(path)
        if not hasattr(model, "score"):
            raise UserError(f"critic.init {path} is a {type(model).__name__}, which cannot value the middle of a text")
        return model.base_model, _scaled_head(model)
    lm = load_causal_lm(ModelConfig(path=path, trust_remote_code=trust_remote_code))
    return lm.base_model, _stored_head(stored) if stored.exists() else None


def _scaled_head(model: Any) -> nn.Linear:
    """A reward model's head that says its scores as PPO sees them: shifted and scaled to mean 0 and deviation 1."""
    mean, std = (float(getattr(model.config, f"score_{name}", default)) for name, default in (("mean", 0), ("std", 1)))
    head = new_value_head(model.score.in_features)
    with torch.no_grad():
        head.weight.copy_(model.score.weight.float() / std)
        bias = 0.0 if model.score.bias is None else model.score.bias.float()
        head.bias.copy_((bias - torch.tensor([mean])) / std)
    return head


def _stored_head(path: Path) -> nn.Linear:
    from safetensors.torch import load_file

    if not path.exists():
        raise UserError(f"critic.init holds a critic's trunk but no value head: {path} is missing")
    stored = load_file(str(path))
    head = new_value_head(stored["weight"].shape[1])
    head.load_state_dict(stored)
    return head


def _check_tokens(job: PPOJob, path: str) -> None:
    """A critic reads the policy's token ids, so the ids must mean the same to both."""
    assert job.model.path is not None
    ours = load_tokenizer(job.model.path, None, job.model.trust_remote_code).get_vocab()
    theirs = load_tokenizer(path).get_vocab()
    if ours != theirs:
        odd = next((t for t in ours if theirs.get(t) != ours[t]), None) or next(t for t in theirs if t not in ours)
        raise UserError(
            f"critic.init {path} has another tokenizer than {job.model.path} (token {odd!r} has id "
            f"{theirs.get(odd, 'none')} there and {ours.get(odd, 'none')} here), but a critic reads the policy's tokens"
        )


def save_critic(policy: ActorCritic, folder: Path) -> None:
    """Write the critic beside an exported policy: its value head, and its trunk where it has one of its own."""
    from safetensors.torch import save_file

    if policy.critic is None:
        return
    if policy.critic == "separate":
        policy.critic_lm.save_pretrained(folder / TRUNK)
    save_file({n: p.detach().cpu().contiguous() for n, p in policy.value_head.named_parameters()}, str(folder / HEAD))
