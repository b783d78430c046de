"""What a reward source is, and how the sources of a config are opened."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from rlhf.config.scores import MixConfig, RewardConfig, SourceSettings
from rlhf.config.shared import EvalConfig, ModelConfig
from rlhf.data.prompts import PromptSet
from rlhf.errors import UserError
from rlhf.models.loading import first_line
from rlhf.models.reward_models import is_compatible_adapter
from rlhf.rewards.adapters import AdapterReward
from rlhf.rewards.functions import FunctionReward, load_function, open_rule
from rlhf.rewards.mixes import Mix
from rlhf.rewards.models import ModelReward, ScoringModel
from rlhf.rewards.servers import ServerReward


@runtime_checkable
class RewardSource(Protocol):
    """Anything that scores completions.

    Our sources also have `score`, which takes a `Context` too and gives rewards by token, None and failures
    (`rlhf.rewards.results`); `rlhf.rewards.mixes.score_texts` reads both.
    """

    def __call__(self, prompts: list[Any], completions: list[str], columns: dict[str, list[Any]]) -> list[float]:
        """One finite score for each completion.

        Args:
            prompts: each a text or a list of messages.
            completions: texts, without special tokens.
            columns: the data set's other columns.
        """
        ...


def scorers_of(reward: RewardConfig, evaluation: EvalConfig) -> dict[str, SourceSettings]:
    """The sources of a job: `score`, `judge`, and `judge/NAME` for each of `eval.judge.sources`."""
    return {
        "score": reward,
        "judge": evaluation.judge,
        **{f"judge/{name}": settings for name, settings in evaluation.judge.sources.items()},
    }


def open_source(
    config: SourceSettings,
    device: torch.device | str,
    prompt_sets: Sequence[PromptSet] = (),
) -> RewardSource | None:
    """Open the one source that a config names; None where it names none.

    Args:
        prompt_sets: the prompts that it will score, whose columns a function is checked against.

    Raises:
        UserError: it cannot be opened.
    """
    if config.function is not None:
        function = load_function(config.function)
        return open_function(function, config.function, prompt_sets, config.parameters, config.timeout)
    if config.rule is not None:
        source = open_rule(config.rule, config.parameters, config.timeout)
        return _checked(source, prompt_sets)
    if config.url is not None:
        return ServerReward(
            config.url,
            batch_size=config.batch_size,
            timeout=config.timeout,
            token_env=config.token_env,
            retries=config.retries,
            max_in_flight=config.max_in_flight,
        )
    if config.model is not None:
        return ModelReward(
            config.model,
            usable_device(config.device, config.model) if config.device is not None else device,
            config.batch_size,
            config.batch_tokens,
            config.normalize,
            label=config.label,
            chat_template=config.chat_template,
            dtype=config.dtype,
            offload=config.offload,
        )
    return None


def usable_device(name: str, path: str) -> torch.device:
    """A device by torch's name for it.

    Raises:
        UserError: this process cannot use it.
    """
    try:
        return torch.empty(1, device=torch.device(name)).device  # with its number, as the run's own device has it
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
        raise UserError(
            f"device {name} of reward model {path} cannot be used: {first_line(error)} (this process can use the CPU "
            f"and {count} accelerator(s)); name one of them, or remove the setting for the run's own"
        ) from error


def open_function(
    function: Callable[..., Any],
    name: str,
    prompt_sets: Sequence[PromptSet],
    parameters: Mapping[str, Any] | None = None,
    timeout: float | None = None,
) -> FunctionReward:
    """A function, a class or an object of one as a source.

    Raises:
        UserError: it cannot be called with these parameters, or with the columns of the prompts that it will score.
    """
    return _checked(FunctionReward(function, name, parameters, timeout), prompt_sets)


def _checked(source: FunctionReward, prompt_sets: Sequence[PromptSet]) -> FunctionReward:
    for prompts in prompt_sets:
        source.check_columns(prompts.columns, prompts.path)
    return source


def open_sources(
    configs: Mapping[str, SourceSettings], device: torch.device | str, prompt_sets: Sequence[PromptSet] = ()
) -> dict[str, RewardSource]:
    """Open sources under their names, those that no config sets left out.

    Args:
        prompt_sets: the prompts that they will score, whose columns functions are checked against.
    """
    return combine(configs, open_apart(configs, device, None, prompt_sets))


def open_apart(
    configs: Mapping[str, SourceSettings],
    device: torch.device | str,
    policy: ModelConfig | None,
    prompt_sets: Sequence[PromptSet] = (),
) -> dict[str, RewardSource]:
    """Open each source alone, those of a mix as `NAME.SOURCE`; `combine` makes mixes of them.

    Models are opened last, so that a mistake in another source is reported before one is loaded.

    Args:
        policy: leave out the sources that share this policy's base; `attach_sources` opens them on the loaded policy.
    """
    parts = _parts(configs)
    opened: dict[str, RewardSource] = {}
    for name in sorted(parts, key=lambda n: parts[n].model is not None):
        if policy is None or not shares_base(parts[name], policy):
            try:
                source = open_source(parts[name], device, prompt_sets)
            except UserError as error:
                part = name.partition(".")[2]
                raise UserError(f"source {part}: {error}" if part else str(error)) from error
            if source is not None:
                opened[name] = source
    return opened


def attach_sources(
    configs: Mapping[str, SourceSettings], device: torch.device | str, policy: ModelConfig, policy_lm: Any
) -> dict[str, RewardSource]:
    """Open the sources that `open_apart` left out, as adapters on the policy's language model.

    Raises:
        UserError: one of them is to have a place or data type of its own.
    """
    opened: dict[str, RewardSource] = {}
    for name, config in _parts(configs).items():
        if config.model is None or not shares_base(config, policy):
            continue
        own = {"offload": config.offload, "device": config.device, "dtype": config.dtype != "float32"}
        if chosen := [name for name, is_set in own.items() if is_set]:
            raise UserError(
                f"the reward model {config.model} is an adapter over the policy's own base, which it computes with; "
                f"remove its {chosen[0]}"
            )
        limits = (config.batch_size, config.batch_tokens, config.normalize)
        opened[name] = AdapterReward(config.model, policy_lm, device, *limits)
    return opened


def combine(configs: Mapping[str, SourceSettings], opened: Mapping[str, RewardSource]) -> dict[str, RewardSource]:
    """Sources that were opened apart, with those of `reward.sources` as one mix; in the order of the configs."""
    combined: dict[str, RewardSource] = {}
    for name, config in configs.items():
        if isinstance(config, MixConfig) and config.sources:
            weights = {part: source.weight for part, source in config.sources.items()}
            combined[name] = Mix({part: opened[f"{name}.{part}"] for part in config.sources}, weights)
        elif name in opened:
            combined[name] = opened[name]
    return combined


def _parts(configs: Mapping[str, SourceSettings]) -> dict[str, SourceSettings]:
    """The configs of single sources, those of a mix as `NAME.SOURCE`."""
    parts: dict[str, SourceSettings] = {}
    for name, config in configs.items():
        mixed = config.sources if isinstance(config, MixConfig) else {}
        parts |= {f"{name}.{part}": source for part, source in mixed.items()} or {name: config}
    return parts


def model_sources(source: RewardSource | None) -> list[ScoringModel]:
    """The reward models of a source, or of those in a mix."""
    sources = source.sources.values() if isinstance(source, Mix) else [source]
    return [part for part in sources if isinstance(part, ScoringModel)]


def shares_base(config: SourceSettings, policy: ModelConfig) -> bool:
    """Whether the source is a reward adapter on the base of this adapted policy."""
    return config.model is not None and is_compatible_adapter(config.model, policy)
