"""Direct preference optimisation: preference pairs train a policy, without a reward model and without sampling.

The reference is the policy before training. Its log-probabilities of all pairs are computed once, before the first
step, and stored in the run folder, so that training needs no second model in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhf.config.dpo import DPOConfig
from rlhf.config.jobs import DPOJob
from rlhf.data.comparisons import ComparedRows, split_preferences
from rlhf.data.demonstrations import pad_demonstrations
from rlhf.data.encoding import padding_id
from rlhf.data.preferences import CompletionPair, encode_completion_pairs, stream_completion_pairs
from rlhf.errors import UserError
from rlhf.models.adapters import active_adapter
from rlhf.models.compiled_layers import compile_layers
from rlhf.models.distribution import check_head
from rlhf.models.export import export_lm
from rlhf.models.loading import add_lora, check_causal, context_length_of, load_causal_lm, load_tokenizer
from rlhf.models.sequence_logprobs import SequenceLogprobs
from rlhf.models.trunk import disable_dropout, restore_dropout
from rlhf.report.model_card import write_model_card
from rlhf.run.distributed import check_alike, check_sharding, open_accelerator, raise_on_all_ranks
from rlhf.run.files import replacing
from rlhf.run.fingerprint import fingerprint_rows, fingerprint_weights
from rlhf.run.folder import REFERENCE_LOGPROBS, RunFolder
from rlhf.run.metrics import Metrics
from rlhf.run.precision import warn_about_slow_weights
from rlhf.trainers.supervised import check_batches, check_lengths, fit
from tabular.core.preferences import dpo_loss, ipo_loss


def train_dpo(job: DPOJob) -> bool:
    """Check and tokenise the pairs, compute the reference's log-probabilities, train, and write the model.

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
    check_alike(accelerator, {"the data of data.path": fingerprint_rows(pairs)})  # before the reference reads them

    lm = load_causal_lm(job.model)
    check_head(lm.eval())
    dropout_rates = disable_dropout(lm)  # or the first log-ratios would not be 0
    warn_about_slow_weights(lm.dtype, accelerator.device)
    base = fingerprint_weights(lm.named_parameters())
    lm = add_lora(lm, job.model.lora, "CAUSAL_LM")
    if job.model.compile:
        compile_layers(lm)
    model = SequenceLogprobs(lm.to(accelerator.device))
    forward = PairForward(padding_id(tokenizer), job.training.microbatch_size, accelerator.device)
    references = stored_references(
        run.path / REFERENCE_LOGPROBS, model, {"training": pairs, "held_out": held_out}, base, forward, accelerator
    )
    task = DPOTask(
        rows=pairs,
        held_out=held_out,
        references=references["training"],
        held_out_references=references["held_out"],
        forward=forward,
        config=job.dpo,
    )
    finished = fit(task, model, job=job, run=run, accelerator=accelerator)
    if finished:
        if accelerator.is_main_process:
            restore_dropout(lm, dropout_rates)
            with run.writing_model() as folder:
                export_lm(lm, tokenizer, folder, job.model, merged=job.export == "merged")
                write_model_card(run.path, folder)
            print(f"model in {run.path / 'model'}")
            from rlhf.report.report import write_report

            print(f"report in {write_report(run.path)}")
        accelerator.wait_for_everyone()
    run.close(accelerator)
    return finished


def _load_pairs(job: DPOJob, accelerator: Any) -> tuple[Any, Sequence[CompletionPair], Sequence[CompletionPair]]:
    """Tokenizer, and the pairs to train on and to hold out.

    Raises:
        UserError: they cannot be used.
    """
    tokenizer, context_length = _prepare_tokenizer(job)
    rows, held_out_rows, note = split_preferences(job.data, job.seed)
    if note:
        accelerator.print(note)
    pairs = _encode(job, tokenizer, rows, job.data.path, accelerator)
    held_out: Sequence[CompletionPair] = []
    if held_out_rows is not None:
        held_out = _encode(job, tokenizer, held_out_rows, job.data.eval_path or job.data.path, accelerator)
    check_batches(job.training, len(pairs), accelerator.num_processes, job.data.path)
    check_lengths((pair.length for pair in chain(pairs, held_out)), context_length, job.data.path)
    return tokenizer, pairs, held_out


@dataclass(frozen=True)
class PairForward:
    """How pairs are read: both texts of each in one forward pass."""

    pad_id: int
    microbatch_size: int
    device: torch.device

    def __call__(self, model: nn.Module, pairs: Sequence[CompletionPair]) -> Float[Tensor, "B 2"]:
        """`log p` of the chosen and of the rejected completion of each pair."""
        texts = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        ids, mask, trained = (x.to(self.device) for x in pad_demonstrations(texts, self.pad_id))
        return torch.stack(model(ids, mask, trained).chunk(2), dim=1)

    def microbatches(self, pairs: Sequence[CompletionPair]) -> list[list[int]]:
        """The indices of the pairs in groups of one forward pass, those of like length together."""
        lengths = [pair.length for pair in pairs]
        ordered = sorted(range(len(pairs)), key=lengths.__getitem__)
        return [ordered[i : i + self.microbatch_size] for i in range(0, len(ordered), self.microbatch_size)]


@dataclass(frozen=True)
class DPOTask:
    """The mean loss over preference pairs, whose rewards are beta times the log-ratios to the reference."""

    rows: Sequence[CompletionPair]
    held_out: Sequence[CompletionPair]
    references: Float[Tensor, "N 2"]
    """The reference's `log p` of the chosen and the rejected completion of each row."""
    held_out_references: Float[Tensor, "M 2"]
    forward: PairForward
    config: DPOConfig
    title: str = "dpo"

    def length(self, row: CompletionPair) -> int:
        return row.length

    def weight(self, row: CompletionPair) -> int:
        return 1

    def loss(self, model: nn.Module, rows: list[CompletionPair]) -> tuple[Tensor, Metrics]:
        losses, metrics = self._measure(model, rows, self.references)
        return losses.sum(), {name: values.detach().sum() for name, values in metrics.items()}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        if not self.held_out:
            return {}
        sums: dict[str, float] = {}
        for group in self.forward.microbatches(self.held_out):
            pairs = [self.held_out[i] for i in group]
            losses, metrics = self._measure(model, pairs, self.held_out_references)
            for name, values in {"loss": losses, **metrics}.items():
                sums[name] = sums.get(name, 0.0) + float(values.sum())
        return {name: total / len(self.held_out) for name, total in sums.items()}

    def _measure(
        self, model: nn.Module, pairs: Sequence[CompletionPair], references: Float[Tensor, "N 2"]
    ) -> tuple[Float[Tensor, "B"], dict[str, Float[Tensor, "B"]]]:
        """The loss of each pair, with gradient, and its further metrics."""
        log_ratios = self.forward(model, pairs) - references[[pair.index for pair in pairs]].to(self.forward.device)
        lengths = [(pair.chosen.trained_tokens, pair.rejected.trained_tokens) for pair in pairs]
        tokens = torch.tensor(lengths, dtype=torch.float32, device=self.forward.device)
        if self.config.loss == "ipo":
            chosen, rejected = (log_ratios / tokens).unbind(1)
            losses = ipo_loss(chosen, rejected, self.config.beta)
        else:
            chosen, rejected = log_ratios.unbind(1)
            losses = dpo_loss(chosen, rejected, self.config.beta, self.config.label_smoothing)
        return losses, {
            "accuracy": (chosen > rejected).float(),
            "margin": self.config.beta * (chosen - rejected),
            "chosen_reward": self.config.beta * chosen,
            "rejected_reward": self.config.beta * rejected,
            "chosen_length": tokens[:, 0],
            "rejected_length": tokens[:, 1],
        }


# ------------------------------------------------------------------------------------------------------ the reference


def stored_references(
    file: Path,
    model: SequenceLogprobs,
    pairs: dict[str, Sequence[CompletionPair]],
    base: str,
    forward: PairForward,
    accelerator: Any,
) -> dict[str, Float[Tensor, "N 2"]]:
    """The reference's log-probabilities of each set of pairs: read from the file, or computed and written to it.

    Args:
        file: in the run folder; used where it belongs to these pairs and to these weights.
        model: the policy before training; with adapters, the reference is the model without them.
        base: fingerprint of its weights without adapters.
    """
    from accelerate.utils import broadcast_object_list

    fingerprint = f"{base} {fingerprint_rows(pairs['training'], pairs['held_out'])}"
    stored: list[Any] = [_read(file, fingerprint) if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        broadcast_object_list(stored)
    if stored[0] is not None:
        return stored[0]
    references = {name: reference_logprobs(model, rows, forward, accelerator) for name, rows in pairs.items()}
    if accelerator.is_main_process:
        _write(file, references, fingerprint)
    accelerator.wait_for_everyone()
    return references


@torch.no_grad()
def reference_logprobs(
    model: SequenceLogprobs, pairs: Sequence[CompletionPair], forward: PairForward, accelerator: Any
) -> Float[Tensor, "N 2"]:
    """The reference's `log p` of the chosen and the rejected completions; each process computes its share."""
    model.eval()
    logprobs = torch.zeros(len(pairs), 2, device=forward.device)
    groups = forward.microbatches(pairs)
    with active_adapter(model.lm, None), accelerator.autocast():
        for group in groups[accelerator.process_index :: accelerator.num_processes]:
            rows = [pairs[i] for i in group]
            logprobs[[pair.index for pair in rows]] = forward(model, rows).float()
    return accelerator.reduce(logprobs, reduction="sum").cpu()


def _read(file: Path, fingerprint: str) -> dict[str, Tensor] | None:
    from safetensors import SafetensorError, safe_open

    if not file.exists():
        return None
    try:
        with safe_open(str(file), framework="pt") as content:
            if (content.metadata() or {}).get("fingerprint") == fingerprint:
                return {name: content.get_tensor(name) for name in ("training", "held_out")}
            print(f"warning: {file} belongs to other pairs or to another model; it is computed again")
    except SafetensorError as error:
        print(f"warning: {file} is damaged: {error}; it is computed again")
    return None


def _write(file: Path, references: dict[str, Tensor], fingerprint: str) -> None:
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
        save_file(references, str(partial), {"fingerprint": fingerprint})


# ------------------------------------------------------------------------------------------------------ input


def _prepare_tokenizer(job: DPOJob) -> tuple[Any, int | None]:
    """The model's tokenizer, and its context length in tokens."""
    assert job.model.path is not None
    config = check_causal(job.model.path, job.model.trust_remote_code)
    tokenizer = load_tokenizer(job.model.path, job.model.chat_template, job.model.trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {job.model.path} has no eos_token, which ends every completion; set one in its folder"
        )
    return tokenizer, context_length_of(config)


def _encode(job: DPOJob, tokenizer: Any, rows: Any, path: str | None, accelerator: Any) -> Sequence[CompletionPair]:
    is_streamed = job.data.streaming and not isinstance(rows, ComparedRows)
    encode = stream_completion_pairs if is_streamed else encode_completion_pairs
    encoded = encode(tokenizer, rows, job.training.max_length, path)
    if encoded.equal or encoded.cut:
        accelerator.print(
            f"{path}: {encoded.equal} pairs of equal completions and {encoded.cut} whose prompt leaves no token of a "
            f"completion within training.max_length = {job.training.max_length} are left out"
        )
    return encoded.pairs
