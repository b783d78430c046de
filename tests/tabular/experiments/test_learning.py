"""They learn: on CartPole and Pendulum over five seeds, of which four must succeed."""

import gymnasium as gym
import numpy as np
import pytest

from tabular.deep.a2c import A2C, A2CConfig
from tabular.deep.actor_critic import ActorCritic, ActorCriticConfig
from tabular.deep.dqn import DQN, DQNConfig
from tabular.deep.natural_gradient import NaturalGradient, NaturalGradientConfig
from tabular.deep.ppo import PPO, PPOConfig
from tabular.deep.reinforce import REINFORCE, REINFORCEConfig
from tabular.deep.trpo import TRPO, TRPOConfig

pytestmark = pytest.mark.slow
SEEDS = range(5)


def cart_pole():
    return gym.make("CartPole-v1", disable_env_checker=True)


def pendulum():
    return gym.make("Pendulum-v1", disable_env_checker=True)


def greedy_return(learner, make_env, n_episodes):
    """Mean return of the greedy policy over episodes that all learners meet alike."""
    env, total = make_env(), 0.0
    for episode in range(n_episodes):
        obs, _ = env.reset(seed=10_000 + episode)
        done = False
        while not done:
            obs, reward, terminated, truncated, _ = env.step(learner.act(obs))
            total += float(reward)
            done = terminated or truncated
    return total / n_episodes


def best_training_return(learner):
    """The best mean over 100 successive episodes."""
    return np.convolve(learner.history.returns, np.ones(100) / 100, "valid").max()


@pytest.mark.parametrize("objective", ["clip", "kl_fixed", "kl_adaptive"])
def test_ppo_learns_to_balance(objective):
    returns = []
    for seed in SEEDS:
        learner = PPO(cart_pole, PPOConfig(objective=objective), seed)
        learner.advance(100_000)
        returns.append(best_training_return(learner))
    assert sum(r >= 475 for r in returns) >= 4, returns


def test_trpo_learns_to_balance_and_never_leaves_the_trust_region():
    returns = []
    for seed in SEEDS:
        learner = TRPO(cart_pole, TRPOConfig(), seed)
        learner.advance(100_000)
        returns.append(best_training_return(learner))
        assert max(kl for _, kl in learner.history.metrics["kl"]) <= 0.01
    assert sum(r >= 475 for r in returns) >= 4, returns


def test_dqns_best_policy_balances():
    """Its greedy policy every 3000 steps: it falls and rises, so the last one is no verdict."""
    best = []
    for seed in SEEDS:
        learner, returns = DQN(cart_pole, DQNConfig(), seed), []
        while learner.steps < 60_000 and max(returns, default=0) < 475:
            learner.advance(3000)
            returns.append(greedy_return(learner, cart_pole, 10))
        best.append(max(returns))
    assert sum(r >= 475 for r in best) >= 4, best


def test_ppo_swings_up_the_pendulum():
    """Above -200 in all five seeds. Normalised observations, or a constant learning rate, leave some of them below."""
    config = PPOConfig(
        n_envs=4,
        n_steps=256,
        n_epochs=10,
        minibatch_size=64,
        gamma=0.9,
        lam=0.95,
        squash=True,
        normalize_rewards=True,
        anneal_steps=100_000,
    )
    returns = []
    for seed in SEEDS:
        learner = PPO(pendulum, config, seed)
        learner.advance(100_000)
        returns.append(greedy_return(learner, pendulum, 50))
    assert min(returns) > -200, returns


@pytest.mark.parametrize(
    ("learner_class", "config", "least"),
    [
        (REINFORCE, REINFORCEConfig(), 400),
        (NaturalGradient, NaturalGradientConfig(), 200),
        (A2C, A2CConfig(), 150),
        (ActorCritic, ActorCriticConfig(), 60),
    ],
)
def test_the_others_learn(learner_class, config, least):
    returns = []
    for seed in range(3):
        learner = learner_class(cart_pole, config, seed)
        learner.advance(60_000)
        returns.append(best_training_return(learner))
    assert np.median(returns) >= least, returns
