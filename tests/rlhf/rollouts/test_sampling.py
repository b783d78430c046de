"""Sampling against a loop that has neither cache nor padding nor batch, and against transformers' own greedy search."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from rlhf.config.shared import GenerationConfig, ModelConfig
from rlhf.data.encoding import pad
from rlhf.errors import UserError
from rlhf.models.actor_critic import ActorCritic, Reference
from rlhf.models.distribution import LogitTransform
from rlhf.models.loading import load_causal_lm, load_tokenizer
from rlhf.records import Tokens
from rlhf.rollouts.sampling import sample, uniform_noise
from rlhf.rollouts.stopping import StopStrings, make_logit_transform, resolve_stop_ids

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


def sample_batch(lm, prompts=PROMPTS, seed=0, stop_ids=STOPS, temperature=1.0, max_rows=None, filler=2, left=0):
    noise = uniform_noise([seed], range(len(prompts)), len(prompts), LENGTH)
    ids, mask = pad(prompts, filler, "left")
    ids = torch.nn.functional.pad(ids, (left, 0), value=filler)
    transform = LogitTransform(temperature, stop_ids=tuple(stop_ids))
    return sample(lm, ids, torch.nn.functional.pad(mask, (left, 0)), noise, transform, LENGTH, None, max_rows)


def listed(sampled):
    return [row[keep].tolist() for row, keep in zip(sampled.ids, sampled.mask, strict=True)]


@torch.no_grad()
def json_safe(lm, prompt, noise, stops, temperature):
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
    noise = uniform_noise([0], range(12), 12, LENGTH)
    expected = [json_safe(lm, p, u, STOPS, temperature) for p, u in zip(prompts, noise, strict=True)]
    assert len({len(response) for response in expected}) > 2  # they end at different times, or the test shows little
    assert listed(sample_batch(lm, prompts, temperature=temperature)) == expected


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_sliding_window_shorter_than_the_text_is_respected(load, family):
    lm = load(family)
    wide = listed(sample_batch(lm))
    lm.config.sliding_window = 3
    for module in lm.modules():
        if getattr(module, "sliding_window", None) is not None:
            module.sliding_window = 3
    noise = uniform_noise([0], range(len(PROMPTS)), len(PROMPTS), LENGTH)
    expected = [json_safe(lm, p, u, STOPS, 1.0) for p, u in zip(PROMPTS, noise, strict=True)]
    assert listed(sample_batch(lm, left=2)) == expected
    assert expected != wide


@pytest.mark.parametrize("how", [{"max_rows": 1}, {"max_rows": 4}, {"max_rows": 99}, {"left": 5}, {"filler": 1}])
def test_responses_do_not_depend_on_how_they_are_batched_and_padded(load, how):
    """Also where padding and end are one token."""
    one, other = sample_batch(load()), sample_batch(load(), **how)
    for name in ("ids", "mask", "truncated"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    torch.testing.assert_close(one.logprobs, other.logprobs)


def test_a_response_does_not_depend_on_the_other_rows(load):
    lm = load()
    whole = listed(sample_batch(lm))
    order = [4, 0, 5, 2]
    ids, mask = pad([PROMPTS[i] for i in order], 2, "left")
    noise = uniform_noise([0], order, len(PROMPTS), LENGTH)
    assert listed(sample(lm, ids, mask, noise, LogitTransform(stop_ids=tuple(STOPS)), LENGTH)) == [
        whole[i] for i in order
    ]


def test_a_response_ends_with_its_first_stop_token(load):
    sampled = sample_batch(load(), PROMPTS * 8, seed=1)
    ended_by = set()
    for row, keep, cut in zip(sampled.ids, sampled.mask, sampled.truncated, strict=True):
        response = row[keep].tolist()
        assert keep.tolist() == [t < len(response) for t in range(len(keep))]
        assert not any(token in STOPS for token in response[:-1])
        assert bool(cut) == (response[-1] not in STOPS)
        assert not cut or len(response) == LENGTH
        assert not row[~keep].any()
        ended_by.add(response[-1] if not cut else None)
    assert ended_by == {*STOPS, None}  # every stop and the limit were met


def test_no_column_is_padding_in_every_row(load):
    sampled = sample_batch(load(), stop_ids=range(27))
    assert sampled.ids.shape == sampled.mask.shape == sampled.logprobs.shape == (6, 1)
    assert not sampled.truncated.any()


def test_a_stop_token_at_the_length_limit_ends_the_response(load):
    ids, mask = pad(PROMPTS, 2, "left")
    sampled = sample(
        load(), ids, mask, uniform_noise([0], range(6), 6, 1), LogitTransform(stop_ids=tuple(range(1, 14))), 1
    )
    assert sampled.truncated.tolist() == [token not in range(1, 14) for token in sampled.ids[:, 0].tolist()]
    assert sampled.truncated.unique().numel() == 2


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_sampled_frequencies_match_the_scored_probabilities(load, family):
    """20,000 draws of one token at temperature 0.7: every token within four standard errors of its probability."""
    lm, draws = load(family), 20_000
    noise = uniform_noise([3], range(draws), draws, 1)
    transform = LogitTransform(0.7, stop_ids=(1,))
    sampled = sample(lm, torch.full((draws, 1), 7), torch.ones(draws, 1, dtype=torch.bool), noise, transform, 1)
    with torch.no_grad():
        p = (lm(torch.tensor([[7]])).logits[0, -1] / 0.7).softmax(-1)
        real = torch.ones(27, 1, dtype=torch.bool)
        out = ActorCritic(lm)(Tokens(torch.full((27, 1), 7), real, torch.arange(27)[:, None], real), transform)
    torch.testing.assert_close(out.logprobs[:, 0].exp(), p)
    share = torch.bincount(sampled.ids[sampled.mask], minlength=27) / draws
    assert ((share - p).abs() <= 4 * (p * (1 - p) / draws).sqrt()).all()
    assert p.max() / p.min() > 3  # the tokens differ, or the test shows little


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_low_temperature_limit_is_transformers_greedy_search(load, family):
    lm = load(family)
    ids, mask = pad(PROMPTS, 2, "left")
    sampled_ids = sample_batch(lm, temperature=1e-4).ids
    expected_ids = lm.generate(
        ids, attention_mask=mask.long(), do_sample=False, max_new_tokens=LENGTH, eos_token_id=STOPS, pad_token_id=0
    )
    assert torch.equal(sampled_ids, expected_ids[:, ids.shape[1] :])
    greedy = sample(lm, ids, mask, None, LogitTransform(stop_ids=tuple(STOPS)), LENGTH)
    assert torch.equal(greedy.ids, sampled_ids)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "falcon", "bloom", "mamba"])
def test_equal_consecutive_prompts_are_read_once(load, monkeypatch, family):
    """And sample what each of them samples alone; a prompt that comes again later is read again."""
    lm = load(family)
    prompts = [p for p in PROMPTS for _ in range(3)] + PROMPTS[:1]
    noise = uniform_noise([0], range(19), 19, LENGTH)
    expected = [json_safe(lm, p, u, STOPS, 1.0) for p, u in zip(prompts, noise, strict=True)]
    rows_read = []
    trunk = lm.base_model
    handle = trunk.register_forward_pre_hook(
        lambda _, __, inputs: rows_read.append(len(inputs["input_ids"])), with_kwargs=True
    )
    sampled = sample_batch(lm, prompts)
    handle.remove()
    assert rows_read[:2] == [7, 19]
    assert listed(sampled) == expected


# ------------------------------------------------------------------------------------------------------- random numbers


@pytest.mark.parametrize("rows", [[3], [5, 0, 2], list(range(8)), torch.tensor([7, 7])])
def test_a_row_s_noise_does_not_depend_on_the_other_rows(rows):
    whole = uniform_noise([4, 2], range(8), 8, 5)
    assert torch.equal(uniform_noise([4, 2], rows, 8, 5), whole[torch.as_tensor(rows)])


def test_noise_is_uniform_and_depends_on_every_part_of_the_key():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    whole = uniform_noise([0, 1], range(1000), 1000, 10)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's generator is touched
    assert whole.dtype == torch.float64
    assert 0 <= whole.min() < 0.001
    assert 0.999 < whole.max() < 1
    assert abs(float(whole.mean()) - 0.5) < 4 * (1 / 12 / 10_000) ** 0.5
    others = [uniform_noise(key, range(1000), 1000, 10) for key in ([1, 0], [0, 2], [1, 1], [0], [0, 1, 0], [1])]
    assert len({float(numbers[0, 0]) for numbers in (whole, *others)}) == 7


# ---------------------------------------------------------------------------------------------------------------- stops


def named(tokenizer=None, model=None, generation=None, **config):
    text = SimpleNamespace(vocab_size=27)
    lm_config = SimpleNamespace(eos_token_id=model, get_text_config=lambda: text)
    generation_config = SimpleNamespace(eos_token_id=generation)
    return resolve_stop_ids(
        SimpleNamespace(eos_token_id=tokenizer), lm_config, GenerationConfig(**config), generation_config
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"tokenizer": 1}, [1]),
        ({"tokenizer": 1, "model": 2}, [1, 2]),
        ({"tokenizer": 1, "model": [5, 1], "generation": [7]}, [1, 5, 7]),
        ({"tokenizer": None, "generation": 0}, [0]),
        ({"tokenizer": 1, "model": 2, "stop_ids": [26, 0]}, [26, 0]),
    ],
)
def test_stop_ids_are_the_configured_ones_or_all_end_tokens_of_tokenizer_and_model(config, expected):
    assert named(**config) == expected


def test_missing_stop_ids_and_stop_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(UserError, match="names an end token"):
        named()
    with pytest.raises(UserError, match="names 27, but the model's tokens are 0 to 26"):
        named(stop_ids=[1, 27])


def test_stop_ids_of_a_real_model(load, models):
    lm = load()
    tokenizer = load_tokenizer(str(models("llama")))
    assert resolve_stop_ids(tokenizer, lm.config, GenerationConfig(), lm.generation_config) == [1]


# ----------------------------------------------------------------------------------------------- what is never possible

TRANSFORMS = {
    "plain": LogitTransform(0.8, stop_ids=tuple(STOPS)),
    "suppressed": LogitTransform(0.8, suppress_ids=(0, 8, 20, 25), stop_ids=tuple(STOPS)),
    "shortest": LogitTransform(0.8, min_new_tokens=4, stop_ids=tuple(STOPS)),
    "both": LogitTransform(0.8, suppress_ids=(8, 25), min_new_tokens=3, stop_ids=tuple(STOPS)),
}


def possible(transform, position):
    """The tokens that may come at a position of a response, by the definition."""
    banned = set(transform.suppress_ids) | (set(transform.stop_ids) if position < transform.min_new_tokens else set())
    return [i for i in range(27) if i not in banned]


@torch.no_grad()
def distribution(lm, text, transform, position):
    """Of the next token: a softmax over the possible tokens alone."""
    logits = lm(torch.tensor([text])).logits[0, -1] / transform.temperature
    allowed, p = possible(transform, position), torch.zeros(27)
    p[allowed] = logits[allowed].softmax(-1)
    return p


def sample_constrained(lm, transform, prompts=PROMPTS * 2, **how):
    noise = uniform_noise([0], range(len(prompts)), len(prompts), LENGTH)
    ids, mask = pad(prompts, 2, "left")
    return sample(lm, ids, mask, noise, transform, LENGTH, **how), noise, (ids, mask)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_constrained_responses_equal_those_of_a_plain_loop(load, family, name):
    lm, transform = load(family), TRANSFORMS[name]
    sampled, noise, _ = sample_constrained(lm, transform)
    expected = []
    for prompt, numbers in zip(PROMPTS * 2, noise.tolist(), strict=True):
        response = []
        for u in numbers:
            p = distribution(lm, prompt + response, transform, len(response))
            response.append(int((p.double().cumsum(-1) > u * float(p.double().sum())).int().argmax()))
            if response[-1] in STOPS:
                break
        expected.append(response)
    assert listed(sampled) == expected
    assert len({len(response) for response in expected}) > 2
    assert not {token for response in expected for token in response} & set(transform.suppress_ids)
    assert min(map(len, expected)) > transform.min_new_tokens or transform.min_new_tokens == 0
    assert name == "plain" or expected != listed(sample_constrained(lm, TRANSFORMS["plain"])[0])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_sampler_policy_and_reference_give_every_token_the_same_probability(load, name):
    """Every token of the vocabulary at every position: the impossible ones none at all, the rest add up to one."""
    lm, transform = load(), TRANSFORMS[name]
    sampled, _, (prompt_ids, prompt_mask) = sample_constrained(lm, transform)
    row = max(range(12), key=lambda i: int(sampled.mask[i].sum()))
    width = int(sampled.mask[row].sum())
    prompt, response = (PROMPTS * 2)[row], sampled.ids[row, :width].tolist()
    for position in range(width):
        p = distribution(lm, prompt + response[:position], transform, position)
        # The response as it was, but for its last token, which is each of the 27 in turn.
        ids = torch.tensor([response[: position + 1]] * 27)
        ids[:, position] = torch.arange(27)
        tokens = Tokens(
            prompt_ids[row].expand(27, -1), prompt_mask[row].expand(27, -1), ids, torch.ones_like(ids).bool()
        )
        with torch.no_grad():
            out = ActorCritic(lm)(tokens, transform)
        of_policy, of_reference = (
            out.logprobs[:, position],
            ActorCritic(Reference(lm).lm, critic=None)(tokens, transform).logprobs[:, position],
        )
        torch.testing.assert_close(of_policy.exp(), p, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(of_reference.exp(), p, rtol=1e-4, atol=1e-6)
        impossible = [i for i in range(27) if i not in possible(transform, position)]
        assert (
            of_policy[impossible].exp().tolist() == of_reference[impossible].exp().tolist() == [0.0] * len(impossible)
        )
        torch.testing.assert_close(of_policy.exp().sum(), torch.tensor(1.0))
        real = p[p > 0]
        torch.testing.assert_close(out.entropy[0, position], -(real * real.log()).sum(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sampled.logprobs[row, position].exp(), p[response[position]], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_sampler_logprobs_equal_the_policy_s_after_rows_left_the_cache(load, family, name):
    lm, transform = load(family), replace(TRANSFORMS[name], stop_ids=(*STOPS, 5, 13, 14))
    sampled, _, prompts = sample_constrained(lm, transform, PROMPTS * 4)
    lengths = sampled.mask.sum(-1)
    alive = [int((lengths > t).sum()) for t in range(1, LENGTH)]
    assert any(0 < rows <= 12 for rows in alive)  # half of 24 rows left, and some continued
    with torch.no_grad():
        out = ActorCritic(lm)(Tokens(*prompts, sampled.ids, sampled.mask), transform)
    torch.testing.assert_close(sampled.logprobs, out.logprobs, rtol=0, atol=1e-5)
    assert (sampled.logprobs[sampled.mask] < 0).all()
    assert not sampled.logprobs[~sampled.mask].any()


def test_gradient_is_finite_where_tokens_are_impossible(load):
    """And none of it reaches what was impossible: the logits of suppressed tokens stand nowhere."""
    lm, transform = load(), TRANSFORMS["both"]
    sampled, _, prompts = sample_constrained(lm, transform)
    out = ActorCritic(lm)(Tokens(*prompts, sampled.ids, sampled.mask), transform)
    (out.logprobs.sum() + out.entropy.sum()).backward()
    grad = lm.get_output_embeddings().weight.grad
    assert grad.isfinite().all()
    assert not grad[list(transform.suppress_ids)].any()
    assert grad[[9, 21]].any()


def test_positions_count_response_tokens_only(load):
    """At position 2 of min_new_tokens 3 no end, at position 3 any; whatever stands left of it."""
    logits = torch.zeros(4, 5)
    transformed = LogitTransform(2.0, suppress_ids=(4,), min_new_tokens=3, stop_ids=(0, 1))(
        logits, torch.tensor([0, 2, 3, 9])
    )
    ninf = -torch.inf
    assert transformed.tolist() == [[ninf, ninf, 0, 0, ninf]] * 2 + [[0, 0, 0, 0, ninf]] * 2
    assert LogitTransform(0.5)(torch.tensor([[1.0, -2.0]]), torch.tensor([0])).tolist() == [[2.0, -4.0]]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_greedy_takes_the_most_probable_possible_token(load, name):
    lm, transform = load(), TRANSFORMS[name]
    ids, mask = pad(PROMPTS, 2, "left")
    sampled = sample(lm, ids, mask, None, transform, LENGTH)
    for prompt, response, logprobs in zip(PROMPTS, listed(sampled), sampled.logprobs.tolist(), strict=True):
        text = list(prompt)
        for position, token in enumerate(response):
            p = distribution(lm, text, transform, position)
            assert token == int(p.argmax())
            assert logprobs[position] == pytest.approx(float(p.max().log()), abs=1e-5)
            assert token not in STOPS or position == len(response) - 1
            text.append(token)
    one_by_one = sample(lm, ids, mask, None, transform, LENGTH, max_rows=1)
    assert torch.equal(one_by_one.ids, sampled.ids)


def test_suppressed_ids_outside_the_vocabulary_or_without_an_end_are_refused():
    def made(stop_ids=(1, 5), **settings):
        return make_logit_transform(GenerationConfig(**settings), stop_ids, 27)

    for bad in (27, -1):
        with pytest.raises(UserError) as error:
            made(suppress_ids=[3, bad])
        assert str(error.value) == f"generation.suppress_ids names {bad}, but the model's tokens are 0 to 26"
    with pytest.raises(UserError) as error:
        made(suppress_ids=[5, 3, 1])
    assert str(error.value) == "generation.suppress_ids holds every end token (1, 5), so no response could end"
    assert made(suppress_ids=[5]) == LogitTransform(1.0, (5,), 0, (1, 5))
    assert made(suppress_ids=[1, 5], stop_strings=["end"]).suppress_ids == (1, 5)  # a text can end it
    assert made(temperature=0.5, min_new_tokens=2) == LogitTransform(0.5, (), 2, (1, 5))


def test_a_stop_string_suffices_without_an_end_token():
    assert named(stop_strings=["end"]) == []


# ------------------------------------------------------------------------------------------------------- stop strings


@pytest.fixture
def strings(models):
    tokenizer = load_tokenizer(str(models("llama")))

    def made(*texts):
        return StopStrings(tokenizer, texts)

    return made


def words(*texts):
    """Ids of rows of words as the tiny tokenizer has them."""
    vocabulary = {"the": 7, "film": 8, "is": 9, "a": 10, "good": 11, "bad": 12}
    return torch.tensor([[vocabulary[word] for word in text.split()] for text in texts])


def test_a_stop_string_is_detected_at_the_token_that_completes_it(strings):
    stop = strings("film is", "oo")
    ids = words("the film is a", "film the is a", "a good film the", "the film film is", "is film good bad")
    seen = [stop.completed(ids[:, : t + 1]).tolist() for t in range(4)]
    assert list(map(list, zip(*seen, strict=True))) == [
        [False, False, True, False],
        [False, False, False, False],
        [False, True, False, False],
        [False, False, False, True],
        [False, False, True, False],
    ]


def test_a_long_stop_string_is_detected_in_a_long_response(strings):
    stop = strings("is a good film the bad")
    ids = words("a " * 40 + "is a good film the bad")
    assert stop.completed(ids).tolist() == [True]
    assert stop.completed(ids[:, :-1]).tolist() == [False]


def test_text_is_cut_before_the_first_stop_string(strings):
    """Which is sought with the special tokens in their positions; 1 ends the text, 7 to 10 are `the film is a`."""
    stop = strings("good", "film is")
    assert stop.cut([7, 8, 9, 10, 11], "the film is a good") == "the "
    assert stop.cut([10, 11, 8, 9], "a good film is") == "a "
    assert stop.cut([4, 7, 11, 1], "the good") == " the "
    assert stop.cut([7, 8, 1], "the film") == "the film"
    assert stop.cut([8, 9], "film is") == ""


@pytest.mark.parametrize("text", ["good", "film", "st", None])
@pytest.mark.parametrize("max_rows", [None, 3])
def test_a_response_ends_with_the_token_that_completes_a_stop_string(load, strings, text, max_rows):
    """It is the unstopped response, cut; the prompt's own words complete nothing. None: two words of one response."""
    lm, prompts = load(), PROMPTS * 6
    transform = LogitTransform(1.0, stop_ids=(1,))
    free, _, _ = sample_constrained(lm, transform, prompts)
    text = text or strings().tokenizer.decode(max(listed(free), key=len)[3:5])
    stop = strings(text)
    sampled, _, _ = sample_constrained(lm, transform, prompts, stop_strings=stop, max_rows=max_rows)
    stopped = 0
    for whole, response, cut in zip(listed(free), listed(sampled), sampled.truncated.tolist(), strict=True):
        texts = [stop.tokenizer.decode(whole[: t + 1]) for t in range(len(whole))]
        ends = [t for t, so_far in enumerate(texts) if text in so_far]
        assert response == (whole[: ends[0] + 1] if ends else whole)
        assert cut == (not ends and whole[-1] != 1)
        stopped += bool(ends) and len(response) < len(whole)
    assert stopped >= (1 if " " in text else 3)


def test_a_stop_string_at_the_length_limit_ends_the_response(load, strings):
    lm = load()
    ids, mask = pad(PROMPTS, 2, "left")
    free = sample(lm, ids, mask, uniform_noise([0], range(6), 6, 1), LogitTransform(stop_ids=(1,)), 1)
    text = strings().tokenizer.decode(free.ids[0])
    sampled = sample(lm, ids, mask, uniform_noise([0], range(6), 6, 1), LogitTransform(stop_ids=(1,)), 1, strings(text))
    assert torch.equal(sampled.ids, free.ids)
    expected = [token not in (1, int(free.ids[0, 0])) for token in free.ids[:, 0].tolist()]
    assert sampled.truncated.tolist() == expected
    assert not sampled.truncated[0]


def test_a_stop_string_does_not_begin_in_the_prompt(load, strings):
    lm, transform = load(), LogitTransform(1.0, stop_ids=(1,))
    free = listed(sample_constrained(lm, transform, PROMPTS)[0])
    decode = strings().tokenizer.decode
    text = decode([PROMPTS[0][-1], free[0][0]])
    assert text not in decode(free[0])
    assert len(free[0]) > 1
    assert listed(sample_constrained(lm, transform, PROMPTS, stop_strings=strings(text))[0])[0] == free[0]
