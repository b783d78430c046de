"""A run folder as one HTML page: what changed, whether the training was healthy, and what the model now writes.

Three steps: `load` reads the folder into a `Run`, small pure functions turn it into findings, numbers and text (here)
and into shapes (`charts.py`), and `templates/report.html.jinja` says what goes where and what a healthy curve looks
like. The same folder gives the same bytes; the page needs nothing from outside and no JavaScript.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml

from rlhf.errors import UserError
from rlhf.report.charts import (
    LARGE,
    NAN,
    Row,
    curve,
    finite,
    mean,
    number,
    score_against_kl,
    series,
    smoothing_window,
    stack,
)
from rlhf.run.files import write_bytes

LEVELS = (0.1, 0.5, 1.0, 2.0)
"""|log pi - log pi_ref| in nats from which a token is drawn in the next stronger colour."""


def write_report(run_dir: Path, output: Path | None = None) -> Path:
    """Write the report of `run_dir` to `output` (default: `run_dir/report.html`) and return where it is.

    The page is swapped in whole: a reader never sees half of it, and a failure leaves the old one.

    Raises:
        UserError: `run_dir` does not exist, has no metrics, or its config or environment cannot be read.
    """
    page = render(load(run_dir))
    output = output or run_dir / "report.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(output, page.encode("utf-8", errors="replace"))  # a sampled text may hold lone surrogates
    return output


# ---------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Run:
    name: str
    rows: list[Row]
    """metrics.jsonl by step; of a step that was run again after a resume, the later row."""
    evals: list[Row]
    """eval.jsonl by step, likewise."""
    samples: list[Row]
    """samples.jsonl by index, then step, likewise."""
    config: Row
    environment: Row
    sources: list[tuple[str, str]]
    """Each file of the folder and what was found in it, for the footer."""

    def metric(self, name: str) -> np.ndarray:
        """[N] one metric, NaN where it is missing, null or infinite."""
        return series(self.rows, name)


def load(run_dir: Path) -> Run:
    if not run_dir.is_dir():
        raise UserError(f"there is no run folder at {run_dir}")
    sources: list[tuple[str, str]] = []
    rows = _read_rows(run_dir / "metrics.jsonl", ("step",), sources)
    if not rows:
        raise UserError(f"no training steps in {run_dir / 'metrics.jsonl'}: is {run_dir} a run folder?")
    return Run(
        name=run_dir.resolve().name,
        rows=rows,
        evals=_read_rows(run_dir / "eval.jsonl", ("step",), sources),
        samples=_read_rows(run_dir / "samples.jsonl", ("index", "step"), sources),
        config=_read_mapping(run_dir / "config.yaml", yaml.safe_load, sources),
        environment=_read_mapping(run_dir / "environment.json", json.loads, sources),
        sources=sources,
    )


def _read_rows(path: Path, keys: tuple[str, ...], sources: list[tuple[str, str]]) -> list[Row]:
    """The objects of a jsonl file that have `keys`, sorted by them; the last one wins. [] if there is no file.

    A kill can leave half a line, at the end or (after a resume) in the middle: the footer counts what was skipped.
    """
    if not path.is_file():
        sources.append((path.name, "not there"))
        return []
    found, skipped = {}, 0
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):  # splitlines() also cuts at U+2028
        try:
            row = json.loads(line)
            identity = {key: int(row[key]) for key in keys}
            found[tuple(identity.values())] = row | identity
        except (ValueError, TypeError, KeyError, OverflowError):
            skipped += bool(line.strip())
    note = f"{len(found)} rows" + (f", {skipped} unreadable skipped" if skipped else "")
    sources.append((path.name, note))
    return [found[key] for key in sorted(found)]


def _read_mapping(path: Path, parse: Callable[[str], Any], sources: list[tuple[str, str]]) -> Row:
    if not path.is_file():
        sources.append((path.name, "not there"))
        return {}
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} should hold a mapping, not {type(content).__name__}")
    sources.append((path.name, f"{len(content)} entries"))
    return content


# ---------------------------------------------------------------------------------------------------- numbers


def signed(value: Any) -> str:
    return ("+" if finite(value) > 0 else "") + number(value)


def percent(value: Any) -> str:
    value = finite(value)
    return "–" if math.isnan(value) else f"{100 * value:.1f}%"


def parameters(count: float | int) -> str:
    """1.2B, 950M, 20.4k: how people say the size of a model."""
    unit, suffix = next(((u, s) for u, s in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if count >= u), (1, ""))
    return f"{count / unit:.3g}{suffix}"


def duration(seconds: float | int) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if minutes < 1:
        return f"{number(seconds)} s"
    return f"{int(minutes)} min {int(seconds % 60)} s" if hours < 1 else f"{int(hours)} h {int(minutes % 60)} min"


# ---------------------------------------------------------------------------------------------------- findings


@dataclass(frozen=True)
class Comparison:
    """The run at its start and at the checkpoint that was chosen."""

    before: Row
    after: Row
    held_out: bool
    """False: there are not two evaluations to compare, so these are means over the first and last tenth of training."""

    def change(self, name: str) -> float:
        return finite(self.after.get(name)) - finite(self.before.get(name))


def compare(run: Run) -> Comparison:
    """The first evaluation against the best later one: the last that was marked so, else the one of the best score."""
    if len(run.evals) >= 2:
        later = run.evals[1:]
        marked = [row for row in later if row.get("best") is True]
        best = max(later, key=lambda row: np.nan_to_num(finite(row.get("score")), nan=-math.inf))
        return Comparison(run.evals[0], marked[-1] if marked else best, held_out=True)
    names = {"score": "objective/score", "kl": "objective/kl", "entropy": "policy/entropy"}
    names |= {name: f"response/{name}" for name in ("length", "repetition", "eos_fraction")}
    first = {name: mean(run.metric(metric)[: _tenth(run)]) for name, metric in names.items()}
    last = {name: mean(run.metric(metric)[-_tenth(run) :]) for name, metric in names.items()}
    return Comparison({"step": run.rows[0]["step"], **first}, {"step": run.rows[-1]["step"], **last}, held_out=False)


def _tenth(run: Run) -> int:
    return max(1, len(run.rows) // 10)


def concerns(run: Run, outcome: Comparison) -> list[str]:
    """What deserves a second look before the model is trusted. What was not logged gives no concern."""

    def was(name: str) -> float:
        return finite(outcome.before.get(name))

    def now(name: str) -> float:
        return finite(outcome.after.get(name))

    def at_end(metric: str) -> float:
        return mean(run.metric(metric)[-_tenth(run) :])

    found = []
    if now("score") <= was("score") and outcome.after["step"] > outcome.before["step"]:
        kept = ", so the first weights remain the best" if outcome.held_out else ""
        found.append(f"The score did not rise: {number(was('score'))} before, {number(now('score'))} after{kept}.")
    kl = np.fmax(now("kl"), at_end("objective/kl"))
    if kl > 10:
        found.append(f"KL above 10 nats ({number(kl)}): the policy may have left what its reward was made for.")
    if now("length") < 0.6 * was("length"):
        share = percent(now("length") / was("length"))
        found.append(f"Responses fell to {share} of their first length: short answers may be paying too well.")
    if now("distinct_2") < min(0.8, was("distinct_2")) and now("distinct_2") < 0.9 * was("distinct_2"):
        change = f"from {number(was('distinct_2'))} to {number(now('distinct_2'))}"
        found.append(f"Distinct-2 fell {change}: look for stock phrases in the samples.")
    if now("entropy") < 0.2 * was("entropy"):
        found.append(f"Entropy fell from {number(was('entropy'))} to {number(now('entropy'))}: little is explored.")
    clipped = run.metric("policy/clip_fraction") > 0.3
    if clipped.mean() > 0.05:
        found.append(f"Clip fraction above 0.3 in {clipped.sum()} of {clipped.size} steps: the updates are too large.")
    if (explained := at_end("value/explained_variance")) < 0:
        found.append(f"Explained variance negative at the end ({number(explained)}): the critic is worse than a mean.")
    for name in ("policy/loss", "value/loss", "policy/grad_norm"):
        broken = [row["step"] for row in run.rows if name in row and math.isnan(finite(row[name]))]
        if broken:
            found.append(f"{name} is not finite in {len(broken)} of {len(run.rows)} steps, first at step {broken[0]}.")
    return found


def metric_table(run: Run) -> list[tuple[str, float, float, float, float]]:
    """(name, mean of the first tenth, mean of the last tenth, lowest, highest) of all that was logged as a number."""
    table = []
    for name in sorted({name for row in run.rows for name in row} - {"step"}):
        values = run.metric(name)
        there = values[np.isfinite(values)]
        if there.size:
            first, last = mean(values[: _tenth(run)]), mean(values[-_tenth(run) :])
            table.append((name, first, last, float(there.min()), float(there.max())))
    return table


def evaluated(run: Run) -> list[str]:
    """The measures of all evaluations but their intervals, in the order in which they were written."""
    names = dict.fromkeys(name for row in run.evals for name, value in row.items() if not isinstance(value, bool))
    return [name for name in names if name != "step" and not name.endswith(("_low", "_high"))]


# ---------------------------------------------------------------------------------------------------- text


@dataclass(frozen=True)
class Answer:
    title: str
    row: Row
    tokens: list[tuple[str, str, str]]
    """(text, colour class, tooltip); empty: show the plain response."""

    @property
    def kl(self) -> float:
        return sum(finite(value) for value in self.row.get("token_kl") or [])


def answers(run: Run, chosen: int) -> list[tuple[Row, list[Answer]]]:
    """For each held-out prompt its first sample's row, and the first answer beside the one at step `chosen`."""
    steps = sorted({row["step"] for row in run.samples})
    if not steps:
        return []
    after = chosen if chosen in steps[1:] else steps[-1]
    titles = {steps[0]: "Before"} | ({after: "After"} if after > 0 else {})
    pairs = []
    for index in sorted({row["index"] for row in run.samples}):
        rows = {row["step"]: row for row in run.samples if row["index"] == index}
        shown = {step: title for step, title in titles.items() if step in rows}
        sides = [Answer(title, rows[at], coloured(rows[at]) if at == after > 0 else []) for at, title in shown.items()]
        if sides:
            pairs.append((sides[0].row, sides))
    return pairs


def coloured(row: Row) -> list[tuple[str, str, str]]:
    """Each response token with the class of its log pi - log pi_ref: `more-3`, `less-1`, or none when it is small."""
    tokens, divergences = row.get("tokens") or [], row.get("token_kl") or []
    if len(tokens) != len(divergences):
        return []
    pieces = []
    for token, divergence in zip(tokens, map(finite, divergences), strict=True):
        level = sum(abs(divergence) >= edge for edge in LEVELS)
        style = f"{'more' if divergence > 0 else 'less'}-{level}" if level else ""
        pieces.append((str(token), style, f"{signed(divergence)} nats"))
    return pieces


def setting(config: Row, key: str) -> Any:
    """The value of a dotted key such as `ppo.lr`, None if there is none."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def sections(config: Row) -> list[tuple[str, list[tuple[str, str]]]]:
    """The config as (section, [(dotted key, value)]), the keys without a section first."""
    plain = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    nested = {key: value for key, value in config.items() if isinstance(value, Mapping)}
    blocks = {"run": plain, **nested} if plain else nested
    return [(str(name), list(_flatten(block, ""))) for name, block in blocks.items()]


def _flatten(block: Row, prefix: str) -> list[tuple[str, str]]:
    flat = []
    for key, value in block.items():
        if isinstance(value, Mapping) and value:
            flat += _flatten(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            flat.append((f"{prefix}{key}", text))
    return flat


# ---------------------------------------------------------------------------------------------------- the page


def render(run: Run) -> str:
    """The page as text. Everything that came from the folder is escaped by the template engine."""
    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.globals |= {f.__name__: f for f in (number, signed, percent, duration, parameters)}
    engine.tests["known"] = lambda value: math.isfinite(finite(value))
    outcome = compare(run)
    seconds, memory = run.metric("time/step"), run.metric("memory/peak_mb")
    batch = setting(run.config, "ppo.rollout_batch_size")
    return engine.get_template("report.html.jinja").render(
        run=run,
        steps=run.rows[-1]["step"],
        model=setting(run.config, "model.path"),
        episodes=batch * run.rows[-1]["step"] if isinstance(batch, int) else None,
        outcome=outcome,
        warnings=concerns(run, outcome),
        seconds=float(np.nansum(seconds)),
        seconds_per_step=mean(seconds),
        tokens_per_second=mean(run.metric("throughput/response_tokens_per_s")),
        peak_memory=max(memory[np.isfinite(memory)], default=NAN),
        is_ppo=any(name.startswith("objective/") for row in run.rows for name in row),
        window=smoothing_window(len(run.rows)),
        curve=partial(curve, run.rows, run.evals),
        stack=partial(stack, run.rows, run.evals),
        frontier=score_against_kl(run.rows, run.evals, (outcome.before["step"], outcome.after["step"])),
        LARGE=LARGE,
        LEVELS=LEVELS,
        evaluated=evaluated(run),
        metrics=metric_table(run),
        answers=answers(run, outcome.after["step"]),
        config=sections(run.config),
        versions=_flatten(run.environment.get("versions") or {}, ""),
        environment=_flatten({k: v for k, v in run.environment.items() if k not in ("versions", "command")}, ""),
    )
