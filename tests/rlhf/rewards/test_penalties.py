"""Penalties by hand."""

import pytest
import torch

from rlhf.config.scores import RewardConfig
from rlhf.rewards.penalties import apply_penalties


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"missing_eos_penalty": None}, [0.5, 1.5, 2.5, 3.5]),
        ({"missing_eos_penalty": 2.0}, [-2.0, 1.5, -2.0, 3.5]),
        ({"missing_eos_penalty": 0.0}, [0.0, 1.5, 0.0, 3.5]),
        ({"missing_eos_penalty": None, "min_length": 3, "short_penalty": 5.0}, [0.5, 1.5, -5.0, -5.0]),
        ({"missing_eos_penalty": 2.0, "min_length": 3, "short_penalty": 5.0}, [-2.0, 1.5, -2.0, -5.0]),
        ({"missing_eos_penalty": None, "min_length": 1}, [0.5, 1.5, 2.5, 3.5]),
    ],
)
def test_penalties_replace_scores(rules, expected):
    """Lengths 4, 3, 2, 1; the first and the third are cut off."""
    lengths = torch.tensor([4, 3, 2, 1])
    truncated = torch.tensor([True, False, True, False])
    scores = torch.tensor([0.5, 1.5, 2.5, 3.5])
    assert apply_penalties(scores, lengths, truncated, RewardConfig(**rules), 4).tolist() == expected


@pytest.mark.parametrize(("penalty", "expected"), [(2.0, [-1.5, 1.5]), (0.0, [0.5, 1.5]), (None, [0.5, 1.5])])
def test_the_penalty_of_a_truncated_response_can_be_subtracted_from_its_score(penalty, expected):
    """As in TRL, where the better of two cut responses stays the better one."""
    config = RewardConfig(truncated="subtract", missing_eos_penalty=penalty)
    scores = apply_penalties(torch.tensor([0.5, 1.5]), torch.tensor([4, 3]), torch.tensor([True, False]), config, 4)
    assert scores.tolist() == expected


def test_overlong_penalty_grows_with_every_token_of_the_buffer():
    """Limit 10, buffer 4, penalty 2: six tokens are free, the next four cost 2 / 4 each, later ones nothing more.

    It is subtracted from the score of truncated and complete responses alike.
    """
    lengths = torch.tensor([1, 6, 7, 8, 9, 10, 10, 13])
    truncated = torch.tensor([False, False, False, False, False, False, True, True])
    config = RewardConfig(truncated="overlong", overlong_penalty=2.0, overlong_buffer=4)
    scores = apply_penalties(torch.full((8,), 5.0), lengths, truncated, config, 10)
    assert scores.tolist() == [5.0, 5.0, 4.5, 4.0, 3.5, 3.0, 3.0, 3.0]


def test_overlong_buffer_as_long_as_the_limit_penalises_every_token():
    config = RewardConfig(truncated="overlong", overlong_penalty=1.0, overlong_buffer=4)
    scores = apply_penalties(torch.zeros(4), torch.tensor([1, 2, 3, 4]), torch.zeros(4, dtype=torch.bool), config, 4)
    assert scores.tolist() == [-0.25, -0.5, -0.75, -1.0]


def test_penalties_for_short_and_overlong_responses_add_up():
    """A response below min_length scores minus short_penalty, less the overlong penalty."""
    config = RewardConfig(
        truncated="overlong", overlong_penalty=2.0, overlong_buffer=4, min_length=2, short_penalty=3.0
    )
    scores = apply_penalties(torch.ones(3), torch.tensor([1, 2, 4]), torch.zeros(3, dtype=torch.bool), config, 4)
    assert scores.tolist() == [-3.5, 0.0, -1.0]


@pytest.mark.parametrize("policy", ["bootstrap", "mask"])
def test_other_truncation_policies_leave_scores_unchanged(policy):
    """Although missing_eos_penalty has a default."""
    scores = torch.tensor([0.5, 1.5])
    penalised = apply_penalties(
        scores, torch.tensor([4, 4]), torch.tensor([True, False]), RewardConfig(truncated=policy), 4
    )
    assert torch.equal(penalised, scores)
