"""A critic that knows something before it is believed: value pretraining on the frozen policy (Yuan et al., 2025)."""

from dataclasses import replace
from typing import Any

from rlhf.run.progress import progress
from rlhf.trainers.advantages import make_batch
from tabular.core.masked import explained_variance

RISE = 0.01
"""A smaller rise of explained variance counts as none."""

_KEY = 3_333_333
"""Tells the numbers and prompts of these rollouts from those of training."""


def pretrain_critic(trainer: Any) -> None:
    """Teach a trainer's critic the Monte Carlo returns of the policy as it is, until that stops helping.

    Explained variance is measured on each rollout before the critic learns from it, so that it is held out. The policy
    does not move: its weights get no gradient. Written to `pretraining.jsonl`.
    """
    config, job = trainer.job.critic, trainer.job
    monte_carlo = replace(job.ppo, lam=1.0, lam_critic=None, lam_length_alpha=None, target_kl=None)
    best, since = -float("inf"), 0
    with progress("critic", config.pretraining_steps, 0, trainer.accelerator.is_main_process) as bar:
        for number in range(config.pretraining_steps):
            rollout = trainer.collect(trainer.prompts_at(number * job.ppo.prompts_per_step, job.seed + _KEY))
            if trainer.scale is not None:
                trainer.scale.update(rollout.scores)
            batch = make_batch(rollout, monte_carlo, trainer.kl_coef.coef, job.reward, trainer.scale)
            explained = float(explained_variance(rollout.old_values, batch.returns, rollout.response_mask))
            found = trainer.learner.update(batch, number, trainer.kl_coef.coef, critic_only=True, lr=job.ppo.lr)
            row = {"step": number + 1, "value/explained_variance": explained, "value/loss": found["value/loss"]}
            if trainer.accelerator.is_main_process:
                trainer.run.append("pretraining", [row])
            trainer.state.pretraining_rollouts = number + 1
            bar.advance(f"explained variance {explained:.3f}  value loss {found['value/loss']:.3f}")
            best, since = (explained, 0) if explained > best + RISE else (best, since + 1)
            if since >= config.pretraining_patience:
                break
    trainer.accelerator.print(
        f"the critic learnt from {trainer.state.pretraining_rollouts} rollouts of the frozen policy; "
        f"it explains {best:.3f} of the returns' variance"
    )
    trainer.begin_step()
