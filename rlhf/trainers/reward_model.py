"""A reward model from preference pairs: the chosen answer shall score higher than the rejected one."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rlhf.config.jobs import RewardJob
from rlhf.data.datasets import checked_column, split_rows
from rlhf.data.encoding import encode_for_scoring, pad, padding_id
from rlhf.errors import UserError
from rlhf.models.loading import add_lora, check_causal, context_length_of, is_adapter, load_causal_lm, load_tokenizer
from rlhf.models.reward_models import SCORE_STATISTICS
from rlhf.models.trunk import sequence_scores, unwrap_peft
from rlhf.run.distributed import open_accelerator
from rlhf.run.files import write_text
from rlhf.run.folder import RunFolder
from rlhf.trainers.supervised import check_batches, check_lengths, fit


@dataclass(frozen=True)
class Pair:
    chosen: list[int]
    rejected: list[int]


def length(pair: Pair) -> int:
    return max(len(pair.chosen), len(pair.rejected))


class Scorer(nn.Module):
    """A sequence-classification model with one label, called as this project reads it."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B"]:
        return sequence_scores(self.model, ids, mask)


def pairwise_loss(chosen: Float[Tensor, "B"], rejected: Float[Tensor, "B"]) -> Float[Tensor, ""]:
    """`-log sigmoid(chosen - rejected)`, summed: the likelihood of the preferences (Bradley & Terry, 1952)."""
    return -nn.functional.logsigmoid(chosen - rejected).sum()


def train_reward_model(job: RewardJob) -> bool:
    """Run a job: check and tokenise the pairs, train, save the model with its accuracy and the scale of its scores.

    Returns False where it was asked to stop before its end.

    Raises:
        UserError: the input cannot work.
    """
    run = RunFolder(job.output, job.resume)
    accelerator = open_accelerator(job.output, job.model.mixed_precision, job.trackers, job.seed)
    assert job.model.path is not None
    as_adapter = job.export == "adapter"
    if as_adapter and is_adapter(job.model.path):
        raise UserError(
            f"export is adapter, but {job.model.path} is an adapter itself: its merged weights lie in no folder over "
            "which another adapter could be laid; use export merged"
        )
    config = check_causal(job.model.path, job.model.trust_remote_code)
    tokenizer = load_tokenizer(job.model.path, job.model.chat_template, job.model.trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {job.model.path} has no eos_token, at which a reward model reads its score")
    rows, held_out = split_rows(job.data, job.seed)
    limit = job.training.max_length
    pairs = encode_pairs(tokenizer, rows, limit, job.data.path)
    tests = encode_pairs(tokenizer, held_out, limit, job.data.eval_path) if held_out is not None else []
    check_batches(job.training, len(pairs), accelerator.num_processes, job.data.path)
    check_lengths(map(length, pairs + tests), context_length_of(config), job.data.path)

    model = Scorer(add_lora(new_reward_model(job), job.model.lora, "SEQ_CLS"))
    filler, device = padding_id(tokenizer), accelerator.device

    def scores(scorer: nn.Module, texts: list[list[int]]) -> Tensor:
        ids, mask = pad(texts, filler, "right")
        return scorer(ids.to(device), mask.to(device))

    def loss(scorer: nn.Module, batch: list[Pair]) -> tuple[Tensor, dict[str, Tensor]]:
        both = scores(scorer, [p.chosen for p in batch] + [p.rejected for p in batch])
        chosen, rejected = both.chunk(2)
        found = {"accuracy": (chosen > rejected).float().sum(), "margin": (chosen - rejected).detach().sum()}
        return pairwise_loss(chosen, rejected), found

    def measure(some: list[Pair]) -> tuple[Tensor, Tensor]:
        """Scores of the chosen and the rejected answers."""
        size = job.training.microbatch_size
        parts = [some[i : i + size] for i in range(0, len(some), size)]
        both = [scores(model, [p.chosen for p in part] + [p.rejected for p in part]).chunk(2) for part in parts]
        return torch.cat([chosen for chosen, _ in both]).cpu(), torch.cat([rejected for _, rejected in both]).cpu()

    def evaluate() -> dict[str, float]:
        if not tests:
            return {}
        chosen, rejected = measure(tests)
        return {
            "accuracy": float((chosen > rejected).float().mean()),
            "loss": float(pairwise_loss(chosen, rejected)) / len(tests),
            "margin": float((chosen - rejected).mean()),
        }

    finished = fit(job, run, accelerator, model, pairs, length, lambda pair: 1, loss, evaluate, "reward model")
    if finished:
        if accelerator.is_main_process:
            model.eval()
            with torch.no_grad(), accelerator.autocast():
                known = torch.cat(measure(tests or pairs[:1000]))
                if float(known.std()) == 0.0:
                    raise UserError("the trained model gives every text the same score; are the texts cut to nothing?")
                facts = {"score_mean": float(known.mean()), "score_std": float(known.std()), "append_eos": True}
                facts |= {f"pairwise_{name}": value for name, value in evaluate().items()}
            save(model.model, tokenizer, run, facts, as_adapter)
        accelerator.wait_for_everyone()
    accelerator.end_training()
    return finished


def new_reward_model(job: RewardJob) -> Any:
    """A classifier with one label on the model's trunk; its head is N(0, 1/sqrt(d + 1)) (Ziegler et al., 2019)."""
    from transformers import AutoModelForSequenceClassification

    lm = load_causal_lm(job.model)
    config = lm.config
    config.num_labels = 1
    try:
        model = AutoModelForSequenceClassification.from_config(config, dtype=lm.dtype)
    except ValueError as error:
        raise UserError(f"{job.model.path}: a {type(lm).__name__} has no variant that gives scores") from error
    if not hasattr(model, "score"):
        raise UserError(f"{job.model.path}: {type(model).__name__} has no scalar head that is known here")
    # The trunk is taken over, not loaded a second time: it may come from an adapter, and is in memory already.
    setattr(model, model.base_model_prefix, lm.base_model)
    nn.init.normal_(model.score.weight, std=(model.score.in_features + 1) ** -0.5)
    if job.model.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def encode_pairs(tokenizer: Any, rows: Any, limit: int, path: str | None) -> list[Pair]:
    """Tokenised pairs, each answer with its prompt before it; `UserError` for a row that says nothing."""
    chosen, rejected = (checked_column(rows, name, path) for name in ("chosen", "rejected"))
    prompts = checked_column(rows, "prompt", path) if "prompt" in rows.column_names else [""] * len(chosen)
    texts = [encode_for_scoring(tokenizer, prompts, answers, True, limit) for answers in (chosen, rejected)]
    return [Pair(*pair) for pair in zip(*texts, strict=True)]


def save(model: Any, tokenizer: Any, run: RunFolder, facts: dict[str, Any], as_adapter: bool = False) -> None:
    """Write what `AutoModelForSequenceClassification` loads, with what is known of its scores in its config.

    An adapter is written as PEFT saves it, its facts in `facts.json`, for it has no config of the model's.
    """
    if as_adapter:
        model.save_pretrained(run.path / "model")
        write_text(run.path / "model" / SCORE_STATISTICS, json.dumps(facts, indent=2) + "\n")
    else:
        whole = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
        for name, value in facts.items():
            setattr(unwrap_peft(whole).config, name, value)
        whole.save_pretrained(run.path / "model")
    tokenizer.save_pretrained(run.path / "model")
    print(f"reward model in {run.path / 'model'}: " + ", ".join(f"{k} {v}" for k, v in facts.items()))
