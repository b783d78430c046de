"""Deep Q-learning: Q-learning on a network, from replayed transitions and with a target network.

Mnih et al. (2015), Nature 518; double Q-learning: van Hasselt et al. (2016), arXiv 1509.06461; dueling heads: Wang et
al. (2016), arXiv 1511.06581; n-step returns as in Hessel et al. (2018), arXiv 1710.02298.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tabular.core.checks import check_choice, check_fraction, check_not_negative, check_positive
from tabular.core.schedules import linear
from tabular.deep.fast import dqn as fast_dqn
from tabular.deep.fast.mlp import fuse
from tabular.deep.fast.optimizers import FlatAdam
from tabular.deep.networks import q_network
from tabular.deep.optimizers import clip_gradients
from tabular.deep.replay import ReplayBuffer, Transitions
from tabular.deep.state import gather_state, restore_state
from tabular.envs.vector import VectorEnv
from tabular.history import History

LOSSES = ("huber", "mse")


@dataclass(frozen=True)
class DQNConfig:
    """Settings of DQN. Raises ValueError for a setting that is out of range."""

    double: bool = True
    "the network chooses the next action, the target network evaluates it"
    dueling: bool = False
    "a head for the state's value and one for the actions' advantages"
    n_step: int = 1
    "rewards before the target bootstraps"
    loss: str = "huber"
    "huber (squared TD errors up to 1, linear beyond) or mse (squared TD errors), both with a factor of 1/2"
    n_envs: int = 1
    "copies of the environment"
    gamma: float | int = 0.99
    "discount"
    lr: float | int = 1e-3
    "Adam's learning rate"
    buffer_size: int = 100_000
    "transitions in the replay buffer"
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
    "fraction by which an update moves the target network to the network: 1 is a hard update (a copy), less a soft one"
    epsilon_start: float | int = 1.0
    "initial fraction of random actions"
    epsilon_end: float | int = 0.04
    "fraction of random actions after `epsilon_steps`"
    epsilon_steps: int = 8000
    "environment steps over which the fraction falls linearly"
    max_grad_norm: float | int = 10.0
    "gradients are scaled down to this norm"
    hidden: tuple[int, ...] = (128, 128)
    "units of each layer"
    fast: bool = True
    "the numpy MLP and flat optimizer of `tabular.deep.fast`; false: plain PyTorch, the same numbers to rounding"

    def __post_init__(self) -> None:
        check_choice(LOSSES, loss=self.loss)
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
    PARTS = ("network", "target", "optimizer", "buffer", "envs", "history")

    def __init__(self, make_env: Callable[..., gym.Env], config: DQNConfig, seed: int) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        self.envs = VectorEnv(make_env, config.n_envs, seed)
        space = self.envs.action_space
        if not isinstance(space, spaces.Discrete):
            raise ValueError(f"dqn needs discrete actions, but the action space is {space}; use a2c, trpo or ppo")
        self.n_actions = int(space.n)
        self.first_action = int(space.start)
        obs_space = self.envs.observation_space
        self.network = q_network(obs_space, self.n_actions, config.hidden, config.dueling, self.generator)
        self.target = q_network(obs_space, self.n_actions, config.hidden, config.dueling, self.generator)
        self.target.load_state_dict(self.network.state_dict())
        self.optimizer: Any = torch.optim.Adam(self.network.parameters(), lr=config.lr)
        if config.fast:
            fuse(self.network)
            fuse(self.target)
            self.optimizer = FlatAdam(self.network, lr=config.lr)
        self.buffer = ReplayBuffer(
            capacity=config.buffer_size,
            obs_shape=self.envs.obs.shape[1:],
            obs_dtype=self.envs.dtype,
            n_actions=self.n_actions,
            n_step=config.n_step,
            gamma=config.gamma,
        )
        self.epsilon = linear(config.epsilon_start, config.epsilon_end, config.epsilon_steps)
        self.history = History()
        self.steps = 0

    def advance(self, steps: int) -> None:
        """Learn for at least `steps` more environment steps, in whole rounds."""
        end = self.steps + steps
        while self.steps < end:
            self._iterate()

    def _iterate(self) -> None:
        """Act for `train_freq` steps, update the target network, then take `gradient_steps` gradient steps."""
        steps_before = self.steps
        self._collect()
        # The network has not changed since the last round, so only the number of target updates matters.
        self._update_target(self.steps // self.config.target_every - steps_before // self.config.target_every)
        if self.steps > self.config.learning_starts and self.buffer.size > 0:
            metrics = self._update()
            self.history.add(self.steps, epsilon=self.epsilon(self.steps), **metrics)

    def _collect(self) -> None:
        """Act epsilon-greedily for `train_freq` steps, and store the transitions in the replay buffer."""
        for _ in range(-(-self.config.train_freq // self.config.n_envs)):
            obs = self.envs.obs
            actions = self._explore()
            step = self.envs.step(actions + self.first_action)
            self.buffer.add(obs, actions, step)
            self.steps += self.config.n_envs
            for episode_return, length in step.episodes:
                self.history.add_episode(self.steps, episode_return, length)

    def _explore(self) -> Int[np.ndarray, "N"]:
        """Epsilon-greedy actions; the random ones are uniform over all legal actions, the greedy one included."""
        masks = self.envs.masks
        epsilon = 1.0 if self.steps < self.config.learning_starts else self.epsilon(self.steps)
        uniforms = torch.rand(len(self.envs), 2, generator=self.generator, dtype=torch.float64).tolist()
        is_random = [u < epsilon for u, _ in uniforms]
        if all(is_random):
            actions = np.zeros(len(self.envs), dtype=np.int64)
        else:
            actions = self._greedy_actions(self.envs.obs, masks)
        for i, (_, u) in enumerate(uniforms):
            if is_random[i]:
                legal = range(self.n_actions) if masks is None else np.flatnonzero(masks[i])
                if len(legal) == 0:
                    raise ValueError("action_mask allows no action in some state")
                actions[i] = legal[int(u * len(legal))]
        return actions

    def _greedy_actions(self, obs: np.ndarray, masks: Bool[np.ndarray, "N A"] | None) -> Int[np.ndarray, "N"]:
        """The legal action of the highest value for each observation; `masks` is None if all are legal."""
        if self.config.fast:
            return fast_dqn.best_action(fast_dqn.q_values_of(self.network, obs), masks)
        with torch.no_grad():
            q_values = self.network(torch.from_numpy(obs))
        return best_action(q_values, None if masks is None else torch.from_numpy(masks)).numpy()

    def _update_target(self, n_updates: int) -> None:
        """`n_updates` updates of the target network, each `target += tau (network - target)`."""
        if n_updates == 0:
            return
        weight = 1 - (1 - self.config.tau) ** n_updates
        with torch.no_grad():
            for target, online in zip(self.target.parameters(), self.network.parameters(), strict=True):
                target.lerp_(online, weight)

    def _update(self) -> dict[str, float]:
        """`gradient_steps` steps that move `Q(s, a)` towards `r + gamma max_a' Q_target(s', a')`."""
        config = self.config
        if config.fast:
            batches = self.buffer.sample((config.gradient_steps, config.batch_size), self.generator)
            losses, td_errors = fast_dqn.gradient_steps(
                self.network,
                self.target,
                self.optimizer,
                batches,
                double=config.double,
                loss=config.loss,
                max_grad_norm=config.max_grad_norm,
            )
        else:
            losses, td_errors = [], []
            for _ in range(config.gradient_steps):
                batch = self.buffer.sample((config.batch_size,), self.generator)
                loss, td_error = gradient_step(
                    self.network,
                    self.target,
                    self.optimizer,
                    batch,
                    double=config.double,
                    loss=config.loss,
                    max_grad_norm=config.max_grad_norm,
                )
                losses.append(loss)
                td_errors.append(td_error)
        return {"loss": float(np.mean(losses)), "td_error": float(np.mean(td_errors))}

    def act(self, observation: Any, mask: Any = None) -> Any:
        """The action of the highest value for one observation. `mask` [A]: True on legal actions."""
        obs = np.asarray(observation, dtype=self.envs.dtype)[None]
        masks = None if mask is None else np.asarray(mask, dtype=bool)[None]
        return self._greedy_actions(obs, masks)[0] + self.first_action

    @torch.no_grad()
    def value(self, observation: Any, mask: Any = None) -> float:
        """The highest value of a legal action for one observation."""
        obs = np.asarray(observation, dtype=self.envs.dtype)[None]
        q_values = self.network(torch.from_numpy(obs))[0]
        return float((q_values if mask is None else q_values[torch.as_tensor(mask, dtype=torch.bool)]).max())

    def state_dict(self) -> dict[str, Any]:
        return gather_state(self, self.PARTS)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        restore_state(self, self.PARTS, state)


def gradient_step(
    network: nn.Module,
    target: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Transitions,
    *,
    double: bool,
    loss: str,
    max_grad_norm: float | int,
) -> tuple[float, float]:
    """One gradient step on a batch: `Q(s, a)` moves towards `r + gamma max_a' Q_target(s', a')`.

    Args:
        double: let the network choose a', and the target network evaluate it.
        loss: huber or mse.

    Returns:
        The loss and the mean size of the TD errors, before the step.
    """
    with torch.no_grad():
        target_q = target(batch.next_obs)
        chooser_q = network(batch.next_obs) if double else target_q
        targets = target_values(chooser_q, target_q, batch)
    q_values = network(batch.obs).gather(-1, batch.actions[:, None]).squeeze(-1)
    errors = q_values - targets
    mean_loss = F.huber_loss(q_values, targets) if loss == "huber" else 0.5 * F.mse_loss(q_values, targets)

    optimizer.zero_grad()
    mean_loss.backward()
    clip_gradients(optimizer, max_grad_norm)
    optimizer.step()
    return mean_loss.item(), errors.detach().abs().mean().item()


def target_values(
    chooser_q: Float[Tensor, "*batch A"], target_q: Float[Tensor, "*batch A"], batch: Transitions
) -> Float[Tensor, "*batch"]:
    """`r + discount Q_target(s', a')` with `a' = argmax_a chooser_q(s', a)` over the legal actions.

    Args:
        chooser_q: the network's values of `next_obs` for double Q-learning, the target network's otherwise.
        target_q: the target network's values of `next_obs`.
    """
    # After the last step of an episode no action needs to be legal.
    legal = batch.next_masks | (batch.discounts == 0)[..., None]
    next_actions = best_action(chooser_q, legal)
    next_q = target_q.gather(-1, next_actions[..., None]).squeeze(-1)
    return batch.rewards + batch.discounts * next_q


def best_action(q_values: Float[Tensor, "*batch A"], legal: Bool[Tensor, "*batch A"] | None) -> Int[Tensor, "*batch"]:
    """The first legal action of the highest value; `legal` is None if all are. Raises ValueError where none is."""
    if legal is None:
        return q_values.argmax(-1)
    if not legal.any(-1).all():
        raise ValueError("action_mask allows no action in some state")
    return torch.where(legal, q_values, -torch.inf).argmax(-1)
