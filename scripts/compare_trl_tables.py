"""Tables and picture of `compare_trl.py`: the best settings, and the frontier of score and KL."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from run_curves import label_panel

Row = dict[str, Any]
"""A finished run: its settings, cost and held-out measures."""

MEASURES = ("judge", "score", "kl", "length", "distinct_2", "eos_fraction", "seconds", "peak_mb")
MAX_KL = 7.0
"""The best setting is one of those whose KL is at most this, in nats per response."""
FRONTIER_KLS = (3.0, 5.0, 7.0)
"""KLs at which frontiers are compared."""
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Degrees of freedom -> the 97.5% quantile of Student's t."""


def trainers_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["trainer"] for row in rows))


def setting_means(rows: Sequence[Row], trainer: str) -> list[Row]:
    """A row for each learning rate and KL coefficient of a trainer: means over its seeds, and `runs`, their rows."""
    settings = sorted({(row["lr"], row["kl_coef"]) for row in rows if row["trainer"] == trainer})
    means = []
    for lr, kl_coef in settings:
        runs = [r for r in rows if (r["trainer"], r["lr"], r["kl_coef"]) == (trainer, lr, kl_coef)]
        mean = {name: float(np.mean([run[name] for run in runs])) for name in MEASURES}
        means.append({"lr": lr, "kl_coef": kl_coef, "runs": runs, **mean})
    return means


def with_all_seeds(means: Sequence[Row]) -> list[Row]:
    """Those that as many seeds were run of as of any."""
    most = max((len(mean["runs"]) for mean in means), default=0)
    return [mean for mean in means if len(mean["runs"]) == most]


def best_setting(rows: Sequence[Row], trainer: str) -> Row | None:
    """The setting with the best mean judge among those with all seeds and a mean KL of at most MAX_KL."""
    means = with_all_seeds(setting_means(rows, trainer))
    return max((mean for mean in means if mean["kl"] <= MAX_KL), key=lambda mean: mean["judge"], default=None)


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The upper concave hull of points (KL, score), from the smallest KL to the highest score.

    A line between two points is attained too: by one policy on some of the prompts, and the other one on the rest.
    """
    hull: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if hull and y <= hull[-1][1]:
            continue
        while len(hull) > 1 and _below(hull[-1], hull[-2], (x, y)):
            hull.pop()
        hull.append((x, y))
    return hull


def _below(point: tuple[float, float], left: tuple[float, float], right: tuple[float, float]) -> bool:
    """Whether a point is on or below the line between two others."""
    return (point[1] - left[1]) * (right[0] - left[0]) <= (right[1] - left[1]) * (point[0] - left[0])


def height_at(rows: Sequence[Row], trainer: str, seed: int, measure: str, kl: float) -> float:
    """A seed's frontier at a KL, or where it ends before that, its end; it begins at the SFT model, of KL 0."""
    runs = [row for row in rows if row["trainer"] == trainer and row["seed"] == seed]
    points = [(0.0, runs[0][f"{measure}_before"]), *((run["kl"], run[measure]) for run in runs)]
    kls, heights = zip(*frontier(points), strict=True)
    return float(np.interp(kl, kls, heights))


def mean_interval(values: Sequence[float]) -> str:
    """The mean over seeds with its 95% interval by Student's t, as text."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    half = T_95[len(values) - 1] * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return f"{np.mean(values):.3f} ± {half:.3f}"


def tables(rows: Sequence[Row]) -> str:
    """Markdown: each trainer's best setting, the frontiers at equal KL, and the whole grid."""
    return "\n\n".join([best_table(rows), frontier_table(rows), grid_table(rows)])


def best_table(rows: Sequence[Row]) -> str:
    lines = [
        f"| trainer | best, KL <= {MAX_KL:g} | seeds | judge | score | KL | length | distinct-2 | CPU s | peak MB |",
        "|---|---|" + "---:|" * 8,
    ]
    for trainer in trainers_of(rows):
        best = best_setting(rows, trainer)
        if best is None:
            continue
        judge, score, kl = (mean_interval([run[name] for run in best["runs"]]) for name in ("judge", "score", "kl"))
        setting = f"lr {best['lr']:g}, kl_coef {best['kl_coef']:g} | {len(best['runs'])}"
        lines.append(
            f"| {trainer} | {setting} | {judge} | {score} | {kl} | {best['length']:.1f} | {best['distinct_2']:.2f} | "
            f"{best['seconds']:.0f} | {best['peak_mb']:.0f} |"
        )
    return "\n".join(lines)


def frontier_table(rows: Sequence[Row]) -> str:
    columns = [(measure, kl) for measure in ("judge", "score") for kl in FRONTIER_KLS]
    lines = [
        "| frontier | runs | " + " | ".join(f"{measure} at KL {kl:g}" for measure, kl in columns) + " |",
        "|---|" + "---:|" * (1 + len(columns)),
    ]
    for trainer in trainers_of(rows):
        seeds = [row["seed"] for row in rows if row["trainer"] == trainer]
        cells = [
            mean_interval([height_at(rows, trainer, seed, measure, kl) for seed in sorted(set(seeds))])
            for measure, kl in columns
        ]
        lines.append(f"| {trainer} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def grid_table(rows: Sequence[Row]) -> str:
    columns = ("trainer", "lr", "kl_coef", "seeds", "judge", "score", "KL", "length", "distinct-2", "ended")
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    for trainer in trainers_of(rows):
        lines += [
            f"| {trainer} | {mean['lr']:g} | {mean['kl_coef']:g} | {len(mean['runs'])} | {mean['judge']:.3f} | "
            f"{mean['score']:.2f} | {mean['kl']:.1f} | {mean['length']:.1f} | {mean['distinct_2']:.2f} | "
            f"{mean['eos_fraction']:.3f} |"
            for mean in setting_means(rows, trainer)
        ]
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Score and judge against the KL: each run a point, the frontier of the means of settings with all seeds a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    titles = {"score": "reward model's score, held out", "judge": "independent judge, held out"}
    for panel, (measure, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for i, trainer in enumerate(trainers_of(rows)):
            runs = [row for row in rows if row["trainer"] == trainer]
            panel.scatter([r["kl"] for r in runs], [r[measure] for r in runs], s=14, color=f"C{i}", alpha=0.6)
            means = [(mean["kl"], mean[measure]) for mean in with_all_seeds(setting_means(rows, trainer))]
            line = frontier([(0.0, runs[0][f"{measure}_before"]), *means])
            panel.plot(*zip(*line, strict=True), color=f"C{i}", label=trainer)
        label_panel(panel, title, "KL to the SFT model, nats per response")
        panel.legend(frameon=False, fontsize=8, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
