"""Properties of every deep learner: repeatable, exactly resumable, masked, equal with and without `fast`, and built on
`tabular.core`."""

import importlib
import io
import re
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from tabular.core import losses, returns
from tabular.core.kl import PenaltyBeta
from tabular.deep.a2c import A2C, A2CConfig
from tabular.deep.actor_critic import ActorCritic, ActorCriticConfig
from tabular.deep.dqn import DQN, DQNConfig
from tabular.deep.natural_gradient import NaturalGradient, NaturalGradientConfig
from tabular.deep.ppo import PPO, PPOConfig
from tabular.deep.reinforce import REINFORCE, REINFORCEConfig
from tabular.deep.trpo import TRPO, TRPOConfig

SMALL = {"hidden": (8,)}
LEARNERS = {
    "dqn": (DQN, DQNConfig(learning_starts=32, train_freq=16, gradient_steps=2, batch_size=8, n_step=2, **SMALL)),
    "reinforce": (REINFORCE, REINFORCEConfig(n_episodes=2, n_value_epochs=2, **SMALL)),
    "actor_critic": (ActorCritic, ActorCriticConfig(n_envs=2, log_every=4, **SMALL)),
    "a2c": (A2C, A2CConfig(n_envs=2, log_every=1, **SMALL)),
    "npg": (NaturalGradient, NaturalGradientConfig(n_steps=16, minibatch_size=24, n_value_epochs=2, **SMALL)),
    "trpo": (TRPO, TRPOConfig(n_steps=16, minibatch_size=24, n_value_epochs=2, **SMALL)),
    "ppo": (PPO, PPOConfig(n_envs=2, n_steps=16, minibatch_size=24, n_epochs=2, **SMALL)),
    "ppo kl": (PPO, PPOConfig(objective="kl_adaptive", n_envs=2, n_steps=16, n_epochs=2, ent_coef=0.01, **SMALL)),
}
CONTINUOUS = [name for name in LEARNERS if name != "dqn"]
NORMALIZED = ("a2c", "npg", "trpo", "ppo")


def cart_pole():
    return gym.make("CartPole-v1", disable_env_checker=True)


def learner(name, seed=0, make_env=cart_pole, **changes):
    algorithm, config = LEARNERS[name]
    return algorithm(make_env, replace(config, **changes), seed)


def weights(learner):
    return torch.nn.utils.parameters_to_vector(learner.network.parameters()).detach().clone()


class MaskedEnv(gym.Env):
    """Of four actions the one that equals the step's number mod 4 is legal, and one more; others are an error."""

    observation_space = spaces.Discrete(4)
    action_space = spaces.Discrete(4, start=2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return 0, self._info()

    def step(self, action):
        assert self._info()["action_mask"][action - 2], "an illegal action"
        self.t += 1
        return self.t % 4, 1.0, self.t == 6, False, self._info()

    def _info(self):
        mask = np.zeros(4, dtype=bool)
        mask[[self.t % 4, (self.t + 1) % 4]] = self.t < 6  # at the end no action is legal, and none is needed
        return {"action_mask": mask}


class NoLegalAction(MaskedEnv):
    def _info(self):
        return {"action_mask": np.zeros(4, dtype=bool)}


@pytest.mark.parametrize("name", LEARNERS)
def test_the_same_seed_repeats_the_run_bit_for_bit_and_another_seed_does_not(name):
    a, b, c = learner(name), learner(name), learner(name, seed=1)
    for each in (a, b, c):
        each.advance(128)
        torch.rand(3), np.random.rand(3)  # noqa: NPY002  draws from the global generators have no influence
    assert torch.equal(weights(a), weights(b))
    assert a.history.state_dict() == b.history.state_dict()
    assert not torch.equal(weights(a), weights(c))
    assert a.steps >= 128


@pytest.mark.parametrize("name", LEARNERS)
def test_a_resumed_run_equals_an_uninterrupted_one(name):
    changes = {"normalize_observations": True, "normalize_rewards": True} if name in NORMALIZED else {}
    whole, first = learner(name, **changes), learner(name, **changes)
    first.advance(96)
    chunk = first.steps
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = learner(name, seed=7, **changes)
    second.load_state_dict(torch.load(file, weights_only=True))
    second.advance(96)
    first.advance(96)
    whole.advance(chunk)
    whole.advance(96)
    for each in (second, whole):
        assert each.steps == first.steps
        assert torch.equal(weights(each), weights(first))
        assert each.history.state_dict() == first.history.state_dict()


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("fast", [False, True])
def test_resuming_works_with_and_without_fast(name, fast):
    first, second = learner(name, fast=fast), learner(name, seed=7, fast=fast)
    first.advance(96)
    second.load_state_dict(first.state_dict())
    for each in (first, second):
        each.advance(64)
    assert torch.equal(weights(first), weights(second))


@pytest.mark.parametrize("name", LEARNERS)
def test_fast_and_plain_pytorch_learn_the_same_weights(name):
    """A few iterations from the same seed; later, rounding makes any two runs differ."""
    fast, plain = learner(name, fast=True), learner(name, fast=False)
    for each in (fast, plain):
        each.advance(64)
    assert fast.history.returns == plain.history.returns
    torch.testing.assert_close(weights(fast), weights(plain), atol=2e-5, rtol=0)
    moved = (weights(plain) - weights(learner(name, fast=False))).abs().max()
    assert moved > 1e-3
    for metric, points in plain.history.metrics.items():
        np.testing.assert_allclose(fast.history.metrics[metric], points, rtol=1e-3, atol=1e-4, err_msg=metric)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_saved_state_is_a_copy(name):
    one = learner(name)
    one.advance(64)
    state, before = one.state_dict(), weights(one).clone()
    one.advance(64)
    assert not torch.equal(weights(one), before)
    one.load_state_dict(state)
    assert torch.equal(weights(one), before)


@pytest.mark.parametrize("name", LEARNERS)
def test_the_state_of_another_algorithm_is_rejected(name):
    with pytest.raises(ValueError, match="another algorithm"):
        learner(name).load_state_dict({"steps": 3})


@pytest.mark.parametrize("name", LEARNERS)
def test_only_legal_actions_are_taken_and_learned_from(name):
    one = learner(name, make_env=MaskedEnv)
    one.advance(128)
    assert torch.isfinite(weights(one)).all()
    assert set(one.history.returns) == {6.0}
    mask = np.array([False, False, True, False])
    assert one.act(2, mask) == 4


@pytest.mark.parametrize("name", LEARNERS)
def test_a_state_without_legal_actions_raises(name):
    with pytest.raises(ValueError, match="allows no action"):
        learner(name, make_env=NoLegalAction).advance(64)


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("squash", [False, True])
def test_continuous_actions(name, squash):
    one = learner(name, make_env=lambda: gym.make("Pendulum-v1", max_episode_steps=20), squash=squash)
    one.advance(64)
    action = one.act(np.zeros(3, np.float32))
    assert action.shape == (1,)
    assert torch.isfinite(weights(one)).all()
    assert np.array_equal(action, one.act(np.zeros(3, np.float32)))


@pytest.mark.parametrize("name", LEARNERS)
def test_unsupported_spaces_are_rejected(name):
    if name == "dqn":
        with pytest.raises(ValueError, match="dqn needs discrete actions"):
            learner(name, make_env=lambda: gym.make("Pendulum-v1"))

    class Sets(MaskedEnv):
        observation_space = spaces.Dict({"a": spaces.Discrete(2)})

    with pytest.raises(ValueError, match="observation"):
        learner(name, make_env=Sets)


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize(("field", "value"), [("gamma", 1.5), ("lr", 0.0), ("hidden", ())])
def test_settings_out_of_range_are_rejected(name, field, value):
    with pytest.raises(ValueError, match=field):
        learner(name, **{field: value})


def test_formulas_come_from_tabular_core():
    """The same function objects train CartPole and the language model."""
    import rlhf.trainers.advantages
    import rlhf.trainers.loss
    import rlhf.trainers.update

    modules = {
        name: importlib.import_module(f"tabular.deep.{name}")
        for name in ("a2c", "actor_critic", "ppo", "reinforce", "natural_gradient")
    }
    for name in ("a2c", "ppo", "natural_gradient"):
        assert modules[name].gae is returns.gae
    for name, module in modules.items():
        assert module.value_loss is losses.value_loss, name
    for name in ("a2c", "actor_critic", "reinforce"):
        assert modules[name].policy_gradient_loss is losses.policy_gradient_loss
    assert modules["actor_critic"].td_errors is returns.td_errors
    assert modules["reinforce"].discounted_returns is returns.discounted_returns
    assert modules["ppo"].clipped_surrogate_loss is losses.clipped_surrogate_loss
    assert modules["ppo"].kl_penalty_surrogate_loss is losses.kl_penalty_surrogate_loss
    assert modules["natural_gradient"].kl_penalty_surrogate_loss is losses.kl_penalty_surrogate_loss
    assert modules["ppo"].PenaltyBeta is PenaltyBeta
    trainers = rlhf.trainers.advantages, rlhf.trainers.loss, rlhf.trainers.update
    language = {name: value for module in trainers for name, value in vars(module).items()}
    shared = (
        "gae",
        "masked_whiten",
        "clipped_surrogate_loss",
        "kl_penalty_surrogate_loss",
        "value_loss",
        "PenaltyBeta",
    )
    for name in shared:
        assert language[name] is getattr(modules["ppo"], name)


@pytest.mark.parametrize("name", LEARNERS)
def test_value_of_one_observation_equals_the_networks_output(name):
    one = learner(name, **({"normalize_observations": True} if name in NORMALIZED else {}))
    one.advance(64)
    observation = np.array([0.1, -0.2, 0.3, 0.4], dtype=np.float32)
    scaled = torch.from_numpy(one.envs.scale_obs(observation[None]))
    with torch.no_grad():
        outputs = (one.network if name == "dqn" else one.network.critic)(scaled)[0]
    if name == "reinforce":
        assert np.isnan(learner(name, baseline="mean").value(observation))
    assert one.value(observation) == pytest.approx(float(outputs.max()), abs=1e-6)
    if name == "dqn":
        worse = int(outputs.argmin())
        mask = np.eye(2, dtype=bool)[worse]
        assert one.value(observation, mask) == pytest.approx(float(outputs[worse]), abs=1e-6)


def test_the_readme_explains_every_metric():
    text = (Path(__file__).parents[3] / "tabular" / "README.md").read_text(encoding="utf-8")
    table = text.split("`metrics.png`:\n")[1].split("\n## ")[0]
    noted = {"temperature", "alpha", "q_change", "gradient_variance"}
    for name in LEARNERS:
        one = learner(name)
        one.advance(128)
        noted |= set(one.history.metrics)
    assert noted == set(re.findall(r"`([a-z_]+)`", table.replace("`actor_critic`", "")))
