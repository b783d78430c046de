"""What a reward source is, and how the sources of a config are opened."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from rlhf.config.jobs import ModelConfig, SourceConfig
from rlhf.data.prompts import PromptSet
from rlhf.models.reward_models import is_compatible_adapter
from rlhf.rewards.adapters import AdapterReward
from rlhf.rewards.functions import FunctionReward, load_function
from rlhf.rewards.models import ModelReward


@runtime_checkable
class RewardSource(Protocol):
    """Anything that scores completions."""

    def __call__(self, prompts: list[Any], completions: list[str], columns: dict[str, list[Any]]) -> list[float]:
        """One finite score for each completion.

        Args:
            prompts: each a text or a list of messages.
            completions: texts, without special tokens.
            columns: the data set's other columns.
        """
        ...


def open_source(
    config: SourceConfig, device: torch.device | str, prompt_sets: Sequence[PromptSet] = ()
) -> RewardSource | None:
    """Open the source that a config names; None where it names none.

    Args:
        prompt_sets: the prompts that it will score, whose columns a function is checked against.

    Raises:
        UserError: it cannot be opened.
    """
    if config.function is not None:
        return open_function(load_function(config.function), config.function, prompt_sets)
    if config.model is not None:
        return ModelReward(config.model, device, config.batch_size, config.batch_tokens, config.normalize)
    return None


def open_function(function: Callable[..., Any], name: str, prompt_sets: Sequence[PromptSet]) -> FunctionReward:
    """A function as a source.

    Raises:
        UserError: it cannot be called with the columns of the prompts that it will score.
    """
    source = FunctionReward(function, name)
    for prompts in prompt_sets:
        source.check_columns(prompts.columns, prompts.path)
    return source


def open_sources(
    configs: Mapping[str, SourceConfig],
    device: torch.device | str,
    policy: ModelConfig | None = None,
    prompt_sets: Sequence[PromptSet] = (),
) -> dict[str, RewardSource]:
    """Open sources under their names, those that no config sets left out.

    Functions are opened first, so that a mistake in one is reported before a model is loaded.

    Args:
        policy: leave out the sources that share this policy's base; `attach_sources` opens them on the loaded policy.
        prompt_sets: the prompts that they will score, whose columns functions are checked against.
    """
    opened: dict[str, RewardSource] = {}
    for name in sorted(configs, key=lambda n: configs[n].function is None):
        if policy is None or not shares_base(configs[name], policy):
            source = open_source(configs[name], device, prompt_sets)
            if source is not None:
                opened[name] = source
    return {name: opened[name] for name in configs if name in opened}


def attach_sources(
    configs: Mapping[str, SourceConfig], device: torch.device | str, policy: ModelConfig, policy_lm: Any
) -> dict[str, RewardSource]:
    """Open the sources that `open_sources` left out, as adapters on the policy's language model."""
    return {
        name: AdapterReward(config.model, policy_lm, device, config.batch_size, config.batch_tokens, config.normalize)
        for name, config in configs.items()
        if config.model is not None and shares_base(config, policy)
    }


def shares_base(config: SourceConfig, policy: ModelConfig) -> bool:
    """Whether the source is a reward adapter on the base of this adapted policy."""
    return config.function is None and config.model is not None and is_compatible_adapter(config.model, policy)
