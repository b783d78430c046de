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


def test_interrupt_ends_with_one_line_and_status_130(capsys):
    with pytest.raises(SystemExit) as stop, report_user_errors():
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


@pytest.mark.parametrize(("processes", "ended_at_once"), [("1", False), ("2", True)])
@pytest.mark.parametrize(("finished", "status"), [(True, 0), (False, 130)])
def test_status_of_a_launched_process_and_the_end_of_one_of_several(
    monkeypatch, processes, ended_at_once, finished, status
):
    ended = []
    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.setattr(os, "_exit", ended.append)
    with pytest.raises(SystemExit) as stop:
        exit_launched_process(finished)
    assert stop.value.code == status
    assert ended == ([status] if ended_at_once else [])
