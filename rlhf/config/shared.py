"""Settings that several stages share: model, data, generation, scores, evaluation, checkpoints, supervised training.

A dataclass checks its own values when it is made, with the setting's full name in the message, so that a mistake in a
file, an option or a Python call ends in the same words.
"""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from rlhf.errors import UserError


def check(ok: bool, key: str, value: object, need: str) -> None:
    if not ok:
        raise UserError(f"{key} is {value!r}, but it must be {need}")


def reject_unused(group: Any, prefix: str, names: tuple[str, ...], why: str) -> None:
    """Refuse settings that were given but would never be read."""
    defaults = {f.name: f.default for f in fields(group)}
    for name in names:
        if getattr(group, name) != defaults[name]:
            raise UserError(f"{prefix}.{name} is {getattr(group, name)!r}, but it would never be read: {why}; drop it")


def divisors_near(part: int, whole: int) -> str:
    """The divisors of `whole` nearest to `part`, in words."""
    divisors = [d for d in range(1, whole + 1) if whole % d == 0]
    nearest = sorted(sorted(divisors, key=lambda d: abs(d - part))[:3])
    return ", ".join(map(str, nearest))


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al., 2021) through PEFT."""

    rank: int = 0
    """Rank of the adapters; 0 trains all weights."""
    alpha: float = 16.0
    """The adapter's output is scaled by alpha / rank."""
    targets: list[str] | None = None
    """Names of the modules that get an adapter; null means every linear layer but the output head."""

    def __post_init__(self):
        check(self.rank >= 0, "model.lora.rank", self.rank, "0 (train all weights) or a positive rank")
        check(self.alpha > 0, "model.lora.alpha", self.alpha, "positive")
        if self.rank == 0:
            reject_unused(self, "model.lora", ("alpha", "targets"), "model.lora.rank is 0")


@dataclass(frozen=True)
class ModelConfig:
    """Which causal language model to start from, and how to hold it."""

    path: str | None = None
    """Hub id or folder of a causal language model, or a run folder of an earlier stage."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Type of the stored weights. For full fine-tuning keep float32 and use mixed_precision."""
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    """Type of the arithmetic; null takes what the launcher says."""
    attn_implementation: str | None = None
    """Attention kernel: eager, sdpa, flash_attention_2; null lets transformers choose."""
    load_in_4bit: bool = False
    """Hold the frozen weights in 4 bits (NF4; Dettmers et al., 2023): needs bitsandbytes and adapters."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    trust_remote_code: bool = False
    """Run model code that comes with a hub repository."""
    chat_template: str | None = None
    """A Jinja file with the chat template, for tokenizers that have none."""
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self):
        if self.load_in_4bit and self.lora.rank == 0:
            raise UserError(
                "model.load_in_4bit is true and model.lora.rank is 0, but weights of 4 bits cannot be trained; "
                "train adapters on them with --model.lora.rank 16"
            )


@dataclass(frozen=True)
class ScratchConfig:
    """A new model with random weights and a byte-level BPE tokenizer trained on the data."""

    model_type: str | None = None
    """Architecture such as llama, gpt2 or qwen2; null starts from model.path instead."""
    vocab_size: int = 4096
    """Entries of the new tokenizer."""
    hidden_size: int = 128
    """Width of the model; its feed-forward layers are four times as wide where the architecture lets one choose."""
    num_layers: int = 2
    """Transformer blocks."""
    num_heads: int = 4
    """Attention heads; a divisor of hidden_size."""
    max_positions: int = 512
    """Longest text the model can read, in tokens."""
    dropout: float = 0.1
    """Dropout rates of the architecture, in SFT and reward modelling; PPO always runs without."""
    lowercase: bool = False
    """Lower-case all text in the tokenizer."""

    def __post_init__(self):
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "max_positions"):
            check(getattr(self, name) > 0, f"scratch.{name}", getattr(self, name), "positive")
        check(0 <= self.dropout < 1, "scratch.dropout", self.dropout, "at least 0 and below 1")
        check(self.vocab_size >= 260, "scratch.vocab_size", self.vocab_size, "at least 260 (256 bytes, special tokens)")
        check(
            self.hidden_size % self.num_heads == 0,
            "scratch.num_heads",
            self.num_heads,
            f"a divisor of scratch.hidden_size = {self.hidden_size}, "
            f"such as {divisors_near(self.num_heads, self.hidden_size)}",
        )
        check(
            self.hidden_size // self.num_heads % 2 == 0,
            "scratch.hidden_size",
            self.hidden_size,
            f"an even multiple of scratch.num_heads = {self.num_heads}, for rotary positions turn pairs of numbers",
        )


@dataclass(frozen=True)
class DataConfig:
    """Where the examples come from."""

    path: str | None = None
    """Hub id, a json, jsonl, csv or parquet file, or a folder written by `save_to_disk`."""
    split: str = "train"
    """Split of a hub dataset or saved folder to train on."""
    eval_path: str | None = None
    """Held-out examples; null holds out eval_fraction of the training examples."""
    eval_split: str | None = None
    """Split to evaluate on: of eval_path, or of path where eval_path is null."""
    eval_fraction: float = 0.05
    """Share of the training examples held out where nothing else is named; 0 turns evaluation off."""
    max_prompt_length: int = 512
    """Longest prompt, in tokens."""
    too_long: Literal["error", "drop", "truncate"] = "error"
    """What happens to longer prompts; truncate keeps the end of the prompt."""

    def __post_init__(self):
        check(0 <= self.eval_fraction < 1, "data.eval_fraction", self.eval_fraction, "at least 0 and below 1")
        check(self.max_prompt_length > 0, "data.max_prompt_length", self.max_prompt_length, "positive")


@dataclass(frozen=True)
class GenerationConfig:
    """How responses are sampled. Nothing here may make the sampled and the scored distribution differ."""

    max_new_tokens: int = 64
    """Longest response, in tokens, its end token included."""
    temperature: float = 1.0
    """Divides the logits, when sampling and in every log-probability alike."""
    min_new_tokens: int = 0
    """Before so many tokens no end token is possible, in sampling and in every log-probability alike; a stop string
    may still end a response."""
    suppress_ids: list[int] = field(default_factory=list)
    """Token ids that are never possible, in sampling and in every log-probability alike."""
    stop_ids: list[int] | None = None
    """Token ids that end a response; null takes the end tokens of the tokenizer and of the model."""
    stop_strings: list[str] = field(default_factory=list)
    """Texts that end a response; the token that completes one is its last. Reward sources do not see them."""
    max_rows: int | None = None
    """Responses sampled at once on one device; null samples them all together."""

    def __post_init__(self):
        check(self.max_new_tokens > 0, "generation.max_new_tokens", self.max_new_tokens, "positive")
        check(self.temperature > 0, "generation.temperature", self.temperature, "positive")
        check(
            self.stop_ids is None or len(self.stop_ids) > 0, "generation.stop_ids", self.stop_ids, "null or not empty"
        )
        check(
            0 <= self.min_new_tokens < self.max_new_tokens or self.min_new_tokens == 0,
            "generation.min_new_tokens",
            self.min_new_tokens,
            f"at least 0 and below generation.max_new_tokens = {self.max_new_tokens}",
        )
        check(all(self.stop_strings), "generation.stop_strings", self.stop_strings, "without empty strings")
        check(self.max_rows is None or self.max_rows > 0, "generation.max_rows", self.max_rows, "null or positive")


@dataclass(frozen=True)
class SourceConfig:
    """Where scores come from: a reward model or a Python function."""

    model: str | None = None
    """Hub id, folder or run folder of a sequence-classification model with one label."""
    function: str | None = None
    """`file.py:name` or `package.module:name`; called as fn(prompts=..., completions=..., **columns)."""
    batch_size: int = 64
    """Texts that a reward model reads at once."""
    normalize: bool = True
    """Use the mean and deviation that a reward model's config names, so that scores have mean 0 and deviation 1."""


@dataclass(frozen=True)
class RewardConfig(SourceConfig):
    """The scores that are trained on, and what a response that breaks the rules gets in their place."""

    truncated: Literal["replace", "overlong", "bootstrap", "mask"] = "replace"
    """What becomes of responses that the length limit cut off. replace: see missing_eos_penalty. overlong: every
    response pays for its last tokens before the limit, see overlong_penalty. bootstrap: the critic's value at the cut
    stands for the score that was never reached. mask: they are left out of the loss."""
    missing_eos_penalty: float | None = 1.0
    """A response cut off by the length limit scores minus this instead; null leaves its score alone."""
    overlong_penalty: float = 1.0
    """What a response of full length loses; grows from 0 over the last overlong_buffer tokens (Yu et al., 2025)."""
    overlong_buffer: int = 16
    """See overlong_penalty, in tokens."""
    running_scale: bool = False
    """Divide scores by the deviation of all scores so far; their mean is not taken away (Zheng et al., 2023)."""
    clip: float | None = None
    """Bound on the size of a score, after scaling; null does not clip."""
    min_length: int = 0
    """Responses with fewer tokens than this, end token included, score minus short_penalty instead."""
    short_penalty: float = 1.0
    """See min_length."""

    def __post_init__(self):
        check_source(self, "reward")
        check(self.min_length >= 0, "reward.min_length", self.min_length, "at least 0")
        if self.min_length == 0:
            reject_unused(self, "reward", ("short_penalty",), "reward.min_length is 0")
        check(self.short_penalty >= 0, "reward.short_penalty", self.short_penalty, "at least 0; it is subtracted")
        check(self.clip is None or self.clip > 0, "reward.clip", self.clip, "null or positive")
        check(self.overlong_penalty >= 0, "reward.overlong_penalty", self.overlong_penalty, "at least 0")
        check(self.overlong_buffer > 0, "reward.overlong_buffer", self.overlong_buffer, "positive")
        why = f"reward.truncated is {self.truncated}"
        if self.truncated != "replace":
            reject_unused(self, "reward", ("missing_eos_penalty",), why)
        if self.truncated != "overlong":
            reject_unused(self, "reward", ("overlong_penalty", "overlong_buffer"), why)
        cut = self.missing_eos_penalty
        check(cut is None or cut >= 0, "reward.missing_eos_penalty", cut, "null or at least 0; it is subtracted")


@dataclass(frozen=True)
class JudgeConfig(SourceConfig):
    """A second opinion for evaluation, which training never sees."""

    def __post_init__(self):
        check_source(self, "eval.judge")


def check_source(source: SourceConfig, key: str) -> None:
    if source.model is not None and source.function is not None:
        raise UserError(f"{key}.model and {key}.function are both set; scores come from one source: unset one of them")
    check(source.batch_size > 0, f"{key}.batch_size", source.batch_size, "positive")
    if source.function is not None:
        reject_unused(source, key, ("batch_size", "normalize"), f"{key}.function gives its scores as they are")
        check(":" in source.function, f"{key}.function", source.function, "of the form file.py:name or module:name")


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation on held-out prompts: before the first step, every few steps, and after the last."""

    every: int = 50
    """Steps between evaluations; 0 evaluates only before the first and after the last."""
    prompts: int = 256
    """Held-out prompts to use, at most."""
    samples: int = 16
    """Responses of each evaluation that samples.jsonl keeps."""
    batch_size: int = 64
    """Responses in one forward pass on one device."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    def __post_init__(self):
        check(self.every >= 0, "eval.every", self.every, "at least 0")
        check(self.prompts > 0, "eval.prompts", self.prompts, "positive")
        check(self.samples >= 0, "eval.samples", self.samples, "at least 0")
        check(self.batch_size > 0, "eval.batch_size", self.batch_size, "positive")


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints hold all that a resume needs."""

    every: int = 50
    """Steps between checkpoints, the last step included; 0 saves only when the run is asked to stop."""
    keep: int | None = None
    """Delete all but this many newest checkpoints; null keeps every one."""

    def __post_init__(self):
        check(self.every >= 0, "checkpoint.every", self.every, "at least 0")
        check(self.keep is None or self.keep > 0, "checkpoint.keep", self.keep, "null or positive")


@dataclass(frozen=True)
class TrainingConfig:
    """The supervised loop that SFT and reward modelling share."""

    epochs: float = 1.0
    """Passes over the data."""
    batch_size: int = 32
    """Examples for one optimizer step, over all processes."""
    microbatch_size: int = 8
    """Examples in one forward pass on one device."""
    max_length: int = 512
    """Longest example, in tokens; longer ones are cut at the end."""
    lr: float = 2e-5
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How lr falls to 0 over the steps."""
    warmup_steps: int = 0
    """Steps over which lr rises from 0."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's moments."""
    adam_eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to at most this norm."""
    eval_every: int = 0
    """Optimizer steps between evaluations; 0 evaluates only at the end."""

    def __post_init__(self):
        for name in ("epochs", "batch_size", "microbatch_size", "max_length", "lr", "adam_eps", "max_grad_norm"):
            check(getattr(self, name) > 0, f"training.{name}", getattr(self, name), "positive")
        for name in ("warmup_steps", "weight_decay", "eval_every"):
            check(getattr(self, name) >= 0, f"training.{name}", getattr(self, name), "at least 0")
        check(all(0 <= b < 1 for b in self.adam_betas), "training.adam_betas", self.adam_betas, "in [0, 1)")
