"""The model card: README.md of an exported model, written from the files of its run.

Its metadata is that of the Hugging Face hub. A card names settings from a fixed list and the last part of paths, so
that nothing else of the machine or the data gets into it.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf.report.health import health_warnings, selection_score
from rlhf.report.numbers import Row, duration, finite, number, parameters, percent
from rlhf.report.run_files import Run, load, setting, stage_of
from rlhf.run.files import write_text

STAGES = {
    "ppo": "PPO",
    "sft": "supervised fine-tuning",
    "reward": "Bradley-Terry reward modelling",
    "dpo": "direct preference optimisation",
}
MEASURES = (
    ("score", "reward's score"),
    ("penalised_score", "score after penalties"),
    ("judge", "judge"),
    ("win_rate", "win rate against the start"),
    ("kl", "KL to the start, nats per response"),
    ("length", "length, tokens"),
    ("eos_fraction", "responses that end before the limit"),
    ("distinct_2", "distinct-2"),
    ("loss", "loss"),
    ("accuracy", "pairwise accuracy"),
    ("margin", "margin"),
)
"""Measure of eval.jsonl -> its name in the card."""
SETTINGS = (
    "seed", "ppo.estimator", "ppo.total_episodes", "ppo.rollout_batch_size", "ppo.minibatch_size", "ppo.ppo_epochs",
    "ppo.lr", "ppo.kl_coef", "ppo.kl_target", "ppo.gamma", "ppo.lam", "ppo.clip_range", "ppo.ent_coef", "critic.kind",
    "model.lora.rank", "model.dtype", "model.mixed_precision", "generation.temperature", "generation.max_new_tokens",
    "reward.truncated", "reward.missing_eos_penalty", "training.epochs", "training.batch_size", "training.lr",
    "training.max_length", "dpo.loss", "dpo.beta",
)  # fmt: skip
"""The settings that a card lists, where the run has them."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def write_model_card(run_dir: Path, model_dir: Path) -> None:
    """Write `README.md` into a run's exported model, from the other files of the run.

    Raises:
        UserError: the run has no metrics.
    """
    write_text(model_dir / "README.md", model_card(load(run_dir), {item.name for item in model_dir.iterdir()}))


def model_card(run: Run, files: set[str], base: str | None = None) -> str:
    """The card as Markdown with YAML metadata.

    Args:
        files: the names in the model's folder, which decide how it is loaded.
        base: the hub id of the model that the run started from, where the run names a local folder.
    """
    if base is not None:
        run = replace(run, config={**run.config, "model": {**(setting(run.config, "model") or {}), "path": base}})
    stage = stage_of(run.config)
    is_adapter = "adapter_config.json" in files
    before, after = exported_evaluations(run, stage)
    sections = [
        f"---\n{_metadata(run, stage, is_adapter, after)}---\n",
        f"# {_plain(run.name)}\n",
        _introduction(run, stage, is_adapter),
        _evaluation(run, before, after),
        _usage(run, stage, is_adapter),
        _training(run),
        _limits(run, stage, after),
        _versions(run),
    ]
    return "\n".join(section for section in sections if section)


def exported_evaluations(run: Run, stage: str) -> tuple[Row, Row]:
    """The evaluations of the start and of the exported weights, by PPO those with the best score; empty if none ran."""
    if not run.evals:
        return {}, {}
    return run.evals[0], max(run.evals, key=selection_score) if stage == "ppo" else run.evals[-1]


def _metadata(run: Run, stage: str, is_adapter: bool, evaluation: Row) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    task = "text-classification" if stage == "reward" else "text-generation"
    data = setting(run.config, "data.path")
    data_set = _last_part(data) or "held-out examples"
    results = [
        EvalResult(
            task_type=task,
            dataset_type=data if _is_hub_id(data) else "local",
            dataset_name=data_set,
            metric_type=name,
            metric_name=f"{text}, held out",
            metric_value=round(finite(evaluation[name]), 5),
        )
        for name, text in MEASURES
        if math.isfinite(finite(evaluation.get(name)))
    ]
    base = setting(run.config, "model.path")
    card = ModelCardData(
        base_model=base if _is_hub_id(base) else None,
        datasets=data if _is_hub_id(data) else None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag=task,
        tags=["reward-model" if stage == "reward" else stage, "rlhf", "tabular-rlhf"],
        model_name=" ".join(_last_part(run.name).split()),
        eval_results=results or None,
    )
    return card.to_yaml() + "\n"


def _introduction(run: Run, stage: str, is_adapter: bool) -> str:
    size = run.environment.get("parameters")
    trained = run.environment.get("trained_parameters")
    kind = "A reward model" if stage == "reward" else "A causal language model"
    if is_adapter:
        kind = kind.replace("A ", "The adapter of a ", 1)
    amount = f" of {parameters(size)} parameters" if isinstance(size, int) and size else ""
    part = f", {parameters(trained)} of them trained" if is_adapter and isinstance(trained, int) else ""
    base = setting(run.config, "model.path")
    origin = f"from {_code(base)}" if base else "from random weights"
    data = setting(run.config, "data.path")
    text = f"{kind}{amount}{part}, trained {origin} by {STAGES[stage]}"
    text += f" on {_code(data)}" if data else ""
    text += f" with [tabular-rlhf](https://pypi.org/project/tabular-rlhf/) {_plain(_version(run))}."
    return text + (f" The reward is {_reward(run.config)}.\n" if stage == "ppo" else "\n")


def _reward(config: Row) -> str:
    """What gave the scores, without addresses and folders."""
    reward = setting(config, "reward") or {}
    environment = setting(config, "environment.path")
    if environment:
        return f"that of the environment {_code(environment.rpartition(':')[2])}"
    named = dict(reward.get("sources") or {})
    if named:
        return "a weighted mix of " + ", ".join(_code(name) for name in named)
    if reward.get("model"):
        return f"the score of the reward model {_code(reward['model'])}"
    if reward.get("function"):
        return f"the Python function {_code(str(reward['function']).rpartition(':')[2])}"
    if reward.get("rule"):
        return f"the rule {_code(reward['rule'])}"
    return "a reward server" if reward.get("url") else "a function of the program that trained it"


def _evaluation(run: Run, before: Row, after: Row) -> str:
    if not run.evals:
        return "## Evaluation\n\nThe run had no held-out examples, so nothing was evaluated.\n"
    prompts = finite(after.get("prompts"))
    lines = ["## Evaluation\n"]
    if math.isfinite(prompts):
        lines.append(f"On {prompts:.0f} held-out prompts, with 95% bootstrap intervals.\n")
    compared = after["step"] > before["step"]
    lines.append(
        "| measure | start | this model |\n|---|---:|---:|" if compared else "| measure | this model |\n|---|---:|"
    )
    for name, text in MEASURES:
        if not isinstance(after.get(name), int | float):
            continue
        cells = [_with_interval(row, name) for row in ((before, after) if compared else (after,))]
        lines.append(f"| {text} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _with_interval(row: Row, name: str) -> str:
    show = percent if name in ("win_rate", "eos_fraction", "accuracy") else number
    if not isinstance(row.get(name), int | float):
        return ""
    ends = [row.get(f"{name}_low"), row.get(f"{name}_high")]
    interval = f" ({show(ends[0])} to {show(ends[1])})" if all(isinstance(end, int | float) for end in ends) else ""
    return f"{show(row[name])}{interval}"


def _usage(run: Run, stage: str, is_adapter: bool) -> str:
    head = "## Use\n\n```python\n"
    if stage == "reward" and is_adapter:
        return "## Use\n\nGive this folder to `rlhf ppo --reward.model`, with a policy over the same base model.\n"
    if stage == "reward":
        return head + (
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
            'path = "."  # this folder, or its repository on the hub\n'
            "model = AutoModelForSequenceClassification.from_pretrained(path)\n"
            "tokenizer = AutoTokenizer.from_pretrained(path)\n"
            'text = "prompt and completion" + tokenizer.eos_token\n'
            'score = model(**tokenizer(text, return_tensors="pt")).logits[0, 0]\n```\n'
        )
    loader = "from peft import AutoPeftModelForCausalLM as AutoModel" if is_adapter else (
        "from transformers import AutoModelForCausalLM as AutoModel"
    )  # fmt: skip
    generation = setting(run.config, "generation") or {}
    options = [f"max_new_tokens={generation.get('max_new_tokens', 128)}"]
    temperature = generation.get("temperature", 1.0)
    options += ["do_sample=False"] if temperature == 0 else ["do_sample=True", f"temperature={temperature}", "top_k=0"]
    if generation.get("stop_strings"):
        strings = repr(generation["stop_strings"]).replace("`", "\\x60")  # which would end the block of code
        options += [f"stop_strings={strings}", "tokenizer=tokenizer"]
    return head + (
        f"{loader}\nfrom transformers import AutoTokenizer\n\n"
        'path = "."  # this folder, or its repository on the hub\n'
        "model = AutoModel.from_pretrained(path)\n"
        "tokenizer = AutoTokenizer.from_pretrained(path)\n"
        'inputs = tokenizer("A prompt", return_tensors="pt")  # chat models: tokenizer.apply_chat_template\n'
        f"output = model.generate(**inputs, {', '.join(options)})\n"
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))\n```\n'
    )


def _training(run: Run) -> str:
    rows = [(key, setting(run.config, key)) for key in SETTINGS]
    lines = [f"| `{key}` | {_plain(str(value))} |" for key, value in rows if value is not None]
    seconds = sum(finite(row.get("time/step")) for row in run.rows if isinstance(row.get("time/step"), int | float))
    steps = run.rows[-1]["step"]
    return (
        f"## Training\n\n{steps:,} steps in {duration(seconds)}.\n\n| setting | value |\n|---|---|\n"
        + "\n".join(lines)
        + "\n"
    )


def _limits(run: Run, stage: str, exported: Row) -> str:
    lines = [f"- {_plain(str(warning))}" for warning in health_warnings(run.rows, run.evals)]
    if stage == "ppo" and len(run.evals) > 1 and exported["step"] == 0:
        lines.append("- These are the weights that the run began with: no later evaluation was better.")
    if stage == "ppo":
        lines.append(
            "- The score is the one that was trained on. A rise of it shows that the training worked, not that the "
            "text is better: read it beside the judge, the KL and the samples."
        )
        if not any(name.startswith("judge") for row in run.evals for name in row):
            lines.append("- No second scorer (judge) evaluated the responses.")
    lines.append(
        "- Nothing but the table above was measured: neither truth, nor safety, nor bias, nor other languages."
    )
    return "## Limits\n\n" + "\n".join(lines) + "\n"


def _versions(run: Run) -> str:
    versions = run.environment.get("versions")
    if not isinstance(versions, Mapping):
        return ""
    return "## Versions\n\n" + ", ".join(f"{_plain(name)} {_plain(str(v))}" for name, v in versions.items()) + "\n"


def _version(run: Run) -> str:
    versions = run.environment.get("versions")
    return str((versions if isinstance(versions, Mapping) else {}).get("tabular-rlhf", ""))


def _is_hub_id(path: Any) -> bool:
    """Whether a path names a repository of the hub and nothing here."""
    return isinstance(path, str) and bool(HUB_ID.fullmatch(path)) and not Path(path).exists()


def _last_part(path: Any) -> str:
    """A hub id as it is, else the last part of a path."""
    text = path if isinstance(path, str) else ""
    return text if _is_hub_id(text) else Path(text).name


def _code(path: Any) -> str:
    """The last part of a path, or a hub id, as Markdown code."""
    return f"`{_last_part(path).replace('`', '').replace(chr(10), ' ')}`"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(text.split()))
