"""Episodes: the policy and an environment take turns, and the rewards of the turns are the response's score.

An episode is one response [R]: the policy's tokens, and between its turns those of the environment, which are context
but not trained on (`response_mask` is False there). Each turn reads the whole text so far.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from rlhf.config.environment import EnvironmentConfig
from rlhf.data.encoding import encode_reply, pad
from rlhf.data.prompts import make_prompts
from rlhf.environments.batch import Environment, EnvironmentBatch, EnvironmentFailure, Step
from rlhf.errors import UserError
from rlhf.models.actor_critic import ActorCritic
from rlhf.records import Prompts, Rollout, pad_to_width, to_device
from rlhf.rollouts.sampling import uniform_noise
from rlhf.rollouts.stages import Sampler, sample_responses, unscored_rollout


@dataclass
class Episode:
    """One conversation so far: an entry for each token after the prompt."""

    prompt_ids: list[int]
    ids: list[int] = field(default_factory=list)
    is_policy: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """The sampler's; 0 on environment tokens."""
    rewards: list[float] = field(default_factory=list)
    """A turn's reward, on its last token."""
    has_ended: bool = False
    truncated: bool = False
    error: str | None = None

    def add(self, ids: Sequence[int], logprobs: Sequence[float] | None = None) -> None:
        """Append a turn of the policy, or without log-probabilities one of the environment."""
        self.ids += ids
        self.is_policy += [logprobs is not None] * len(ids)
        self.logprobs += [0.0] * len(ids) if logprobs is None else logprobs
        self.rewards += [0.0] * len(ids)

    def fail(self, message: str) -> None:
        self.error = message
        self.has_ended = True


class Player:
    """Lets a policy play episodes in the environments of a run."""

    def __init__(self, config: EnvironmentConfig, kind: Callable[..., Environment], sampler: Sampler):
        self.config = config
        self.kind = kind
        self.sampler = sampler

    def play(
        self, policy: ActorCritic, prompts: Prompts, key: Sequence[int] | None, rows: Sequence[int], total: int
    ) -> Rollout:
        """An episode for every prompt, with its score, the rewards by token, and why it failed if it did.

        Args:
            key: of the random numbers; None takes the most probable tokens.
            rows: the prompts' places in the whole batch of `total` prompts, on which the random numbers depend.

        Returns:
            The rollout with the prompts as the environments wrote them; log-probabilities and values are still nan.
        """
        device = prompts.prompt_ids.device
        environments = EnvironmentBatch(self.kind, self.config, prompts.prompts)
        starts = environments.reset(prompts.columns)
        texts = [
            prompts.prompts[i] if isinstance(x, EnvironmentFailure) else self._start(x) for i, x in enumerate(starts)
        ]
        batch = make_prompts(self.sampler.tokenizer, texts, prompts.columns)
        episodes = [Episode(ids[mask].tolist()) for ids, mask in zip(batch.prompt_ids, batch.prompt_mask, strict=True)]
        for episode, start in zip(episodes, starts, strict=True):
            if isinstance(start, EnvironmentFailure):
                episode.add([episode.prompt_ids[-1]], [0.0])  # every response has a token; this one is left out
                episode.fail(start.message)
        for turn in range(self.config.max_turns):
            live = [i for i, episode in enumerate(episodes) if not episode.has_ended]
            if not live:
                break
            noise = None
            if key is not None:
                length = self.sampler.config.max_new_tokens
                noise = uniform_noise([*key, turn], [rows[i] for i in live], total, length)
            self._take_turn(policy, environments, episodes, live, noise, device, turn == self.config.max_turns - 1)
        return self._as_rollout(to_device(batch, device), episodes)

    def _start(self, start: Any) -> Any:
        """What the policy reads first: messages where the environment chats, else the text."""
        return [{"role": "user", "content": start}] if self.config.chat and isinstance(start, str) else start

    def _take_turn(
        self,
        policy: ActorCritic,
        environments: EnvironmentBatch,
        episodes: list[Episode],
        live: list[int],
        noise: Tensor | None,
        device: torch.device,
        is_last: bool,
    ) -> None:
        """A turn of the policy and the environments' replies, in the episodes that have not ended."""
        contexts = [episodes[i].prompt_ids + episodes[i].ids for i in live]
        turns = sample_responses(
            policy, self.sampler, to_device(make_prompts(self.sampler.tokenizer, contexts), device), noise
        )
        assert turns.sampler_logprobs is not None
        steps = environments.step(dict(zip(live, turns.completions, strict=True)))
        for place, i in enumerate(live):
            mask = turns.response_mask[place]
            episodes[i].add(turns.response_ids[place][mask].tolist(), turns.sampler_logprobs[place][mask].tolist())
            self._answer(episodes[i], steps[i], bool(turns.truncated[place]), is_last)

    def _answer(self, episode: Episode, step: Step | EnvironmentFailure, truncated: bool, is_last: bool) -> None:
        """Pay a turn's reward and append the environment's reply, or end the episode."""
        if isinstance(step, EnvironmentFailure):
            episode.fail(step.message)
            return
        episode.rewards[-1] += step.reward
        if step.reply is None or is_last:
            episode.has_ended, episode.truncated = True, truncated
            return
        reply = encode_reply(self.sampler.tokenizer, step.reply, self.config.chat, episode.ids[-1])
        if len(episode.ids) + len(reply) + self.sampler.config.max_new_tokens > self.config.max_tokens:
            episode.has_ended = episode.truncated = True
            return
        episode.add(reply)

    def _as_rollout(self, prompts: Prompts, episodes: list[Episode]) -> Rollout:
        device = prompts.prompt_ids.device
        ids, _ = pad([episode.ids for episode in episodes], 0, "right")
        width = ids.shape[1]

        def matrix(rows: list[list[Any]], dtype: torch.dtype) -> Tensor:
            return torch.cat([pad_to_width(torch.tensor([row], dtype=dtype), width) for row in rows]).to(device)

        rollout = unscored_rollout(
            prompts,
            ids.to(device),
            matrix([episode.is_policy for episode in episodes], torch.bool),
            torch.tensor([episode.truncated for episode in episodes], device=device),
            self.sampler.tokenizer.batch_decode([episode.ids for episode in episodes], skip_special_tokens=True),
        )
        rewards = matrix([episode.rewards for episode in episodes], torch.float32)
        return replace(
            rollout,
            scores=rewards.sum(-1),
            score_by_token=rewards,
            sampler_logprobs=matrix([episode.logprobs for episode in episodes], torch.float32),
            errors=[episode.error for episode in episodes],
        )


def check_episodes(rollout: Rollout, skip: bool) -> Rollout:
    """The rollout, whose failed episodes are skipped, or end the run.

    Raises:
        UserError: an episode failed, and failures are not skipped.
    """
    errors = [error for error in rollout.errors or [] if error is not None]
    if errors and not skip:
        raise UserError(f"{errors[0]}; reward.on_error skip leaves such episodes out of the loss")
    return rollout if skip else replace(rollout, errors=None)
