"""Where pairs come from: files, runs, models, temperatures; the same in every session."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlhf.cli.main import main
from rlhf.config.compare import CompareJob, parse_compare
from rlhf.config.parsing import to_yaml
from rlhf.config.shared import DataConfig, GenerationConfig, ModelConfig
from rlhf.data.prompts import load_held_out_prompts
from rlhf.errors import UserError
from rlhf.models.loading import load_causal_lm, load_tokenizer
from rlhf.people.production import Production
from rlhf.people.sampled_pairs import sides_of
from rlhf.people.sources import open_source
from rlhf.people.store import Store

WAIT = 60.0


@pytest.fixture
def other_model(models, tmp_path):
    """The tiny model with a scaled output layer."""
    lm = load_causal_lm(ModelConfig(path=str(models("llama"))))
    with torch.no_grad():
        lm.get_output_embeddings().weight.mul_(1.5)
    lm.save_pretrained(tmp_path / "other")
    load_tokenizer(str(models("llama"))).save_pretrained(tmp_path / "other")
    return tmp_path / "other"


@pytest.fixture
def compare_job(models, prompts_file, tmp_path):
    return CompareJob(
        sources=[str(models("llama"))],
        output=str(tmp_path / "preferences.jsonl"),
        annotator="ada",
        pairs=12,
        data=DataConfig(path=str(prompts_file)),
        generation=GenerationConfig(max_new_tokens=8),
    )


def pairs_of(source, done=()):
    return [item for batch in source.batches(set(done)) for item in batch]


def test_a_file_of_pairs_keeps_texts_origins_and_messages(tmp_path):
    rows = [
        {"prompt": [{"role": "user", "content": "hi"}], "a": "", "b": "<b>", "origin_a": "x", "origin_b": "y"},
        {"prompt": [{"role": "user", "content": "ho"}], "a": "c", "b": "d", "origin_a": "x", "origin_b": "z"},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_source(CompareJob(sources=[str(path)], annotator="ada"))
    pairs = pairs_of(source)
    assert [(p.prompt, p.a, p.b, p.origin_a, p.origin_b) for _, p in pairs] == [tuple(r.values()) for r in rows]
    assert [position for position, _ in pairs_of(source, [0])] == [1]
    del rows[0]["origin_a"], rows[0]["origin_b"], rows[1]
    path.write_text(json.dumps(rows[0]) + "\n")
    [(_, pair)] = pairs_of(open_source(CompareJob(sources=[str(path)], annotator="ada")))
    assert (pair.origin_a, pair.origin_b) == ("a", "b")


def test_one_model_answers_twice(compare_job):
    source = open_source(compare_job)
    pairs = pairs_of(source)
    assert source.count == len(pairs) == 12
    assert sum(pair.a != pair.b for _, pair in pairs) > 8
    assert {pair.origin_a for _, pair in pairs} == {pair.origin_b for _, pair in pairs} == {compare_job.sources[0]}


def test_pairs_depend_on_prompt_and_seed_alone(compare_job):
    whole = dict(pairs_of(open_source(compare_job)))
    rest = dict(pairs_of(open_source(compare_job), list(whole)[:5]))  # as a second session continues
    assert rest == {position: whole[position] for position in list(whole)[5:]}
    more = open_source(replace(compare_job, pairs=14))
    assert more.name == open_source(compare_job).name
    assert len(pairs_of(more, whole)) == 2
    assert dict(pairs_of(open_source(replace(compare_job, seed=1)))) != whole


def test_two_models_and_two_temperatures(compare_job, models, other_model):
    job = replace(compare_job, sources=[str(models("llama")), str(other_model)])
    assert {(p.origin_a, p.origin_b) for _, p in pairs_of(open_source(job))} == {tuple(job.sources)}
    model = compare_job.sources[0]
    warm = replace(compare_job, temperatures=[0.0, 2.0])
    assert [side.origin for side in sides_of(warm)] == [f"{model} at temperature 0", f"{model} at temperature 2"]
    first, second = dict(pairs_of(open_source(warm))), dict(pairs_of(open_source(replace(warm, seed=1))))
    same = set(first) & set(second)
    assert same
    assert all(first[i].a == second[i].a for i in same)  # greedy
    assert any(first[i].b != second[i].b for i in same)


def test_a_ppo_run_is_its_start_against_its_trained_model_on_held_out_prompts(job, tmp_path, capsys):
    (tmp_path / "job.yaml").write_text(to_yaml(job))
    assert main(["ppo", "--config", str(tmp_path / "job.yaml"), "--seed", "3"]) == 0
    run = job.output
    compared = parse_compare([run, "--annotator", "ada", "--output", str(tmp_path / "p.jsonl")])
    assert compared.generation == job.generation
    source = open_source(compared)
    pairs = pairs_of(source)
    assert {(p.origin_a, p.origin_b) for _, p in pairs} == {(job.model.path, run)}
    held_out = load_held_out_prompts(load_tokenizer(job.model.path), job.data, 3)
    assert len(held_out) == 8  # a fifth of 40
    assert sorted(p.prompt for _, p in pairs) == sorted(held_out.prompts)
    rows = [json.loads(line) for line in Path(job.data.path).read_text().splitlines()]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    others = parse_compare([run, "--annotator", "ada", "--data.path", str(tmp_path / "all.jsonl")])
    assert open_source(others).count == 40  # all prompts of a file that the run does not know
    own = parse_compare([run, "--annotator", "ada", "--data.path", job.data.path, "--generation.max_new_tokens", "2"])
    assert (own.data, own.generation.max_new_tokens) == (DataConfig(path=job.data.path), 2)
    assert [side.origin for side in sides_of(parse_compare([run, job.model.path, "--annotator", "x"]))] == [
        run,
        job.model.path,
    ]


def test_mistakes_are_reported_before_a_model_is_loaded(compare_job, monkeypatch, tmp_path):
    monkeypatch.setattr("rlhf.people.sampled_pairs.load_policy", None)
    with pytest.raises(UserError, match=r"data.path is not set; name a file of prompts with --data.path, or compare"):
        open_source(replace(compare_job, data=DataConfig()))
    with pytest.raises(UserError, match="does not exist"):
        open_source(replace(compare_job, sources=[str(tmp_path / "none")]))
    with pytest.raises(UserError, match=r"pairs.jsonl does not exist"):
        open_source(replace(compare_job, sources=[str(tmp_path / "pairs.jsonl")]))


def test_answers_that_exceed_the_context_length_are_reported(compare_job, tmp_path):
    job = replace(compare_job, generation=GenerationConfig(max_new_tokens=1000))
    store = Store(job.output)
    production = Production(open_source(job), store, None, False)
    with pytest.raises(
        UserError, match=r"generation.max_new_tokens = 1000 exceed the context length of .*, which is 128"
    ):
        production.wait_for_first()
    production.stop()


def test_pairs_are_scored_and_those_with_close_scores_come_first(compare_job, reward_folder):
    store = Store(compare_job.output, repeats=0.0, overlap=0.0)
    production = Production(open_source(compare_job), store, str(reward_folder), True)
    production.wait_for_first()
    assert store.question("ada", more_to_come=True) is not None
    production._thread.join(WAIT)
    assert production.error is None
    while (question := store.question("ada")) is not None:
        store.answer("ada", question.id, "left", False, None)
    rows = store.rows()
    gaps = [abs(row["score_a"] - row["score_b"]) for row in rows]
    assert len(gaps) > 8
    assert gaps[8:] == sorted(gaps[8:])  # the first batch was there before the others


def test_a_source_that_fails_later_leaves_the_pairs_that_are_there(store, capsys):
    class Failing:
        name = "failing"
        count = 2

        def batches(self, done):
            raise RuntimeError("out of memory")

    production = Production(Failing(), store, None, False)
    production.wait_for_first()
    production.stop()
    assert production.error == "RuntimeError: out of memory"
    assert "no more pairs are made" in capsys.readouterr().err
    assert store.question("ada") is not None
