"""Rollouts of two processes as one. Threads stand for the processes, and exchange what those would send."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch

from rlhf.errors import UserError
from rlhf.records import Prompts, Rollout, select
from rlhf.rollouts import gathering
from rlhf.rollouts.gathering import check_own_states, gather_rollout, sum_states


@pytest.fixture
def on_both(monkeypatch):
    """`on_both(f)`: the results of `f(accelerator)` on both processes; `.sent` has what each tensor took, in bytes."""
    barrier = threading.Barrier(2, timeout=20)
    local = threading.local()
    slots = [None, None]

    def exchange(value):
        slots[local.index] = value
        barrier.wait()
        values = list(slots)
        barrier.wait()
        return values

    def all_gather(received, sent):
        on_both.sent.append(sent.nbytes)
        for target, value in zip(received, exchange(sent), strict=True):
            target.copy_(value)

    def run(function):
        def one(index):
            local.index = index
            accelerator = SimpleNamespace(num_processes=2, process_index=index, device=torch.device("cpu"))
            accelerator.reduce = lambda x, _: torch.stack(exchange(x)).sum(0)
            return function(accelerator)

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, range(2)))

    on_both = run
    on_both.sent = []
    monkeypatch.setattr(gathering, "gather_object", lambda items: [x for part in exchange(items) for x in part])
    monkeypatch.setattr("accelerate.utils.gather_object", lambda items: [x for part in exchange(items) for x in part])
    monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
    return on_both


def rollout_of(rows, width=3, with_states=False):
    """Rows numbered from 0, of which row i has i + 1 tokens, at most `width`."""
    ids = torch.arange(rows * width).view(rows, width)
    mask = torch.arange(width) <= torch.arange(rows).unsqueeze(1)
    numbers = ids.float() / 7
    states = torch.where(mask.unsqueeze(-1), torch.stack([numbers + 1, -numbers - 1], dim=-1), 0.0)
    texts = [f"text {i} – ü" for i in range(rows)]
    return Rollout(
        prompts=Prompts(ids[:, :2] + 5, mask[:, :2].flip(1), texts, {"wanted": list(range(rows))}),
        response_ids=ids,
        response_mask=mask,
        truncated=torch.arange(rows) % 3 == 0,
        completions=[text.upper() for text in texts],
        old_logprobs=-numbers,
        ref_logprobs=None,
        old_values=numbers,
        scores=torch.full((rows,), torch.nan),
        source_scores={"a": torch.arange(rows).float()},
        errors=[None if i else "failed" for i in range(rows)],
        old_states=states if with_states else None,
    )


def assert_equal(a, b):
    for field in fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, torch.Tensor):
            assert x.dtype == y.dtype
            torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True, msg=field.name)
        elif isinstance(x, Prompts):
            assert_equal(x, y)
        elif isinstance(x, dict):
            assert {k: list(v) for k, v in x.items()} == {k: list(v) for k, v in y.items()}
        else:
            assert x == y


def share(rollout, index):
    """A process's rows, without the columns that are padding in all of them."""
    own = select(rollout, torch.arange(index, len(rollout), 2))
    width = int(own.response_mask.any(0).sum())
    per_token = {
        f.name: x[:, :width] for f in fields(own) if isinstance(x := getattr(own, f.name), torch.Tensor) and x.dim() > 1
    }
    return replace(own, **per_token)


def test_every_process_gets_the_rows_of_all_in_their_order(on_both):
    whole = rollout_of(6, width=5)
    per_token = {name: getattr(whole, name) for name in ("old_logprobs", "old_values", "response_ids")}
    whole = replace(whole, **{name: x * whole.response_mask for name, x in per_token.items()})
    results = on_both(lambda a: gather_rollout(share(whole, a.process_index), torch.arange(a.process_index, 6, 2), a))
    for result in results:
        assert_equal(result, whole)


def test_states_stay_on_the_process_of_their_rows(on_both):
    whole = rollout_of(4, with_states=True)
    results = on_both(lambda a: gather_rollout(share(whole, a.process_index), torch.arange(a.process_index, 4, 2), a))
    without = sum(on_both.sent)
    for index, result in enumerate(results):
        assert torch.equal(result.old_states[index::2], whole.old_states[index::2])
        assert not result.old_states[1 - index :: 2].any()
    on_both.sent.clear()
    plain = replace(whole, old_states=None)
    on_both(lambda a: gather_rollout(share(plain, a.process_index), torch.arange(a.process_index, 4, 2), a))
    assert sum(on_both.sent) == without
    summed = on_both(lambda a: sum_states(results[a.process_index], a))
    assert all(torch.equal(rollout.old_states, whole.old_states) for rollout in summed)


def test_rows_that_were_moved_away_from_their_states_are_refused(on_both):
    whole = rollout_of(4, with_states=True)

    def moved(accelerator):
        own = gather_rollout(
            share(whole, accelerator.process_index), torch.arange(accelerator.process_index, 4, 2), accelerator
        )
        check_own_states(own, accelerator)
        with pytest.raises(UserError, match=r"rows of the rollout were moved.*pass it to compute_logprobs_and_values"):
            check_own_states(select(own, torch.tensor([1, 2, 3, 0])), accelerator)
        return True

    assert on_both(moved) == [True, True]


def test_one_process_has_all_rows_already():
    rollout, alone = rollout_of(2, with_states=True), SimpleNamespace(num_processes=1)
    assert gather_rollout(rollout, torch.arange(2), alone) is rollout
    assert sum_states(rollout, alone) is rollout
    check_own_states(select(rollout, torch.tensor([0])), alone)
