"""What the answers say: how reliable those who compared are, and which origin's answers win.

Of a pair that somebody saw twice, agreement and win rates count the first answer. Pairs of two equal answers are not
shown, and count nowhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rlhf.data.agreement import Share, agreement, first_answers, krippendorff_alpha, labels_by_pair, self_consistency
from rlhf.people.pairs import other
from rlhf.people.store import Store
from rlhf.people.win_rates import OriginResult, Outcome, compare_origins
from tabular.core.statistics import Interval

Row = dict[str, Any]


@dataclass(frozen=True)
class AnnotatorSummary:
    """The answers of one person, or of all."""

    name: str
    answers: int
    decided: int
    """Answers that prefer one side."""
    clearly: int
    ties: int
    skipped: int
    seconds: float | None
    """Median per answer."""
    left: Share
    """Of the decided answers, those that prefer the left side: far from 1/2, the side matters."""
    consistent: Share
    """Of the pairs seen twice with sides swapped, those with the same choice."""
    longer: Share
    """Of the decided answers with texts of different length, those that prefer the longer one."""
    reward_model: Share
    """Of the decided answers with different scores, those that prefer the answer with the higher one."""


@dataclass(frozen=True)
class Summary:
    """Everything the page and the table show."""

    pairs: int
    compared: int
    """Pairs with at least one answer that was not skipped."""
    identical: int
    everybody: AnnotatorSummary
    annotators: list[AnnotatorSummary]
    seen_by_two: int
    """Pairs with answers of at least two people."""
    agreement: Share
    alpha: float | None
    origins: list[OriginResult]


def summarise(store: Store) -> Summary:
    """The summary of all answers in a store."""
    rows = store.rows()
    names = sorted({row["annotator"] for row in rows})
    labels = labels_by_pair(rows)
    return Summary(
        pairs=store.count(),
        compared=len(labels),
        identical=store.identical(),
        everybody=_of_rows("everybody", rows),
        annotators=[_of_rows(name, [row for row in rows if row["annotator"] == name]) for name in names],
        seen_by_two=sum(len(choices) > 1 for choices in labels),
        agreement=agreement(labels),
        alpha=krippendorff_alpha(labels),
        origins=compare_origins(_outcomes(rows)),
    )


def _of_rows(name: str, rows: Sequence[Row]) -> AnnotatorSummary:
    decided = [row for row in rows if row["choice"] in ("a", "b")]
    seconds = [row["seconds"] for row in rows if row["seconds"] is not None]
    return AnnotatorSummary(
        name=name,
        answers=len(rows),
        decided=len(decided),
        clearly=sum(row["clearly"] for row in decided),
        ties=sum(row["choice"] == "tie" for row in rows),
        skipped=sum(row["choice"] == "skip" for row in rows),
        seconds=median(seconds) if seconds else None,
        left=_share(row["choice"] == row["left"] for row in decided),
        consistent=self_consistency(rows),
        longer=_prefers_higher(decided, lambda row, answer: len(row[answer])),
        reward_model=_prefers_higher(decided, lambda row, answer: row[f"score_{answer}"]),
    )


def _share(values: Any) -> Share:
    values = list(values)
    return Share(sum(values), len(values))


def _prefers_higher(decided: Sequence[Row], value: Any) -> Share:
    """How often the answer with the higher value was chosen, of those first answers where values differ."""
    pairs = [(value(row, row["choice"]), value(row, other(row["choice"]))) for row in decided if not row["repeat"]]
    return _share(
        chosen > rejected for chosen, rejected in pairs if None not in (chosen, rejected) and chosen != rejected
    )


def _outcomes(rows: Sequence[Row]) -> list[Outcome]:
    """One outcome for each pair: the mean over those who compared it."""
    points: dict[str, list[float]] = {}
    origins: dict[str, tuple[str, str]] = {}
    for row in first_answers(rows):
        points.setdefault(row["pair"], []).append({"a": 1.0, "tie": 0.5, "b": 0.0}[row["choice"]])
        origins[row["pair"]] = (row["origin_a"], row["origin_b"])
    return [Outcome(*origins[pair], sum(values) / len(values)) for pair, values in points.items()]


# ------------------------------------------------------------------------------------------------------------- as text


def percent(value: float) -> str:
    return f"{100 * value:.0f}%"


def bounds(interval: Interval | None, form: Any = percent) -> str:
    """An interval in words."""
    return "" if interval is None else f"{form(interval.low)} to {form(interval.high)}"


@dataclass(frozen=True)
class Measure:
    """A statistic over everybody, as text."""

    name: str
    value: str
    meaning: str
    total: int = 0
    """What the share is of; 0 for other statistics."""
    interval: Interval | None = None

    @property
    def bounds(self) -> str:
        return bounds(self.interval)


def measures(summary: Summary) -> list[Measure]:
    """The statistics over everybody; a dash where there is no data yet."""
    everybody = summary.everybody
    shares = {
        "self-consistency": (everybody.consistent, "Same choice when a pair comes again with sides swapped."),
        "left preferred": (everybody.left, "Near 50%, unless the side matters."),
        "longer preferred": (everybody.longer, "Far above 50%, a reward model learns length."),
        "agreement of two people": (summary.agreement, "Same choice on the same pair: one answer, the other, or tie."),
        "agreement with the reward model": (everybody.reward_model, "The preferred answer has the higher score."),
    }
    alpha = "–" if summary.alpha is None else f"{summary.alpha:.2f}"
    nominal = Measure("Krippendorff's alpha", alpha, "Agreement of two people beyond chance: 1 is full, 0 chance.")
    rows = [
        Measure(
            name=name,
            value="–" if share.interval is None else percent(share.interval.value),
            meaning=meaning,
            total=share.total,
            interval=share.interval,
        )
        for name, (share, meaning) in shares.items()
    ]
    return [*rows[:4], nominal, rows[4]]


def table(summary: Summary) -> list[Any]:
    """The summary as tables for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    quality = Table(title=headline(summary), title_justify="left")
    for name in ("", "share", "95% interval"):
        quality.add_column(name)
    for measure in measures(summary):
        total = f" of {measure.total}" if measure.total else ""
        quality.add_row(measure.name, measure.value + total, measure.bounds)
    people = Table(title="people", title_justify="left")
    for name in ("", "answers", "clearly", "ties", "skipped", "seconds", "left", "consistent"):
        people.add_column(name, justify="left" if not name else "right")
    for cells in people_rows(summary):
        people.add_row(*map(escape, cells))
    if not summary.origins:
        return [quality, people]
    origins = Table(title="win rates by origin, ties half", title_justify="left")
    for name in ("", "pairs", "win rate", "95% interval", "Bradley-Terry, nats", "95% interval"):
        origins.add_column(name, justify="left" if not name else "right")
    for cells in origin_rows(summary):
        origins.add_row(*map(escape, cells))
    return [quality, people, origins]


def headline(summary: Summary) -> str:
    """How much was compared, in a line."""
    text = f"{summary.compared} of {summary.pairs} pairs compared, {summary.everybody.answers} answers"
    return text + (f"; {summary.identical} pairs of equal answers not shown" if summary.identical else "")


def people_rows(summary: Summary) -> list[tuple[str, ...]]:
    """The cells of each person's row, and of everybody's where there are several people."""
    people = [*summary.annotators, summary.everybody] if len(summary.annotators) > 1 else summary.annotators

    def share(value: Share) -> str:
        return "–" if value.interval is None else percent(value.interval.value)

    return [
        (
            person.name,
            *map(str, (person.answers, person.clearly, person.ties, person.skipped)),
            "–" if person.seconds is None else f"{person.seconds:.1f}",
            share(person.left),
            share(person.consistent),
        )
        for person in people
    ]


def origin_rows(summary: Summary) -> list[tuple[str, ...]]:
    """The cells of each origin's row."""

    def nats(value: float) -> str:
        return f"{value:+.2f}".replace("-", "−")

    return [
        (
            result.origin,
            str(result.pairs),
            percent(result.win_rate.value),
            bounds(result.win_rate),
            nats(result.strength.value),
            bounds(result.strength, nats),
        )
        for result in summary.origins
    ]


def render(summary: Summary, stylesheet: str | None = None) -> str:
    """The summary as an HTML page.

    Args:
        stylesheet: address of the style; None: inside the page, which is then one file.
    """
    import jinja2

    folder = Path(__file__).with_name("page")
    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return engine.get_template("summary.html.jinja").render(
        summary=summary,
        headline=headline(summary),
        measures=measures(summary),
        people=people_rows(summary),
        origins=origin_rows(summary),
        stylesheet=stylesheet,
        style=(folder / "compare.css").read_text(encoding="utf-8") if stylesheet is None else "",
    )
