"""What goes wrong in PPO, one setting at a time: the pictures of `docs/tuning.md`.

    rlhf demo --output runs/demo
    python scripts/draw_tuning.py --demo runs/demo

Each case is the demo's PPO stage with a setting changed, as options of `rlhf ppo`; its curves stand beside those of the
unchanged settings. Finished cases are not run again.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from run_curves import label_panel, read_rows, running_mean

from rlhf.config.parsing import read_yaml

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS = 24
WORDS = ("--reward.model", "null", "--reward.function", "scripts/tuning_rewards.py:words")


@dataclass(frozen=True)
class Case:
    """A setting that makes training go wrong, and the metrics that show it."""

    options: tuple[str, ...]
    """Options of `rlhf ppo`, after the demo's own settings."""
    metrics: tuple[str, ...]
    """Columns of `metrics.jsonl`, or of `eval.jsonl` as `held out NAME`; a panel each."""
    logarithmic: bool = False


CASES = {
    "kl_runs_away": Case(("--ppo.kl_target", "null", "--ppo.kl_coef", "0"), ("objective/kl",)),
    "score_rises_judge_falls": Case(WORDS, ("objective/score", "held out judge")),
    "score_stays": Case(("--ppo.lr", "1e-6"), ("objective/score",)),
    "length_collapses": Case(("--reward.min_length", "0", "--reward.short_penalty", "1"), ("response/length",)),
    "length_explodes": Case((*WORDS, "--reward.missing_eos_penalty", "null"), ("response/truncated_fraction",)),
    "entropy_collapses": Case(
        ("--ppo.kl_target", "null", "--ppo.kl_coef", "0", "--ppo.lr", "3e-3"), ("policy/entropy",)
    ),
    "explained_variance": Case(("--critic.kind", "separate", "--critic.lr", "3e-2"), ("value/explained_variance",)),
    "clip_fraction": Case(("--ppo.ppo_epochs", "16"), ("policy/clip_fraction",)),
    "ratio_spikes": Case(("--ppo.lr", "5e-3"), ("policy/ratio_max",), logarithmic=True),
    "memory": Case(("--critic.kind", "separate"), ("memory/peak_mb",)),
    "speed": Case(("--ppo.microbatch_size", "1"), ("time/step",)),
}
"""Symptom -> how it is provoked."""


def run(demo: Path, folder: Path, options: Sequence[str], steps: int) -> None:
    """Train with changed settings in a new process, unless the run is finished already."""
    if (folder / "model").exists():
        return
    config = demo / "ppo" / "config.yaml"
    episodes = read_yaml(config)["ppo"]["rollout_batch_size"] * steps
    every = max(1, steps // 4)
    command = [sys.executable, "-m", "rlhf.cli.main", "ppo", "--config", str(config)]
    command += ["--output", str(folder), "--resume", "auto", "--ppo.total_episodes", str(episodes)]
    command += ["--eval.every", str(every), *options]
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise SystemExit(f"failed: {' '.join(command)}")


def curve(folder: Path, metric: str) -> tuple[list[int], list[Any]]:
    """Steps and values of a metric; None where it is null."""
    held_out = metric.removeprefix("held out ")
    rows = read_rows(folder / ("metrics.jsonl" if held_out == metric else "eval.jsonl"))
    steps, values = [row["step"] for row in rows], [row[held_out] for row in rows]
    smooth = held_out == metric and all(value is not None for value in values)
    return steps, running_mean(values) if smooth else values


def draw(folders: dict[str, Path], case: Case, path: Path) -> None:
    """Draw the metrics of a case beside those of the unchanged settings."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(case.metrics), 2.1), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, len(case.metrics), squeeze=False)[0])
    for panel, metric in zip(panels, case.metrics, strict=True):
        for (label, folder), color in zip(folders.items(), ("0.6", "C3"), strict=True):
            panel.plot(*curve(folder, metric), color=color, linewidth=1.6, label=label)
        if case.logarithmic:
            panel.set_yscale("log")
        label_panel(panel, metric, size=9)
        panel.tick_params(labelsize=8)
    panels[0].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the cases and draw their pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, required=True, help="folder of a finished `rlhf demo`")
    parser.add_argument("--output", type=Path, default=Path("runs/tuning"), help="folder of all runs (%(default)s)")
    parser.add_argument("--pictures", type=Path, default=Path("docs/tuning"), help="folder of PNG files (%(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="PPO steps of each run (default: %(default)s)")
    parser.add_argument("--cases", nargs="*", choices=CASES, metavar="CASE", help=", ".join(CASES))
    options = parser.parse_args(argv)
    unchanged = options.output / "unchanged"
    run(options.demo, unchanged, (), options.steps)
    for name in options.cases or CASES:
        folder = options.output / name
        run(options.demo, folder, CASES[name].options, options.steps)
        draw({"demo": unchanged, "changed": folder}, CASES[name], options.pictures / f"{name}.png")
        last = {metric: curve(folder, metric)[1][-1] for metric in CASES[name].metrics}
        print(f"{name}: {' '.join(CASES[name].options)}: {last}", flush=True)


if __name__ == "__main__":
    main()
