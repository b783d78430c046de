"""What a path stands for, and how it becomes a model or a tokenizer; and the way back into a folder."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlhf.config.jobs import LoraConfig, ModelConfig
from rlhf.errors import UserError
from rlhf.models.actor_critic import ActorCritic, disable_dropout, unwrap_peft
from rlhf.models.adapters import CRITIC, POLICY, has_adapters

SCORE_STATISTICS = "score_statistics.json"
"""Beside a reward adapter: mean and deviation of its scores, which a whole model has in its config."""


def resolve(path: str) -> str:
    """The folder or hub id to load for a path: a run folder stands for the model it holds."""
    place = Path(path).expanduser()
    if place.is_dir():
        for folder in (place, place / "model"):
            if (folder / "config.json").exists() or (folder / "adapter_config.json").exists():
                return str(folder)
        raise UserError(f"folder {path} holds no model: there is no config.json in it or in its model folder")
    if place.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"model folder {path} does not exist" if not place.exists() else f"{path} is no folder")
    return path


def is_adapter(path: str) -> bool:
    """Whether a path holds a PEFT adapter instead of whole weights."""
    return (Path(resolve(path)) / "adapter_config.json").exists()


def load_tokenizer(path: str, chat_template: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer beside a model; `UserError` where there is none."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = resolve(path)
    kind = PreTrainedTokenizerFast if _is_generic_tokenizer(folder) else AutoTokenizer
    try:
        tokenizer = kind.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise UserError(f"cannot load a tokenizer from {_sought(path)}: {_first_line(error)}") from error
    if chat_template is not None:
        if not Path(chat_template).is_file():
            raise UserError(f"model.chat_template {chat_template} does not exist")
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"model.chat_template {chat_template} is not UTF-8 ({error})") from None
    return tokenizer


def _is_generic_tokenizer(folder: str) -> bool:
    """Whether a folder's tokenizer.json says all there is to know.

    AutoTokenizer would take the class of the model's family instead (Qwen2Tokenizer for a Qwen2 with any tokenizer at
    all), and that class rebuilds splitting and normalising by its own rules, without a word.
    """
    place = Path(folder)
    if not (place / "tokenizer.json").exists() or not (place / "tokenizer_config.json").exists():
        return False
    named = json.loads((place / "tokenizer_config.json").read_text(encoding="utf-8")).get("tokenizer_class")
    return named in ("TokenizersBackend", "PreTrainedTokenizerFast")


def check_causal(path: str, trust_remote_code: bool = False) -> Any:
    """The config of a causal language model, read without its weights; `UserError` where it is something else."""
    from transformers import AutoConfig

    folder = resolve(path)
    if (Path(folder) / "adapter_config.json").exists():
        return check_causal(_adapter_base(folder), trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{path} brings code of its own; look at it, then allow it with --model.trust_remote_code true"
            ) from error
        raise UserError(f"cannot load a model from {_sought(path)}: {_first_line(error)}") from error
    kinds = config.architectures or []
    if kinds and not any("CausalLM" in kind or "LMHead" in kind for kind in kinds):
        raise UserError(f"{path} holds a {kinds[0]}, which is no causal language model")
    return config


def context_length_of(config: Any) -> int | None:
    """The longest text that a model reads, in tokens; None where nothing bounds it."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def load_causal_lm(config: ModelConfig) -> Any:
    """A causal language model; adapters that lie in the folder are merged into its weights."""
    from transformers import AutoModelForCausalLM

    assert config.path is not None
    check_causal(config.path, config.trust_remote_code)
    folder = resolve(config.path)
    base = _adapter_base(folder) if is_adapter(config.path) else folder
    try:
        lm = AutoModelForCausalLM.from_pretrained(
            base,
            dtype=config.dtype if config.dtype == "auto" else getattr(torch, config.dtype),
            attn_implementation=config.attn_implementation,
            trust_remote_code=config.trust_remote_code,
            quantization_config=_four_bits(config),
        )
        if base != folder:
            from peft import PeftModel

            # The adapter becomes part of the weights, so that switching a new adapter off leaves the model of this
            # folder, not the base beneath it, as the reference.
            lm = PeftModel.from_pretrained(lm, folder).merge_and_unload()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot load a model from {config.path}: {_first_line(error)}") from error
    if config.gradient_checkpointing:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return lm


def _four_bits(config: ModelConfig) -> Any:
    """How weights are held in 4 bits (QLoRA: Dettmers et al., 2023); None for whole numbers.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    if not config.load_in_4bit:
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("model.load_in_4bit is true, but bitsandbytes is not installed; pip install bitsandbytes")
    from transformers import BitsAndBytesConfig

    dtype = torch.bfloat16 if config.dtype == "auto" else getattr(torch, config.dtype)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _adapter_base(folder: str) -> str:
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    if not base:
        raise UserError(f"adapter folder {folder} does not name the model it belongs to")
    return base


def add_lora(lm: Any, config: LoraConfig, task: str) -> Any:
    """The model with trainable low-rank adapters and frozen weights; unchanged where the rank is 0."""
    if config.rank == 0:
        return lm
    import peft

    width = lm.config.get_text_config().hidden_size
    if config.rank > width:
        raise UserError(f"model.lora.rank is {config.rank}, but the model is {width} wide: more rank adds nothing")
    settings = peft.LoraConfig(
        task_type=task,
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType]
        target_modules=config.targets or "all-linear",
        lora_dropout=0.0,
    )
    try:
        return peft.get_peft_model(lm, settings)
    except ValueError as error:
        raise UserError(f"model.lora.targets is {config.targets!r}: {_first_line(error)}") from error


def load_reward_model(path: str, dtype: torch.dtype = torch.float32) -> Any:
    """A sequence-classification model with one label; `UserError` where it has several."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    folder = resolve(path)
    if is_adapter(path):
        return _load_reward_adapter(path, dtype)
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:
        raise UserError(f"cannot load a reward model from {_sought(path)}: {_first_line(error)}") from error
    if not any("SequenceClassification" in kind for kind in config.architectures or []):
        kind = (config.architectures or ["model of unknown kind"])[0]
        raise UserError(f"{path} holds a {kind}, which is no reward model; train one with `rlhf reward`")
    if config.num_labels != 1:
        raise UserError(f"reward model {path} has {config.num_labels} labels, but a score needs exactly 1")
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
    disable_dropout(model)
    return model


def _load_reward_adapter(path: str, dtype: torch.dtype) -> Any:
    """A reward model that is an adapter and a head, merged into a copy of its base."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    if peft_config(path).task_type != "SEQ_CLS":
        raise UserError(f"{path} is an adapter of a language model, which is no reward model; train one, `rlhf reward`")
    base = AutoModelForSequenceClassification.from_pretrained(_adapter_base(resolve(path)), num_labels=1, dtype=dtype)
    model = PeftModel.from_pretrained(base, resolve(path)).merge_and_unload()
    for name, value in load_score_statistics(path).items():
        setattr(model.config, name, value)
    disable_dropout(model)
    return model


def load_score_statistics(path: str) -> dict[str, Any]:
    """What `rlhf reward` measured of a reward adapter's scores; empty for adapters from elsewhere."""
    file = Path(resolve(path)) / SCORE_STATISTICS
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def peft_config(path: str) -> Any:
    from peft import PeftConfig

    return PeftConfig.from_pretrained(resolve(path))


def is_compatible_adapter(path: str, model: ModelConfig) -> bool:
    """Whether a reward model is an adapter over the very base that an adapted policy stands on."""
    if model.path is None or model.lora.rank == 0 or not is_adapter(path) or is_adapter(model.path):
        return False
    if peft_config(path).task_type != "SEQ_CLS":
        return False
    ours, theirs = resolve(model.path), resolve(_adapter_base(resolve(path)))
    return Path(ours).resolve() == Path(theirs).resolve() if Path(ours).exists() else ours == theirs


def attach_reward_adapter(lm: Any, path: str, name: str) -> nn.Linear:
    """Add a reward adapter to an adapted language model, frozen, under a name; returns the head that reads it."""
    import dataclasses

    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    stored = load_file(str(Path(resolve(path)) / "adapter_model.safetensors"))
    heads = [key for key in stored if key.endswith("score.weight")]
    if len(heads) != 1:
        raise UserError(f"reward adapter {path} holds {len(heads)} scalar heads, but must hold one")
    trained = [p for p in lm.parameters() if p.requires_grad]
    lm.add_adapter(name, dataclasses.replace(peft_config(path), modules_to_save=None, task_type="CAUSAL_LM"))
    set_peft_model_state_dict(lm, {k: v for k, v in stored.items() if k not in heads}, adapter_name=name)
    for key, p in lm.named_parameters():
        if f".{name}." in key:
            p.requires_grad_(False)
    for p in trained:
        p.requires_grad_(True)
    weight = stored[heads[0]].float()
    head = nn.Linear(weight.shape[1], 1, bias=False, dtype=torch.float32)
    head.load_state_dict({"weight": weight})
    return head.requires_grad_(False)


def export(policy: ActorCritic, tokenizer: Any, folder: Path, config: ModelConfig, rates: Mapping[str, float]) -> None:
    """Write a policy as `export_lm` does, with the dropout rates it had, and its critic beside it."""
    from rlhf.models.build import save_critic

    for name, rate in rates.items():
        setattr(unwrap_peft(policy.lm).config.get_text_config(), name, rate)
    export_lm(policy.lm, tokenizer, folder, config)
    save_critic(policy, folder)


def export_lm(lm: Any, tokenizer: Any, folder: Path, config: ModelConfig) -> None:
    """Write what plain `from_pretrained` loads: whole weights, or an adapter as PEFT saves it.

    An adapter that was trained on top of another one belongs to merged weights that lie in no folder, so it is merged.
    """
    stacked = config.lora.rank > 0 and config.path is not None and is_adapter(config.path)
    if stacked or not has_adapters(lm):
        (lm.merge_and_unload() if stacked else lm).save_pretrained(folder)
    else:  # a reward model's adapter is not ours to write
        lm.save_pretrained(folder, selected_adapters=[name for name in (POLICY, CRITIC) if name in lm.peft_config])
    tokenizer.save_pretrained(folder)


def _sought(path: str) -> str:
    """A path as messages name it: a mistyped folder looks like a hub id, and is sought there."""
    return path if Path(path).expanduser().is_dir() else f"{path} (no folder here, so it was sought on the hub)"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
