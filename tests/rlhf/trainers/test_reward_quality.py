"""Calibration and agreement: constants worked by hand."""

import json
import math

import numpy as np
import pytest

from rlhf.config.shared import DataConfig
from rlhf.data.preferences import PreferencePair
from rlhf.trainers.reward_quality import preference_quality, reward_quality, write_reward_quality


def logit(p):
    return math.log(p / (1 - p))


# Confidences .55, .55, .65, .95: right, wrong, wrong, right.
CHOSEN = np.array([logit(0.55), 0.0, 0.0, logit(0.95)])
REJECTED = np.array([0.0, logit(0.55), logit(0.65), 0.0])
LENGTHS = np.array([[3, 3], [5, 4], [4, 6], [8, 2]])


def test_reliability_and_calibration_error_of_four_pairs():
    """The bins are .5 to .6 with accuracy 1/2, .6 to .7 with 0 and .9 to 1 with 1: (2·.05 + .65 + .05) / 4 = .2."""
    quality = reward_quality(CHOSEN, REJECTED, LENGTHS)
    assert [
        (row["confidence"], row["accuracy"]["count"], row["accuracy"]["total"]) for row in quality["reliability"]
    ] == [
        (pytest.approx(0.55), 1, 2),
        (pytest.approx(0.65), 0, 1),
        (pytest.approx(0.95), 1, 1),
    ]
    assert quality["calibration_error"] == pytest.approx(0.2)
    assert quality["accuracy"] | {"low": 0, "high": 0} == {"count": 2, "total": 4, "value": 0.5, "low": 0, "high": 0}


def test_accuracy_by_margin_has_quarters_from_the_smallest_margin():
    order = [3, 0, 2, 1]
    margins = reward_quality(CHOSEN[order], REJECTED[order], LENGTHS[order])["margins"]
    assert [row["accuracy"]["value"] for row in margins] == [1.0, 0.0, 0.0, 1.0]
    assert [row["low"] for row in margins] == pytest.approx([logit(0.55), logit(0.55), logit(0.65), logit(0.95)])


def test_length_counts_pairs_of_different_length():
    """The preferred text is longer in 2 of 3; the model prefers the shorter, the longer and the longer one."""
    length = reward_quality(CHOSEN, REJECTED, LENGTHS)["length"]
    assert (length["chosen_longer"]["count"], length["chosen_longer"]["total"]) == (2, 3)
    assert (length["scored_longer"]["count"], length["scored_longer"]["total"]) == (2, 3)
    scores, tokens = np.concatenate([CHOSEN, REJECTED]), np.concatenate([LENGTHS[:, 0], LENGTHS[:, 1]])
    expected = np.mean((scores - scores.mean()) * (tokens - tokens.mean())) / scores.std() / tokens.std()
    assert length["correlation"] == pytest.approx(expected)


def test_equal_scores_and_lengths_are_no_error():
    quality = reward_quality(np.zeros(3), np.zeros(3), np.ones((3, 2), dtype=int))
    assert quality["length"]["correlation"] is None
    assert quality["length"]["chosen_longer"]["value"] is None
    assert quality["reliability"][0]["confidence"] == 0.5


def answer(annotator, pair, choice, repeat=False):
    texts = {"prompt": "the film ", "a": "is good", "b": "is bad"}
    return texts | {"annotator": annotator, "pair": pair, "choice": choice, "clearly": False, "repeat": repeat}


ANSWERS = [
    answer("ada", "1", "a"),
    answer("ada", "1", "a", repeat=True),
    answer("ada", "2", "b"),
    answer("ada", "2", "a", repeat=True),
    answer("ada", "3", "tie"),
    answer("ada", "4", "skip"),
    answer("bob", "1", "a"),
    answer("bob", "2", "a"),
    answer("bob", "3", "a"),
]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "preferences.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ANSWERS))
    return DataConfig(path=str(path))


def test_agreement_of_people_is_that_of_the_file(data):
    """Ada repeats herself in 1 of 2. Both compared pairs aa, ba and tie a: 1 of 3 equal, 1 of 2 where both prefer."""
    quality = preference_quality(data)
    assert (quality["people"], quality["pairs"], quality["answers"], quality["ties"]) == (2, 3, 6, 1)
    shares = {name: (quality[name]["count"], quality[name]["total"]) for name in ("self_consistency", "agreement")}
    assert shares == {"self_consistency": (1, 2), "agreement": (1, 3)}
    assert (quality["agreement_decided"]["count"], quality["agreement_decided"]["total"]) == (1, 2)
    # o[c, k] off the diagonal: 2 for ab and 2 for tie-a; n = 6 with n[a] = 4, n[b] = n[tie] = 1.
    assert quality["alpha"] == pytest.approx(1 - 5 * 4 / (36 - 18))


def test_the_file_has_what_there_is(tmp_path, data):
    pairs = [PreferencePair([1] * chosen, [1] * rejected) for chosen, rejected in LENGTHS.tolist()]
    plain = tmp_path / "pairs.jsonl"
    plain.write_text('{"chosen": "a", "rejected": "b"}\n')
    for name, held_out, path, sections in (
        ("both", pairs, data.path, {"held_out", "people"}),
        ("people", [], data.path, {"people"}),
        ("model", pairs, str(plain), {"held_out"}),
    ):
        (tmp_path / name).mkdir()
        write_reward_quality(tmp_path / name, CHOSEN, REJECTED, held_out, DataConfig(path=path))
        assert set(json.loads((tmp_path / name / "reward_quality.json").read_text())) == sections
    write_reward_quality(tmp_path, CHOSEN, REJECTED, [], DataConfig(path=str(plain)))
    assert not (tmp_path / "reward_quality.json").exists()
