"""`rlhf replay`: the gradient of an optimizer step that a run skipped, computed again, row by row."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rlhf.config.jobs import PPOJob
from rlhf.config.parsing import parse
from rlhf.config.shared import EvalConfig
from rlhf.errors import UserError
from rlhf.models.loading import load_tokenizer
from rlhf.records import PPOBatch, select, to_device
from rlhf.run.checkpoint import WEIGHTS, load_weights
from rlhf.run.distributed import open_accelerator
from rlhf.trainers.dump import read_dump
from rlhf.trainers.loss import Normalizers
from rlhf.trainers.optimizer import total_norm
from rlhf.trainers.setup import load_models
from rlhf.trainers.update import Learner, UpdateContext


@dataclass(frozen=True)
class ReplayedRow:
    """One response's part of the loss, and what it was computed from."""

    row: int
    """Its place in the minibatch."""
    completion: str
    score: float
    largest_advantage: float
    """By size, over its tokens."""
    loss: float
    grad_norm: float
    """Of the gradient of its part alone."""

    @property
    def is_finite(self) -> bool:
        """Whether the response's gradient is."""
        return bool(torch.isfinite(torch.tensor([self.loss, self.grad_norm])).all())


@dataclass(frozen=True)
class Replay:
    step: int
    """The step of the run, counted from 1."""
    rows: list[ReplayedRow]
    grad_norm: float
    """Of the whole minibatch."""
    weights: list[str]
    """Names of the weights whose gradient has a norm that is not finite."""


def replay(dump: Path) -> Replay:
    """Compute the gradient of a dumped minibatch again, of each response alone and of all together.

    Args:
        dump: a folder in `dumps/` of a PPO run, whose `config.yaml` and start model are read.

    Raises:
        UserError: it is no dump of a run, is damaged, or does not fit the run's model.
    """
    minibatch, numbers = read_dump(dump)
    config = dump.resolve().parents[1] / "config.yaml"
    if not config.is_file():
        raise UserError(f"{dump} lies in no run folder ({config} does not exist), but the run's settings are needed")
    job = parse(PPOJob, ["--config", str(config)])
    if job.ppo.policy_loss == "kl_penalty":
        raise UserError("ppo.policy_loss kl_penalty cannot be replayed: the policy before the step is not in the dump")
    learner = _load_learner(job, dump)
    minibatch = to_device(minibatch, learner.accelerator.device)
    normalizers = Normalizers.of(minibatch)
    context = UpdateContext(**numbers)
    sums = {name: torch.zeros_like(p) for name, p in learner.weights.items()}
    rows = []
    for i in range(len(minibatch)):
        rows.append(_replay_row(learner, minibatch, i, normalizers, context))
        for name, p in learner.weights.items():
            if p.grad is not None:
                sums[name] += p.grad
    return Replay(
        step=context.step + 1,
        rows=rows,
        grad_norm=float(total_norm(sums.values())),
        weights=[name for name, gradient in sums.items() if not bool(total_norm([gradient]).isfinite())],
    )


def _load_learner(job: PPOJob, dump: Path) -> Learner:
    job = replace(job, eval=EvalConfig(), resume=None, model=replace(job.model, shard=False))
    accelerator = open_accelerator(job.output, job.model.mixed_precision, [], job.seed, job.model.matmul_precision)
    tokenizer = load_tokenizer(job.model.path or "", job.model.chat_template, job.model.trust_remote_code)
    models = load_models(job, tokenizer, accelerator.device, reward=lambda **_: [])  # nothing is scored
    learner = Learner(job, models.policy, models.reference, models.sampler.transform, accelerator)
    load_weights(dump / WEIGHTS, learner.weights)
    learner.policy.train()
    return learner


def _replay_row(
    learner: Learner, minibatch: PPOBatch, row: int, normalizers: Normalizers, context: UpdateContext
) -> ReplayedRow:
    learner.optimizer.zero_grad()
    own = select(minibatch, torch.tensor([row]))
    part = learner.loss(own, normalizers, context)
    loss = part.critic if context.critic_only else part.total
    learner.accelerator.backward(loss)
    gradients = [p.grad for p in learner.weights.values() if p.grad is not None]
    return ReplayedRow(
        row=row,
        completion=own.rollout.completions[0],
        score=float(own.rollout.scores[0]),
        largest_advantage=float(own.advantages[own.loss_mask].abs().max()) if bool(own.loss_mask.any()) else 0.0,
        loss=float(loss.detach()),
        grad_norm=float(total_norm(gradients)),
    )
