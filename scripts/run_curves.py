"""What pictures of runs share: the rows of a jsonl file, running means, and plain axes."""

import json
from pathlib import Path
from typing import Any


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The objects of a jsonl file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def running_mean(values: list[float], window: int = 5) -> list[float]:
    """The mean of each value and the ones before it in the window."""
    recent = [values[max(0, i + 1 - window) : i + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in recent]


def label_panel(panel: Any, title: str, x: str = "PPO step", size: int = 10) -> None:
    """Title and x axis of a panel, with a grid in place of a frame."""
    panel.set_title(title, fontsize=size)
    panel.set_xlabel(x, fontsize=size)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25)
