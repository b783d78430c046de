"""Random ragged batches in float64, on which our functions and other people's are compared."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf.records import Prompts, Rollout

ROWS, WIDTH, GROUP = 8, 9, 4


@pytest.fixture(params=range(3), ids="seed{}".format)
def ragged(request: pytest.FixtureRequest) -> Any:
    """Two prompts with four responses each, one of them as long as the batch and one a single token.

    What lies in the padding is random too: neither side may read it.
    """
    return make_batch(request.param)


@pytest.fixture(params=range(3), ids="seed{}".format)
def multi_turn(request: pytest.FixtureRequest) -> Any:
    """The same with text of an environment inside the responses: False between two stretches of True."""
    return with_environment_tokens(request.param)


@pytest.fixture(
    params=[(make, seed) for make in ("ragged", "multi_turn") for seed in range(3)], ids="{0[0]}-seed{0[1]}".format
)
def either(request: pytest.FixtureRequest) -> Any:
    make, seed = request.param
    return make_batch(seed) if make == "ragged" else with_environment_tokens(seed)


def with_environment_tokens(seed: int) -> Any:
    batch = make_batch(seed)
    inside = torch.rand(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed)) < 0.4
    places = torch.arange(WIDTH)
    batch.mask &= ~(inside & (places > 0) & (places < batch.lengths[:, None] - 1))
    return batch


def make_batch(seed: int) -> Any:
    random = torch.Generator().manual_seed(seed)

    def numbers(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return scale * torch.randn(shape, generator=random, dtype=torch.float64)

    lengths = torch.randint(2, WIDTH, (ROWS,), generator=random)
    lengths[0], lengths[5] = WIDTH, 1
    names = ("advantages", "rewards", "values", "old_values", "returns")
    batch = SimpleNamespace(
        lengths=lengths, mask=torch.arange(WIDTH) < lengths[:, None], **{name: numbers(ROWS, WIDTH) for name in names}
    )
    batch.old_logprobs = numbers(ROWS, WIDTH) - 3
    batch.logprobs = batch.old_logprobs + numbers(ROWS, WIDTH, scale=0.4)
    batch.ref_logprobs = batch.old_logprobs + numbers(ROWS, WIDTH, scale=0.4)
    batch.scores, batch.baselines = numbers(ROWS), numbers(ROWS)
    # The score on the last token, nothing else: the reward that estimators over whole responses are made for.
    batch.outcome = torch.zeros(ROWS, WIDTH, dtype=torch.float64)
    batch.outcome[torch.arange(ROWS), lengths - 1] = batch.scores
    batch.prompt = torch.arange(ROWS) // GROUP
    batch.rollout = lambda: Rollout(
        prompts=Prompts(torch.ones(ROWS, 1).long(), torch.ones(ROWS, 1).bool(), ["the"] * ROWS, {}),
        response_ids=torch.where(batch.mask, 8, 0),
        response_mask=batch.mask,
        truncated=torch.zeros(ROWS, dtype=torch.bool),
        completions=["film"] * ROWS,
        old_logprobs=batch.old_logprobs,
        ref_logprobs=batch.ref_logprobs,
        old_values=batch.values,
        scores=batch.scores,
    )
    return batch
