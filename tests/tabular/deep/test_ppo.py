"""PPO: gradients at points where they are known, minibatches, and the adaptive KL penalty."""

from dataclasses import replace

import gymnasium as gym
import pytest
import torch

from tabular.core.losses import policy_gradient_loss
from tabular.deep.ppo import PPO, PPOConfig


def cart_pole():
    return gym.make("CartPole-v1", disable_env_checker=True)


def with_batch(**settings):
    """A learner, and the batch that its first iteration would learn from."""
    learner = PPO(cart_pole, PPOConfig(n_envs=2, n_steps=25, hidden=(8,), **settings), seed=0)
    return learner, learner._make_batch(learner._collect())


def actor_gradient(learner, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(learner.network.actor.parameters()))])


@pytest.mark.parametrize("objective", ["clip", "kl_fixed", "kl_adaptive"])
def test_before_the_first_step_the_gradient_is_the_policy_gradient(objective):
    learner, batch = with_batch(objective=objective)
    loss, metrics = learner._loss(batch, 0.2)
    logprobs = learner.policy.logprob(learner.network.actor(batch.obs), batch.actions, None)
    mask = torch.ones(50, dtype=torch.bool)
    plain, _ = policy_gradient_loss(logprobs, batch.advantages, mask, 50)
    torch.testing.assert_close(actor_gradient(learner, loss), actor_gradient(learner, plain), atol=1e-7, rtol=1e-5)
    assert float(metrics["ratio_max"]) == 1
    assert float(metrics["approx_kl"]) == 0


def test_advantages_are_normalised_over_the_batch_and_returns_are_not():
    _, batch = with_batch()
    assert float(batch.advantages.mean()) == pytest.approx(0, abs=1e-6)
    assert float(batch.advantages.std(correction=0)) == pytest.approx(1, abs=1e-4)
    _, plain = with_batch(normalize_advantages=False)
    torch.testing.assert_close(plain.returns, plain.advantages + plain.old_values)
    torch.testing.assert_close(batch.returns, plain.returns)


def test_a_batch_of_one_step_cannot_be_normalised_and_is_rejected():
    naive = torch.tensor([3.0])
    assert torch.isnan((naive - naive.mean()) / naive.std()).all()
    with pytest.raises(ValueError, match="normalize_advantages"):
        PPOConfig(n_envs=1, n_steps=1)
    learner = PPO(cart_pole, PPOConfig(n_envs=1, n_steps=1, normalize_advantages=False), seed=0)
    learner.advance(3)
    assert torch.isfinite(learner.optimizer.weights).all()


def test_a_smaller_last_minibatch_is_divided_by_its_own_size(monkeypatch):
    learner, batch = with_batch(minibatch_size=16, n_epochs=1)
    seen, sizes, real_loss = [], [], learner._loss

    def spy(minibatch, clip_range):
        loss, metrics = real_loss(minibatch, clip_range)
        rows = [(batch.obs == obs).all(-1).nonzero()[0].item() for obs in minibatch.obs]
        seen.extend(rows)
        sizes.append(len(rows))
        return loss, metrics

    monkeypatch.setattr(learner, "_loss", spy)
    monkeypatch.setattr(learner.optimizer, "step", lambda: None)
    metrics = learner._update(batch)
    assert sizes == [16, 16, 16, 2]
    assert sorted(seen) == list(range(50))
    # Nothing moved, so the mean over unequal minibatches is the loss of the whole batch.
    loss, _ = real_loss(batch, 0.2)
    total = metrics["policy_loss"] + learner.config.vf_coef * metrics["value_loss"]
    assert total == pytest.approx(loss.item(), rel=1e-4)


def test_beta_is_updated_once_an_iteration_with_the_exact_kl_after_the_epochs(monkeypatch):
    settings = PPOConfig(objective="kl_adaptive", n_envs=2, n_steps=25, n_epochs=4, minibatch_size=10, hidden=(8,))
    learner = PPO(cart_pole, settings, seed=0)
    calls, update = [], learner.penalty.update
    monkeypatch.setattr(learner.penalty, "update", lambda kl: (calls.append(kl), update(kl)))
    learner.advance(150)
    assert calls == [value for _, value in learner.history.metrics["kl"]]
    assert len(calls) == 3
    beta = 1.0
    for kl, (_, recorded) in zip(calls, learner.history.metrics["beta"], strict=True):
        beta = 2 * beta if kl > 0.015 else beta / 2 if kl < 0.01 / 1.5 else beta
        assert recorded == beta


def test_a_fixed_beta_is_constant_and_a_larger_one_gives_a_smaller_kl():
    def kl_after(beta):
        config = PPOConfig(objective="kl_fixed", beta=beta, n_envs=2, n_steps=50, hidden=(8,), lr=0.01)
        learner = PPO(cart_pole, config, seed=0)
        learner.advance(100)
        assert learner.penalty.beta == beta
        return learner.history.metrics["kl"][-1][1]

    assert kl_after(100.0) < 0.1 * kl_after(0.01)


def test_value_clipping_stops_the_gradient_of_values_that_moved_too_far():
    learner, batch = with_batch(clip_range_value=0.1)
    far_values = batch.old_values - torch.where(batch.returns > batch.old_values, 5.0, -5.0)
    batch = replace(batch, old_values=far_values)
    loss, _ = learner._loss(batch, 0.2)
    parameters = list(learner.network.critic.parameters())
    assert not any(g.any() for g in torch.autograd.grad(loss, parameters))
    unclipped, batch = with_batch()
    gradients = torch.autograd.grad(unclipped._loss(batch, 0.2)[0], list(unclipped.network.critic.parameters()))
    assert all(g.any() for g in gradients)


def test_entropy_bonus_adds_its_gradient():
    learner, batch = with_batch(ent_coef=0.5)
    plain, _ = with_batch()
    entropy = learner.policy.entropy(learner.network.actor(batch.obs), None, learner.generator).mean()
    expected = actor_gradient(plain, plain._loss(batch, 0.2)[0]) - 0.5 * actor_gradient(learner, entropy)
    torch.testing.assert_close(actor_gradient(learner, learner._loss(batch, 0.2)[0]), expected, atol=1e-7, rtol=1e-4)


def test_annealing_lowers_the_learning_rate_to_zero():
    config = PPOConfig(n_envs=2, n_steps=25, anneal_steps=100, hidden=(8,), n_epochs=1)
    learner = PPO(cart_pole, config, seed=0)
    learner.advance(150)
    assert [lr for _, lr in learner.history.metrics["lr"]] == pytest.approx([1e-3, 5e-4, 0.0])


def test_shared_layers_are_updated_by_both_heads():
    learner = PPO(cart_pole, PPOConfig(n_envs=2, n_steps=25, hidden=(8,), shared=True), seed=0)
    assert len(learner.optimizer.weights) == 4 * 8 + 8 + 8 * 2 + 2 + 8 + 1
    before = learner.optimizer.weights.detach().clone()
    learner.advance(50)
    assert (learner.optimizer.weights != before).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [("objective", "klip"), ("clip_range", 0.0), ("target_kl", -1.0), ("minibatch_size", 0), ("ent_coef", -0.1)],
)
def test_settings_out_of_range_are_rejected(field, value):
    with pytest.raises(ValueError, match=field):
        PPOConfig(**{field: value})
