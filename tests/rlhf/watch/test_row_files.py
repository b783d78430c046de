"""Growing files: what is new, half a line, a file that was rewritten or removed."""

import json
from concurrent.futures import ThreadPoolExecutor

from rlhf.watch.row_files import RowFile, newest_rows


def test_new_rows_are_added_and_half_a_line_waits(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = RowFile(path, ("step",))
    assert file.rows() == []
    path.write_text('{"step": 1, "a": 1}\n{"step": 2, "a"')
    assert [row["step"] for row in file.rows()] == [1]
    version = file.version
    assert file.rows() == file.rows()
    assert file.version == version
    with open(path, "a") as out:
        out.write(": 2}\nnonsense\n[]\n" + '{"step": "x"}\n')
    assert [(row["step"], row["a"]) for row in file.rows()] == [(1, 1), (2, 2)]
    assert file.version > version


def test_a_resumed_run_rewrites_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = RowFile(path, ("step",))
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    assert len(file.rows()) == 3
    path.write_text('{"step": 1}\n')  # shorter
    assert [row["step"] for row in file.rows()] == [1]
    other = tmp_path / "other"
    other.write_text('{"step": 1, "new": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4}\n')
    other.replace(path)  # longer, but another file
    assert [row.get("new") for row in file.rows()] == [1, None, None, None]
    path.unlink()
    assert file.rows() == []


def test_a_repeated_step_counts_once_and_the_later_row_wins(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"step": 2, "index": 1, "v": 1}\n{"step": 0, "index": 3}\n{"step": 2, "index": 1, "v": 2}\n')
    assert [(r["step"], r["index"], r.get("v")) for r in RowFile(path, ("step", "index")).rows()] == [
        (0, 3, None),
        (2, 1, 2),
    ]


def test_the_newest_rows_need_only_the_end_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf.watch.row_files.TAIL", 60)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {i}}}\n' for i in range(1, 1001)))
    assert [row["step"] for row in newest_rows(path, 3)] == [998, 999, 1000]
    assert newest_rows(tmp_path / "absent", 3) == []


def test_another_run_of_the_same_name_begins_anew(tmp_path):
    """The new file often has the inode of the removed one, and may be longer when it is looked at."""
    path = tmp_path / "metrics.jsonl"
    file = RowFile(path, ("step",))
    path.write_text('{"step": 1, "old": 1}\n{"step": 2, "old": 1}\n')
    assert len(file.rows()) == 2
    path.unlink()
    path.write_text('{"step": 1, "new": 1}\n{"step": 2, "new": 1}\n{"step": 3, "new": 1}\n')
    assert [sorted(row) for row in file.rows()] == [["new", "step"]] * 3


def test_readers_at_the_same_time_lose_no_row(tmp_path):
    """As with two open pages; a part that both read counts once, also where the file then grows by more than that."""
    path = tmp_path / "metrics.jsonl"
    path.touch()
    file = RowFile(path, ("step",))
    written = 0

    def write(count):
        nonlocal written
        with open(path, "a") as out:
            for _ in range(count):
                written += 1
                out.write(json.dumps({"step": written, **{f"metric/{i}": 0.123456 for i in range(40)}}) + "\n")

    with ThreadPoolExecutor(4) as readers:
        for _ in range(10):
            write(20)
            list(readers.map(lambda _: file.rows(), range(4)))
            write(100)
            assert len(file.rows()) == written
