"""The folder of one run: its config, environment, metrics and samples. Only the main process writes."""

import difflib
import json
import math
import os
import platform
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from rlhf.config.mappings import flatten
from rlhf.config.parsing import flat_settings, read_yaml, to_yaml
from rlhf.errors import UserError
from rlhf.run.distributed import raise_on_all_ranks
from rlhf.run.files import replacing, write_text
from rlhf.run.lock import LOCK, check_unlocked, lock, unlock
from rlhf.run.trackers import PROJECT, init_options, log_samples

REFERENCE_LOGPROBS = "reference_logprobs.safetensors"
"""The file of DPO's reference, which is written before the first step."""


class RunFolder:
    """`config.yaml`, `environment.json`, and files of one JSON object a line, flushed as they are written."""

    def __init__(self, path: str, resume: str | None):
        """Check that a run may write to this path; nothing is created before `start`.

        Raises:
            UserError: the folder exists and `resume` is not set, is not a run folder, is written by another process,
                or cannot be created.
        """
        self.path = Path(path).expanduser()
        self._unwritten: dict[str, list[str]] = {}
        self._texts: dict[str, str] = {}
        self._trackers_work = True
        check_unlocked(self.path)
        if resume is None and self.path.exists() and (not self.path.is_dir() or self._is_in_use()):
            raise UserError(f"run folder {path} exists; continue it with --resume auto, or name another with --output")
        if resume is not None and self._is_in_use() and not (self.path / "config.yaml").exists():
            raise UserError(
                f"{path} exists but is not a run folder (it has no config.yaml); name another with --output"
            )
        parent = next(p for p in (self.path, *self.path.parents) if p.exists())
        if not parent.is_dir():
            raise UserError(f"run folder {path} cannot be created: {parent} is a file")
        if not os.access(parent, os.W_OK):
            raise UserError(f"run folder {path} cannot be written: no permission in {parent}")

    def _is_in_use(self) -> bool:
        """Whether it has any content but that of a run that ended before its first step, which may start again."""
        if not self.path.is_dir():
            return self.path.exists()
        written_at_start = {"config.yaml", "environment.json"}
        started = {LOCK, REFERENCE_LOGPROBS, *(f".{name}.partial" for name in written_at_start)}
        names = {item.name for item in self.path.iterdir()} - started
        return bool(names) and not written_at_start <= names <= written_at_start | {"rlhf"}

    def start(self, job: Any, resumed_step: int | None, accelerator: Any, model: Any) -> None:
        """Create the folder, write the config and the environment, open the trackers. Called on every rank.

        Args:
            resumed_step: the step of the checkpoint that the run resumes from; rows of later steps are dropped, since
                these steps are run again. None for a run from the start.

        Raises:
            UserError: another process writes to the folder.
        """
        config = to_yaml(job)
        with raise_on_all_ranks(accelerator):
            if accelerator.is_main_process:
                self.path.mkdir(parents=True, exist_ok=True)
                lock(self.path)
        if accelerator.is_main_process:
            self._print_changes(config)
            self._drop_after(-1 if resumed_step is None else resumed_step)
            environment = {
                "command": " ".join(map(str, [Path(sys.argv[0]).name, *sys.argv[1:]])),
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "platform": platform.platform(),
                "device": str(accelerator.device),
                "processes": accelerator.num_processes,
                "mixed_precision": accelerator.mixed_precision,
                "parameters": sum(p.numel() for p in model.parameters()),
                "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
                "versions": versions(),
            }
            self._texts = {"config.yaml": config, "environment.json": json.dumps(environment, indent=2) + "\n"}
            self._write_texts()
        accelerator.wait_for_everyone()
        settings = {name: str(value) for name, value in flat_settings(job).items()}
        options = init_options(self.path.resolve().name, resumed_step is not None)
        with raise_on_all_ranks(accelerator):
            try:
                accelerator.init_trackers(PROJECT, config=settings, init_kwargs=options)
            except Exception as error:  # of any kind: trackers write to disks and to servers
                raise UserError(f"a tracker of trackers cannot start: {type(error).__name__}: {error}") from error

    def close(self, accelerator: Any) -> None:
        """End the trackers and the process group, and let other processes write to the folder. Called on every rank."""
        try:
            accelerator.end_training()
        except Exception as error:
            print(f"warning: a tracker did not end: {error}", file=sys.stderr)
            accelerator.trackers = []
            accelerator.end_training()
        unlock(self.path)

    @contextmanager
    def writing_model(self) -> Iterator[Path]:
        """Within it, write the trained model to the folder it yields, which then is `model/`, whole or not at all.

        Raises:
            UserError: it cannot be written, as on a full disk.
        """
        from safetensors import SafetensorError

        try:
            with replacing(self.path / "model") as partial:
                partial.mkdir(parents=True)
                yield partial
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"the model cannot be written: {error}; fix that, and --resume auto writes it from the checkpoint"
            ) from error

    def _write_texts(self) -> None:
        for name, text in self._texts.items():
            write_text(self.path / name, text)

    def _create_again(self) -> None:
        """Create a folder that was removed under the run, so that the steps from now on, and checkpoints, are saved."""
        print(f"warning: {self.path} was removed while the run writes to it; it is created again", file=sys.stderr)
        unlock(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        lock(self.path)
        self._write_texts()

    def log(
        self,
        accelerator: Any,
        step: int,
        values: dict[str, float],
        name: str = "metrics",
        warnings: Sequence[str] = (),
    ) -> None:
        """Add a step's numbers to `name`.jsonl and to the trackers, and the names of its warnings to the former."""
        if accelerator.is_main_process:
            self.append(name, [{"step": step, **values} | ({"warnings": list(warnings)} if warnings else {})])
        prefix = "" if name == "metrics" else f"{name}/"
        self._track(lambda: accelerator.log({prefix + key: value for key, value in values.items()}, step=step))

    def log_samples(self, accelerator: Any, step: int, rows: list[dict[str, Any]]) -> None:
        """Add the samples of an evaluation to `samples.jsonl` and to trackers that have tables. On the main process."""
        self.append("samples", rows)
        self._track(lambda: log_samples(accelerator.trackers, step, rows))

    def _track(self, send: Callable[[], None]) -> None:
        """Send something to the trackers; after a failure, nothing more."""
        if not self._trackers_work:
            return
        try:
            send()
        except Exception as error:  # of any kind: trackers write to disks and to servers
            self._trackers_work = False
            print(f"warning: nothing more is sent to the trackers, because of: {error}", file=sys.stderr)

    def append(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Add rows to `name`.jsonl. Rows that cannot be written wait in memory, and are written with later ones."""
        waiting = self._unwritten.setdefault(name, [])
        waiting += [json.dumps(json_safe(row), ensure_ascii=False) + "\n" for row in rows]
        path = self.path / f"{name}.jsonl"
        if self._texts and not (self.path / "config.yaml").exists():
            try:
                self._create_again()
            except OSError as error:
                print(f"warning: {self.path} cannot be created again: {error}", file=sys.stderr)
        size = path.stat().st_size if path.exists() else 0
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.writelines(waiting)
        except OSError as error:
            if path.exists():
                os.truncate(path, size)  # leave no partial row
            print(f"warning: {path} cannot be written: {error}; its rows wait in memory", file=sys.stderr)
        else:
            waiting.clear()

    def read(self, name: str) -> list[dict[str, Any]]:
        """The complete rows of `name`.jsonl; a line that a killed run left unfinished is skipped."""
        return read_rows(self.path / f"{name}.jsonl")

    def _drop_after(self, step: int) -> None:
        # A critic is pretrained before the first checkpoint, so a resumed run keeps the rows of its pretraining.
        for name in ("metrics", "eval", "samples", "start", *(["pretraining"] if step < 0 else [])):
            rows = self.read(name)
            if rows:
                lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows if row.get("step", 0) <= step]
                write_text(self.path / f"{name}.jsonl", "".join(lines))

    def changed(self, job: Any, *sections: str, ignored: Collection[str] = (), folder: Path | None = None) -> bool:
        """Whether any of these sections of the job differs from the config in a folder, `ignored` settings aside.

        Args:
            folder: a run folder; None: this one.
        """
        path = (folder or self.path) / "config.yaml"
        before, now = (
            {
                key: value
                for key, value in flatten(config).items()
                if key.split(".")[0] in sections and key not in ignored
            }
            for config in ((read_yaml(path) if path.exists() else {}), yaml.safe_load(to_yaml(job)))
        )
        return before != now

    def _print_changes(self, config: str) -> None:
        """Print which settings differ from the config in the folder."""
        path = self.path / "config.yaml"
        if path.exists():
            lines = difflib.unified_diff(
                path.read_text(encoding="utf-8").split("\n"), config.split("\n"), n=0, lineterm=""
            )
            changed = [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
            if changed:
                print("settings that changed since this run began:", *changed, sep="\n  ")


def require_space(folder: Path, needed: int, what: str) -> None:
    """Check that a folder's disk has space for `needed` bytes.

    Args:
        what: needs the space, for the error message.

    Raises:
        UserError: it has less.
    """
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"{existing} has {free / 2**20:,.0f} MB free, but {what} takes about {needed / 2**20:,.0f} MB; "
            "free some space or name another --output"
        )


def read_rows(path: Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """The complete rows of a jsonl file, which may be missing, up to a step; an unfinished line is skipped."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows if last_step is None else [row for row in rows if row["step"] <= last_step]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run depends on."""
    from importlib.metadata import PackageNotFoundError, version

    installed = {"python": platform.python_version()}
    for name in ("torch", "transformers", "accelerate", "peft", "datasets", "numpy", "tabular-rlhf"):
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def json_safe(value: Any) -> Any:
    """A value with nan and infinity, which JSON does not have, replaced by None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: json_safe(item) for key, item in value.items()}
    return [json_safe(item) for item in value] if isinstance(value, list | tuple) else value
