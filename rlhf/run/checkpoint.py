"""Save and resume: a folder a step, complete or not there at all.

Sampling, the order of the prompts and the shuffles are functions of the seed and the step, so a resumed run needs the
weights, the optimizer and a few numbers; the generators' states are kept for reward functions that draw from them.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rlhf.errors import UserError

WEIGHTS = "weights.safetensors"
_PARTS = (WEIGHTS, "optimizer.pt", "rng.pt", "state.json")


@dataclass
class TrainState:
    """All that a resume needs beside weights and optimizers."""

    step: int = 0
    """Steps done."""
    episodes: int = 0
    """Responses sampled so far: where the stream of prompts goes on."""
    kl_coef: dict[str, float] = field(default_factory=dict)
    """The KL coefficient's controller."""
    beta: dict[str, float] = field(default_factory=dict)
    """The KL penalty's coefficient, where the policy loss has one."""
    scale: dict[str, float] = field(default_factory=dict)
    """The running scale of scores: how many, their mean, and their squared deviations."""
    pretraining_rollouts: int = 0
    """Rollouts from which the critic learnt before the first step; 0 where that is still to come."""
    best_step: int | None = None
    best_score: float | None = None
    """The best held-out score so far, and the step that had it."""


def save(
    run: Path,
    state: TrainState,
    weights: dict[str, nn.Parameter],
    optimizer: Any,
    accelerator: Any,
    keep: int | None = None,
) -> Path | None:
    """Write `checkpoints/step_XXXXXX` and point `checkpoints/latest` at it. Called on every rank; rank 0 writes.

    Returns None, after saying so, where the disk refuses: the run goes on, and earlier checkpoints stay.
    """
    states = gather_rng(accelerator)
    if not accelerator.is_main_process:
        return None
    folder = run / "checkpoints" / f"step_{state.step:06d}"
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_weights(weights, partial / WEIGHTS)
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
        torch.save({"optimizer": optimizer.state_dict(), "scaler": scaler}, partial / "optimizer.pt")
        torch.save(states, partial / "rng.pt")
        (partial / "state.json").write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
        if folder.exists():  # the same step of a run that was resumed before it
            shutil.rmtree(folder)
        partial.rename(folder)
        _point(folder.with_name("latest"), folder.name)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        accelerator.print(f"warning: no checkpoint at step {state.step}: {error}; training goes on")
        return None
    if keep is not None:
        # Later steps are of a run that went back to an earlier checkpoint: they are not the oldest, and not this run's.
        for old in [c for c in list_checkpoints(run) if _step_of(c) <= state.step][:-keep]:
            shutil.rmtree(old)
    return folder


def save_best(run: Path, weights: dict[str, nn.Parameter], step: int) -> None:
    """Keep the weights with the best held-out score so far, and their step, in `checkpoints/best`."""
    folder = run / "checkpoints" / "best"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        save_weights(weights, folder / f"{WEIGHTS}.partial")
        os.replace(folder / f"{WEIGHTS}.partial", folder / WEIGHTS)
        (folder / "step").write_text(f"{step}\n", encoding="utf-8")
    except OSError as error:
        (folder / f"{WEIGHTS}.partial").unlink(missing_ok=True)
        print(f"warning: the best weights were not saved: {error}; training goes on")


def best_saved(run: Path) -> int | None:
    """The step whose weights `checkpoints/best` holds."""
    path = run / "checkpoints" / "best" / "step"
    return int(path.read_text(encoding="utf-8")) if path.exists() else None


def save_weights(weights: dict[str, nn.Parameter], path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: p.detach().cpu().contiguous() for name, p in weights.items()}, str(path))


def load_weights(path: Path, weights: dict[str, nn.Parameter], beside: Callable[[str], bool] | None = None) -> None:
    """Fill parameters from a file; `UserError` where it does not hold exactly them, names that are `beside` aside."""
    from safetensors.torch import load_file

    if not path.exists():
        raise UserError(f"{path} is missing")
    stored = {name: x for name, x in load_file(str(path)).items() if beside is None or not beside(name)}
    if set(stored) != set(weights):
        odd = sorted(set(stored) ^ set(weights))
        raise UserError(f"{path} does not fit this model: {len(odd)} weights differ, such as {odd[0]}")
    with torch.no_grad():
        for name, parameter in weights.items():
            if stored[name].shape != parameter.shape:
                raise UserError(f"{path}: {name} has shape {tuple(stored[name].shape)}, not {tuple(parameter.shape)}")
            parameter.copy_(stored[name])


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted((run / "checkpoints").glob("step_[0-9]*"), key=_step_of)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def find(run: Path, resume: str | None) -> Path | None:
    """The checkpoint that `resume` means: None, `auto` for the one that was saved last, or a folder's name.

    Raises:
        UserError: the named folder is no checkpoint, or a part of it is missing.
    """
    if resume is None:
        return None
    if resume == "auto":
        latest = run / "checkpoints" / "latest"
        folder = latest.resolve() if latest.exists() else next(reversed(list_checkpoints(run)), None)
        if folder is None:
            return None
    else:
        folder = Path(resume)
    missing = [part for part in _PARTS if not (folder / part).is_file()]
    if missing:
        raise UserError(f"cannot resume from {folder}: {missing[0]} is missing")
    return folder


def load(folder: Path, weights: dict[str, nn.Parameter], optimizer: Any, accelerator: Any) -> TrainState:
    """Restore weights, optimizer, generators and state in place."""
    part = "state.json"
    try:
        state = read_state(folder)
        part = WEIGHTS
        load_weights(folder / WEIGHTS, weights)
        part = "optimizer.pt"
        stored = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        optimizer.load_state_dict(stored["optimizer"])
        if stored["scaler"] is not None and accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(stored["scaler"])
        part = "rng.pt"
        states = torch.load(folder / "rng.pt", map_location="cpu", weights_only=True)
        if accelerator.process_index < len(states):
            _set_rng(states[accelerator.process_index])
    except UserError:
        raise
    except Exception as error:  # a damaged file raises whatever its reader stumbles over
        raise UserError(
            f"cannot resume from {folder}: {part} is damaged or does not fit this run "
            f"({type(error).__name__}: {error}); name an earlier checkpoint with --resume"
        ) from error
    return state


def read_state(folder: Path) -> TrainState:
    return TrainState(**json.loads((folder / "state.json").read_text(encoding="utf-8")))


def gather_rng(accelerator: Any) -> list[dict[str, Any]]:
    """The generators' states of every rank."""
    from accelerate.utils import gather_object

    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - the user's reward function may draw from it
    mine = {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),  # pyright: ignore[reportAttributeAccessIssue]
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }
    return gather_object([mine])


def _set_rng(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _point(link: Path, target: str) -> None:
    """Make `link` a symbolic link to `target`, in one move."""
    partial = link.with_name(f".{link.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    os.replace(partial, link)
