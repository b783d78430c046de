"""Value pretraining: the critic learns the returns of the frozen policy before PPO starts (Yuan et al., 2025)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from rlhf.config.jobs import PPOJob
from rlhf.records import Rollout
from rlhf.run.folder import RunFolder
from rlhf.run.progress import progress
from rlhf.trainers.advantages import RunningScale, make_batch
from rlhf.trainers.update import Learner
from tabular.core.masked import explained_variance

MIN_IMPROVEMENT = 0.01
"""A smaller rise of explained variance counts as no improvement."""

SEED_OFFSET = 3_333_333
"""Added to the run's seed for the prompts of these rollouts, so that they differ from those of training."""


@dataclass(frozen=True)
class PretrainingResult:
    """The critic after one rollout."""

    rollouts: int
    explained_variance: float
    """Measured before the critic trained on the rollout, so that it is held out."""
    value_loss: float


def pretrain_critic(
    job: PPOJob,
    collect: Callable[[int], Rollout],
    learner: Learner,
    kl_coef: float,
    reward_scale: RunningScale | None,
) -> Iterator[PretrainingResult]:
    """Train the critic on Monte Carlo returns of the present policy until explained variance stops rising.

    The policy does not change: its weights get no gradient.

    Args:
        collect: the scored rollout of the given number, from 0.
        kl_coef: coefficient of the KL penalty in the rewards.
        reward_scale: the running scale of scores, which these rollouts update too.
    """
    config = job.critic
    monte_carlo = replace(job.ppo, lam=1.0, lam_critic=None, lam_length_alpha=None, target_kl=None)
    best = -float("inf")
    rollouts_without_improvement = 0
    for number in range(config.pretraining_steps):
        rollout = collect(number)
        if reward_scale is not None:
            reward_scale.update(rollout.scores[rollout.is_scored])
        batch = make_batch(rollout, monte_carlo, kl_coef, job.reward, reward_scale)
        scored_mask = rollout.response_mask & rollout.is_scored.unsqueeze(-1)
        explained = float(explained_variance(rollout.old_values, batch.returns, scored_mask))
        metrics = learner.update(batch, number, kl_coef, critic_only=True, lr=job.ppo.lr)
        yield PretrainingResult(number + 1, explained, metrics["value/loss"])
        if explained > best + MIN_IMPROVEMENT:
            best = explained
            rollouts_without_improvement = 0
        else:
            rollouts_without_improvement += 1
        if rollouts_without_improvement >= config.pretraining_patience:
            break


def record_pretraining(results: Iterable[PretrainingResult], run: RunFolder, steps: int, accelerator: Any) -> int:
    """Write each result to `pretraining.jsonl`, show the progress, and print what the critic explains in the end.

    Args:
        steps: the most rollouts there can be.

    Returns:
        The number of rollouts.
    """
    best, rollouts = -float("inf"), 0
    with progress("critic", steps, 0, accelerator.is_main_process) as bar:
        for result in results:
            rollouts = result.rollouts
            best = max(best, result.explained_variance)
            explained, loss = result.explained_variance, result.value_loss
            if accelerator.is_main_process:
                row = {"step": rollouts, "value/explained_variance": explained, "value/loss": loss}
                run.append("pretraining", [row])
            bar.advance(f"explained variance {explained:.3f}  value loss {loss:.3f}")
    accelerator.print(
        f"the critic was trained on {rollouts} rollouts of the frozen policy; it explains {best:.3f} of the returns' "
        "variance"
    )
    return rollouts
