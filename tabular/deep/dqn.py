"""Deep Q-learning: one-step (or n-step) Q-learning on a network, from replayed transitions and a slow target network.

Mnih et al. (2015), Nature 518; double Q-learning: van Hasselt et al. (2016), arXiv 1509.06461; dueling heads: Wang et
al. (2016), arXiv 1511.06581; n-step returns as in Hessel et al. (2018), arXiv 1710.02298.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int

from tabular.core.schedules import linear
from tabular.deep.learner import check_fraction, check_not_negative, check_positive, gather_state, restore_state
from tabular.deep.networks import q_network, values_and_pullback, values_of
from tabular.deep.optimizers import Adam, flatten_parameters, take_step
from tabular.deep.replay import ReplayBuffer, Transitions
from tabular.envs.vector import VectorEnv
from tabular.history import History

NO_ACTION = "action_mask allows no action in some state"


@dataclass(frozen=True)
class DQNConfig:
    """Settings of DQN. Raises ValueError, naming it, for one that is out of range."""

    double: bool = True
    "the network chooses the next action, the target network values it"
    dueling: bool = False
    "a head for the state's value and one for the actions' advantages"
    n_step: int = 1
    "rewards before the target bootstraps"
    n_envs: int = 1
    "copies of the environment"
    gamma: float | int = 0.99
    "discount"
    lr: float | int = 1e-3
    "Adam's learning rate"
    buffer_size: int = 100_000
    "transitions kept"
    batch_size: int = 64
    "transitions of one gradient step"
    learning_starts: int = 1000
    "environment steps before the first gradient step, with random actions"
    train_freq: int = 256
    "environment steps between two rounds of gradient steps"
    gradient_steps: int = 128
    "gradient steps of a round"
    target_every: int = 10
    "environment steps between two updates of the target network"
    tau: float | int = 1.0
    "share of the network in an update of the target: 1 copies it (hard), less moves it slowly (soft)"
    epsilon_start: float | int = 1.0
    "share of random actions to begin with"
    epsilon_end: float | int = 0.04
    "share of random actions after `epsilon_steps`"
    epsilon_steps: int = 8000
    "environment steps over which the share falls linearly"
    max_grad_norm: float | int = 10.0
    "gradients are scaled down to this norm"
    hidden: tuple[int, ...] = (128, 128)
    "units of each layer"

    def __post_init__(self) -> None:
        check_fraction(gamma=self.gamma, tau=self.tau, epsilon_start=self.epsilon_start, epsilon_end=self.epsilon_end)
        check_positive(n_step=self.n_step, n_envs=self.n_envs, lr=self.lr, buffer_size=self.buffer_size, tau=self.tau)
        check_positive(batch_size=self.batch_size, train_freq=self.train_freq, gradient_steps=self.gradient_steps)
        check_positive(target_every=self.target_every, epsilon_steps=self.epsilon_steps)
        check_positive(max_grad_norm=self.max_grad_norm)
        check_not_negative(learning_starts=self.learning_starts)


class DQN:
    """Learns action values. `advance` is exact across `state_dict` and `load_state_dict`.

    Chunks of an exact resume end where a round of gradient steps does: at multiples of `train_freq`.
    """

    Config = DQNConfig
    fits = "vector, image or discrete observations; discrete actions"
    PARTS = ("network", "target", "optimizer", "buffer", "envs", "history")

    def __init__(self, make_env: Callable[..., gym.Env], config: DQNConfig, seed: int) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        self.envs = VectorEnv(make_env, config.n_envs, seed)
        space = self.envs.action_space
        if not isinstance(space, spaces.Discrete):
            raise ValueError(f"dqn needs discrete actions, got {space}; reinforce, a2c, trpo and ppo take these")
        self.n_actions, self.first_action = int(space.n), int(space.start)
        networks = [
            q_network(self.envs.observation_space, self.n_actions, config.hidden, config.dueling, self.generator)
            for _ in range(2)
        ]
        self.network, self.target = networks
        self.weights, self.target_weights = flatten_parameters(self.network), flatten_parameters(self.target)
        self.target_weights.data.copy_(self.weights.data)
        self.optimizer = Adam(self.weights, config.lr, eps=1e-8)
        self.buffer = ReplayBuffer(
            config.buffer_size, self.envs.obs.shape[1:], self.envs.dtype, self.n_actions, config.n_step, config.gamma
        )
        self.epsilon = linear(config.epsilon_start, config.epsilon_end, config.epsilon_steps)
        self.history, self.steps = History(), 0

    def advance(self, steps: int) -> None:
        """Learns for at least `steps` more environment steps, in whole rounds."""
        end = self.steps + steps
        while self.steps < end:
            self._iterate()

    def _iterate(self) -> None:
        """Acts for `train_freq` steps, then takes `gradient_steps` steps towards `r + gamma max_a Q_target(s', a)`."""
        config, begun = self.config, self.steps
        for _ in range(-(-config.train_freq // config.n_envs)):
            obs, actions = self.envs.obs, self._explore()
            step = self.envs.step(actions + self.first_action)
            self.buffer.add(obs, actions, step)
            self.steps += config.n_envs
            for total, length in step.episodes:
                self.history.add_episode(self.steps, total, length)
        # Nothing between here and the last round has changed the network, so only the number of updates matters.
        n_updates = self.steps // config.target_every - begun // config.target_every
        if n_updates > 0:
            self.target_weights.data.lerp_(self.weights.data, 1 - (1 - config.tau) ** n_updates)
        if self.steps > config.learning_starts and self.buffer.size > 0:
            self.history.add(self.steps, epsilon=self.epsilon(self.steps), **self._update())

    def _explore(self) -> np.ndarray:
        """Epsilon-greedy, the random part being uniform over the legal actions, the greedy one included: [N]."""
        n, masks = len(self.envs), self.envs.masks
        legal = np.ones((n, self.n_actions), dtype=bool) if masks is None else masks
        epsilon = 1.0 if self.steps < self.config.learning_starts else self.epsilon(self.steps)
        uniforms = torch.rand(n, 2, generator=self.generator, dtype=torch.float64).tolist()
        explores = [u < epsilon for u, _ in uniforms]
        actions = np.zeros(n, dtype=np.int64)
        if not all(explores):
            actions = best_action(values_of(self.network, self.envs.obs), legal)
        for i, (_, u) in enumerate(uniforms):
            if explores[i]:
                choices = np.flatnonzero(legal[i])
                if len(choices) == 0:
                    raise ValueError(NO_ACTION)
                actions[i] = choices[int(u * len(choices))]
        return actions

    def _update(self) -> dict[str, float]:
        """One round of gradient steps on `r + gamma max_a Q_target(s', a)`.

        The target network rests meanwhile, so what it says of all batches is computed beforehand.
        """
        config, losses, sizes = self.config, [], []
        batches = self.buffer.sample(config.gradient_steps, config.batch_size, self.generator)
        # In pieces that stay in the processor's cache.
        pieces = np.array_split(batches.next_obs, -(-config.gradient_steps // 8))
        target_q = np.concatenate([values_of(self.target, obs) for obs in pieces])
        targets = target_values(target_q, target_q, batches)
        rows = np.arange(config.batch_size)
        for k in range(config.gradient_steps):
            if config.double:
                targets[k] = target_values(values_of(self.network, batches.next_obs[k]), target_q[k], batches[k])
            self.weights.grad.zero_()  # pyright: ignore[reportOptionalMemberAccess]
            q_values, pull_back = values_and_pullback(self.network, batches.obs[k])
            actions = batches.actions[k]
            errors = q_values[rows, actions] - targets[k]
            # Huber's loss: the squared error up to 1, the absolute one beyond.
            slopes = np.clip(errors, -1, 1)
            gradient = np.zeros_like(q_values)
            gradient[rows, actions] = slopes / len(rows)
            pull_back(gradient)
            take_step(self.weights, self.optimizer, config.max_grad_norm)
            losses.append(float((slopes * (errors - 0.5 * slopes)).mean()))
            sizes.append(float(np.abs(errors).mean()))
        return {"loss": float(np.mean(losses)), "td_error": float(np.mean(sizes))}

    def act(self, observation: Any, mask: Any = None) -> Any:
        """The action of the highest value for one observation. `mask` [A]: True on legal ones."""
        obs = np.asarray(observation, dtype=self.envs.dtype)[None]
        legal = np.ones((1, self.n_actions), dtype=bool) if mask is None else np.asarray(mask, dtype=bool)[None]
        return best_action(values_of(self.network, obs), legal)[0] + self.first_action

    def value(self, observation: Any, mask: Any = None) -> float:
        """The highest value of a legal action for one observation."""
        obs = np.asarray(observation, dtype=self.envs.dtype)[None]
        (q_values,) = values_of(self.network, obs)
        return float((q_values if mask is None else q_values[np.asarray(mask, dtype=bool)]).max())

    def state_dict(self) -> dict[str, Any]:
        return gather_state(self, self.PARTS)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        restore_state(self, self.PARTS, state)


def target_values(
    chooser: Float[np.ndarray, "*batch A"], target_q: Float[np.ndarray, "*batch A"], batch: Transitions
) -> Float[np.ndarray, "*batch"]:
    """`r + discount Q_target(s', argmax_a chooser(s', a))` over legal actions; double: the chooser is Q."""
    # Where nothing follows no action need be legal.
    legal = batch.next_masks | (batch.discounts == 0)[..., None]
    next_q = np.take_along_axis(target_q, best_action(chooser, legal)[..., None], -1)[..., 0]
    return batch.rewards + batch.discounts * next_q


def best_action(
    q_values: Float[np.ndarray, "*batch A"], legal: Bool[np.ndarray, "*batch A"]
) -> Int[np.ndarray, "*batch"]:
    """The first legal action of the highest value. Raises ValueError where no action is legal."""
    if not legal.any(-1).all():
        raise ValueError(NO_ACTION)
    return np.where(legal, q_values, -np.inf).argmax(-1)
