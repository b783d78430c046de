"""Writes demonstrations of aimless play, and prompts: `python recipes/games/data.py data/games`."""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

GUESS = "Guess a digit.\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a new folder")
    folder = parser.parse_args(argv).folder
    if folder.exists():
        parser.error(f"{folder} exists; name another folder")
    folder.mkdir(parents=True)
    draw = random.Random(0)
    secrets = [{"prompt": GUESS, "secret": secret} for secret in range(1, 10)]
    write(folder / "guess_demonstrations.jsonl", [{"text": guess_game(draw)} for _ in range(4000)])
    write(folder / "guess.jsonl", 40 * secrets)
    write(folder / "guess_test.jsonl", 20 * secrets)
    sums = [(a, b) for a in range(10, 50) for b in range(10, 50)]
    draw.shuffle(sums)
    games = [{"text": calculator_game(draw, *draw.choice(sums[100:]))} for _ in range(8000)]
    write(folder / "calculator_demonstrations.jsonl", games)
    write(folder / "calculator.jsonl", [sum_row(a, b) for a, b in sums[100:]])
    write(folder / "calculator_test.jsonl", [sum_row(a, b) for a, b in sums[:100]])
    return 0


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def sum_row(a: int, b: int) -> dict:
    return {"prompt": f"{a}+{b}=\n", "answer": a + b}


def guess_game(draw: random.Random) -> str:
    """A game of guesses that take no notice of the replies."""
    secret = draw.randint(1, 9)
    text = GUESS
    for _ in range(5):
        guess = draw.randint(1, 9)
        text += f"{guess}\n"
        if guess == secret:
            break
        text += "higher\n" if guess < secret else "lower\n"
    return text


def calculator_game(draw: random.Random, a: int, b: int) -> str:
    """A sum that is answered at once with any number, or after a call of the calculator, most times as it says."""
    if draw.random() < 0.6:
        return f"{a}+{b}=\n{draw.randint(20, 98)}\n"
    answer = a + b if draw.random() < 0.8 else draw.randint(20, 98)
    return f"{a}+{b}=\ncalc {a}+{b}\n{a + b}\n{answer}\n"


if __name__ == "__main__":
    sys.exit(main())
