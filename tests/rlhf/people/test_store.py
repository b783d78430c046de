"""The database of pairs and answers: what each person sees, undo, two people at once, and the exported file."""

import json
import sqlite3
import threading

import pytest

from rlhf.errors import UserError
from rlhf.people.pairs import Pair, left_answer
from rlhf.people.store import REPEAT_AFTER, Progress, Store


def answer_all(store, annotator, choice="left", most=1000):
    """Answer everything there is; the questions in their order."""
    shown = []
    while (question := store.question(annotator)) is not None and len(shown) < most:
        shown.append(question)
        assert store.answer(annotator, question.id, choice, False, 2.0)
    return shown


def exported(store):
    return [json.loads(line) for line in store.export().read_text().rstrip("\n").split("\n")]


def test_every_pair_is_shown_once_and_its_answer_is_exported(store):
    shown = answer_all(store, "ada")
    assert len({question.prompt for question in shown}) == len(shown) == 30
    rows = exported(store)
    assert [row["prompt"] for row in rows] == [question.prompt for question in shown]
    for question, row in zip(shown, rows, strict=True):
        assert (row["chosen"], row["rejected"]) == (question.left, question.right)
        assert row[row["choice"]] == row["chosen"]
        assert row["left"] == row["choice"]
        assert (row["origin_a"], row["origin_b"], row["annotator"]) == ("start", "trained", "ada")
    assert store.progress("ada") == Progress(answered=30, open=0, pace=2.0, repeats=0, consistent=0)


def test_sides_are_decided_by_a_hash_of_annotator_pair_and_seed(tmp_path, pairs):
    sides = {}
    for annotator, seed in (("ada", 0), ("ben", 0), ("ada", 1)):
        store = Store(tmp_path / f"{annotator}{seed}.jsonl", seed=seed, repeats=0.0, overlap=0.0)
        store.add("test", pairs(50))
        answer_all(store, annotator)
        sides[annotator, seed] = {row["pair"]: row["left"] for row in store.rows()}
        assert sides[annotator, seed] == {pair.id: left_answer(annotator, pair.id, seed) for _, pair in pairs(50)}
    lefts = sum(left_answer("ada", pair.id, 0) == "a" for _, pair in pairs(2000))
    assert 900 < lefts < 1100
    assert sides["ada", 0] != sides["ben", 0]
    assert sides["ada", 0] != sides["ada", 1]


@pytest.mark.parametrize(("choice", "chosen"), [("left", True), ("right", True), ("tie", False), ("skip", False)])
def test_choices_are_exported_as_the_answer_that_was_on_that_side(store, choice, chosen):
    question = store.question("ada")
    store.answer("ada", question.id, choice, True, None)
    [row] = exported(store)
    sides = {"left": question.left, "right": question.right}
    assert row["chosen"] == sides.get(choice)
    assert row["rejected"] == (sides[{"left": "right", "right": "left"}[choice]] if chosen else None)
    assert row["clearly"] == chosen  # a tie cannot be clear
    assert row["choice"] in (("a", "b") if chosen else (choice,))


def test_a_question_stays_until_it_is_answered_over_restarts_too(store):
    first = store.question("ada")
    assert store.question("ada") == first
    again = Store(store.output, repeats=0.0, overlap=0.0)
    assert again.question("ada") == first
    assert again.answer("ada", first.id, "left", False, 1.0)
    assert again.question("ada").prompt != first.prompt


def test_an_answer_that_is_sent_twice_is_saved_once(store):
    first = store.question("ada")
    assert store.answer("ada", first.id, "left", False, 1.0)
    second = store.question("ada")
    assert store.answer("ada", first.id, "left", False, 1.0)
    assert not store.answer("ada", first.id, "right", False, 1.0)  # of an old window
    assert store.question("ada") == second
    assert [row["chosen"] for row in store.rows()] == [first.left]


def test_an_answer_to_another_question_is_not_saved(store):
    store.question("ada")
    assert not store.answer("ada", "of an old window", "left", False, 1.0)
    assert store.rows() == []


def test_undo_takes_answers_back_one_by_one_and_shows_their_pairs_again(store):
    shown = [store.question("ada")]
    for choice in ("left", "tie", "skip"):
        store.answer("ada", shown[-1].id, choice, False, 1.0)
        shown.append(store.question("ada"))
    for before in (shown[2], shown[1], shown[0]):
        assert store.undo("ada")
        again = store.question("ada")
        assert (again.prompt, again.left, again.right) == (before.prompt, before.left, before.right)
        assert again.id != before.id
    assert store.rows() == []
    assert not store.undo("ada")
    store.answer("ada", store.question("ada").id, "right", False, 1.0)
    assert [row["chosen"] for row in store.rows()] == [shown[0].right]
    assert not store.undo("ben")


def test_repeats_come_later_with_sides_swapped(tmp_path, pairs):
    store = Store(tmp_path / "preferences.jsonl", repeats=0.3, overlap=0.0)
    store.add("test", pairs(100))
    assert store.progress("ada").open == 100
    shown = answer_all(store, "ada")
    positions = {}
    for i, question in enumerate(shown):
        positions.setdefault(question.prompt, []).append(i)
    twice = [places for places in positions.values() if len(places) == 2]
    assert len(positions) == 100
    assert 20 < len(twice) < 40
    for first, second in twice:
        assert (shown[first].left, shown[first].right) == (shown[second].right, shown[second].left)
        assert second - first > REPEAT_AFTER or second > len(shown) - REPEAT_AFTER
    assert [row["repeat"] for row in store.rows()].count(True) == len(twice)
    progress = store.progress("ada")
    assert (progress.repeats, progress.consistent, progress.open) == (len(twice), 0, 0)  # always left: never the same


def test_a_repeat_that_is_undone_comes_again_as_the_repeat(tmp_path, pairs):
    store = Store(tmp_path / "preferences.jsonl", repeats=1.0, overlap=0.0)
    store.add("test", pairs(1))
    first, second = answer_all(store, "ada")
    assert store.undo("ada")
    again = store.question("ada")
    assert (again.left, again.right) == (second.left, second.right) == (first.right, first.left)
    store.answer("ada", again.id, "right", False, 1.0)
    assert store.progress("ada").consistent == 1
    assert store.question("ada") is None


def test_repeats_wait_while_pairs_are_still_being_made(tmp_path, pairs):
    store = Store(tmp_path / "preferences.jsonl", repeats=1.0, overlap=0.0)
    store.add("test", pairs(1))
    store.answer("ada", store.question("ada").id, "left", False, 1.0)
    assert store.question("ada", more_to_come=True) is None
    assert store.question("ada") is not None


def test_two_people_share_the_pairs_and_some_are_seen_by_both(tmp_path, pairs):
    store = Store(tmp_path / "preferences.jsonl", repeats=0.0, overlap=0.2)
    store.add("test", pairs(200))
    seen = {"ada": [], "ben": [], "cleo": []}
    while any(store.question(name) for name in seen):
        for name, prompts in seen.items():
            if (question := store.question(name)) is not None:
                prompts.append(question.prompt)
                store.answer(name, question.id, "left", False, 1.0)
    counts = [sum(prompt in prompts for prompts in seen.values()) for prompt in {p for ps in seen.values() for p in ps}]
    assert len(counts) == 200
    assert set(counts) == {1, 2}
    assert 25 < counts.count(2) < 55
    assert min(map(len, seen.values())) > 60


def test_nobody_sees_the_pair_on_anothers_screen(store):
    prompts = {store.question(name).prompt for name in ("ada", "ben", "cleo")}
    assert len(prompts) == 3


def test_a_skipped_pair_is_shown_to_somebody_else(tmp_path, pairs):
    store = Store(tmp_path / "preferences.jsonl", repeats=1.0, overlap=0.0)
    store.add("test", pairs(1))
    store.answer("ada", store.question("ada").id, "skip", False, 1.0)
    assert store.question("ada") is None  # nor does it come a second time
    assert store.question("ben") is not None


def test_answers_of_two_people_at_once_are_all_saved(tmp_path, pairs):
    """Each in a thread with a store of its own, as two processes have."""
    Store(tmp_path / "preferences.jsonl").add("test", pairs(60))
    stores = {name: Store(tmp_path / "preferences.jsonl", overlap=1.0, repeats=0.0) for name in ("ada", "ben")}
    with sqlite3.connect(stores["ada"].path) as db:
        db.execute("UPDATE pairs SET shared = 1")
    threads = [threading.Thread(target=answer_all, args=(store, name)) for name, store in stores.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = stores["ada"].rows()
    assert len({(row["annotator"], row["pair"]) for row in rows}) == len(rows) == 120


def test_uncertain_pairs_come_first(tmp_path):
    store = Store(tmp_path / "preferences.jsonl", repeats=0.0, overlap=0.0)
    gaps = [5, 1, 4, 2, 3]
    pairs = [(i, Pair(str(gap), "a", "b", "x", "y", 0.0, float(-gap))) for i, gap in enumerate(gaps)]
    store.add("test", pairs, uncertain_first=True)
    assert [question.prompt for question in answer_all(store, "ada")] == ["1", "2", "3", "4", "5"]


def test_pairs_of_equal_answers_are_not_shown(tmp_path):
    store = Store(tmp_path / "preferences.jsonl")
    store.add("test", [(0, Pair("p", "same", "same", "x", "y"))])
    assert store.question("ada") is None
    assert (store.count(), store.identical(), store.positions("test")) == (0, 1, {0})


def test_adding_pairs_again_changes_nothing(store, pairs):
    answer_all(store, "ada", most=10)
    store.add("test", pairs(30))
    assert store.count() == 30
    assert len(store.rows()) == 10


@pytest.mark.parametrize("text", ["", " \n", "<script>alert(1)</script>", "שלום", "\ud800 half", "x\u2028y", "a\x00b"])
def test_every_text_comes_back_as_it_was(tmp_path, text):
    store = Store(tmp_path / "preferences.jsonl")
    store.add("test", [(0, Pair([{"role": "user", "content": text}], text, "other", "x", "y"))])
    question = store.question("ada")
    store.answer("ada", question.id, "left", False, None)
    [row] = exported(store)
    wanted = text.replace("\ud800", "?")
    assert {question.left, question.right} == {wanted, "other"} == {row["a"], row["b"]}
    assert row["prompt"] == [{"role": "user", "content": wanted}] == question.prompt


# ---------------------------------------------------------------------------------------------------------- the export


def test_a_file_without_its_database_is_never_replaced(tmp_path):
    (tmp_path / "mine.jsonl").write_text("precious")
    with pytest.raises(UserError, match=r"mine.jsonl exists and has no database mine.jsonl.db beside it"):
        Store(tmp_path / "mine.jsonl")
    assert (tmp_path / "mine.jsonl").read_text() == "precious"
    assert not (tmp_path / "mine.jsonl.db").exists()


def test_an_export_that_was_changed_by_hand_is_left_alone(store):
    answer_all(store, "ada", most=3)
    assert store.export() == store.output
    changed = store.output.read_text() + "a line of mine\n"
    store.output.write_text(changed)
    answer_all(store, "ada", most=2)
    assert store.export() == store.output.with_name("preferences-2.jsonl")
    assert store.output.read_text() == changed
    with pytest.raises(UserError, match=r"preferences.jsonl was changed after it was written"):
        Store(store.output)


def test_exports_replace_earlier_exports(store):
    for _ in range(3):
        answer_all(store, "ada", most=5)
        assert store.export() == store.output
    assert len(store.output.read_text().splitlines()) == 15
    assert Store(store.output).count() == 30


def test_a_file_that_is_no_database_is_reported(tmp_path):
    (tmp_path / "x.jsonl.db").write_text("this is text, and not a database at all" * 100)
    with pytest.raises(UserError, match=r"x.jsonl.db cannot be used as a database"):
        Store(tmp_path / "x.jsonl")
