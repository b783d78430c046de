"""The summary of answers worked by hand."""

import pytest

from rlhf.data.agreement import Share
from rlhf.people.pairs import Pair
from rlhf.people.store import Store
from rlhf.people.summary import headline, measures, render, summarise, table


def choose(store, annotator, choice, clearly=False, seconds=1.0):
    """Answer the current question with a side, or with the text of an answer."""
    question = store.question(annotator)
    side = {question.left: "left", question.right: "right"}.get(choice, choice)
    assert store.answer(annotator, question.id, side, clearly, seconds)
    return question


@pytest.fixture
def answered(tmp_path):
    """Four pairs that two people see: ada prefers the longer answers, ben ties once; both see one pair again."""
    store = Store(tmp_path / "preferences.jsonl", repeats=0.0, overlap=1.0)
    scores = [(0.0, 1.0), (2.0, 1.0), (0.0, 0.5), (None, None)]
    pairs = [Pair(f"p{i}", "short", "longer text", "start", "trained", *scores[i]) for i in range(4)]
    store.add("test", list(enumerate(pairs)))
    for seconds in (1.0, 2.0, 4.0, 9.0):
        choose(store, "ada", "longer text", clearly=seconds == 1.0, seconds=seconds)
    prompts = [choose(store, "ben", "tie" if i == 0 else "longer text").prompt for i in range(3)]
    prompts.append(choose(store, "ben", "skip").prompt)
    assert sorted(prompts) == ["p0", "p1", "p2", "p3"]
    return store


def test_summary_by_hand(answered):
    summary = summarise(answered)
    assert (summary.pairs, summary.compared, summary.identical, summary.seen_by_two) == (4, 4, 0, 3)
    assert summary.agreement == Share(2, 3)
    everybody = summary.everybody
    assert (everybody.answers, everybody.decided, everybody.clearly, everybody.ties, everybody.skipped) == (
        8,
        6,
        1,
        1,
        1,
    )
    assert everybody.longer == Share(6, 6)
    ada, ben = summary.annotators
    assert (ada.name, ada.seconds, ada.longer) == ("ada", 3.0, Share(4, 4))
    assert (ben.name, ben.ties, ben.skipped) == ("ben", 1, 1)
    # The longer answer's score is higher in two pairs of three, and a fourth has no scores.
    assert ada.reward_model == Share(2, 3)
    left = sum(row["left"] == "b" for row in answered.rows() if row["choice"] == "b")
    assert everybody.left == Share(left, 6)
    # Labels: three units of two, of which one is (b, tie) and two are (b, b); n = 6, n[b] = 5, n[tie] = 1.
    assert summary.alpha == pytest.approx(1 - 5 * 2 / (2 * 5))
    trained, start = summary.origins
    assert (trained.origin, trained.pairs, trained.win_rate.value) == ("trained", 4, (3 + 0.75) / 4)
    assert (start.origin, start.win_rate.value) == ("start", pytest.approx(0.0625))


def test_consistency_compares_the_two_answers_to_a_pair(tmp_path):
    store = Store(tmp_path / "preferences.jsonl", repeats=1.0, overlap=0.0)
    store.add("test", [(i, Pair(f"p{i}", "x", "y", "start", "trained")) for i in range(3)])
    firsts = [choose(store, "ada", "x") for _ in range(3)]
    for text in ("x", "y", "tie"):
        choose(store, "ada", text)
    summary = summarise(store)
    assert summary.annotators[0].consistent == Share(1, 3)
    assert store.progress("ada").consistent == 1
    # Repeats count as answers and sides, but not for win rates.
    assert summary.everybody.answers == 6
    assert [(r.origin, r.pairs, r.win_rate.value) for r in summary.origins] == [("start", 3, 1.0), ("trained", 3, 0.0)]
    assert len(firsts) == 3


def test_a_person_who_always_chooses_left_is_seen(tmp_path):
    store = Store(tmp_path / "preferences.jsonl", repeats=0.5)
    store.add("test", [(i, Pair(f"p{i}", f"x{i}", f"y{i}", "start", "trained")) for i in range(40)])
    while store.question("ada") is not None:
        choose(store, "ada", "left")
    everybody = summarise(store).everybody
    assert everybody.left.interval.value == 1.0
    assert everybody.left.interval.low > 0.9
    assert everybody.consistent.count == 0
    assert everybody.consistent.total > 10


def test_words_of_the_summary(answered):
    from rich.console import Console

    summary = summarise(answered)
    assert headline(summary) == "4 of 4 pairs compared, 8 answers"
    rows = {measure.name: measure for measure in measures(summary)}
    assert (rows["longer preferred"].value, rows["longer preferred"].total) == ("100%", 6)
    assert rows["longer preferred"].bounds == "61% to 100%"
    assert rows["Krippendorff's alpha"].value == "0.00"
    assert rows["self-consistency"].value == "–"
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for part in table(summary):
        console.print(part)
    text = console.export_text()
    assert "trained" in text
    assert "94%" in text
    page = render(summary)
    assert page.count('class="card"') == 6
    assert "94%" in page
    assert "<style>" in page
    assert "<link" not in page
