"""Settings of scores: reward sources and their mixes, penalties, and what happens to responses without a score."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from rlhf.config.checks import (
    AT_LEAST_0,
    FRACTION_BELOW_1,
    POSITIVE,
    check,
    check_ranges,
    reject_unused,
)
from rlhf.errors import UserError

KINDS = ("model", "function", "rule", "url")
"""Settings that name a source, of which one is set."""
READ_BY = {
    "parameters": ("function", "rule"),
    "batch_size": ("model", "url"),
    "batch_tokens": ("model",),
    "normalize": ("model",),
    "dtype": ("model",),
    "device": ("model",),
    "offload": ("model",),
    "label": ("model",),
    "chat_template": ("model",),
    "timeout": ("function", "rule", "url"),
    "token_env": ("url",),
    "retries": ("url",),
    "max_in_flight": ("url",),
}
"""Setting of a source -> the kinds of sources that it has an effect on."""


@dataclass(frozen=True)
class SourceSettings:
    """A source of scores: a reward model, a Python function, a rule that ships, or a server."""

    model: str | None = None
    """Reward model: hub id, model folder or run folder of a sequence-classification model, decoder or encoder."""
    label: str | None = None
    """Label whose logit is the score, by name or number, of a reward model with several; null: the only one."""
    chat_template: str | None = None
    """File with a Jinja chat template for the reward model; null: that of its tokenizer, or plain lines without one."""
    function: str | None = None
    """Reward function or class with `__call__`, `file.py:name` or `package.module:name`; called as fn(prompts=...,
    completions=..., **columns) with the dataset's other columns, of which it gets those that it names unless it takes
    **columns."""
    rule: str | None = None
    """Rule that ships, one of docs/rewards.md: length_target, pattern, exact_answer, numeric_answer, repetition,
    word_list."""
    url: str | None = None
    """Reward server: address that takes prompts and completions as JSON and answers with scores (docs/rewards.md)."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments of the rule or function; of a class, those of its constructor."""
    batch_size: int = 64
    """Texts per forward pass of the reward model, or per request to the server."""
    batch_tokens: int | None = None
    """Tokens per forward pass of the reward model, padding included, instead of batch_size texts; null: batch_size
    counts."""
    normalize: bool = True
    """Standardise scores with the mean and deviation in the reward model's config, if it has them."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Data type of the reward model's weights, its head excepted, which is float32; auto: that of its files."""
    device: str | None = None
    """Device of the reward model, such as cpu or cuda:1; null: that of the run's process."""
    offload: bool = False
    """Keep the reward model in the CPU's memory and copy it to its GPU only while it scores."""
    timeout: float | None = None
    """Seconds that a function, or one request to the server, may take; null: no limit for functions, 60 for servers."""
    token_env: str | None = None
    """Environment variable with the bearer token for the server; null: no token."""
    retries: int = 6
    """Attempts after the first one where the server does not answer or is busy, 1, 2, 4, ... seconds apart."""
    max_in_flight: int = 8
    """Maximum number of requests that wait for the server at a time, on each process."""

    @property
    def kind(self) -> str | None:
        """The setting that names the source; None where none does."""
        return next((name for name in KINDS if getattr(self, name) is not None), None)


def check_source(settings: SourceSettings, section: str) -> None:
    """Check a source's settings.

    Args:
        section: its dotted name in a job.

    Raises:
        UserError: two sources are named, a value is out of range, or a setting has no effect on this kind of source.
    """
    named = [name for name in KINDS if getattr(settings, name) is not None]
    if len(named) > 1:
        raise UserError(
            f"{section}.{named[0]} and {section}.{named[1]} are both set, but scores have one source; unset one, as "
            f"with --{section}.{named[1]} null"
        )
    ranges = {POSITIVE: ("batch_size", "batch_tokens", "timeout", "max_in_flight"), AT_LEAST_0: ("retries",)}
    check_ranges(settings, ranges, section)
    if settings.batch_tokens is not None:
        reject_unused(settings, ("batch_size",), f"{section}.batch_tokens limits the forward passes", section)
    if settings.device is not None:
        form = "a device as torch names it: cpu, cuda, cuda:1, mps, ..."
        check(bool(re.fullmatch(r"[a-z]+(:\d+)?", settings.device)), f"{section}.device", settings.device, form)
    if settings.device == "cpu":
        reject_unused(settings, ("offload",), f"{section}.device is cpu", section)
    if settings.function is not None:
        reason = f"{section}.function returns the scores"
        only_models = ("batch_size", "batch_tokens", "normalize", "dtype", "device", "offload")
        reject_unused(settings, only_models, reason, section)
        form = "of the form file.py:name or module:name"
        check(":" in settings.function, f"{section}.function", settings.function, form)
    for name, kinds in READ_BY.items():
        if settings.kind not in kinds and not (settings.kind is None and "model" in kinds):
            readers = " and ".join(f"{section}.{kind}" for kind in kinds)
            reject_unused(settings, (name,), f"only {readers} {'read' if len(kinds) > 1 else 'reads'} it", section)
    if settings.url is not None:
        form = "http:// or https:// and an address"
        check(bool(re.match(r"https?://[^/]", settings.url)), f"{section}.url", settings.url, form)
        if "@" in settings.url.split("//", 1)[1].split("/")[0]:
            raise UserError(
                f"{section}.url has a user name or password, which would be written to files; put a token into an "
                f"environment variable and its name into {section}.token_env"
            )


def check_named_sources(sources: Mapping[str, SourceSettings], section: str) -> None:
    """Check sources under names of the user's choice.

    Raises:
        UserError: a name cannot be part of a metric's name, or a source's settings cannot be used.
    """
    for name, source in sources.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise UserError(f"{section} has a source named {name!r}, but names are letters, digits, _ and -")
        if source.kind is None:
            raise UserError(f"{section}.{name} has no source; set one of its {', '.join(KINDS)}")
        check_source(source, f"{section}.{name}")
        weight = getattr(source, "weight", 1.0)
        check(math.isfinite(weight), f"{section}.{name}.weight", weight, "finite")


@dataclass(frozen=True)
class WeightedSource(SourceSettings):
    """One source of a mix."""

    weight: float = 1.0
    """Factor of its scores in the sum; 0 only logs them."""


@dataclass(frozen=True)
class SourceConfig(SourceSettings):
    """A source of scores that has a section of its own."""

    section: ClassVar[str]

    def __post_init__(self):
        check_source(self, self.section)

    @property
    def is_set(self) -> bool:
        """Whether there is anything that scores."""
        return self.kind is not None


def _check_alone(config: SourceConfig, sources: Mapping[str, SourceSettings]) -> None:
    """Check named sources, beside which their section names no other one."""
    if sources:
        reason = f"{config.section}.sources names the sources"
        reject_unused(config, tuple(f.name for f in fields(SourceSettings)), reason)
    check_named_sources(sources, f"{config.section}.sources")


@dataclass(frozen=True)
class MixConfig(SourceConfig):
    """A source of scores, or the weighted sum of several."""

    section: ClassVar[str] = "reward"

    sources: dict[str, WeightedSource] = field(default_factory=dict)
    """Several sources by names of your choice, whose weighted sum is the score: each has the settings of one source and
    a weight, as in --reward.sources.style.rule length_target."""

    def __post_init__(self):
        _check_alone(self, self.sources)
        super().__post_init__()
        weights = {name: source.weight for name, source in self.sources.items()}
        if self.sources and not any(weights.values()):
            raise UserError(
                f"every weight in {self.section}.sources is 0, so that there is no score; give one a weight"
            )

    @property
    def is_set(self) -> bool:
        return self.kind is not None or bool(self.sources)


@dataclass(frozen=True)
class RewardConfig(MixConfig):
    """The scores to maximise, and how they are changed for truncated and short responses."""

    section: ClassVar[str] = "reward"

    truncated: Literal["replace", "subtract", "overlong", "bootstrap", "mask"] = "replace"
    """Responses truncated at max_new_tokens: replace their score by -missing_eos_penalty; subtract missing_eos_penalty
    from it, as TRL does; subtract overlong_penalty near the limit, from all responses (overlong); bootstrap from the
    critic's value at the last token; or mask them out of the loss."""
    missing_eos_penalty: float | None = 1.0
    """A truncated response scores minus this, whatever its reward (replace), or loses this (subtract); null keeps its
    score."""
    overlong_penalty: float = 1.0
    """Subtracted from the score of a response of maximum length; grows linearly from 0 over the last overlong_buffer
    tokens (Yu et al., 2025, DAPO)."""
    overlong_buffer: int = 16
    """Tokens before the limit over which overlong_penalty grows."""
    running_scale: bool = False
    """Divide scores by the running standard deviation of all scores, without centring (Zheng et al., 2023)."""
    clip: float | None = None
    """Clip scores to [-clip, clip], after scaling; null does not clip."""
    min_length: int = 0
    """A response with fewer tokens than this, end token included, scores -short_penalty."""
    short_penalty: float = 1.0
    """A response shorter than min_length scores minus this."""
    on_error: Literal["stop", "skip"] = "stop"
    """Responses that the source fails on, by an error or a score that is no finite number: end the run, or leave them
    out of the loss and count them."""
    max_error_fraction: float = 0.1
    """With on_error skip, the largest fraction of a batch's responses that may fail; above it the run ends."""

    def __post_init__(self):
        super().__post_init__()
        ranges = {
            AT_LEAST_0: ("min_length", "overlong_penalty"),
            POSITIVE: ("clip", "overlong_buffer"),
            FRACTION_BELOW_1: ("max_error_fraction",),
        }
        check_ranges(self, ranges)
        subtracted = "at least 0, because it is subtracted"
        check(self.short_penalty >= 0, "reward.short_penalty", self.short_penalty, subtracted)
        penalty = self.missing_eos_penalty
        check(penalty is None or penalty >= 0, "reward.missing_eos_penalty", penalty, f"null or {subtracted}")
        if self.min_length == 0:
            reject_unused(self, ("short_penalty",), "reward.min_length is 0")
        if self.truncated not in ("replace", "subtract"):
            reject_unused(self, ("missing_eos_penalty",), f"reward.truncated is {self.truncated}")
        if self.truncated != "overlong":
            unused = ("overlong_penalty", "overlong_buffer")
            reject_unused(self, unused, f"reward.truncated is {self.truncated}")
        if self.on_error == "stop":
            reject_unused(self, ("max_error_fraction",), "reward.on_error is stop")

    @property
    def has_penalties(self) -> bool:
        """Whether the scores of truncated, overlong or short responses are changed."""
        penalises_truncated = self.truncated in ("replace", "subtract") and self.missing_eos_penalty is not None
        return self.min_length > 0 or self.truncated == "overlong" or penalises_truncated


@dataclass(frozen=True)
class JudgeConfig(SourceConfig):
    """A second source of scores, for evaluation only; it does not influence training."""

    section: ClassVar[str] = "eval.judge"

    sources: dict[str, SourceSettings] = field(default_factory=dict)
    """Several of them by names of your choice, each with the settings of one source, as in
    --eval.judge.sources.fluency.model runs/fluency."""

    def __post_init__(self):
        _check_alone(self, self.sources)
        super().__post_init__()
