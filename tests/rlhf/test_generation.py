"""Sampling against a loop that has neither cache nor padding nor batch, and against transformers' own greedy search."""

from types import SimpleNamespace

import pytest
import torch

from rlhf.config import GenerationConfig, ModelConfig
from rlhf.data import pad
from rlhf.errors import UserError
from rlhf.generation import sample, stop_ids, uniforms
from rlhf.loading import load_causal_lm, load_tokenizer
from rlhf.models import ActorCritic, Decoding

FAMILIES = [
    "llama",
    "gpt2",
    "qwen2",
    "gpt_neox",
    "opt",
    "mistral",
    "qwen3",
    "gemma2",
    "phi3",
    "falcon",
    "bloom",
    "mamba",
]
PROMPTS = [[7, 8, 9, 10], [11], [12, 13], [14, 15, 16], [17], [18, 19]]
STOPS = [1, 9, 21, 25]
LENGTH = 10


@pytest.fixture
def load(models):
    def loaded(family="llama"):
        return load_causal_lm(ModelConfig(path=str(models(family)))).eval()

    return loaded


def together(lm, prompts=PROMPTS, seed=0, stops=STOPS, temperature=1.0, max_rows=None, filler=2, left=0):
    noise = uniforms([seed], range(len(prompts)), len(prompts), LENGTH)
    ids, mask = pad(prompts, filler, "left")
    ids = torch.nn.functional.pad(ids, (left, 0), value=filler)
    decoding = Decoding(temperature, stops=tuple(stops))
    return sample(lm, ids, torch.nn.functional.pad(mask, (left, 0)), noise, decoding, LENGTH, None, max_rows)


def listed(said):
    return [row[keep].tolist() for row, keep in zip(said.ids, said.mask, strict=True)]


@torch.no_grad()
def plain(lm, prompt, noise, stops, temperature):
    """One response by the definition: the first token at which the cumulative distribution passes the number."""
    response = []
    for u in noise.tolist():
        logits = lm(torch.tensor([prompt + response])).logits[0, -1]
        passed = (logits / temperature).softmax(-1).double().cumsum(-1) > u
        response.append(int(passed.int().argmax()))
        if response[-1] in stops:
            break
    return response


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_responses_are_those_of_a_plain_loop_for_each_prompt_alone(load, family, temperature):
    """Padding, the cache, and rows that leave it as they end show in no token."""
    lm = load(family)
    prompts = PROMPTS * 2
    noise = uniforms([0], range(12), 12, LENGTH)
    expected = [plain(lm, p, u, STOPS, temperature) for p, u in zip(prompts, noise, strict=True)]
    assert len({len(response) for response in expected}) > 2  # they end at different times, or the test shows little
    assert listed(together(lm, prompts, temperature=temperature)) == expected


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_sliding_window_shorter_than_the_text_is_respected(load, family):
    lm = load(family)
    wide = listed(together(lm))
    lm.config.sliding_window = 3
    for module in lm.modules():
        if getattr(module, "sliding_window", None) is not None:
            module.sliding_window = 3
    noise = uniforms([0], range(len(PROMPTS)), len(PROMPTS), LENGTH)
    expected = [plain(lm, p, u, STOPS, 1.0) for p, u in zip(PROMPTS, noise, strict=True)]
    assert listed(together(lm, left=2)) == expected
    assert expected != wide


@pytest.mark.parametrize("how", [{"max_rows": 1}, {"max_rows": 4}, {"max_rows": 99}, {"left": 5}, {"filler": 1}])
def test_responses_do_not_depend_on_how_they_are_batched_and_padded(load, how):
    """Also where padding and end are one token."""
    one, other = together(load()), together(load(), **how)
    for name in ("ids", "mask", "truncated"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    torch.testing.assert_close(one.logprobs, other.logprobs)


def test_row_s_response_is_its_own_whatever_stands_beside_it(load):
    lm = load()
    whole = listed(together(lm))
    order = [4, 0, 5, 2]
    ids, mask = pad([PROMPTS[i] for i in order], 2, "left")
    noise = uniforms([0], order, len(PROMPTS), LENGTH)
    assert listed(sample(lm, ids, mask, noise, Decoding(stops=tuple(STOPS)), LENGTH)) == [whole[i] for i in order]


def test_response_ends_at_its_first_stop_which_belongs_to_it(load):
    said = together(load(), PROMPTS * 8, seed=1)
    ended_by = set()
    for row, keep, cut in zip(said.ids, said.mask, said.truncated, strict=True):
        response = row[keep].tolist()
        assert keep.tolist() == [t < len(response) for t in range(len(keep))]
        assert not any(token in STOPS for token in response[:-1])
        assert bool(cut) == (response[-1] not in STOPS)
        assert not cut or len(response) == LENGTH
        assert not row[~keep].any()
        ended_by.add(response[-1] if not cut else None)
    assert ended_by == {*STOPS, None}  # every stop and the limit were met


def test_no_column_is_padding_in_every_row(load):
    said = together(load(), stops=range(27))
    assert said.ids.shape == said.mask.shape == said.logprobs.shape == (6, 1)
    assert not said.truncated.any()


def test_stop_as_the_very_last_token_that_the_limit_allows_is_an_end(load):
    ids, mask = pad(PROMPTS, 2, "left")
    said = sample(load(), ids, mask, uniforms([0], range(6), 6, 1), Decoding(stops=tuple(range(1, 14))), 1)
    assert said.truncated.tolist() == [token not in range(1, 14) for token in said.ids[:, 0].tolist()]
    assert said.truncated.unique().numel() == 2


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_frequencies_are_those_that_are_scored(load, family):
    """20,000 draws of one token at temperature 0.7: every token within four standard errors of its probability."""
    lm, draws = load(family), 20_000
    noise = uniforms([3], range(draws), draws, 1)
    decoding = Decoding(0.7, stops=(1,))
    said = sample(lm, torch.full((draws, 1), 7), torch.ones(draws, 1, dtype=torch.bool), noise, decoding, 1)
    with torch.no_grad():
        p = (lm(torch.tensor([[7]])).logits[0, -1] / 0.7).softmax(-1)
        out = ActorCritic(lm)(
            torch.full((27, 1), 7),
            torch.ones(27, 1, dtype=torch.bool),
            torch.arange(27)[:, None],
            torch.ones(27, 1, dtype=torch.bool),
            decoding,
        )
    torch.testing.assert_close(out.logprobs[:, 0].exp(), p)
    share = torch.bincount(said.ids[said.mask], minlength=27) / draws
    assert ((share - p).abs() <= 4 * (p * (1 - p) / draws).sqrt()).all()
    assert p.max() / p.min() > 3  # the tokens differ, or the test shows little


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_cold_limit_is_transformers_greedy_search(load, family):
    lm = load(family)
    ids, mask = pad(PROMPTS, 2, "left")
    ours = together(lm, temperature=1e-4).ids
    theirs = lm.generate(
        ids, attention_mask=mask.long(), do_sample=False, max_new_tokens=LENGTH, eos_token_id=STOPS, pad_token_id=0
    )
    assert torch.equal(ours, theirs[:, ids.shape[1] :])
    greedy = sample(lm, ids, mask, None, Decoding(stops=tuple(STOPS)), LENGTH)
    assert torch.equal(greedy.ids, ours)


# ------------------------------------------------------------------------------------------------------- random numbers


@pytest.mark.parametrize("rows", [[3], [5, 0, 2], list(range(8)), torch.tensor([7, 7])])
def test_a_row_s_numbers_do_not_depend_on_which_rows_are_asked_for(rows):
    whole = uniforms([4, 2], range(8), 8, 5)
    assert torch.equal(uniforms([4, 2], rows, 8, 5), whole[torch.as_tensor(rows)])


def test_numbers_are_uniform_and_differ_with_every_part_of_the_key():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    whole = uniforms([0, 1], range(1000), 1000, 10)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's generator is touched
    assert whole.dtype == torch.float64
    assert 0 <= whole.min() < 0.001
    assert 0.999 < whole.max() < 1
    assert abs(float(whole.mean()) - 0.5) < 4 * (1 / 12 / 10_000) ** 0.5
    others = [uniforms(key, range(1000), 1000, 10) for key in ([1, 0], [0, 2], [1, 1], [0], [0, 1, 0], [1])]
    assert len({float(numbers[0, 0]) for numbers in (whole, *others)}) == 7


# ---------------------------------------------------------------------------------------------------------------- stops


def named(tokenizer=None, model=None, generation=None, **config):
    text = SimpleNamespace(vocab_size=27)
    lm_config = SimpleNamespace(eos_token_id=model, get_text_config=lambda: text)
    found = SimpleNamespace(eos_token_id=generation)
    return stop_ids(SimpleNamespace(eos_token_id=tokenizer), lm_config, GenerationConfig(**config), found)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"tokenizer": 1}, [1]),
        ({"tokenizer": 1, "model": 2}, [1, 2]),
        ({"tokenizer": 1, "model": [5, 1], "generation": [7]}, [1, 5, 7]),
        ({"tokenizer": None, "generation": 0}, [0]),
        ({"tokenizer": 1, "model": 2, "stop_ids": [26, 0]}, [26, 0]),
    ],
)
def test_stops_are_the_configured_ones_or_all_that_anyone_names(given, expected):
    assert named(**given) == expected


def test_no_stop_and_stops_outside_the_vocabulary_are_refused():
    with pytest.raises(UserError, match="names an end token"):
        named()
    with pytest.raises(UserError, match="names 27, but the model's tokens are 0 to 26"):
        named(stop_ids=[1, 27])


def test_stops_of_a_real_model(load, models):
    lm = load()
    tokenizer = load_tokenizer(str(models("llama")))
    assert stop_ids(tokenizer, lm.config, GenerationConfig(), lm.generation_config) == [1]
