"""Fingerprints of what a run starts from, so that a resumed run notices other data and another start model."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SAMPLES = 1024
"""How many rows, and elements of each weight, count: evenly spaced ones, so that large inputs take no time."""


def fingerprint_weights(weights: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of the names, shapes and types of weights, and of elements of each."""
    digest = hashlib.sha256()
    for name, weight in weights:
        elements = _sample(weight.detach().reshape(-1)).contiguous()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(elements.view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()


def fingerprint_rows(rows: Sequence[Any], *more: Sequence[Any]) -> str:
    """A hash of how many rows there are in one or several sequences, and of some of them in their order."""
    if not more:
        return hashlib.sha256(repr([len(rows), list(_sample(rows))]).encode()).hexdigest()
    parts = [rows, *more]
    total = sum(map(len, parts))
    chosen = set(range(total)[:: max(1, total // SAMPLES)])
    sample, first = [], 0
    for part in parts:
        sample += [part[i] for i in range(len(part)) if first + i in chosen]
        first += len(part)
    return hashlib.sha256(repr([total, sample]).encode()).hexdigest()


def describe_changes(before: Mapping[str, str], now: Mapping[str, str], checkpoint: Path) -> list[str]:
    """A warning for each input whose fingerprint is not that of the checkpoint; inputs that only one has are left out.

    Args:
        before: fingerprints in the checkpoint, by the name of the input.
        now: those of the run that resumes from it.
    """
    changed = (name for name in before if name in now and before[name] != now[name])
    return [f"warning: {name} changed since {checkpoint} was saved; this becomes another run" for name in changed]


def _sample(items: Any) -> Any:
    return items[:: max(1, len(items) // SAMPLES)]
