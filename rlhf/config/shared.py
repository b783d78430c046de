"""Settings that several stages share: model, data, generation, evaluation, checkpoints.

A dataclass checks its own values when it is made and names each setting in full, so that a mistake in a file, an option
or a Python call gets the same message. The string under a field is its help text in `--help`.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from rlhf.config.checks import (
    AT_LEAST_0,
    FRACTION_BELOW_1,
    NOT_EMPTY,
    POSITIVE,
    check,
    check_ranges,
    divisors_near,
    reject_unused,
)
from rlhf.config.scores import JudgeConfig
from rlhf.errors import UserError


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (LoRA; Hu et al., 2021) through PEFT."""

    section: ClassVar[str] = "model.lora"

    rank: int = 0
    """Rank of the adapters; 0 trains all weights instead."""
    alpha: float = 16.0
    """The adapters' output is scaled by alpha / rank."""
    targets: list[str] | None = None
    """Names of the modules that get an adapter; null: every linear layer but the output head."""

    def __post_init__(self):
        check(self.rank >= 0, "model.lora.rank", self.rank, "0 (train all weights) or a positive rank")
        check_ranges(self, {POSITIVE: ("alpha",)})
        if self.rank == 0:
            reject_unused(self, ("alpha", "targets"), "model.lora.rank is 0")


@dataclass(frozen=True)
class ModelConfig:
    """The causal language model to start from, its precision and its adapters."""

    section: ClassVar[str] = "model"

    path: str | None = None
    """Causal language model: hub id, model folder, or run folder of an earlier stage."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Data type of the stored weights. To train all weights, keep float32 and set mixed_precision."""
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    """Data type of the computation (autocast); null: as configured by accelerate's launcher. bf16 becomes float32 on
    CPUs that are slower at it."""
    attn_implementation: str | None = None
    """Attention kernel: eager, sdpa or flash_attention_2; null: transformers' choice."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Precision of float32 matrix products inside the hardware: high allows TF32 on GPUs, medium bfloat16 on CPUs with
    AMX too."""
    compile: bool = False
    """Compile the decoder layers with torch.compile while training. Takes some seconds and a C++ compiler."""
    load_in_4bit: bool = False
    """Quantise the frozen weights to 4 bits (NF4; Dettmers et al., 2023). Needs bitsandbytes and model.lora.rank."""
    shard: bool = False
    """Split the weights, gradients and optimizer states of all models over the processes (FSDP2) instead of holding
    them whole on each. Whole weights are gathered for sampling and scoring."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    trust_remote_code: bool = False
    """Run model code that comes with a hub repository."""
    chat_template: str | None = None
    """File with a Jinja chat template, for tokenizers that have none."""
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self):
        if self.load_in_4bit and self.lora.rank == 0:
            raise UserError(
                "model.load_in_4bit is true and model.lora.rank is 0, but 4-bit weights cannot be trained; "
                "train adapters on them with --model.lora.rank 16"
            )
        if self.shard:
            self._check_shard()

    def _check_shard(self) -> None:
        others = {
            "model.load_in_4bit is true": self.load_in_4bit,
            "model.compile is true": self.compile,
            "model.mixed_precision is fp16": self.mixed_precision == "fp16",
        }
        for other in (text for text, is_set in others.items() if is_set):
            raise UserError(f"model.shard is true and {other}, which do not work together; unset one of them")


@dataclass(frozen=True)
class ScratchConfig:
    """A new model with random weights, and a byte-level BPE tokenizer trained on the data."""

    section: ClassVar[str] = "scratch"

    model_type: str | None = None
    """Architecture of the new model, such as llama, gpt2 or qwen2; null: start from model.path."""
    vocab_size: int = 4096
    """Tokens in the new tokenizer's vocabulary."""
    hidden_size: int = 128
    """Width of the model; its feed-forward layers are four times as wide where the architecture allows it."""
    num_layers: int = 2
    """Transformer blocks."""
    num_heads: int = 4
    """Attention heads; must divide hidden_size."""
    max_positions: int = 512
    """Context length, in tokens."""
    dropout: float = 0.1
    """Dropout probability in SFT and reward modelling; PPO runs without dropout."""
    lowercase: bool = False
    """Lower-case all text in the tokenizer."""

    def __post_init__(self):
        ranges = {
            POSITIVE: ("vocab_size", "hidden_size", "num_layers", "num_heads", "max_positions"),
            FRACTION_BELOW_1: ("dropout",),
        }
        check_ranges(self, ranges)
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
            f"an even multiple of scratch.num_heads = {self.num_heads}, because rotary embeddings rotate pairs of "
            "coordinates",
        )


@dataclass(frozen=True)
class DataConfig:
    """The examples: prompts, demonstrations or preference pairs."""

    section: ClassVar[str] = "data"

    path: str | None = None
    """Dataset: hub id, json, jsonl, csv, tsv or parquet file, txt file with a prompt or text a line, or folder written
    by `save_to_disk`."""
    more: list[str] = field(default_factory=list)
    """With `rlhf ppo`: further datasets of prompts, each as `path` takes it. Scores are logged for each, and prompts
    get the column `data_set` with the name of theirs."""
    shares: list[float] = field(default_factory=list)
    """Share of the prompts that each dataset gives, path first, then more; []: in proportion to their sizes."""
    split: str = "train"
    """Training split of a hub dataset or saved folder."""
    eval_path: str | None = None
    """Held-out dataset; null: hold out eval_fraction of the training examples."""
    eval_split: str | None = None
    """Held-out split, of eval_path or else of path."""
    eval_fraction: float = 0.05
    """Fraction of the training examples to hold out if neither eval_path nor eval_split is set; 0: no evaluation."""
    max_prompt_length: int = 512
    """Maximum length of a prompt, in tokens."""
    too_long: Literal["error", "drop", "truncate"] = "error"
    """Prompts above max_prompt_length: end with an error, drop them before any are held out, or truncate them at the
    start."""
    streaming: bool = False
    """Keep rows and their token ids on disk, for datasets larger than memory: rows in memory-mapped Arrow files
    (HF_DATASETS_CACHE), ids in a temporary file (TMPDIR). The order of the data is the same."""

    def __post_init__(self):
        check_ranges(self, {FRACTION_BELOW_1: ("eval_fraction",), POSITIVE: ("max_prompt_length",)})
        if not self.more:
            reject_unused(self, ("shares",), "data.more is empty")
        count = 1 + len(self.more)
        shares = self.shares
        check(not shares or len(shares) == count, "data.shares", shares, f"a list of {count} numbers, one a dataset")
        fits = all(share >= 0.001 for share in shares) and abs(sum(shares) - 1) < 1e-6
        check(not shares or fits, "data.shares", shares, "a list of shares of at least 0.001 that add up to 1")


@dataclass(frozen=True)
class GenerationConfig:
    """How responses are sampled. Settings of the distribution change sampling and log-probabilities alike."""

    section: ClassVar[str] = "generation"

    max_new_tokens: int = 64
    """Maximum length of a response, in tokens, including its end token."""
    temperature: float = 1.0
    """Divisor of the logits, in sampling and in all log-probabilities. 0, in evaluations alone: the most probable token
    each time, with log-probabilities at temperature 1."""
    min_new_tokens: int = 0
    """Mask the end tokens until a response has this many tokens, in sampling and in all log-probabilities; a stop
    string may still end a response."""
    suppress_ids: list[int] = field(default_factory=list)
    """Token ids that are never sampled; masked in all log-probabilities too."""
    stop_ids: list[int] | None = None
    """Token ids that end a response; null: the end tokens of tokenizer and model."""
    stop_strings: list[str] = field(default_factory=list)
    """Strings that end a response, at the token that completes one; removed from the text that is scored."""
    max_rows: int | None = None
    """Responses sampled in parallel on one device; null: all of them. The others wait: the static engine starts them as
    soon as a quarter of these have ended, the growing one when all have."""
    engine: Literal["auto", "growing", "static"] = "auto"
    """How responses are sampled: growing, with a key-value cache that grows with each token, for every model; static,
    with decode steps of fixed shape, recorded as CUDA graphs on a GPU; auto, static for supported models on a GPU,
    where max_rows makes responses wait, and for 256 tokens or more. Both sample the same responses, up to rounding."""

    def __post_init__(self):
        ranges = {POSITIVE: ("max_new_tokens", "max_rows"), AT_LEAST_0: ("temperature",), NOT_EMPTY: ("stop_ids",)}
        check_ranges(self, ranges)
        check(
            0 <= self.min_new_tokens < self.max_new_tokens or self.min_new_tokens == 0,
            "generation.min_new_tokens",
            self.min_new_tokens,
            f"at least 0 and below generation.max_new_tokens = {self.max_new_tokens}",
        )
        check(all(self.stop_strings), "generation.stop_strings", self.stop_strings, "without empty strings")


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation on held-out prompts: before the first step, every few steps, and after the last."""

    section: ClassVar[str] = "eval"

    every: int = 50
    """Steps between evaluations; 0 evaluates only before the first and after the last step."""
    patience: int | None = None
    """End the run after this many evaluations in a row without a better held-out score; null: never."""
    prompts: int = 256
    """Maximum number of held-out prompts."""
    samples: int = 16
    """Responses per evaluation that are written to samples.jsonl."""
    batch_size: int = 64
    """Responses per forward pass on one device."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    def __post_init__(self):
        check_ranges(self, {AT_LEAST_0: ("every", "samples"), POSITIVE: ("prompts", "batch_size", "patience")})
        if self.every == 0:
            reject_unused(self, ("patience",), "eval.every is 0")


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints, which hold everything that `resume` needs."""

    section: ClassVar[str] = "checkpoint"

    every: int = 50
    """Steps between checkpoints; the last step is saved too. 0: only when the run is interrupted."""
    keep: int | None = None
    """Newest checkpoints to keep; null keeps all."""

    def __post_init__(self):
        check_ranges(self, {AT_LEAST_0: ("every",), POSITIVE: ("keep",)})
