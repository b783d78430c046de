"""Files -> rows -> token ids, spelled out: <|end|> 1, <|start|> 3, <|user|> 4, <|assistant|> 5, the 7, film 8, is 9,
a 10, good 11, bad 12."""

import json

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from rlhf.config.jobs import DataConfig
from rlhf.data.datasets import (
    PromptSet,
    column,
    encode_answers,
    encode_demonstration,
    encode_prompts,
    held_out_rows,
    load_rows,
    pad,
    prepare_prompts,
    split_rows,
)
from rlhf.errors import UserError
from rlhf.models.loading import load_tokenizer

ROWS = [
    {"prompt": "the film", "wanted": "good"},
    {"prompt": "a film is", "wanted": "bad"},
    {"prompt": "é \"'\n", "wanted": "a"},
]


@pytest.fixture
def tokenizer(models):
    return load_tokenizer(str(models("llama", chat=True)))


@pytest.fixture
def bos_tokenizer(models):
    """Puts <|start|> before every text, unless told not to."""
    return load_tokenizer(str(models("llama", bos="<|start|>", chat=True)))


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


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
    elif kind == "parquet":
        rows.to_parquet(str(path))
    elif kind == "folder":
        rows.save_to_disk(str(path))
    else:
        import datasets

        datasets.DatasetDict({"train": rows.select([0]), "other": rows}).save_to_disk(str(path))


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet", "folder", "folder of splits"])
def test_every_format_gives_the_same_rows(tmp_path, kind):
    path = tmp_path / (f"rows.{kind}" if kind in ("json", "jsonl", "csv", "parquet") else "rows")
    write(path, kind)
    rows = load_rows(str(path), "other" if kind == "folder of splits" else "train")
    assert [dict(row) for row in rows] == ROWS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.txt", "the film", r"ends in '.txt'; known: .json, .jsonl, .csv, .parquet"),
        ("rows.jsonl", "", "is empty"),
        ("rows.json", "[]", "holds no rows"),
        ("rows.csv", "prompt\n", "holds no rows"),
        ("rows.jsonl", '{"prompt": ', "cannot read data from .*rows.jsonl"),
        ("rows.parquet", "no parquet", "cannot read data from .*rows.parquet"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        load_rows(str(tmp_path / name), "train")


@pytest.mark.parametrize("path", ["./nothing.jsonl", "nothing.csv", "/no/such/folder", "~/no/such/folder"])
def test_files_that_are_not_there_are_named(path):
    with pytest.raises(UserError, match=f"{path} does not exist"):
        load_rows(path, "train")


def test_split_that_a_saved_folder_does_not_have_is_refused_with_those_it_has(tmp_path):
    write(tmp_path / "rows", "folder of splits")
    with pytest.raises(UserError, match="no split 'test'; it has train, other"):
        load_rows(str(tmp_path / "rows"), "test")


# -------------------------------------------------------------------------------------------------------- held-out rows


@pytest.mark.parametrize(("fraction", "held"), [(0.2, 8), (0.05, 2), (0.01, None), (0.0, None)])
def test_held_out_rows_are_a_share_apart(prompts_file, fraction, held):
    """Of 40 rows; nothing is lost and nothing is on both sides."""
    rows, apart = split_rows(DataConfig(path=str(prompts_file), eval_fraction=fraction), seed=3)
    everything = [dict(row) for row in load_rows(str(prompts_file), "train")]
    texts = [[json.dumps(row) for row in side] for side in (rows, apart or [])]
    assert (len(apart) if apart is not None else None) == held
    assert sorted(texts[0] + texts[1]) == sorted(map(json.dumps, everything))


def test_held_out_rows_are_the_same_ones_for_a_seed_and_others_for_another(prompts_file):
    config = DataConfig(path=str(prompts_file), eval_fraction=0.2)
    first, again, other = ([json.dumps(row) for row in held_out_rows(config, seed)] for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_named_held_out_file_is_taken_whole_and_leaves_the_training_rows_whole(prompts_file, tmp_path):
    write(tmp_path / "held.json", "json")
    rows, apart = split_rows(DataConfig(path=str(prompts_file), eval_path=str(tmp_path / "held.json")), 0)
    assert (len(rows), len(apart)) == (40, 3)


@pytest.mark.parametrize("kind", ["json", "folder"])
def test_held_out_split_of_data_without_splits_is_refused(tmp_path, kind):
    """Giving all rows under any split's name would make the training rows their own held-out rows."""
    write(tmp_path / f"rows.{kind}", kind)
    with pytest.raises(UserError, match="split"):
        split_rows(DataConfig(path=str(tmp_path / f"rows.{kind}"), eval_split="test"), 0)


# ----------------------------------------------------------------------------------------------------------- bad values


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
def test_values_that_say_nothing_are_named_by_row(values, message):
    with pytest.raises(UserError, match=f"file.jsonl, {message}"):
        column(rows_of(prompt=values), "prompt", "file.jsonl")


def test_missing_column_is_named_with_those_that_are_there(tokenizer):
    with pytest.raises(UserError, match=r"file.csv has no column 'prompt'; it has 'text', 'label'"):
        prepare_prompts(tokenizer, rows_of(text=["the"], label=["a"]), DataConfig(path="file.csv"), 2)


@pytest.mark.parametrize(("sign", "word"), [(";", "delimiter_hint"), ("\t", "tabs")])
def test_a_csv_with_other_signs_than_commas_is_recognised(sign, word, tmp_path):
    (tmp_path / "p.csv").write_text(f"prompt{sign}label\nthe film is{sign}good\n")
    with pytest.raises(UserError, match=f"by {word} in this file: save it with commas"):
        column(load_rows(str(tmp_path / "p.csv"), "train"), "prompt", "p.csv")


# -------------------------------------------------------------------------------------------------------------- prompts


def test_prompts_begin_with_one_start_token_and_end_open(tokenizer, bos_tokenizer):
    """Whether the tokenizer writes it, or the chat template does, or both would."""
    chat = [user("a film")]
    assert encode_prompts(tokenizer, ["the film", chat]) == [[7, 8], [4, 10, 8, 1, 5]]
    bos_tokenizer.chat_template = "<|start|>" + bos_tokenizer.chat_template
    assert encode_prompts(bos_tokenizer, ["the film", chat]) == [[3, 7, 8], [3, 4, 10, 8, 1, 5]]


def test_end_token_that_a_tokenizer_appends_is_taken_off_prompts(tokenizer):
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|start|> $A <|end|>", special_tokens=[("<|start|>", 3), ("<|end|>", 1)]
    )
    assert tokenizer("the film").input_ids == [3, 7, 8, 1]
    assert encode_prompts(tokenizer, ["the film"]) == [[3, 7, 8]]
    assert encode_demonstration(tokenizer, {"text": "the film"})[0] == [3, 7, 8, 1]


def test_messages_without_a_chat_template_are_refused(models):
    plain = load_tokenizer(str(models("llama")))
    with pytest.raises(UserError, match=r"no chat template; give one with --model.chat_template"):
        encode_prompts(plain, [[user("the film")]])


@pytest.mark.parametrize("message", [{"role": "user"}, {"content": "the"}, {"role": "user", "content": ["the"]}, "the"])
def test_messages_that_are_none_are_refused(tokenizer, message):
    with pytest.raises(UserError, match="a message must be"):
        encode_prompts(tokenizer, [[message]])


def test_prompt_set_keeps_texts_columns_and_left_pads(tokenizer):
    rows = rows_of(prompt=["the film is", "a"], wanted=["good", "bad"], n=[1, 2])
    prompts = prepare_prompts(tokenizer, rows, DataConfig(path="x"), pad_id=2)
    batch = prompts.batch([1, 0, 1])
    assert batch.prompt_ids.tolist() == [[2, 2, 10], [7, 8, 9], [2, 2, 10]]
    assert batch.prompt_mask.tolist() == [[False, False, True], [True, True, True], [False, False, True]]
    assert batch.prompts == ["a", "the film is", "a"]
    assert batch.columns == {"wanted": ["bad", "good", "bad"], "n": [2, 1, 2]}


LONG = {"prompt": ["the film", "the film is good", "a", "a film is bad"], "n": [0, 1, 2, 3]}


def test_too_long_prompts_are_an_error_unless_told_otherwise(tokenizer):
    with pytest.raises(UserError, match=r"2 of 4 prompts are longer .* = 3 tokens \(row 2 has 4\)"):
        prepare_prompts(tokenizer, rows_of(**LONG), DataConfig(path="x", max_prompt_length=3), 2)
    exact = prepare_prompts(tokenizer, rows_of(**LONG), DataConfig(path="x", max_prompt_length=4), 2)
    assert len(exact) == 4


@pytest.mark.parametrize(
    ("what", "ids", "n"),
    [("drop", [[7, 8], [10]], [0, 2]), ("truncate", [[7, 8], [8, 9, 11], [10], [8, 9, 12]], [0, 1, 2, 3])],
)
def test_too_long_prompts_are_dropped_with_their_columns_or_keep_their_end(tokenizer, what, ids, n):
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


# --------------------------------------------------------------------------------------------------------------- stream

FIVE = PromptSet(list("abcde"), [[7]] * 5, {}, 2)


@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 7], [3, 4, 5], [11, 1]])
def test_stream_is_a_function_of_start_and_seed_however_it_is_cut(pieces):
    starts = [sum(pieces[:i]) for i in range(len(pieces))]
    cut = [i for start, count in zip(starts, pieces, strict=True) for i in FIVE.stream(start, count, seed=7)]
    assert cut == FIVE.stream(0, 12, seed=7)
    assert FIVE.stream(0, 12, seed=8) != cut


def test_stream_says_every_prompt_once_a_pass_in_a_new_order():
    passes = [FIVE.stream(5 * turn, 5, seed=0) for turn in range(8)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in passes)
    assert len(set(map(tuple, passes))) > 4


# ------------------------------------------------------------------------------------------------------- demonstrations


@pytest.mark.parametrize(
    ("row", "ids", "learn"),
    [
        ({"text": "the film"}, [7, 8, 1], "111"),
        ({"prompt": "the film", "completion": "is good"}, [7, 8, 9, 11, 1], "00111"),
        ({"prompt": [user("the film")], "completion": "good"}, [4, 7, 8, 1, 5, 11, 1], "0000011"),
        ({"prompt": [user("the film")], "completion": [assistant("good")]}, [4, 7, 8, 1, 5, 11, 1], "0000011"),
        ({"messages": [user("the film"), assistant("good")]}, [4, 7, 8, 1, 5, 11, 1], "0000011"),
        (
            {"messages": [user("the"), assistant("good"), user("a film"), assistant("is bad")]},
            [4, 7, 1, 5, 11, 1, 4, 10, 8, 1, 5, 9, 12, 1],
            "00001100000111",
        ),
        (  # an assistant's turn that the prompt holds is given, not to be learnt
            {"prompt": [user("the"), assistant("good"), user("a")], "completion": "bad"},
            [4, 7, 1, 5, 11, 1, 4, 10, 1, 5, 12, 1],
            "000000000011",
        ),
    ],
)
def test_demonstrations_and_what_of_them_is_learnt(tokenizer, row, ids, learn):
    assert encode_demonstration(tokenizer, row) == (ids, [mark == "1" for mark in learn])


def test_template_that_rewrites_earlier_turns_is_refused(tokenizer):
    tokenizer.chat_template = "{{ messages | length }}" + tokenizer.chat_template
    with pytest.raises(UserError, match="rewrites earlier turns"):
        encode_demonstration(tokenizer, {"messages": [user("the"), assistant("good")]})


def test_demonstrations_begin_with_one_start_token(bos_tokenizer):
    for row in ({"text": "the film"}, {"prompt": "the", "completion": "film"}):
        assert encode_demonstration(bos_tokenizer, row)[0] == [3, 7, 8, 1]


# -------------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("prompt", "completion", "ids"),
    [
        ("the film ", "is good", [7, 8, 9, 11, 1]),
        ("the film ", "is good<|end|>", [7, 8, 9, 11, 1]),
        ("", "good", [11, 1]),
        ([user("the film")], "good", [4, 7, 8, 1, 5, 11, 1]),
        ([user("the film")], [assistant("good")], [4, 7, 8, 1, 5, 11, 1]),
        ("", [user("the film"), assistant("good")], [4, 7, 8, 1, 5, 11, 1]),
    ],
)
def test_answers_end_with_exactly_one_end_token(tokenizer, prompt, completion, ids):
    assert encode_answers(tokenizer, [prompt], [completion], True, 100) == [ids]
    assert encode_answers(tokenizer, [prompt], [completion], True, len(ids)) == [ids]
    # One token too long: the end is cut, and the end token stays the last.
    assert encode_answers(tokenizer, [prompt], [completion], True, len(ids) - 1) == [[*ids[:-2], 1]]


def test_answers_get_no_end_token_unasked(tokenizer):
    assert encode_answers(tokenizer, ["the "], ["film is"], False, 100) == [[7, 8, 9]]
    assert encode_answers(tokenizer, ["the "], ["film is"], False, 2) == [[7, 8]]


def test_pad_fills_either_side():
    ids, mask = pad([[5, 6], [7]], 2, "left")
    assert torch.equal(ids, torch.tensor([[5, 6], [2, 7]]))
    assert torch.equal(mask, torch.tensor([[True, True], [False, True]]))
    ids, mask = pad([[5, 6], [7]], 2, "right")
    assert torch.equal(ids, torch.tensor([[5, 6], [7, 2]]))
    assert torch.equal(mask, torch.tensor([[True, True], [True, False]]))


def test_prompt_that_is_cut_keeps_its_start_token(bos_tokenizer):
    import datasets

    rows = datasets.Dataset.from_dict({"prompt": ["the film is good", "bad"]})
    config = DataConfig(path="x", max_prompt_length=3, too_long="truncate")
    assert prepare_prompts(bos_tokenizer, rows, config, 2).ids == [[3, 9, 11], [3, 12]]


def test_end_token_before_a_line_break_is_not_doubled(bos_tokenizer):
    bos_tokenizer.chat_template = bos_tokenizer.chat_template.replace("<|end|>", "<|end|>\n")
    turns = [{"role": "user", "content": "the film"}]
    assert encode_answers(bos_tokenizer, [turns], ["is good"], True, 99) == [[4, 7, 8, 1, 5, 9, 11, 1]]
