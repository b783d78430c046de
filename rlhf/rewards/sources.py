"""Where scores come from: a reward model or a Python function, behind one call.

A source is called with prompts, completions and the dataset's other columns, and says one finite number for each.
Reward models read text, not ids: theirs may be another tokenizer than the policy's.
"""

import importlib
import importlib.util
import inspect
import math
import traceback
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf.config.jobs import ModelConfig, RewardConfig, SourceConfig
from rlhf.data.datasets import encode_answers, pad, pad_id
from rlhf.errors import UserError
from rlhf.models.actor_critic import end_states, sequence_scores, unwrap_peft
from rlhf.models.adapters import active_adapter
from rlhf.models.loading import (
    attach_reward_adapter,
    context_length_of,
    is_compatible_adapter,
    load_reward_model,
    load_score_statistics,
    load_tokenizer,
)


@runtime_checkable
class RewardSource(Protocol):
    def __call__(self, prompts: list[Any], completions: list[str], columns: dict[str, list[Any]]) -> list[float]: ...


def open_source(config: SourceConfig, device: torch.device | str, policy: ModelConfig | None = None) -> Any:
    """The source that a config names; None where it names none.

    A reward adapter over the base of an adapted `policy` waits to be attached to it.
    """
    if config.function is not None:
        return FunctionReward(load_function(config.function), config.function)
    if config.model is not None:
        kind = AdapterReward if policy is not None and is_compatible_adapter(config.model, policy) else ModelReward
        return kind(config.model, device, config.batch_size, config.normalize)
    return None


def load_function(where: str) -> Callable[..., Any]:
    """The function that `file.py:name` or `package.module:name` stands for.

    Raises:
        UserError: there is no such file, module or name, it does not import, or it cannot take the arguments.
    """
    place, _, name = where.rpartition(":")
    try:
        if place.endswith(".py"):
            if not Path(place).is_file():
                raise UserError(f"reward function file {place} does not exist")
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot import {place} for the reward function: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{place} has no function {name!r}; it has {', '.join(_functions(module)) or 'none'}")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # a built-in whose arguments nobody can tell
        parameters = []
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise UserError(
            f"reward function {where} must take **kwargs: it is called as "
            f"{name}(prompts=..., completions=..., <every other column of the dataset>=...)"
        )
    return function


def _functions(module: Any) -> list[str]:
    return [name for name, value in vars(module).items() if inspect.isfunction(value) and not name.startswith("_")]


class FunctionReward:
    """Scores by `fn(prompts=[...], completions=[...], **columns) -> list[float]`."""

    def __init__(self, function: Callable[..., Any], name: str):
        self.function, self.name = function, name

    def __call__(self, prompts: list[Any], completions: list[str], columns: dict[str, list[Any]]) -> list[float]:
        try:
            scores = self.function(prompts=prompts, completions=completions, **columns)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            place = frames[1] if len(frames) > 1 else frames[0]  # where the user's own function was, whatever it called
            raise UserError(
                f"reward function {self.name} raised {type(error).__name__}: {error} "
                f"({place.filename}, line {place.lineno})"
            ) from error
        if isinstance(scores, Tensor) or hasattr(scores, "tolist"):
            scores = scores.tolist()
        if not isinstance(scores, Sequence) or isinstance(scores, str):
            raise UserError(f"reward function {self.name} returned {scores!r:.80}, but must return a list of numbers")
        if len(scores) != len(completions):
            raise UserError(
                f"reward function {self.name} returned {len(scores)} scores for {len(completions)} completions"
            )
        for score, completion in zip(scores, completions, strict=True):
            if not _is_finite(score):
                raise UserError(
                    f"reward function {self.name} returned {score!r} for the completion {completion!r:.120}, "
                    "but a score must be a finite number"
                )
        return [float(score) for score in scores]


def _is_finite(score: Any) -> bool:
    try:
        return math.isfinite(score)
    except (TypeError, ValueError, OverflowError):  # no number, several of them, one that no float can hold
        return False


class ModelReward:
    """Scores by a sequence-classification model with one label.

    Where its config holds `score_mean` and `score_std` (`rlhf reward` writes them), scores are shifted and scaled to
    mean 0 and deviation 1 on the texts it was trained on (Ziegler et al., 2019). `append_eos` there says that it learnt
    to read an end token after every answer.
    """

    def __init__(self, path: str, device: torch.device | str, batch_size: int = 64, normalize: bool = True):
        self.path, self.tokenizer = path, load_tokenizer(path)
        self.model = load_reward_model(path).requires_grad_(False).eval().to(device)
        self.device, self.batch_size = device, batch_size
        self._describe(self.model.config, normalize)
        self.max_length = context_length_of(self.model.config) or 1_000_000

    def _describe(self, facts: Any, normalize: bool) -> None:
        self.append_eos = bool(getattr(facts, "append_eos", False))
        self.mean = float(getattr(facts, "score_mean", 0.0)) if normalize else 0.0
        self.std = float(getattr(facts, "score_std", 1.0)) if normalize else 1.0

    def _read(self, ids: Tensor, mask: Tensor) -> Tensor:
        return sequence_scores(self.model, ids, mask)

    @torch.no_grad()
    def __call__(self, prompts: list[Any], completions: list[str], columns: dict[str, list[Any]]) -> list[float]:
        encoded = encode_answers(self.tokenizer, prompts, completions, self.append_eos, self.max_length)
        scores = torch.empty(len(encoded))
        # Longest first: texts of like length share a batch, and running out of memory shows at once.
        order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            ids, mask = pad([encoded[i] for i in rows], pad_id(self.tokenizer), "right")
            scores[rows] = self._read(ids.to(self.device), mask.to(self.device)).cpu()
        scores = (scores - self.mean) / self.std
        if not bool(scores.isfinite().all()):
            bad = int((~scores.isfinite()).nonzero()[0])
            raise UserError(
                f"reward model {self.path} gives {float(scores[bad])} to the completion {completions[bad]!r:.120} "
                f"(its config says score_mean {self.mean}, score_std {self.std})"
            )
        return scores.tolist()


class AdapterReward(ModelReward):
    """A reward model that is an adapter over the policy's own frozen base: one copy of the weights for all of them."""

    def __init__(self, path: str, device: torch.device | str, batch_size: int = 64, normalize: bool = True):
        self.path, self.tokenizer, self.device, self.batch_size = path, load_tokenizer(path), device, batch_size
        self.name = f"reward_{zlib.crc32(path.encode()):x}"
        self._describe(SimpleNamespace(**load_score_statistics(path)), normalize)

    def attach(self, lm: Any) -> None:
        """Take the place over the policy's base; until then it cannot score."""
        self.model, self.head = lm, attach_reward_adapter(lm, self.path, self.name).to(self.device)
        self.max_length = context_length_of(unwrap_peft(lm).config) or 1_000_000

    def _read(self, ids: Tensor, mask: Tensor) -> Tensor:
        with active_adapter(self.model, self.name):
            return self.head(end_states(self.model, ids, mask).float()).squeeze(-1)


def apply_rules(
    scores: Float[Tensor, "B"],
    lengths: Int[Tensor, "B"],
    truncated: Bool[Tensor, "B"],
    config: RewardConfig,
    max_new_tokens: int,
) -> Float[Tensor, "B"]:
    """Scores with the penalties in their place; lengths in tokens.

    A penalty replaces the score rather than adding to it, so that no score can pay for a broken rule (Ziegler et al.,
    2019; Huang et al., 2024). The soft one adds: it grows over the last tokens before the limit, so that a response
    learns to come to an end before it is cut (Yu et al., 2025, DAPO, eq. 13).
    """
    if config.min_length > 0:
        scores = torch.where(lengths < config.min_length, -config.short_penalty, scores)
    if config.truncated == "replace" and config.missing_eos_penalty is not None:
        scores = torch.where(truncated, -config.missing_eos_penalty, scores)
    if config.truncated == "overlong":
        free = max_new_tokens - config.overlong_buffer
        scores = scores - config.overlong_penalty * ((lengths - free) / config.overlong_buffer).clamp(0, 1)
    return scores
