"""How good a reward model and its preferences are: calibration, accuracy by margin, length, and agreement of people.

`rlhf reward` writes `reward_quality.json` at its end, and the report shows it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.config.shared import DataConfig
from rlhf.data.agreement import Share, agreement, first_answers, krippendorff_alpha, labels_by_pair, self_consistency
from rlhf.data.comparisons import is_compared
from rlhf.data.datasets import has_held_out_rows, load_held_out_rows, load_rows
from rlhf.data.preferences import PreferencePair
from rlhf.run.files import write_text

FILE = "reward_quality.json"
CONFIDENCES = np.linspace(0.5, 1.0, 6)
"""Edges of the reliability diagram's bins."""


def write_reward_quality(
    folder: Path, chosen: np.ndarray, rejected: np.ndarray, held_out: Sequence[PreferencePair], data: DataConfig
) -> None:
    """Write `reward_quality.json`; nothing where no pairs are held out and the data is no file of `rlhf compare`.

    Args:
        folder: the run folder.
        chosen: [N] scores of the chosen texts of the held-out pairs.
        rejected: [N] scores of the rejected ones.
        held_out: the N pairs.
        data: the settings of the data.
    """
    content: dict[str, Any] = {}
    if held_out:
        lengths = np.array([[len(pair.chosen), len(pair.rejected)] for pair in held_out])
        content["held_out"] = reward_quality(chosen, rejected, lengths)
    people = preference_quality(data)
    if people is not None:
        content["people"] = people
    if content:
        write_text(folder / FILE, json.dumps(content, indent=2) + "\n")


def reward_quality(chosen: np.ndarray, rejected: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
    """How the scores of preference pairs relate to the preferences.

    A pair's margin is the absolute difference of its two scores, and sigmoid(margin) the confidence with which the
    model prefers the higher one (Bradley & Terry, 1952). The expected calibration error is the mean over bins, weighted
    by their pairs, of |accuracy - mean confidence| (Guo et al., 2017, On Calibration of Modern Neural Networks, eq. 3).

    Args:
        chosen: [N] scores of the preferred texts.
        rejected: [N] scores of the others.
        lengths: [N, 2] tokens of both.

    Returns:
        `accuracy`; `calibration_error`; `reliability`, the bins of confidence; `margins`, quarters of the pairs by
        margin; `length`, what a preference for the longer text explains. Shares have a Wilson interval.
    """
    correct = chosen > rejected
    margins = np.abs(chosen - rejected).astype(float)
    confidences = 1 / (1 + np.exp(-margins))
    bins = np.clip(np.digitize(confidences, CONFIDENCES) - 1, 0, len(CONFIDENCES) - 2)
    reliability: list[dict[str, Any]] = [
        {"low": float(CONFIDENCES[i]), "high": float(CONFIDENCES[i + 1]), "confidence": float(confidences[own].mean())}
        | {"accuracy": _share(correct[own])}
        for i in range(len(CONFIDENCES) - 1)
        if (own := bins == i).any()
    ]
    errors = [row["accuracy"]["total"] * abs(row["accuracy"]["value"] - row["confidence"]) for row in reliability]
    quarters = [part for part in np.array_split(np.argsort(margins, kind="stable"), 4) if part.size]
    return {
        "accuracy": _share(correct),
        "calibration_error": sum(errors) / len(correct),
        "reliability": reliability,
        "margins": [
            {"low": float(margins[part].min()), "high": float(margins[part].max()), "accuracy": _share(correct[part])}
            for part in quarters
        ],
        "length": _length(chosen, rejected, lengths),
    }


def _length(chosen: np.ndarray, rejected: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
    """Correlation of score and tokens over all texts, and how often people and model prefer the longer one."""
    scores, tokens = np.concatenate([chosen, rejected]), lengths.T.reshape(-1)
    varies = scores.std() > 0 and tokens.std() > 0
    differ = lengths[:, 0] != lengths[:, 1]
    longer = lengths[differ, 0] > lengths[differ, 1]
    return {
        "correlation": float(np.corrcoef(scores, tokens)[0, 1]) if varies else None,
        "chosen_longer": _share(longer),
        "scored_longer": _share((chosen[differ] > rejected[differ]) == longer),
    }


def preference_quality(data: DataConfig) -> dict[str, Any] | None:
    """How far the people of a file of `rlhf compare` agree, which limits the accuracy that a model can have on it.

    The file is that of the held-out pairs. `agreement` and `alpha` count ties as a choice of their own, as
    `rlhf compare --summary` does; `agreement_decided` counts preferences alone, as a model's accuracy does.

    Returns:
        None for any other file.
    """
    rows = load_held_out_rows(data) if has_held_out_rows(data) else load_rows(data.path or "", data.split)
    if not is_compared(rows):
        return None
    answers = [{"annotator": "", **row} for row in rows]
    labels = labels_by_pair(answers)
    counting = first_answers(answers)
    return {
        "people": len({row["annotator"] for row in answers}),
        "pairs": len(labels),
        "answers": len(counting),
        "ties": sum(row["choice"] == "tie" for row in counting),
        "clearly": sum(bool(row["clearly"]) for row in counting),
        "seen_by_two": sum(len(choices) > 1 for choices in labels),
        "self_consistency": _as_json(self_consistency(answers)),
        "agreement": _as_json(agreement(labels)),
        "agreement_decided": _as_json(agreement([[c for c in choices if c != "tie"] for choices in labels])),
        "alpha": krippendorff_alpha(labels),
    }


def _share(values: np.ndarray) -> dict[str, Any]:
    return _as_json(Share(int(values.sum()), len(values)))


def _as_json(share: Share) -> dict[str, Any]:
    interval = share.interval
    value, low, high = (None, None, None) if interval is None else (interval.value, interval.low, interval.high)
    return {"count": share.count, "total": share.total, "value": value, "low": low, "high": high}
