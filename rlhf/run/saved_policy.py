"""The policy that a run folder, a checkpoint inside it, or a model folder holds."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from rlhf.config.jobs import DPOJob, PPOJob, SFTJob
from rlhf.config.parsing import from_dict, read_yaml
from rlhf.config.shared import GenerationConfig, ModelConfig
from rlhf.errors import UserError
from rlhf.models.actor_critic import ActorCritic, is_critic_weight
from rlhf.models.loading import add_lora, load_causal_lm, load_tokenizer
from rlhf.run.checkpoint import WEIGHTS, load_weights


def load_policy(path: str) -> tuple[Any, Any]:
    """Language model and tokenizer of a model folder, a run folder, a hub id, or a checkpoint inside a run folder.

    Raises:
        UserError: there is no model, or the checkpoint does not fit its run's config.
    """
    folder = Path(path)
    if (folder / WEIGHTS).exists():
        return _load_checkpoint(folder)
    return load_causal_lm(ModelConfig(path=path)), load_tokenizer(path)


def generation_of_run(path: str) -> GenerationConfig | None:
    """How the PPO run that a model comes from sampled its responses; None for other models.

    Args:
        path: a run folder, `model` in it, or a checkpoint in it.
    """
    folder = Path(path).expanduser().resolve()
    runs = [folder, *folder.parents[:2]] if folder.is_dir() else []
    file = next((run / "config.yaml" for run in runs if (run / "config.yaml").is_file()), None)
    settings = {} if file is None else read_yaml(file)
    if file is None or not isinstance(settings.get("generation"), dict) or "ppo" not in settings:
        return None
    names = {field.name for field in fields(GenerationConfig)}
    return GenerationConfig(**{name: value for name, value in settings["generation"].items() if name in names})


def _load_checkpoint(folder: Path) -> tuple[Any, Any]:
    run = folder.resolve().parents[1]
    settings = read_yaml(run / "config.yaml")
    is_ppo = "ppo" in settings
    kind = PPOJob if is_ppo else DPOJob if "dpo" in settings else SFTJob
    config = from_dict(kind, settings).model
    if config.path is None:
        raise UserError(
            f"{folder} is a checkpoint of a model trained from scratch, whose tokenizer is saved only when the run "
            "finishes; finish it with --resume auto"
        )
    lm = add_lora(load_causal_lm(config), config.lora, "CAUSAL_LM")
    # Checkpoints name weights as the trained module does, without those of the critic.
    module = ActorCritic(lm, critic=None) if is_ppo else nn.ModuleDict({"lm": lm})
    weights = {name: p for name, p in module.named_parameters() if p.requires_grad}
    load_weights(folder / WEIGHTS, weights, ignored=is_critic_weight)
    return lm, load_tokenizer(config.path, config.chat_template, config.trust_remote_code)
