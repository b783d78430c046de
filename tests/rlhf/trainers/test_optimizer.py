"""AdamW from a config: groups, settings, and the fused kernel beside a step worked out by hand."""

import pytest
import torch

from rlhf.config.training import TrainingConfig
from rlhf.trainers.optimizer import clip_gradients, make_adamw


@pytest.mark.parametrize("fused", [False, True])
def test_first_step_by_hand(fused):
    """The first step of Adam is lr * g / (|g| + eps), after the weight has decayed by lr * weight_decay."""
    first = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    second = torch.nn.Parameter(torch.tensor([3.0]))
    config = TrainingConfig(lr=0.1, weight_decay=0.5, adam_eps=1.0, adam_betas=(0.5, 0.5), adam_fused=fused)
    optimizer = make_adamw([[first], [second]], config)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]
    optimizer.param_groups[1]["lr"] = 0.2
    first.grad = torch.tensor([1.0, -3.0])
    second.grad = torch.tensor([1.0])
    optimizer.step()
    torch.testing.assert_close(first.data, torch.tensor([0.95 - 0.1 / 2, -1.9 + 0.1 * 3 / 4]))
    torch.testing.assert_close(second.data, torch.tensor([2.7 - 0.2 / 2]))


def test_fused_and_plain_steps_agree_and_exchange_their_states():
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2)]
    optimizers = [
        make_adamw([[w]], TrainingConfig(lr=0.1, adam_fused=on)) for w, on in zip(weights, (False, True), strict=True)
    ]
    for step in range(4):
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = torch.sin(torch.arange(7.0) + step)
            optimizer.step()
        if step == 1:  # a run may be resumed with the other setting
            states = [optimizer.state_dict() for optimizer in optimizers]
            for optimizer, state in zip(optimizers, reversed(states), strict=True):
                state["param_groups"][0]["fused"] = optimizer.param_groups[0]["fused"]
                optimizer.load_state_dict(state)
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("limit", "expected"), [(1.0, [0.6, -0.8, 0.0]), (10.0, [3.0, -4.0, 0.0])])
def test_gradients_are_clipped_only_where_their_norm_is_larger(limit, expected):
    """(3, -4) and (0) have the norm 5."""
    first, second, unused = (torch.nn.Parameter(torch.zeros(n)) for n in (2, 1, 1))
    first.grad, second.grad = torch.tensor([3.0, -4.0]), torch.tensor([0.0])
    assert float(clip_gradients([first, second, unused], limit)) == 5.0
    torch.testing.assert_close(torch.cat([first.grad, second.grad]), torch.tensor(expected))
    assert unused.grad is None


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_norm_of_broken_gradients_is_not_finite(value):
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([1.0, value])
    assert not clip_gradients([weight], 1.0).isfinite()


def test_no_gradients_have_the_norm_0():
    assert float(clip_gradients([torch.nn.Parameter(torch.zeros(2))], 1.0)) == 0.0
