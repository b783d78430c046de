"""The estimate of the time that a run will take."""

import pytest

from rlhf.run import progress as module
from rlhf.run.progress import progress


def lines_of(capsys, monkeypatch, seconds, total, done=0, visible=True):
    """The printed lines of a run whose steps take these seconds."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with progress("ppo", total, done, visible) as bar:
        for step in seconds:
            now[0] += step
            bar.advance("score 1")
    return [line for line in capsys.readouterr().err.splitlines() if "a step" in line]


@pytest.mark.parametrize(
    ("seconds", "total", "line"),
    [
        ([12.0, 3.0], 11, "ppo: 12 s a step, about 2 min left for 10 more"),  # after the first step, and once
        ([0.5] * 8, 100, "ppo: 0.5 s a step, about 48 s left for 96 more"),  # short steps: after two seconds
        ([1800.0], 1001, "ppo: 1.8e+03 s a step, about 20.8 days left for 1,000 more"),
        ([90.0], 101, "ppo: 90 s a step, about 2.5 h left for 100 more"),
    ],
)
def test_the_time_left_is_printed_once_early_in_a_run(capsys, monkeypatch, seconds, total, line):
    assert lines_of(capsys, monkeypatch, seconds, total) == [line]


def test_a_resumed_run_counts_its_own_steps(capsys, monkeypatch):
    (line,) = lines_of(capsys, monkeypatch, [4.0], total=60, done=49)
    assert line == "ppo: 4 s a step, about 40 s left for 10 more"


@pytest.mark.parametrize(("seconds", "total", "visible"), [([0.1] * 3, 3, True), ([9.0], 1, True), ([9.0], 5, False)])
def test_short_runs_last_steps_and_other_processes_print_none(capsys, monkeypatch, seconds, total, visible):
    assert lines_of(capsys, monkeypatch, seconds, total, visible=visible) == []
