"""Tokenised prompts: limits on their length, and batches."""

import json
from dataclasses import replace

import pytest

from rlhf.config.shared import DataConfig
from rlhf.data.datasets import load_rows, split_rows
from rlhf.data.json_rows import JsonRows
from rlhf.data.prompts import load_held_out_prompts, load_prompts, prepare_prompts
from rlhf.errors import UserError


def rows_of(**columns):
    import datasets

    return datasets.Dataset.from_dict(columns)


def test_prompt_batches_are_left_padded_with_texts_and_columns(tokenizer):
    rows = rows_of(prompt=["the film is", "a"], wanted=["good", "bad"], n=[1, 2])
    prompts = prepare_prompts(tokenizer, rows, DataConfig(path="x"), pad_id=2)
    batch = prompts.batch([1, 0, 1])
    assert batch.prompt_ids.tolist() == [[2, 2, 10], [7, 8, 9], [2, 2, 10]]
    assert batch.prompt_mask.tolist() == [[False, False, True], [True, True, True], [False, False, True]]
    assert batch.prompts == ["a", "the film is", "a"]
    assert batch.columns == {"wanted": ["bad", "good", "bad"], "n": [2, 1, 2]}


def test_missing_column_is_rejected_with_the_list_of_columns(tokenizer):
    with pytest.raises(UserError, match=r"file.csv has no column 'prompt'; it has 'text', 'label'"):
        prepare_prompts(tokenizer, rows_of(text=["the"], label=["a"]), DataConfig(path="file.csv"), 2)


LONG = {"prompt": ["the film", "the film is good", "a", "a film is bad"], "n": [0, 1, 2, 3]}


def test_too_long_prompts_are_an_error_by_default(tokenizer):
    with pytest.raises(UserError, match=r"2 of 4 prompts are longer .* = 3 tokens \(row 2 has 4\)"):
        prepare_prompts(tokenizer, rows_of(**LONG), DataConfig(path="x", max_prompt_length=3), 2)
    exact = prepare_prompts(tokenizer, rows_of(**LONG), DataConfig(path="x", max_prompt_length=4), 2)
    assert len(exact) == 4


@pytest.mark.parametrize(
    ("what", "ids", "n"),
    [("drop", [[7, 8], [10]], [0, 2]), ("truncate", [[7, 8], [8, 9, 11], [10], [8, 9, 12]], [0, 1, 2, 3])],
)
def test_too_long_prompts_are_dropped_or_truncated_on_the_left(tokenizer, what, ids, n):
    config = DataConfig(path="x", max_prompt_length=3, too_long=what)
    prompts = prepare_prompts(tokenizer, rows_of(**LONG), config, 2)
    assert prompts.ids == ids
    assert prompts.columns["n"] == n
    assert [LONG["prompt"][i] for i in n] == prompts.prompts


def test_dropping_every_prompt_is_an_error(tokenizer):
    with pytest.raises(UserError, match="every prompt is longer"):
        prepare_prompts(
            tokenizer, rows_of(prompt=["a a"]), DataConfig(path="x", max_prompt_length=1, too_long="drop"), 2
        )


def test_dropping_every_held_out_prompt_is_an_error_about_these(tokenizer, tmp_path):
    paths = {}
    for name, prompts in {"train": ["a", "a a"], "held_out": ["a a", "a a a"]}.items():
        paths[name] = tmp_path / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    config = DataConfig(
        path=str(paths["train"]), eval_path=str(paths["held_out"]), max_prompt_length=1, too_long="drop"
    )
    with pytest.raises(UserError, match=r"held_out.jsonl: every held-out prompt is longer than .* = 1 tokens; raise"):
        load_prompts(tokenizer, config, 0)


def test_a_fraction_is_held_out_of_the_prompts_that_are_not_dropped(tokenizer, tmp_path):
    """Of 40 prompts 10 are short: 2 of these are held out and 8 trained on, the same ones as of a file of the 10."""
    short = [{"prompt": word, "n": i} for i, word in enumerate(["a", "the", "film", "is", "good"] * 2)]
    long = [{"prompt": "a a a", "n": -1}] * 30
    sets = {}
    for name, rows in (("mixed", [row for i in range(10) for row in [*long[:3], short[i]]]), ("short", short)):
        (tmp_path / name).with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = DataConfig(path=f"{tmp_path}/{name}.jsonl", eval_fraction=0.2, max_prompt_length=2, too_long="drop")
        sets[name] = load_prompts(tokenizer, config, seed=3)
        assert load_held_out_prompts(tokenizer, config, seed=3) == sets[name][1]
    for (mixed, alone), size in zip(zip(*sets.values(), strict=True), (8, 2), strict=True):
        assert mixed.columns == alone.columns
        assert (len(mixed), mixed.ids) == (size, alone.ids)
    assert [prompts.dropped for prompts in sets["mixed"]] == [30, 0]


def test_without_dropped_prompts_the_split_is_that_of_the_rows(tokenizer, prompts_file):
    """The split of earlier versions, which runs in progress and evaluations of finished ones rely on."""
    config = DataConfig(path=str(prompts_file), eval_fraction=0.2)
    for prompts, rows in zip(load_prompts(tokenizer, config, 5), split_rows(config, 5), strict=True):
        assert prompts.prompts == [row["prompt"] for row in rows]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_messages_up_to_the_last_turn_of_the_user_are_the_prompt(tokenizer):
    talks = [
        [user("the film"), assistant("good")],
        [user("a"), assistant("the"), user("is"), assistant("bad"), assistant("a")],
        [user("bad")],
    ]
    prompts = prepare_prompts(tokenizer, rows_of(messages=talks), DataConfig(path="x"), 2)
    assert prompts.prompts == [talks[0][:1], talks[1][:3], talks[2]]
    assert prompts.columns == {"messages": talks}  # a reward function may compare with the rest
    assert prompts.ids[0] == [4, 7, 8, 1, 5]
    both = prepare_prompts(tokenizer, rows_of(messages=talks, prompt=["the", "a", "is"]), DataConfig(path="x"), 2)
    assert both.prompts == ["the", "a", "is"]


@pytest.mark.parametrize("talk", [[assistant("good")], [], "a text"])
def test_messages_without_a_turn_of_the_user_are_rejected_by_row(tokenizer, talk):
    rows = JsonRows({"messages": [[user("the")], talk]})
    with pytest.raises(UserError, match=r"x.jsonl, row 2: 'messages' (has no user's turn|is empty)"):
        prepare_prompts(tokenizer, rows, DataConfig(path="x.jsonl"), 2)


def test_each_line_of_a_text_file_is_a_prompt(tokenizer, tmp_path):
    (tmp_path / "p.txt").write_bytes("\ufeffthe film\r\n\r\n  \na film is\r\ngood".encode())
    path = str(tmp_path / "p.txt")
    prompts = prepare_prompts(tokenizer, load_rows(path, "train"), DataConfig(path=path), 2)
    assert prompts.prompts == ["the film", "a film is", "good"]
    assert prompts.columns == {}


def test_truncated_prompt_keeps_its_start_token(bos_tokenizer):
    rows = rows_of(prompt=["the film is good", "bad"])
    config = DataConfig(path="x", max_prompt_length=3, too_long="truncate")
    assert prepare_prompts(bos_tokenizer, rows, config, 2).ids == [[3, 9, 11], [3, 12]]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_several_data_sets_are_one_with_names_and_shares(tokenizer, tmp_path):
    """Columns that one of them does not have are None; each holds out its own fraction."""
    one = write_rows(tmp_path / "one.jsonl", [{"prompt": "a", "n": i} for i in range(10)])
    two = write_rows(tmp_path / "two.jsonl", [{"prompt": "the film", "wanted": "good"}] * 30)
    config = DataConfig(path=one, more=[two], eval_fraction=0.2)
    prompts, held_out = load_prompts(tokenizer, config, seed=0)
    assert prompts.counts == {"one": 8, "two": 24}
    assert prompts.shares == (0.25, 0.75)
    assert prompts.columns["data_set"] == ["one"] * 8 + ["two"] * 24
    assert prompts.columns["wanted"] == [None] * 8 + ["good"] * 24
    assert prompts.ids == [[10]] * 8 + [[7, 8]] * 24
    assert held_out.counts == {"one": 2, "two": 6}
    alone = load_prompts(tokenizer, DataConfig(path=one, eval_fraction=0.2), seed=0)
    assert prompts.columns["n"][:8] == alone[0].columns["n"]
    assert load_held_out_prompts(tokenizer, config, seed=0) == held_out
    equal = load_prompts(tokenizer, replace(config, shares=[0.5, 0.5]), seed=0)[0]
    drawn = [equal.columns["data_set"][i] for i in equal.stream(0, 16, seed=0)]
    assert drawn.count("one") == 8
    other = write_rows(tmp_path / "held_out.jsonl", [{"prompt": "is"}])
    assert load_prompts(tokenizer, replace(config, eval_path=other), seed=0)[1].prompts == ["is"]


def test_data_sets_that_cannot_be_told_apart_are_rejected(tokenizer, tmp_path):
    (tmp_path / "a").mkdir()
    one = write_rows(tmp_path / "one.jsonl", [{"prompt": "a"}] * 4)
    same_name = write_rows(tmp_path / "a" / "one.jsonl", [{"prompt": "the"}] * 4)
    prompts, _ = load_prompts(tokenizer, DataConfig(path=one, more=[same_name]), seed=0)
    assert list(prompts.counts) == [one, same_name]
    with pytest.raises(UserError, match=r"name .*one\.jsonl twice"):
        load_prompts(tokenizer, DataConfig(path=one, more=[one]), seed=0)
    named = write_rows(tmp_path / "named.jsonl", [{"prompt": "a", "data_set": "x"}] * 4)
    with pytest.raises(UserError, match="has a column 'data_set', which names the data set"):
        load_prompts(tokenizer, DataConfig(path=one, more=[named]), seed=0)
