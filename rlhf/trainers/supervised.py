"""The loop under SFT and reward modelling: batches of rows, a loss that sums, and a denominator counted beforehand."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlhf.config.jobs import RewardJob, SFTJob, TrainingConfig
from rlhf.errors import UserError
from rlhf.run import checkpoint
from rlhf.run.folder import RunFolder, require_space
from rlhf.run.metrics import Metrics, PhaseTimer, peak_memory_mb, sum_microbatches, sum_over_ranks
from rlhf.run.progress import progress, stop_requests
from tabular.core.schedules import make_schedule

Loss = Callable[[nn.Module, list[Any]], tuple[Tensor, Metrics]]
"""Called with the model and some rows; the loss and metrics summed over those rows."""


def check_batches(config: TrainingConfig, rows: int, processes: int, path: str | None) -> None:
    """Refuse data smaller than one batch, and batches that the processes cannot share."""
    if rows < config.batch_size:
        raise UserError(
            f"{path} holds {rows} examples to train on, fewer than training.batch_size = {config.batch_size}; "
            "lower it or bring more examples"
        )
    steps = steps_of(config, rows)
    if config.lr_schedule != "constant" and config.warmup_steps >= steps:
        raise UserError(
            f"training.warmup_steps is {config.warmup_steps}, but the whole run has {steps} steps; lower it"
        )
    if config.batch_size % processes:
        raise UserError(
            f"training.batch_size is {config.batch_size}, which {processes} processes cannot share evenly; "
            f"use a multiple of {processes}"
        )


def check_lengths(
    lengths: Iterable[int], context_length: int | None, path: str | None, setting: str = "training.max_length"
) -> None:
    """Refuse texts that are longer than the model reads (`context_length` tokens; None: any)."""
    longest = max(lengths)
    if context_length is not None and longest > context_length:
        raise UserError(
            f"{path} holds a text of {longest} tokens, but the model reads at most {context_length}; "
            f"set {setting} to {context_length} or less, to cut longer ones"
        )


def steps_of(config: TrainingConfig, rows: int) -> int:
    """Optimizer steps of a whole run; each pass drops the rows that do not fill a last batch."""
    return max(1, round(config.epochs * (rows // config.batch_size)))


def batch_at(step: int, lengths: Sequence[int], size: int, seed: int) -> list[int]:
    """The rows of one step, as a function of the seed and the step.

    Rows of like length share a batch (sorted within pools of 32 random batches), so that little of it is padding.
    """
    turn, index = divmod(step, len(lengths) // size)
    random = np.random.default_rng([seed, turn])
    order = random.permutation(len(lengths))[: len(lengths) // size * size]
    pools = [
        sorted(pool, key=lambda i: lengths[i]) for pool in np.split(order, range(32 * size, len(order), 32 * size))
    ]
    batches = np.concatenate(pools).reshape(-1, size)
    return random.permutation(batches)[index].tolist()


def fit(
    job: SFTJob | RewardJob,
    run: RunFolder,
    accelerator: Any,
    model: nn.Module,
    rows: Sequence[Any],
    length: Callable[[Any], int],
    weight: Callable[[Any], float],
    loss: Loss,
    evaluate: Callable[[], dict[str, float]],
    title: str,
) -> bool:
    """Minimise the mean of a loss over rows; True when it came to the end, False when it was asked to stop before.

    Args:
        weight: how many units of the loss a row has (tokens, or 1); a batch's loss is divided by its rows' weights.
    """
    config, state = job.training, checkpoint.TrainState()
    steps, lengths = steps_of(config, len(rows)), [length(row) for row in rows]
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        weights.values(), config.lr, config.adam_betas, config.adam_eps, weight_decay=config.weight_decay
    )
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    schedule = make_schedule(config.lr_schedule, config.lr, steps, config.warmup_steps)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    require_space(run.path, 5 * size, "a run with this model")
    resume_from = checkpoint.find(run.path, job.resume)
    if resume_from is not None:
        state = checkpoint.load(resume_from, weights, optimizer, accelerator)
    run.start(job, state.step if resume_from else None, accelerator, model)

    model.train()
    with progress(title, steps, state.step, accelerator.is_main_process) as bar, stop_requests() as stop:
        while state.step < steps:
            batch = [rows[i] for i in batch_at(state.step, lengths, config.batch_size, job.seed)]
            for group in optimizer.param_groups:
                group["lr"] = schedule(state.step)
            found = _optimize(accelerator, wrapped, optimizer, weights, batch, weight, loss, config)
            state.step += 1
            run.log(accelerator, state.step, found)
            bar.advance(f"loss {found['loss']:.3f}")
            stopping = stop.anywhere(accelerator)
            if _due(config.eval_every, state.step) or state.step == steps:
                _evaluate(run, accelerator, model, evaluate, state.step)
            last = state.step == steps and job.checkpoint.every > 0
            if _due(job.checkpoint.every, state.step) or stopping or last:
                checkpoint.save(run.path, state, weights, optimizer, accelerator, job.checkpoint.keep)
            if stopping and state.step < steps:
                accelerator.print(f"stopped at step {state.step}; --resume auto goes on from here")
                return False
    return True


def _optimize(
    accelerator: Any,
    model: nn.Module,
    optimizer: Any,
    weights: dict[str, nn.Parameter],
    batch: list[Any],
    weight: Callable[[Any], float],
    loss: Loss,
    config: TrainingConfig,
) -> dict[str, float]:
    """One optimizer step on a batch: this process's share of it, in microbatches."""
    clock, ranks = PhaseTimer(), accelerator.num_processes
    with clock("step"):
        denom = sum(weight(row) for row in batch)
        mine = batch[accelerator.process_index :: ranks]
        groups = [mine[i : i + config.microbatch_size] for i in range(0, len(mine), config.microbatch_size)]
        optimizer.zero_grad()
        parts = []
        for i, group in enumerate(groups):
            with nullcontext() if i == len(groups) - 1 else accelerator.no_sync(model):
                total, metrics = loss(model, group)
                accelerator.backward(total * ranks / denom)  # gradients are averaged over ranks, but their sum is meant
            parts.append({"loss": total.detach()} | metrics)
        norm = float(accelerator.clip_grad_norm_(weights.values(), config.max_grad_norm))
        if not math.isfinite(norm) and accelerator.scaler is None:
            raise UserError("the gradient is not finite; lower training.lr, or resume the newest checkpoint with less")
        optimizer.step()
        summed = sum_over_ranks(accelerator, sum_microbatches(parts))
    found = {name: float(value) / denom for name, value in summed.items()}
    return found | {
        "grad_norm": norm,
        "lr": optimizer.param_groups[0]["lr"],
        "time/step": clock.seconds["step"],
        "memory/peak_mb": peak_memory_mb(accelerator.device),
    }


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def _evaluate(
    run: RunFolder, accelerator: Any, model: nn.Module, evaluate: Callable[[], dict[str, float]], step: int
) -> None:
    model.eval()
    with torch.no_grad(), accelerator.autocast():
        found = evaluate()
    model.train()
    if found:
        run.log(accelerator, step, found, "eval")
        shown = "  ".join(f"{name} {value:.4g}" for name, value in found.items())
        accelerator.print(f"held out at step {step}: {shown}")
