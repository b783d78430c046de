"""Texts mixed into PPO: the order of their batches, and their loss against that of transformers."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from rlhf.config.ppo import PTXConfig
from rlhf.config.shared import ModelConfig
from rlhf.data.demonstrations import Demonstration
from rlhf.errors import UserError
from rlhf.models.actor_critic import ActorCritic
from rlhf.models.distribution import LogitTransform
from rlhf.models.loading import load_causal_lm, load_tokenizer
from rlhf.trainers.ptx import TextStream

TEXTS = ["the film is good", "a story", "it is warm and cold", "the end", "is it a bad film", "no end in sight of it"]


@pytest.fixture
def write(tmp_path):
    def written(rows):
        path = tmp_path / "texts.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return PTXConfig(path=str(path), batch_size=2)

    return written


@pytest.fixture
def tokenizer(models):
    return load_tokenizer(str(models("llama")))


@pytest.fixture
def stream(write, tokenizer):
    return TextStream.load(write([{"text": text} for text in TEXTS[:5]]), tokenizer, 128, seed=3)


def test_examples_are_the_texts_of_the_file_with_an_end_token(stream, tokenizer):
    assert [tokenizer.decode(ids) for ids, _ in stream.examples] == [f"{text} <|end|>" for text in TEXTS[:5]]
    assert [example.trained for example in stream.examples] == [[True] * len(ids) for ids, _ in stream.examples]
    assert stream.pad_id == 2


def test_every_pass_has_each_text_once_except_those_of_an_incomplete_batch(stream):
    """Five texts in batches of two: passes of two batches, another text left out now and then."""
    dropped = Counter()
    for pass_number in range(20):
        seen = [tuple(ids) for number in (2 * pass_number, 2 * pass_number + 1) for ids, _ in stream.batch(number)]
        assert len(seen) == len(set(seen)) == 4
        dropped.update({tuple(ids) for ids, _ in stream.examples} - set(seen))
    assert len(dropped) == 5
    assert len({tuple(map(str, stream.batch(number))) for number in range(0, 40, 2)}) > 5  # passes differ in order


def test_order_is_a_function_of_the_seed(stream):
    other = replace(stream, seed=4)
    assert [stream.batch(n) for n in (7, 0, 7)] == [replace(stream).batch(n) for n in (7, 0, 7)]
    assert [stream.batch(n) for n in range(10)] != [other.batch(n) for n in range(10)]


def test_order_is_not_that_of_the_prompts(stream):
    """Both are permutations from the same seed, with different keys."""
    import numpy as np

    whole = replace(stream, config=replace(stream.config, batch_size=5))
    texts = [[whole.examples.index(e) for e in whole.batch(n)] for n in range(6)]
    prompts = [np.random.default_rng([3, number]).permutation(5).tolist() for number in range(6)]
    assert texts != prompts


def test_texts_as_responses_by_hand(stream):
    examples = [Demonstration([7, 8, 1], [False, True, True]), Demonstration([9, 1], [True, True])]
    tokens = stream.as_responses(examples)
    assert tokens.prompt_ids.tolist() == [[7], [9]]
    assert tokens.prompt_mask.tolist() == [[True], [True]]
    assert tokens.response_ids.tolist() == [[8, 1], [1, 2]]
    assert tokens.response_mask.tolist() == [[True, True], [True, False]]
    assert stream.count(examples) == 3


@pytest.mark.parametrize("kind", ["text", "pairs"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_loss_of_texts_equals_that_of_transformers(models, write, tokenizer, kind, family):
    """Each text alone, without padding; of a prompt and its completion only the completion is trained on."""
    rows = [{"text": text} for text in TEXTS]
    if kind == "pairs":
        rows = [{"prompt": text.split()[0] + " " + text.split()[1] + " ", "completion": "is good"} for text in TEXTS]
    stream = TextStream.load(write(rows), tokenizer, 128, 0)
    lm = load_causal_lm(ModelConfig(path=str(models(family))))
    with torch.no_grad():
        logprobs = ActorCritic(lm)(stream.as_responses(stream.examples), LogitTransform(), with_values=False).logprobs
    total, count = 0.0, 0
    for ids, trained in stream.examples:
        labels = torch.tensor([[i if yes else -100 for i, yes in zip(ids, trained, strict=True)]])
        labelled = int((labels[0, 1:] != -100).sum())
        with torch.no_grad():
            total += float(lm(torch.tensor([ids]), labels=labels).loss) * labelled
        count += labelled
    assert (
        stream.count(stream.examples)
        == count
        == (18 if kind == "pairs" else sum(len(e[0]) - 1 for e in stream.examples))
    )
    assert float(-logprobs.sum()) == pytest.approx(total, rel=1e-5)


def test_texts_are_cut_at_the_limit(write, tokenizer):
    config = replace(write([{"text": text} for text in TEXTS]), max_length=3)
    assert max(len(ids) for ids, _ in TextStream.load(config, tokenizer, 128, 0).examples) == 3


def test_unusable_texts_are_rejected(write, tokenizer):
    config = write([{"text": "the film"}])
    with pytest.raises(UserError) as error:
        TextStream.load(config, tokenizer, 128, 0)
    assert str(error.value) == f"{config.path} holds 1 texts, fewer than ptx.batch_size = 2; lower it"
    config = write([{"text": text} for text in TEXTS])
    with pytest.raises(UserError, match="holds a text of 7 tokens, but the model's context length is 6"):
        TextStream.load(config, tokenizer, 6, 0)
    assert (
        len(TextStream.load(config, tokenizer, 7, 0).examples)
        == len(TextStream.load(config, tokenizer, None, 0).examples)
        == 6
    )
    with pytest.raises(UserError, match="has the columns 'words', but demonstrations need 'text'"):
        TextStream.load(write([{"words": "the film"}] * 2), tokenizer, 128, 0)
    with pytest.raises(UserError, match=r"none\.jsonl"):
        TextStream.load(PTXConfig(path="none.jsonl"), tokenizer, 128, 0)


def test_too_long_texts_are_reported_with_the_setting_of_ptx(write, tokenizer):
    with pytest.raises(UserError, match=r"set ptx\.max_length to 6 or less"):
        TextStream.load(write([{"text": text} for text in TEXTS]), tokenizer, 6, 0)
