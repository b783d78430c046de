"""Runs of settings files over seeds, their table and their curves: `python recipes/seeds.py recipes/arithmetic/*.yaml`.

Each run is the command `rlhf ppo --config FILE --seed SEED`, in the file's `output` folder with the seed appended. Runs
that have finished are not repeated, so that an interrupted command continues. Options after `--` apply to every run;
`--sweep ppo.kl_coef 0 0.05 0.2` repeats all of them for each value of a setting.
"""

import argparse
import json
import resource
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from rlhf.config.jobs import PPOJob
from rlhf.config.parsing import parse
from rlhf.errors import UserError, report_user_errors

PARTS = ("generate", "score", "update")
"""The parts of a step that `metrics.jsonl` measures."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    name: str
    """Of its settings file, without the ending, and the swept setting."""
    seed: int
    metrics: list[dict[str, Any]]
    """A row for each step."""
    evaluations: list[dict[str, Any]]
    """A row for each evaluation on held-out prompts, the first before training."""
    cpu_seconds: float | None
    """Of the whole command, start and evaluations included; None where the run was not started here."""


def run(config: Path, seed: int, options: list[str], swept: tuple[str, str] | None = None) -> Run:
    """Train, unless the run has finished already, and read what came out.

    Args:
        swept: a setting and its value in this run.

    Raises:
        UserError: the settings are wrong, the run fails, or an unfinished run is in the way.
    """
    arguments = ["--config", str(config), *options, "--seed", str(seed)]
    if swept is not None:
        arguments += [f"--{swept[0]}", swept[1]]
    job = parse(PPOJob, arguments, "rlhf ppo")
    variant = "" if swept is None else f"-{swept[0].rpartition('.')[2]}_{swept[1]}"
    folder = Path(f"{job.output}{variant}-{seed}")
    cost = folder.with_name(f"{folder.name}.cost.json")
    if not folder.exists():
        command = [sys.executable, "-m", "rlhf.cli.main", "ppo", *arguments, "--output", str(folder)]
        print(shlex.join(["rlhf", *command[3:]]), flush=True)
        before = _cpu_seconds_of_children()
        if subprocess.run(command).returncode:
            raise UserError(f"the run {folder} failed, as it says above; mend that and move it away")
        cost.write_text(json.dumps({"cpu_seconds": _cpu_seconds_of_children() - before}) + "\n")
    evaluations = read_rows(folder / "eval.jsonl") if (folder / "eval.jsonl").exists() else []
    if not evaluations or evaluations[-1]["step"] < job.ppo.steps:
        raise UserError(f"{folder} holds a run that has not finished; finish it with rlhf ppo, or move it away")
    cpu_seconds = json.loads(cost.read_text())["cpu_seconds"] if cost.exists() else None
    name = config.stem if swept is None else f"{swept[0]} {swept[1]}"
    return Run(name, seed, read_rows(folder / "metrics.jsonl"), evaluations, cpu_seconds)


def _cpu_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The objects of a jsonl file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def table(runs: list[Run], goal: float) -> str:
    """A Markdown table with a row for each run; scores are those of the held-out prompts."""
    head = ["settings", "seed", "before", "after", f"first evaluation at {goal:g} or more", "KL, nats per response"]
    head += ["step, s", *(f"{part}, s" for part in PARTS), "whole command, CPU s"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for item in runs:
        first, last = item.evaluations[0], item.evaluations[-1]
        reached = [row["step"] for row in item.evaluations if row["score"] >= goal]
        cells = [item.name, str(item.seed), f"{first['score']:.3f}", f"{last['score']:.3f}"]
        cells += [f"step {reached[0]}" if reached else "none", f"{last['kl']:.1f}"]
        cells += [f"{mean(row[f'time/{name}'] for row in item.metrics):.1f}" for name in ("step", *PARTS)]
        cells.append("" if item.cpu_seconds is None else f"{item.cpu_seconds:.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(runs: list[Run], path: Path, goal: float) -> None:
    """Training score, held-out score and KL by step: seeds thin, their mean thick, a colour for each settings file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    panels = figure.subplots(1, 3)
    for colour, name in enumerate(dict.fromkeys(item.name for item in runs)):
        members = [item for item in runs if item.name == name]
        curves = (
            ([item.metrics for item in members], "objective/score"),
            ([item.evaluations for item in members], "score"),
            ([item.evaluations for item in members], "kl"),
        )
        for panel, (seeds, column) in zip(panels, curves, strict=True):
            values = [[row[column] for row in rows] for rows in seeds]
            steps = [row["step"] for row in seeds[0]]
            for line in values:
                panel.plot(steps, line, color=f"C{colour}", linewidth=0.6, alpha=0.6)
            means = [mean(column) for column in zip(*values, strict=True)]
            panel.plot(steps, means, color=f"C{colour}", linewidth=2, label=name)
    titles = ("score, training", "score, held out", "KL to the start, nats per response")
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("PPO step")
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    panels[1].axhline(goal, color="grey", linewidth=0.8, linestyle="--")
    panels[1].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)
    print(f"curves in {path}")


def draw_against_kl(runs: list[Run], path: Path) -> None:
    """Held-out score, judge and distinct-2 against the KL of each evaluation; a colour for each variant."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    measures = [
        (name, title)
        for name, title in (("score", "score"), ("judge", "judge"), ("distinct_2", "distinct-2"))
        if all(name in row for item in runs for row in item.evaluations)
    ]
    for panel, (measure, title) in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
        for colour, name in enumerate(dict.fromkeys(item.name for item in runs)):
            for item in (item for item in runs if item.name == name):
                kl, values = [[row[column] for row in item.evaluations] for column in ("kl", measure)]
                label = name if item.seed == min(other.seed for other in runs) else None
                panel.plot(kl, values, "o-", color=f"C{colour}", linewidth=1.2, markersize=3.5, label=label)
        panel.set_title(f"{title}, held out", fontsize=10)
        panel.set_xlabel("KL to the start, nats per response")
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
        panel.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    print(f"measures against KL in {path}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("configs", type=Path, nargs="+", help="settings files of rlhf ppo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (default: 0 1 2)")
    parser.add_argument("--goal", type=float, default=0.95, help="held-out score to reach (default: %(default)s)")
    parser.add_argument("--plot", type=Path, help="PNG file of the curves")
    parser.add_argument("--plot-kl", type=Path, help="PNG file of score, judge and distinct-2 against KL")
    parser.add_argument("--sweep", nargs="+", default=[], metavar="SETTING", help="a setting and its values")
    arguments = sys.argv[1:] if arguments is None else arguments
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:split])
    for config in options.configs:
        if not config.is_file():
            raise UserError(f"there is no settings file {config}")
    if len(options.sweep) == 1:
        raise UserError(f"--sweep has only {options.sweep[0]}, but needs a setting and its values")
    swept = [(options.sweep[0], value) for value in options.sweep[1:]] or [None]
    runs = [
        run(config, seed, arguments[split + 1 :], variant)
        for config in options.configs
        for variant in swept
        for seed in options.seeds
    ]
    if options.plot is not None:
        draw(runs, options.plot, options.goal)
    if options.plot_kl is not None:
        draw_against_kl(runs, options.plot_kl)
    print(f"\n{table(runs, options.goal)}")
    return 0


if __name__ == "__main__":
    with report_user_errors():
        sys.exit(main())
