"""A comparison of policies as one HTML page: their statistics, score against KL, win rates, and responses side by side.

It reads `evaluation.json` and `samples.jsonl`; the template `templates/comparison.html.jinja` has words and layout. The
page loads nothing else, and works without JavaScript.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.errors import UserError
from rlhf.report.charts import LARGE, Axis
from rlhf.report.engine import template_engine
from rlhf.report.numbers import NAN, Row, finite, number, percent
from rlhf.run.files import write_bytes

MEASURES = (
    ("score", "score"),
    ("penalised_score", "after penalties"),
    ("judge", "judge"),
    ("length", "tokens"),
    ("distinct_1", "distinct-1"),
    ("distinct_2", "distinct-2"),
    ("eos_fraction", "complete"),
    ("repetition", "repetition"),
)
"""Statistic -> its heading; those that no policy has are left out."""


def write_comparison(folder: Path) -> Path:
    """Write `comparison.html` from the other files of an evaluation's folder, and return where it is.

    Raises:
        UserError: the folder holds no comparison of policies.
    """
    file = folder / "evaluation.json"
    result = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if "win_rates" not in result:
        raise UserError(f"{folder} holds no comparison of policies; write one with `rlhf evaluate A B --output FOLDER`")
    samples = folder / "samples.jsonl"
    lines = samples.read_text(encoding="utf-8").split("\n") if samples.is_file() else []
    page = render(result, [json.loads(line) for line in lines if line.strip()])
    output = folder / "comparison.html"
    write_bytes(output, page.encode("utf-8", errors="replace"))  # a sampled text may hold lone surrogates
    return output


def render(result: Row, samples: list[Row]) -> str:
    """The page as HTML. The template engine escapes everything that comes from the files."""
    engine = template_engine()
    engine.globals |= {"number": number, "percent": percent, "finite": finite}
    policies: Mapping[str, Row] = result["policies"]
    return engine.get_template("comparison.html.jinja").render(
        policies=policies,
        paths=result["paths"],
        prompts=next(iter(policies.values()))["prompts"],
        by=result["by"],
        measures=measures_of(policies),
        win_rates=result["win_rates"],
        frontier=frontier(policies),
        responses=side_by_side(samples),
        config=json.dumps(result.get("config") or {}, indent=2, ensure_ascii=False),
    )


def measures_of(policies: Mapping[str, Row]) -> list[tuple[str, str]]:
    """The statistics that a policy has, with their headings; those of named sources behind the others."""
    present = dict.fromkeys(name for row in policies.values() for name in row)
    others = [name for name in present if "/" in name and not name.endswith(("_low", "_high"))]
    return [(name, text) for name, text in MEASURES if name in present] + [(name, name) for name in others]


@dataclass(frozen=True)
class Frontier:
    """Scores against KL: a point for each policy, with the interval of its score."""

    size: tuple[int, int]
    x: Axis
    y: Axis
    points: list[dict[str, Any]]


def kl_of(summary: Row) -> tuple[float, bool]:
    """A policy's KL to the reference, and whether it is a bound; nan where its tokens are not the reference's."""
    if "kl_bound" in summary:
        return finite(summary["kl_bound"]), True
    return finite(summary.get("kl")), False


def frontier(policies: Mapping[str, Row]) -> Frontier | None:
    """The chart of scores against KL; None where fewer than two policies have both."""
    measure = "score" if all("score" in row for row in policies.values()) else "judge"
    rows = []
    for name, summary in policies.items():
        kl, is_bound = kl_of(summary)
        value, low, high = (finite(summary.get(measure + end)) for end in ("", "_low", "_high"))
        if np.isfinite([kl, value]).all():
            rows.append({"name": name, "kl": kl, "is_bound": is_bound, "value": value, "low": low, "high": high})
    if len(rows) < 2:
        return None
    width, height = LARGE
    x = Axis.around(np.array([row["kl"] for row in rows]), 46.0, width - 40.0, zero=True)
    y = Axis.around(np.array([row[end] for row in rows for end in ("low", "value", "high")]), height - 30.0, 24.0)
    points = [
        row | {"x": x(row["kl"]), "y": y(row["value"]), "bottom": y(row["low"]), "top": y(row["high"])} for row in rows
    ]
    return Frontier(LARGE, x, y, points)


def side_by_side(samples: list[Row]) -> list[dict[str, Any]]:
    """The responses of all policies to each prompt, in the policies' order."""
    by_prompt: dict[int, dict[str, Any]] = {}
    for row in samples:
        entry = by_prompt.setdefault(row["index"], {"prompt": row["prompt"], "responses": []})
        scores = {name: finite(value) if value is not None else NAN for name, value in row["scores"].items()}
        entry["responses"].append({"policy": row["policy"], "text": row["response"], "scores": scores})
    return list(by_prompt.values())
