"""Which rows share a forward pass."""

import pytest
import torch

from rlhf.config.ppo import PPOConfig
from rlhf.rollouts.microbatches import microbatches

LENGTHS = torch.tensor([3, 9, 4, 9, 1, 6])


def grouped(packed=False, **settings):
    return [rows.tolist() for rows in microbatches(LENGTHS, PPOConfig(**settings), packed)]


def test_rows_are_grouped_by_length_longest_first_and_equal_ones_in_their_order():
    assert grouped(microbatch_size=2) == [[1, 3], [5, 2], [0, 4]]
    assert grouped(microbatch_size=4) == [[1, 3, 5, 2], [0, 4]]
    assert grouped(microbatch_size=9) == [[1, 3, 5, 2, 0, 4]]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (18, [[1, 3], [5, 2, 0], [4]]),
        (17, [[1], [3], [5, 2], [0, 4]]),
        (54, [[1, 3, 5, 2, 0, 4]]),
        (4, [[1], [3], [5], [2], [0], [4]]),
    ],
)
def test_a_token_budget_counts_padding_and_longer_rows_stand_alone(budget, expected):
    assert grouped(microbatch_tokens=budget) == expected


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (18, [[1, 3], [5, 2, 0, 4]]),
        (17, [[1], [3, 5], [2, 0, 4]]),
        (32, [[1, 3, 5, 2, 0, 4]]),
        (31, [[1, 3, 5, 2, 0], [4]]),
    ],
)
def test_a_token_budget_of_packed_rows_counts_no_padding(budget, expected):
    """Lengths from the longest: 9, 9, 6, 4, 3, 1."""
    assert grouped(packed=True, microbatch_tokens=budget) == expected


def test_no_rows():
    assert [rows.tolist() for rows in microbatches(torch.tensor([]).long(), PPOConfig(microbatch_tokens=8))] == []
