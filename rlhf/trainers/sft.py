"""Supervised fine-tuning: next-token prediction on demonstrations, of a pretrained language model or a new one."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from rlhf.config.jobs import SFTJob
from rlhf.data.datasets import read_column, split_rows
from rlhf.data.demonstrations import (
    Demonstration,
    dataset_formats,
    encode_demonstrations,
    pad_demonstrations,
    stream_demonstrations,
)
from rlhf.data.encoding import padding_id
from rlhf.errors import UserError
from rlhf.models.compiled_layers import compile_layers
from rlhf.models.distribution import check_head
from rlhf.models.export import export_lm
from rlhf.models.loading import add_lora, check_causal, context_length_of, load_causal_lm, load_tokenizer
from rlhf.models.scratch import new_lm, train_tokenizer
from rlhf.models.sequence_logprobs import trained_logprobs
from rlhf.report.model_card import write_model_card
from rlhf.run.distributed import check_sharding, open_accelerator, raise_on_all_ranks
from rlhf.run.folder import RunFolder
from rlhf.run.metrics import Metrics
from rlhf.run.precision import warn_about_slow_weights
from rlhf.trainers.supervised import check_batches, check_lengths, fit


def train_sft(job: SFTJob) -> bool:
    """Check and tokenise the data, train, and write the model.

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
        tokenizer, examples, held_out = _load_examples(job, accelerator)

    lm = load_causal_lm(job.model) if job.model.path is not None else new_lm(job.scratch, tokenizer)
    check_head(lm.eval())
    warn_about_slow_weights(lm.dtype, accelerator.device)
    lm = add_lora(lm, job.model.lora, "CAUSAL_LM")
    if job.model.compile:
        compile_layers(lm)
    task = SFTTask(
        rows=examples,
        held_out=held_out,
        pad_id=padding_id(tokenizer),
        microbatch_size=job.training.microbatch_size,
        device=accelerator.device,
    )
    finished = fit(task, NextTokenLoss(lm), job=job, run=run, accelerator=accelerator)
    if finished:
        if accelerator.is_main_process:
            with run.writing_model() as folder:
                export_lm(lm, tokenizer, folder, job.model, merged=job.export == "merged")
                write_model_card(run.path, folder)
            print(f"model in {run.path / 'model'}")
            from rlhf.report.report import write_report

            print(f"report in {write_report(run.path)}")
        accelerator.wait_for_everyone()
    run.close(accelerator)
    return finished


def _load_examples(job: SFTJob, accelerator: Any) -> tuple[Any, Sequence[Demonstration], Sequence[Demonstration]]:
    """Tokenizer, and the demonstrations to train on and to hold out.

    Raises:
        UserError: they cannot be used.
    """
    rows, held_out_rows = split_rows(job.data, job.seed)
    tokenizer, context_length = _prepare_tokenizer(job, rows)
    if accelerator.is_main_process:
        _print_unused_columns(rows, job.data.path)
    limit = job.training.max_length
    encode = stream_demonstrations if job.data.streaming else encode_demonstrations
    examples = encode(tokenizer, rows, limit, job.data.path)
    held_out: Sequence[Demonstration] = []
    if held_out_rows is not None:
        held_out = encode(tokenizer, held_out_rows, limit, job.data.eval_path or job.data.path)
    check_batches(job.training, len(examples), accelerator.num_processes, job.data.path)
    check_lengths((len(example.ids) for example in chain(examples, held_out)), context_length, job.data.path)
    return tokenizer, examples, held_out


class NextTokenLoss(nn.Module):
    """A causal language model whose forward pass returns its loss."""

    def __init__(self, lm: Any):
        super().__init__()
        self.lm = lm

    def forward(self, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"], trained: Bool[Tensor, "B L"]) -> Tensor:
        """Sum of `-log p(token)` over the trained tokens of right-padded rows."""
        return -trained_logprobs(self.lm, ids, mask, trained).sum()


@dataclass(frozen=True)
class SFTTask:
    """The mean of `-log p(token)` over the trained tokens of demonstrations."""

    rows: Sequence[Demonstration]
    held_out: Sequence[Demonstration]
    pad_id: int
    microbatch_size: int
    device: torch.device
    title: str = "sft"

    def length(self, row: Demonstration) -> int:
        return len(row.ids)

    def weight(self, row: Demonstration) -> int:
        return row.trained_tokens

    def loss(self, model: nn.Module, rows: Sequence[Demonstration]) -> tuple[Tensor, Metrics]:
        ids, mask, trained = pad_demonstrations(rows, self.pad_id)
        return model(ids.to(self.device), mask.to(self.device), trained.to(self.device)), {}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        if not self.held_out:
            return {}
        size = self.microbatch_size
        batches = [self.held_out[i : i + size] for i in range(0, len(self.held_out), size)]
        total = sum(float(self.loss(model, batch)[0]) for batch in batches)
        mean = total / sum(example.trained_tokens for example in self.held_out)
        return {"loss": mean, "perplexity": math.exp(min(mean, 700.0))}


def _prepare_tokenizer(job: SFTJob, rows: Any) -> tuple[Any, int | None]:
    """The model's tokenizer, or a new one trained on the rows; and the context length of the model in tokens."""
    if job.model.path is None:
        return train_tokenizer(_texts(rows, job.data.path), job.scratch), job.scratch.max_positions
    config = check_causal(job.model.path, job.model.trust_remote_code)
    tokenizer = load_tokenizer(job.model.path, job.model.chat_template, job.model.trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {job.model.path} has no eos_token, which ends every demonstration; set one in its folder"
        )
    return tokenizer, context_length_of(config)


def _texts(rows: Any, path: str | None) -> Iterable[str]:
    if "text" not in rows.column_names:
        raise UserError(f"a new tokenizer is trained on a column 'text', which {path} does not have")
    return (text for text in read_column(rows, "text", path) if text)


def _print_unused_columns(rows: Any, path: str | None) -> None:
    used, *others = dataset_formats(rows, path)
    if others:
        unused = ", ".join(name for columns in others for name in columns)
        print(f"{path} has several formats: {', '.join(used)} is trained on, {unused} is not used")
