"""Exit of a process after an error, and of one of several processes."""

import os

import pytest

from rlhf.errors import UserError, report_user_errors
from rlhf.run.distributed import exit_launched_process


def test_bad_input_ends_with_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as stop, report_user_errors():
        raise UserError("ppo.lr is -1, but must be positive")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: ppo.lr is -1, but must be positive\n"


@pytest.mark.parametrize(("processes", "expected"), [("1", []), ("2", [0])])
def test_one_of_several_processes_ends_at_once(monkeypatch, processes, expected):
    ended = []
    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.setattr(os, "_exit", ended.append)
    exit_launched_process()
    assert ended == expected
