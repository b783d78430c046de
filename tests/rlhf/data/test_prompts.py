"""Tokenised prompts: limits on their length, and batches."""

import json

import pytest

from rlhf.config.jobs import DataConfig
from rlhf.data.prompts import load_prompts, prepare_prompts
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


def test_truncated_prompt_keeps_its_start_token(bos_tokenizer):
    rows = rows_of(prompt=["the film is good", "bad"])
    config = DataConfig(path="x", max_prompt_length=3, too_long="truncate")
    assert prepare_prompts(bos_tokenizer, rows, config, 2).ids == [[3, 9, 11], [3, 12]]
