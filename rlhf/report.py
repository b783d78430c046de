"""A run folder as one HTML page: what changed, whether the training was healthy, and what the model now writes.

Three steps: `load` reads the folder into a `Run`, small pure functions turn it into numbers and shapes, and
`templates/report.html.jinja` says what goes where and what a healthy curve looks like. The charts are SVG written
here rather than by a plotting library: their text is the page's text, their colours follow the reader's light or dark
theme, and the same folder gives the same bytes. The page needs nothing from outside and no JavaScript.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import yaml

from rlhf.errors import UserError

Row = Mapping[str, Any]

NAN = float("nan")
SMALL, LARGE = (360, 190), (560, 310)
"""Width and height of a chart in SVG units, about one CSS pixel each."""
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
    partial = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(page.encode("utf-8", errors="replace"))  # a sampled text may hold lone surrogates
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)
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

    @property
    def steps(self) -> np.ndarray:
        """[N] the steps of `rows`."""
        return np.array([row["step"] for row in self.rows], dtype=float)

    def metric(self, name: str) -> np.ndarray:
        """[N] one metric, NaN where it is missing, null or infinite."""
        return np.array([_float(row.get(name)) for row in self.rows])


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


def _float(value: Any) -> float:
    """A finite number as a float, everything else (null, NaN, infinity, text) as NaN."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else NAN


# ---------------------------------------------------------------------------------------------------- numbers


def number(value: Any) -> str:
    """Three significant digits, with a true minus; a dash for what is missing or not finite."""
    value = _float(value)
    size = abs(value)
    if math.isnan(value):
        return "–"
    if size and not 0.001 <= size < 1e7:
        return _scientific(value)
    decimals = next((d for d, edge in enumerate((100, 10, 1, 0.01)) if size >= edge), 4) if size else 0
    return f"{value:,.{decimals}f}".replace("-", "−")


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", "−")


def signed(value: Any) -> str:
    return ("+" if _float(value) > 0 else "") + number(value)


def percent(value: Any) -> str:
    value = _float(value)
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


# ---------------------------------------------------------------------------------------------------- charts


@dataclass
class Chart:
    """Shapes in SVG units; the template draws them in this order and gives each class its colour."""

    size: tuple[int, int]
    x: "Axis"
    y: "Axis"
    x_name: str = "step"
    latest: str = ""
    areas: list[tuple[str, str]] = field(default_factory=list)
    """(class, path)"""
    lines: list[tuple[str, str]] = field(default_factory=list)
    """(class, path)"""
    timed: list[tuple[str, str]] = field(default_factory=list)
    """(progress through the run as "37%", path)"""
    points: list["Point"] = field(default_factory=list)
    marks: list[tuple[float, float, str]] = field(default_factory=list)
    """(x, y, text) of what the cursor can read off"""


class Point(NamedTuple):
    x: float
    y: float
    low: float
    """y of the interval's lower end"""
    high: float
    tooltip: str
    label: str


@dataclass(frozen=True)
class Axis:
    """A linear map from [low, high] to the SVG units [start, end]."""

    low: float
    high: float
    start: float
    end: float
    whole: bool = False
    """Ticks at whole numbers only."""

    @classmethod
    def around(cls, values: np.ndarray, start: float, end: float, zero: bool = False) -> "Axis":
        """The axis that holds all finite values with a little air, from (or around) zero if asked."""
        values = np.append(values[np.isfinite(values)], [0.0] if zero else [])
        low, high = float(values.min()), float(values.max())
        span = (high - low) or abs(high) or 1.0
        return cls(low if zero and low == 0 else low - 0.06 * span, high + 0.06 * span, start, end)

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """(position, label) of a few round numbers."""
        rough = (self.high - self.low) / 4
        base = 10.0 ** math.floor(math.log10(rough))
        steps = [base * m for m in (1, 2, 2.5, 5, 10) if not self.whole or (base * m).is_integer()]
        step = next(step for step in steps if step >= 0.999 * rough)
        values = step * np.arange(math.ceil(self.low / step - 1e-6), math.floor(self.high / step + 1e-6) + 1)
        return [(self(float(v)), self._label(float(v), step)) for v in values]

    @staticmethod
    def _label(value: float, step: float) -> str:
        """As many decimals as the distance between two ticks needs."""
        if abs(value) < step / 2:
            return "0"
        if not 5e-4 <= step < 5e5:
            return _scientific(value)
        if step >= 500:
            return f"{value / 1000:g}k".replace("-", "−")
        half = f"{step:.1e}"[2] == "5"  # 2.5, 0.25: one digit more
        return f"{value:.{max(0, math.ceil(-math.log10(step) - 1e-6) + half)}f}".replace("-", "−")


def _canvas(size: tuple[int, int]) -> tuple[tuple[float, float], tuple[float, float]]:
    """The SVG units between which x and y run: what is left beside the tick labels."""
    width, height = size
    return (42.0, width - 8.0), (height - 22.0, 8.0)


def _step_axis(run: Run, size: tuple[int, int]) -> Axis:
    """All curves share it, so that one can be read above the other."""
    last = max(row["step"] for row in [*run.rows, *run.evals])
    return Axis(0.0, float(max(last, 1)), *_canvas(size)[0], whole=True)


def smooth(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """[len(at)] the running mean centred on the indices `at`, of the points that are there; NaN stays NaN.

    Near the ends the window shrinks on both sides alike, so that a line goes on straight, but not below a fifth: the
    last value of a noisy curve should not be its last point.
    """
    half, last = smoothing_window(len(values)) // 2, len(values) - 1
    centres = np.clip(at, half // 5, last - half // 5)
    means = [_mean(values[i - r : i + r + 1]) for i in centres for r in [min(half, i, last - i)]]
    return np.where(np.isfinite(values[at]), means, NAN)


def smoothing_window(points: int) -> int:
    """Odd; 1 for so few points that each one can be seen."""
    return max(5, points // 15) | 1 if points >= 30 else 1


def _thin(values: np.ndarray, buckets: int = 200) -> np.ndarray:
    """Indices of at most 2 points a bucket, its lowest and its highest: long runs stay small and keep their spikes."""
    if len(values) <= 2 * buckets:
        return np.arange(len(values))
    keep = {0, len(values) - 1}
    for chunk in np.array_split(np.arange(len(values)), buckets):
        there = chunk[np.isfinite(values[chunk])]
        keep |= {there[values[there].argmin()], there[values[there].argmax()]} if there.size else {chunk[0]}
    return np.array(sorted(keep))


def _path(x: Axis, y: Axis, xs: np.ndarray, ys: np.ndarray) -> str:
    """SVG path data; a NaN interrupts the line, a lone point is a dot."""
    commands, pen = [], "M"
    for x_value, y_value in zip(xs, ys, strict=True):
        if math.isnan(x_value) or math.isnan(y_value):
            pen = "M"
        else:
            commands.append(f"{pen}{x(x_value):g},{y(y_value):g}" + ("h0" if pen == "M" else ""))
            pen = "L"
    return "".join(commands)


def _area(x: Axis, y: Axis, xs: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    there = np.isfinite(low) & np.isfinite(high)
    xs, low, high = xs[there], low[there], high[there]
    return _path(x, y, np.concatenate([xs, xs[::-1]]), np.concatenate([high, low[::-1]])) + "Z" if xs.size else ""


def curve(
    run: Run,
    metric: str,
    faint: str = "",
    held_out: str = "",
    zero: bool = False,
    floor: float = -math.inf,
    exact: bool = False,
    size: tuple[int, int] = SMALL,
) -> Chart | None:
    """One metric over the steps, with a second one faintly behind it and the held-out evaluations on top.

    What lies below `floor` is drawn on the axis; an `exact` metric has no noise to smooth away. None if the run has no
    finite value of `metric`.
    """
    steps, values = run.steps, run.metric(metric)
    if not np.isfinite(values).any():
        return None
    behind = run.metric(faint) if faint else np.full_like(values, NAN)
    at = np.array([row["step"] for row in run.evals], dtype=float)
    marks, low, high = (
        np.array([_float(row.get(held_out + end)) for row in run.evals]) for end in ("", "_low", "_high")
    )
    shown = np.maximum(np.concatenate([values, behind, marks, low, high]), floor)
    x, y = _step_axis(run, size), Axis.around(shown, *_canvas(size)[1], zero=zero)
    kept = _thin(values)
    latest = values[np.isfinite(values)][-1] if exact else _latest(values)
    chart = Chart(size, x, y, latest=number(latest))
    chart.areas = [("band", _area(x, y, at, low, high))]
    chart.lines = [
        ("faint", _path(x, y, steps[kept], smooth(behind, kept))),
        ("raw", _path(x, y, steps[kept], values[kept])),
        ("smooth", _path(x, y, steps[kept], values[kept] if exact else smooth(values, kept))),
        ("held", _path(x, y, at, marks)),
    ]
    chart.points = _held_out(run, x, y, at, held_out)
    chart.marks = _marks(x, y, steps[kept], values[kept])
    return chart


def _latest(values: np.ndarray) -> float:
    return _mean(values[-smoothing_window(len(values)) :])


def _marks(x: Axis, y: Axis, steps: np.ndarray, values: np.ndarray) -> list[tuple[float, float, str]]:
    pairs = zip(steps.tolist(), values.tolist(), strict=True)
    return [(x(at), y(value), f"step {at:.0f}: {number(value)}") for at, value in pairs if math.isfinite(value)]


def _held_out(run: Run, x: Axis, y: Axis, at: np.ndarray, name: str, labelled: Sequence[int] = ()) -> list[Point]:
    """A point with its interval for each evaluation's measure `name`; `at` is where they stand on the x axis."""
    points = []
    for position, row in zip(at, run.evals, strict=True):
        value = _float(row.get(name))
        if math.isfinite(value) and math.isfinite(position):
            low, high = (_float(row.get(name + end)) for end in ("_low", "_high"))
            low, high = (value if math.isnan(bound) else bound for bound in (low, high))
            text = f"held-out, step {row['step']}: {number(value)}"
            label = f"step {row['step']}" if row["step"] in labelled else ""
            points.append(Point(x(position), y(value), y(low), y(high), text, label))
    return points


def stack(run: Run, metrics: Sequence[str], total: str) -> Chart | None:
    """Smoothed metrics as layers under a line for the total that they are parts of. None if it was not logged."""
    steps, whole = run.steps, run.metric(total)
    if not np.isfinite(whole).any():
        return None
    kept = _thin(whole)
    layers = [np.nan_to_num(smooth(run.metric(name), kept)) for name in metrics]
    sums, line = np.cumsum([np.zeros(len(kept)), *layers], axis=0), smooth(whole, kept)
    x, y = _step_axis(run, SMALL), Axis.around(np.append(sums, line), *_canvas(SMALL)[1], zero=True)
    chart = Chart(SMALL, x, y, latest=f"{number(_latest(whole))} s")
    for layer, (low, high) in enumerate(pairwise(sums), start=1):
        chart.areas.append((f"layer-{layer}", _area(x, y, steps[kept], low, high)))
    chart.lines = [("total", _path(x, y, steps[kept], line))]
    chart.marks = _marks(x, y, steps[kept], whole[kept])
    return chart


def score_against_kl(run: Run, labelled: Sequence[int]) -> Chart | None:
    """The frontier: what each nat of KL bought. Training as a line coloured by step, held-out evaluations on top."""
    kl, score = run.metric("objective/kl"), run.metric("objective/score")
    if not np.isfinite(kl + score).any():
        return None
    at = np.array([_float(row.get("kl")) for row in run.evals])
    bounds = np.array([_float(row.get(name)) for row in run.evals for name in ("score", "score_low", "score_high")])
    nodes = np.unique(np.linspace(0, len(kl) - 1, 120).astype(int))
    kl, score = smooth(kl, nodes), smooth(score, nodes)
    x_range, y_range = _canvas(LARGE)
    x = Axis.around(np.append(kl, at), *x_range, zero=True)
    y = Axis.around(np.append(score, bounds), *y_range)
    chart = Chart(LARGE, x, y, x_name="KL, nats")
    for i in range(len(nodes) - 1):
        chart.timed.append((f"{100 * i / len(nodes):.0f}%", _path(x, y, kl[i : i + 2], score[i : i + 2])))
    chart.lines = [("held", _path(x, y, at, np.array([_float(row.get("score")) for row in run.evals])))]
    chart.points = _held_out(run, x, y, at, "score", labelled)
    return chart


# ---------------------------------------------------------------------------------------------------- findings


@dataclass(frozen=True)
class Comparison:
    """The run at its start and at the checkpoint that was chosen."""

    before: Row
    after: Row
    held_out: bool
    """False: there are not two evaluations to compare, so these are means over the first and last tenth of training."""

    def change(self, name: str) -> float:
        return _float(self.after.get(name)) - _float(self.before.get(name))


def compare(run: Run) -> Comparison:
    """The first evaluation against the best later one: the last that was marked so, else the one of the best score."""
    if len(run.evals) >= 2:
        later = run.evals[1:]
        marked = [row for row in later if row.get("best") is True]
        best = max(later, key=lambda row: np.nan_to_num(_float(row.get("score")), nan=-math.inf))
        return Comparison(run.evals[0], marked[-1] if marked else best, held_out=True)
    names = {"score": "objective/score", "kl": "objective/kl", "entropy": "policy/entropy"}
    names |= {name: f"response/{name}" for name in ("length", "repetition", "eos_fraction")}
    first = {name: _mean(run.metric(metric)[: _tenth(run)]) for name, metric in names.items()}
    last = {name: _mean(run.metric(metric)[-_tenth(run) :]) for name, metric in names.items()}
    return Comparison({"step": run.rows[0]["step"], **first}, {"step": run.rows[-1]["step"], **last}, held_out=False)


def _tenth(run: Run) -> int:
    return max(1, len(run.rows) // 10)


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else NAN


def concerns(run: Run, outcome: Comparison) -> list[str]:
    """What deserves a second look before the model is trusted. What was not logged gives no concern."""

    def was(name: str) -> float:
        return _float(outcome.before.get(name))

    def now(name: str) -> float:
        return _float(outcome.after.get(name))

    def at_end(metric: str) -> float:
        return _mean(run.metric(metric)[-_tenth(run) :])

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
        broken = [row["step"] for row in run.rows if name in row and math.isnan(_float(row[name]))]
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
            first, last = _mean(values[: _tenth(run)]), _mean(values[-_tenth(run) :])
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
        return sum(_float(value) for value in self.row.get("token_kl") or [])


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
    for token, divergence in zip(tokens, map(_float, divergences), strict=True):
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
    engine.tests["known"] = lambda value: math.isfinite(_float(value))
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
        seconds_per_step=_mean(seconds),
        tokens_per_second=_mean(run.metric("throughput/response_tokens_per_s")),
        peak_memory=max(memory[np.isfinite(memory)], default=NAN),
        is_ppo=any(name.startswith("objective/") for row in run.rows for name in row),
        window=smoothing_window(len(run.rows)),
        curve=lambda metric, **options: curve(run, metric, **options),
        stack=lambda metrics, total: stack(run, metrics, total),
        frontier=score_against_kl(run, (outcome.before["step"], outcome.after["step"])),
        LARGE=LARGE,
        LEVELS=LEVELS,
        evaluated=evaluated(run),
        metrics=metric_table(run),
        answers=answers(run, outcome.after["step"]),
        config=sections(run.config),
        versions=_flatten(run.environment.get("versions") or {}, ""),
        environment=_flatten({k: v for k, v in run.environment.items() if k not in ("versions", "command")}, ""),
    )
