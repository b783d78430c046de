"""The files of a run folder, as the report reads them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rlhf.errors import UserError
from rlhf.report.numbers import Row, series


@dataclass(frozen=True)
class Run:
    """The content of a run folder."""

    name: str
    rows: list[Row]
    """Rows of metrics.jsonl by step; if a step was repeated after a resume, its later row."""
    evals: list[Row]
    """Rows of eval.jsonl by step, likewise."""
    samples: list[Row]
    """Rows of samples.jsonl by index, then step, likewise."""
    config: Row
    environment: Row
    sources: list[tuple[str, str]]
    """(file name, number of its rows or entries), for the footer."""
    reward_quality: Row = field(default_factory=dict)
    """`reward_quality.json` of a reward model's run; empty where there is none."""

    def metric(self, name: str) -> np.ndarray:
        """[N] one metric, NaN where it is missing, null or infinite."""
        return series(self.rows, name)


def load(run_dir: Path) -> Run:
    """Read a run folder. Only metrics.jsonl must be there.

    Raises:
        UserError: the folder or its metrics are missing, or another file cannot be read.
    """
    if not run_dir.is_dir():
        raise UserError(f"there is no run folder at {run_dir}")
    sources: list[tuple[str, str]] = []
    rows = _read_rows(run_dir / "metrics.jsonl", ("step",), sources)
    if not rows:
        raise UserError(f"{run_dir / 'metrics.jsonl'} has no training steps; name a run folder that has begun to train")
    quality = run_dir / "reward_quality.json"
    return Run(
        name=run_dir.resolve().name,
        rows=rows,
        evals=_read_rows(run_dir / "eval.jsonl", ("step",), sources),
        samples=_read_rows(run_dir / "samples.jsonl", ("index", "step"), sources),
        config=_read_mapping(run_dir / "config.yaml", yaml.safe_load, sources),
        environment=_read_mapping(run_dir / "environment.json", json.loads, sources),
        sources=sources,
        reward_quality=_read_mapping(quality, json.loads, sources) if quality.is_file() else {},
    )


def _read_rows(path: Path, keys: tuple[str, ...], sources: list[tuple[str, str]]) -> list[Row]:
    """The objects of a jsonl file that have `keys`, sorted by them; the last one with the same keys counts.

    A killed process can leave an incomplete line, at the end or (after a resume) in the middle; the footer counts the
    lines that were skipped.
    """
    if not path.is_file():
        sources.append((path.name, "missing"))
        return []
    by_keys = {}
    skipped = 0
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):  # splitlines() also cuts at U+2028
        try:
            row = json.loads(line)
            identity = {key: int(row[key]) for key in keys}
            by_keys[tuple(identity.values())] = row | identity
        except (ValueError, TypeError, KeyError, OverflowError):
            skipped += bool(line.strip())
    note = f"{len(by_keys)} rows" + (f", {skipped} unreadable skipped" if skipped else "")
    sources.append((path.name, note))
    return [by_keys[key] for key in sorted(by_keys)]


def _read_mapping(path: Path, parse: Callable[[str], Any], sources: list[tuple[str, str]]) -> Row:
    if not path.is_file():
        sources.append((path.name, "missing"))
        return {}
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, but must hold a mapping")
    sources.append((path.name, f"{len(content)} entries"))
    return content


def setting(config: Row, key: str) -> Any:
    """The value of a dotted key such as `ppo.lr`; None if it is not set."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def stage_of(config: Row) -> str:
    """The stage of a run by its settings: ppo, dpo, reward or sft."""
    return next((name for name in ("ppo", "dpo") if name in config), "reward" if "ties" in config else "sft")
