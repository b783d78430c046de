"""Run folders as what the page shows: a line for each run, and for a chosen one curves, warnings, settings, samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rlhf.errors import UserError
from rlhf.report.health import health_warnings
from rlhf.report.numbers import NAN, finite, series
from rlhf.report.run_files import stage_of
from rlhf.report.status import RECENT, run_folders, seconds_left, state_of, total_steps
from rlhf.watch.row_files import RowFile, newest_rows

BUCKETS = 300
"""Points of a curve; a longer one is drawn as means, minima and maxima of so many parts."""
HIDDEN = ("output", "resume")
"""Settings that differ between any two runs."""


class Runs:
    """All runs at or below a folder, read again as they grow."""

    def __init__(self, root: Path):
        """Raises UserError where there is no such folder."""
        if not root.is_dir():
            raise UserError(f"there is no folder {root}")
        self.root = root
        self._readers: dict[Path, Reader] = {}

    def list(self) -> list[dict[str, Any]]:
        """A line for each run, the newest first."""
        lines = [self._reader(folder).line(name) for name, folder in self._folders().items()]
        return sorted(lines, key=lambda line: line["changed"], reverse=True)

    def detail(self, name: str) -> dict[str, Any] | None:
        """Curves, evaluations, warnings and settings of a run; None where there is none of that name."""
        folder = self._folders().get(name)
        return None if folder is None else self._reader(folder).detail()

    def samples(self, name: str, step: int | None = None) -> dict[str, Any] | None:
        """The samples of a step, by default the last, and the steps that have some; None without such a run."""
        folder = self._folders().get(name)
        return None if folder is None else self._reader(folder).samples(step)

    def _folders(self) -> dict[str, Path]:
        """Name, which is the path below the root, -> folder."""
        try:
            folders = run_folders(self.root)
        except UserError:  # none yet
            return {}
        return {name_of(folder, self.root): folder for folder in folders}

    def _reader(self, folder: Path) -> "Reader":
        return self._readers.setdefault(folder, Reader(folder))


def name_of(folder: Path, root: Path) -> str:
    """The name of a run below a folder."""
    return folder.resolve().name if folder == root else folder.relative_to(root).as_posix()


class Reader:
    """One run folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.metrics = RowFile(folder / "metrics.jsonl", ("step",))
        self.evals = RowFile(folder / "eval.jsonl", ("step",))
        self.sample_rows = RowFile(folder / "samples.jsonl", ("step", "index"))
        self._config: tuple[int, dict[str, Any]] = (-1, {})

    def config(self) -> dict[str, Any]:
        """The settings, read again where the file has changed; empty where it cannot be read."""
        path = self.folder / "config.yaml"
        try:
            changed = path.stat().st_mtime_ns
            if changed != self._config[0]:
                loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
                content = yaml.load(path.read_text(encoding="utf-8"), loader)
                self._config = (changed, content if isinstance(content, dict) else {})
        except (OSError, ValueError, yaml.YAMLError):
            return {}
        return self._config[1]

    def line(self, name: str) -> dict[str, Any]:
        """The run in the list: what its newest rows say."""
        rows = newest_rows(self.metrics.path, RECENT)
        newest = rows[-1] if rows else {}
        config, state = self.config(), state_of(self.folder)
        step, total = newest.get("step", 0), total_steps(config)
        left = seconds_left(step, total, series(rows, "time/step")) if state == "running" else NAN
        return {
            "name": name,
            "stage": stage_of(config),
            "state": state,
            "step": step,
            "total": total,
            "score": _json(newest.get("objective/score")),
            "kl": _json(newest.get("objective/kl")),
            "loss": _json(newest.get("loss")),
            "warnings": len(newest.get("warnings") or []),
            "seconds_left": _json(left),
            "changed": _changed(self.metrics.path),
        }

    def detail(self) -> dict[str, Any]:
        """What the charts and tables show."""
        rows, evals = self.metrics.rows(), self.evals.rows()
        total = total_steps(self.config())
        done = 1.0
        if rows and total and state_of(self.folder) == "running":
            done = rows[-1]["step"] / total
        names = sorted(
            {name for row in rows for name, value in row.items() if isinstance(value, int | float)} - {"step"}
        )
        steps = series(rows, "step")
        return {
            "version": [self.metrics.version, self.evals.version],
            "curves": {name: curve for name in sorted(names) if (curve := thin(steps, series(rows, name)))},
            "evals": [{k: _json(v) for k, v in row.items() if isinstance(v, int | float)} for row in evals],
            "warnings": [
                {"name": w.name, "symptom": w.symptom, "cause": w.cause, "setting": w.setting}
                for w in (health_warnings(rows, evals, done) if rows else [])
            ],
            "settings": flat(self.config()),
        }

    def samples(self, step: int | None) -> dict[str, Any]:
        """The samples of a step."""
        rows = self.sample_rows.rows()
        steps = sorted({row["step"] for row in rows})
        chosen = steps[-1] if steps and step is None else step
        return {"steps": steps, "step": chosen, "rows": [dict(row) for row in rows if row["step"] == chosen]}


def thin(steps: np.ndarray, values: np.ndarray) -> dict[str, list[float] | list[int]] | None:
    """A curve of at most `BUCKETS` points: x and mean of each part, and its minimum and maximum where it has several.

    None where no value is finite.
    """
    is_finite = np.isfinite(values)
    if not is_finite.any():
        return None
    steps, values = steps[is_finite], values[is_finite]
    if len(values) <= BUCKETS:
        return {"x": steps.astype(int).tolist(), "y": [_short(v) for v in values]}
    parts = np.array_split(np.arange(len(values)), BUCKETS)
    return {
        "x": [int(steps[part].mean()) for part in parts],
        "y": [_short(values[part].mean()) for part in parts],
        "low": [_short(values[part].min()) for part in parts],
        "high": [_short(values[part].max()) for part in parts],
    }


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted key -> value as text, of all settings but those that differ between any two runs."""
    settings = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            settings |= flat(value, f"{prefix}{key}.")
        elif prefix or key not in HIDDEN:
            settings[f"{prefix}{key}"] = "null" if value is None else str(value)
    return settings


def overlay(folders: Sequence[Path]) -> dict[str, Any]:
    """All that the page shows of some runs, for a file that holds it."""
    names = _distinct_names(folders)
    readers = {name: Reader(folder) for name, folder in zip(names, folders, strict=True)}
    samples = {}
    for name, reader in readers.items():
        steps = reader.samples(None)["steps"]
        samples[name] = {"steps": steps, "by_step": {step: reader.samples(step)["rows"] for step in steps}}
    return {
        "runs": [reader.line(name) for name, reader in readers.items()],
        "details": {name: reader.detail() for name, reader in readers.items()},
        "samples": samples,
    }


def _distinct_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell the folders apart."""
    resolved = [folder.resolve() for folder in folders]
    for count in range(1, max(len(path.parts) for path in resolved) + 1):
        names = ["/".join(path.parts[-count:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"{folders[0]} is named twice; name different runs")


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _short(value: float) -> float:
    """Five significant digits: enough to draw, and half the size."""
    return float(f"{value:.5g}")


def _json(value: Any) -> float | None:
    number = finite(value)
    return number if np.isfinite(number) else None
