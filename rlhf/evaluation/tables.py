"""Evaluations as tables for the terminal."""

from collections.abc import Sequence
from typing import Any


def summary_table(before: dict[str, float] | None, after: dict[str, float]) -> Any:
    """A row for each statistic, with its interval; columns before and after training, or now alone."""
    from rich.table import Table

    table = Table(title=f"held-out evaluation, {after['prompts']:.0f} prompts", title_justify="left")
    table.add_column("")
    for name in ("before", "after") if before is not None else ("now",):
        table.add_column(name, justify="right")
    for name in after:
        if name == "prompts" or name.endswith(("_low", "_high")):
            continue
        cells = [_cell(summary, name) for summary in (before, after) if summary is not None]
        table.add_row(name.replace("_", " "), *cells)
    return table


def _cell(summary: dict[str, float], name: str) -> str:
    if name not in summary:
        return ""
    interval = f"  [{summary[name + '_low']:.3f}, {summary[name + '_high']:.3f}]" if name + "_low" in summary else ""
    return f"{summary[name]:.3f}{interval}"


def responses_table(samples: Sequence[dict[str, Any]], step: int, count: int = 4) -> Any:
    """Responses before training (step 0) beside those of a later step, for the first `count` prompts.

    Args:
        samples: rows of `samples.jsonl`.
    """
    from rich.markup import escape
    from rich.table import Table

    by_prompt: dict[int, dict[int, dict[str, Any]]] = {}
    for row in samples:
        by_prompt.setdefault(row["index"], {})[row["step"]] = row
    table = Table(title="the same prompts, before and after", title_justify="left", show_lines=True)
    for name in ("before", "after"):
        table.add_column(name, ratio=1)
    for rows in list(by_prompt.values())[:count]:
        cells = [rows.get(s, {"prompt": "", "response": ""}) for s in (0, step)]
        table.add_row(*(f"[bold]{escape(cell['prompt'])}[/]{escape(cell['response'])}" for cell in cells))
    return table
