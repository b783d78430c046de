"""Dumps: all that one optimizer step's gradient is computed from, so that `rlhf replay` can compute it again."""

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlhf.errors import UserError
from rlhf.records import PPOBatch, Prompts, Rollout
from rlhf.run.checkpoint import WEIGHTS, os_errors, save_weights
from rlhf.run.files import replacing, write_text

MINIBATCH = "minibatch.pt"
CONTEXT = "context.json"


def write_dump(
    folder: Path, minibatch: PPOBatch, weights: dict[str, nn.Parameter], context: dict[str, float | int | bool]
) -> None:
    """Write a minibatch, the weights that it was read with, and numbers of its step to a new folder.

    Raises:
        OSError: the disk is full, or refuses.
    """
    if folder.exists():
        return  # of an earlier run of this step
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as partial:
        partial.mkdir()
        save_weights(weights, partial / WEIGHTS)
        write_text(partial / CONTEXT, json.dumps(context, indent=2) + "\n")
        with os_errors():
            torch.save(_as_dict(minibatch), partial / MINIBATCH)


def read_dump(folder: Path) -> tuple[PPOBatch, dict[str, Any]]:
    """The minibatch and the numbers of its step.

    Raises:
        UserError: the folder is no dump, or is damaged.
    """
    if not all((folder / name).is_file() for name in (WEIGHTS, MINIBATCH, CONTEXT)):
        raise UserError(f"{folder} is no dump; a run writes them to dumps/ in its folder")
    try:
        context = json.loads((folder / CONTEXT).read_text(encoding="utf-8"))
        stored = torch.load(folder / MINIBATCH, map_location="cpu", weights_only=True)
        rollout = stored.pop("rollout")
        prompts = Prompts(**rollout.pop("prompts"))
        return PPOBatch(rollout=Rollout(prompts=prompts, **rollout), **stored), context
    except Exception as error:  # readers of damaged files raise many kinds
        raise UserError(f"the dump {folder} is damaged ({type(error).__name__}: {error})") from error


def _as_dict(record: Any) -> dict[str, Any]:
    """A record and the records in it as plain dicts, which torch reads without running code of the file."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: _as_dict(value) if is_dataclass(value) else value for name, value in values.items()}
