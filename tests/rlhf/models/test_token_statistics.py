"""Token statistics against their definitions: values, gradients, and what is in memory meanwhile."""

import math

import pytest
import torch
import torch.distributions as D
from torch import nn

from rlhf.models import token_statistics as module
from rlhf.models.distribution import FixedDistribution, LogitTransform, OutputHead
from rlhf.models.token_statistics import _block_statistics, _Request, token_statistics
from tabular.core.distributions import categorical_entropy, categorical_logprob
from tabular.core.kl import categorical_kl

N, H, V = 7, 5, 11
PLAIN = LogitTransform()
TRANSFORMED = LogitTransform(temperature=0.7, suppress_ids=(2, 9), min_new_tokens=3, stop_ids=(4,))
NAMES = ("logprobs", "entropy", "old_kl", "ref_kl")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Three blocks, the first two of which are stored for the backward pass."""
    monkeypatch.setattr(module, "MIN_BLOCK_TOKENS", 3)
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", {"cpu": 3 * V})
    monkeypatch.setattr(module, "STORED_ELEMENTS", 6 * V)


def random(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear_head(bias=False, softcap=None, seed=1):
    layer = nn.Linear(H, V, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(random(V, H, seed=seed))
        if bias:
            layer.bias.copy_(random(V, seed=seed + 1))
    return OutputHead(layer, softcap)


STATES = random(N, H)
TOKEN_IDS = torch.tensor([0, 1, 3, 5, 6, 10, 3])
POSITIONS = torch.tensor([0, 1, 2, 3, 4, 0, 1])


def fixed(seed):
    head = linear_head(seed=seed)
    return FixedDistribution(random(N, H, seed=seed), lambda states: head(states).detach())


def definitions(states, head, transform, old, reference):
    """Every statistic from whole logits, by autograd."""
    everything = slice(None)
    logits = transform(head(states), POSITIONS)
    return {
        "logprobs": categorical_logprob(logits, TOKEN_IDS),
        "entropy": categorical_entropy(logits),
        "old_kl": categorical_kl(transform(old.logits(everything), POSITIONS), logits),
        "ref_kl": categorical_kl(logits, transform(reference.logits(everything), POSITIONS)),
    }


@pytest.mark.parametrize("transform", [PLAIN, TRANSFORMED])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("used", [*NAMES, "all"])
def test_values_and_gradients_are_those_of_the_definitions(transform, softcap, bias, used):
    head = linear_head(bias, softcap)
    old, reference = fixed(seed=5), fixed(seed=6)
    states = STATES.clone().requires_grad_()
    statistics = token_statistics(states, head, TOKEN_IDS, POSITIONS, transform, old=old, reference=reference)
    expected = definitions(states, head, transform, old, reference)
    weights = random(4, N, seed=9)
    inputs = [states, *head.module.parameters()]
    names = NAMES if used == "all" else (used,)

    def gradients(values):
        total = sum((weights[i] * values[name]).sum() for i, name in enumerate(NAMES) if name in names)
        return torch.autograd.grad(total, inputs)

    for name in NAMES:
        torch.testing.assert_close(
            getattr(statistics, name).double(), expected[name].detach().double(), rtol=1e-5, atol=1e-5
        )
    for gradient, wanted in zip(gradients(vars(statistics)), gradients(expected), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)
        assert gradient.abs().max() > 1e-2


@pytest.mark.parametrize("stored", [0, 3 * V, 100 * V])
@pytest.mark.parametrize("block", [1, 4, 100])
def test_blocks_and_stored_probabilities_do_not_change_the_result(monkeypatch, stored, block):
    head = linear_head()

    def result():
        states = STATES.float().requires_grad_()
        statistics = token_statistics(states, OutputHead(head.module.float()), TOKEN_IDS, POSITIONS, TRANSFORMED)
        loss = statistics.logprobs.sum() - 0.3 * statistics.entropy.sum()
        return statistics.logprobs, *torch.autograd.grad(loss, [states, head.module.weight])

    expected = result()
    monkeypatch.setattr(module, "MIN_BLOCK_TOKENS", 1)
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", {"cpu": block * V})
    monkeypatch.setattr(module, "STORED_ELEMENTS", stored)
    for value, wanted in zip(result(), expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)


def test_an_adapted_head_gets_the_same_statistics_and_gradients():
    class Adapted(nn.Linear):
        """A subclass, which may compute anything."""

    plain = linear_head()
    adapted = OutputHead(Adapted(H, V, bias=False, dtype=torch.float64))
    adapted.module.load_state_dict(plain.module.state_dict())
    results = []
    for head in (plain, adapted):
        states = STATES.clone().requires_grad_()
        out = token_statistics(states, head, TOKEN_IDS, POSITIONS, TRANSFORMED, old=fixed(5), reference=fixed(6))
        total = sum((i + 1) * getattr(out, name).sum() for i, name in enumerate(NAMES))
        results.append([total, *torch.autograd.grad(total, [states, head.module.weight])])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-5)


def test_log_probabilities_do_not_depend_on_what_else_is_computed():
    """Scoring asks for less than the update does, and the first ratio must be exactly 1."""
    states, head = STATES.float(), OutputHead(linear_head().module.float())
    with torch.no_grad():
        scored = token_statistics(states, head, TOKEN_IDS, POSITIONS, PLAIN, with_entropy=False)
    updated = token_statistics(states.requires_grad_(), head, TOKEN_IDS, POSITIONS, PLAIN, old=fixed(5))
    assert scored.entropy is None
    assert scored.old_kl is None
    assert torch.equal(scored.logprobs, updated.logprobs)


def test_statistics_are_float32_for_a_low_precision_model():
    head = OutputHead(linear_head().module.bfloat16())
    states = STATES.bfloat16().requires_grad_()
    out = token_statistics(states, head, TOKEN_IDS, POSITIONS, PLAIN)
    assert out.logprobs.dtype == out.entropy.dtype == torch.float32
    exact = D.Categorical(logits=head(states).double())
    torch.testing.assert_close(out.logprobs.double(), exact.log_prob(TOKEN_IDS), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(out.entropy.double(), exact.entropy(), atol=1e-6, rtol=1e-6)
    out.logprobs.sum().backward()
    assert states.grad.dtype == head.module.weight.grad.dtype == torch.bfloat16


def test_autocast_computes_the_products_in_its_type_and_gradients_in_the_weights_type():
    head = OutputHead(linear_head().module.float())
    states = STATES.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = token_statistics(states, head, TOKEN_IDS, POSITIONS, PLAIN)
    low = nn.functional.linear(states.bfloat16(), head.module.weight.bfloat16()).float()
    assert torch.equal(out.logprobs, low.log_softmax(-1)[torch.arange(N), TOKEN_IDS])
    expected = torch.autograd.grad(low.log_softmax(-1)[torch.arange(N), TOKEN_IDS].sum(), [states, head.module.weight])
    gradients = torch.autograd.grad(out.logprobs.sum(), [states, head.module.weight])
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, wanted, rtol=2e-2, atol=2e-2)


def test_suppressed_tokens_by_hand():
    """Two of 11 tokens are possible with equal logits: log-probability -log 2, entropy log 2, no gradient elsewhere."""
    head = linear_head()
    with torch.no_grad():
        head.module.weight.zero_()
    transform = LogitTransform(suppress_ids=tuple(range(2, V)))
    states = STATES.clone().requires_grad_()
    out = token_statistics(states, head, TOKEN_IDS.clamp(max=1), POSITIONS, transform)
    torch.testing.assert_close(out.logprobs, torch.full((N,), -math.log(2)))
    torch.testing.assert_close(out.entropy, torch.full((N,), math.log(2)))
    (3 * out.logprobs.sum() - 50 * out.entropy.sum()).backward()
    assert head.module.weight.grad.isfinite().all()
    assert not head.module.weight.grad[2:].any()


def test_exact_kls_by_hand():
    """(1/2, 1/2) against (1/4, 3/4): KL = ln 2 / 2 - ln(3/2) / 2 = ln(4/3) / 2; impossible tokens add nothing."""
    new = OutputHead(nn.Linear(H, V, dtype=torch.float64))
    with torch.no_grad():
        new.module.weight.zero_()
        new.module.bias.zero_()
    other = torch.zeros(N, V, dtype=torch.float64)
    other[:, 1] = math.log(3)
    fixed_distribution = FixedDistribution(other, lambda logits: logits)
    transform = LogitTransform(suppress_ids=tuple(range(2, V)))
    out = token_statistics(
        STATES, new, TOKEN_IDS.clamp(max=1), POSITIONS, transform, old=fixed_distribution, reference=fixed_distribution
    )
    torch.testing.assert_close(out.ref_kl, torch.full((N,), math.log(4 / 3) / 2))
    old_kl = math.log(0.5) / 4 + 0.75 * math.log(1.5)
    torch.testing.assert_close(out.old_kl, torch.full((N,), old_kl))


def test_nan_propagates():
    """A broken forward must show, not turn into a plausible number."""
    states = STATES.clone()
    states[0, 0] = torch.nan
    out = token_statistics(states, linear_head(), TOKEN_IDS, POSITIONS, PLAIN)
    assert out.logprobs.isnan().tolist() == [True] + [False] * (N - 1)
    assert out.entropy.isnan().tolist() == [True] + [False] * (N - 1)


def test_logits_are_never_whole(monkeypatch):
    """The largest tensor of forward and backward pass is a block; what is stored stays within its budget."""
    monkeypatch.setattr(module, "STORED_ELEMENTS", 0)
    n_tokens, block, vocabulary = 40, 4, 64
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", {"cpu": block * vocabulary})
    head = OutputHead(nn.Linear(H, vocabulary, bias=False))
    states = torch.randn(n_tokens, H, requires_grad=True)
    token_ids = torch.arange(n_tokens)
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, torch.Tensor))
            return out

    with Sizes():
        out = token_statistics(states, head, token_ids, torch.zeros_like(token_ids), PLAIN)
        (out.logprobs.sum() + out.entropy.sum()).backward()
    assert max(sizes) == max(block * vocabulary, head.module.weight.numel())
    assert max(sizes) < n_tokens * vocabulary


def test_stored_probabilities_are_released_by_the_backward_pass():
    states = STATES.clone().requires_grad_()
    out = token_statistics(states, linear_head(), TOKEN_IDS, POSITIONS, PLAIN)
    context = out.logprobs.grad_fn
    assert sorted(context.stored) == [0, 3]
    out.logprobs.sum().backward()
    assert not context.stored


def test_the_generic_block_is_the_definition():
    head, old, reference = linear_head(), fixed(5), fixed(6)
    request = _Request(TOKEN_IDS, POSITIONS, TRANSFORMED, None, True, old, reference)
    rows = slice(2, 5)
    expected = definitions(STATES, head, TRANSFORMED, old, reference)
    for value, name in zip(_block_statistics(STATES[rows], head, request, rows), NAMES, strict=True):
        torch.testing.assert_close(value, expected[name][rows], rtol=1e-6, atol=1e-6)


def test_gradients_of_low_precision_weights_are_summed_over_blocks_in_float32(monkeypatch):
    """A sum of 2,000 blocks in bfloat16, with 8 binary digits, would hardly change any more at its end."""
    n_tokens = 2000
    head = OutputHead(linear_head().module.bfloat16())
    states = random(n_tokens, H).bfloat16()
    token_ids = torch.arange(n_tokens) % V
    gradients = []
    for block in (1, n_tokens):
        monkeypatch.setattr(module, "MIN_BLOCK_TOKENS", block)
        out = token_statistics(states, head, token_ids, torch.zeros_like(token_ids), PLAIN)
        gradients.append(torch.autograd.grad(out.logprobs.sum(), head.module.weight)[0].double())
    error = (gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max()
    assert error < 2**-7
