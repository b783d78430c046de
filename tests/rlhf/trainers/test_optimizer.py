"""AdamW from a config: groups, settings, and the fused kernel beside a step worked out by hand."""

import importlib.util

import pytest
import torch

from rlhf.config.training import TrainingConfig
from rlhf.errors import UserError
from rlhf.trainers.optimizer import OffloadedMoments, clip_gradients, make_adamw, moment_bytes

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


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


def trained(config, steps=5, resumed_at=None, offloaded=False):
    """A large and a small weight after some steps, and their optimizer."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(n, generator=generator)) for n in (5000, 10)]
    optimizer = make_adamw([weights], config)
    moments = OffloadedMoments(optimizer, torch.device("cpu")) if offloaded else None
    for step in range(steps):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        if step == resumed_at:
            state = optimizer.state_dict()
            optimizer = make_adamw([weights], config)
            optimizer.load_state_dict(state)
        if moments is None:
            optimizer.step()
        else:
            with moments.on_device():
                optimizer.step()
    return weights, optimizer


@needs_bitsandbytes
def test_8_bit_moments_approximate_float32_ones_in_a_quarter_of_their_memory():
    settings = {"lr": 0.01, "weight_decay": 0.1}
    exact, _ = trained(TrainingConfig(**settings, adam_fused=False))
    config = TrainingConfig(**settings, adam_8bit=True)
    (large, small), optimizer = trained(config)
    torch.testing.assert_close(small, exact[1], rtol=1e-5, atol=1e-6)  # below 4,096 numbers nothing is quantised
    error = (large - exact[0]).abs().detach()
    assert 0 < float(error.max()) < 0.02  # of five steps of 0.01
    assert float(error.mean()) < 0.001
    held = sum(x.nbytes for s in optimizer.state.values() for name, x in s.items() if name in ("state1", "state2"))
    assert held == moment_bytes([large, small], config) == 2 * 5000 + 8 * 10
    assert moment_bytes([large, small], TrainingConfig()) == 8 * 5010


@needs_bitsandbytes
def test_8_bit_moments_are_resumed_exactly():
    config = TrainingConfig(lr=0.01, adam_8bit=True)
    for weight, resumed in zip(trained(config)[0], trained(config, resumed_at=2)[0], strict=True):
        assert torch.equal(weight, resumed)


def test_8_bit_moments_need_bitsandbytes(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"training\.adam_8bit is true, but bitsandbytes is not installed; pip install"):
        make_adamw([[torch.nn.Parameter(torch.zeros(2))]], TrainingConfig(adam_8bit=True))


@pytest.mark.parametrize("eight_bit", [False, pytest.param(True, marks=needs_bitsandbytes)])
def test_offloaded_moments_are_copied_to_the_device_and_back(monkeypatch, eight_bit):
    """Another place in the CPU's memory stands for the GPU."""
    config = TrainingConfig(lr=0.01, adam_8bit=eight_bit)
    expected, _ = trained(config)
    to = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor, "to", lambda x, *a, **k: x.clone() if a == (torch.device("cpu"),) else to(x, *a, **k)
    )
    weights, optimizer = trained(config, offloaded=True)
    for weight, other in zip(weights, expected, strict=True):
        assert torch.equal(weight, other)
    moments = OffloadedMoments(optimizer, torch.device("cpu"))
    tensors = list(moments._moments().values())
    assert len(tensors) >= 4
    moments.release()
    stored = [x.data_ptr() for x in tensors]
    with moments.on_device():
        assert all(x.data_ptr() != at for x, at in zip(tensors, stored, strict=True))
        tensors[0].add_(1)
        changed = tensors[0].clone()
    assert [x.data_ptr() for x in tensors] == stored
    assert torch.equal(tensors[0], changed)
