"""Held-out evaluation: what a policy says to prompts it never saw, and what others think of it.

Every evaluation of a run answers the same prompts with the same random numbers, so two of them differ by the weights
alone, and a win rate compares answers pair by pair.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

from rlhf.config.jobs import EvalConfig, EvaluateJob, ModelConfig
from rlhf.data.datasets import PromptSet, held_out_rows, pad_id, prepare_prompts, render_chat
from rlhf.errors import UserError
from rlhf.models.actor_critic import ActorCritic, Reference
from rlhf.models.loading import load_causal_lm, load_tokenizer
from rlhf.records import Rollout, to_device
from rlhf.rewards.sources import RewardSource, open_source
from rlhf.rollouts.rollout import Sampler, forward_groups, read, sample_responses
from rlhf.rollouts.sampling import uniform_noise
from rlhf.run.distributed import raise_on_all_ranks
from rlhf.run.folder import RunFolder, json_safe
from rlhf.run.metrics import PhaseTimer, distinct_n, repetition
from tabular.core.statistics import bootstrap_interval

Answer = dict[str, Any]
"""One response: index, prompt, response, tokens, token_kl, token_logprobs, scores, truncated, repetition."""

_NOISE_KEY = 7_777_777
"""Tells the numbers of evaluations from those of training steps."""


def choose(count: int, config: EvalConfig) -> list[int]:
    """Which of the held-out prompts to use: the same ones in every run on the same data."""
    return sorted(np.random.default_rng(0).permutation(count)[: config.prompts].tolist())


@torch.no_grad()
def answer(
    policy: ActorCritic,
    reference: Reference,
    sampler: Sampler,
    prompts: PromptSet,
    indices: Sequence[int],
    sources: dict[str, RewardSource],
    config: EvalConfig,
    seed: int,
    accelerator: Any,
) -> list[Answer]:
    """Answers to the given prompts, in their order, on every rank; each rank samples its share of them."""
    policy.eval()
    ranks, rank = accelerator.num_processes, accelerator.process_index
    noise = uniform_noise([seed, _NOISE_KEY], range(len(indices)), len(indices), sampler.config.max_new_tokens)
    answers: list[Answer] = []
    with raise_on_all_ranks(accelerator):
        mine = range(rank, len(indices), ranks)
        for rows in (mine[i : i + config.batch_size] for i in range(0, len(mine), config.batch_size)):
            numbers = [indices[i] for i in rows]
            batch = to_device(prompts.batch(numbers), accelerator.device)
            groups = forward_groups(len(rows), len(rows), config.batch_size)
            with accelerator.autocast():
                rollout = sample_responses(policy, sampler, batch, noise[rows], PhaseTimer())
                rollout = read(policy, reference, rollout, groups, sampler.decoding)
            answers += _describe(rollout, sampler.tokenizer, numbers, sources)
    if ranks > 1:
        answers = gather_object(answers)
    return sorted(answers, key=lambda a: a["index"])


def _describe(
    rollout: Rollout, tokenizer: Any, indices: Sequence[int], sources: dict[str, RewardSource]
) -> list[Answer]:
    given = rollout.prompts
    scores = {name: source(given.prompts, rollout.completions, given.columns) for name, source in sources.items()}
    repeated = repetition(rollout.response_ids, rollout.response_mask)
    answers = []
    for i, index in enumerate(indices):
        real = rollout.response_mask[i]
        ids = rollout.response_ids[i][real].tolist()
        prompt = given.prompts[i]
        answers.append(
            {
                "index": index,
                "prompt": prompt if isinstance(prompt, str) else render_chat(tokenizer, prompt, True),
                "response": rollout.completions[i],
                "tokens": [tokenizer.decode([token]) for token in ids],
                "token_kl": (rollout.old_logprobs[i] - rollout.ref_logprobs[i])[real].tolist(),
                "token_logprobs": rollout.old_logprobs[i][real].tolist(),
                "scores": {name: values[i] for name, values in scores.items()},
                "truncated": bool(rollout.truncated[i]),
                "repetition": float(repeated[i]),
            }
        )
    return answers


def summarise(answers: Sequence[Answer], start: Sequence[dict[str, float]] | None = None) -> dict[str, float]:
    """Means over answers, with 95% bootstrap intervals for scores, and the win rate against the scores at the start.

    Lengths are in tokens, distinct-n in words. The judge decides the wins where there is one, else the reward source;
    a tie is half a win.
    """
    lengths = [len(a["tokens"]) for a in answers]
    found: dict[str, float] = {"prompts": float(len(answers))}
    for name in answers[0]["scores"]:
        values = [a["scores"][name] for a in answers]
        found |= _with_interval(name, values)
    spoken = [a["response"].split() for a in answers]
    found |= {
        "kl": float(np.mean([sum(a["token_kl"]) for a in answers])),
        "length": float(np.mean(lengths)),
        "eos_fraction": float(np.mean([not a["truncated"] for a in answers])),
        "repetition": float(np.mean([a["repetition"] for a in answers])),
        "distinct_1": distinct_n(spoken, 1),
        "distinct_2": distinct_n(spoken, 2),
        "entropy": float(-sum(sum(a["token_logprobs"]) for a in answers) / sum(lengths)),
    }
    if start is not None:
        arbiter = "judge" if "judge" in answers[0]["scores"] else "score"
        now = np.array([a["scores"][arbiter] for a in answers])
        then = np.array([scores[arbiter] for scores in start])
        found |= _with_interval("win_rate", ((now > then) + 0.5 * (now == then)).tolist())
    return found


def _with_interval(name: str, values: Sequence[float]) -> dict[str, float]:
    """Mean and 95% bootstrap interval."""
    interval = bootstrap_interval(values)
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def samples(answers: Sequence[Answer], step: int, count: int) -> list[dict[str, Any]]:
    """The rows that `samples.jsonl` keeps: the first answers, with the divergence of each token."""
    kept = ("index", "prompt", "response", "tokens", "scores", "truncated")
    return [
        {"step": step, **{name: a[name] for name in kept}, "token_kl": [round(x, 4) for x in a["token_kl"]]}
        for a in answers[:count]
    ]


# ---------------------------------------------------------------------------------------- the `evaluate` command


def evaluate_policy(job: EvaluateJob) -> dict[str, dict[str, float]]:
    """Answer held-out prompts with a policy and the model it started from; `{"before": ..., "after": ...}`.

    Raises:
        UserError: a model, the data or a source cannot be used.
    """
    return compare(job)[0]


def compare(job: EvaluateJob) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
    """What `evaluate_policy` finds, and the answers that samples.jsonl keeps: step 0 before, step 1 after."""
    from accelerate import Accelerator

    if job.output is not None:
        RunFolder(job.output, resume=None)  # an existing folder is refused before the work, not after it
    accelerator = Accelerator(mixed_precision=job.model.mixed_precision)
    device = accelerator.device
    tokenizer = load_tokenizer(job.model.path or "", job.model.chat_template, job.model.trust_remote_code)
    rows = held_out_rows(job.data, job.seed)
    prompts = prepare_prompts(tokenizer, rows, job.data, pad_id(tokenizer), job.data.eval_path)
    sources = open_sources(job.reward, job.eval, device)
    if not sources:
        raise UserError("nothing to score with: set reward.model or reward.function, or eval.judge")

    policy = ActorCritic(load_causal_lm(job.model), critic=None).to(device)
    start = None if job.baseline is None else load_causal_lm(replace(job.model, path=job.baseline)).to(device)
    lm = policy.lm
    sampler = Sampler.of(tokenizer, lm, job.generation)
    indices = choose(len(prompts), job.eval)

    def ask(who: ActorCritic, reference: Reference) -> list[Answer]:
        return answer(who, reference, sampler, prompts, indices, sources, job.eval, job.seed, accelerator)

    result: dict[str, dict[str, float]] = {}
    kept: list[dict[str, Any]] = []
    scores = None
    if start is not None:
        before = ask(ActorCritic(start, critic=None), Reference(start))
        scores = [a["scores"] for a in before]
        result["before"], kept = summarise(before), samples(before, 0, job.eval.samples)
    after = ask(policy, Reference(start if start is not None else lm))
    result["after"] = summarise(after, scores)
    kept += samples(after, 1, job.eval.samples)
    if job.output is not None and accelerator.is_main_process:
        _write(job, result, kept)
    return result, kept


def open_sources(
    reward: Any, config: EvalConfig, device: Any, policy: ModelConfig | None = None
) -> dict[str, RewardSource]:
    """The sources by the names under which evaluations report them.

    Functions are opened first: a mistake in one should not wait for a model to load.
    """
    named = {"score": reward, "judge": config.judge}
    opened = {
        name: open_source(named[name], device, policy)
        for name in sorted(named, key=lambda n: named[n].function is None)
    }
    return {name: source for name in named if (source := opened[name]) is not None}


def _write(job: EvaluateJob, result: dict[str, dict[str, float]], kept: list[dict[str, Any]]) -> None:
    import json

    assert job.output is not None
    folder = RunFolder(job.output, resume=None)
    folder.path.mkdir(parents=True, exist_ok=True)
    text = json.dumps(json_safe({**result, "config": asdict(job)}), indent=2) + "\n"
    (folder.path / "evaluation.json").write_text(text, encoding="utf-8")
    folder.append("samples", kept)


def table(before: dict[str, float] | None, after: dict[str, float]) -> Any:
    """The evaluation as a table for the terminal."""
    from rich.table import Table

    shown = Table(title=f"held-out evaluation, {after['prompts']:.0f} prompts", title_justify="left")
    shown.add_column("")
    for name in ("before", "after") if before is not None else ("now",):
        shown.add_column(name, justify="right")
    for name in after:
        if name == "prompts" or name.endswith(("_low", "_high")):
            continue
        cells = [_cell(result, name) for result in (before, after) if result is not None]
        shown.add_row(name.replace("_", " "), *cells)
    return shown


def side_by_side(kept: Sequence[dict[str, Any]], step: int, count: int = 4) -> Any:
    """A few answers before training (step 0) and at a later step, prompt by prompt, for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    by_prompt: dict[int, dict[int, dict[str, Any]]] = {}
    for row in kept:
        by_prompt.setdefault(row["index"], {})[row["step"]] = row
    shown = Table(title="the same prompts, before and after", title_justify="left", show_lines=True)
    for name in ("before", "after"):
        shown.add_column(name, ratio=1)
    for rows in list(by_prompt.values())[:count]:
        said = [rows.get(s, {"prompt": "", "response": ""}) for s in (0, step)]
        shown.add_row(*(f"[bold]{escape(row['prompt'])}[/]{escape(row['response'])}" for row in said))
    return shown


def _cell(result: dict[str, float], name: str) -> str:
    if name not in result:
        return ""
    interval = f"  [{result[name + '_low']:.3f}, {result[name + '_high']:.3f}]" if name + "_low" in result else ""
    return f"{result[name]:.3f}{interval}"
