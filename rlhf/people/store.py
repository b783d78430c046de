"""Pairs and answers in an SQLite file that several processes share; a kill at any moment loses no answer.

Each answer is one transaction, written through to the disk (WAL, synchronous FULL) before the page shows the next pair.
An answer is never changed: an undone one stays, marked. The jsonl file is written from the database.
"""

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

from rlhf.errors import UserError
from rlhf.people.pairs import Pair, Prompt, fraction, left_answer, other
from rlhf.run.files import write_bytes

CHOICES = ("left", "right", "tie", "skip")

REPEAT_AFTER = 20
"""Answers between the first and the second time that somebody sees a pair, if there are enough pairs."""
RESERVED = 600.0
"""Seconds for which a pair on somebody's screen is not shown to others."""
PACE_OVER = 20
"""Newest answers that the pace is the median of."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS pairs(
  id TEXT PRIMARY KEY, source TEXT NOT NULL, position INTEGER NOT NULL, rank REAL NOT NULL, shared INTEGER NOT NULL,
  identical INTEGER NOT NULL, origin_a TEXT NOT NULL, origin_b TEXT NOT NULL, score_a REAL, score_b REAL,
  prompt TEXT NOT NULL, a TEXT NOT NULL, b TEXT NOT NULL, UNIQUE(source, position));
CREATE INDEX IF NOT EXISTS pairs_by_rank ON pairs(identical, rank, shared, id);
CREATE TABLE IF NOT EXISTS answers(
  number INTEGER PRIMARY KEY, question TEXT UNIQUE NOT NULL, pair TEXT NOT NULL, annotator TEXT NOT NULL,
  repeat INTEGER NOT NULL, repeated_later INTEGER NOT NULL, left TEXT NOT NULL, choice TEXT NOT NULL,
  clearly INTEGER NOT NULL, seconds REAL, time TEXT NOT NULL, undone INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS answers_by_pair ON answers(pair, undone, repeat, annotator);
CREATE INDEX IF NOT EXISTS answers_by_annotator ON answers(annotator, undone, repeat);
CREATE TABLE IF NOT EXISTS questions(
  annotator TEXT PRIMARY KEY, id TEXT NOT NULL, pair TEXT NOT NULL, repeat INTEGER NOT NULL, time REAL NOT NULL);
CREATE TABLE IF NOT EXISTS exports(digest TEXT PRIMARY KEY);
"""

_OPEN_PAIRS = """
FROM pairs AS p WHERE NOT p.identical
  AND NOT EXISTS (SELECT 1 FROM answers WHERE pair = p.id AND NOT undone AND NOT repeat AND annotator = :annotator)
  AND (SELECT count(*) FROM answers WHERE pair = p.id AND NOT undone AND NOT repeat AND choice != 'skip')
    + (SELECT count(*) FROM questions WHERE pair = p.id AND annotator != :annotator AND time > :reserved)
    < 1 + p.shared
"""
"""The pairs that an annotator may still see for the first time: fewer people than wanted have answered them."""

_WAITING_REPEATS = """
FROM answers AS first WHERE annotator = :annotator AND NOT undone AND NOT repeat AND repeated_later
  AND NOT EXISTS (SELECT 1 FROM answers WHERE annotator = :annotator AND NOT undone AND repeat AND pair = first.pair)
"""
"""The first answers of an annotator to pairs that come a second time."""


@dataclass(frozen=True)
class Question:
    """A pair as it is shown to one person."""

    id: str
    """Random; an answer names it, and a second answer to it counts as the same one."""
    prompt: Prompt
    left: str
    right: str


@dataclass(frozen=True)
class Progress:
    """How far somebody is."""

    answered: int
    """Answers, skipped and repeated pairs included."""
    open: int
    """Pairs, repeated ones included, that this person can still answer."""
    pace: float | None
    """Median seconds per answer, of the newest ones."""
    repeats: int
    """Pairs that were answered twice."""
    consistent: int
    """Of these, pairs with twice the same choice."""


class Store:
    """The database of one output file."""

    def __init__(self, output: str | Path, *, seed: int = 0, repeats: float = 0.1, overlap: float = 0.1):
        """Open the database beside `output`, or create it.

        Args:
            output: jsonl file that `export` writes.
            seed: of the order and the sides.
            repeats: share of the pairs that each person sees twice.
            overlap: share of the pairs that two people see.

        Raises:
            UserError: `output` was not written from this database, or the database cannot be opened.
        """
        self.output = Path(output).expanduser()
        self.path = self.output.with_name(f"{self.output.name}.db")
        self.seed, self.repeats, self.overlap = seed, repeats, overlap
        self._lock = threading.RLock()
        if self.output.exists() and not self.path.exists():
            raise UserError(f"{output} exists and has no database {self.path.name} beside it; name another --output")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise UserError(f"{self.path} cannot be used as a database: {error}") from error
        if self.output.exists() and not self._is_export(self.output.read_bytes()):
            raise UserError(
                f"{output} was changed after it was written from {self.path.name}, and would be overwritten; "
                "move it elsewhere"
            )

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time."""
        with self._lock:
            yield self._db

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that no other writer interrupts; waits for one in another process."""
        with self._read() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    # ---------------------------------------------------------------------------------------------------------- pairs

    def add(self, source: str, pairs: Sequence[tuple[int, Pair]], uncertain_first: bool = False) -> None:
        """Add pairs; those that are there stay as they are.

        Args:
            source: where they come from; with the position it says which pairs are there.
            pairs: position within the source, and pair.
            uncertain_first: order them by the difference of their scores, not at random.
        """
        rows = []
        for position, pair in pairs:
            rank = fraction("order", pair.id, self.seed)
            if uncertain_first and pair.score_a is not None and pair.score_b is not None:
                rank = abs(pair.score_a - pair.score_b)
            shared = fraction("shared", pair.id, self.seed) < self.overlap
            texts = map(_storable, (json.dumps(pair.prompt, ensure_ascii=False), pair.a, pair.b))
            row = (pair.id, source, position, rank, shared, pair.a == pair.b, pair.origin_a, pair.origin_b)
            rows.append((*row, pair.score_a, pair.score_b, *texts))
        with self._write() as db:
            db.executemany("INSERT OR IGNORE INTO pairs VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)", rows)

    def positions(self, source: str) -> set[int]:
        """The positions of a source whose pairs are there."""
        with self._read() as db:
            return {row["position"] for row in db.execute("SELECT position FROM pairs WHERE source = ?", (source,))}

    def count(self) -> int:
        """How many pairs there are, those of two equal answers aside."""
        with self._read() as db:
            return db.execute("SELECT count(*) FROM pairs WHERE NOT identical").fetchone()[0]

    # ------------------------------------------------------------------------------------------------------ questions

    def question(self, annotator: str, more_to_come: bool = False) -> Question | None:
        """What somebody is to answer now: the same until it is answered, over restarts too.

        Args:
            more_to_come: pairs are still being added, so that repeats can wait.

        Returns:
            None where nothing is left for this person.
        """
        with self._write() as db:
            current = db.execute("SELECT * FROM questions WHERE annotator = ?", (annotator,)).fetchone()
            if current is None:
                current = self._assign(db, annotator, more_to_come)
            if current is None:
                return None
            pair = db.execute("SELECT prompt, a, b FROM pairs WHERE id = ?", (current["pair"],)).fetchone()
            left = self._left(db, annotator, current["pair"], bool(current["repeat"]))
        return Question(current["id"], json.loads(pair["prompt"]), pair[left], pair[other(left)])

    def _assign(self, db: sqlite3.Connection, annotator: str, more_to_come: bool) -> sqlite3.Row | None:
        """Choose the next pair: a repeat that is due, else a new pair, else a repeat before its time."""
        names = self._names(annotator)
        repeat = db.execute(f"SELECT pair, number {_WAITING_REPEATS} ORDER BY number LIMIT 1", names).fetchone()
        if repeat is not None:
            since = db.execute(
                "SELECT count(*) FROM answers WHERE annotator = ? AND NOT undone AND number > ?",
                (annotator, repeat["number"]),
            ).fetchone()[0]
            if since >= REPEAT_AFTER:
                return self._show(db, annotator, repeat["pair"], True)
        # Pairs that one of two people has answered come first, so that agreement is measured early.
        half_answered = "p.shared AND EXISTS (SELECT 1 FROM answers WHERE pair = p.id AND NOT undone)"
        new = None
        for condition in (half_answered, "TRUE"):
            new = (
                new
                or db.execute(f"SELECT p.id {_OPEN_PAIRS} AND {condition} ORDER BY p.rank LIMIT 1", names).fetchone()
            )
        if new is not None:
            return self._show(db, annotator, new["id"], False)
        return None if repeat is None or more_to_come else self._show(db, annotator, repeat["pair"], True)

    def _show(self, db: sqlite3.Connection, annotator: str, pair: str, repeat: bool) -> sqlite3.Row:
        row = (annotator, token_hex(8), pair, repeat, time.time())
        db.execute("INSERT OR REPLACE INTO questions VALUES (?,?,?,?,?)", row)
        return db.execute("SELECT * FROM questions WHERE annotator = ?", (annotator,)).fetchone()

    def _left(self, db: sqlite3.Connection, annotator: str, pair: str, repeat: bool) -> str:
        """The answer on the left; when a pair comes again, the one that was on the right."""
        if not repeat:
            return left_answer(annotator, pair, self.seed)
        first = db.execute(
            "SELECT left FROM answers WHERE annotator = ? AND pair = ? AND NOT undone AND NOT repeat", (annotator, pair)
        ).fetchone()
        return other(first["left"])

    def _names(self, annotator: str) -> dict[str, Any]:
        return {"annotator": annotator, "reserved": time.time() - RESERVED}

    # -------------------------------------------------------------------------------------------------------- answers

    def answer(self, annotator: str, question: str, choice: str, clearly: bool, seconds: float | None) -> bool:
        """Save an answer; saved once, however often it is sent.

        Args:
            question: id of the question that was on the screen.
            choice: one of `CHOICES`.

        Returns:
            False where it is no answer to the current question, such as one from an old window; nothing is saved then.
        """
        assert choice in CHOICES
        with self._write() as db:
            before = db.execute("SELECT * FROM answers WHERE question = ?", (question,)).fetchone()
            if before is not None:  # sent again, or another answer from an old window
                sides = {"left": before["left"], "right": other(before["left"])}
                return sides.get(choice, choice) == before["choice"]
            current = db.execute("SELECT * FROM questions WHERE annotator = ?", (annotator,)).fetchone()
            if current is None or current["id"] != question:
                return False
            pair, repeat = current["pair"], bool(current["repeat"])
            left = self._left(db, annotator, pair, repeat)
            chosen = {"left": left, "right": other(left)}.get(choice, choice)
            later = not repeat and choice != "skip" and fraction("again", annotator, pair, self.seed) < self.repeats
            now = datetime.now(UTC).isoformat(timespec="seconds")
            row = (question, pair, annotator, repeat, later, left, chosen, clearly and chosen in "ab", seconds, now)
            db.execute(
                "INSERT INTO answers(question, pair, annotator, repeat, repeated_later, left, choice, clearly, "
                "seconds, time) VALUES (?,?,?,?,?,?,?,?,?,?)",
                row,
            )
            db.execute("DELETE FROM questions WHERE annotator = ?", (annotator,))
        return True

    def undo(self, annotator: str) -> bool:
        """Take back somebody's newest answer and show its pair again; False where there is none."""
        with self._write() as db:
            last = db.execute(
                "SELECT * FROM answers WHERE annotator = ? AND NOT undone ORDER BY number DESC LIMIT 1", (annotator,)
            ).fetchone()
            if last is None:
                return False
            db.execute("UPDATE answers SET undone = 1 WHERE number = ?", (last["number"],))
            self._show(db, annotator, last["pair"], bool(last["repeat"]))
        return True

    def progress(self, annotator: str) -> Progress:
        """How far somebody is, how fast, and how often a repeated pair got the same choice."""
        names = self._names(annotator)
        own = "FROM answers WHERE annotator = :annotator AND NOT undone"
        with self._read() as db:

            def number(query: str) -> int:
                return db.execute(query, names).fetchone()[0]

            answered = number(f"SELECT count(*) {own}")
            still_open = number(f"SELECT count(*) {_OPEN_PAIRS}") + number(f"SELECT count(*) {_WAITING_REPEATS}")
            newest = f"SELECT seconds {own} AND seconds IS NOT NULL ORDER BY number DESC LIMIT {PACE_OVER}"
            seconds = sorted(row["seconds"] for row in db.execute(newest, names))
            twice = db.execute(
                "SELECT count(*), sum(first.choice = second.choice) FROM answers AS first JOIN answers AS second "
                "ON first.pair = second.pair AND first.annotator = second.annotator WHERE first.annotator = :annotator "
                "AND NOT first.undone AND NOT second.undone AND NOT first.repeat AND second.repeat "
                "AND first.choice != 'skip' AND second.choice != 'skip'",
                names,
            ).fetchone()
        pace = seconds[len(seconds) // 2] if seconds else None
        return Progress(answered, still_open, pace, twice[0], twice[1] or 0)

    # --------------------------------------------------------------------------------------------------------- export

    def rows(self) -> list[dict[str, Any]]:
        """All answers that were not undone, in their order, as rows of the exported file."""
        query = (
            "SELECT answers.*, pairs.* FROM answers JOIN pairs ON pairs.id = answers.pair "
            "WHERE NOT answers.undone ORDER BY answers.number"
        )
        with self._read() as db:
            return [_exported(row) for row in db.execute(query)]

    def identical(self) -> int:
        """How many pairs have two equal answers; they are not shown."""
        with self._read() as db:
            return db.execute("SELECT count(*) FROM pairs WHERE identical").fetchone()[0]

    def version(self) -> tuple[int, int]:
        """Changes with every answer and every undone one."""
        with self._read() as db:
            return tuple(db.execute("SELECT count(*), coalesce(sum(undone), 0) FROM answers").fetchone())

    def export(self) -> Path:
        """Write all answers to the output file and return where they are.

        A file that was changed by hand since it was written is left alone, and the first free name beside it is used.
        """
        while True:
            content = self._content()
            with self._write() as db:  # before the file is there: a kill between the two leaves a file that is known
                db.execute("INSERT OR IGNORE INTO exports VALUES (?)", (_digest(content),))
            with self._write():  # a second process waits here, and writes what is then the newest
                if self._content() == content:
                    path = self._free_output()
                    write_bytes(path, content)
                    return path

    def _content(self) -> bytes:
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows()).encode()

    def _free_output(self) -> Path:
        """The output, or the first file beside it that is not there or is an export."""
        names = (f"{self.output.stem}-{number}{self.output.suffix}" for number in range(2, 10_000))
        paths = (self.output, *map(self.output.with_name, names))
        return next(path for path in paths if not path.exists() or self._is_export(path.read_bytes()))

    def _is_export(self, content: bytes) -> bool:
        """Whether a file holds what an export wrote."""
        with self._read() as db:
            return db.execute("SELECT 1 FROM exports WHERE digest = ?", (_digest(content),)).fetchone() is not None


def _storable(text: str) -> str:
    """A text without lone surrogates, which a tokenizer may return and UTF-8 does not have."""
    return text.encode("utf-8", errors="replace").decode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _exported(row: sqlite3.Row) -> dict[str, Any]:
    """A row of the exported file; `chosen` and `rejected` are null for ties and skipped pairs."""
    choice = row["choice"]
    decided = choice in ("a", "b")
    return {
        "pair": row["pair"],
        "prompt": json.loads(row["prompt"]),
        "chosen": row[choice] if decided else None,
        "rejected": row[other(choice)] if decided else None,
        "choice": choice,
        "clearly": bool(row["clearly"]),
        "a": row["a"],
        "b": row["b"],
        "origin_a": row["origin_a"],
        "origin_b": row["origin_b"],
        "score_a": row["score_a"],
        "score_b": row["score_b"],
        "left": row["left"],
        "repeat": bool(row["repeat"]),
        "annotator": row["annotator"],
        "seconds": row["seconds"],
        "time": row["time"],
    }
