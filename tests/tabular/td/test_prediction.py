import gymnasium as gym
import numpy as np
import pytest

import tabular.envs  # noqa: F401
from tabular.planning.dynamic_programming import policy_evaluation
from tabular.planning.mdp import MDP
from tabular.td.prediction import PredictionConfig, learn_values, predict

RANDOM = np.full((5, 2), 0.5)
TRUE = np.arange(1, 6) / 6


def walk():
    return gym.make("tabular/RandomWalk-v0")


def rmse(config, episodes, seeds=200):
    """Root mean squared error over the five states after so many episodes [seeds, len(episodes)]."""
    runs = np.array([predict(walk, RANDOM, config, max(episodes), seed) for seed in range(seeds)])
    return np.sqrt(((runs - TRUE) ** 2).mean(axis=2))[:, np.array(episodes) - 1]


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        (PredictionConfig(alpha=0.05, initial_value=0.5), (0.1746, 0.0353)),
        (PredictionConfig(alpha=0.1, initial_value=0.5), (0.1284, 0.0552)),
        (PredictionConfig(alpha=0.15, initial_value=0.5), (0.0949, 0.0701)),
        (PredictionConfig(method="monte_carlo", alpha=0.02, initial_value=0.5), (0.1969, 0.0817)),
    ],
)
def test_errors_on_the_random_walk_equal_the_reference(config, reference):
    """Sutton & Barto, example 6.2: the error after 10 and 100 episodes, within three standard errors."""
    errors = rmse(config, (10, 100))
    assert (abs(errors.mean(axis=0) - reference) < 3 * errors.std(axis=0, ddof=1) / 200**0.5 + 1e-4).all()


def learned_values(method, states, rewards, terminated=True, gamma=0.5, alpha=0.5, lam=0.0, n=1, first_visit=False):
    values, counts = np.array([0.0, 10, 20, 30]), np.zeros(4, dtype=np.int64)
    number = ("td", "n_step", "monte_carlo").index(method)
    arrays = np.array(states), np.array(rewards, dtype=float)
    learn_values(values, counts, *arrays, terminated, number, alpha, gamma, lam, n, first_visit)
    return values.tolist()


def test_td_equals_a_worked_example():
    """0 -> 1 -> end, rewards 2 and 4: delta = 2 + 5 - 0 = 7, then 4 - 10 = -6; traces carry gamma lam of it back."""
    assert learned_values("td", [0, 1, 2], [2, 4]) == [3.5, 7, 20, 30]
    assert learned_values("td", [0, 1, 2], [2, 4], lam=1.0) == [3.5 - 6 * 0.5 * 0.5, 7, 20, 30]
    assert learned_values("td", [0, 1, 2], [2, 4], lam=0.5) == [3.5 - 6 * 0.25 * 0.5, 7, 20, 30]
    assert learned_values("td", [0, 1, 2], [2, 4], terminated=False) == [3.5, 10 + 0.5 * (4 + 10 - 10), 20, 30]  # cut


def test_n_step_and_monte_carlo_equal_a_worked_example():
    assert learned_values("n_step", [0, 1, 2], [2, 4], n=1) == [3.5, 7, 20, 30]
    assert learned_values("n_step", [0, 1, 2], [2, 4], n=2) == [2.0, 7, 20, 30]  # G0 = 2 + .5 * 4
    assert learned_values("n_step", [0, 1, 2, 3], [2, 4, 8], n=2) == [0.5 * (2 + 2 + 5), 10 + 0.5 * (8 - 10), 14, 30]
    assert learned_values("monte_carlo", [0, 1, 2], [2, 4]) == [2.0, 7, 20, 30]
    assert learned_values("monte_carlo", [0, 1, 2], [2, 4], terminated=False) == [0.5 * (2 + 7), 12, 20, 30]
    assert learned_values("monte_carlo", [0, 0, 1], [2, 4], gamma=1.0, alpha=0.0) == [5, 10, 20, 30]
    assert learned_values("monte_carlo", [0, 0, 1], [2, 4], gamma=1.0, alpha=0.0, first_visit=True) == [6, 10, 20, 30]


def test_lambda_0_and_1_and_n_1_and_infinity_are_known_methods():
    """lambda 0 and n = 1 are TD(0); n beyond the episode is Monte Carlo, which for lambda 1 holds offline only."""
    runs = {
        name: predict(walk, RANDOM, PredictionConfig(**settings), 50, seed=3)
        for name, settings in {
            "td": {"lam": 0.0},
            "one": {"method": "n_step", "n": 1},
            "all": {"method": "n_step", "n": 10**30},
            "mc": {"method": "monte_carlo"},
        }.items()
    }
    assert runs["td"] == pytest.approx(runs["one"], abs=1e-12)
    first = slice(0, 1)  # later the order of the updates of one state tells
    assert np.sort(runs["all"][first] > 0).tolist() == np.sort(runs["mc"][first] > 0).tolist()
    assert runs["all"][-1] == pytest.approx(runs["mc"][-1], abs=0.1)


@pytest.mark.parametrize("settings", [{"lam": 0.8}, {"method": "n_step"}, {"method": "monte_carlo", "alpha": 0}])
def test_estimates_approach_the_true_values(settings):
    estimates = predict(walk, RANDOM, PredictionConfig(**{"alpha": 0.01, **settings}), 3000, seed=0)
    assert estimates[-2000:].mean(axis=0) == pytest.approx(TRUE, abs=0.05)


@pytest.mark.parametrize("settings", [{}, {"lam": 0.5}, {"method": "n_step"}, {"method": "monte_carlo"}])
def test_environments_without_a_table_give_the_same_values(settings):
    """The wrapped lake is no table any more; the mean over runs is the policy's value all the same."""
    policy = np.array([0, 3, 3, 3, 0, 0, 0, 0, 3, 1, 0, 0, 0, 2, 1, 0])
    config = PredictionConfig(**{"alpha": 0.02, "gamma": 0.99, **settings})

    def wrapped():
        return gym.wrappers.TransformReward(gym.make("FrozenLake-v1"), float)

    slow = predict(wrapped, policy, config, 500, seed=0)[-250:].mean(axis=0)
    fast = predict(lambda: gym.make("FrozenLake-v1"), policy, config, 500, seed=1)[-250:].mean(axis=0)
    exact = policy_evaluation(MDP.from_gym(gym.make("FrozenLake-v1"), 0.99), policy)
    lived_in = [8, 9, 10, 13, 14]
    assert slow[lived_in] == pytest.approx(fast[lived_in], abs=0.15)
    assert slow[14] == pytest.approx(exact[14], abs=0.15)


def test_a_seed_determines_the_run():
    runs = [predict(walk, RANDOM, PredictionConfig(), 20, seed) for seed in (1, 1, 2)]
    assert (runs[0] == runs[1]).all()
    assert (runs[0] != runs[2]).any()


def test_gamma_0_predicts_rewards():
    assert predict(walk, RANDOM, PredictionConfig(alpha=0.5, gamma=0.0), 500, 0)[-1][:4] == pytest.approx(np.zeros(4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "guess"}, "method is 'guess', but must be one of td, n_step, monte_carlo"),
        ({"alpha": 0}, "alpha is 0, but must be positive"),
        ({"lam": 1.1}, "lam is 1.1, but must be between 0 and 1"),
        ({"gamma": -1}, "gamma is -1, but must be between 0 and 1"),
        ({"n": 0}, "n is 0, but must be at least 1"),
        ({"initial_value": float("nan")}, "initial_value is nan, but must be finite"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PredictionConfig(**settings)


def test_policies_and_spaces_of_another_size_or_kind_are_refused():
    with pytest.raises(ValueError, match=r"\[5, 2\], got \[4, 2\]"):
        predict(walk, np.full((4, 2), 0.5), PredictionConfig(), 1, 0)
    with pytest.raises(ValueError, match="discrete observations"):
        predict(lambda: gym.make("CartPole-v1"), RANDOM, PredictionConfig(), 1, 0)
    with pytest.raises(ValueError, match="episodes is 0, but must be at least 1"):
        predict(walk, RANDOM, PredictionConfig(), 0, 0)


@pytest.mark.parametrize("row", [[1.0, 1.0], [2.0, -1.0], [np.nan, 0.5], [0.5, np.inf], [0.0, 0.0]])
def test_rows_that_are_not_probabilities_are_refused(row):
    policy = RANDOM.copy()
    policy[3] = row
    with pytest.raises(ValueError, match=r"the policy in state 3, \[.*\], must be probabilities"):
        predict(walk, policy, PredictionConfig(), 1, 0)


@pytest.mark.parametrize("action", [-1, 2])
def test_actions_that_do_not_exist_are_refused(action):
    policy = np.array([0, 1, action, 1, 1])
    with pytest.raises(ValueError, match=f"the policy takes action {action} in state 2: outside 0 to 1"):
        predict(walk, policy, PredictionConfig(), 1, 0)


def test_a_policy_that_never_ends_is_refused(monkeypatch):
    monkeypatch.setattr("tabular.td.prediction.MAX_EPISODE_STEPS", 1000)
    stuck = np.zeros(47, dtype=int)  # up, into the edge
    with pytest.raises(ValueError, match="did not end within 1000 steps"):
        predict(lambda: gym.make("tabular/Maze-v0"), stuck, PredictionConfig(), 1, 0)


def test_rewards_that_are_not_finite_are_refused():
    def broken():
        return gym.wrappers.TransformReward(walk(), lambda reward: float("nan"))

    with pytest.raises(ValueError, match="RandomWalk-v0 returned the reward nan, but rewards must be finite"):
        predict(broken, RANDOM, PredictionConfig(), 1, 0)
