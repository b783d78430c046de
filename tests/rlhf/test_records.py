"""Records: rows chosen, padding dropped, ranks' shares put together again."""

from dataclasses import fields, replace

import pytest
import torch

from rlhf.records import (
    PPOBatch,
    Prompts,
    Rollout,
    concatenate,
    interleave,
    last_index,
    mask_up_to_last,
    pad_to_width,
    select,
    to_device,
    trim,
)

PER_TOKEN = ("response_ids", "response_mask", "old_logprobs", "ref_logprobs", "old_values")


def ragged(lengths, prompt_lengths, width=None, prompt_width=None):
    """A rollout in which every entry is a different number, and nothing but zeros stands under padding."""
    rows, width, prompt_width = len(lengths), width or max(lengths), prompt_width or max(prompt_lengths)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    prompt_mask = torch.arange(prompt_width) >= prompt_width - torch.tensor(prompt_lengths)[:, None]
    numbers = 1 + torch.arange(rows * width).reshape(rows, width)
    prompts = Prompts(
        (100 + torch.arange(rows * prompt_width).reshape(rows, prompt_width)) * prompt_mask,
        prompt_mask,
        [f"prompt {i}" for i in range(rows)],
        {"wanted": [f"word {i}" for i in range(rows)], "number": list(range(rows))},
    )
    return Rollout(
        prompts=prompts,
        response_ids=numbers * mask,
        response_mask=mask,
        truncated=torch.arange(rows) % 2 == 0,
        completions=[f"answer {i}" for i in range(rows)],
        old_logprobs=-1.0 * numbers * mask,
        ref_logprobs=-2.0 * numbers * mask,
        old_values=0.5 * numbers * mask,
        scores=torch.arange(rows) * 0.25,
    )


def assert_same(a, b):
    assert type(a) is type(b)
    for name in [f.name for f in fields(a)]:
        one, two = getattr(a, name), getattr(b, name)
        if isinstance(one, Prompts):
            assert_same(one, two)
        elif isinstance(one, torch.Tensor):
            assert one.dtype == two.dtype, name
            assert torch.equal(one, two), name
        else:
            assert one == two, name


def test_select_takes_the_same_rows_of_every_field():
    rollout = ragged([3, 1, 4, 2], [1, 2, 3, 4])
    picked = select(rollout, torch.tensor([2, 0, 2]))
    assert len(picked) == 3
    assert picked.response_ids.tolist() == [[9, 10, 11, 12], [1, 2, 3, 0], [9, 10, 11, 12]]
    assert picked.truncated.tolist() == [True, True, True]
    assert picked.scores.tolist() == [0.5, 0.0, 0.5]
    assert picked.completions == ["answer 2", "answer 0", "answer 2"]
    assert picked.prompts.prompts == ["prompt 2", "prompt 0", "prompt 2"]
    assert picked.prompts.columns == {"wanted": ["word 2", "word 0", "word 2"], "number": [2, 0, 2]}
    assert picked.prompts.prompt_mask.sum(-1).tolist() == [3, 1, 3]


def test_select_goes_through_a_batch_into_its_rollout():
    rollout = ragged([2, 1, 2], [1, 1, 1])
    batch = PPOBatch(rollout, rollout.old_logprobs, rollout.old_values, rollout.ref_logprobs, rollout.response_mask)
    picked = select(batch, torch.tensor([1]))
    assert_same(picked.rollout, select(rollout, torch.tensor([1])))
    assert torch.equal(picked.rewards, rollout.old_logprobs[1:2])
    assert torch.equal(picked.advantages, rollout.old_values[1:2])
    assert torch.equal(picked.returns, rollout.ref_logprobs[1:2])


def test_moving_to_a_device_keeps_fields_that_are_no_tensors():
    rollout = ragged([2, 1], [1, 2])
    moved = to_device(rollout, "meta")
    assert {getattr(moved, name).device.type for name in PER_TOKEN} == {"meta"}
    assert moved.prompts.prompt_ids.device.type == moved.scores.device.type == "meta"
    assert moved.completions == rollout.completions
    assert moved.prompts.columns == rollout.prompts.columns
    assert_same(to_device(rollout, "cpu"), rollout)


def test_trim_drops_the_columns_that_are_padding_in_every_row_and_no_other():
    assert_same(trim(ragged([3, 1], [1, 2], width=6, prompt_width=5)), _rewidened([3, 1], [1, 2]))
    tight = ragged([3, 1], [1, 2])
    assert_same(trim(tight), tight)


def _rewidened(lengths, prompt_lengths):
    """What `trim` must leave of the wide rollout above: its last prompt columns and first response columns."""
    wide = ragged(lengths, prompt_lengths, width=6, prompt_width=5)
    prompts = Prompts(
        wide.prompts.prompt_ids[:, 3:], wide.prompts.prompt_mask[:, 3:], wide.prompts.prompts, wide.prompts.columns
    )
    cut = {name: getattr(wide, name)[:, :3] for name in PER_TOKEN}
    return Rollout(prompts=prompts, truncated=wide.truncated, completions=wide.completions, scores=wide.scores, **cut)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_interleaving_the_ranks_shares_restores_the_batch(ranks):
    """Rows r, r + ranks, ... on rank r, each share trimmed to a width of its own, as sampling leaves it."""
    whole = ragged([5, 1, 2, 4, 1, 1], [3, 1, 2, 1, 2, 2])  # prompts too, as environments write them
    shares = [trim(select(whole, torch.arange(rank, 6, ranks))) for rank in range(ranks)]
    assert ranks == 1 or len({share.response_ids.shape[1] for share in shares}) > 1
    assert_same(interleave(shares), whole)


# --------------------------------------------------------------------------------------------------- environment tokens

T, F = True, False
GAPPED_MASK = torch.tensor([[F, T, F, T, F, F], [T, F, F, F, F, F], [F, F, F, F, T, F], [T, T, T, F, F, F]])


def test_mask_up_to_last_covers_environment_tokens_and_ends_at_the_last_true():
    assert mask_up_to_last(GAPPED_MASK).tolist() == [
        [T, T, T, T, F, F],
        [T, F, F, F, F, F],
        [T, T, T, T, T, F],
        [T, T, T, F, F, F],
    ]
    assert not mask_up_to_last(torch.zeros(2, 3, dtype=torch.bool)).any()
    assert mask_up_to_last(torch.ones(2, 3, dtype=torch.bool)).all()


def test_last_index_is_that_of_the_last_true():
    assert last_index(GAPPED_MASK).tolist() == [3, 0, 4, 2]


@pytest.mark.parametrize("seed", range(5))
def test_mask_up_to_last_and_last_index_equal_those_of_a_plain_loop(seed):
    mask = torch.rand(7, 9, generator=torch.Generator().manual_seed(seed)) < 0.3
    mask[:, 0] |= ~mask.any(-1)
    last = [max(t for t, real in enumerate(row) if real) for row in mask.tolist()]
    assert last_index(mask).tolist() == last
    assert mask_up_to_last(mask).tolist() == [[t <= end for t in range(9)] for end in last]


def full_rollout():
    """Everything that a rollout may hold, every number another, with the environment tokens above."""
    rollout = ragged([6] * 4, [1, 2, 1, 2], prompt_width=3)
    states = torch.arange(4.0 * 6 * 2).reshape(4, 6, 2)
    return replace(
        rollout,
        response_mask=GAPPED_MASK,
        token_scores=rollout.old_logprobs + 0.5,
        sampler_logprobs=rollout.old_logprobs - 0.5,
        exact_kl=rollout.old_values + 0.25,
        old_states=states,
        ref_states=-states,
        bootstrap_values=torch.arange(4.0),
        baseline_scores=-torch.arange(4.0),
    )


def test_trim_keeps_environment_tokens_and_trims_every_per_token_field():
    rollout = full_rollout()
    cut = trim(rollout)
    assert (
        cut.response_mask.tolist() == GAPPED_MASK[:, :5].tolist()
    )  # columns 0 and 2 are environment tokens in some rows, 5 padding
    per_token = (*PER_TOKEN, "token_scores", "sampler_logprobs", "exact_kl", "old_states", "ref_states")
    for name in per_token:
        assert torch.equal(getattr(cut, name), getattr(rollout, name)[:, :5]), name
    for name in ("truncated", "scores", "bootstrap_values", "baseline_scores"):
        assert torch.equal(getattr(cut, name), getattr(rollout, name)), name
    assert torch.equal(cut.prompts.prompt_ids, rollout.prompts.prompt_ids[:, 1:])
    assert cut.completions == rollout.completions


def test_trim_keeps_a_column_of_environment_tokens_in_every_row():
    rollout = replace(full_rollout(), response_mask=torch.tensor([[F, F, T, F, F, F]] * 4))
    assert torch.equal(trim(rollout).response_ids, rollout.response_ids[:, :3])


def test_interleaving_restores_every_field():
    """Of other widths too: what is missing is filled with zeros."""
    whole = full_rollout()
    after = ~mask_up_to_last(GAPPED_MASK)
    whole = replace(
        whole,
        **{
            name: x.masked_fill(after if x.dim() == 2 else after.unsqueeze(-1), 0)[:, :5]
            for name, x in vars(whole).items()
            if isinstance(x, torch.Tensor) and x.dim() > 1
        },
    )
    shares = [trim(select(whole, torch.arange(rank, 4, 2))) for rank in range(2)]
    assert [share.response_ids.shape[1] for share in shares] == [5, 3]
    # Prompts are never cut where shares are put together: all ranks hold those of the whole batch.
    shares = [replace(s, prompts=select(whole.prompts, torch.arange(rank, 4, 2))) for rank, s in enumerate(shares)]
    assert_same(interleave(shares), whole)


def test_pad_to_width_adds_zero_columns_on_the_right():
    assert pad_to_width(torch.tensor([[1, 2]]), 4).tolist() == [[1, 2, 0, 0]]
    assert pad_to_width(torch.tensor([[T]]), 3).tolist() == [[T, F, F]]
    assert pad_to_width(torch.ones(1, 1, 2), 2).tolist() == [[[1.0, 1.0], [0.0, 0.0]]]
    assert pad_to_width(torch.ones(2, 3), 3).tolist() == torch.ones(2, 3).tolist()


def test_select_and_to_device_keep_missing_fields_none():
    rollout = ragged([2, 1], [1, 1])
    assert select(rollout, torch.tensor([1])).exact_kl is None
    assert to_device(rollout, "cpu").old_states is None
    assert interleave([rollout, rollout]).bootstrap_values is None
    assert select(full_rollout(), torch.tensor([2])).old_states.tolist() == full_rollout().old_states[2:3].tolist()


def test_concatenated_rollouts_are_padded_and_trimmed_back():
    one, two = ragged([3, 1], [1, 2]), ragged([2, 4, 1], [4, 1, 3])
    both = concatenate([one, two])
    assert len(both) == 5
    assert both.response_ids.shape == (5, 4)
    assert both.prompts.prompt_ids.shape == (5, 4)
    assert both.completions == [*one.completions, *two.completions]
    assert both.prompts.columns["number"] == [0, 1, 0, 1, 2]
    assert both.ref_logprobs is not None
    assert_same(trim(select(both, torch.tensor([0, 1]))), one)
    assert_same(trim(select(both, torch.tensor([2, 3, 4]))), two)
    assert concatenate([replace(part, ref_logprobs=None) for part in (one, two)]).ref_logprobs is None
    rewarded = replace(two, score_by_token=torch.where(two.response_mask, 1.0, 0.0))
    joined = concatenate([one, rewarded]).score_by_token
    assert joined is not None
    assert joined.sum(-1).tolist() == [0.0, 0.0, 2.0, 4.0, 1.0]
