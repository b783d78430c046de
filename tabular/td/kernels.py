"""Tabular control compiled by numba: behaviour policies, update rules, and the loop over a transition table.

Each function is one box of the textbook. `learn` runs them on a transition table, tens of millions of steps a second;
the loop over any other gymnasium environment (`tabular.td.control`) calls the same functions. They share one file
because numba compiles a cached function anew when its own file changes, but not when a function that it calls does.

Arrays: `q` [K, S, A] holds one table of action values, or two (K = 2) for double Q-learning. `masks` [S, A] is True
where an action is legal. `rng` is the state of a stream of random numbers (`tabular.td.rng`). `cursor` [4] and `stats`
[4] are described below.
"""

from typing import NamedTuple, no_type_check

import numpy as np

from tabular.compiled import compiled
from tabular.td.rng import draw, uniform

Q_LEARNING, SARSA, EXPECTED_SARSA, DOUBLE_Q_LEARNING, N_STEP_SARSA, MONTE_CARLO, SARSA_LAMBDA = range(7)

STEP, STATE, NEXT_ACTION, LENGTH = range(4)
"""Entries of `cursor`: steps so far, the current state (-1: between episodes), the action chosen for it (-1: none yet),
and the steps of this episode."""

RETURN, ERROR_SUM, UPDATES, LARGEST_CHANGE = range(4)
"""Entries of `stats`: this episode's return; and of this log interval the sum of |errors|, the number of updates, and
the largest change of an action value."""

SMALLEST_TRACE = 1e-8
"""An eligibility trace below this is set to 0."""


class Rule(NamedTuple):
    """What distinguishes the algorithms."""

    method: int
    "Q_LEARNING, SARSA, EXPECTED_SARSA, DOUBLE_Q_LEARNING, N_STEP_SARSA, MONTE_CARLO or SARSA_LAMBDA"
    softmax: bool
    "softmax behaviour; else epsilon-greedy"
    gamma: float
    "discount"
    alpha: float
    "step size; 0 for the plain averages of Monte Carlo"
    n: int = 1
    "n-step SARSA: number of rewards in a target"
    first_visit: bool = False
    "Monte Carlo: learn only from the first visit of an action in an episode"


class EpisodeMemory(NamedTuple):
    """Steps of the current episode, for n-step SARSA (a ring of the last ones) and Monte Carlo (all of them).

    The capacity C is a power of two, so that step t is stored at `t & (C - 1)`: a division would take as long as the
    update.
    """

    states: np.ndarray
    "[C]"
    actions: np.ndarray
    "[C]"
    rewards: np.ndarray
    "[C]"
    first_visits: np.ndarray
    "[S, A] step of the episode at which an action was first taken; -1: not yet"
    counts: np.ndarray
    "[S, A] returns averaged so far"


class Traces(NamedTuple):
    """Eligibility traces of SARSA(lambda), and its settings."""

    lam: float
    "trace decay"
    replacing: bool
    "replacing instead of accumulating traces"
    values: np.ndarray
    "[S, A]"
    active: np.ndarray
    "[S * A] the first `n_active[0]` are the indices `s * A + a` of the traces that are not 0"
    n_active: np.ndarray
    "[1]"


class Model(NamedTuple):
    """The deterministic model of Dyna-Q, the last outcome of each action, and how often it is used."""

    planning_steps: int
    "updates from the model after each step; 0 for algorithms without a model"
    rewards: np.ndarray
    "[S, A]"
    next_states: np.ndarray
    "[S, A]; -1 where the action has not been taken"
    terminated: np.ndarray
    "[S, A]"
    states: np.ndarray
    "[S] the first `n_states[0]` are the states acted in so far"
    n_states: np.ndarray
    "[1]"
    actions: np.ndarray
    "[S, A] the first `n_actions[s]` of row s are the actions taken there so far"
    n_actions: np.ndarray
    "[S]"


class Memory(NamedTuple):
    """Everything an algorithm remembers beside action values; parts that it does not use have size 1."""

    episode: EpisodeMemory
    traces: Traces
    model: Model


def make_memory(
    n_states: int,
    n_actions: int,
    capacity: int = 1,
    lam: float | None = None,
    replacing: bool = False,
    planning_steps: int = 0,
) -> Memory:
    """An empty memory with the parts that an algorithm uses.

    Args:
        n_states: S.
        n_actions: A.
        capacity: steps of an episode that are stored, a power of two.
        lam: trace decay; None for an algorithm without traces.
        replacing: replacing instead of accumulating traces.
        planning_steps: updates from a model after each step; 0 for an algorithm without a model.
    """
    table = (n_states, n_actions)
    episode = EpisodeMemory(
        states=np.zeros(capacity, dtype=np.int64),
        actions=np.zeros(capacity, dtype=np.int64),
        rewards=np.zeros(capacity),
        first_visits=np.full(table, -1),
        counts=np.zeros(table, dtype=np.int64),
    )
    traced = (1, 1) if lam is None else table
    modelled = table if planning_steps > 0 else (1, 1)
    return Memory(
        episode=episode,
        traces=Traces(
            lam=float(lam or 0),
            replacing=replacing,
            values=np.zeros(traced),
            active=np.zeros(traced[0] * traced[1], dtype=np.int64),
            n_active=np.zeros(1, dtype=np.int64),
        ),
        model=Model(
            planning_steps=planning_steps,
            rewards=np.zeros(modelled),
            next_states=np.full(modelled, -1),
            terminated=np.zeros(modelled, dtype=bool),
            states=np.zeros(modelled[0], dtype=np.int64),
            n_states=np.zeros(1, dtype=np.int64),
            actions=np.zeros(modelled, dtype=np.int64),
            n_actions=np.zeros(modelled[0], dtype=np.int64),
        ),
    )


# Behaviour


@compiled
@no_type_check
def value(q, s, a):
    """The action value that the behaviour uses: the mean of both tables under double Q-learning."""
    return q[0, s, a] if len(q) == 1 else 0.5 * (q[0, s, a] + q[1, s, a])


@compiled
@no_type_check
def best_value(q, s, masks):
    """The largest value of a legal action."""
    best = -np.inf
    for a in range(q.shape[2]):
        if masks[s, a]:
            best = max(best, value(q, s, a))
    return best


@compiled
@no_type_check
def choose(q, s, masks, softmax, exploration, rng):
    """An action of the behaviour policy; -1 if no action is legal.

    Epsilon-greedy: with probability epsilon any legal action, greedy ones included; else one of the best, ties broken
    at random. Softmax: probabilities proportional to `exp(q / temperature)`. `exploration` is epsilon or the
    temperature.
    """
    best, chosen, n_best, n_legal = -np.inf, -1, 0, 0
    for a in range(q.shape[2]):
        if masks[s, a]:
            n_legal += 1
            v = value(q, s, a)
            if v > best:
                best, chosen, n_best = v, a, 1
            elif v == best:
                n_best += 1
    if softmax:
        return choose_softmax(q, s, masks, best, exploration, rng)
    explore = exploration > 0 and uniform(rng) < exploration
    n = n_legal if explore else n_best
    if n < 2:
        return chosen
    skip = int(uniform(rng) * n)
    for a in range(q.shape[2]):
        if masks[s, a] and (explore or value(q, s, a) == best):
            chosen = a
            if skip == 0:
                break
            skip -= 1
    return chosen


@compiled
@no_type_check
def choose_softmax(q, s, masks, best, temperature, rng):
    """A legal action with probability proportional to `exp((q - best) / temperature)`."""
    total, chosen = 0.0, -1
    for a in range(q.shape[2]):
        if masks[s, a]:
            total += np.exp((value(q, s, a) - best) / temperature)
    remaining = uniform(rng) * total
    for a in range(q.shape[2]):
        if masks[s, a] and remaining >= 0:
            chosen = a
            remaining -= np.exp((value(q, s, a) - best) / temperature)
    return chosen


@compiled
@no_type_check
def greedy_action(q, k, s, masks, rng):
    """The best legal action of table `k` alone, ties broken at random."""
    best, chosen, ties = -np.inf, -1, 0
    for a in range(q.shape[2]):
        if masks[s, a] and q[k, s, a] > best:
            best, chosen, ties = q[k, s, a], a, 1
        elif masks[s, a] and q[k, s, a] == best:
            ties += 1
            if uniform(rng) * ties < 1:
                chosen = a
    return chosen


@compiled
@no_type_check
def expected_value(q, s, masks, softmax, exploration):
    """`sum_a pi(a | s) q(s, a)` for the behaviour policy."""
    best = best_value(q, s, masks)
    total, weights = 0.0, 0.0
    for a in range(q.shape[2]):
        if masks[s, a]:
            weight = np.exp((value(q, s, a) - best) / exploration) if softmax else 1.0
            total += weight * value(q, s, a)
            weights += weight
    return total / weights if softmax else (1 - exploration) * best + exploration * total / weights


# Update rules


@compiled
@no_type_check
def update(q, s, a, r, s2, a2, masks, terminated, rule, exploration, rng, stats):
    """`q(s, a) += alpha (target - q(s, a))`; the one-step methods differ in the target alone.

    - Q-learning: `r + gamma max_a q(s', a)`. Watkins (1989); Sutton & Barto (2018), eq. 6.8.
    - SARSA: `r + gamma q(s', a')`, with the action taken next. Rummery & Niranjan (1994); eq. 6.7.
    - Expected SARSA: `r + gamma sum_a pi(a | s') q(s', a)`. van Seijen et al. (2009); eq. 6.9.
    - Double Q-learning: one table, at random, is updated with the other one's value of its best action. van Hasselt
      (2010); eq. 6.10.

    After a terminated step the target is `r` alone, whatever state the environment returns; after a truncated one it
    bootstraps as usual.
    """
    k = 0
    if rule.method == DOUBLE_Q_LEARNING:
        k = int(uniform(rng) < 0.5)
    target = r
    if not terminated:
        if rule.method == Q_LEARNING:
            target += rule.gamma * best_value(q, s2, masks)
        elif rule.method == SARSA:
            target += rule.gamma * q[0, s2, a2]
        elif rule.method == EXPECTED_SARSA:
            target += rule.gamma * expected_value(q, s2, masks, rule.softmax, exploration)
        else:
            target += rule.gamma * q[1 - k, s2, greedy_action(q, k, s2, masks, rng)]
    move_towards(q, k, s, a, target, rule.alpha, stats)


@compiled
@no_type_check
def move_towards(q, k, s, a, target, alpha, stats):
    """`q(s, a) += alpha (target - q(s, a))` for table `k`, recorded in `stats`."""
    error = target - q[k, s, a]
    q[k, s, a] += alpha * error
    stats[ERROR_SUM] += abs(error)
    stats[UPDATES] += 1
    stats[LARGEST_CHANGE] = max(stats[LARGEST_CHANGE], abs(alpha * error))


@compiled
@no_type_check
def delayed_update(q, t, s, a, r, s2, a2, masks, terminated, truncated, rule, exploration, episode, stats):
    """Stores step `t` of an episode, and updates the pair of `n` steps ago, or all that are left at the end.

    - n-step SARSA: towards `r_t + ... + gamma^(n-1) r_{t+n-1} + gamma^n q(s_{t+n}, a_{t+n})`, fewer rewards at the end.
      Sutton & Barto (2018), section 7.2.
    - Monte Carlo: towards the return, after the episode, the last step first; `alpha` 0 averages. Section 5.4. A
      truncated return is completed with the value that the behaviour expects from there.
    """
    last = len(episode.states) - 1
    i = t & last
    episode.states[i], episode.actions[i], episode.rewards[i] = s, a, r
    if rule.first_visit and episode.first_visits[s, a] < 0:
        episode.first_visits[s, a] = t
    ended = terminated or truncated
    oldest = 0 if rule.method == MONTE_CARLO else max(t + 1 - rule.n, 0)
    if not ended and (rule.method == MONTE_CARLO or t + 1 < rule.n):
        return
    target = 0.0
    if not terminated:
        target = q[0, s2, a2] if a2 >= 0 else expected_value(q, s2, masks, rule.softmax, exploration)
    for j in range(t, oldest - 1, -1):
        i = j & last
        s, a = episode.states[i], episode.actions[i]
        target = episode.rewards[i] + rule.gamma * target
        if (ended or j == oldest) and (not rule.first_visit or episode.first_visits[s, a] == j):
            episode.counts[s, a] += 1
            alpha = rule.alpha if rule.alpha > 0 else 1 / episode.counts[s, a]
            move_towards(q, 0, s, a, target, alpha, stats)
    if ended and rule.first_visit:
        for j in range(t + 1):
            episode.first_visits[episode.states[j], episode.actions[j]] = -1


@compiled
@no_type_check
def trace_update(q, s, a, r, s2, a2, terminated, truncated, rule, traces, stats):
    """SARSA(lambda): every pair moves by `alpha delta e(s, a)`, with the one-step SARSA error `delta`.

    The trace `e` of the current pair grows by 1 (accumulating) or becomes 1 (replacing); then all decay by
    `gamma lambda`. Rummery & Niranjan (1994); Singh & Sutton (1996); Sutton & Barto (2018), section 12.7.
    """
    target = r
    if not terminated:
        target += rule.gamma * q[0, s2, a2]
    error = target - q[0, s, a]
    if traces.values[s, a] == 0:
        traces.active[traces.n_active[0]] = s * q.shape[2] + a
        traces.n_active[0] += 1
    traces.values[s, a] = 1.0 if traces.replacing else traces.values[s, a] + 1
    stats[ERROR_SUM] += abs(error)
    stats[UPDATES] += 1
    decay = 0.0 if terminated or truncated else rule.gamma * traces.lam
    for i in range(traces.n_active[0] - 1, -1, -1):
        s, a = traces.active[i] // q.shape[2], traces.active[i] % q.shape[2]
        change = rule.alpha * error * traces.values[s, a]
        q[0, s, a] += change
        stats[LARGEST_CHANGE] = max(stats[LARGEST_CHANGE], abs(change))
        traces.values[s, a] *= decay
        if traces.values[s, a] < SMALLEST_TRACE:
            traces.values[s, a] = 0.0
            traces.n_active[0] -= 1
            traces.active[i] = traces.active[traces.n_active[0]]


@compiled
@no_type_check
def update_model(s, a, r, s2, terminated, model):
    """Stores the outcome of an action as what it always leads to."""
    if model.next_states[s, a] < 0:
        if model.n_actions[s] == 0:
            model.states[model.n_states[0]] = s
            model.n_states[0] += 1
        model.actions[s, model.n_actions[s]] = a
        model.n_actions[s] += 1
    model.rewards[s, a], model.next_states[s, a], model.terminated[s, a] = r, s2, terminated


@compiled
@no_type_check
def plan(q, masks, rule, exploration, model, rng, stats):
    """Dyna-Q's planning: Q-learning updates from the model, in random states, of random actions taken there before.

    Sutton (1990); Sutton & Barto (2018), section 8.2.
    """
    for _ in range(model.planning_steps):
        s = model.states[int(uniform(rng) * model.n_states[0])]
        a = model.actions[s, int(uniform(rng) * model.n_actions[s])]
        r, s2, terminated = model.rewards[s, a], model.next_states[s, a], model.terminated[s, a]
        update(q, s, a, r, s2, -1, masks, terminated, rule, exploration, rng, stats)


# Loops


@compiled
@no_type_check
def learn(
    table, limit, steps, q, rule, explorations, block, log_every, cursor, stats, visits, memory, rngs, episodes, log
):
    """Runs control on a table for at most `steps` steps.

    It runs fewer only where Monte Carlo's memory is full before the episode ends: enlarge it and call again.

    Args:
        table: `tabular.envs.arrays.Table`.
        limit: steps after which an episode is truncated; 0: never.
        steps: number of steps.
        q: action values [K, S, A].
        rule: the algorithm.
        explorations: epsilon or temperature; entry i for the steps `block * i` to `block * (i + 1) - 1`, counted from
            the block of the first step.
        block: see `explorations`.
        log_every: steps between two entries of `log`.
        cursor: position in the run [4].
        stats: sums for the records [4].
        visits: how often each state was acted in [S].
        memory: `Memory`.
        rngs: streams of the behaviour and of the table [2, 4].
        episodes: output [3, N]: step, return and length of each episode that ended.
        log: output [2, N]: mean |error| and largest change of a value, of each interval of `log_every` steps.

    Returns:
        The number of episodes that ended and of entries in `log`. `q`, `cursor`, `stats`, `visits`, `memory` and `rngs`
        are changed in place and continue in the next call.
    """
    behaviour_rng, table_rng = rngs[0], rngs[1]
    on_policy = rule.method == SARSA or rule.method == N_STEP_SARSA or rule.method == SARSA_LAMBDA
    delayed = rule.method == N_STEP_SARSA or rule.method == MONTE_CARLO
    one_step = not delayed and rule.method != SARSA_LAMBDA
    planning = memory.model.planning_steps > 0
    n_episodes, n_logs, first_block = 0, 0, cursor[STEP] // block
    for _ in range(steps):
        if rule.method == MONTE_CARLO and cursor[LENGTH] == len(memory.episode.states):
            break
        exploration = explorations[cursor[STEP] // block - first_block]
        if cursor[STATE] < 0:
            cursor[STATE] = draw(table.start, 0, len(table.start), table_rng)
            cursor[NEXT_ACTION] = -1
        s, a = cursor[STATE], cursor[NEXT_ACTION]
        if a < 0:
            a = choose(q, s, table.masks, rule.softmax, exploration, behaviour_rng)
        visits[s] += 1
        outcome = draw(table.cumulative, table.first[s, a], table.count[s, a], table_rng)
        r, s2, terminated = table.reward[outcome], table.next_state[outcome], table.terminated[outcome]
        a2 = -1
        if on_policy and not terminated:
            a2 = choose(q, s2, table.masks, rule.softmax, exploration, behaviour_rng)
        t = cursor[LENGTH]
        truncated = t + 1 == limit
        if one_step:
            update(q, s, a, r, s2, a2, table.masks, terminated, rule, exploration, behaviour_rng, stats)
        elif delayed:
            delayed_update(
                q, t, s, a, r, s2, a2, table.masks, terminated, truncated, rule, exploration, memory.episode, stats
            )
        elif rule.method == SARSA_LAMBDA:
            trace_update(q, s, a, r, s2, a2, terminated, truncated, rule, memory.traces, stats)
        if planning:
            update_model(s, a, r, s2, terminated, memory.model)
            plan(q, table.masks, rule, exploration, memory.model, behaviour_rng, stats)

        cursor[STEP] += 1
        cursor[STATE], cursor[NEXT_ACTION], cursor[LENGTH] = s2, a2, t + 1
        stats[RETURN] += r
        if terminated or truncated:
            end_episode(cursor, stats, episodes, n_episodes)
            n_episodes += 1
        if cursor[STEP] % log_every == 0:
            end_interval(stats, log, n_logs)
            n_logs += 1
    return n_episodes, n_logs


@compiled
@no_type_check
def end_episode(cursor, stats, episodes, i):
    """Records the episode as number `i` and resets the counters for the next."""
    episodes[0, i], episodes[1, i], episodes[2, i] = cursor[STEP], stats[RETURN], cursor[LENGTH]
    cursor[STATE], cursor[NEXT_ACTION], cursor[LENGTH], stats[RETURN] = -1, -1, 0, 0.0


@compiled
@no_type_check
def end_interval(stats, log, i):
    """Records the mean |error| (nan without an update) and the largest change as number `i`; starts a new interval."""
    log[0, i], log[1, i] = stats[ERROR_SUM] / stats[UPDATES], stats[LARGEST_CHANGE]
    stats[ERROR_SUM] = stats[UPDATES] = stats[LARGEST_CHANGE] = 0.0


@compiled
@no_type_check
def replay(q, states, actions, rewards, next_states, terminated, masks, order, rule, exploration, rng, stats):
    """One pass of one-step updates over a log of transitions [N] in the given order."""
    for i in order:
        s2 = next_states[i]
        update(q, states[i], actions[i], rewards[i], s2, -1, masks, terminated[i], rule, exploration, rng, stats)
