"""Token rewards, advantages, and the groups in which responses are read."""

from dataclasses import replace

import pytest
import torch

from rlhf.config.ppo import PPOConfig
from rlhf.config.scores import RewardConfig
from rlhf.config.shared import GenerationConfig, LoraConfig, ModelConfig
from rlhf.data.prompts import make_prompts
from rlhf.errors import UserError
from rlhf.models.actor_critic import ActorCritic, Reference
from rlhf.models.adapters import CRITIC
from rlhf.models.distribution import LogitTransform, OutputHead, token_positions
from rlhf.models.loading import add_lora, load_causal_lm, load_tokenizer
from rlhf.records import Prompts, Rollout, mask_up_to_last
from rlhf.rollouts.sampling import uniform_noise
from rlhf.rollouts.stages import (
    RequestedOutputs,
    Sampler,
    bootstrap_values,
    compute_logprobs_and_values,
    decode,
    sample_responses,
    score_rollout,
    unscored_rollout,
)
from rlhf.trainers.advantages import make_batch, token_rewards

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


def test_score_is_the_last_token_s_reward_and_every_token_has_a_kl_penalty():
    """Three tokens and one, by hand; the KL coefficient is 0.5."""
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


def test_return_at_lambda_one_is_the_discounted_sum_of_rewards():
    rollout = random_rollout()
    batch = make_batch(rollout, PPOConfig(gamma=0.5, lam=1.0), 0.1, RewardConfig())
    rewards = batch.rewards[0].tolist()
    expected = [sum(0.5**k * r for k, r in enumerate(rewards[t:])) for t in range(5)]
    torch.testing.assert_close(batch.returns[0], torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_advantages_do_not_depend_on_padding():
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


def test_whitening_is_over_response_tokens_and_does_not_change_the_returns():
    rollout = random_rollout()
    mask = rollout.response_mask
    plain, white = (make_batch(rollout, PPOConfig(whiten_advantages=on), 0.1, RewardConfig()) for on in (False, True))
    real = plain.advantages[mask]
    expected = (real - real.mean()) / real.std(correction=0)
    torch.testing.assert_close(white.advantages[mask], expected)
    assert not white.advantages[~mask].any()
    assert torch.equal(plain.returns, white.returns)


def test_scoring_passes_texts_and_columns_and_applies_the_penalties():
    rollout = replace(random_rollout(), completions=["a", "b", "c", "d"])
    calls = []

    def source(prompts, completions, columns):
        calls.append((prompts, completions, columns))
        return [1.0, 2.0, 3.0, 4.0]

    scored = score_rollout(rollout, source, RewardConfig(missing_eos_penalty=9.0, min_length=2, short_penalty=7.0), 5)
    assert calls == [(["the"] * 4, ["a", "b", "c", "d"], {"wanted": list("abcd")})]
    assert scored.scores.tolist() == [-9.0, -7.0, 3.0, 4.0]


def test_decoded_responses_have_neither_padding_nor_special_tokens(models):
    tokenizer = load_tokenizer(str(models("llama")))
    ids = torch.tensor([[7, 8, 1, 11], [7, 2, 8, 26]])
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    assert decode(Sampler(tokenizer, LogitTransform(), GenerationConfig()), ids, mask) == ["the film", "the film it"]


@pytest.mark.parametrize("group_size", [1, 2, 4])
def test_logprobs_and_values_equal_those_of_policy_and_reference(models, group_size):
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
    sampler = Sampler(
        tokenizer, LogitTransform(0.8, stop_ids=(1,)), GenerationConfig(max_new_tokens=6, temperature=0.8)
    )
    groups = torch.arange(4).split(group_size)
    rollout = sample_responses(policy, sampler, prompts, uniform_noise([3], range(4), 4, 6))
    rollout = compute_logprobs_and_values(policy, reference, rollout, groups, sampler.transform)
    assert rollout.response_mask.sum(-1).unique().numel() > 1
    assert rollout.scores.isnan().all()
    with torch.no_grad():
        out = policy(rollout.tokens, LogitTransform(0.8))
    for name, expected in [
        ("old_logprobs", out.logprobs),
        ("old_values", out.values),
        ("ref_logprobs", ActorCritic(reference.lm, critic=None)(rollout.tokens, LogitTransform(0.8)).logprobs),
    ]:
        torch.testing.assert_close(getattr(rollout, name), expected, rtol=1e-4, atol=1e-5)
    assert (rollout.old_logprobs - rollout.ref_logprobs).abs().max() > 0.01


# ------------------------------------------------------------------------------------------------ what else is read

T, F = True, False
GAPPED_MASK = torch.tensor([[T, F, T, T, F, F], [T, T, T, T, T, T], [F, T, F, F, F, F], [T, F, F, T, T, F]])
"""Four responses with the words of an environment between their tokens."""
TRANSFORM = LogitTransform(0.8, suppress_ids=(5, 20), min_new_tokens=2, stop_ids=(1,))


def moved_policy(models, kind="shared", family="llama"):
    """A policy that has moved on from its reference, with a critic that says something, and that reference."""
    lm = load_causal_lm(ModelConfig(path=str(models(family)))).eval()
    torch.manual_seed(0)
    trunk = None
    if kind == "separate":
        trunk = load_causal_lm(ModelConfig(path=str(models(family)))).eval().base_model
        with torch.no_grad():
            trunk.get_input_embeddings().weight.mul_(0.7)
    if kind == "adapter":
        lm = add_lora(lm, LoraConfig(rank=2), "CAUSAL_LM")
        lm.add_adapter(CRITIC, lm.peft_config["default"])
    reference = Reference.of(lm)
    policy = ActorCritic(lm, kind, trunk)
    torch.nn.init.normal_(policy.value_head.weight)
    with torch.no_grad():
        if kind == "adapter":
            for name, p in lm.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(p, std=0.3)
        else:
            torch.nn.init.normal_(lm.get_input_embeddings().weight, std=0.1)
    return policy, reference


def external_rollout(mask=GAPPED_MASK, truncated=(T, F, T, T)):
    """Random text under environment tokens and policy tokens alike, the prompts of unequal length."""
    random = torch.Generator().manual_seed(0)
    pick = torch.randint(6, 27, mask.shape, generator=random)
    pick[pick == 20] = 21  # the suppressed one
    ids = torch.where(mask_up_to_last(mask), pick, 0)
    prompts = Prompts(
        torch.tensor([[2, 7], [8, 9], [2, 10], [11, 12]]), torch.tensor([[F, T], [T, T]] * 2), ["the"] * 4, {}
    )
    return unscored_rollout(prompts, ids, mask, torch.tensor(truncated), [""] * 4)


@torch.no_grad()
def states_alone(trunk, rollout, row):
    """The trunk's states of one row without padding, at its prompt's last token and after."""
    prompt = rollout.prompts.prompt_ids[row][rollout.prompts.prompt_mask[row]]
    text = torch.cat([prompt, rollout.response_ids[row][mask_up_to_last(rollout.response_mask)[row]]])
    return trunk(input_ids=text[None]).last_hidden_state[0, len(prompt) - 1 :]


def logits_alone(lm, rollout, row):
    """The model's logits at each of a row's own tokens; -inf for impossible tokens."""
    logits = lm.get_output_embeddings()(states_alone(lm.base_model, rollout, row)[:-1]).detach() / 0.8
    logits[:, [5, 20]] = -torch.inf
    logits[:2, 1] = -torch.inf
    return logits[rollout.response_mask[row][: len(logits)]]


@pytest.mark.parametrize("group_size", [1, 2, 4])
def test_requested_outputs_equal_those_of_each_row_alone(models, group_size):
    """Log-probabilities, states and the exact KL of rows with environment tokens, under the sampled distribution."""
    policy, reference = moved_policy(models)
    rollout, requested = external_rollout(), RequestedOutputs(exact_kl=True, old_states=True, ref_states=True)
    rollout_out = compute_logprobs_and_values(
        policy, reference, rollout, torch.arange(4).split(group_size), TRANSFORM, requested
    )
    for row, mask in enumerate(GAPPED_MASK):
        policy_logits, reference_logits = (logits_alone(lm, rollout, row) for lm in (policy.lm, reference.lm))
        ids = rollout.response_ids[row][mask]
        p, q = policy_logits.softmax(-1), reference_logits.softmax(-1)
        possible = p > 0
        kl = torch.where(possible, p * (p.log() - q.log()), 0).sum(-1)
        picked = torch.arange(len(ids)), ids
        for name, expected in [
            ("exact_kl", kl),
            ("old_logprobs", policy_logits.log_softmax(-1)[picked]),
            ("ref_logprobs", reference_logits.log_softmax(-1)[picked]),
            (
                "old_states",
                states_alone(policy.lm.base_model, rollout, row)[:-1][mask[mask_up_to_last(GAPPED_MASK)[row]]],
            ),
            (
                "ref_states",
                states_alone(reference.lm.base_model, rollout, row)[:-1][mask[mask_up_to_last(GAPPED_MASK)[row]]],
            ),
        ]:
            value = getattr(rollout_out, name)[row]
            torch.testing.assert_close(value[mask], expected, rtol=1e-4, atol=1e-5)
            assert not value[~mask].any(), name
    assert rollout_out.exact_kl[GAPPED_MASK].min() > 1e-4


def test_only_requested_outputs_are_stored(models):
    policy, reference = moved_policy(models)
    names = ("exact_kl", "old_states", "ref_states", "bootstrap_values")
    for requested_name in (None, *names):
        requested = None if requested_name is None else RequestedOutputs(**{requested_name: True})
        rollout_out = compute_logprobs_and_values(
            policy, reference, external_rollout(), [torch.arange(4)], TRANSFORM, requested
        )
        assert [name for name in names if getattr(rollout_out, name) is not None] == (
            [] if requested_name is None else [requested_name]
        )


def test_exact_kl_of_equal_models_is_zero(models):
    policy, reference = moved_policy(models)
    with torch.no_grad():
        reference.lm.load_state_dict(policy.lm.state_dict())
    rollout_out = compute_logprobs_and_values(
        policy, reference, external_rollout(), [torch.arange(4)], TRANSFORM, RequestedOutputs(exact_kl=True)
    )
    assert torch.equal(rollout_out.old_logprobs, rollout_out.ref_logprobs)
    assert not rollout_out.exact_kl.any()


@pytest.mark.parametrize("kind", ["shared", "separate", "adapter"])
@pytest.mark.parametrize("group_size", [1, 2, 4])
def test_bootstrap_value_is_the_value_of_the_state_before_one_more_token(models, kind, group_size):
    policy, reference = moved_policy(models, kind)
    rollout = external_rollout()
    rollout_out = compute_logprobs_and_values(
        policy,
        reference,
        rollout,
        torch.arange(4).split(group_size),
        TRANSFORM,
        RequestedOutputs(bootstrap_values=True),
    )
    # One token more after each row's last, whichever it be: the value at it is of the state that the cut left.
    ends = mask_up_to_last(GAPPED_MASK).sum(-1, keepdim=True)
    wide_mask = torch.nn.functional.pad(GAPPED_MASK, (0, 1)).scatter(1, ends, True)
    wide_ids = torch.nn.functional.pad(rollout.response_ids, (0, 1)).scatter(1, ends, 26)
    longer = replace(external_rollout(wide_mask), response_ids=wide_ids)
    after = compute_logprobs_and_values(policy, reference, longer, [torch.arange(4)], TRANSFORM).old_values.gather(
        1, ends
    )[:, 0]
    expected = torch.where(rollout.truncated, after, 0)
    torch.testing.assert_close(rollout_out.bootstrap_values, expected, rtol=1e-4, atol=1e-5)
    assert rollout_out.bootstrap_values[rollout.truncated].unique().numel() == 3
    assert (rollout_out.bootstrap_values - rollout_out.old_values.gather(1, ends - 1)[:, 0])[
        rollout.truncated
    ].abs().min() > 1e-3
    none = compute_logprobs_and_values(
        policy,
        reference,
        external_rollout(truncated=(F,) * 4),
        [torch.arange(4)],
        TRANSFORM,
        RequestedOutputs(bootstrap_values=True),
    )
    assert none.bootstrap_values.tolist() == [0.0] * 4


def test_forward_groups_may_differ_in_size(models):
    """The last microbatch may be smaller. The run-time check of shapes looks at one group, picked at random."""
    policy, _ = moved_policy(models)
    uncut = external_rollout(truncated=(F,) * 4)
    for _ in range(40):
        assert bootstrap_values(policy, uncut, torch.arange(4).split(3)).tolist() == [0.0] * 4


@pytest.mark.parametrize(("family", "kind"), [("llama", "shared"), ("gpt2", "shared"), ("llama", "adapter")])
def test_old_states_and_the_frozen_head_give_the_old_distribution_after_an_update(models, family, kind):
    """Also where the head is tied to the embedding (gpt2), and where adapters leave it alone."""
    policy, reference = moved_policy(models, kind, family)
    rollout_out = compute_logprobs_and_values(
        policy, reference, external_rollout(), [torch.arange(4)], TRANSFORM, RequestedOutputs(old_states=True)
    )
    positions, ids = token_positions(GAPPED_MASK), rollout_out.response_ids[GAPPED_MASK]
    head = OutputHead.of(policy.lm).frozen()
    old = TRANSFORM(head(rollout_out.old_states[GAPPED_MASK]), positions).detach()
    with torch.no_grad():
        for p in policy.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    again = TRANSFORM(head(rollout_out.old_states[GAPPED_MASK]), positions)
    assert torch.equal(again, old)
    recomputed = again.log_softmax(-1)[torch.arange(len(ids)), ids]
    torch.testing.assert_close(recomputed, rollout_out.old_logprobs[GAPPED_MASK], rtol=1e-5, atol=1e-5)
    moved = compute_logprobs_and_values(policy, reference, external_rollout(), [torch.arange(4)], TRANSFORM)
    assert (moved.old_logprobs - rollout_out.old_logprobs).abs().max() > 0.1
    assert not again.requires_grad


@pytest.mark.parametrize("settings", [{}, {"min_new_tokens": 3}, {"suppress_ids": [8, 25]}, {"stop_strings": ["good"]}])
def test_sampler_logprobs_equal_the_recomputed_ones(models, settings):
    """The mismatch of sampler and policy is rounding alone."""
    folder = models("llama")
    policy, reference = moved_policy(models)
    config = GenerationConfig(
        max_new_tokens=8, temperature=0.8, stop_ids=[1, 9, 13, 14, 21, 22, 23], max_rows=3, **settings
    )
    sampler = Sampler.of(load_tokenizer(str(folder)), policy.lm, config)
    prompts = external_rollout().prompts
    rollout = sample_responses(policy, sampler, prompts, uniform_noise([1], range(4), 4, 8))
    assert rollout.response_mask.sum(-1).unique().numel() > 1
    rollout_out = compute_logprobs_and_values(
        policy, reference, rollout, [torch.tensor([0, 2]), torch.tensor([1, 3])], sampler.transform
    )
    torch.testing.assert_close(rollout_out.sampler_logprobs, rollout_out.old_logprobs, rtol=0, atol=1e-5)
    assert rollout_out.sampler_logprobs.abs().sum() > 1


def test_greedy_responses_use_no_random_numbers(models):
    folder = models("llama")
    policy, _ = moved_policy(models)
    sampler = Sampler.of(load_tokenizer(str(folder)), policy.lm, GenerationConfig(max_new_tokens=4))
    prompts = external_rollout().prompts
    state = torch.get_rng_state()
    one, other = (sample_responses(policy, sampler, prompts, None) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.response_ids, other.response_ids)
    noisy = sample_responses(policy, sampler, prompts, uniform_noise([1], range(4), 4, 4))
    assert noisy.response_ids.tolist() != one.response_ids.tolist()


@pytest.mark.parametrize("noise", [None, torch.full((1, 4), 0.5)])
def test_probabilities_that_are_not_finite_are_reported(models, noise):
    lm, tokenizer = load_causal_lm(ModelConfig(path=str(models()))), load_tokenizer(str(models()))
    with torch.no_grad():
        lm.get_input_embeddings().weight.fill_(torch.nan)
    sampler = Sampler.of(tokenizer, lm, GenerationConfig(max_new_tokens=4))
    with pytest.raises(UserError, match=r"probabilities that are not finite: .* lower ppo.lr"):
        sample_responses(ActorCritic(lm), sampler, make_prompts(tokenizer, ["the film"]), noise)


def test_stop_strings_are_not_part_of_the_scored_text(models):
    tokenizer = load_tokenizer(str(models("llama")))
    sampler = Sampler(tokenizer, LogitTransform(), GenerationConfig(stop_strings=["film is", "good"]))
    ids = torch.tensor([[7, 8, 9, 0], [7, 11, 0, 0], [7, 8, 8, 1]])
    mask = torch.tensor([[T, T, T, F], [T, T, F, F], [T, T, T, T]])
    assert decode(sampler, ids, mask) == ["the ", "the ", "the film film"]


def test_text_is_cut_only_at_a_completed_stop_string(models):
    """`film <|user|> is` does not hold the stop string, so the response continues; nor may its text be cut there."""
    tokenizer = load_tokenizer(str(models("llama")))
    sampler = Sampler(tokenizer, LogitTransform(), GenerationConfig(stop_strings=["film is"]))
    ids = torch.tensor([[7, 8, 4, 9, 10, 1]])
    assert not any(bool(sampler.stop_strings.completed(ids[:, :t])) for t in range(1, 7))
    assert decode(sampler, ids, torch.ones_like(ids).bool()) == ["the film is a"]


def test_penalties_count_the_policy_s_tokens_only():
    """Own tokens 3, 6, 1 and 3 of at most 6, a buffer of 4: 1 / 4, 4 / 4 and nothing of the penalty."""
    config = RewardConfig(truncated="overlong", overlong_penalty=2.0, overlong_buffer=4)
    scored = score_rollout(external_rollout(), lambda *_: [1.0] * 4, config, 6)
    assert scored.scores.tolist() == [0.5, -1.0, 1.0, 0.5]
