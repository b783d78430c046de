"""Every setting of every stage, as a tree of frozen dataclasses; `parse()` fills it from YAML files and options.

A dataclass checks its own values when it is made, with the setting's full name in the message, so that a mistake in a
file, an option or a Python call ends in the same words.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from rlhf.errors import UserError
from rlhf.parsing import as_text, flatten, parse, read_yaml


def _check(ok: bool, key: str, value: object, need: str) -> None:
    if not ok:
        raise UserError(f"{key} is {value!r}, but it must be {need}")


def _divides(part: int, whole: int) -> str:
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
        _check(self.rank >= 0, "model.lora.rank", self.rank, "0 (train all weights) or a positive rank")
        _check(self.alpha > 0, "model.lora.alpha", self.alpha, "positive")


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
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    trust_remote_code: bool = False
    """Run model code that comes with a hub repository."""
    chat_template: str | None = None
    """A Jinja file with the chat template, for tokenizers that have none."""
    lora: LoraConfig = field(default_factory=LoraConfig)


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
            _check(getattr(self, name) > 0, f"scratch.{name}", getattr(self, name), "positive")
        _check(0 <= self.dropout < 1, "scratch.dropout", self.dropout, "at least 0 and below 1")
        _check(
            self.vocab_size >= 260, "scratch.vocab_size", self.vocab_size, "at least 260 (256 bytes, special tokens)"
        )
        _check(
            self.hidden_size % self.num_heads == 0,
            "scratch.num_heads",
            self.num_heads,
            f"a divisor of scratch.hidden_size = {self.hidden_size}, "
            f"such as {_divides(self.num_heads, self.hidden_size)}",
        )
        _check(
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
        _check(0 <= self.eval_fraction < 1, "data.eval_fraction", self.eval_fraction, "at least 0 and below 1")
        _check(self.max_prompt_length > 0, "data.max_prompt_length", self.max_prompt_length, "positive")


@dataclass(frozen=True)
class GenerationConfig:
    """How responses are sampled. Nothing here may make the sampled and the scored distribution differ."""

    max_new_tokens: int = 64
    """Longest response, in tokens, its end token included."""
    temperature: float = 1.0
    """Divides the logits, when sampling and in every log-probability alike."""
    stop_ids: list[int] | None = None
    """Token ids that end a response; null takes the end tokens of the tokenizer and of the model."""
    max_rows: int | None = None
    """Responses sampled at once on one device; null samples them all together."""

    def __post_init__(self):
        _check(self.max_new_tokens > 0, "generation.max_new_tokens", self.max_new_tokens, "positive")
        _check(self.temperature > 0, "generation.temperature", self.temperature, "positive")
        _check(
            self.stop_ids is None or len(self.stop_ids) > 0, "generation.stop_ids", self.stop_ids, "null or not empty"
        )
        _check(self.max_rows is None or self.max_rows > 0, "generation.max_rows", self.max_rows, "null or positive")


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

    missing_eos_penalty: float | None = 1.0
    """A response cut off by the length limit scores minus this instead; null leaves its score alone."""
    min_length: int = 0
    """Responses with fewer tokens than this, end token included, score minus short_penalty instead."""
    short_penalty: float = 1.0
    """See min_length."""

    def __post_init__(self):
        _check_source(self, "reward")
        _check(self.min_length >= 0, "reward.min_length", self.min_length, "at least 0")
        _check(self.short_penalty >= 0, "reward.short_penalty", self.short_penalty, "at least 0; it is subtracted")
        cut = self.missing_eos_penalty
        _check(cut is None or cut >= 0, "reward.missing_eos_penalty", cut, "null or at least 0; it is subtracted")


@dataclass(frozen=True)
class JudgeConfig(SourceConfig):
    """A second opinion for evaluation, which training never sees."""

    def __post_init__(self):
        _check_source(self, "eval.judge")


def _check_source(source: SourceConfig, key: str) -> None:
    if source.model is not None and source.function is not None:
        raise UserError(f"{key}.model and {key}.function are both set; scores come from one source: unset one of them")
    _check(source.batch_size > 0, f"{key}.batch_size", source.batch_size, "positive")
    if source.function is not None:
        _check(":" in source.function, f"{key}.function", source.function, "of the form file.py:name or module:name")


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation (Schulman et al., 2017) on tokens; defaults from Ziegler et al. (2019)."""

    total_episodes: int = 100_000
    """Responses to sample in the whole run; rounded up to full rollout batches."""
    rollout_batch_size: int = 64
    """Responses sampled for one step, over all processes."""
    minibatch_size: int = 64
    """Responses for one optimizer step, over all processes."""
    microbatch_size: int = 16
    """Responses in one forward pass on one device; changes memory and speed, never the result."""
    ppo_epochs: int = 4
    """Passes over a rollout batch."""
    lr: float = 1e-5
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How lr falls to 0 over the steps."""
    warmup_steps: int = 0
    """Steps over which lr rises from 0."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's moments."""
    adam_eps: float = 1e-5
    """AdamW's epsilon."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to at most this norm."""
    gamma: float = 1.0
    """Discount per token."""
    lam: float = 0.95
    """Lambda of generalised advantage estimation (Schulman et al., 2016)."""
    whiten_advantages: bool = True
    """Give the advantages of a rollout batch mean 0 and deviation 1 over its tokens."""
    clip_range: float = 0.2
    """The ratio's clip interval is [1 - clip_range, 1 + clip_range]."""
    clip_range_value: float | None = 0.2
    """How far a value may move from its old value before its loss stops falling; null does not clip."""
    vf_coef: float = 0.1
    """Weight of the value loss."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""
    kl_coef: float = 0.05
    """Price of one nat of divergence from the reference; the start value where kl_target is set."""
    kl_target: float | None = None
    """Nats per response that an adaptive kl_coef aims at (Ziegler et al., 2019); null keeps kl_coef fixed."""
    kl_horizon: int = 10_000
    """Responses over which the adaptive kl_coef reacts."""
    target_kl: float | None = None
    """Ends a step's updates once approx_kl of a minibatch exceeds this; null never does."""

    def __post_init__(self):
        for name in ("total_episodes", "rollout_batch_size", "minibatch_size", "microbatch_size", "ppo_epochs"):
            _check(getattr(self, name) > 0, f"ppo.{name}", getattr(self, name), "positive")
        for name in ("lr", "max_grad_norm", "adam_eps", "clip_range", "kl_horizon"):
            _check(getattr(self, name) > 0, f"ppo.{name}", getattr(self, name), "positive")
        for name in ("warmup_steps", "weight_decay", "vf_coef", "ent_coef", "kl_coef"):
            _check(getattr(self, name) >= 0, f"ppo.{name}", getattr(self, name), "at least 0")
        for name in ("clip_range_value", "kl_target", "target_kl"):
            value = getattr(self, name)
            _check(value is None or value > 0, f"ppo.{name}", value, "null or positive")
        for name in ("gamma", "lam"):
            _check(0 <= getattr(self, name) <= 1, f"ppo.{name}", getattr(self, name), "between 0 and 1")
        _check(self.clip_range < 1, "ppo.clip_range", self.clip_range, "below 1")
        _check(all(0 <= b < 1 for b in self.adam_betas), "ppo.adam_betas", self.adam_betas, "at least 0 and below 1")
        _check(
            self.lr_schedule == "constant" or self.warmup_steps < self.steps,
            "ppo.warmup_steps",
            self.warmup_steps,
            f"below the run's {self.steps} steps (ppo.total_episodes / ppo.rollout_batch_size)",
        )
        _check(
            self.kl_target is None or 5 * self.kl_horizon > self.rollout_batch_size,
            "ppo.kl_horizon",
            self.kl_horizon,
            f"above a fifth of ppo.rollout_batch_size = {self.rollout_batch_size}, or kl_coef could fall to 0 at once",
        )
        _check(
            self.rollout_batch_size % self.minibatch_size == 0,
            "ppo.minibatch_size",
            self.minibatch_size,
            f"a divisor of ppo.rollout_batch_size = {self.rollout_batch_size}; "
            f"near: {_divides(self.minibatch_size, self.rollout_batch_size)}",
        )

    @property
    def steps(self) -> int:
        """PPO iterations: rollout batches that make up `total_episodes`."""
        return -(-self.total_episodes // self.rollout_batch_size)

    @property
    def minibatches(self) -> int:
        return self.rollout_batch_size // self.minibatch_size

    def check_processes(self, processes: int) -> None:
        """Refuse a minibatch that the processes cannot share evenly."""
        if self.minibatch_size % processes:
            near = max(processes, round(self.minibatch_size / processes) * processes)
            raise UserError(
                f"ppo.minibatch_size is {self.minibatch_size}, which {processes} processes cannot share evenly; "
                f"use a multiple of {processes}, such as {near}, with a ppo.rollout_batch_size that it divides"
            )


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
        _check(self.every >= 0, "eval.every", self.every, "at least 0")
        _check(self.prompts > 0, "eval.prompts", self.prompts, "positive")
        _check(self.samples >= 0, "eval.samples", self.samples, "at least 0")
        _check(self.batch_size > 0, "eval.batch_size", self.batch_size, "positive")


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints hold all that a resume needs."""

    every: int = 50
    """Steps between checkpoints, the last step included; 0 saves only when the run is asked to stop."""
    keep: int | None = None
    """Delete all but this many newest checkpoints; null keeps every one."""

    def __post_init__(self):
        _check(self.every >= 0, "checkpoint.every", self.every, "at least 0")
        _check(self.keep is None or self.keep > 0, "checkpoint.keep", self.keep, "null or positive")


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
            _check(getattr(self, name) > 0, f"training.{name}", getattr(self, name), "positive")
        for name in ("warmup_steps", "weight_decay", "eval_every"):
            _check(getattr(self, name) >= 0, f"training.{name}", getattr(self, name), "at least 0")
        _check(all(0 <= b < 1 for b in self.adam_betas), "training.adam_betas", self.adam_betas, "in [0, 1)")


Tracker = Literal["tensorboard", "wandb"]


@dataclass(frozen=True)
class PPOJob:
    """Train a policy with PPO."""

    output: str = "runs/ppo"
    """The run folder; it must not exist unless resume is set."""
    seed: int = 0
    resume: str | None = None
    """`auto` continues the newest checkpoint of `output`, or starts where there is none; or a checkpoint's folder."""
    trackers: list[Tracker] = field(default_factory=lambda: ["tensorboard"])
    """Where metrics go besides metrics.jsonl."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self):
        _check_seed(self.seed)
        _require(self, "model.path", "data.path")


@dataclass(frozen=True)
class SFTJob:
    """Fine-tune a language model on demonstrations, or train a new one."""

    output: str = "runs/sft"
    """The run folder; it must not exist unless resume is set."""
    seed: int = 0
    resume: str | None = None
    """`auto` continues the newest checkpoint of `output`, or starts where there is none; or a checkpoint's folder."""
    trackers: list[Tracker] = field(default_factory=lambda: ["tensorboard"])
    model: ModelConfig = field(default_factory=ModelConfig)
    scratch: ScratchConfig = field(default_factory=ScratchConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every=500))

    def __post_init__(self):
        _check_seed(self.seed)
        _require(self, "data.path")
        if (self.model.path is None) == (self.scratch.model_type is None):
            raise UserError("set one of model.path (start from a model) and scratch.model_type (train a new one)")


@dataclass(frozen=True)
class RewardJob:
    """Train a reward model on preference pairs (Bradley-Terry)."""

    output: str = "runs/reward"
    """The run folder; it must not exist unless resume is set."""
    seed: int = 0
    resume: str | None = None
    """`auto` continues the newest checkpoint of `output`, or starts where there is none; or a checkpoint's folder."""
    trackers: list[Tracker] = field(default_factory=lambda: ["tensorboard"])
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every=500))

    def __post_init__(self):
        _check_seed(self.seed)
        _require(self, "model.path", "data.path")


@dataclass(frozen=True)
class EvaluateJob:
    """Compare a policy with the model it started from, on held-out prompts."""

    output: str | None = None
    """Folder for evaluation.json and samples.jsonl; null only prints."""
    seed: int = 0
    baseline: str | None = None
    """The model to compare with, and the reference of the KL; null compares with nothing."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self):
        _check_seed(self.seed)
        _require(self, "model.path", "data.path")


def _check_seed(seed: int) -> None:
    _check(0 <= seed < 2**32, "seed", seed, "at least 0 and below 2**32")


def _require(job: object, *keys: str) -> None:
    for key in keys:
        group, name = key.split(".")
        if getattr(getattr(job, group), name) is None:
            raise UserError(f"{key} is not set; give it with --{key} or in a --config file")


def evaluation_of(run: Path, argv: Sequence[str]) -> EvaluateJob:
    """The evaluation of a finished PPO run: its model against the model it started from, on its held-out prompts."""
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is no run folder (it has no config.yaml); to evaluate a model use --model.path")
    settings = read_yaml(run / "config.yaml")
    if "ppo" not in settings:
        raise UserError(f"{run} is no PPO run; name a model with --model.path, and the data and scores to use")
    shared = {name: settings[name] for name in ("seed", "data", "generation", "reward", "eval")}
    model = {**settings["model"], "path": str(run / "model"), "lora": asdict(LoraConfig())}
    known = flatten({**shared, "baseline": settings["model"]["path"], "model": model})
    given = [f"--{key}={as_text(value)}" for key, value in known.items()]
    return parse(EvaluateJob, [*given, *argv], "rlhf evaluate")
