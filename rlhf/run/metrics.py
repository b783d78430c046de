"""Metrics of a step: statistics of the rollout, and the losses' metrics summed over microbatches and ranks.

The documentation's table of metrics holds the formula and the healthy range of each.
"""

import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf.records import PPOBatch, Rollout
from tabular.core.kl import kl_estimate
from tabular.core.masked import explained_variance, masked_mean, masked_sum

Metrics = dict[str, Tensor]


class PhaseTimer:
    """Seconds spent in named phases of a step, each measured until the device has finished its work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def total(self) -> float:
        """Seconds of all phases together."""
        return sum(self.seconds.values(), 0.0)

    def reset(self) -> None:
        """Forget all phases."""
        self.seconds.clear()


def rollout_metrics(batch: PPOBatch, kl_coef: float, has_critic: bool = True) -> dict[str, float]:
    """Statistics of a rollout batch; those of a response are sums over its tokens, averaged over responses."""
    rollout, mask = batch.rollout, batch.rollout.response_mask
    responses = len(rollout)
    is_scored = rollout.is_scored
    values = {
        "objective/score": rollout.scores[is_scored].mean(),
        "objective/reward": masked_sum(batch.rewards[is_scored], mask[is_scored]) / is_scored.sum(),
        "objective/entropy": -masked_sum(rollout.old_logprobs, mask) / responses,
        "response/length": mask.sum() / responses,
        "response/eos_fraction": 1 - rollout.truncated.float().mean(),
        "response/truncated_fraction": rollout.truncated.float().mean(),
        "response/repetition": repetition(rollout.response_ids, mask).mean(),
    }
    if rollout.ref_logprobs is not None:
        k1, k3 = (kl_estimate(rollout.old_logprobs, rollout.ref_logprobs, kind) for kind in ("k1", "k3"))
        values |= {
            "objective/kl": masked_sum(k1, mask) / responses,
            "objective/kl_k3": masked_sum(k3, mask) / responses,
        }
    if has_critic:
        scored_mask = mask & is_scored.unsqueeze(-1)
        values["value/explained_variance"] = explained_variance(rollout.old_values, batch.returns, scored_mask)
        values["value/mean"] = masked_mean(rollout.old_values, mask)
    if rollout.sampler_logprobs is not None:
        mismatch = (rollout.sampler_logprobs - rollout.old_logprobs).abs()
        values["policy/sampler_mismatch"] = masked_mean(mismatch, mask)
    if rollout.errors is not None:
        values["reward/errors"] = (~is_scored).sum()
    for name, scores in (rollout.source_scores or {}).items():
        values |= source_statistics(name, scores)
    return {name: float(value) for name, value in values.items()} | {"objective/kl_coef": float(kl_coef)}


def source_statistics(name: str, scores: Float[Tensor, "B"]) -> dict[str, Tensor]:
    """Mean and deviation of one source's raw scores, over the responses that it applies to; nan where there is none."""
    scores = scores[~scores.isnan()].double()
    std = scores.std(correction=0) if len(scores) else scores.mean()
    return {f"reward/{name}/mean": scores.mean(), f"reward/{name}/std": std}


def data_set_scores(rollout: Rollout) -> dict[str, float]:
    """The mean score of the responses to each data set's prompts, where there are several and the batch has some."""
    names = rollout.prompts.columns.get("data_set", [])
    scores: dict[str, list[float]] = {}
    for name, score, is_scored in zip(names, rollout.scores.tolist(), rollout.is_scored.tolist(), strict=False):
        if is_scored:
            scores.setdefault(name, []).append(score)
    return {f"objective/score/{name}": sum(values) / len(values) for name, values in sorted(scores.items())}


def repetition(ids: Int[Tensor, "B R"], mask: Bool[Tensor, "B R"]) -> Float[Tensor, "B"]:
    """The share of a response's token pairs that occur earlier in it; 0 for fewer than two tokens."""
    if ids.shape[1] < 2:
        return torch.zeros(len(ids), device=ids.device)
    real = mask[:, 1:]
    # Positions without a pair get distinct negative numbers, so that they repeat nothing.
    no_pair = -1 - torch.arange(real.shape[1], device=ids.device).expand_as(real)
    pairs = torch.where(real, ids[:, :-1] * (int(ids.max()) + 1) + ids[:, 1:], no_pair).sort(dim=-1).values
    repeated = (pairs[:, 1:] == pairs[:, :-1]).sum(-1)
    return repeated / real.sum(-1).clamp(min=1)


def distinct_n(responses: Sequence[Sequence[Any]], n: int) -> float:
    """Distinct n-grams divided by all n-grams of a set of responses (Li et al., 2016); nan where there is none."""
    grams = [tuple(tokens[i : i + n]) for tokens in responses for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def sum_microbatches(parts: Sequence[Metrics]) -> Metrics:
    """Metrics of a minibatch from those of its microbatches: sums, or maxima where the name ends in `_max`."""
    return {
        name: torch.stack([p[name] for p in parts]).amax()
        if name.endswith("_max")
        else torch.stack([p[name] for p in parts]).sum()
        for name in parts[0]
    }


def sum_over_ranks(accelerator: Any, metrics: Metrics) -> Metrics:
    """Metrics summed over all ranks, or their maxima where the name ends in `_max`."""
    if accelerator.num_processes == 1:
        return metrics
    names = sorted(metrics)
    gathered = accelerator.gather(torch.stack([metrics[name].float() for name in names]).unsqueeze(0))
    return {
        name: gathered[:, i].amax() if name.endswith("_max") else gathered[:, i].sum() for i, name in enumerate(names)
    }


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory so far: of tensors on a GPU, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
