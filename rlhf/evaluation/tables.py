"""Evaluations as tables for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any


def summary_table(before: Mapping[str, float] | None, after: Mapping[str, float]) -> Any:
    """A row for each statistic, with its interval; columns before and after training, or now alone."""
    columns = {"now": after} if before is None else {"before": before, "after": after}
    return statistics_table(f"held-out evaluation, {after['prompts']:.0f} prompts", columns)


def statistics_table(title: str, columns: Mapping[str, Mapping[str, float]]) -> Any:
    """A row for each statistic, with its interval where it has one; a column for each summary, by its name."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in columns:
        table.add_column(escape(name), justify="right")
    for name in dict.fromkeys(name for summary in columns.values() for name in summary):
        if name == "prompts" or name.endswith(("_low", "_high")):
            continue
        table.add_row(escape(name.replace("_", " ")), *(_cell(summary, name) for summary in columns.values()))
    return table


def comparison_table(result: Mapping[str, Any]) -> Any:
    """Several policies as columns: their statistics, and their win rates against each other.

    Args:
        result: of `compare_policies`.
    """
    from rich.markup import escape

    summaries: Mapping[str, Mapping[str, float]] = result["policies"]
    first = next(iter(summaries))
    prompts = f"{summaries[first]['prompts']:.0f} held-out prompts"
    columns = {
        name: {key: value for key, value in summary.items() if not key.startswith("win_rate")}
        for name, summary in summaries.items()
    }
    table = statistics_table(f"{prompts}; wins by the {result['by']}", columns)
    table.add_section()
    for other in summaries:
        cells = ["" if name == other else _cell(result["win_rates"][name][other], "win_rate") for name in summaries]
        table.add_row(f"wins against {escape(other)}", *cells)
    return table


def _cell(summary: Mapping[str, float], name: str) -> str:
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
