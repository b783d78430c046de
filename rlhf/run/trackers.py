"""Experiment trackers beside metrics.jsonl: what is installed, how a run is named there, and tables of samples."""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.errors import UserError

PROJECT = "rlhf"


def check_installed(trackers: Sequence[str]) -> None:
    """Raise UserError for a tracker whose package is missing."""
    for tracker in trackers:
        if importlib.util.find_spec(tracker) is None:
            raise UserError(
                f"trackers names {tracker}, which is not installed: pip install 'tabular-rlhf[{tracker}]', or choose "
                "others with --trackers"
            )


def init_options(run_name: str, resumed: bool) -> dict[str, dict[str, Any]]:
    """What each tracker calls the run, by tracker. Trackio continues the run of that name if this run is resumed.

    A run from the start is a new one there too: folders of the same name, as of several demos, are different runs.
    """
    return {
        "wandb": {"name": run_name},
        "trackio": {"name": run_name, "resume": "allow" if resumed else "never"},
        "mlflow": {"run_name": run_name},
        "swanlab": {"name": run_name},
    }


def log_samples(trackers: Sequence[Any], step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Send rows of `samples.jsonl` to the trackers that have tables or texts; the others get none."""
    table = [
        {"step": step, "index": row["index"], "prompt": row["prompt"], "response": row["response"], **row["scores"]}
        for row in rows
    ]
    if not table:
        return
    for tracker in trackers:
        if tracker.name == "wandb":
            tracker.log_table("samples", columns=list(table[0]), data=[list(row.values()) for row in table], step=step)
        elif tracker.name == "trackio":
            import pandas
            import trackio  # pyright: ignore[reportMissingImports]

            tracker.log({"samples": trackio.Table(dataframe=pandas.DataFrame(table))}, step=step)
        elif tracker.name == "mlflow":
            import mlflow  # pyright: ignore[reportMissingImports]

            mlflow.log_table({name: [row[name] for row in table] for name in table[0]}, "samples.json")
        elif tracker.name == "swanlab":
            import swanlab  # pyright: ignore[reportMissingImports]

            texts = [swanlab.Text(f"{row['prompt']}{row['response']}", caption=f"{row['score']}") for row in table]
            tracker.log({"samples": texts}, step=step)
