"""The levels of figures 2.2 to 2.5 in Sutton & Barto (2018), and the identities behind them."""

import numpy as np
import pytest
import torch

from tabular.td.bandits import BanditConfig, GradientBandit, ValueBandit, run_bandits


@pytest.fixture(scope="module")
def curves():
    return run_bandits(
        {
            "greedy": BanditConfig(epsilon=0),
            "epsilon .01": BanditConfig(epsilon=0.01),
            "epsilon .1": BanditConfig(epsilon=0.1),
            "constant alpha": BanditConfig(epsilon=0.1, alpha=0.1),
            "optimistic": BanditConfig(epsilon=0, initial_value=5, alpha=0.1),
            "ucb": BanditConfig("ucb", c=2),
        }
    )


@pytest.mark.parametrize(
    ("name", "optimal", "reward"),
    [  # read from the figures: to within .025 of a fraction and .05 of a reward
        ("greedy", 0.36, 1.02),
        ("epsilon .01", 0.59, 1.31),
        ("epsilon .1", 0.80, 1.36),
        ("constant alpha", 0.76, None),
        ("optimistic", 0.86, None),
        ("ucb", None, 1.49),
    ],
)
def test_levels_after_1000_steps_equal_the_figures(curves, name, optimal, reward):
    """Within the accuracy of the reading and three standard errors of 2000 runs."""
    if optimal is not None:
        assert curves[name].optimal[-1] == pytest.approx(optimal, abs=0.025 + 3 * curves[name].optimal_error[-1])
    if reward is not None:
        assert curves[name].reward[-1] == pytest.approx(reward, abs=0.05 + 3 * curves[name].reward_error[-1])


def test_optimistic_values_explore_every_arm_first(curves):
    """All ten arms within about ten steps: worse than epsilon-greedy at first, better in the end (figure 2.3)."""
    optimistic, realistic = curves["optimistic"].optimal, curves["constant alpha"].optimal
    assert optimistic[:8].mean() < 0.15
    assert optimistic[10] == pytest.approx(0.44, abs=0.05)  # the spike at step 11
    assert optimistic[-100:].mean() > realistic[-100:].mean() + 0.05
    assert optimistic[20:50].mean() < realistic[20:50].mean()


def test_ucb_tries_every_arm_once_before_it_compares():
    bandit, generator = ValueBandit(BanditConfig("ucb"), 50, 10), np.random.default_rng(0)
    arms = []
    for step in range(1, 11):
        arms.append(bandit.choose(step, generator))
        bandit.update(arms[-1], generator.normal(size=50))
    assert (np.sort(np.array(arms), axis=0) == np.arange(10)[:, None]).all()


def test_the_baseline_matters_where_rewards_are_large():
    """Figure 2.5: true values near 4; without a baseline every arm seems good."""
    configs = {
        f"{alpha}, {baseline}": BanditConfig("gradient", alpha=alpha, baseline=baseline)
        for alpha in (0.1, 0.4)
        for baseline in (True, False)
    }
    optimal = {key: curve.optimal[-100:].mean() for key, curve in run_bandits(configs, n_runs=1000, mean=4).items()}
    assert optimal["0.1, True"] == pytest.approx(0.86, abs=0.04)
    assert optimal["0.1, True"] > optimal["0.1, False"] + 0.2
    assert optimal["0.4, True"] > optimal["0.4, False"] + 0.2


def test_with_a_baseline_the_mean_of_the_rewards_does_not_matter():
    """Adding 4 to all rewards adds 4 to the baseline: the same choices."""
    config = {"gradient": BanditConfig("gradient", alpha=0.1)}
    plain, shifted = (run_bandits(config, n_runs=50, n_steps=200, mean=mean)["gradient"] for mean in (0, 4))
    assert (plain.optimal == shifted.optimal).all()
    assert shifted.reward == pytest.approx(plain.reward + 4, abs=1e-9)


@pytest.mark.parametrize("baseline", [0.0, 1.5, -7.0])
def test_the_expected_update_is_the_gradient_of_the_expected_reward_for_any_baseline(baseline):
    """sum_a pi(a) (q(a) - b) grad log pi(a) = grad sum_a pi(a) q(a): the reason for the policy gradient's baseline."""
    values = np.array([1.0, -0.5, 2.0])
    preferences = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    (torch.softmax(preferences, 0) @ torch.tensor(values)).backward()
    expected = np.zeros(3)
    for arm in range(3):
        bandit = GradientBandit(BanditConfig("gradient", alpha=1.0), 1, 3)
        bandit.preferences[:] = preferences.detach().numpy()
        bandit.baseline[:], bandit.steps = baseline, 1
        probability = bandit.probabilities()[0, arm]
        bandit.update(np.array([arm]), values[[arm]])
        expected += probability * (bandit.preferences[0] - preferences.detach().numpy())
    assert preferences.grad is not None
    assert expected == pytest.approx(preferences.grad.numpy(), abs=1e-12)


def test_a_seed_determines_the_curves_and_methods_share_their_problems():
    configs = {"a": BanditConfig(epsilon=1.0), "b": BanditConfig(epsilon=1.0, initial_value=3)}
    first, again = (run_bandits(configs, n_runs=20, n_steps=5, seed=1) for _ in range(2))
    assert (first["a"].reward == again["a"].reward).all()
    assert (first["a"].reward == first["b"].reward).all()  # random arms, whatever the estimates are
    other = run_bandits(configs, n_runs=20, n_steps=5, seed=2)
    assert (first["a"].reward != other["a"].reward).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "thompson"}, "method is 'thompson', but must be one of epsilon_greedy, ucb, gradient"),
        ({"epsilon": 1.5}, "epsilon is 1.5, but must be between 0 and 1"),
        ({"c": -1}, "c is -1, but must be at least 0"),
        ({"method": "gradient"}, "alpha is 0, but must be positive for a gradient bandit"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BanditConfig(**{"alpha": 0.0, **settings})


def test_fewer_than_two_runs_are_refused():
    with pytest.raises(ValueError, match="n_runs is 1, but must be at least 2"):
        run_bandits({"greedy": BanditConfig(epsilon=0)}, n_runs=1)
