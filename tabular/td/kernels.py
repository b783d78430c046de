"""Temporal-difference control compiled by numba: the update rule, the behaviour, and the loop over a table.

Every function here is one of the textbook's boxes. `learn` runs them on a transition table, tens of millions of steps a
second; the loop over any other gymnasium environment (`tabular.td.control`) calls the same `choose` and `update`.

Arrays: `q` [K, S, A] holds one table of action values, or two (K = 2) for double Q-learning. `masks` [S, A] is True
where an action may be taken. `rng` [4] uint64 is the state of the random numbers, changed in place:
numpy's generators cost microseconds to hand over, this costs nothing and is as easily saved.
"""

from typing import NamedTuple, no_type_check

import numpy as np

from tabular.compiled import compiled

Q_LEARNING, SARSA, EXPECTED_SARSA, DOUBLE_Q_LEARNING, N_STEP_SARSA, MONTE_CARLO = range(6)

STEP, STATE, NEXT_ACTION, LENGTH = range(4)
"""What `clock` holds: steps so far, the present state (-1: no episode is under way), the action chosen for it (-1: none
yet), and the steps of this episode."""

RETURN, ERROR_SUM, UPDATES, LARGEST_CHANGE = range(4)
"""What `sums` holds: this episode's return; of this log interval the sum of |errors|, the number of updates, and the
largest change of a value."""


class Rule(NamedTuple):
    """What tells the algorithms apart."""

    method: int
    "Q_LEARNING, SARSA, EXPECTED_SARSA, DOUBLE_Q_LEARNING, N_STEP_SARSA or MONTE_CARLO"
    softmax: bool
    "softmax behaviour; else epsilon-greedy"
    gamma: float
    "discount"
    alpha: float
    "step size; 0 for Monte Carlo's plain averages"
    n: int = 1
    "steps that n-step SARSA looks ahead"
    first_visit: bool = False
    "Monte Carlo learns from the first visit of an episode only"


class Memory(NamedTuple):
    """What n-step SARSA and Monte Carlo remember of an episode: a ring [C] of the last steps, or all of them.

    C is a power of two, so that the place of step t is `t & (C - 1)`: a division would cost as much as the update.
    """

    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    first_seen: np.ndarray
    "[S, A] step of the episode at which an action was first taken; -1: not yet"
    counts: np.ndarray
    "[S, A] returns averaged so far"


def make_rng(seed: np.random.SeedSequence) -> np.ndarray:
    """The state [4] of a stream of random numbers."""
    return seed.generate_state(4, np.uint64)


@compiled
@no_type_check
def uniform(rng):
    """The next random number in [0, 1): xoshiro256+ of Blackman & Vigna (2021), arXiv 1805.01407."""
    result = rng[0] + rng[3]
    t = rng[1] << np.uint64(17)
    rng[2] ^= rng[0]
    rng[3] ^= rng[1]
    rng[1] ^= rng[2]
    rng[0] ^= rng[3]
    rng[2] ^= t
    rng[3] = (rng[3] << np.uint64(45)) | (rng[3] >> np.uint64(19))
    return (result >> np.uint64(11)) * 2.0**-53


@compiled
@no_type_check
def value(q, s, a):
    """The action value that behaviour goes by: under double Q-learning the mean of both tables."""
    return q[0, s, a] if len(q) == 1 else 0.5 * (q[0, s, a] + q[1, s, a])


@compiled
@no_type_check
def best_value(q, s, masks):
    best = -np.inf
    for a in range(q.shape[2]):
        if masks[s, a]:
            best = max(best, value(q, s, a))
    return best


@compiled
@no_type_check
def choose(q, s, masks, softmax, exploration, rng):
    """An action of the behaviour policy; -1 if the mask allows none.

    Epsilon-greedy: with probability epsilon any allowed action, the greedy ones included; else one of the best, ties
    at random. Softmax: probabilities proportional to `exp(q / temperature)`. `exploration` is epsilon or temperature.
    """
    best, chosen, n_best, n_allowed = -np.inf, -1, 0, 0
    for a in range(q.shape[2]):
        if masks[s, a]:
            n_allowed += 1
            v = value(q, s, a)
            if v > best:
                best, chosen, n_best = v, a, 1
            elif v == best:
                n_best += 1
    if softmax:
        return choose_softmax(q, s, masks, best, exploration, rng)
    explore = exploration > 0 and uniform(rng) < exploration
    n = n_allowed if explore else n_best
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
    total, chosen = 0.0, -1
    for a in range(q.shape[2]):
        if masks[s, a]:
            total += np.exp((value(q, s, a) - best) / temperature)
    left = uniform(rng) * total
    for a in range(q.shape[2]):
        if masks[s, a] and left >= 0:
            chosen = a
            left -= np.exp((value(q, s, a) - best) / temperature)
    return chosen


@compiled
@no_type_check
def best_of(q, k, s, masks, rng):
    """The best allowed action of table `k` alone, ties at random."""
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


@compiled
@no_type_check
def update(q, s, a, r, s2, a2, masks, terminated, rule, exploration, rng, sums):
    """`q(s, a) += alpha (target - q(s, a))`; the target is all that the one-step methods differ in.

    - Q-learning: `r + gamma max_a q(s', a)`. Watkins (1989); Sutton & Barto (2018), eq. 6.8.
    - SARSA: `r + gamma q(s', a')`, with the action taken next. Rummery & Niranjan (1994); eq. 6.7.
    - Expected SARSA: `r + gamma sum_a pi(a | s') q(s', a)`. van Seijen et al. (2009); eq. 6.9.
    - Double Q-learning: one table, at random, learns what the other thinks of its best action. van Hasselt (2010);
      eq. 6.10.

    After the end of an episode nothing follows, whatever state the environment names; a cut one (truncation) goes on.
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
            target += rule.gamma * q[1 - k, s2, best_of(q, k, s2, masks, rng)]
    move(q, k, s, a, target, rule.alpha, sums)


@compiled
@no_type_check
def move(q, k, s, a, target, alpha, sums):
    """`q(s, a) += alpha (target - q(s, a))`, noted in `sums`."""
    error = target - q[k, s, a]
    q[k, s, a] += alpha * error
    sums[ERROR_SUM] += abs(error)
    sums[UPDATES] += 1
    sums[LARGEST_CHANGE] = max(sums[LARGEST_CHANGE], abs(alpha * error))


@compiled
@no_type_check
def update_later(q, t, s, a, r, s2, a2, masks, terminated, truncated, rule, exploration, memory, sums):
    """Remembers step `t` of an episode, and updates what was done `n` steps ago, or at its end all that is left.

    - n-step SARSA: towards `r_t + ... + gamma^(n-1) r_{t+n-1} + gamma^n q(s_{t+n}, a_{t+n})`, fewer rewards at the end.
      Sutton & Barto (2018), section 7.2.
    - Monte Carlo: towards the return, after the episode, the last step first; `alpha` 0 averages. Section 5.4. What
      would have followed a cut (truncation) is what the behaviour expects from there.
    """
    last = len(memory.states) - 1
    i = t & last
    memory.states[i], memory.actions[i], memory.rewards[i] = s, a, r
    if rule.first_visit and memory.first_seen[s, a] < 0:
        memory.first_seen[s, a] = t
    ended = terminated or truncated
    oldest = 0 if rule.method == MONTE_CARLO else max(t + 1 - rule.n, 0)
    if not ended and (rule.method == MONTE_CARLO or t + 1 < rule.n):
        return
    follows = 0.0
    if not terminated:
        follows = q[0, s2, a2] if a2 >= 0 else expected_value(q, s2, masks, rule.softmax, exploration)
    for j in range(t, oldest - 1, -1):
        i = j & last
        s, a = memory.states[i], memory.actions[i]
        follows = memory.rewards[i] + rule.gamma * follows
        if (ended or j == oldest) and (not rule.first_visit or memory.first_seen[s, a] == j):
            memory.counts[s, a] += 1
            move(q, 0, s, a, follows, rule.alpha if rule.alpha > 0 else 1 / memory.counts[s, a], sums)
    if ended and rule.first_visit:
        for j in range(t + 1):
            memory.first_seen[memory.states[j], memory.actions[j]] = -1


@compiled
@no_type_check
def draw(cumulative, begin, count, rng):
    """An index from `begin` to `begin + count - 1` by cumulative probabilities; a sure thing draws no number."""
    last = begin + count - 1
    if count == 1:
        return last
    u = uniform(rng)
    while begin < last and u >= cumulative[begin]:
        begin += 1
    return begin


@compiled
@no_type_check
def learn(
    table, limit, steps, q, rule, explorations, block, log_every, clock, sums, visits, memory, rngs, episodes, log
):
    """At most `steps` steps of control on a table. Returns how many episodes ended and how many rows were logged.

    Fewer steps only where Monte Carlo's `memory` is full before the episode ends: make it larger and call again.
    `limit` cuts episodes after so many steps (0: never). `explorations[i]` is epsilon or the temperature of the steps
    `block * i` to `block * (i + 1) - 1`, counted from the block of the first. What ended goes to `episodes` [3, N]
    (step, return, length), every `log_every` steps the mean |error| and the largest change of a value go to `log`
    [2, N]. `clock`, `sums`, `visits` [S], `memory`, `q` and `rngs` [2, 4] (behaviour, table) carry on in the next call.
    """
    behaviour, world = rngs[0], rngs[1]
    on_policy = rule.method == SARSA or rule.method == N_STEP_SARSA
    later = rule.method == N_STEP_SARSA or rule.method == MONTE_CARLO
    n_episodes, n_logs, first_block = 0, 0, clock[STEP] // block
    for _ in range(steps):
        if rule.method == MONTE_CARLO and clock[LENGTH] == len(memory.states):
            break
        exploration = explorations[clock[STEP] // block - first_block]
        if clock[STATE] < 0:
            clock[STATE] = draw(table.start, 0, len(table.start), world)
            clock[NEXT_ACTION] = -1
        s, a = clock[STATE], clock[NEXT_ACTION]
        if a < 0:
            a = choose(q, s, table.masks, rule.softmax, exploration, behaviour)
        visits[s] += 1
        outcome = draw(table.cumulative, table.first[s, a], table.count[s, a], world)
        r, s2, terminated = table.reward[outcome], table.next_state[outcome], table.terminated[outcome]
        a2 = -1
        if on_policy and not terminated:
            a2 = choose(q, s2, table.masks, rule.softmax, exploration, behaviour)
        t = clock[LENGTH]
        truncated = t + 1 == limit
        if later:
            update_later(q, t, s, a, r, s2, a2, table.masks, terminated, truncated, rule, exploration, memory, sums)
        else:
            update(q, s, a, r, s2, a2, table.masks, terminated, rule, exploration, behaviour, sums)

        clock[STEP] += 1
        clock[STATE], clock[NEXT_ACTION], clock[LENGTH] = s2, a2, t + 1
        sums[RETURN] += r
        if terminated or truncated:
            end_episode(clock, sums, episodes, n_episodes)
            n_episodes += 1
        if clock[STEP] % log_every == 0:
            end_interval(sums, log, n_logs)
            n_logs += 1
    return n_episodes, n_logs


@compiled
@no_type_check
def end_episode(clock, sums, episodes, i):
    """Writes the episode down and clears the counters for the next."""
    episodes[0, i], episodes[1, i], episodes[2, i] = clock[STEP], sums[RETURN], clock[LENGTH]
    clock[STATE], clock[NEXT_ACTION], clock[LENGTH], sums[RETURN] = -1, -1, 0, 0.0


@compiled
@no_type_check
def end_interval(sums, log, i):
    """Writes the mean |error| (nan without an update) and the largest change down, and begins a new interval."""
    log[0, i], log[1, i] = sums[ERROR_SUM] / sums[UPDATES], sums[LARGEST_CHANGE]
    sums[ERROR_SUM] = sums[UPDATES] = sums[LARGEST_CHANGE] = 0.0


@compiled
@no_type_check
def replay(q, states, actions, rewards, next_states, terminated, masks, order, rule, exploration, rng, sums):
    """One pass of one-step updates over a log of transitions [N] in the given order."""
    for i in order:
        s2 = next_states[i]
        update(q, states[i], actions[i], rewards[i], s2, -1, masks, terminated[i], rule, exploration, rng, sums)
