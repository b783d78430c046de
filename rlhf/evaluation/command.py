"""The `evaluate` command: a policy on held-out prompts, beside the model it started from."""

import json
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from rlhf.config.jobs import EvaluateJob
from rlhf.data.prompts import load_held_out_prompts
from rlhf.errors import UserError
from rlhf.evaluation.responses import evaluate_responses, held_out_indices
from rlhf.evaluation.summary import sample_rows, summarise
from rlhf.models.actor_critic import ActorCritic, Reference
from rlhf.models.loading import load_causal_lm, load_tokenizer
from rlhf.rewards.sources import open_sources, scorers_of
from rlhf.rollouts.stages import Sampler
from rlhf.run.files import write_text
from rlhf.run.folder import RunFolder, json_safe
from rlhf.run.precision import usable_precision, warn_about_slow_weights


def evaluate_policy(job: EvaluateJob) -> dict[str, dict[str, float]]:
    """Evaluate a policy and its baseline: `{"before": ..., "after": ...}`, without `before` if there is no baseline.

    Raises:
        UserError: the input cannot work, or nothing is set that scores.
    """
    return evaluate_with_samples(job)[0]


def evaluate_with_samples(job: EvaluateJob) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
    """The result of `evaluate_policy`, and the rows of samples.jsonl: step 0 before, step 1 after."""
    from accelerate import Accelerator

    if job.output is not None:
        RunFolder(job.output, resume=None)  # an existing folder is refused before the work, not after it
    precision = usable_precision(job.model.mixed_precision, cpu=not torch.accelerator.is_available())
    accelerator = Accelerator(mixed_precision=precision)
    torch.set_float32_matmul_precision(job.model.matmul_precision)
    device = accelerator.device
    tokenizer = load_tokenizer(job.model.path or "", job.model.chat_template, job.model.trust_remote_code)
    prompts = load_held_out_prompts(tokenizer, job.data, job.seed)
    sources = open_sources(scorers_of(job.reward, job.eval), device, prompt_sets=[prompts])
    if not sources:
        raise UserError("nothing to score with: set reward.model, reward.function or another source, or eval.judge")

    lm = load_causal_lm(job.model).to(device)
    warn_about_slow_weights(lm.dtype, device)
    baseline = None if job.baseline is None else load_causal_lm(replace(job.model, path=job.baseline)).to(device)
    reference = Reference(lm if baseline is None else baseline)
    evaluate = partial(
        evaluate_responses,
        reference=reference,
        sampler=Sampler.of(tokenizer, lm, job.generation),
        prompts=prompts,
        indices=held_out_indices(len(prompts), job.eval),
        sources=sources,
        reward=job.reward,
        batch_size=job.eval.batch_size,
        seed=job.seed,
        accelerator=accelerator,
    )

    results: dict[str, dict[str, float]] = {}
    samples: list[dict[str, Any]] = []
    start_scores = None
    if baseline is not None:
        responses = evaluate(ActorCritic(baseline, critic=None))
        start_scores = [r.scores for r in responses]
        results["before"] = summarise(responses)
        samples += sample_rows(responses, 0, job.eval.samples)
    responses = evaluate(ActorCritic(lm, critic=None))
    results["after"] = summarise(responses, start_scores)
    samples += sample_rows(responses, 1, job.eval.samples)
    if job.output is not None and accelerator.is_main_process:
        _write(job, results, samples)
    return results, samples


def _write(job: EvaluateJob, results: dict[str, dict[str, float]], samples: list[dict[str, Any]]) -> None:
    assert job.output is not None
    folder = RunFolder(job.output, resume=None)
    folder.path.mkdir(parents=True, exist_ok=True)
    text = json.dumps(json_safe({**results, "config": asdict(job)}), indent=2) + "\n"
    write_text(folder.path / "evaluation.json", text)
    folder.append("samples", samples)
