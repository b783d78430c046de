"""From a path to a tokenizer, a config or a causal language model, with trainable adapters on request."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch

from rlhf.config.shared import LoraConfig, ModelConfig
from rlhf.errors import UserError
from rlhf.models.trunk import enable_gradient_checkpointing


def resolve(path: str) -> str:
    """The absolute folder or the hub id to load for a path; a run folder stands for the model in it.

    Absolute, because an adapter that is saved names the folder of its base, and is loaded from elsewhere later.

    Raises:
        UserError: the path is a folder without a model, a file, or a folder that does not exist.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        for folder in (place, place / "model"):
            if (folder / "config.json").exists() or (folder / "adapter_config.json").exists():
                return str(folder.absolute())
        raise UserError(f"folder {path} holds no model: there is no config.json in it or in its model folder")
    if place.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"model folder {path} does not exist" if not place.exists() else f"{path} is no folder")
    return path


def is_adapter(path: str) -> bool:
    """Whether a path holds a PEFT adapter instead of whole weights."""
    return (Path(resolve(path)) / "adapter_config.json").exists()


def load_tokenizer(path: str, chat_template: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer beside a model.

    Args:
        chat_template: a Jinja file that replaces the tokenizer's chat template.

    Raises:
        UserError: there is no tokenizer, or the template file cannot be read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = resolve(path)
    tokenizer_class = PreTrainedTokenizerFast if _is_generic_tokenizer(folder) else AutoTokenizer
    try:
        tokenizer = tokenizer_class.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise UserError(f"cannot load a tokenizer from {describe_source(path)}: {first_line(error)}") from error
    if chat_template is not None:
        if not Path(chat_template).is_file():
            raise UserError(f"model.chat_template {chat_template} does not exist")
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"model.chat_template {chat_template} is not UTF-8 ({error})") from None
    return tokenizer


def _is_generic_tokenizer(folder: str) -> bool:
    """Whether a folder's tokenizer.json describes its tokenizer completely.

    AutoTokenizer would use the class of the model's family instead (Qwen2Tokenizer for a Qwen2 with any tokenizer at
    all), and that class silently rebuilds splitting and normalisation by its own rules.
    """
    place = Path(folder)
    if not (place / "tokenizer.json").exists() or not (place / "tokenizer_config.json").exists():
        return False
    settings = json.loads((place / "tokenizer_config.json").read_text(encoding="utf-8"))
    return settings.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast")


def check_causal(path: str, trust_remote_code: bool = False) -> Any:
    """The config of a causal language model, read without its weights.

    Raises:
        UserError: the path holds no model, a model of another kind, or one that needs code of its own.
    """
    from transformers import AutoConfig

    folder = resolve(path)
    if (Path(folder) / "adapter_config.json").exists():
        return check_causal(adapter_base(folder), trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{path} brings code of its own; look at it, then allow it with --model.trust_remote_code true"
            ) from error
        raise UserError(f"cannot load a model from {describe_source(path)}: {first_line(error)}") from error
    architectures = config.architectures or []
    if architectures and not any("CausalLM" in name or "LMHead" in name for name in architectures):
        raise UserError(f"{path} holds a {architectures[0]}, which is no causal language model")
    return config


def context_length_of(config: Any) -> int | None:
    """A model's context length in tokens; None where nothing bounds it."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def load_causal_lm(config: ModelConfig) -> Any:
    """A causal language model; an adapter in the folder is merged into its base's weights.

    Raises:
        UserError: it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    assert config.path is not None
    check_causal(config.path, config.trust_remote_code)
    folder = resolve(config.path)
    base = adapter_base(folder) if is_adapter(config.path) else folder
    try:
        lm = AutoModelForCausalLM.from_pretrained(
            base,
            dtype=config.dtype if config.dtype == "auto" else getattr(torch, config.dtype),
            attn_implementation=config.attn_implementation,
            trust_remote_code=config.trust_remote_code,
            quantization_config=_four_bit_config(config),
        )
        if base != folder:
            from peft import PeftModel

            # Merged, so that deactivating a new adapter gives the model of this folder, not the base beneath it, as
            # the reference.
            lm = PeftModel.from_pretrained(lm, folder).merge_and_unload()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot load a model from {config.path}: {first_line(error)}") from error
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(lm)
    return lm


def _four_bit_config(config: ModelConfig) -> Any:
    """How weights are quantised to 4 bits (QLoRA: Dettmers et al., 2023); None for unquantised weights.

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


def adapter_base(folder: str) -> str:
    """The hub id or folder of the model that an adapter belongs to."""
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    if not base:
        raise UserError(f"adapter folder {folder} does not name the model it belongs to")
    return base


def add_lora(lm: Any, config: LoraConfig, task: str) -> Any:
    """The model with trainable low-rank adapters and frozen weights; unchanged where the rank is 0.

    Args:
        task: PEFT's task type, CAUSAL_LM or SEQ_CLS.

    Raises:
        UserError: the rank exceeds the model's width, or a target does not exist.
    """
    if config.rank == 0:
        return lm
    import peft

    width = lm.config.get_text_config().hidden_size
    if config.rank > width:
        raise UserError(
            f"model.lora.rank is {config.rank}, but must be at most the model's width, {width}: more rank adds nothing"
        )
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
        raise UserError(f"model.lora.targets is {config.targets!r}: {first_line(error)}") from error


def describe_source(path: str) -> str:
    """A path for messages: a mistyped folder looks like a hub id, and was looked up on the hub."""
    return path if Path(path).expanduser().is_dir() else f"{path} (no such folder, so it was looked up on the hub)"


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
