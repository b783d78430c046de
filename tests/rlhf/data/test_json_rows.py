"""JSON files that are read without `datasets`, and that they give exactly its rows."""

import json

import pytest

from rlhf.data.json_rows import JsonRows, read_plain_json


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def message(content, **others):
    return {"role": "user", "content": content} | others


PLAIN = {
    "text": lines({"prompt": "x é 😀", "id": 3}, {"prompt": "y\u2028", "id": -(2**63)}),
    "null": lines({"prompt": "x", "score": 1.5}, {"prompt": None, "score": None}),
    "keys in any order, some missing": lines({"a": "x", "b": "y"}, {"b": "z", "c": True}),
    "messages": lines({"prompt": [message("x"), message(None)]}, {"prompt": []}),
    "nested lists": lines({"a": [["x"], []]}, {"a": []}),
    "objects": lines({"a": {"x": 1}}, {"a": None}),
    "text that begins with a year": lines({"a": "2020"}, {"a": ""}),
    "one timestamp among other text": lines({"a": "2020-01-01"}, {"a": "soon"}),
    "list": json.dumps([{"a": "x", "b": 1}, {"a": "y"}], indent=1),
    "columns": json.dumps({"a": ["x", "y"]}),
    "line ends": '{"a":"x"}\r\n {"a":"y"} \r\n\n',
    "numbers": '{"a":-0.0,"b":-0}\n{"a":1e300,"b":7}',
}

OTHERS = {
    "timestamps": lines({"a": "2020-01-01"}, {"a": None}),
    "timestamps in messages": lines({"a": [message("2020-01-01T10:00:00")]}),
    "numbers of two types": lines({"a": 1}, {"a": 2.5}),
    "text and numbers": lines({"a": 1}, {"a": "x"}),
    "text and messages": lines({"a": "x"}, {"a": [message("x")]}),
    "messages with other keys": lines({"a": [message("x"), message("y", name="z")]}),
    "nothing but null": lines({"a": None}),
    "nothing but empty lists": lines({"a": []}),
    "a large number": lines({"a": 2**63}),
    "not a number": '{"a":NaN}',
    "a key twice": '{"a":"x","a":"y"}',
    "half of a surrogate pair": '{"a":"\\ud800"}',
    "an object over several lines": json.dumps({"a": "x"}, indent=1),
    "an empty line": '{"a":"x"}\n\n{"a":"y"}',
    "a byte order mark": '\ufeff{"a":"x"}',
    "no objects": "[1, 2]",
    "text only": '["a", "b"]',
    "no rows": "[]",
    "no keys": "{}",
    "no JSON": "the film",
}


def read(text, tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(text, encoding="utf-8")
    return read_plain_json(file)


@pytest.mark.parametrize("text", PLAIN.values(), ids=PLAIN.keys())
def test_plain_files_give_the_rows_of_datasets(text, tmp_path):
    import datasets

    rows = read(text, tmp_path)
    expected = datasets.load_dataset("json", data_files=str(tmp_path / "rows.json"), split="train")
    assert isinstance(rows, JsonRows)
    assert rows.column_names == expected.column_names
    assert repr(list(rows)) == repr(list(expected))
    assert all(rows[name] == list(expected[name]) for name in expected.column_names)
    assert len(rows) == len(expected)


@pytest.mark.parametrize("text", OTHERS.values(), ids=OTHERS.keys())
def test_other_files_are_left_to_datasets(text, tmp_path):
    assert read(text, tmp_path) is None


def test_bytes_that_are_not_utf8_are_left_to_datasets(tmp_path):
    (tmp_path / "rows.json").write_bytes(b'{"a":"\xff"}')
    assert read_plain_json(tmp_path / "rows.json") is None


def test_selected_rows_keep_the_given_order():
    rows = JsonRows({"a": ["x", "y", "z"], "b": [1, 2, 3]})
    assert list(rows.select([2, 0])) == [{"a": "z", "b": 3}, {"a": "x", "b": 1}]
