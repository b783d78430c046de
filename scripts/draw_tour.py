"""Run every command of the tour in order and draw its pictures: `python scripts/draw_tour.py --out docs/tabular`.

Takes about half an hour on one core. `--only policy` runs all commands, but copies only pictures whose name holds
"policy".
"""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOUR = ROOT / "tabular" / "README.md"

PICTURES = {
    "bandits.png": "pictures/bandits.png",
    "policy_evaluation.png": "random_policy.png",
    "maze.png": "maze.png",
    "cars.png": "cars.png",
    "blackjack.png": "blackjack.png",
    "prediction.png": "runs/predict-RandomWalk-v0/errors.png",
    "prediction_values.png": "runs/predict-RandomWalk-v0/values.png",
    "lambda.png": "runs/predict-RandomWalk-v0-2/step_sizes.png",
    "maze_q_learning.png": "runs/q_learning-Maze-v0/exact.png",
    "maze_q_change.png": "runs/q_learning-Maze-v0/metrics.png",
    "cliff.png": "runs/compare-CliffWalking-v1/learning_curves.png",
    "cliff_q_learning.png": "runs/compare-CliffWalking-v1/q_learning/policy.png",
    "cliff_expected_sarsa.png": "runs/compare-CliffWalking-v1/expected_sarsa/policy.png",
    "windy.png": "runs/compare-WindyGrid-v0/learning_curves.png",
    "dyna.png": "runs/dyna/learning_curves.png",
    "generalisation.png": "runs/dqn-MazePool-v0/evaluation.png",
    "robustness.png": "runs/compare-CliffWalking-v1/evaluation.png",
    "dqn.png": "pictures/dqn.png",
    "actor_critic.png": "pictures/actor_critic.png",
    "adaptive_beta.png": "pictures/adaptive_beta.png",
    "reinforce_variance.png": "pictures/reinforce_variance.png",
    "trust_region.png": "pictures/trust_region.png",
    "clip.png": "pictures/clip.png",
}
"""Picture of the tour -> the file that one of its commands writes."""


def commands() -> list[list[str]]:
    """The words of each command in the tour's shell blocks, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", TOUR.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "tabular", help="folder for the pictures")
    parser.add_argument("--only", default="", help="copy only pictures whose name holds this text")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for words in commands():
            print("$", shlex.join(words), flush=True)
            subprocess.run(_program(words), cwd=folder, check=True)
        for picture, file in PICTURES.items():
            if args.only in picture:
                shutil.copy(Path(folder) / file, args.out / picture)
                print("written:", args.out / picture)


def _program(words: Sequence[str]) -> list[str]:
    """The command as this interpreter runs it, from any folder."""
    program, *rest = words
    if program == "tabular":
        return [sys.executable, "-m", "tabular.cli.main", *rest]
    assert program == "python", f"the tour has a command that is neither tabular nor python: {shlex.join(words)}"
    return [sys.executable, str(ROOT / rest[0]), *rest[1:]]


if __name__ == "__main__":
    main()
