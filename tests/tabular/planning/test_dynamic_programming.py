import re
from dataclasses import replace
from functools import partial

import gymnasium as gym
import numpy as np
import pytest

from tabular.envs.maze import Maze, generate, shortest_path
from tabular.planning.dynamic_programming import (
    action_values,
    finite_horizon_values,
    iterative_policy_evaluation,
    policy_evaluation,
    policy_improvement,
    policy_iteration,
    value_iteration,
)
from tabular.planning.mdp import MDP, line_world, with_random_actions
from tabular.planning.policies import epsilon_greedy, greedy_actions

ORDERS = ("synchronous", "in_place", "prioritised")
SOLVERS = [value_iteration, policy_iteration]


def frozen_lake(gamma, **options):
    return MDP.from_gym(gym.make("FrozenLake-v1", **options), gamma)


def process(*states, gamma=1.0):
    """An MDP from one list of actions per state; an action is a list of (probability, next state, reward, terminated)
    or a single outcome `(next state, reward)` that does not end, or a number: the reward for ending at once."""

    def outcomes(action):
        if isinstance(action, int | float):
            return [(1.0, 0, float(action), True)]
        return [(1.0, action[0], float(action[1]), False)] if isinstance(action, tuple) else action

    table = {s: {a: outcomes(action) for a, action in enumerate(actions)} for s, actions in enumerate(states)}
    return MDP.from_table(table, gamma, np.eye(len(states))[0])


def random_process(seed, gamma, n_states=30, n_actions=3):
    """Some actions never end, so undiscounted rewards are costs: else one could collect reward forever."""
    generator = np.random.default_rng(seed)
    table = {}
    for state in range(n_states):
        table[state] = {}
        for action in range(n_actions):
            probabilities = generator.dirichlet(np.ones(3))
            nexts = generator.integers(n_states, size=3)
            ended = generator.random(3) < 0.1
            rewards = generator.normal(size=3)
            rewards = -np.abs(rewards) if gamma == 1 else rewards
            table[state][action] = [
                (float(p), int(s), float(r), bool(e))
                for p, s, r, e in zip(probabilities, nexts, rewards, ended, strict=True)
            ]
    return MDP.from_table(table, gamma, np.eye(n_states)[0])


# Exact values


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize(
    ("mdp", "start_value"),
    [
        (frozen_lake(0.99), 0.542025932000),
        (frozen_lake(1), 14 / 17),
        (frozen_lake(0.99, is_slippery=False), 0.99**5),
        (frozen_lake(1, is_slippery=False), 1.0),
        (MDP.from_gym(gym.make("CliffWalking-v1"), 1), -13.0),
        (MDP.from_gym(gym.make("CliffWalking-v1"), 0.9), -7.458134171671),
        (line_world(), 7.29),
    ],
)
def test_start_values_equal_the_published_or_exact_ones(solve, mdp, start_value):
    solution = solve(mdp)
    assert solution.converged
    assert mdp.start @ solution.values == pytest.approx(start_value, rel=1e-9)
    earned = policy_evaluation(mdp, solution.policy)  # the policy is as good as the values say
    assert earned == pytest.approx(solution.values, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize(
    ("mdp", "values"),
    [
        (line_world(), [7.29, 8.1, 9, 10]),
        (line_world(goal_value=0, step_reward=-1, gamma=1), [-3, -2, -1, 0]),
        (line_world(success=0.8), [(7.2 / 0.82) * (0.72 / 0.82) ** 2, (7.2 / 0.82) * (0.72 / 0.82), 7.2 / 0.82, 10]),
        (line_world(success=0.5, goal_value=0, step_reward=-1, gamma=1), [-6, -4, -2, 0]),
        (line_world(gamma=0), [0, 0, 0, 10]),
    ],
)
def test_line_world_values(solve, mdp, values):
    solution = solve(mdp)
    assert solution.values == pytest.approx(values, abs=1e-9)
    if mdp.gamma > 0:
        assert (solution.policy[:-1] == 1).all()


def test_sutton_and_barto_gridworld_example_4_1():
    """Example 4.1: 4 x 4, two corners end it, -1 a step, the uniform policy, undiscounted."""

    def cell(row, column):
        return min(max(row, 0), 3) * 4 + min(max(column, 0), 3)

    def actions(s):
        row, column = divmod(s, 4)
        nexts = [cell(row - 1, column), cell(row, column + 1), cell(row + 1, column), cell(row, column - 1)]
        return [-1 if n in (0, 15) else (n, -1) for n in nexts]

    expected = [0, -14, -20, -22, -14, -18, -20, -20, -20, -20, -18, -14, -22, -20, -14, 0]
    uniform = np.full((16, 4), 0.25)
    for corner in ([0] * 4, None):  # the corners end the episode, or repeat forever without reward
        states = [actions(s) for s in range(16)]
        for s in (0, 15):
            states[s] = corner or [(s, 0)] * 4
        mdp = process(*states)
        assert policy_evaluation(mdp, uniform) == pytest.approx(expected, abs=1e-9)
        swept = iterative_policy_evaluation(mdp, uniform, tol=1e-12)
        assert swept.converged
        assert swept.values == pytest.approx(expected, abs=1e-9)


def test_two_sweeps_propagate_values_by_two_states():
    """As in figure 4.1, on a line of three: after two sweeps only the state beside the end differs from -2."""
    mdp = process([0, 0], [-1, (2, -1)], [(1, -1), (2, -1)])
    two = iterative_policy_evaluation(mdp, np.full((3, 2), 0.5), max_sweeps=2)
    assert two.values.tolist() == [0, -1.5, -2]
    assert not two.converged
    assert "after 2 sweeps" in two.reason


def test_random_walk_values_example_6_2():
    """Example 6.2: five states, +1 at the right end."""
    states = [[0, (1, 0)], *([(s - 1, 0), (s + 1, 0)] for s in (1, 2, 3)), [(3, 0), 1]]
    values = policy_evaluation(process(*states), np.full((5, 2), 0.5))
    assert values == pytest.approx(np.arange(1, 6) / 6, abs=1e-12)


def test_frozen_lake_has_two_optimal_actions_in_state_6():
    mdp = frozen_lake(0.99)
    solution = value_iteration(mdp)
    optimal = greedy_actions(action_values(mdp, solution.values))
    assert optimal[6].tolist() == [True, False, True, False]
    assert optimal[0].tolist() == [True, False, False, False]
    assert optimal[np.arange(16), solution.policy].all()


def test_cliff_walking_ends_at_the_goal_although_the_table_continues():
    env = gym.make("CliffWalking-v1").unwrapped
    mdp = MDP.from_gym(env, 0.9)
    ignoring = {s: {a: [(*o[:3], False) for o in env.P[s][a]] for a in env.P[s]} for s in env.P}
    endless = MDP.from_table(ignoring, 0.9, env.initial_state_distrib)
    assert value_iteration(endless).values[36] == pytest.approx(-10, abs=1e-9)
    assert value_iteration(mdp).values[36] == pytest.approx(-7.458134171671, abs=1e-11)


# Identities


@pytest.mark.parametrize("gamma", [0.5, 0.99, 1])
@pytest.mark.parametrize("seed", range(5))
def test_value_and_policy_iteration_agree(seed, gamma):
    mdp = random_process(seed, gamma)
    by_values, by_policies = value_iteration(mdp, tol=1e-11), policy_iteration(mdp)
    assert by_values.converged
    assert by_policies.converged
    assert by_values.values == pytest.approx(by_policies.values, abs=1e-9)
    q_values = action_values(mdp, by_policies.values)
    assert q_values.max(axis=1) == pytest.approx(by_policies.values, abs=1e-10)

    uniform = np.full(mdp.rewards.shape, 1 / mdp.n_actions)
    exact, swept = policy_evaluation(mdp, uniform), iterative_policy_evaluation(mdp, uniform, tol=1e-11)
    assert swept.converged
    assert swept.values == pytest.approx(exact, abs=1e-9)
    assert (exact <= by_policies.values + 1e-9).all()
    one_hot = np.eye(mdp.n_actions)[by_policies.policy]
    assert policy_evaluation(mdp, one_hot) == pytest.approx(policy_evaluation(mdp, by_policies.policy), abs=1e-10)


def test_policy_improvement_never_lowers_a_value():
    mdp = random_process(0, 0.95)
    policy = np.zeros(mdp.n_states, dtype=int)
    for _ in range(3):
        before = policy_evaluation(mdp, policy)
        policy = policy_improvement(mdp, before, policy)
        assert (policy_evaluation(mdp, policy) >= before - 1e-12).all()


@pytest.mark.parametrize("sweeps", [1, 10, 100, 500])
def test_error_bound_holds_and_is_more_than_the_last_change(sweeps):
    mdp = random_process(1, 0.99)
    exact = policy_iteration(mdp).values
    solution = value_iteration(mdp, max_sweeps=sweeps)
    previous = value_iteration(mdp, max_sweeps=sweeps - 1).values if sweeps > 1 else np.zeros(30)
    error, change = np.abs(solution.values - exact).max(), np.abs(solution.values - previous).max()
    assert error <= solution.error_bound
    assert solution.error_bound == pytest.approx(99 * change, rel=1e-9)
    assert not solution.converged


def test_error_bound_is_tight_on_a_loop():
    """V = 1 / (1 - gamma); after n sweeps the error is gamma^n / (1 - gamma), which is what the bound says."""
    solution = value_iteration(process([(0, 1)], gamma=0.9), max_sweeps=5)
    assert 10 - solution.values[0] == pytest.approx(0.9**5 * 10)
    assert solution.error_bound == pytest.approx(0.9**5 * 10)


def test_value_iteration_stops_at_the_tolerance():
    mdp = frozen_lake(0.99)
    exact = policy_iteration(mdp).values
    for tol in (1e-3, 1e-6):
        solution = value_iteration(mdp, tol=tol)
        assert solution.converged
        assert solution.error_bound <= tol
        assert np.abs(solution.values - exact).max() <= tol
    assert value_iteration(mdp, tol=1e-3).iterations < value_iteration(mdp, tol=1e-6).iterations


def test_a_tolerance_below_the_precision_of_floats_terminates():
    solution = value_iteration(random_process(2, 0.999), tol=1e-300)
    assert solution.iterations < 100_000
    assert not solution.converged or solution.error_bound == 0
    assert solution.values == pytest.approx(policy_iteration(random_process(2, 0.999)).values, abs=1e-9)


@pytest.mark.parametrize("order", ["synchronous", "in_place", "prioritised"])
def test_an_unreachable_tolerance_is_resulted_with_a_reachable_one(order):
    """V = 1 / (1 - gamma) = 100 at the end of the line: its last bits alone, 1e-14, leave a bound of 1e-12."""
    mdp = process(*([(s, -1), (s + 1, -1)] for s in range(5)), [(5, 1), (5, 1)], gamma=0.99)
    solution = value_iteration(mdp, tol=1e-15, order=order)
    assert not solution.converged
    suggestion = re.search(
        r"only the last bits of the values change, .* a larger tol, such as (1e-\d+)", solution.reason
    )
    assert suggestion is not None, solution.reason
    assert solution.error_bound <= float(suggestion[1]) < 10 * solution.error_bound
    assert value_iteration(mdp, tol=float(suggestion[1]), order=order).converged


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"tol": -1.0}, "tol is -1.0, but must be positive"),
        ({"tol": float("nan")}, "tol is nan, but must be finite"),
        ({"max_sweeps": 0}, "max_sweeps is 0, but must be at least 1"),
    ],
)
@pytest.mark.parametrize("gamma", [0.9, 1])
def test_limits_out_of_range_are_refused(limits, message, gamma):
    mdp = process([0, 0], gamma=gamma)
    with pytest.raises(ValueError, match=message):
        value_iteration(mdp, **limits)
    with pytest.raises(ValueError, match=message):
        iterative_policy_evaluation(mdp, np.array([0]), **limits)
    with pytest.raises(ValueError, match="max_iterations is 0, but must be at least 1"):
        policy_iteration(mdp, max_iterations=0)
    with pytest.raises(ValueError, match="steps is -1, but must be at least 0"):
        finite_horizon_values(mdp, -1)


# Undiscounted


@pytest.mark.parametrize("solve", SOLVERS)
def test_a_process_that_cannot_end_is_refused(solve):
    trap = process([(1, -1), (0, -1)], [(1, -1), (1, -1)])
    with pytest.raises(ValueError, match=r"gamma 1 there is no solution: from state 0 \(one of 2\)"):
        solve(trap)
    assert solve(replace(trap, gamma=0.5)).values == pytest.approx([-2, -2])


@pytest.mark.parametrize("solve", SOLVERS)
def test_ending_only_with_some_probability_is_refused(solve):
    """State 0 ends or leads to state 1, which pays -1 forever."""
    mdp = process([[(0.9, 0, 0.0, True), (0.1, 1, 0.0, False)]], [(1, -1)])
    with pytest.raises(ValueError, match=r"from state 0 \(one of 2\)"):
        solve(mdp)


@pytest.mark.parametrize("solve", SOLVERS)
def test_the_risky_action_wins_where_a_detour_leads_back(solve):
    risky = [(0.9, 0, 100.0, True), (0.1, 2, 0.0, False)]
    mdp = process([risky, (1, -1)], [-1, -1], [(0, -5), (2, -1)])
    solution = solve(mdp)
    # risky is worth 90 + 0.1 * (V0 - 5): V0 = 89.5 / 0.9
    assert solution.values == pytest.approx([89.5 / 0.9, -1, 89.5 / 0.9 - 5], abs=1e-9)


FOREVER_REWARDED = r"from state \d+ it never ends and collects reward forever; take gamma < 1"


@pytest.mark.parametrize(
    "states",
    [
        [[(0, 1), 5]],
        [[(1, -3), 5], [(0, 4), 0]],  # a loop that costs first
        [[[(0.5, 0, 3.0, False), (0.5, 1, -1.0, False)], 0], [(0, -1), 0]],  # random, with a gain on average
        [[(0, 0.01), 1000], [(0, 0), -1]],  # ending at once looks better for 100,000 steps
        [[-5, (1, 0)], [(2, -1), -5], [(1, 2), -5]],
    ],
)
def test_collecting_reward_forever_is_refused(states):
    mdp = process(*states)
    with pytest.raises(ValueError, match=FOREVER_REWARDED):
        policy_iteration(mdp)
    for order in ("synchronous", "in_place", "prioritised"):
        with pytest.raises(ValueError, match=FOREVER_REWARDED):
            value_iteration(mdp, max_sweeps=1000, order=order)


@pytest.mark.parametrize("order", ["synchronous", "in_place", "prioritised"])
@pytest.mark.parametrize(
    ("states", "values"),
    [
        ([[(1, 1), 0], [(0, -1), 0]], [1, 0]),  # a loop with total reward 0
        ([[(1, 1), 3], [(0, -1.5), 0]], [3, 1.5]),
        ([[[(0.5, 0, 3.0, False), (0.5, 1, -1.0, False)], 0], [(0, -3), 0]], [2, 0]),  # a loss on average
    ],
)
def test_loops_with_rewards_and_costs(states, values, order):
    assert value_iteration(process(*states), order=order).values == pytest.approx(values)


@pytest.mark.parametrize("seed", range(30))
def test_all_methods_agree_or_all_refuse_where_rewards_have_both_signs(seed):
    """About half of these have no solution; some loops have a total reward of 0."""
    generator = np.random.default_rng(seed)

    def action():
        s1, s2 = generator.integers(5, size=2).tolist()
        r1, r2 = generator.integers(-4, 2, size=2).tolist()
        return (s1, r1) if generator.random() < 0.5 else [(0.5, s1, r1, False), (0.5, s2, r2, False)]

    mdp = process(*([action(), action(), -float(generator.integers(3))] for _ in range(5)))
    results = []
    for solve in (policy_iteration, *(partial(value_iteration, order=order) for order in ORDERS)):
        try:
            results.append(solve(mdp).values.round(6).tolist())
        except ValueError as error:
            results.append(re.sub(r"\d+", "", str(error)))
    assert all(result == results[0] for result in results[1:]), results


@pytest.mark.parametrize("solve", SOLVERS)
def test_a_state_without_reward_may_be_kept_forever(solve):
    """Ending costs 1, staying nothing: the best total is 0."""
    assert solve(process([-1, (0, 0)])).values.tolist() == [0]


@pytest.mark.parametrize("solve", SOLVERS)
def test_a_step_without_reward_into_a_costly_loop_is_not_free(solve):
    mdp = process([(1, 0), -5], [(0, -1), (0, -1)])
    assert solve(mdp).values == pytest.approx([-5, -6])


def test_undiscounted_values_are_exact_whatever_the_tolerance():
    """A change of 1e-3 a sweep leaves the values off by more than that; the policy's own values are not."""
    assert value_iteration(frozen_lake(1), tol=1e-3).values[0] == pytest.approx(14 / 17, rel=1e-12)


@pytest.mark.parametrize("solve", SOLVERS)
def test_a_loop_that_ties_with_the_exit_is_not_chosen(solve):
    """Staying in state 0 has the same action value as leaving, but a policy that stays never collects it."""
    mdp = process([(0, 0), (1, 0)], [(0, 0), 1])
    solution = solve(mdp)
    assert solution.values.tolist() == [1, 1]
    assert solution.policy.tolist() == [1, 1]


@pytest.mark.parametrize("solve", SOLVERS)
def test_a_reward_is_not_counted_without_the_cost_that_follows(solve):
    """Sweeps from 0 stop at the value 1: they always see the +1 and never the -2 that follows."""
    mdp = process([(0, 0), (1, 1)], [-2, -2])
    assert solve(mdp).values.tolist() == [0, -2]


def test_evaluating_a_policy_that_collects_reward_forever_is_refused():
    mdp = process([(0, -1), 0], [0, 0])
    stay, leave = np.array([0, 0]), np.array([1, 0])
    for evaluate in (policy_evaluation, iterative_policy_evaluation):
        with pytest.raises(ValueError, match="from state 0 it never ends and collects reward forever"):
            evaluate(mdp, stay)
    assert policy_evaluation(mdp, leave).tolist() == [0, 0]
    for gamma in (0.5, 0.99):
        discounted = replace(mdp, gamma=gamma)
        assert policy_evaluation(discounted, stay) == pytest.approx([-1 / (1 - gamma), 0])
        assert iterative_policy_evaluation(discounted, stay).values == pytest.approx([-1 / (1 - gamma), 0])


def test_evaluating_a_policy_that_stays_in_a_loop_without_reward():
    """One reward on the way into a loop without reward."""
    mdp = process([(1, 3)], [(2, 0)], [(1, 0)])
    assert policy_evaluation(mdp, np.zeros(3, dtype=int)).tolist() == [3, 0, 0]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (np.array([0, 2]), "takes action 2 in state 1: outside 0 to 1"),
        (np.array([0]), r"whole numbers \[S\] or probabilities \[S, A\] = \[2, 2\], got \[1\]"),
        (np.array([[0.5, 0.4], [1, 0]]), r"in state 0, \[0.5, 0.4\], must be .* sum to 1"),
        (np.array([[1, 0.0], [np.nan, 1]]), r"in state 1, \[nan, +1.\], must be probabilities"),
    ],
)
def test_invalid_policies_are_refused(policy, message):
    """The message names the invalid policy also where the process could collect reward forever."""
    mdp = process([0, 0], [(1, 1), 0])
    for evaluate in (policy_evaluation, iterative_policy_evaluation):
        with pytest.raises(ValueError, match=message):
            evaluate(mdp, policy)


def test_transitions_of_large_processes_stay_sparse():
    mdp = line_world(n_states=2000, step_reward=-1, gamma=0.99, success=0.9)
    solution = policy_iteration(mdp, max_iterations=5000)
    assert value_iteration(mdp).values == pytest.approx(solution.values, abs=1e-8)
    assert mdp.transitions.nnz < 4 * 2 * 2000


# Orders


@pytest.mark.parametrize("order", ["in_place", "prioritised"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.99, 1])
@pytest.mark.parametrize("seed", range(3))
def test_sweep_orders_agree(seed, gamma, order):
    mdp = random_process(seed, gamma)
    plain, other = value_iteration(mdp, tol=1e-11), value_iteration(mdp, tol=1e-11, order=order)
    assert other.converged
    assert other.values == pytest.approx(plain.values, abs=1e-9)
    assert policy_evaluation(mdp, other.policy) == pytest.approx(plain.values, abs=1e-9)


@pytest.mark.parametrize("order", ["in_place", "prioritised"])
@pytest.mark.parametrize("tol", [1e-2, 1e-6])
def test_the_error_bound_holds_in_every_order(order, tol):
    mdp = random_process(1, 0.99)
    exact = policy_iteration(mdp).values
    solution = value_iteration(mdp, tol=tol, order=order)
    assert solution.converged
    assert np.abs(solution.values - exact).max() <= solution.error_bound <= tol


def test_in_place_sweeps_propagate_values_along_the_order_of_states():
    """On a line with the goal beside state 0, one sweep in the order of states is enough."""
    mdp = process(*[[(s - 1, 0)] if s else [1] for s in range(50)], gamma=0.9)
    swept = {order: value_iteration(mdp, order=order).iterations for order in ("synchronous", "in_place")}
    assert swept == {"synchronous": 51, "in_place": 2}


def test_prioritised_sweeps_need_fewer_backups():
    """From the goal outwards, each state of the line needs one backup; in sweeps it would be 2000 of them."""
    mdp = line_world(n_states=2000, gamma=0.99)
    solution = value_iteration(mdp, order="prioritised")
    assert solution.converged
    assert solution.iterations <= 3
    assert value_iteration(mdp).iterations >= 2000


@pytest.mark.parametrize("order", ["in_place", "prioritised"])
@pytest.mark.parametrize(
    ("states", "values"),
    [
        ([[(0, 0), (1, 0)], [(0, 0), 1]], [1, 1]),  # a loop that ties with the exit
        ([[(0, 0), (1, 1)], [-2, -2]], [0, -2]),  # a reward that a cost follows
        ([[-1, (0, 0)]], [0]),  # staying without reward
    ],
)
def test_undiscounted_loops_in_every_order(order, states, values):
    assert value_iteration(process(*states), order=order).values.tolist() == values


@pytest.mark.parametrize("order", ["in_place", "prioritised"])
def test_a_process_that_cannot_end_is_refused_in_every_order(order):
    with pytest.raises(ValueError, match="gamma 1 there is no solution"):
        value_iteration(process([(1, -1), (0, -1)], [(1, -1), (1, -1)]), order=order)


def test_an_unknown_sweep_order_is_refused():
    with pytest.raises(ValueError, match="order must be one of synchronous, in_place, prioritised, got 'random'"):
        value_iteration(frozen_lake(0.9), order="random")


def test_the_numbering_of_states_does_not_matter():
    mdp = random_process(4, 0.95)
    shuffled = np.random.default_rng(0).permutation(mdp.n_states)
    rows = (shuffled[:, None] * mdp.n_actions + np.arange(mdp.n_actions)).ravel()
    other = MDP(mdp.transitions[rows][:, shuffled], mdp.rewards[shuffled], mdp.gamma, mdp.start[shuffled])
    for order in ("synchronous", "in_place", "prioritised"):
        assert value_iteration(other, order=order).values == pytest.approx(
            value_iteration(mdp).values[shuffled], abs=1e-9
        )


@pytest.mark.parametrize("order", ["synchronous", "in_place", "prioritised"])
def test_a_maze_of_33000_states(order):
    mdp = MDP.from_gym(Maze(size=253), 0.99)
    solution = value_iteration(mdp, tol=1e-8, order=order)
    steps = shortest_path(generate(253, 253, 0))
    assert mdp.start @ solution.values == pytest.approx(0.99 ** (steps - 1), abs=1e-8)


# Exploration and time limits


def test_exploring_around_the_optimal_policy_is_worse_than_the_best_exploring_policy():
    """CliffWalking with eps .1: -50.8 on the edge; the best policy that explores so much earns -20.7 in 15 steps."""
    cliff = MDP.from_gym(gym.make("CliffWalking-v1"), 1)
    optimal = action_values(cliff, value_iteration(cliff).values)
    online = policy_evaluation(cliff, epsilon_greedy(optimal, 0.1))
    assert cliff.start @ online == pytest.approx(-50.800047666769, abs=1e-9)
    noisy = value_iteration(with_random_actions(cliff, 0.1))
    assert cliff.start @ noisy.values == pytest.approx(-20.707677398667, abs=1e-9)
    assert cliff.start @ policy_evaluation(cliff, noisy.policy) == -15


def test_finite_horizon_values_of_frozen_lake():
    """The gamma-.99 policy of the lake succeeds within 100 steps with .7402, a time-dependent one with .7442."""
    lake = frozen_lake(1)
    policy = value_iteration(frozen_lake(0.99)).policy
    assert lake.start @ finite_horizon_values(lake, 100, policy) == pytest.approx(0.740164897759, abs=1e-11)
    assert lake.start @ finite_horizon_values(lake, 100) == pytest.approx(0.744190287829, abs=1e-11)
    assert finite_horizon_values(lake, 0).tolist() == [0] * 16
    assert finite_horizon_values(lake, 5000)[0] == pytest.approx(14 / 17, abs=1e-6)
