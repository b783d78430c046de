"""The best of n responses to each prompt: a baseline that needs no training, and demonstrations for rejection sampling.

How far the best of n samples is from the policy that they are drawn from is bounded by `log n - (n - 1) / n` nats, so
it can be compared with policies that were trained at a cost in KL (Stiennon et al., 2020; Gao et al., 2023).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlhf.config.commands import BestOfNJob
from rlhf.data.prompts import PromptSet, load_held_out_prompts, load_prompts
from rlhf.errors import UserError
from rlhf.evaluation.evaluator import Evaluator, open_accelerator
from rlhf.evaluation.responses import EvaluatedResponse, held_out_indices
from rlhf.evaluation.summary import summarise
from rlhf.models.loading import load_causal_lm, load_tokenizer
from rlhf.rewards.mixes import numbers_where_it_applies
from rlhf.run.files import new_file, replacing
from rlhf.run.folder import json_safe
from rlhf.run.precision import warn_about_slow_weights
from tabular.core.kl import best_of_n_kl_bound

PROMPTS_AT_ONCE = 1024
"""Prompts whose n responses are in memory together."""


def run_best_of_n(job: BestOfNJob) -> dict[str, float]:
    """Answer the prompts, and write the best responses where there is an output.

    Returns:
        Statistics of the best responses, as those of an evaluation.

    Raises:
        UserError: the input cannot work, the output exists, or no response can be written.
    """
    output = None if job.output is None else new_file(job.output)
    accelerator = open_accelerator(job)
    tokenizer = load_tokenizer(job.model.path or "", job.model.chat_template, job.model.trust_remote_code)
    prompts, indices = _prompts(job, tokenizer)
    evaluator = Evaluator.open(job, accelerator, prompts)
    lm = load_causal_lm(job.model).to(accelerator.device)
    warn_about_slow_weights(lm.dtype, accelerator.device)

    best: list[EvaluatedResponse] = []
    rows: list[dict[str, Any]] = []
    for number, start in enumerate(range(0, len(indices), PROMPTS_AT_ONCE)):
        chunk = indices[start : start + PROMPTS_AT_ONCE]
        candidates = sample_candidates(evaluator, lm, tokenizer, chunk, job.n, chunk_number=number)
        chosen = with_judge_scores(evaluator, [best_of(responses) for responses in candidates])
        rows += [
            _row(prompts.prompts[index], response, responses if job.candidates else None)
            for index, response, responses in zip(chunk, chosen, candidates, strict=True)
            if is_demonstration(response)
        ]
        best += chosen
        accelerator.print(f"{len(best)} of {len(indices)} prompts answered")
    if output is not None and accelerator.is_main_process:
        if not rows:
            raise UserError(
                "every best response is cut off or empty, so there is none to write; raise the length limit"
            )
        with replacing(output) as partial:
            lines = [json.dumps(json_safe(row), ensure_ascii=False) + "\n" for row in rows]
            partial.write_text("".join(lines), encoding="utf-8")
        left_out = len(best) - len(rows)
        note = f"; {left_out} prompts are left out, whose best response is cut off or empty" if left_out else ""
        print(f"{len(rows)} prompts with the best of {job.n} responses in {output}{note}")
    return summarise_best(best, job.n)


def sample_candidates(
    evaluator: Evaluator, lm: Any, tokenizer: Any, indices: Sequence[int], n: int, chunk_number: int = 0
) -> list[list[EvaluatedResponse]]:
    """n responses to each prompt with their scores, without those of the judge.

    The first ones of the first chunk are those of an evaluation of the same model: the best of one is the model itself.
    """
    samples = []
    for number in range(n):
        key = () if number == chunk_number == 0 else (number, chunk_number)
        samples.append(evaluator.respond(lm, tokenizer, None, indices, noise_key=key, with_judges=False))
    return [list(responses) for responses in zip(*samples, strict=True)]


def selection_score_of(response: EvaluatedResponse) -> float:
    """What decides which response is the best: its score after the penalties of training, where there are any."""
    score = response.scores["score"] if response.penalised_score is None else response.penalised_score
    return -math.inf if score is None else score  # skipped, because the source failed on it


def best_of(responses: Sequence[EvaluatedResponse]) -> EvaluatedResponse:
    """The response with the best score; the first of several."""
    return max(responses, key=selection_score_of)


def with_judge_scores(evaluator: Evaluator, responses: Sequence[EvaluatedResponse]) -> list[EvaluatedResponse]:
    """Responses with the scores of each judge, where there is one."""
    size = evaluator.job.eval.batch_size
    scores: dict[str, list[float | None]] = {name: [] for name in evaluator.sources if name != "score"}
    for start in range(0, len(responses), size):
        part = responses[start : start + size]
        batch = evaluator.prompts.batch([response.index for response in part])
        texts = [response.response for response in part]
        for name, values in scores.items():
            values += numbers_where_it_applies(evaluator.sources[name], batch.prompts, texts, batch.columns)
    return [
        replace(response, scores={**response.scores, **{name: values[i] for name, values in scores.items()}})
        for i, response in enumerate(responses)
    ]


def summarise_best(
    best: Sequence[EvaluatedResponse], n: int, start_scores: Sequence[Mapping[str, float | None]] | None = None
) -> dict[str, float]:
    """As `summarise`, with an upper bound on the KL to the policy in place of the KL, and without the entropy.

    The log-probabilities are those of the policy that was sampled, which is not the distribution of the best responses.
    """
    summary = summarise(best, start_scores)
    return {name: value for name, value in summary.items() if name != "entropy"} | {"kl_bound": best_of_n_kl_bound(n)}


def is_demonstration(response: EvaluatedResponse) -> bool:
    """Whether a response can be learned from: a cut one would teach to stop in the middle of a sentence."""
    return not response.truncated and bool(response.response.strip()) and response.scores["score"] is not None


def _row(prompt: Any, best: EvaluatedResponse, candidates: Sequence[EvaluatedResponse] | None) -> dict[str, Any]:
    row = {"prompt": prompt, "completion": best.response, "score": selection_score_of(best)}
    if candidates is None:
        return row
    others = [{"completion": r.response, "score": selection_score_of(r), "truncated": r.truncated} for r in candidates]
    return row | {"candidates": others}


def _prompts(job: BestOfNJob, tokenizer: Any) -> tuple[PromptSet, list[int]]:
    """The prompts to answer, and which of them."""
    kind = job.prompts or ("held_out" if job.output is None else "train")
    if kind == "held_out":
        prompts = load_held_out_prompts(tokenizer, job.data, job.seed)
        return prompts, held_out_indices(len(prompts), replace(job.eval, prompts=job.limit or job.eval.prompts))
    prompts, _ = load_prompts(tokenizer, job.data, job.seed)
    return prompts, list(range(len(prompts)))[: job.limit]
