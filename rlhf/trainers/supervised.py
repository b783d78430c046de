"""The loop under SFT, reward modelling and DPO: batches of rows, a summed loss, and a denominator counted beforehand.

An objective implements `SupervisedTask`; `fit` does the rest. Another one needs a task and no new loop.
"""

import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from rlhf.config.jobs import DPOJob, RewardJob, SFTJob
from rlhf.config.training import TrainingConfig
from rlhf.data.streams import ShuffledStream
from rlhf.errors import UserError
from rlhf.models.sharding import Shards, shard_for_training, whole_weights
from rlhf.run import checkpoint
from rlhf.run.distributed import check_alike
from rlhf.run.fingerprint import fingerprint_rows
from rlhf.run.folder import RunFolder, read_rows, require_space
from rlhf.run.metrics import Metrics, PhaseTimer, peak_memory_mb, sum_microbatches, sum_over_ranks
from rlhf.run.progress import is_due, progress, stop_requests
from rlhf.trainers.live_health import LiveHealth
from rlhf.trainers.optimizer import clip_gradients, make_adamw
from tabular.core.schedules import make_schedule


@runtime_checkable
class SupervisedTask(Protocol):
    """An objective that is a mean over rows of data."""

    @property
    def title(self) -> str:
        """Shown by the progress bar."""
        ...

    @property
    def rows(self) -> Sequence[Any]:
        """The rows to train on."""
        ...

    def length(self, row: Any) -> int:
        """Tokens of a row; rows of similar length share a batch."""
        ...

    def weight(self, row: Any) -> int:
        """How much a row counts in the mean: its trained tokens, or 1."""
        ...

    def loss(self, model: nn.Module, rows: list[Any]) -> tuple[Tensor, Metrics]:
        """The loss of some rows and further metrics, each summed over the rows' weights."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Metrics on held-out rows; empty where there are none."""
        ...


def fit(
    task: SupervisedTask, model: nn.Module, *, job: SFTJob | RewardJob | DPOJob, run: RunFolder, accelerator: Any
) -> bool:
    """Minimise a task's mean loss over its rows, with evaluations and checkpoints.

    With `model.shard`, the weights are sharded while they are trained, and whole again at the end.

    Returns:
        True when training reached its end, False when it was stopped before.

    Raises:
        UserError: the disk is too small, the checkpoint does not fit, or a gradient is not finite.
    """
    config = job.training
    steps = total_steps(config, len(task.rows))
    stream = ShuffledStream(len(task.rows), job.seed)
    lengths = np.fromiter((task.length(row) for row in task.rows), dtype=np.int64, count=len(task.rows))
    schedule = make_schedule(config.lr_schedule, config.lr, steps, config.warmup_steps)
    shards: Shards | None = None
    trained = model
    if job.model.shard:
        trained, shards = shard_for_training(model, accelerator, job.model.gradient_checkpointing)
    weights = {name: p for name, p in trained.named_parameters() if p.requires_grad}
    optimizer = make_adamw([weights.values()], config)
    wrapped, optimizer = (trained, optimizer) if shards else accelerator.prepare(trained, optimizer)
    model_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    require_space(run.path, 5 * model_bytes, "a run with this model")
    inputs = {"the data of data.path": fingerprint_rows(task.rows)}
    check_alike(accelerator, inputs)
    state = checkpoint.TrainState(inputs=inputs)
    resume_from = checkpoint.find(run.path, job.resume, accelerator)
    if resume_from is not None:
        state = checkpoint.load(resume_from, weights, optimizer, accelerator, inputs)
    health = LiveHealth(steps)
    if resume_from is not None:
        health.resume(read_rows(resume_from.parents[1] / "metrics.jsonl", state.step), ())
    run.start(job, state.step if resume_from else None, accelerator, model)

    model.train()
    wrapped.train()
    with progress(task.title, steps, state.step, accelerator.is_main_process) as bar, stop_requests() as stop:
        if resume_from is not None:
            checkpoint.load_generators(resume_from, accelerator)
        while state.step < steps:
            batch = [task.rows[i] for i in stream.batch(state.step, config.batch_size, lengths)]
            for group in optimizer.param_groups:
                group["lr"] = schedule(state.step)
            metrics = _take_step(task, wrapped, optimizer, batch, config=config, accelerator=accelerator)
            state.step += 1
            for warning in health.check(state.step, metrics):
                accelerator.print(f"WARNING: step {state.step}: {warning}")
            run.log(accelerator, state.step, metrics, warnings=health.names)
            bar.advance(f"loss {metrics['loss']:.3f}{health.live}")
            stopping = stop.anywhere(accelerator)
            if is_due(config.eval_every, state.step) or state.step == steps:
                with whole_weights([] if shards is None else [shards]):
                    _evaluate(task, model, step=state.step, run=run, accelerator=accelerator)
            last = state.step == steps and job.checkpoint.every > 0
            if is_due(job.checkpoint.every, state.step) or stopping or last:
                checkpoint.save(run.path, state, weights, optimizer, accelerator, job.checkpoint.keep)
            if stopping and state.step < steps:
                accelerator.print(f"stopped at step {state.step}; --resume auto continues from here")
                return False
    if shards is not None:
        shards.restore()
    return True


def _take_step(
    task: SupervisedTask,
    model: nn.Module,
    optimizer: Any,
    batch: list[Any],
    *,
    config: TrainingConfig,
    accelerator: Any,
) -> dict[str, float]:
    """One optimizer step on this process's share of a batch, in microbatches; returns the metrics of the step."""
    timer = PhaseTimer()
    ranks = accelerator.num_processes
    with timer("step"):
        denom = sum(task.weight(row) for row in batch)
        share = batch[accelerator.process_index :: ranks]
        size = config.microbatch_size
        microbatches = [share[i : i + size] for i in range(0, len(share), size)]
        optimizer.zero_grad()
        parts = []
        for i, rows in enumerate(microbatches):
            with nullcontext() if i == len(microbatches) - 1 else accelerator.no_sync(model):
                loss, metrics = task.loss(model, rows)
                accelerator.backward(loss * ranks / denom)  # ranks are averaged, and their sum is wanted
            parts.append({"loss": loss.detach()} | metrics)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        accelerator.unscale_gradients()
        norm = float(clip_gradients(parameters, config.max_grad_norm))
        if not math.isfinite(norm) and accelerator.scaler is None:
            raise UserError(
                f"the gradient's norm is {norm}; lower training.lr, or resume the newest checkpoint with a lower one"
            )
        optimizer.step()
        sums = sum_over_ranks(accelerator, sum_microbatches(parts))
    return {name: float(value) / denom for name, value in sums.items()} | {
        "grad_norm": norm,
        "lr": optimizer.param_groups[0]["lr"],
        "time/step": timer.seconds["step"],
        "memory/peak_mb": peak_memory_mb(accelerator.device),
    }


def _evaluate(task: SupervisedTask, model: nn.Module, *, step: int, run: RunFolder, accelerator: Any) -> None:
    model.eval()
    with torch.no_grad(), accelerator.autocast():
        metrics = task.evaluate(model)
    model.train()
    if metrics:
        run.log(accelerator, step, metrics, "eval")
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        accelerator.print(f"held out at step {step}: {shown}")


def total_steps(config: TrainingConfig, rows: int) -> int:
    """Optimizer steps of a whole run; each pass drops the rows that do not fill its last batch."""
    return max(1, round(config.epochs * (rows // config.batch_size)))


def check_batches(config: TrainingConfig, rows: int, processes: int, path: str | None) -> None:
    """Check that batches fit the data, the schedule and the processes.

    Raises:
        UserError: the data is smaller than one batch, warmup is longer than the run, or batches cannot be divided
            evenly among processes.
    """
    if rows < config.batch_size:
        raise UserError(
            f"{path} holds {rows} examples to train on, fewer than training.batch_size = {config.batch_size}; "
            "lower it or add examples"
        )
    steps = total_steps(config, rows)
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
    """Check that texts fit into the model's context.

    Args:
        lengths: of the texts, in tokens.
        context_length: of the model, in tokens; None: unbounded.
        path: of the data, for the error message.
        setting: cuts longer texts, for the error message.

    Raises:
        UserError: a text is too long.
    """
    longest = max(lengths)
    if context_length is not None and longest > context_length:
        raise UserError(
            f"{path} holds a text of {longest} tokens, but the model's context length is {context_length}; "
            f"set {setting} to {context_length} or less, to cut longer ones"
        )
