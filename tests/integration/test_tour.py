"""The tour, tabular/README.md: every command runs, in order, in an empty folder, with small budgets."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tabular.cli.main import main
from tabular.experiments.algorithms import TABLES

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "tabular" / "README.md"
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "draw_tour.py"))

BUDGETS = {
    "run": ("--steps", "300", "--seeds", "1", "--eval_episodes", "1"),
    "compare": ("--steps", "300", "--seeds", "1", "--eval_episodes", "1"),
    "predict": ("--episodes", "2", "--seeds", "2"),
    "evaluate": ("--episodes", "1"),
    "offline": ("--transitions", "300", "--epochs", "2"),
    "watch": ("--delay", "0"),
}
"""Command -> options that make it quick."""

SCRIPT_BUDGETS = {
    "draw_bandits.py": ("--runs", "50", "--steps", "100"),
    "draw_policy_gradients.py": ("--steps", "2000"),
    "draw_deep.py": ("--seeds", "1", "--steps", "4000", "--dqn_steps", "2000"),
}
"""The same for scripts."""


def _budget(words):
    """The options that make a command quick. A table learns fast, and records its metrics every 1000 steps."""
    if "--help" in words:
        return ()
    steps = ("--steps", "1000") if words[0] == "run" and words[1] in TABLES else ()
    return (*BUDGETS.get(words[0], ()), *steps)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tour")


def test_every_command_of_the_tour_runs_in_order(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    commands = SCRIPT["commands"]()
    assert len(commands) > 20
    for program, *words in commands:
        if program == "python":
            continue
        assert program == "tabular"
        try:
            status = main([*words, *_budget(words)])
        except SystemExit as stop:
            status = stop.code
        assert status == 0, (words, capsys.readouterr().err)


@pytest.mark.slow
def test_every_script_of_the_tour_runs(folder):
    for program, *words in SCRIPT["commands"]():
        if program == "python":
            command = [sys.executable, ROOT / words[0], *words[1:], *SCRIPT_BUDGETS[Path(words[0]).name]]
            subprocess.run(command, cwd=folder, check=True)
    for file in SCRIPT["PICTURES"].values():
        if file.startswith("pictures/"):
            assert (folder / file).is_file()


def test_the_commands_write_the_pictures_of_the_tour(folder):
    """Runs after the commands, in the same folder."""
    shown = set(re.findall(r"\(\.\./docs/tabular/([\w.]+)\)", TOUR.read_text(encoding="utf-8")))
    assert shown == set(SCRIPT["PICTURES"])
    for file in SCRIPT["PICTURES"].values():
        if not file.startswith("pictures/"):
            assert (folder / file).is_file(), file


def test_links_lead_to_files():
    text = TOUR.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if not link.startswith("http"):
            assert (TOUR.parent / link).exists(), link


def test_settings_named_in_the_text_exist():
    """`--name` anywhere in the text is an option of a command or a setting of an algorithm."""
    from tabular.experiments import algorithms

    text = TOUR.read_text(encoding="utf-8")
    named = {name.replace("-", "_") for name in re.findall(r"(?<![\w-])--([a-z][\w-]*)", text)} - {"env", "NAME"}
    existing = {row[0] for name in algorithms.ALGORITHMS for row in algorithms.describe(algorithms.load(name).Config)}
    source = (ROOT / "tabular" / "cli" / "main.py").read_text() + (ROOT / "tabular" / "cli" / "options.py").read_text()
    existing |= set(re.findall(r'"--([a-z_]+)"', source))
    existing |= {"n", "lam", "alpha", "initial_value", "first_visit", "deep", "out", "help", "config"}
    assert not named - existing
