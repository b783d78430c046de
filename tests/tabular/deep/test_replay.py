"""Replay buffer: n-step returns stop at episode ends, the oldest transitions are overwritten, states round-trip."""

import numpy as np
import pytest
import torch

from tabular.deep.replay import ReplayBuffer
from tabular.envs.vector import Step


def step(obs, reward, terminated=False, truncated=False):
    return Step(
        next_obs=np.array([[obs]], np.float32),
        next_masks=None,
        rewards=np.array([float(reward)]),
        terminated=np.array([terminated]),
        truncated=np.array([truncated]),
        episodes=[],
    )


def filled(n_step, capacity=10, end="terminated"):
    """One episode 0 -> 1 -> 2 -> 3 with rewards 1, 2, 4, and the first step of the next, 10 -> 11 with reward 8."""
    buffer = ReplayBuffer(capacity, (1,), np.float32, 2, n_step, gamma=0.5)
    steps = [(0, step(1, 1)), (1, step(2, 2)), (2, step(3, 4, **{end: True})), (10, step(11, 8))]
    for obs, taken in steps:
        buffer.add(np.array([[obs]], np.float32), np.array([obs % 2]), taken)
    return buffer


def rows(buffer):
    names = ("obs", "actions", "rewards", "discounts", "next_obs")
    return list(zip(*(buffer.data[name][: buffer.size].ravel().tolist() for name in names), strict=True))


def test_one_step_transitions_by_hand():
    assert rows(filled(1)) == [(0, 0, 1, 0.5, 1), (1, 1, 2, 0.5, 2), (2, 0, 4, 0, 3), (10, 0, 8, 0.5, 11)]


def test_two_step_returns_stop_at_the_end_of_the_episode():
    assert rows(filled(2)) == [(0, 0, 2, 0.25, 2), (1, 1, 4, 0, 3), (2, 0, 4, 0, 3)]


def test_truncated_episodes_keep_their_discount_for_bootstrapping():
    cut = rows(filled(2, end="truncated"))
    assert cut == [(0, 0, 2, 0.25, 2), (1, 1, 4, 0.25, 3), (2, 0, 4, 0.5, 3)]


def test_the_oldest_transition_is_overwritten_first():
    assert sorted(row[0] for row in rows(filled(1, capacity=3))) == [1, 2, 10]


def test_samples_are_uniform_and_determined_by_the_generator():
    buffer = filled(1)
    a = buffer.sample((100, 40), torch.Generator().manual_seed(0))
    b = buffer.sample((100, 40), torch.Generator().manual_seed(0))
    assert a.obs.shape == (100, 40, 1)
    assert torch.equal(a.obs, b.obs)
    counts = np.unique(a.obs, return_counts=True)[1]
    assert counts.tolist() == pytest.approx([1000] * 4, abs=100)


def test_state_dict_round_trip_includes_pending_steps():
    buffer = filled(2)
    other = ReplayBuffer(10, (1,), np.float32, 2, 2, gamma=0.5)
    other.load_state_dict(buffer.state_dict())
    for each in (buffer, other):
        each.add(np.array([[11]], np.float32), np.array([1]), step(12, 16))
    assert rows(other) == rows(buffer)
    assert rows(other)[-1] == (10, 0, 16, 0.25, 12)
    small = ReplayBuffer(2, (1,), np.float32, 2, 2, gamma=0.5)
    with pytest.raises(ValueError, match="buffer_size is 2"):
        small.load_state_dict(buffer.state_dict())


@pytest.mark.parametrize("capacity", [10**12, 10**30])
def test_a_buffer_larger_than_memory_is_rejected(capacity):
    with pytest.raises(
        ValueError, match=rf"buffer_size is {capacity}, which needs [\d,.]+ GiB of memory; use a smaller"
    ):
        ReplayBuffer(capacity, (84, 84), np.float64, 4, 1, 0.9)
