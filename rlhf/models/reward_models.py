"""Reward models: sequence classifiers with one label, whole or as an adapter over the policy's own base."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlhf.config.shared import ModelConfig
from rlhf.errors import UserError
from rlhf.models.adapters import is_adapter_weight
from rlhf.models.loading import adapter_base, describe_source, first_line, is_adapter, resolve
from rlhf.models.trunk import disable_dropout

SCORE_STATISTICS = "score_statistics.json"
"""Beside a reward adapter: mean and deviation of its scores, which a whole reward model has in its config."""


def load_reward_model(path: str, dtype: str = "float32", label: str | None = None) -> Any:
    """A sequence-classification model; an adapter is merged into a copy of its base, in float32.

    Args:
        dtype: of the weights, as torch names it; auto: that of the files.
        label: the label whose logit is the score, as `label_index` reads it.

    Raises:
        UserError: the path holds no such model, or one with several labels of which none is named.
    """
    from transformers import AutoModelForSequenceClassification

    folder = resolve(path)
    loaded_dtype: Any = dtype if dtype == "auto" else getattr(torch, dtype)
    if is_adapter(path):
        return _load_reward_adapter(path, loaded_dtype)
    config = _read_config(path)
    if not any("SequenceClassification" in name for name in config.architectures or []):
        architecture = (config.architectures or ["model of unknown kind"])[0]
        raise UserError(f"{path} holds a {architecture}, which is no reward model; train one with `rlhf reward`")
    label_index(path, config, label)
    try:
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=loaded_dtype, trust_remote_code=False)
    except Exception as error:  # readers of damaged files raise many kinds
        raise UserError(f"cannot load a reward model from {describe_source(path)}: {first_line(error)}") from error
    disable_dropout(model)
    return model


def _read_config(path: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(resolve(path), trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"reward model {path} brings code of its own, which is not run; score with a function that loads it"
            ) from error
        raise UserError(f"cannot load a reward model from {describe_source(path)}: {first_line(error)}") from error


def label_index(path: str, config: Any, label: str | None) -> int:
    """The position of a reward model's label, named by the model's config or by its number; the only one for None.

    Raises:
        UserError: there are several and none is named, or there is no such label.
    """
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    if label is None:
        if len(names) != 1:
            raise UserError(
                f"reward model {path} has {len(names)} labels ({', '.join(names[:8])}), but a score is one number; "
                "name the one to use, as with --reward.label"
            )
        return 0
    if label in names:
        return names.index(label)
    if label.isdigit() and int(label) < len(names):
        return int(label)
    raise UserError(f"reward model {path} has no label {label!r}; it has {', '.join(names[:8])}")


def _load_reward_adapter(path: str, dtype: Any) -> Any:
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForSequenceClassification

    if _adapter_config(path).task_type != "SEQ_CLS":
        raise UserError(
            f"{path} is an adapter of a language model, which is no reward model; train one with `rlhf reward`"
        )
    base_path = adapter_base(resolve(path))
    try:
        base = AutoModelForSequenceClassification.from_pretrained(
            base_path, num_labels=1, dtype=torch.float32, trust_remote_code=False
        )
        model = PeftModel.from_pretrained(base, resolve(path)).merge_and_unload()
    except Exception as error:
        raise UserError(f"cannot load a reward adapter from {path}: {first_line(error)}") from error
    if dtype == "auto":
        dtype = AutoConfig.from_pretrained(base_path, trust_remote_code=False).dtype or torch.float32
    model.to(dtype)
    for name, value in load_score_statistics(path).items():
        setattr(model.config, name, value)
    disable_dropout(model)
    return model


def scores_every_token(path: str) -> bool:
    """Whether a whole reward model has a head that can score the text up to any token, as decoders have.

    Raises:
        UserError: its config cannot be read.
    """
    from transformers import AutoModelForSequenceClassification

    config = _read_config(path)
    with torch.device("meta"):
        return hasattr(AutoModelForSequenceClassification.from_config(config), "score")


def load_score_statistics(path: str) -> dict[str, Any]:
    """What `rlhf reward` measured of a reward adapter's scores: score_mean, score_std, append_eos, ..."""
    file = Path(resolve(path)) / SCORE_STATISTICS
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def is_compatible_adapter(path: str, policy: ModelConfig) -> bool:
    """Whether a reward model is an adapter over the same base as an adapted policy, so that both can share it."""
    if policy.path is None or policy.lora.rank == 0 or not is_adapter(path) or is_adapter(policy.path):
        return False
    if _adapter_config(path).task_type != "SEQ_CLS":
        return False
    policy_base = resolve(policy.path)
    reward_base = resolve(adapter_base(resolve(path)))
    if Path(policy_base).exists():
        return Path(policy_base).resolve() == Path(reward_base).resolve()
    return policy_base == reward_base


def attach_reward_adapter(lm: Any, path: str, name: str) -> nn.Linear:
    """Add a reward adapter, frozen, to an adapted language model.

    Args:
        lm: the policy; what it trains stays trainable.
        path: the adapter's folder.
        name: the adapter's name in `lm`.

    Returns:
        The scalar head, which reads the states of the trunk while that adapter is active.

    Raises:
        UserError: the folder does not hold exactly one scalar head.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    stored = load_file(str(Path(resolve(path)) / "adapter_model.safetensors"))
    heads = [key for key in stored if key.endswith("score.weight")]
    if len(heads) != 1:
        raise UserError(f"reward adapter {path} holds {len(heads)} scalar heads, but must hold one")
    trained = [p for p in lm.parameters() if p.requires_grad]
    lm.add_adapter(name, dataclasses.replace(_adapter_config(path), modules_to_save=None, task_type="CAUSAL_LM"))
    set_peft_model_state_dict(lm, {k: v for k, v in stored.items() if k not in heads}, adapter_name=name)
    for parameter_name, p in lm.named_parameters():
        if is_adapter_weight(parameter_name, name):
            p.requires_grad_(False)
    for p in trained:  # PEFT froze them when the new adapter became the active one
        p.requires_grad_(True)
    weight = stored[heads[0]].float()
    head = nn.Linear(weight.shape[1], 1, bias=False, dtype=torch.float32)
    head.load_state_dict({"weight": weight})
    return head.requires_grad_(False)


def _adapter_config(path: str) -> Any:
    from peft import PeftConfig

    return PeftConfig.from_pretrained(resolve(path))
