"""Groups of texts of similar length."""

import pytest
import torch

from rlhf.config.ppo import PPOConfig
from rlhf.data.batching import group_by_length
from rlhf.rollouts.microbatches import microbatches

LENGTHS = [3, 9, 4, 9, 1, 6]


@pytest.mark.parametrize(
    ("max_rows", "expected"),
    [(2, [[1, 3], [5, 2], [0, 4]]), (4, [[1, 3, 5, 2], [0, 4]]), (9, [[1, 3, 5, 2, 0, 4]])],
)
def test_longest_rows_come_first_and_equal_ones_keep_their_order(max_rows, expected):
    assert group_by_length(LENGTHS, max_rows) == expected


@pytest.mark.parametrize(
    ("max_tokens", "expected"),
    [
        (18, [[1, 3], [5, 2, 0], [4]]),
        (17, [[1], [3], [5, 2], [0, 4]]),
        (54, [[1, 3, 5, 2, 0, 4]]),
        (4, [[1], [3], [5], [2], [0], [4]]),
    ],
)
def test_a_token_limit_counts_padding_and_longer_rows_stand_alone(max_tokens, expected):
    assert group_by_length(LENGTHS, 1, max_tokens) == expected


@pytest.mark.parametrize(
    ("max_tokens", "expected"),
    [
        (18, [[1, 3], [5, 2, 0, 4]]),
        (17, [[1], [3, 5], [2, 0, 4]]),
        (32, [[1, 3, 5, 2, 0, 4]]),
        (31, [[1, 3, 5, 2, 0], [4]]),
    ],
)
def test_a_token_limit_of_packed_rows_counts_no_padding(max_tokens, expected):
    """Lengths from the longest: 9, 9, 6, 4, 3, 1."""
    assert group_by_length(LENGTHS, 1, max_tokens, packed=True) == expected


def test_no_rows():
    assert group_by_length([], 2) == group_by_length([], 2, 8) == []


@pytest.mark.parametrize(("packed", "expected"), [(False, [[1, 3], [5, 2, 0], [4]]), (True, [[1, 3], [5, 2, 0, 4]])])
def test_microbatches_follow_the_settings(packed, expected):
    lengths = torch.tensor(LENGTHS)
    assert [rows.tolist() for rows in microbatches(lengths, PPOConfig(microbatch_tokens=18), packed)] == expected
    assert [rows.tolist() for rows in microbatches(lengths, PPOConfig(microbatch_size=4))] == [[1, 3, 5, 2], [0, 4]]
