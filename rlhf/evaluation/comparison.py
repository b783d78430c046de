"""Several policies side by side: the same prompts, the same random numbers, and win rates against each other."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rlhf.config.commands import EvaluateJob
from rlhf.data.prompts import PromptSet, load_held_out_prompts
from rlhf.errors import UserError
from rlhf.evaluation.best_of_n import best_of, sample_candidates, summarise_best, with_judge_scores
from rlhf.evaluation.evaluator import Evaluator, open_accelerator
from rlhf.evaluation.responses import EvaluatedResponse, held_out_indices
from rlhf.evaluation.summary import preference_name, sample_rows, summarise, win_rate
from rlhf.models.actor_critic import Reference
from rlhf.models.loading import check_causal, load_causal_lm, load_tokenizer
from rlhf.run.files import write_text
from rlhf.run.folder import RunFolder, json_safe
from rlhf.run.precision import warn_about_slow_weights

START = "start"
"""The name of the baseline in a comparison."""


@dataclass(frozen=True)
class Policy:
    """One of the policies that are compared."""

    name: str
    path: str
    tokenizer: Any
    prompts: PromptSet
    """The held-out prompts as its own tokenizer encodes them."""
    measures_kl: bool
    """Whether the reference reads its tokens."""


def compare_policies(job: EvaluateJob) -> dict[str, Any]:
    """Evaluate every policy, and write the result where there is an output.

    The baseline comes first, then the best of n of its responses, then the policies in their order. The models are in
    memory one at a time, beside the baseline.

    Returns:
        `policies`, name -> statistics, as those of an evaluation; `paths`, name -> path; `win_rates`, name -> name ->
        the share of prompts on which the first one's response is better, with its interval; `by`, the source that
        decides.

    Raises:
        UserError: the input cannot work, or the output exists.
    """
    if job.output is not None:
        RunFolder(job.output, resume=None)  # an existing folder is refused before the work, not after it
    accelerator = open_accelerator(job)
    policies = _policies(job)
    evaluator = Evaluator.open(job, accelerator, policies[0].prompts)
    indices = held_out_indices(len(policies[0].prompts), job.eval)

    lm = load_causal_lm(replace(job.model, path=policies[0].path)).to(accelerator.device)
    warn_about_slow_weights(lm.dtype, accelerator.device)
    reference = Reference(lm)
    responses: dict[str, list[EvaluatedResponse]] = {}
    sizes: dict[str, int] = {}
    for policy in policies:
        accelerator.print(f"evaluating {policy.name}")
        is_reference = policy is policies[0]
        if not is_reference:
            lm = load_causal_lm(replace(job.model, path=policy.path)).to(accelerator.device)
        responses[policy.name] = evaluator.respond(
            lm,
            policy.tokenizer,
            reference if policy.measures_kl else None,
            indices,
            prompts=policy.prompts,
        )
        if is_reference and job.best_of:
            candidates = sample_candidates(evaluator, lm, policy.tokenizer, indices, max(job.best_of))
            for n in job.best_of:
                name = f"best of {n}"
                sizes[name] = n
                responses[name] = with_judge_scores(evaluator, [best_of(samples[:n]) for samples in candidates])
    result = _result(policies, responses, sizes)
    if job.output is not None and accelerator.is_main_process:
        _write(job, result, responses)
    return result


def _result(
    policies: Sequence[Policy], responses: Mapping[str, list[EvaluatedResponse]], sizes: Mapping[str, int]
) -> dict[str, Any]:
    first = next(iter(responses))
    start_scores = [r.scores for r in responses[first]]
    summaries = {}
    for name, answers in responses.items():
        against = None if name == first else start_scores
        summaries[name] = (
            summarise_best(answers, sizes[name], against) if name in sizes else summarise(answers, against)
        )
    scores = {name: [r.scores for r in answers] for name, answers in responses.items()}
    return {
        "policies": summaries,
        "paths": {policy.name: policy.path for policy in policies},
        "by": preference_name(start_scores[0]),
        "win_rates": {
            name: {other: win_rate(scores[name], scores[other]) for other in responses if other != name}
            for name in responses
        },
    }


def _policies(job: EvaluateJob) -> list[Policy]:
    """The baseline or first policy, and the others, with tokenizers and prompts; all are checked before one is loaded.

    Raises:
        UserError: a path holds no language model, or the tokenizers leave different held-out prompts.
    """
    paths = [path for path in (job.baseline, job.model.path, *job.policies) if path is not None]
    paths = list(dict.fromkeys(paths))
    names = _names(paths)
    if job.baseline is not None:
        names[0] = START
    policies: list[Policy] = []
    for name, path in zip(names, paths, strict=True):
        check_causal(path, job.model.trust_remote_code)
        tokenizer = load_tokenizer(path, job.model.chat_template, job.model.trust_remote_code)
        prompts = load_held_out_prompts(tokenizer, job.data, job.seed)
        if policies and prompts.prompts != policies[0].prompts.prompts:
            raise UserError(
                f"{path} and {paths[0]} have tokenizers that leave different held-out prompts, because data.too_long "
                "is drop; set it to truncate, or raise data.max_prompt_length"
            )
        same_ids = not policies or tokenizer.get_vocab() == policies[0].tokenizer.get_vocab()
        policies.append(Policy(name, path, tokenizer, prompts, same_ids))
    return policies


def _names(paths: Sequence[str]) -> list[str]:
    """The last part of each path, that of the run for `run/model`; whole paths where two parts are equal."""

    def short(path: str) -> str:
        place = Path(path)
        return place.parent.name if place.name == "model" and place.parent.name else place.name

    names = [short(path) for path in paths]
    return [path if names.count(name) > 1 or name == START else name for name, path in zip(names, paths, strict=True)]


def _write(job: EvaluateJob, result: dict[str, Any], responses: Mapping[str, list[EvaluatedResponse]]) -> None:
    assert job.output is not None
    folder = RunFolder(job.output, resume=None)
    folder.path.mkdir(parents=True, exist_ok=True)
    text = json.dumps(json_safe({**result, "config": asdict(job)}), indent=2) + "\n"
    write_text(folder.path / "evaluation.json", text)
    for name, answers in responses.items():
        folder.append("samples", [{"policy": name, **row} for row in sample_rows(answers, 0, job.eval.samples)])
