"""Film reviews as preference pairs and prompts for SmolLM2: `python recipes/reviews/data.py data/reviews`.

The reviews, their split by film and the judge are those of `rlhf demo`. Every text begins with `Film review:`, so that
a model of general text continues with one.
"""

import argparse
import json
from pathlib import Path

from rlhf.demo import reviews
from rlhf.errors import UserError, report_user_errors

PREFIX = "Film review:"
PAIRS, TEST_PAIRS = 2_000, 500


def judge(prompts: list[str], completions: list[str]) -> list[float]:
    """The demo's judge, which has never seen the prefix."""
    return reviews.judge([prompt.removeprefix(PREFIX).lstrip() for prompt in prompts], completions)


def write(folder: Path) -> None:
    """Write pairs and prompts, to train on and held out, as jsonl files.

    Raises:
        UserError: the folder exists, or the package with the reviews is not installed.
    """
    if folder.exists():
        raise UserError(f"{folder} exists; name another folder, or move it away")
    for path in reviews.write_files(folder, pairs=PAIRS).values():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if "text" in rows[0]:  # demonstrations: SmolLM2 writes already
            path.unlink()
            continue
        limit = TEST_PAIRS if path.stem == "pairs_test" else None
        path.write_text(
            "".join(json.dumps(_with_prefix(row), ensure_ascii=False) + "\n" for row in rows[:limit]), "utf-8"
        )


def _with_prefix(row: dict[str, str]) -> dict[str, str]:
    """A pair of completions of the prefix, or a prompt that begins with it; a space belongs to the word after it."""
    if "chosen" in row:
        return {"prompt": PREFIX, "chosen": f" {row['chosen']}", "rejected": f" {row['rejected']}"}
    return {"prompt": f"{PREFIX} {row['prompt']}"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new folder for the files")
    with report_user_errors():
        write(parser.parse_args().folder)
