"""The actor-critic of a job: which weights policy and critic start from, and which of them are trained."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlhf.config.jobs import PPOJob
from rlhf.config.shared import ModelConfig
from rlhf.errors import UserError
from rlhf.models.actor_critic import ActorCritic, new_value_head
from rlhf.models.adapters import CRITIC, checkpointing_contexts, is_adapter_weight
from rlhf.models.export import CRITIC_TRUNK, VALUE_HEAD, load_value_head
from rlhf.models.loading import add_lora, context_length_of, is_adapter, load_causal_lm, load_tokenizer, resolve
from rlhf.models.reward_models import load_reward_model, scores_every_token
from rlhf.models.trunk import disable_dropout, enable_gradient_checkpointing, unwrap_peft


def choose_critic(job: PPOJob, scored_by_model: bool = True) -> tuple[PPOJob, str]:
    """The job with a kind of critic where `critic.kind` is auto, and why, as a line of the preflight.

    A critic that starts from the reward model explains much of the returns' variance from the first step on (Ouyang et
    al., 2022; measured in docs/compare_trl.md), but is one more model to hold and to train.

    Args:
        scored_by_model: False where a function replaces the reward model of the job.
    """
    if job.critic.kind != "auto" or not job.ppo.has_critic:
        return job, ""
    shared = replace(job, critic=replace(job.critic, kind="shared"))
    if job.reward.model is None or not scored_by_model:
        return shared, ""
    if (reason := _no_critic_from_reward(job, job.reward.model)) is not None:
        return shared, f"critic: on the policy's trunk, and not from the reward model, because {reason}"
    return (
        replace(job, critic=replace(job.critic, kind="separate", init="reward")),
        "critic: a model of its own that starts from the reward model; --critic.kind shared saves its memory and time, "
        "and learns less per episode",
    )


def _no_critic_from_reward(job: PPOJob, path: str) -> str | None:
    """Why the reward model cannot be the start of the critic; None where it can."""
    if job.model.lora.rank > 0 or job.model.load_in_4bit:
        return "the policy's own weights are frozen"
    if job.critic.head_init != "zero":
        return "critic.head_init is set"
    if is_adapter(path):
        return "it is an adapter"
    if job.reward.label is not None:
        return "it has several labels"
    try:
        _check_same_vocabulary(job.model, path)
    except UserError:
        return "it has another tokenizer"
    return None if scores_every_token(path) else "it scores whole texts only"


def build_policy(job: PPOJob, lm: Any) -> ActorCritic:
    """Actor and critic over a loaded language model whose dropout is disabled.

    Raises:
        UserError: `critic.init` cannot be a critic of this policy.
    """
    kind = job.critic.kind if job.ppo.has_critic else None
    assert kind != "auto", "choose_critic comes first"
    value_head = critic_lm = None
    if kind == "separate":
        critic_lm, value_head = _build_separate_critic(job, lm)
    if kind is not None and value_head is None:
        features = unwrap_peft(lm).get_output_embeddings().in_features
        value_head = new_value_head(features, job.critic.head_init, job.seed)
    lm = add_lora(lm, job.model.lora, "CAUSAL_LM")
    if kind == "adapter":
        _add_critic_adapter(lm)
        if job.model.gradient_checkpointing:
            enable_gradient_checkpointing(unwrap_peft(lm), checkpointing_contexts(lm))
    return ActorCritic(lm, kind, critic_lm, value_head)


def _add_critic_adapter(lm: Any) -> None:
    """A second trainable adapter with the settings of the policy's."""
    lm.add_adapter(CRITIC, lm.peft_config["default"])
    for name, p in lm.named_parameters():
        if is_adapter_weight(name, CRITIC):
            p.requires_grad_(True)


def _build_separate_critic(job: PPOJob, lm: Any) -> tuple[Any, nn.Linear | None]:
    """A trunk that only the critic uses, in float32 because all of it is trained, and its value head if it has one."""
    assert job.model.path is not None
    init = job.reward.model if job.critic.init == "reward" else job.critic.init
    if init is None:
        if job.model.load_in_4bit:
            raise UserError(
                "critic.kind is separate and would copy the policy, but model.load_in_4bit holds weights that cannot "
                "be trained; name critic.init, or use critic.kind adapter"
            )
        return copy.deepcopy(lm.base_model).float(), None
    _check_same_vocabulary(job.model, init)
    trunk, value_head = load_critic(init, job.model.trust_remote_code)
    critic_length = context_length_of(trunk.config)
    policy_length = context_length_of(lm.config)
    if critic_length is not None and policy_length is not None and critic_length < policy_length:
        raise UserError(
            f"critic.init {init} has a context length of {critic_length}, but the policy's is {policy_length}"
        )
    disable_dropout(trunk)
    if job.model.gradient_checkpointing:
        enable_gradient_checkpointing(trunk)
    return trunk.float(), value_head


def load_critic(path: str, trust_remote_code: bool = False) -> tuple[Any, nn.Linear | None]:
    """Trunk and value head of a run folder with a critic, a reward model, or a language model (which has no head)."""
    from transformers import AutoConfig, AutoModel

    folder = Path(resolve(path))
    if (folder / CRITIC_TRUNK / "config.json").exists():
        return AutoModel.from_pretrained(folder / CRITIC_TRUNK, trust_remote_code=False), load_value_head(folder)
    value_head = load_value_head(folder) if (folder / VALUE_HEAD).exists() else None
    if (folder / "adapter_config.json").exists():
        return load_causal_lm(ModelConfig(path=path)).base_model, value_head
    architectures = AutoConfig.from_pretrained(str(folder)).architectures or []
    if any("SequenceClassification" in name for name in architectures):
        model = load_reward_model(path)
        if not hasattr(model, "score"):
            raise UserError(f"critic.init {path} is a {type(model).__name__}, which cannot value the middle of a text")
        return model.base_model, _normalized_score_head(model)
    lm = load_causal_lm(ModelConfig(path=path, trust_remote_code=trust_remote_code))
    return lm.base_model, value_head


def _normalized_score_head(model: Any) -> nn.Linear:
    """A reward model's head whose values are the scores as PPO uses them: shifted and scaled to mean 0, deviation 1."""
    mean = float(getattr(model.config, "score_mean", 0))
    std = float(getattr(model.config, "score_std", 1))
    head = new_value_head(model.score.in_features)
    with torch.no_grad():
        head.weight.copy_(model.score.weight.float() / std)
        bias = 0.0 if model.score.bias is None else model.score.bias.float()
        head.bias.copy_((bias - torch.tensor([mean])) / std)
    return head


def _check_same_vocabulary(policy: ModelConfig, critic_path: str) -> None:
    """Refuse a critic with another tokenizer: it reads the policy's token ids."""
    assert policy.path is not None
    policy_ids = load_tokenizer(policy.path, None, policy.trust_remote_code).get_vocab()
    critic_ids = load_tokenizer(critic_path).get_vocab()
    if policy_ids == critic_ids:
        return
    differing = [token for token in policy_ids if critic_ids.get(token) != policy_ids[token]]
    token = differing[0] if differing else next(t for t in critic_ids if t not in policy_ids)
    raise UserError(
        f"critic.init {critic_path} has another tokenizer than {policy.path} (token {token!r} has id "
        f"{critic_ids.get(token, 'none')} there and {policy_ids.get(token, 'none')} here), but a critic reads the "
        "policy's token ids"
    )
