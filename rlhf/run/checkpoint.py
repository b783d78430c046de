"""Save and resume: one folder for each checkpoint, which exists only once it is complete, with a manifest of its files.

Sampling, the order of the prompts and the shuffles are functions of the seed and the step, so a resumed run needs the
weights, the optimizer and a few numbers; the generators' states are saved for reward functions that draw from them.
"""

import json
import random
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rlhf.errors import UserError
from rlhf.models.sharding import fill, gather_on_main, is_sharded, shard_like
from rlhf.run.distributed import raise_on_all_ranks
from rlhf.run.files import replacing, write_text
from rlhf.run.fingerprint import describe_changes
from rlhf.run.manifest import MANIFEST, find_damage, write_manifest

WEIGHTS = "weights.safetensors"
REFERENCE = "reference.safetensors"
"""The weights of a reference that moves; a checkpoint of another run has no such file."""
OPTIMIZER_SETTINGS = ("betas", "eps", "weight_decay", "fused", "foreach")
"""Entries of AdamW's parameter groups that come from a run's settings."""
_PARTS = (WEIGHTS, "optimizer.pt", "rng.pt", "state.json")


@dataclass
class TrainState:
    """All that a resume needs beside weights and optimizers."""

    step: int = 0
    """Finished steps."""
    episodes: int = 0
    """Responses trained on so far; with `extra_prompts`, the position in the stream of prompts."""
    extra_prompts: int = 0
    """Prompts drawn so far in place of others whose responses all had the same score."""
    kl_coef: dict[str, float] = field(default_factory=dict)
    """State of the KL coefficient's controller."""
    beta: dict[str, float] = field(default_factory=dict)
    """State of the KL penalty's coefficient, where the policy loss has one."""
    scale: dict[str, float] = field(default_factory=dict)
    """Running statistics of scores: their count, mean, and sum of squared deviations."""
    pretraining_rollouts: int = 0
    """Rollouts that the critic was pretrained on; 0 before pretraining."""
    best_step: int | None = None
    """The step with the best held-out score so far."""
    best_score: float | None = None
    """That score, after the penalties of training."""
    evaluations_since_best: int = 0
    """Evaluations since then, none of which had a better one."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Fingerprints of the data and of the model that the run started with."""


def save(
    run: Path,
    state: TrainState,
    weights: dict[str, nn.Parameter],
    optimizer: Any,
    accelerator: Any,
    keep: int | None = None,
    reference: dict[str, nn.Parameter] | None = None,
) -> Path | None:
    """Write `checkpoints/step_XXXXXX` and point `checkpoints/latest` at it. Called on every rank; rank 0 writes.

    Sharded weights and states are gathered: the files do not depend on the number of processes.

    Args:
        keep: delete all but this many of the newest checkpoints.
        reference: weights of a reference that moves.

    Returns:
        The checkpoint's folder; None on other ranks, and after a warning where it cannot be written, so that a full
        disk does not end the run.
    """
    generators = gather_rng(accelerator)
    whole_weights = gather_on_main(weights, accelerator.is_main_process)
    optimizer_state = gather_on_main(optimizer.state_dict(), accelerator.is_main_process)
    if not accelerator.is_main_process:
        return None
    folder = run / "checkpoints" / f"step_{state.step:06d}"
    try:
        with replacing(folder) as partial:
            partial.mkdir(parents=True)
            save_weights(whole_weights, partial / WEIGHTS)
            if reference is not None:
                save_weights(reference, partial / REFERENCE)
            scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
            with os_errors():
                torch.save({"optimizer": optimizer_state, "scaler": scaler}, partial / "optimizer.pt")
                torch.save(generators, partial / "rng.pt")
            write_text(partial / "state.json", json.dumps(asdict(state), indent=2) + "\n")
            write_manifest(partial)
        with replacing(folder.with_name("latest")) as link:
            link.symlink_to(folder.name)
    except OSError as error:
        accelerator.print(f"warning: no checkpoint at step {state.step}: {error}; training continues")
        return None
    if keep is not None:
        # Checkpoints of later steps were written by a run that this one was resumed before: they do not count.
        for old in [c for c in list_checkpoints(run) if _step_of(c) <= state.step][:-keep]:
            shutil.rmtree(old)
    return folder


def save_best(run: Path, weights: dict[str, nn.Parameter], step: int) -> None:
    """Save the weights with the best held-out score so far, and their step, in `checkpoints/best`."""
    folder = run / "checkpoints" / "best"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with replacing(folder) as partial:
            partial.mkdir()
            save_weights(weights, partial / WEIGHTS)
            write_text(partial / "step", f"{step}\n")
            write_manifest(partial)
    except OSError as error:
        print(f"warning: the best weights were not saved: {error}; training continues", file=sys.stderr)


def best_saved_step(run: Path) -> int | None:
    """The step whose weights `checkpoints/best` holds; None where there are none, and after a warning if damaged."""
    folder = run / "checkpoints" / "best"
    if not (folder / "step").exists():
        return None
    damage = find_damage(folder)
    try:
        step = int((folder / "step").read_text(encoding="utf-8"))
    except (ValueError, OSError):
        step, damage = None, damage or "step is not a number"
    if damage is not None:
        print(f"warning: the best weights in {folder} are not used: {damage}", file=sys.stderr)
        return None
    return step


def save_weights(weights: dict[str, nn.Parameter], path: Path) -> None:
    """Write weights as one safetensors file. Raises OSError where that fails."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: p.detach().cpu().contiguous() for name, p in weights.items()}, str(path))
    except SafetensorError as error:
        raise OSError(str(error)) from error


@contextmanager
def os_errors() -> Iterator[None]:
    """Raise torch's errors of writing, which are RuntimeErrors, as the OSErrors that they are."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error)) from error


def load_weights(path: Path, weights: dict[str, nn.Parameter], ignored: Callable[[str], bool] | None = None) -> None:
    """Fill parameters from a file.

    Args:
        ignored: whether a weight of the file, by name, may be absent from `weights`.

    Raises:
        UserError: the file is missing, or its other weights differ from `weights` in name or shape.
    """
    from safetensors.torch import load_file

    if not path.exists():
        raise UserError(f"{path} is missing")
    stored = {name: x for name, x in load_file(str(path)).items() if ignored is None or not ignored(name)}
    if set(stored) != set(weights):
        unmatched = sorted(set(stored) ^ set(weights))
        raise UserError(f"{path} does not fit this model: {len(unmatched)} weights differ, such as {unmatched[0]}")
    with torch.no_grad():
        for name, parameter in weights.items():
            if stored[name].shape != parameter.shape:
                raise UserError(f"{path}: {name} has shape {tuple(stored[name].shape)}, not {tuple(parameter.shape)}")
            fill(parameter, stored[name])


def list_checkpoints(run: Path) -> list[Path]:
    """Checkpoints that a run wrote, oldest first; other files and folders beside them are not touched."""
    folders = (run / "checkpoints").glob("step_*")
    ours = (f for f in folders if re.fullmatch(r"step_\d{6,}", f.name) and (f / "state.json").is_file())
    return sorted(ours, key=_step_of)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def find(run: Path, resume: str | None, accelerator: Any) -> Path | None:
    """The checkpoint to resume from, its files checked against its manifest; None where there is none.

    Called on every rank; rank 0 reads the files.

    Args:
        resume: `auto` for the checkpoint that was saved last, or the newest whole one before it where that one is
            damaged; a checkpoint's folder; or None.

    Raises:
        UserError: the checkpoint, or with `auto` every checkpoint, is damaged.
    """
    if resume is None:
        return None
    choice: list[Path | None] = [None]
    with raise_on_all_ranks(accelerator):
        if accelerator.is_main_process:
            choice = [_choose(run, resume)]
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(choice)
    return choice[0]


def _choose(run: Path, resume: str) -> Path | None:
    if resume != "auto":
        damage = _damage(Path(resume))
        if damage is not None:
            raise UserError(
                f"cannot resume from {resume}: {damage}; name an earlier checkpoint, or use --resume auto, which takes "
                "the newest whole one"
            )
        return Path(resume)
    latest = run / "checkpoints" / "latest"
    candidates = list_checkpoints(run)[::-1]
    if latest.exists():
        newest = latest.resolve()
        candidates = [newest, *(folder for folder in candidates if _step_of(folder) < _step_of(newest))]
    for folder in candidates:
        damage = _damage(folder)
        if damage is None:
            return folder
        print(f"warning: {folder} is damaged: {damage}; it is not used", file=sys.stderr)
    if candidates:
        raise UserError(f"cannot resume: every checkpoint in {run / 'checkpoints'} is damaged; name another --output")
    return None


def _damage(folder: Path) -> str | None:
    missing = next((part for part in _PARTS if not (folder / part).is_file()), None)
    if missing is not None:
        return f"{missing} is missing"
    if not (folder / MANIFEST).exists():
        print(f"warning: {folder} has no {MANIFEST}, so that damage to it would not be noticed", file=sys.stderr)
    return find_damage(folder)


def load(
    folder: Path, weights: dict[str, nn.Parameter], optimizer: Any, accelerator: Any, inputs: Mapping[str, str]
) -> TrainState:
    """Restore weights and optimizer in place; `load_generators` does the rest, right before the next step.

    Args:
        inputs: fingerprints of the data and of the model that this run starts with; those that differ from the
            checkpoint's are reported.

    Returns:
        The checkpoint's state, with the fingerprints of this run.

    Raises:
        UserError: a part of the checkpoint is damaged or does not fit this run.
    """
    part = "state.json"
    try:
        state = read_state(folder)
        part = WEIGHTS
        load_weights(folder / WEIGHTS, weights)
        part = "optimizer.pt"
        # Of a sharded state each process reads its part.
        mapped = any(is_sharded(p) for p in weights.values())
        stored = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True, mmap=mapped)
        _check_moments(folder, optimizer, stored["optimizer"])
        for group, current in zip(stored["optimizer"]["param_groups"], optimizer.param_groups, strict=True):
            # The run's settings count, not those with which the checkpoint was written.
            group |= {name: current[name] for name in OPTIMIZER_SETTINGS if name in current}
        optimizer.load_state_dict(_sharded_like(optimizer, stored["optimizer"]))
        if stored["scaler"] is not None and accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(stored["scaler"])
    except UserError:
        raise
    except Exception as error:  # readers of damaged files raise many kinds
        raise _unusable(folder, part, error) from error
    for warning in describe_changes(state.inputs, inputs, folder):
        accelerator.print(warning)
    return replace(state, inputs=dict(inputs))


def _check_moments(folder: Path, optimizer: Any, stored: dict[str, Any]) -> None:
    """Refuse moments of the other precision: 8-bit ones cannot be read as float32, nor the reverse."""
    stored_8bit = not any("exp_avg" in values for values in stored["state"].values())
    is_8bit = not isinstance(getattr(optimizer, "optimizer", optimizer), torch.optim.AdamW)
    if stored["state"] and stored_8bit != is_8bit:
        raise UserError(
            f"{folder} was written with adam_8bit {str(stored_8bit).lower()}, and AdamW's moments cannot be converted; "
            "resume with the same value"
        )


def _sharded_like(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's whole state, with this process's part of what belongs to a sharded weight."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, values in state["state"].items():
        if is_sharded(parameters[i]):
            shards = {
                name: shard_like(parameters[i], x) for name, x in values.items() if x.shape == parameters[i].shape
            }
            values |= shards
    return state


def load_generators(folder: Path, accelerator: Any) -> None:
    """Restore the random generators. Imports may draw from Python's, so nothing should come between this and a step.

    Raises:
        UserError: their file is damaged.
    """
    try:
        states = torch.load(folder / "rng.pt", map_location="cpu", weights_only=True)
        if accelerator.process_index < len(states):
            _set_rng(states[accelerator.process_index])
    except Exception as error:
        raise _unusable(folder, "rng.pt", error) from error


def _unusable(folder: Path, part: str, error: Exception) -> UserError:
    return UserError(
        f"cannot resume from {folder}: {part} is damaged or does not fit this run "
        f"({type(error).__name__}: {error}); name an earlier checkpoint with --resume"
    )


def read_state(folder: Path) -> TrainState:
    return TrainState(**json.loads((folder / "state.json").read_text(encoding="utf-8")))


def gather_rng(accelerator: Any) -> list[dict[str, Any]]:
    """The states of Python's, numpy's and torch's random generators, of every rank."""
    from accelerate.utils import gather_object

    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - the user's reward function may draw from it
    states = {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),  # pyright: ignore[reportAttributeAccessIssue]
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }
    return gather_object([states])


def _set_rng(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
