"""The `evaluate` command: a policy on held-out prompts, beside the model it started from."""

import json
from dataclasses import asdict, replace
from typing import Any

from rlhf.config.commands import EvaluateJob
from rlhf.data.prompts import load_held_out_prompts
from rlhf.evaluation.evaluator import Evaluator, open_accelerator
from rlhf.evaluation.responses import held_out_indices
from rlhf.evaluation.summary import sample_rows, summarise
from rlhf.models.actor_critic import Reference
from rlhf.models.loading import load_causal_lm, load_tokenizer
from rlhf.run.files import write_text
from rlhf.run.folder import RunFolder, json_safe
from rlhf.run.precision import warn_about_slow_weights


def evaluate_policy(job: EvaluateJob) -> dict[str, dict[str, float]]:
    """Evaluate a policy and its baseline: `{"before": ..., "after": ...}`, without `before` if there is no baseline.

    Raises:
        UserError: the input cannot work, or nothing is set that scores.
    """
    return evaluate_with_samples(job)[0]


def evaluate_with_samples(job: EvaluateJob) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
    """The result of `evaluate_policy`, and the rows of samples.jsonl: step 0 before, step 1 after."""
    if job.output is not None:
        RunFolder(job.output, resume=None)  # an existing folder is refused before the work, not after it
    accelerator = open_accelerator(job)
    tokenizer = load_tokenizer(job.model.path or "", job.model.chat_template, job.model.trust_remote_code)
    prompts = load_held_out_prompts(tokenizer, job.data, job.seed)
    evaluator = Evaluator.open(job, accelerator, prompts)
    indices = held_out_indices(len(prompts), job.eval)

    lm = load_causal_lm(job.model).to(accelerator.device)
    warn_about_slow_weights(lm.dtype, accelerator.device)
    baseline = None
    if job.baseline is not None:
        baseline = load_causal_lm(replace(job.model, path=job.baseline)).to(accelerator.device)
    reference = Reference(lm if baseline is None else baseline)

    results: dict[str, dict[str, float]] = {}
    samples: list[dict[str, Any]] = []
    start_scores = None
    if baseline is not None:
        responses = evaluator.respond(baseline, tokenizer, reference, indices)
        start_scores = [r.scores for r in responses]
        results["before"] = summarise(responses)
        samples += sample_rows(responses, 0, job.eval.samples)
    responses = evaluator.respond(lm, tokenizer, reference, indices)
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
