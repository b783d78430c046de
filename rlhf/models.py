"""Actor and critic on one trunk, the reference, and the reward model. The one place that turns hidden states to logits.

Logits exist only where a response token was sampled: the trunk's states at those places are gathered into one
[N, hidden] matrix first, so neither prompts nor padding ever meet the vocabulary.
"""

import copy
import functools
import inspect
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rlhf.config import LoraConfig, ModelConfig
from rlhf.errors import UserError
from rlhf.types import PolicyOutput
from tabular.core.distributions import logprob_and_entropy

# ---------------------------------------------------------------------------------------- what a path stands for


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


def load_tokenizer(path: str, chat_template: str | None = None) -> Any:
    """The tokenizer beside a model; `UserError` where there is none."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = resolve(path)
    kind = PreTrainedTokenizerFast if _is_generic_tokenizer(folder) else AutoTokenizer
    try:
        tokenizer = kind.from_pretrained(folder)
    except Exception as error:
        raise UserError(f"cannot load a tokenizer from {path}: {_first_line(error)}") from error
    if chat_template is not None:
        if not Path(chat_template).is_file():
            raise UserError(f"model.chat_template {chat_template} does not exist")
        tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
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


def pad_id(tokenizer: Any) -> int:
    """An id to fill places that every mask hides; which one makes no difference, so any tokenizer has one."""
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def check_causal(path: str) -> Any:
    """The config of a causal language model, read without its weights; `UserError` where it is something else."""
    from transformers import AutoConfig

    folder = resolve(path)
    if (Path(folder) / "adapter_config.json").exists():
        return check_causal(_adapter_base(folder))
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:
        raise UserError(f"cannot load a model from {path}: {_first_line(error)}") from error
    kinds = config.architectures or []
    if kinds and not any("CausalLM" in kind or "LMHead" in kind for kind in kinds):
        raise UserError(f"{path} holds a {kinds[0]}, which is no causal language model")
    return config


def room_of(config: Any) -> int | None:
    """The longest text that a model reads, in tokens; None where nothing bounds it."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def load_causal_lm(config: ModelConfig) -> Any:
    """A causal language model; adapters that lie in the folder are merged into its weights."""
    from transformers import AutoModelForCausalLM

    assert config.path is not None
    check_causal(config.path)
    folder = resolve(config.path)
    base = _adapter_base(folder) if is_adapter(config.path) else folder
    try:
        lm = AutoModelForCausalLM.from_pretrained(
            base,
            dtype=config.dtype if config.dtype == "auto" else getattr(torch, config.dtype),
            attn_implementation=config.attn_implementation,
            trust_remote_code=config.trust_remote_code,
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


def load_policy(path: str) -> tuple[Any, Any]:
    """Model and tokenizer of a model folder, a run folder, or a checkpoint inside a run folder."""
    from rlhf.checkpoint import WEIGHTS, load_weights
    from rlhf.config import PPOJob, SFTJob
    from rlhf.parsing import from_dict, read_yaml

    place = Path(path)
    if not (place / WEIGHTS).exists():
        return load_causal_lm(ModelConfig(path=path)), load_tokenizer(path)
    run = place.resolve().parents[1]
    settings = read_yaml(run / "config.yaml")
    if "ppo" in settings:
        config = from_dict(PPOJob, settings).model
        whole: nn.Module = ActorCritic(add_lora(load_causal_lm(config), config.lora, "CAUSAL_LM"))
    else:
        config = from_dict(SFTJob, settings).model
        if config.path is None:
            raise UserError(
                f"{path} is a checkpoint of a model from scratch: its tokenizer lies in the finished run only"
            )
        whole = nn.ModuleDict({"lm": add_lora(load_causal_lm(config), config.lora, "CAUSAL_LM")})
    assert config.path is not None
    load_weights(place / WEIGHTS, {name: p for name, p in whole.named_parameters() if p.requires_grad})
    return whole.lm, load_tokenizer(config.path, config.chat_template)


def is_adapter(path: str) -> bool:
    """Whether a path holds a PEFT adapter instead of whole weights."""
    return (Path(resolve(path)) / "adapter_config.json").exists()


def _adapter_base(folder: str) -> str:
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    if not base:
        raise UserError(f"adapter folder {folder} does not name the model it belongs to")
    return base


def add_lora(lm: Any, config: LoraConfig, task: str, **extra: Any) -> Any:
    """The model with trainable low-rank adapters and frozen weights; unchanged where the rank is 0."""
    if config.rank == 0:
        return lm
    import peft

    settings = peft.LoraConfig(
        task_type=task,
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType]
        target_modules=config.targets or "all-linear",
        lora_dropout=0.0,
        **extra,
    )
    try:
        return peft.get_peft_model(lm, settings)
    except ValueError as error:
        raise UserError(f"model.lora.targets is {config.targets!r}: {_first_line(error)}") from error


def disable_dropout(model: Any) -> dict[str, float]:
    """Set every dropout rate to zero; otherwise two forwards differ and the first ratio is not 1.

    Rates, not `eval()`: evaluation mode would switch gradient checkpointing off as well. Some families read them from
    the config at every forward, so they are zero there too; returns what they were, for the config that is saved.
    """
    config = model.config.get_text_config()
    rates = {name: rate for name, rate in vars(config).items() if "drop" in name and isinstance(rate, float)}
    for name in rates:
        setattr(config, name, 0.0)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    return rates


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


# ----------------------------------------------------------------------------------------------------- the trunk


def inner(lm: Any) -> Any:
    """The transformers model itself, without PEFT's wrapping; its adapters stay active."""
    return lm.get_base_model() if hasattr(lm, "get_base_model") else lm


def positions(mask: Bool[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """Position ids that give the first real token position 0, however much padding stands before it."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def trunk_inputs(lm: Any, mask: Bool[Tensor, "B L"]) -> dict[str, Tensor]:
    """The arguments by which a trunk learns what is padding."""
    given = {"attention_mask": mask.long()}
    return given | ({"position_ids": positions(mask)} if _takes_positions(type(inner(lm).base_model)) else {})


@functools.cache
def _takes_positions(trunk: type) -> bool:
    return "position_ids" in inspect.signature(trunk.forward).parameters  # pyright: ignore[reportAttributeAccessIssue]


def logits_of(lm: Any, hidden: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
    """What the model's head says of hidden states, in float32."""
    model = inner(lm)
    logits = model.get_output_embeddings()(hidden).float()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def response_states(
    lm: Any,
    prompt_ids: Int[Tensor, "B P"],
    prompt_mask: Bool[Tensor, "B P"],
    response_ids: Int[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
) -> Float[Tensor, "N H"]:
    """The trunk's last state before each of the N True response tokens, row by row."""
    ids = torch.cat([prompt_ids, response_ids], dim=1)
    mask = torch.cat([prompt_mask, response_mask], dim=1)
    hidden = inner(lm).base_model(input_ids=ids, use_cache=False, **trunk_inputs(lm, mask)).last_hidden_state
    before = prompt_ids.shape[1] - 1
    return hidden[:, before : before + response_ids.shape[1]][response_mask]


def spread(values: Float[Tensor, "N"], mask: Bool[Tensor, "B R"]) -> Float[Tensor, "B R"]:
    """Put one value per True place back to its place, zeros elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)


@torch.no_grad()
def check_head(lm: Any) -> None:
    """Refuse a model whose logits are not its head applied to its trunk: every log-probability would be wrong."""
    model = inner(lm)
    device = model.get_output_embeddings().weight.device
    ids = torch.arange(1, 5, device=device).unsqueeze(0)
    mask = torch.ones_like(ids, dtype=torch.bool)
    whole = model(input_ids=ids, **trunk_inputs(lm, mask)).logits[0].float()
    parts = logits_of(lm, model.base_model(input_ids=ids, **trunk_inputs(lm, mask)).last_hidden_state[0])
    if not torch.allclose(whole, parts, rtol=1e-2, atol=1e-3):
        raise UserError(
            f"{type(model).__name__} changes its logits after the head in a way that is not known here "
            f"(largest difference {float((whole - parts).abs().max()):.3g}); it cannot be trained"
        )


# ---------------------------------------------------------------------------------------------- actor and critic


class ActorCritic(nn.Module):
    """A causal language model with a float32 value head on its trunk, zero at the start (Ziegler et al., 2019)."""

    def __init__(self, lm: Any):
        super().__init__()
        self.lm = lm
        self.value_head = nn.Linear(inner(lm).get_output_embeddings().in_features, 1, dtype=torch.float32)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(
        self,
        prompt_ids: Int[Tensor, "B P"],
        prompt_mask: Bool[Tensor, "B P"],
        response_ids: Int[Tensor, "B R"],
        response_mask: Bool[Tensor, "B R"],
        temperature: float,
    ) -> PolicyOutput:
        """Log-probability, entropy and value at every response token; zeros where `response_mask` is False."""
        states = response_states(self.lm, prompt_ids, prompt_mask, response_ids, response_mask)
        logits = logits_of(self.lm, states) / temperature
        logprobs, entropy = logprob_and_entropy(logits, response_ids[response_mask])
        with torch.autocast(states.device.type, enabled=False):
            values = self.value_head(states.float()).squeeze(-1)
        return PolicyOutput(*(spread(x, response_mask) for x in (logprobs, entropy, values)))

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of everything that is trained; tied weights appear once."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


class Reference:
    """The policy before training, frozen: the adapted model with its adapters off, or a model of its own."""

    def __init__(self, lm: Any):
        self.lm = lm
        self._shares_weights = hasattr(lm, "disable_adapter")
        if not self._shares_weights:
            lm.requires_grad_(False).eval()

    @classmethod
    def of(cls, lm: Any) -> "Reference":
        """The reference of a policy that is about to be trained: a copy, unless adapters leave its weights alone."""
        return cls(lm if hasattr(lm, "disable_adapter") else copy.deepcopy(lm))

    def to(self, device: torch.device) -> "Reference":
        self.lm.to(device)
        return self

    def _as_reference(self) -> AbstractContextManager[Any]:
        return self.lm.disable_adapter() if self._shares_weights else nullcontext()

    @torch.no_grad()
    def logprobs(
        self,
        prompt_ids: Int[Tensor, "B P"],
        prompt_mask: Bool[Tensor, "B P"],
        response_ids: Int[Tensor, "B R"],
        response_mask: Bool[Tensor, "B R"],
        temperature: float,
    ) -> Float[Tensor, "B R"]:
        """Log-probability of every response token under the reference, at the policy's temperature."""
        with self._as_reference():
            states = response_states(self.lm, prompt_ids, prompt_mask, response_ids, response_mask)
            logits = logits_of(self.lm, states) / temperature
        logprobs, _ = logprob_and_entropy(logits, response_ids[response_mask])
        return spread(logprobs, response_mask)


def export(policy: ActorCritic, tokenizer: Any, folder: Path, config: ModelConfig, rates: Mapping[str, float]) -> None:
    """Write a policy as `export_lm` does, with the dropout rates it had, and its value head beside it."""
    from safetensors.torch import save_file

    for name, rate in rates.items():
        setattr(inner(policy.lm).config.get_text_config(), name, rate)
    export_lm(policy.lm, tokenizer, folder, config)
    head = {name: p.detach().cpu().contiguous() for name, p in policy.value_head.named_parameters()}
    save_file(head, str(folder / "value_head.safetensors"))


def export_lm(lm: Any, tokenizer: Any, folder: Path, config: ModelConfig) -> None:
    """Write what plain `from_pretrained` loads: whole weights, or an adapter as PEFT saves it.

    An adapter that was trained on top of another one belongs to merged weights that lie in no folder, so it is merged.
    """
    stacked = config.lora.rank > 0 and config.path is not None and is_adapter(config.path)
    (lm.merge_and_unload() if stacked else lm).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# -------------------------------------------------------------------------------------------------- reward model


def load_reward_model(path: str, dtype: torch.dtype = torch.float32) -> Any:
    """A sequence-classification model with one label; `UserError` where it has several."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    if is_adapter(path):
        raise UserError(f"reward model {path} is an adapter alone; merge it into its base model first")
    folder = resolve(path)
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:
        raise UserError(f"cannot load a reward model from {path}: {_first_line(error)}") from error
    if not any("SequenceClassification" in kind for kind in config.architectures or []):
        kind = (config.architectures or ["model of unknown kind"])[0]
        raise UserError(f"{path} holds a {kind}, which is no reward model; train one with `rlhf reward`")
    if config.num_labels != 1:
        raise UserError(f"reward model {path} has {config.num_labels} labels, but a score needs exactly 1")
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
    disable_dropout(model)
    return model


def sequence_scores(model: Any, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B"]:
    """The scalar head's value at the last real token of right-padded texts; an encoder's own pooling where it has one.

    The last True of the mask, not the last id that differs from padding: where pad and end are one token, the
    transformers' own rule reads the token before the end.
    """
    model = inner(model)
    if not hasattr(model, "score"):
        return model(input_ids=ids, attention_mask=mask.long()).logits.squeeze(-1).float()
    hidden = model.base_model(input_ids=ids, use_cache=False, **trunk_inputs(model, mask)).last_hidden_state
    last = mask.long().sum(-1) - 1
    return model.score(hidden[torch.arange(len(ids), device=ids.device), last]).squeeze(-1).float()
