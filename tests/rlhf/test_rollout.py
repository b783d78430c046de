"""Token rewards, advantages, and the groups in which responses are read."""

from dataclasses import replace

import pytest
import torch

from rlhf.advantages import make_batch, token_rewards
from rlhf.config import GenerationConfig, ModelConfig, PPOConfig, RewardConfig
from rlhf.generation import uniforms
from rlhf.loading import load_causal_lm, load_tokenizer
from rlhf.metrics import Clock
from rlhf.models import ActorCritic, Decoding, Reference
from rlhf.rollout import Sampler, decode, forward_groups, read, respond, score, tokens
from rlhf.types import Prompts, Rollout

LENGTHS = [5, 1, 3, 2]


def random_rollout(seed=0):
    """Ragged rows; log-probabilities and values under padding are loud, so that reading them would show."""
    random = torch.Generator().manual_seed(seed)
    rows, width = len(LENGTHS), max(LENGTHS)
    mask = torch.arange(width) < torch.tensor(LENGTHS)[:, None]

    def numbers():
        return torch.where(mask, torch.randn(rows, width, generator=random), 1e6)

    prompts = Prompts(
        torch.full((rows, 1), 7), torch.ones(rows, 1, dtype=torch.bool), ["the"] * rows, {"wanted": list("abcd")}
    )
    return Rollout(
        prompts=prompts,
        response_ids=torch.where(mask, 8, 0),
        response_mask=mask,
        truncated=torch.tensor([True, False, False, False]),
        completions=["film"] * rows,
        old_logprobs=numbers(),
        ref_logprobs=numbers() + 1,
        old_values=numbers(),
        scores=torch.randn(rows, generator=random),
    )


def test_score_lands_on_the_last_token_and_every_token_pays_its_kl():
    """Three tokens and one, by hand; the price is 0.5 a nat."""
    prompts = Prompts(torch.tensor([[7], [7]]), torch.ones(2, 1, dtype=torch.bool), ["the", "the"], {})
    rollout = Rollout(
        prompts=prompts,
        response_ids=torch.tensor([[8, 9, 1], [1, 0, 0]]),
        response_mask=torch.tensor([[True, True, True], [True, False, False]]),
        truncated=torch.tensor([False, False]),
        completions=["film is", ""],
        old_logprobs=torch.tensor([[-1.0, -2.0, -3.0], [-1.0, 99.0, 99.0]]),
        ref_logprobs=torch.tensor([[-3.0, -2.0, -1.0], [-1.5, -99.0, -99.0]]),
        old_values=torch.zeros(2, 3),
        scores=torch.tensor([10.0, -4.0]),
    )
    assert token_rewards(rollout, rollout.scores, 0.5, "k1").tolist() == [[-1.0, 0.0, 11.0], [-4.25, 0.0, 0.0]]
    assert token_rewards(rollout, rollout.scores, 0.0, "k1").tolist() == [[0.0, 0.0, 10.0], [-4.0, 0.0, 0.0]]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_advantages_and_returns_are_those_of_a_plain_loop_over_each_response(gamma, lam):
    rollout = random_rollout()
    batch = make_batch(rollout, PPOConfig(gamma=gamma, lam=lam, whiten_advantages=False), 0.1, RewardConfig())
    for i, length in enumerate(LENGTHS):
        logprobs, ref, values = (
            t[i, :length].tolist() for t in (rollout.old_logprobs, rollout.ref_logprobs, rollout.old_values)
        )
        rewards = [-0.1 * (p - q) for p, q in zip(logprobs, ref, strict=True)]
        rewards[-1] += float(rollout.scores[i])
        advantages, after = [0.0] * length, 0.0
        for t in reversed(range(length)):
            following = values[t + 1] if t + 1 < length else 0.0  # nothing is worth anything after the last token
            after = rewards[t] + gamma * following - values[t] + gamma * lam * after
            advantages[t] = after
        returns = [a + v for a, v in zip(advantages, values, strict=True)]
        torch.testing.assert_close(batch.rewards[i, :length], torch.tensor(rewards))
        torch.testing.assert_close(batch.advantages[i, :length], torch.tensor(advantages), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(batch.returns[i, :length], torch.tensor(returns), rtol=1e-5, atol=1e-5)


def test_return_at_lambda_one_is_the_discounted_sum_of_what_is_still_paid():
    rollout = random_rollout()
    batch = make_batch(rollout, PPOConfig(gamma=0.5, lam=1.0), 0.1, RewardConfig())
    rewards = batch.rewards[0].tolist()
    expected = [sum(0.5**k * r for k, r in enumerate(rewards[t:])) for t in range(5)]
    torch.testing.assert_close(batch.returns[0], torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_padding_changes_nothing():
    """Two more columns of padding, loud again, leave every real number as it was."""
    rollout, config = random_rollout(), PPOConfig(gamma=0.9, lam=0.7)
    wide = {name: torch.nn.functional.pad(getattr(rollout, name), (0, 2), value=-1e6) for name in ("old_logprobs",)}
    wide |= {name: torch.nn.functional.pad(getattr(rollout, name), (0, 2), value=1e6) for name in ("ref_logprobs",)}
    wide |= {
        name: torch.nn.functional.pad(getattr(rollout, name), (0, 2)) for name in ("response_ids", "response_mask")
    }
    wide |= {"old_values": torch.nn.functional.pad(rollout.old_values, (0, 2), value=1e6)}
    narrow, widened = (make_batch(r, config, 0.1, RewardConfig()) for r in (rollout, replace(rollout, **wide)))
    real = rollout.response_mask
    for name in ("rewards", "advantages", "returns"):
        torch.testing.assert_close(getattr(widened, name)[:, :5][real], getattr(narrow, name)[real])


def test_whitening_is_over_real_tokens_and_leaves_the_returns_alone():
    rollout = random_rollout()
    mask = rollout.response_mask
    plain, white = (make_batch(rollout, PPOConfig(whiten_advantages=on), 0.1, RewardConfig()) for on in (False, True))
    real = plain.advantages[mask]
    expected = (real - real.mean()) / real.std(correction=0)
    torch.testing.assert_close(white.advantages[mask], expected)
    assert not white.advantages[~mask].any()
    assert torch.equal(plain.returns, white.returns)


@pytest.mark.parametrize(("count", "minibatch", "microbatch"), [(8, 4, 2), (8, 8, 3), (12, 4, 3), (5, 2, 4), (6, 3, 1)])
def test_forward_groups_cover_all_rows_once_and_never_cross_a_minibatch(count, minibatch, microbatch):
    groups = forward_groups(count, minibatch, microbatch)
    assert torch.cat(groups).tolist() == list(range(count))
    for group in groups:
        assert len(group) <= microbatch
        assert int(group[0]) // minibatch == int(group[-1]) // minibatch


def test_forward_groups_are_the_microbatches_of_the_first_epoch():
    assert [g.tolist() for g in forward_groups(7, 5, 3)] == [[0, 1, 2], [3, 4], [5, 6]]


def test_score_passes_texts_and_columns_and_applies_the_rules():
    rollout = replace(random_rollout(), completions=["a", "b", "c", "d"])
    asked = []

    def source(prompts, completions, columns):
        asked.append((prompts, completions, columns))
        return [1.0, 2.0, 3.0, 4.0]

    scored = score(rollout, source, RewardConfig(missing_eos_penalty=9.0, min_length=2, short_penalty=7.0), 5)
    assert asked == [(["the"] * 4, ["a", "b", "c", "d"], {"wanted": list("abcd")})]
    assert scored.scores.tolist() == [-9.0, -7.0, 3.0, 4.0]


def test_decoded_responses_have_neither_padding_nor_special_tokens(models):
    tokenizer = load_tokenizer(str(models("llama")))
    ids = torch.tensor([[7, 8, 1, 11], [7, 2, 8, 26]])
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    assert decode(Sampler(tokenizer, Decoding(), GenerationConfig()), ids, mask) == ["the film", "the film it"]


@pytest.mark.parametrize("group_size", [1, 2, 4])
def test_responses_are_read_as_the_policy_and_the_reference_would_read_them(models, group_size):
    """In whatever groups: each row gets what one forward over it gives, at the temperature of the sampling."""
    folder = models("llama")
    tokenizer, lm = load_tokenizer(str(folder)), load_causal_lm(ModelConfig(path=str(folder)))
    reference = Reference.of(lm)
    policy = ActorCritic(lm)
    torch.manual_seed(0)
    torch.nn.init.normal_(policy.value_head.weight)
    with torch.no_grad():
        lm.get_input_embeddings().weight.mul_(1.1)  # the policy has moved on from its reference
    ids, mask = torch.tensor([[2, 7], [8, 9], [2, 10], [11, 12]]), torch.tensor([[False, True], [True, True]] * 2)
    prompts = Prompts(ids, mask, ["the"] * 4, {})
    sampler = Sampler(tokenizer, Decoding(0.8, stops=(1,)), GenerationConfig(max_new_tokens=6, temperature=0.8))
    groups = torch.arange(4).split(group_size)
    rollout = respond(policy, sampler, prompts, uniforms([3], range(4), 4, 6), Clock())
    rollout = read(policy, reference, rollout, groups, sampler.decoding)
    assert rollout.response_mask.sum(-1).unique().numel() > 1
    assert rollout.scores.isnan().all()
    with torch.no_grad():
        out = policy(*tokens(rollout), Decoding(0.8))
    for name, expected in [
        ("old_logprobs", out.logprobs),
        ("old_values", out.values),
        ("ref_logprobs", reference.logprobs(*tokens(rollout), Decoding(0.8))),
    ]:
        torch.testing.assert_close(getattr(rollout, name), expected, rtol=1e-4, atol=1e-5)
    assert (rollout.old_logprobs - rollout.ref_logprobs).abs().max() > 0.01
