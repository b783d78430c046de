"""One-digit sums and products as prompts: `python recipes/arithmetic/data.py data/arithmetic`.

Writes `text.jsonl` and `chat.jsonl`, with the held-out prompts beside them in `text_test.jsonl` and `chat_test.jsonl`.
"""

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

from rlhf.errors import UserError, report_user_errors

HELD_OUT = 20
"""Problems, of sums and of products each."""
OPERATIONS = {"+": lambda a, b: a + b, "*": lambda a, b: a * b}
Problem = tuple[int, str, int]


def split_problems() -> tuple[list[Problem], list[Problem]]:
    """The 200 problems as training and held-out problems.

    No training prompt has a held-out problem, not even as its example. Of a held-out `8 + 3` the other order, `3 + 8`,
    is trained on; the pretrained model may have seen both.
    """
    generator = random.Random(0)
    held_out: list[Problem] = []
    for operation in OPERATIONS:
        pairs = [(a, b) for a in range(10) for b in range(a + 1, 10)]
        for a, b in generator.sample(pairs, HELD_OUT):
            held_out.append((a, operation, b) if generator.random() < 0.5 else (b, operation, a))
    problems = [(a, operation, b) for operation in OPERATIONS for a in range(10) for b in range(10)]
    return [problem for problem in problems if problem not in held_out], held_out


def answer(problem: Problem) -> int:
    """The right answer."""
    a, operation, b = problem
    return OPERATIONS[operation](a, b)


def text_row(problem: Problem, example: Problem) -> dict[str, Any]:
    """A solved example and the problem, to be continued: `2 + 3 = 5`, a new line, `4 * 2 =`."""
    a, operation, b = problem
    c, other, d = example
    return {"prompt": f"{c} {other} {d} = {answer(example)}\n{a} {operation} {b} =", "answer": str(answer(problem))}


def chat_row(problem: Problem) -> dict[str, Any]:
    """The problem as a user's message, for the model's chat template."""
    a, operation, b = problem
    return {
        "prompt": [{"role": "user", "content": f"What is {a} {operation} {b}? Answer with the number alone."}],
        "answer": str(answer(problem)),
    }


def write_files(folder: Path, examples: int = 8, test_examples: int = 2) -> None:
    """Write the four files.

    Args:
        folder: a new folder.
        examples: text prompts for each training problem, with an example each.
        test_examples: the same for each held-out problem.
    """
    generator = random.Random(1)
    training, held_out = split_problems()

    def text_rows(problems: list[Problem], count: int) -> list[dict[str, Any]]:
        rows = []
        for problem in problems:
            others = [p for p in training if p[1] == problem[1] and {p[0], p[2]} != {problem[0], problem[2]}]
            rows += [text_row(problem, example) for example in generator.sample(others, count)]
        return rows

    folder.mkdir(parents=True)
    rows = {
        "text": text_rows(training, examples),
        "text_test": text_rows(held_out, test_examples),
        "chat": [chat_row(problem) for problem in training],
        "chat_test": [chat_row(problem) for problem in held_out],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="a folder that does not exist yet")
    folder = parser.parse_args(arguments).folder
    if folder.exists():
        raise UserError(f"the folder {folder} exists already: name a new one, or use the data that is in it")
    write_files(folder)
    print(f"wrote {folder}")
    return 0


if __name__ == "__main__":
    with report_user_errors():
        sys.exit(main())
