"""The file that `rlhf compare` writes, as preference pairs: which answers are used, and which are held out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.config.shared import DataConfig
from rlhf.data.datasets import has_held_out_rows, load_rows, read_column, split_indices, split_rows
from rlhf.data.json_rows import JsonRows
from rlhf.errors import UserError

_NEEDED = ("pair", "prompt", "choice", "clearly", "a", "b", "repeat")


@dataclass(frozen=True)
class ComparedRows(JsonRows):
    """Answers of people, as columns `pair`, `prompt`, `chosen`, `rejected`, `clearly` and `tie`.

    The completions of a tie are in no order. A completion may be empty: somebody preferred it, or another, to it.
    """


def split_preferences(config: DataConfig, seed: int, with_ties: bool = False) -> tuple[Any, Any | None, str]:
    """Preference pairs to train on, held-out ones or None, and what was left out, in a sentence.

    Files with the columns `chosen` and `rejected` alone are split as they are, without a sentence. Of a file that
    `rlhf compare` wrote, skipped pairs, second answers to repeated pairs and, unless `with_ties`, ties are left out;
    all answers to one pair are on the same side of the split, and no tie is held out.

    Raises:
        UserError: a file cannot be read, or no preference is left.
    """
    rows, held_out = split_rows(config, seed)
    if not is_compared(rows):
        return rows, held_out, ""
    if has_held_out_rows(config):
        training, note = _usable(rows, config.path, with_ties)
        if held_out is not None and is_compared(held_out):
            held_out, _ = _usable(held_out, config.eval_path or config.path, with_ties=False)
        return training, held_out, note
    everything, note = _usable(load_rows(config.path or "", config.split), config.path, with_ties)
    names = list(dict.fromkeys(everything["pair"]))
    for_evaluation = {names[i] for i in split_indices(len(names), config.eval_fraction, seed)[1]}
    inside = [i for i, pair in enumerate(everything["pair"]) if pair not in for_evaluation]
    outside = [i for i, pair in enumerate(everything["pair"]) if pair in for_evaluation and not everything["tie"][i]]
    return _select(everything, inside), _select(everything, outside) if outside else None, note


def is_compared(rows: Any) -> bool:
    """Whether rows are those of a file that `rlhf compare` wrote."""
    return "choice" in rows.column_names


def _select(rows: ComparedRows, indices: Sequence[int]) -> ComparedRows:
    return ComparedRows(rows.select(indices).columns)


def _usable(rows: Any, path: str | None, with_ties: bool) -> tuple[ComparedRows, str]:
    """The rows that train, and a sentence with the counts of all.

    Raises:
        UserError: a column is missing, or no row is left.
    """
    missing = [name for name in _NEEDED if name not in rows.column_names]
    if missing:
        raise UserError(f"{path} has a column 'choice', but no {missing[0]!r}; is it a file of `rlhf compare`?")
    columns = {name: read_column(rows, name, path) for name in _NEEDED}
    used: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(_NEEDED, values, strict=True))
        choice = row["choice"]
        kind = "repeated" if row["repeat"] else {"tie": "ties", "skip": "skipped"}.get(choice, "preferences")
        counts[kind] += 1
        if kind == "preferences" or (kind == "ties" and with_ties):
            chosen, rejected = ("b", "a") if choice == "b" else ("a", "b")
            used.append(
                {"pair": row["pair"], "prompt": row["prompt"], "chosen": row[chosen], "rejected": row[rejected]}
                | {"clearly": bool(row["clearly"]), "tie": choice == "tie"}
            )
    if not used:
        raise UserError(f"{path} has no preferences ({_listed(counts)}); compare more pairs with `rlhf compare`")
    clearly = sum(row["clearly"] for row in used)
    left_out = {name: counts[name] for name in ("ties", "skipped", "repeated") if name != "ties" or not with_ties}
    ties = f" and {counts['ties']} ties" if with_ties else ""
    note = f"{path}: {counts['preferences']} preferences ({clearly} clear){ties}; left out: {_listed(left_out)}"
    return ComparedRows({name: [row[name] for row in used] for name in used[0]}), note


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
