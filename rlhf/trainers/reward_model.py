"""Reward modelling: preference pairs train a model to score the chosen completion above the rejected one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rlhf.config.jobs import RewardJob
from rlhf.data.comparisons import ComparedRows, split_preferences
from rlhf.data.encoding import pad, padding_id
from rlhf.data.preferences import PreferencePair, encode_pairs, stream_pairs
from rlhf.errors import UserError
from rlhf.models.compiled_layers import compile_layers
from rlhf.models.loading import add_lora, check_causal, context_length_of, is_adapter, load_causal_lm, load_tokenizer
from rlhf.models.reward_models import SCORE_STATISTICS
from rlhf.models.trunk import sequence_scores, unwrap_peft
from rlhf.report.model_card import write_model_card
from rlhf.report.report import write_report
from rlhf.run.distributed import check_sharding, open_accelerator, raise_on_all_ranks
from rlhf.run.files import write_text
from rlhf.run.folder import RunFolder
from rlhf.run.metrics import Metrics
from rlhf.run.precision import warn_about_slow_weights
from rlhf.trainers.reward_quality import write_reward_quality
from rlhf.trainers.supervised import check_batches, check_lengths, fit

_MEASURED_TRAINING_PAIRS = 1000
"""Training pairs that score statistics are measured on where no pairs are held out."""


def train_reward_model(job: RewardJob) -> bool:
    """Check and tokenise the pairs, train, and write the model with its accuracy and the statistics of its scores.

    Returns:
        True when training reached its end, False when it was stopped before.

    Raises:
        UserError: the input cannot work.
    """
    run = RunFolder(job.output, job.resume)
    accelerator = open_accelerator(
        job.output, job.model.mixed_precision, job.trackers, job.seed, job.model.matmul_precision, job.model.dtype
    )
    check_sharding(job.model.shard, accelerator)
    with raise_on_all_ranks(accelerator):
        tokenizer, pairs, held_out = _load_pairs(job, accelerator)

    model = SequenceScorer(add_lora(new_reward_model(job), job.model.lora, "SEQ_CLS"))
    warn_about_slow_weights(model.model.dtype, accelerator.device)
    if job.model.compile:
        compile_layers(model.model)
    task = RewardModelTask(
        rows=pairs,
        held_out=held_out,
        pad_id=padding_id(tokenizer),
        microbatch_size=job.training.microbatch_size,
        device=accelerator.device,
        clear_margin=job.clear_margin,
    )
    finished = fit(task, model, job=job, run=run, accelerator=accelerator)
    if finished:
        if accelerator.is_main_process:
            model.eval()
            with torch.no_grad(), accelerator.autocast():
                chosen, rejected = task.scores(model, held_out or pairs[:_MEASURED_TRAINING_PAIRS])
            statistics = score_statistics(chosen, rejected, held_out=bool(held_out))
            save(model.model, tokenizer, run, statistics, as_adapter=job.export == "adapter")
            write_reward_quality(run.path, chosen.float().numpy(), rejected.float().numpy(), held_out, job.data)
            print(f"report in {write_report(run.path)}")
        accelerator.wait_for_everyone()
    run.close(accelerator)
    return finished


def _load_pairs(job: RewardJob, accelerator: Any) -> tuple[Any, Sequence[PreferencePair], Sequence[PreferencePair]]:
    """Tokenizer, and the pairs to train on and to hold out.

    Raises:
        UserError: they cannot be used.
    """
    tokenizer, context_length = _prepare_tokenizer(job)
    rows, held_out_rows, note = split_preferences(job.data, job.seed, with_ties=job.ties == "half")
    if not isinstance(rows, ComparedRows) and (job.ties != "drop" or job.clear_margin != 0):
        raise UserError(
            f"ties and clear_margin have no effect, because {job.data.path} is no file of `rlhf compare`; remove them"
        )
    if note:
        accelerator.print(note)
    limit = job.training.max_length
    encode = stream_pairs if job.data.streaming and not isinstance(rows, ComparedRows) else encode_pairs
    pairs = encode(tokenizer, rows, limit, job.data.path)
    held_out: Sequence[PreferencePair] = []
    if held_out_rows is not None:
        held_out = encode(tokenizer, held_out_rows, limit, job.data.eval_path or job.data.path)
    check_batches(job.training, len(pairs), accelerator.num_processes, job.data.path)
    check_lengths((pair.length for pair in chain(pairs, held_out)), context_length, job.data.path)
    return tokenizer, pairs, held_out


class SequenceScorer(nn.Module):
    """A sequence-classification model with one label whose forward pass returns scores."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B"]:
        return sequence_scores(self.model, ids, mask)


def pairwise_loss(
    chosen: Float[Tensor, "B"],
    rejected: Float[Tensor, "B"],
    margins: Float[Tensor, "B"] | None = None,
    ties: Bool[Tensor, "B"] | None = None,
) -> Float[Tensor, ""]:
    """`-log sigmoid(chosen - rejected - margin)`, summed: the negative log-likelihood of the preferences.

    Bradley & Terry (1952); with a margin Touvron et al. (2023), Llama 2, eq. 2.

    Args:
        margins: by how much the chosen score should exceed the rejected one; None: 0.
        ties: pairs that count half as a preference for each side, without margin; None: there are none.
    """
    differences = chosen - rejected
    losses = -nn.functional.logsigmoid(differences if margins is None else differences - margins)
    if ties is not None:
        logsigmoid = nn.functional.logsigmoid
        losses = torch.where(ties, -(logsigmoid(differences) + logsigmoid(-differences)) / 2, losses)
    return losses.sum()


@dataclass(frozen=True)
class RewardModelTask:
    """The mean pairwise loss over preference pairs."""

    rows: Sequence[PreferencePair]
    held_out: Sequence[PreferencePair]
    pad_id: int
    microbatch_size: int
    device: torch.device
    clear_margin: float = 0.0
    """Margin of the pairs of which one completion is clearly better."""
    title: str = "reward model"

    def length(self, row: PreferencePair) -> int:
        return row.length

    def weight(self, row: PreferencePair) -> int:
        return 1

    def loss(self, model: nn.Module, rows: list[PreferencePair]) -> tuple[Tensor, Metrics]:
        chosen, rejected = self._forward(model, rows)
        ties = torch.tensor([row.tie for row in rows], device=chosen.device)
        margins = torch.tensor([self.clear_margin * row.clearly for row in rows], device=chosen.device)
        correct = torch.where(ties, 0.5, (chosen > rejected).float())
        metrics = {"accuracy": correct.sum(), "margin": (chosen - rejected).detach().sum()}
        return pairwise_loss(chosen, rejected, margins, ties), metrics

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        if not self.held_out:
            return {}
        return pair_metrics(*self.scores(model, self.held_out))

    def scores(self, model: nn.Module, pairs: Sequence[PreferencePair]) -> tuple[Tensor, Tensor]:
        """Scores of the chosen and of the rejected texts, in microbatches."""
        size = self.microbatch_size
        parts = [self._forward(model, pairs[i : i + size]) for i in range(0, len(pairs), size)]
        return torch.cat([chosen for chosen, _ in parts]).cpu(), torch.cat([rejected for _, rejected in parts]).cpu()

    def _forward(self, model: nn.Module, pairs: Sequence[PreferencePair]) -> tuple[Tensor, Tensor]:
        """Scores of the chosen and of the rejected texts, in one forward pass."""
        texts = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        ids, mask = pad(texts, self.pad_id, "right")
        chosen, rejected = model(ids.to(self.device), mask.to(self.device)).chunk(2)
        return chosen, rejected


def pair_metrics(chosen: Float[Tensor, "N"], rejected: Float[Tensor, "N"]) -> dict[str, float]:
    """Accuracy, mean loss and mean margin over pairs, from their scores."""
    return {
        "accuracy": float((chosen > rejected).float().mean()),
        "loss": float(pairwise_loss(chosen, rejected)) / len(chosen),
        "margin": float((chosen - rejected).mean()),
    }


def score_statistics(chosen: Float[Tensor, "N"], rejected: Float[Tensor, "N"], held_out: bool) -> dict[str, Any]:
    """Mean and deviation of a trained model's scores, and its metrics on held-out pairs.

    Raises:
        UserError: all scores are equal.
    """
    scores = torch.cat([chosen, rejected])
    if float(scores.std()) == 0.0:
        raise UserError("the trained model gives every text the same score; is training.max_length too short?")
    statistics = {"score_mean": float(scores.mean()), "score_std": float(scores.std()), "append_eos": True}
    metrics = pair_metrics(chosen, rejected) if held_out else {}
    return statistics | {f"pairwise_{name}": value for name, value in metrics.items()}


def _prepare_tokenizer(job: RewardJob) -> tuple[Any, int | None]:
    """The model's tokenizer, and its context length in tokens; checks that the model can become a reward model."""
    assert job.model.path is not None
    if job.export == "adapter" and is_adapter(job.model.path):
        raise UserError(
            f"export is adapter, but {job.model.path} is an adapter itself: the new adapter would belong to merged "
            "weights that are saved nowhere; use export merged"
        )
    config = check_causal(job.model.path, job.model.trust_remote_code)
    tokenizer = load_tokenizer(job.model.path, job.model.chat_template, job.model.trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {job.model.path} has no eos_token, at which a reward model scores; set one in its folder"
        )
    return tokenizer, context_length_of(config)


def new_reward_model(job: RewardJob) -> Any:
    """A classifier with one label on a language model's trunk; its head is N(0, 1/sqrt(d + 1)) (Ziegler et al., 2019).

    Raises:
        UserError: the architecture has no sequence classifier with a scalar head.
    """
    from transformers import AutoModelForSequenceClassification

    lm = load_causal_lm(job.model)
    config = lm.config
    config.num_labels = 1
    try:
        model = AutoModelForSequenceClassification.from_config(config, dtype=lm.dtype)
    except ValueError as error:
        raise UserError(
            f"{job.model.path} is a {type(lm).__name__}, which has no variant for sequence classification; "
            "use another model"
        ) from error
    if not hasattr(model, "score"):
        raise UserError(
            f"{job.model.path} becomes a {type(model).__name__}, whose head is not supported; use another model"
        )
    # The trunk is reused, not loaded a second time: it may come from an adapter, and is in memory already.
    setattr(model, model.base_model_prefix, lm.base_model)
    nn.init.normal_(model.score.weight, std=(model.score.in_features + 1) ** -0.5)
    if job.model.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def save(model: Any, tokenizer: Any, run: RunFolder, statistics: dict[str, Any], as_adapter: bool = False) -> None:
    """Write what `AutoModelForSequenceClassification` loads, with the statistics of its scores in its config.

    An adapter is written as PEFT saves it, and its statistics in a file beside it, since it has no model config.
    """
    with run.writing_model() as folder:
        if as_adapter:
            model.save_pretrained(folder)
            write_text(folder / SCORE_STATISTICS, json.dumps(statistics, indent=2) + "\n")
        else:
            merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
            for name, value in statistics.items():
                setattr(unwrap_peft(merged).config, name, value)
            merged.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_model_card(run.path, folder)
    print(f"reward model in {run.path / 'model'}: " + ", ".join(f"{k} {v}" for k, v in statistics.items()))
