"""Public data sets whose columns are not ours, rewritten as jsonl: `python recipes/public/data.py gsm8k data/gsm8k`.

`gsm8k` gives prompts with answers; `hh` (Anthropic's helpful and harmless dialogues) demonstrations, pairs and prompts;
`ultrafeedback` prompts alone, because its pairs fit as they are. Each has training files and held-out ones (`_test`).
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rlhf.errors import UserError, report_user_errors

Row = dict[str, Any]
INSTRUCTION = "Reason step by step. End with a line of #### and the number alone."
SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def gsm8k_rows(row: Row) -> dict[str, Row]:
    """From `question` and `answer`, which ends with `#### 72`: a prompt for chat models, and the number as text."""
    number = row["answer"].split("####")[-1].strip().replace(",", "")
    content = f"{row['question'].strip()}\n{INSTRUCTION}"
    return {"prompts": {"prompt": [{"role": "user", "content": content}], "answer": number}}


def hh_messages(dialogue: str) -> list[dict[str, str]]:
    """A dialogue, `\\n\\nHuman: ...\\n\\nAssistant: ...`, as messages."""
    messages: list[dict[str, str]] = []
    for part in dialogue.split("\n\n"):
        speaker, colon, text = part.partition(":")
        if colon and speaker in SPEAKERS:
            messages.append({"role": SPEAKERS[speaker], "content": text.strip()})
        elif messages:  # a blank line within a message
            messages[-1]["content"] += f"\n\n{part}"
    return messages


def hh_rows(row: Row) -> dict[str, Row]:
    """From `chosen` and `rejected`, which are whole dialogues: none where they differ before the last message.

    The chosen dialogue is a demonstration, the two last messages are a pair, and what comes before them is a prompt.
    """
    chosen, rejected = hh_messages(row["chosen"]), hh_messages(row["rejected"])
    prompt = chosen[:-1]
    fits = (
        prompt == rejected[:-1]
        and [message["role"] for message in chosen] == ["user", "assistant"] * (len(chosen) // 2)
        and all(message["content"] for message in [*chosen, *rejected[-1:]])
        and rejected[-1]["role"] == "assistant"
    )
    if not fits:
        return {}
    pair = {"prompt": prompt, "chosen": chosen[-1]["content"], "rejected": rejected[-1]["content"]}
    return {"demonstrations": {"messages": chosen}, "pairs": pair, "prompts": {"prompt": prompt}}


def ultrafeedback_rows(row: Row) -> dict[str, Row]:
    """From `chosen`, which is a conversation: the messages before the last one as a prompt."""
    return {"prompts": {"prompt": row["chosen"][:-1]}}


SETS: dict[str, tuple[str, str | None, Callable[[Row], dict[str, Row]]]] = {
    "gsm8k": ("openai/gsm8k", "main", gsm8k_rows),
    "hh": ("Anthropic/hh-rlhf", None, hh_rows),
    "ultrafeedback": ("trl-lib/ultrafeedback_binarized", None, ultrafeedback_rows),
}
"""Name -> hub id, its configuration, and the rows that a row becomes, by the file that they go to."""


def write_files(rows: Iterable[Any], convert: Callable[[Row], dict[str, Row]], folder: Path, ending: str) -> int:
    """Write a file for each kind of row, and return how many rows fit none."""
    lines: dict[str, list[str]] = {}
    dropped = 0
    for row in rows:
        converted = convert(row)
        dropped += not converted
        for name, new in converted.items():
            lines.setdefault(name, []).append(json.dumps(new, ensure_ascii=False) + "\n")
    for name, texts in lines.items():
        (folder / f"{name}{ending}.jsonl").write_text("".join(texts), encoding="utf-8")
    return dropped


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", choices=SETS, help="the data set")
    parser.add_argument("folder", type=Path, help="a folder that does not exist yet")
    options = parser.parse_args(arguments)
    if options.folder.exists():
        raise UserError(f"the folder {options.folder} exists already: name a new one, or use the data that is in it")
    import datasets

    hub_id, configuration, convert = SETS[options.name]
    splits = {"": "train", "_test": "test"}
    loaded = {ending: datasets.load_dataset(hub_id, configuration, split=split) for ending, split in splits.items()}
    options.folder.mkdir(parents=True)
    for ending, rows in loaded.items():
        dropped = write_files(rows, convert, options.folder, ending)
        print(f"{splits[ending]}: {len(rows)} rows, {dropped} of them left out")
    return 0


if __name__ == "__main__":
    with report_user_errors():
        sys.exit(main())
