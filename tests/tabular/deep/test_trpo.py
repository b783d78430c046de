"""Fisher-vector products equal the explicit Fisher matrix, and no TRPO step leaves the trust region."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

import tabular.deep.natural_gradient
from tabular.core.masked import masked_whiten
from tabular.deep.fisher import conjugate_gradient, fisher_product
from tabular.deep.natural_gradient import NaturalGradient, NaturalGradientConfig
from tabular.deep.networks import ActorCriticNetwork
from tabular.deep.policies import make_policy
from tabular.deep.trpo import TRPO, TRPOConfig


def cart_pole():
    return gym.make("CartPole-v1", disable_env_checker=True)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def actor_for(space):
    policy = make_policy(space)
    network = ActorCriticNetwork(spaces.Box(-1, 1, (2,)), policy, (3,), generator())
    actor = network.actor.double()
    for parameter in actor.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator(1), dtype=torch.float64)
    return policy, actor


def score(actor, logprob):
    gradients = torch.autograd.grad(logprob, list(actor.parameters()), retain_graph=True)
    return torch.cat([g.flatten() for g in gradients])


def product_as_matrix(actor, policy, obs, masks, damping=0.0):
    product = fisher_product(actor, policy, obs, actor(obs), masks, damping)
    n = sum(p.numel() for p in actor.parameters())
    return torch.stack([product(row) for row in torch.eye(n, dtype=torch.float64)])


@pytest.mark.parametrize("masked", [False, True])
def test_fisher_product_is_the_explicit_fisher_matrix(masked):
    policy, actor = actor_for(spaces.Discrete(3))
    obs = torch.randn(2, 4, 2, generator=generator(2), dtype=torch.float64)
    masks = None
    if masked:
        masks = torch.ones(2, 4, 3, dtype=torch.bool)
        masks[0, :, 1] = False
    params, fisher = actor(obs), 0
    for n in range(2):
        for t in range(4):
            mask = None if masks is None else masks[n, t]
            for action in range(3):
                if mask is None or mask[action]:
                    logprob = policy.logprob(params[n, t], torch.tensor(action), mask)
                    s = score(actor, logprob)
                    fisher = fisher + logprob.detach().exp() * torch.outer(s, s) / 8
    actual = product_as_matrix(actor, policy, obs, masks)
    torch.testing.assert_close(actual, fisher, atol=1e-12, rtol=1e-10)
    identity = torch.eye(len(fisher), dtype=torch.float64)
    torch.testing.assert_close(product_as_matrix(actor, policy, obs, masks, 0.5), fisher + 0.5 * identity)


def test_fisher_product_of_a_gaussian_policy():
    policy, actor = actor_for(spaces.Box(-1, 1, (2,)))
    obs = torch.randn(1, 5, 2, generator=generator(2), dtype=torch.float64)
    params, fisher = actor(obs), 0
    for t in range(5):
        for d in range(2):
            mean, log_std = score(actor, params[0, t, d]), score(actor, params[0, t, 2 + d])
            precision = torch.exp(-2 * params[0, t, 2 + d].detach())
            fisher = fisher + (precision * torch.outer(mean, mean) + 2 * torch.outer(log_std, log_std)) / 5
    torch.testing.assert_close(product_as_matrix(actor, policy, obs, None), fisher, atol=1e-12, rtol=1e-10)


def test_conjugate_gradient_solves_a_small_system():
    root = torch.randn(6, 6, generator=generator(), dtype=torch.float64)
    matrix, b = root @ root.T + torch.eye(6, dtype=torch.float64), torch.arange(6, dtype=torch.float64)
    few, residual = conjugate_gradient(lambda v: matrix @ v, b, 3)
    torch.testing.assert_close(residual, b - matrix @ few)
    x, _ = conjugate_gradient(lambda v: matrix @ v, b, 10, 1e-20)
    torch.testing.assert_close(x, torch.linalg.solve(matrix, b), atol=1e-8, rtol=1e-8)
    assert not conjugate_gradient(lambda v: matrix @ v, torch.zeros(6, dtype=torch.float64), 10)[0].any()


CONFIG = {"n_steps": 128, "n_envs": 2, "hidden": (16,), "n_value_epochs": 3, "cg_damping": 1e-5, "target_kl": 0.02}


def recorded(learner, iterations):
    """For each iteration: whether it was accepted, its exact KL, and the rise of the surrogate (computed here)."""
    rows, update = [], learner._update

    def recorded_update(trajectory, advantages):
        actor = learner.network.actor
        before, old = weights_of(actor), actor(trajectory.obs).detach().double()
        metrics = update(trajectory, advantages)
        new = actor(trajectory.obs).detach().double()
        old_p, new_p = old.softmax(-1), new.softmax(-1)
        kl = (old_p * (old_p.log() - new_p.log())).sum(-1).mean()
        taken = trajectory.actions[..., None]
        ratio = (new_p.gather(-1, taken) / old_p.gather(-1, taken))[..., 0]
        rise = ((ratio - 1) * advantages).mean()
        unmoved = same_bits(before, weights_of(actor))
        rows.append((metrics["accepted"] == 1, float(kl), float(rise), unmoved))
        return metrics

    learner._update = recorded_update
    for _ in range(iterations):
        learner._iterate()
    return rows


def test_every_accepted_step_keeps_the_exact_kl_and_raises_the_surrogate():
    rows = recorded(TRPO(cart_pole, TRPOConfig(**CONFIG), seed=1), 8)
    assert sum(accepted for accepted, *_ in rows) >= 5
    for accepted, kl, rise, unmoved in rows:
        assert accepted != unmoved
        if accepted:
            assert kl <= 0.02 * (1 + 1e-4)
            assert rise > 0


def test_the_natural_gradient_without_line_search_exceeds_the_target_kl():
    """The reason for the line search: the exact KL of the full step is well above its target."""
    rows = recorded(NaturalGradient(cart_pole, NaturalGradientConfig(**CONFIG), seed=1), 8)
    assert max(kl for _, kl, *_ in rows) > 1.5 * 0.02


def trajectory_and_advantages(learner):
    trajectory = learner._collect()
    _, advantages = learner._values_and_advantages(trajectory)
    return trajectory, masked_whiten(advantages, torch.ones_like(advantages, dtype=torch.bool))


def weights_of(module):
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def same_bits(a, b):
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


@pytest.mark.parametrize("how", ["kl", "surrogate", "nan"])
def test_a_rejected_step_restores_the_weights_bit_for_bit(how, monkeypatch):
    learner = TRPO(cart_pole, TRPOConfig(**(CONFIG | {"cg_damping": 0.1})), seed=0)
    trajectory, advantages = trajectory_and_advantages(learner)
    if how == "kl":
        kl = learner.policy.kl
        monkeypatch.setattr(learner.policy, "kl", lambda old, new, mask: kl(old, new, mask) + 1)
    elif how == "nan":
        advantages[0, 0] = torch.nan
    else:
        # Downhill: the KL is fine, the surrogate falls. (x, b - A x) of -x is (-x, 2 b - (b - A x)).
        def backwards(product, b, iterations):
            x, residual = conjugate_gradient(product, b, iterations)
            return -x, 2 * b - residual

        monkeypatch.setattr(tabular.deep.natural_gradient, "conjugate_gradient", backwards)
    before = weights_of(learner.network.actor)
    metrics = learner._update(trajectory, advantages)
    assert metrics["accepted"] == 0
    assert same_bits(before, weights_of(learner.network.actor))


def test_gradient_steps_of_the_critic_do_not_change_the_policy():
    learner = TRPO(cart_pole, TRPOConfig(**CONFIG), seed=0)
    actor, critic = weights_of(learner.network.actor), weights_of(learner.network.critic)
    learner._fit_values(torch.randn(30, 4, generator=generator()), torch.ones(30))
    assert torch.equal(actor, weights_of(learner.network.actor))
    assert not torch.equal(critic, weights_of(learner.network.critic))


def test_settings_out_of_range_are_rejected():
    for field, value in (("target_kl", 0.0), ("cg_damping", -1.0), ("line_search_shrink", 1.0), ("n_steps", 0)):
        with pytest.raises(ValueError, match=field):
            TRPOConfig(**{field: value})
    assert not hasattr(NaturalGradientConfig(), "line_search_steps")
    assert np.isfinite(TRPOConfig().target_kl)
