"""`tabular predict` with several step sizes: the error against alpha, a curve for each lambda or n.

After Sutton & Barto (2018), figures 7.2 and 12.6: large lambdas (or n) bootstrap less, so they have less bias and more
variance, and need a smaller alpha.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from tabular.cli import show
from tabular.cli.predict import (
    PredictionRequest,
    Problem,
    check_settings_of,
    estimate,
    make_problem,
    output_folder,
    rms_error,
    title_of,
    write_config,
    write_csv,
)
from tabular.experiments import algorithms, value_plots
from tabular.experiments.figures import draw_all
from tabular.td.prediction import PredictionConfig

DIVERGED = 100
"""Ratio to the smallest error from which estimates are called divergent."""

VARIED = {"td": "lam", "n_step": "n", "monte_carlo": None}
"""The setting of each method that may have several values beside alpha."""


@dataclass(frozen=True)
class Curve:
    """One value of lambda or n, with all step sizes."""

    label: str
    configs: Sequence[PredictionConfig]
    "one for each alpha"


def compare_step_sizes(request: PredictionRequest) -> int:
    """Prints and draws the RMS error, averaged over the states, the episodes and the seeds, for every alpha and every
    lambda or n.

    Raises:
        ValueError: several values of a setting that cannot be varied, or a value out of range.
    """
    if len(request.methods) != 1:
        raise ValueError(f"several values of a setting need one method, got {', '.join(request.methods)}")
    check_settings_of(request.methods, request.settings)
    curves = _curves(request.methods[0], request.settings)
    gamma = curves[0].configs[0].gamma
    problem = make_problem(request, gamma)
    folder = output_folder(request, problem.env_id)
    alphas = [config.alpha for config in curves[0].configs]
    errors = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("step sizes"))
    with Progress(*columns, console=show.console()) as bar:
        for curve in curves:
            configs = bar.track(curve.configs, description=curve.label)
            errors[curve.label] = np.array([_errors(problem, config, request) for config in configs])

    _show(f"{title_of(request, problem, gamma)}: mean RMS error", alphas, errors)
    folder.mkdir(parents=True)
    write_config(folder, request, problem, request.methods, request.settings)
    rows = (
        (label, alpha, seed, error)
        for label, by_alpha in errors.items()
        for alpha, by_seed in zip(alphas, by_alpha.tolist(), strict=True)
        for seed, error in zip(request.seeds, by_seed, strict=True)
    )
    write_csv(folder / "step_sizes.csv", ["method", "alpha", "seed", "rms_error"], rows)
    draw_all(lambda: value_plots.step_size_curves(folder / "step_sizes.png", alphas, errors))
    print(f"written: {folder}")
    return 0


def _curves(method: str, settings: Mapping[str, str]) -> list[Curve]:
    """The configs of every combination of alpha with lambda or n."""
    varied = VARIED[method]
    several = [name for name, text in settings.items() if "," in text]
    for name in several:
        if name not in ("alpha", varied):
            names = "alpha" if varied is None else f"alpha and {varied}"
            raise ValueError(f"--{name} is {settings[name]}, but only {names} of {method} may have several values")
    base = algorithms.settings(
        PredictionConfig,
        {"method": method, **{name: text for name, text in settings.items() if name not in several}},
    )
    alphas = _values(settings, "alpha") or [base.alpha]
    if varied is None:
        return [Curve(method, [replace(base, alpha=alpha) for alpha in alphas])]
    values = _values(settings, varied) or [getattr(base, varied)]
    return [
        Curve(f"{varied} {value:g}", [replace(base, alpha=alpha, **{varied: value}) for alpha in alphas])
        for value in values
    ]


def _values(settings: Mapping[str, str], name: str) -> list[float | int]:
    """The values of a setting, separated by commas; none if it is not set."""
    texts = settings[name].split(",") if name in settings else []
    return [getattr(algorithms.settings(PredictionConfig, {name: text}), name) for text in texts]


def _errors(problem: Problem, config: PredictionConfig, request: PredictionRequest) -> Float[np.ndarray, "N"]:
    """Each seed's mean RMS error over the episodes; infinite where the estimates diverged."""
    errors = []
    for seed in request.seeds:
        curve = rms_error(estimate(problem, config, request.episodes, seed), problem.exact)[1:]
        errors.append(float(curve.mean()) if np.isfinite(curve).all() else np.inf)
    return np.array(errors)


def _show(title: str, alphas: Sequence[float | int], errors: Mapping[str, Float[np.ndarray, "K N"]]) -> None:
    table = Table("alpha", title=title, caption="– diverges")
    for label in errors:
        table.add_column(label, justify="right")
    means = {label: by_alpha.mean(axis=1) for label, by_alpha in errors.items()}
    best = {label: float(np.nanmin(mean)) for label, mean in means.items()}
    for i, alpha in enumerate(alphas):
        cells = []
        for label, mean in means.items():
            text = f"{mean[i]:.3g}" if mean[i] < DIVERGED * min(best.values()) else "–"
            cells.append(f"[bold]{text}[/]" if mean[i] == best[label] else text)
        table.add_row(f"{alpha:g}", *cells)
    show.console().print(table)
