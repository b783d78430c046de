"""`rlhf status`: all runs of a folder as a table, with step, score, KL, warnings and time left; reads files only."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlhf.errors import UserError
from rlhf.report.health import HealthWarning, health_warnings
from rlhf.report.numbers import NAN, duration, finite, number
from rlhf.report.run_files import load, setting
from rlhf.run.lock import check_unlocked

DEPTH = 3
"""How many folders deep runs are looked for."""

RECENT = 20
"""Newest steps, of which the median gives the time left."""


@dataclass(frozen=True)
class RunStatus:
    """One line of the table."""

    name: str
    state: Literal["running", "finished", "stopped"]
    step: int
    total: int | None
    """Steps of the whole run; None for stages whose length depends on their data."""
    score: float
    """Of the newest step; nan where there is none. For supervised stages see `loss`."""
    kl: float
    loss: float
    warnings: list[HealthWarning]
    seconds_left: float
    """Estimate for a run that is going; nan otherwise."""


def run_folders(folder: Path) -> list[Path]:
    """The run folders at or below a folder.

    Raises:
        UserError: there are none.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    patterns = ["/".join(["*"] * depth + ["config.yaml"]) for depth in range(DEPTH + 1)]
    runs = {file.parent for pattern in patterns for file in folder.glob(pattern)}
    runs = sorted(run for run in runs if (run / "metrics.jsonl").is_file())
    if not runs:
        raise UserError(f"{folder} has no runs: no folder in it has config.yaml and metrics.jsonl")
    return runs


def status_of(folder: Path, root: Path) -> RunStatus:
    """The status of a run, named by its path below `root`.

    Raises:
        UserError: its files cannot be read.
    """
    run = load(folder)
    state = state_of(folder)
    step = run.rows[-1]["step"]
    total = total_steps(run.config)
    left = seconds_left(step, total, run.metric("time/step")[-RECENT:]) if state == "running" else NAN
    newest = run.rows[-1]
    return RunStatus(
        name=folder.resolve().name if folder == root else str(folder.relative_to(root)),
        state=state,
        step=step,
        total=total,
        score=finite(newest.get("objective/score")),
        kl=finite(newest.get("objective/kl")),
        loss=finite(newest.get("loss")),
        warnings=health_warnings(run.rows, run.evals, done=step / total if state == "running" and total else 1.0),
        seconds_left=left,
    )


def seconds_left(step: int, total: int | None, recent: np.ndarray) -> float:
    """The time that a run still takes, by the median of its newest steps' seconds; nan where that is unknown."""
    return (total - step) * float(np.nanmedian(recent)) if total is not None and np.isfinite(recent).any() else NAN


def state_of(folder: Path) -> Literal["running", "finished", "stopped"]:
    """Whether a process writes to a run, or it has written its model."""
    try:
        check_unlocked(folder)
    except UserError:
        return "running"
    return "finished" if (folder / "model").is_dir() else "stopped"


def total_steps(config: Any) -> int | None:
    """The steps of a whole PPO run by its settings; None for other stages, whose steps depend on their data."""
    episodes, batch = (setting(config, f"ppo.{name}") for name in ("total_episodes", "rollout_batch_size"))
    if not isinstance(episodes, int) or not isinstance(batch, int) or batch < 1:
        return None
    return -(-episodes // batch)


def status_table(folder: Path) -> tuple[Any, list[tuple[str, str]]]:
    """The table of all runs at or below a folder, and every warning with the name of its run.

    Raises:
        UserError: there are no runs.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for name in ("run", "state", "step", "score", "KL", "loss", "warnings", "time left"):
        table.add_column(name, justify="left" if name in ("run", "state") else "right")
    messages: list[tuple[str, str]] = []
    for path in run_folders(folder):
        try:
            status = status_of(path, folder)
        except UserError as error:  # one run that cannot be read does not hide the others
            messages.append((str(path), str(error)))
            continue
        messages += [(status.name, str(warning)) for warning in status.warnings]
        table.add_row(
            escape(status.name),
            status.state,
            f"{status.step}" if status.total is None else f"{status.step}/{status.total}",
            *map(number, (status.score, status.kl, status.loss)),
            str(len(status.warnings)),
            "" if np.isnan(status.seconds_left) else duration(status.seconds_left),
        )
    return table, messages
