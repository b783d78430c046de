"""Opening the accelerator of a run."""

import pytest
import torch

from rlhf.errors import UserError
from rlhf.run import distributed
from rlhf.run.distributed import open_accelerator


def test_tracker_that_is_not_installed_is_rejected(tmp_path):
    with pytest.raises(UserError, match="no_such_tracker, which is not installed: pip install"):
        open_accelerator(str(tmp_path), None, ["no_such_tracker"], 0)


def test_unconnected_processes_are_rejected(tmp_path, monkeypatch):
    """Each would train alone and overwrite the others' files."""
    open_accelerator(str(tmp_path), None, [], 0)  # one process, whatever WORLD_SIZE is from here on
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(distributed, "_end_with_launcher", lambda: None)  # it would end pytest with its parent
    with pytest.raises(UserError, match="launcher started 3 processes, but only 1 of them"):
        open_accelerator(str(tmp_path), None, [], 0)


def test_seed_sets_every_generator(tmp_path):
    samples = []
    for seed in (5, 5, 6):
        open_accelerator(str(tmp_path), None, [], seed)
        samples.append(torch.rand(3).tolist())
    assert samples[0] == samples[1] != samples[2]
