import gymnasium as gym
import numpy as np
import pytest

import tabular.envs  # noqa: F401
from tabular.planning.dynamic_programming import action_values, policy_evaluation
from tabular.planning.mdp import MDP
from tabular.td import kernels
from tabular.td.control import Sarsa
from tabular.td.multistep import MonteCarlo
from tabular.td.traces import SarsaLambda


def trained(cls, make_env, steps, seed=0, **settings):
    learner = cls(make_env, cls.Config(**settings), seed)
    learner.advance(steps)
    return learner


def cliff():
    return gym.make("CliffWalking-v1", max_episode_steps=100)


def walk():
    return gym.make("tabular/RandomWalk-v0")


@pytest.mark.parametrize("traces", ["replacing", "accumulating"])
def test_lambda_0_is_sarsa(traces):
    """Bit for bit, truncated episodes included."""
    sarsa = trained(Sarsa, cliff, 20_000)
    with_traces = trained(SarsaLambda, cliff, 20_000, lam=0.0, traces=traces)
    assert (with_traces.q == sarsa.q).all()
    assert with_traces.history.state_dict() == sarsa.history.state_dict()


@pytest.mark.parametrize(("alpha", "bound"), [(1e-3, 2e-2), (1e-5, 2e-6)])
def test_lambda_1_with_accumulating_traces_is_close_to_every_visit_monte_carlo(alpha, bound):
    """With epsilon 1 both see the same episodes; online updates differ from those at the end by terms in alpha^2."""
    settings = {"alpha": alpha, "gamma": 1.0, "epsilon": 1.0, "initial_q": 0.0}
    monte_carlo = trained(MonteCarlo, walk, 5000, first_visit=False, **settings)
    with_traces = trained(SarsaLambda, walk, 5000, lam=1.0, traces="accumulating", **settings)
    assert monte_carlo.history.ends == with_traces.history.ends
    end = monte_carlo.history.ends[-1]
    monte_carlo = trained(MonteCarlo, walk, end, first_visit=False, **settings)
    with_traces = trained(SarsaLambda, walk, end, lam=1.0, traces="accumulating", **settings)
    assert np.abs(with_traces.q - monte_carlo.q).max() < bound
    assert np.abs(with_traces.q).max() > 10 * bound


def update(q, traces, steps, rule):
    stats = np.zeros(4)
    for s, a, r, s2, a2, terminated in steps:
        kernels.trace_update(q, s, a, r, s2, a2, terminated, False, rule, traces, stats)
    return stats


@pytest.mark.parametrize(("replacing", "trace"), [(True, 1.0), (False, 1.2)])
def test_traces_equal_a_worked_example(replacing, trace):
    """gamma .5, lambda .4, so traces decay by .2; state 0 repeats, then leads to state 1 and the end."""
    rule = kernels.Rule(kernels.SARSA_LAMBDA, False, 0.5, 0.1)
    traces = kernels.make_memory(2, 1, lam=0.4, replacing=replacing).traces
    q = np.zeros((1, 2, 1))
    stats = update(q, traces, [(0, 0, 1.0, 0, 0, False)], rule)
    assert q[0, :, 0] == pytest.approx([0.1, 0])
    assert stats[kernels.LARGEST_CHANGE] == pytest.approx(0.1)
    assert traces.values[0, 0] == pytest.approx(0.2)
    update(q, traces, [(0, 0, 0.0, 1, 0, False)], rule)  # delta = 0 + .5 * 0 - .1
    q0 = 0.1 - 0.1 * 0.1 * trace
    assert q[0, :, 0] == pytest.approx([q0, 0])
    update(q, traces, [(1, 0, 2.0, 0, 0, True)], rule)  # delta = 2
    assert q[0, :, 0] == pytest.approx([q0 + 0.1 * 2 * 0.2 * trace, 0.2])
    assert (traces.values == 0).all()
    assert traces.n_active[0] == 0


def test_traces_below_the_threshold_are_dropped():
    rule = kernels.Rule(kernels.SARSA_LAMBDA, False, 0.1, 0.5)
    traces = kernels.make_memory(10, 1, lam=0.2).traces
    q = np.zeros((1, 10, 1))
    update(q, traces, [(s, 0, 0.0, s + 1, 0, False) for s in range(9)], rule)
    assert traces.n_active[0] == 4  # .02, 4e-4, 8e-6, 1.6e-7; 3.2e-9 and smaller are 0
    assert sorted(traces.active[:4]) == [5, 6, 7, 8]
    assert traces.values[:, 0] == pytest.approx([0, 0, 0, 0, 0, 1.6e-7, 8e-6, 4e-4, 0.02, 0])


@pytest.mark.parametrize("traces", ["replacing", "accumulating"])
@pytest.mark.parametrize("lam", [0.5, 0.9])
def test_with_small_steps_the_values_are_those_of_the_random_policy(traces, lam):
    learner = trained(
        SarsaLambda, walk, 300_000, lam=lam, traces=traces, alpha=0.05, gamma=1.0, epsilon=1.0, initial_q=0.0,
        alpha_schedule="cosine", alpha_end=1e-4, alpha_steps=300_000,
    )  # fmt: skip
    mdp = MDP.from_gym(walk(), 1)
    exact = action_values(mdp, policy_evaluation(mdp, np.full((5, 2), 0.5)))
    assert learner.q[0] == pytest.approx(exact, abs=0.01)


def test_traces_shorten_the_first_episodes():
    """On a maze with one reward at the end a single success updates the whole path: half the steps of SARSA."""
    settings = {"alpha": 0.1, "gamma": 0.95, "initial_q": 0.0}

    def steps_of_20_episodes(cls, **more):
        totals = []
        for seed in range(30):
            learner = trained(cls, lambda: gym.make("tabular/Maze-v0"), 30_000, seed, **settings, **more)
            totals.append(learner.history.ends[19])
        return np.mean(totals)

    assert steps_of_20_episodes(SarsaLambda) < 0.5 * steps_of_20_episodes(Sarsa)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lam": 1.5}, "lam is 1.5, but must be between 0 and 1"),
        ({"traces": "dutch"}, "traces is 'dutch', but must be one of replacing, accumulating"),
        ({"alpha": 0}, "alpha is 0, but must be positive"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SarsaLambda.Config(**settings)
