"""The page about symptoms: its pictures are those of the script, whose options are settings."""

import re
from pathlib import Path

import pytest

from rlhf.config.jobs import PPOJob
from rlhf.config.parsing import parse

ROOT = Path(__file__).parents[2]


@pytest.fixture
def draw_tuning(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import draw_tuning

    return draw_tuning


def test_every_case_has_a_row_and_a_picture(draw_tuning):
    page = (ROOT / "docs" / "tuning.md").read_text()
    pictures = re.findall(r"!\[\]\(tuning/(\w+)\.png\)", page)
    assert pictures == list(draw_tuning.CASES)
    assert all((ROOT / "docs" / "tuning" / f"{name}.png").is_file() for name in pictures)


def test_options_of_every_case_are_settings(draw_tuning):
    # As in the script, the options come after the settings of the demo.
    demo = ["--model.path", "m", "--ppo.kl_target", "7", "--reward.min_length", "12", "--output", "o"]
    for case in draw_tuning.CASES.values():
        assert parse(PPOJob, [*demo, *case.options]) != parse(PPOJob, demo)


def test_curves_are_read_from_the_run_folder(draw_tuning, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 2.0}\n{"step": 2, "a": 4.0}\n')
    (tmp_path / "eval.jsonl").write_text('{"step": 0, "judge": 0.5}\n{"step": 2, "judge": null}\n')
    assert draw_tuning.curve(tmp_path, "a") == ([1, 2], [2.0, 3.0])
    assert draw_tuning.curve(tmp_path, "held out judge") == ([0, 2], [0.5, None])
    case = draw_tuning.Case((), ("a", "held out judge"))
    draw_tuning.draw({"demo": tmp_path, "changed": tmp_path}, case, tmp_path / "pictures" / "case.png")
    assert (tmp_path / "pictures" / "case.png").read_bytes().startswith(b"\x89PNG")
