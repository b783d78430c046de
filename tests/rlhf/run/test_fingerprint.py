"""Fingerprints: equal for equal inputs, and different for other data and other weights."""

from pathlib import Path

import torch

from rlhf.run.fingerprint import SAMPLES, describe_changes, fingerprint_rows, fingerprint_weights


def test_rows_are_told_apart():
    rows = [[1, 2], [3], [4, 5, 6]]
    others = (rows[::-1], rows[:2], [[1, 2], [3], [4, 5, 7]], [[1], [2, 3], [4, 5, 6]], [])
    assert fingerprint_rows([list(row) for row in rows]) == fingerprint_rows(rows)
    assert all(fingerprint_rows(other) != fingerprint_rows(rows) for other in others)


def test_weights_are_told_apart():
    weight = torch.arange(10.0 * SAMPLES).reshape(10, SAMPLES)
    same = [("w", weight.clone())]
    assert fingerprint_weights([("w", weight)]) == fingerprint_weights(same)
    others = [("v", weight)], [("w", weight * 2)], [("w", weight.T)], [("w", weight.double())], []
    assert all(fingerprint_weights(other) != fingerprint_weights(same) for other in others)
    assert fingerprint_weights([("w", weight.bfloat16())]) != fingerprint_weights([("w", weight.half())])


def test_inputs_that_an_older_checkpoint_did_not_record_are_not_compared():
    checkpoint = Path("step_000001")
    assert describe_changes({}, {"the data": "1"}, checkpoint) == []
    changes = describe_changes({"the data": "1", "the model": "2"}, {"the data": "1", "the model": "3"}, checkpoint)
    assert changes == ["warning: the model changed since step_000001 was saved; this becomes another run"]
