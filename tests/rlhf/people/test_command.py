"""`rlhf compare` as a user runs it: answers survive a kill, a second session continues, mistakes are reported."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf.cli.main import main
from rlhf.config.compare import CompareJob, parse_compare
from rlhf.errors import UserError
from rlhf.people.command import MARK, compare, summarise_file
from rlhf.people.store import Store

ROOT = Path(__file__).parents[3]


@pytest.fixture
def pairs_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"p{i}", "a": f"x{i}", "b": f"y{i}", "origin_a": "old", "origin_b": "new"} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run(tmp_path, connect) -> Iterator[Callable[..., SimpleNamespace]]:
    """`run(words)`: `rlhf compare` in a process of its own, when it has printed its address, with a client."""
    running = []

    def start(*words: object) -> SimpleNamespace:
        command = [sys.executable, "-m", "rlhf.cli.main", "compare", *map(str, words)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        running.append(process)
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if match := re.search(r"http://127.0.0.1:(\d+)/\?token=(\S+)", line):
                return SimpleNamespace(process=process, client=connect(int(match[1]), match[2]), token=match[2])
        raise AssertionError("".join(lines))

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


def answers_of(path):
    return [(row["annotator"], row["prompt"], row["chosen"]) for row in Store(path).rows()]


def test_a_kill_at_any_moment_loses_nothing_and_a_second_session_continues(run, pairs_file, tmp_path):
    first = run(pairs_file, "--annotator", "ada", "--repeats", "0", "--overlap", "0")
    sent = []
    for _ in range(5):
        question = first.client.question()["question"]
        sent.append(("ada", question["prompt"], question["right"]))
        assert first.client.answer(question["id"], "right").status == 200
    waiting = first.client.question()["question"]
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    assert not (tmp_path / "preferences.jsonl").exists()  # the export comes later; the database has everything
    assert answers_of(tmp_path / "preferences.jsonl") == sent

    second = run("--annotator", "ada", "--repeats", "0", "--overlap", "0")  # without a source: continue
    assert second.token != first.token
    assert second.client.request("GET", "/api/question", Authorization=f"Bearer {first.token}").status == 401
    state = second.client.question()
    assert state["question"] == waiting
    assert (state["progress"]["answered"], state["progress"]["open"]) == (5, 7)
    second.client.answer(waiting["id"], "left")
    second.process.send_signal(signal.SIGTERM)
    output, _ = second.process.communicate(timeout=30)
    assert "6 answers of ada; all preferences are in preferences.jsonl" in output
    rows = [json.loads(line) for line in (tmp_path / "preferences.jsonl").read_text().splitlines()]
    assert [row["chosen"] for row in rows] == [chosen for _, _, chosen in sent] + [waiting["left"]]


def test_two_people_in_two_processes(run, pairs_file, tmp_path):
    sessions = [run(pairs_file, "--annotator", name, "--overlap", "0", "--repeats", "0") for name in ("ada", "ben")]
    assert sessions[0].client.port != sessions[1].client.port
    prompts = []
    for _ in range(6):
        for session in sessions:
            question = session.client.question()["question"]
            prompts.append(question["prompt"])
            session.client.answer(question["id"])
    assert len(set(prompts)) == 12
    for session in sessions:
        session.process.send_signal(signal.SIGINT)
        assert session.process.wait(timeout=30) == 0
    rows = [json.loads(line) for line in (tmp_path / "preferences.jsonl").read_text().splitlines()]
    assert sorted(row["annotator"] for row in rows) == ["ada"] * 6 + ["ben"] * 6


# --------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "annotator is not set; give the name of the person who compares with --annotator NAME"),
        (["--annotator", " "], "annotator is ' ', but must be a name"),
        (["a", "b", "c", "--annotator", "x"], "sources is ['a', 'b', 'c'], but must be at most two models"),
        (["a.jsonl", "b", "--annotator", "x"], "a file of pairs is compared alone"),
        (["a", "--annotator", "x", "--order", "uncertain"], "there is no reward model; name one with --reward_model"),
        (
            ["a", "--annotator", "x", "--temperatures", "[1]"],
            "temperatures is [1.0], but must be two different numbers",
        ),
        (["a", "--annotator", "x", "--temperatures", "[1, 1]"], "must be two different numbers"),
        (["a.jsonl", "--annotator", "x", "--temperatures", "[0, 1]"], "needs exactly one model as the source"),
        (["a", "--annotator", "x", "--repeats", "2"], "repeats is 2.0, but must be between 0 and 1"),
        (["a", "--annotator", "x", "--overlap", "-1"], "overlap is -1.0, but must be between 0 and 1"),
        (["a", "--annotator", "x", "--pairs", "0"], "pairs is 0, but must be positive"),
        (["a", "--annotator", "x", "--port", "0"], "port is 0, but must be null, or at least 1 and below 65536"),
        (["a", "--annotator", "x", "--seed", "-1"], "seed is -1"),
        (["a", "--annotator", "x", "--page", "p.html"], "page is set, but it has no effect without summary"),
        (["--annotater", "x"], "unknown setting annotater; did you mean annotator?"),
    ],
)
def test_bad_settings_are_rejected(words, message):
    with pytest.raises(UserError) as error:
        parse_compare(words)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "p", "a": "x"}], "has no column 'b'; a file of pairs has the columns prompt, a and b"),
        ([{"a": "x", "b": "y"}], "has no column 'prompt'"),
        (
            [{"prompt": "p", "a": "x", "b": None}, {"prompt": "p", "a": "x", "b": "y"}],
            "row 1: 'b' is None, but must be",
        ),
        ([{"prompt": "", "a": "x", "b": "y"}], "row 1: 'prompt' is empty"),
        ([{"prompt": "p", "a": "x", "b": "x"}], "there is nothing to compare: every pair has two equal answers"),
    ],
)
def test_bad_files_of_pairs_are_rejected(tmp_path, rows, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError) as error:
        compare(CompareJob(sources=[str(path)], output=str(tmp_path / "out.jsonl"), annotator="ada"))
    assert message in str(error.value)
    assert not (tmp_path / "out.jsonl").exists()


def test_nothing_to_continue_and_foreign_outputs_are_rejected(pairs_file, tmp_path):
    job = CompareJob(output=str(tmp_path / "none.jsonl"), annotator="ada")
    with pytest.raises(UserError, match=r"none.jsonl has no comparison to continue; name what to compare"):
        compare(job)
    with pytest.raises(UserError, match=r"pairs.jsonl exists and has no database pairs.jsonl.db beside it"):
        compare(CompareJob(sources=[str(pairs_file)], output=str(pairs_file), annotator="ada"))
    assert len(pairs_file.read_text().splitlines()) == 12


def test_a_port_that_is_taken_is_reported(pairs_file, tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        job = CompareJob(sources=[str(pairs_file)], output=str(tmp_path / "x.jsonl"), annotator="ada", port=port)
        with pytest.raises(UserError, match=rf"port is {port}, which cannot be listened on \(.*\); name another"):
            compare(job)


def test_missing_packages_are_reported_with_the_command_that_installs_them(pairs_file, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvicorn" else name)
    with pytest.raises(UserError, match=r"needs uvicorn, which is not installed: pip install 'tabular-rlhf\[people\]'"):
        compare(CompareJob(sources=[str(pairs_file)], annotator="ada"))


# ----------------------------------------------------------------------------------------------------------- summary


def test_summary_is_printed_and_written_as_a_page(store, tmp_path, capsys):
    for choice in ("left", "right", "tie"):
        store.answer("ada", store.question("ada").id, choice, False, 2.0)
    page = tmp_path / "pages" / "summary.html"
    words = ["compare", "--summary", str(store.output), "--page", str(page)]
    assert main(words) == 0
    assert "3 of 30 pairs compared, 3 answers" in capsys.readouterr().out
    text = page.read_text()
    assert text.startswith(MARK)
    assert "trained" in text
    assert main(words) == 0  # replaces its own page
    page.write_text("of somebody else")
    with pytest.raises(UserError, match=r"summary.html exists and is no summary; name another --page"):
        summarise_file(parse_compare(words[1:]))
    assert page.read_text() == "of somebody else"


def test_summaries_of_nothing_are_rejected(store, tmp_path):
    with pytest.raises(UserError, match=r"preferences.jsonl has no answers yet"):
        summarise_file(CompareJob(summary=str(store.output)))
    with pytest.raises(UserError, match=r"x.jsonl has no database x.jsonl.db beside it; name a file of `rlhf compare`"):
        summarise_file(CompareJob(summary=str(tmp_path / "x.jsonl")))
