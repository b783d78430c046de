"""How a process ends."""

import os

import pytest

from rlhf.errors import UserError, reported


def test_bad_input_ends_with_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as stop, reported():
        raise UserError("ppo.lr is -1, but it must be positive")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: ppo.lr is -1, but it must be positive\n"


@pytest.mark.parametrize(("processes", "expected"), [("1", []), ("2", [0])])
def test_one_of_several_processes_ends_at_once(monkeypatch, processes, expected):
    ended = []
    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.setattr(os, "_exit", ended.append)
    with reported():
        pass
    assert ended == expected


def test_a_failure_of_one_of_several_processes_is_not_hidden(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(os, "_exit", lambda status: pytest.fail("it ended as if it were done"))
    with pytest.raises(RuntimeError, match="out of memory"), reported():
        raise RuntimeError("out of memory")
