"""AdamW from a config: groups, settings, and the fused kernel beside a step worked out by hand."""

import pytest
import torch

from rlhf.config.training import TrainingConfig
from rlhf.trainers.optimizer import make_adamw


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
