"""Files, folders and splits as checked rows."""

import json

import pytest

from rlhf.config.shared import DataConfig
from rlhf.data.datasets import checked_column, load_rows, split_rows
from rlhf.errors import UserError

ROWS = [
    {"prompt": "the film", "wanted": "good"},
    {"prompt": "a film is", "wanted": "bad"},
    {"prompt": "é \"'\n", "wanted": "a"},
]


def user(text):
    return {"role": "user", "content": text}


def rows_of(**columns):
    import datasets

    return datasets.Dataset.from_dict(columns)


def write(path, kind):
    rows = rows_of(**{name: [row[name] for row in ROWS] for name in ROWS[0]})
    if kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "csv":
        rows.to_csv(str(path), index=False)
    elif kind == "tsv":
        rows.to_csv(str(path), index=False, sep="\t")
    elif kind == "parquet":
        rows.to_parquet(str(path))
    elif kind == "folder":
        rows.save_to_disk(str(path))
    else:
        import datasets

        datasets.DatasetDict({"train": rows.select([0]), "other": rows}).save_to_disk(str(path))


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv", "parquet", "folder", "folder of splits"])
def test_every_file_format_gives_the_same_rows(tmp_path, kind):
    path = tmp_path / (f"rows.{kind}" if kind in ("json", "jsonl", "csv", "tsv", "parquet") else "rows")
    write(path, kind)
    rows = load_rows(str(path), "other" if kind == "folder of splits" else "train")
    assert [dict(row) for row in rows] == ROWS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.doc", "the film", r"ends in '.doc'; supported: .json, .jsonl, .csv, .tsv, .parquet, .txt"),
        ("rows.txt", " \n\n", "has no rows"),
        ("rows.jsonl", "", "is empty"),
        ("rows.json", "[]", "has no rows"),
        ("rows.csv", "prompt\n", "has no rows"),
        ("rows.jsonl", '{"prompt": ', "cannot read data from .*rows.jsonl"),
        ("rows.parquet", "no parquet", "cannot read data from .*rows.parquet"),
    ],
)
def test_unreadable_files_are_rejected_by_name(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        load_rows(str(tmp_path / name), "train")


@pytest.mark.parametrize("path", ["./nothing.jsonl", "nothing.csv", "/no/such/folder", "~/no/such/folder"])
def test_missing_files_are_rejected_by_name(path):
    with pytest.raises(UserError, match=f"{path} does not exist"):
        load_rows(path, "train")


def test_a_file_in_the_home_folder_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "The"}\n')
    assert [dict(row) for row in load_rows("~/rows.jsonl", "train")] == [{"prompt": "The"}]


def test_missing_split_is_rejected_with_the_list_of_splits(tmp_path):
    write(tmp_path / "rows", "folder of splits")
    with pytest.raises(UserError, match="no split 'test'; it has train, other"):
        load_rows(str(tmp_path / "rows"), "test")


@pytest.mark.parametrize(("fraction", "held_out"), [(0.2, 8), (0.05, 2), (0.01, None), (0.0, None)])
def test_training_and_held_out_rows_partition_the_data(prompts_file, fraction, held_out):
    """Of 40 rows; none is lost and none is in both parts."""
    train, test = split_rows(DataConfig(path=str(prompts_file), eval_fraction=fraction), seed=3)
    everything = [dict(row) for row in load_rows(str(prompts_file), "train")]
    texts = [[json.dumps(row) for row in rows] for rows in (train, test or [])]
    assert (len(test) if test is not None else None) == held_out
    assert sorted(texts[0] + texts[1]) == sorted(map(json.dumps, everything))


def test_held_out_rows_are_a_function_of_the_seed(prompts_file):
    config = DataConfig(path=str(prompts_file), eval_fraction=0.2)
    first, again, other = ([json.dumps(row) for row in split_rows(config, seed)[1]] for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_eval_path_uses_both_files_whole(prompts_file, tmp_path):
    write(tmp_path / "held.json", "json")
    train, test = split_rows(DataConfig(path=str(prompts_file), eval_path=str(tmp_path / "held.json")), 0)
    assert (len(train), len(test)) == (40, 3)


@pytest.mark.parametrize("kind", ["json", "folder"])
def test_eval_split_of_data_without_splits_is_rejected(tmp_path, kind):
    """Giving all rows under any split's name would make the training rows their own held-out rows."""
    write(tmp_path / f"rows.{kind}", kind)
    with pytest.raises(UserError, match="split"):
        split_rows(DataConfig(path=str(tmp_path / f"rows.{kind}"), eval_split="test"), 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["the", None], "row 2: 'prompt' is null"),
        (["", "the"], "row 1: 'prompt' is empty"),
        (["the", " \n"], "row 2: 'prompt' is empty"),
        ([[user("the")], []], "row 2: 'prompt' is empty"),
        ([3, 4], "row 1: 'prompt' is 3, but must be text or a list of messages"),
        ([{"text": "the"}], "row 1: 'prompt' is .*, but must be text or a list of messages"),
    ],
)
def test_null_and_empty_values_are_rejected_by_row(values, message):
    with pytest.raises(UserError, match=f"file.jsonl, {message}"):
        checked_column(rows_of(prompt=values), "prompt", "file.jsonl")


@pytest.mark.parametrize(("name", "similar"), [("prompts", True), ("Prompt", True), ("question", False)])
def test_a_similar_column_is_to_be_renamed(name, similar):
    with pytest.raises(UserError) as error:
        checked_column(rows_of(**{name: ["a"], "n": [1]}), "prompt", "p.csv")
    hint = f"; rename '{name}' to 'prompt'" if similar else "; rename the column to use to 'prompt'"
    assert str(error.value) == f"p.csv has no column 'prompt'; it has '{name}', 'n'{hint}"


def test_a_text_file_must_be_utf8(tmp_path):
    (tmp_path / "p.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(UserError, match=r"p.txt is not UTF-8 .*; save it as UTF-8"):
        load_rows(str(tmp_path / "p.txt"), "train")


FIXES = [(";", "semicolons: save it with commas"), ("\t", "tabs: rename it to .tsv")]


@pytest.mark.parametrize(("delimiter", "fix"), FIXES)
def test_csv_with_another_delimiter_is_recognised(delimiter, fix, tmp_path):
    (tmp_path / "p.csv").write_text(f"prompt{delimiter}label\nthe film is{delimiter}good\n")
    with pytest.raises(UserError, match=f"delimited by {fix}"):
        checked_column(load_rows(str(tmp_path / "p.csv"), "train"), "prompt", "p.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("null.jsonl", '{"prompt": "a"}\nnull\n', "row 2 of .*null.jsonl is null, but must be an object"),
        ("number.json", "[1, 2]", "row 1 of .*number.json is 1, but must be an object"),
        ("list.jsonl", '{"prompt": "a"}\n["a"]\n', r'row 2 of .*list.jsonl is \["a"\], but must be an object'),
        ("open.jsonl", "[" * 100_000, "nested too deeply"),
        ("deep.jsonl", '{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    ],
)
def test_rows_that_crash_the_json_reader_are_reported(tmp_path, name, content, message):
    """A null row and deep nesting end Apache Arrow's reader in a segmentation fault."""
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_rows(str(tmp_path / name), "train")


def test_file_cut_inside_a_character_is_reported(tmp_path):
    (tmp_path / "cut.jsonl").write_bytes('{"prompt": "é'.encode()[:-1])
    with pytest.raises(UserError, match=r"cut.jsonl is not UTF-8 .*; save it as UTF-8"):
        load_rows(str(tmp_path / "cut.jsonl"), "train")
