"""All stages on film reviews: a new language model, a reward model, PPO, evaluation; minutes on a CPU."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rlhf.config.commands import DemoJob
from rlhf.config.jobs import PPOJob, RewardJob, SFTJob
from rlhf.config.ppo import PPOConfig
from rlhf.config.scores import JudgeConfig, RewardConfig
from rlhf.config.shared import CheckpointConfig, DataConfig, EvalConfig, GenerationConfig, ModelConfig, ScratchConfig
from rlhf.config.training import TrainingConfig
from rlhf.demo import reviews
from rlhf.errors import UserError


@dataclass(frozen=True)
class Stages:
    """The jobs of the demo; each one reads what the one before it wrote."""

    sft: SFTJob
    reward: RewardJob
    ppo: PPOJob


def make_stages(folder: Path, seed: int, kl_coef: float | None = None) -> Stages:
    """Write the data and make the jobs.

    Args:
        folder: folder of all stages.
        seed: seed of all stages.
        kl_coef: fixed coefficient of the KL; None: adaptive, with a target of 7 nats per response.
    """
    data = {name: str(path) for name, path in reviews.write_files(folder / "data").items()}
    sft = _sft_job(folder, seed, data)
    reward = _reward_job(folder, seed, data, sft)
    return Stages(sft, reward, _ppo_job(folder, seed, data, sft, reward, kl_coef))


NO_CHECKPOINTS = CheckpointConfig(every=0)


def _sft_job(folder: Path, seed: int, data: dict[str, str]) -> SFTJob:
    return SFTJob(
        output=str(folder / "sft"),
        seed=seed,
        scratch=ScratchConfig(model_type="llama", lowercase=True, max_positions=128, dropout=0.0),
        data=DataConfig(path=data["demonstrations"], eval_path=data["demonstrations_test"]),
        training=TrainingConfig(
            epochs=5.0, batch_size=32, microbatch_size=32, max_length=64, lr=3e-3, warmup_steps=20, weight_decay=0.5
        ),
        checkpoint=NO_CHECKPOINTS,
    )


def _reward_job(folder: Path, seed: int, data: dict[str, str], sft: SFTJob) -> RewardJob:
    return RewardJob(
        output=str(folder / "reward"),
        seed=seed,
        model=ModelConfig(path=sft.output),
        data=DataConfig(path=data["pairs"], eval_path=data["pairs_test"]),
        training=TrainingConfig(
            epochs=1.0, batch_size=32, microbatch_size=32, max_length=64, lr=3e-3, warmup_steps=20, weight_decay=3.0
        ),
        checkpoint=NO_CHECKPOINTS,
    )


def _ppo_job(
    folder: Path, seed: int, data: dict[str, str], sft: SFTJob, reward: RewardJob, kl_coef: float | None
) -> PPOJob:
    return PPOJob(
        output=str(folder / "ppo"),
        seed=seed,
        model=ModelConfig(path=sft.output),
        data=DataConfig(path=data["prompts"], eval_path=data["prompts_test"]),
        generation=GenerationConfig(max_new_tokens=32),
        reward=RewardConfig(model=reward.output, missing_eos_penalty=1.0, min_length=12, short_penalty=1.0),
        ppo=PPOConfig(
            total_episodes=80 * 64,
            rollout_batch_size=64,
            minibatch_size=32,
            microbatch_size=32,
            lr=5e-4,
            warmup_steps=5,
            kl_coef=0.1 if kl_coef is None else kl_coef,
            kl_target=7.0 if kl_coef is None else None,
        ),
        eval=EvalConfig(every=20, judge=JudgeConfig(function="rlhf.demo.reviews:judge")),
        checkpoint=NO_CHECKPOINTS,
    )


@dataclass(frozen=True)
class Goal:
    """A bound on a measure of the demo's result."""

    name: str
    value: float
    bound: float
    at_least: bool = True
    """Whether the bound is a minimum; else it is a maximum."""

    @property
    def met(self) -> bool:
        """Whether the value is within the bound; nan is not."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        return f"{self.name}: {self.value:.3f} (must be {'>=' if self.at_least else '<='} {self.bound})"


def goals(before: dict[str, Any], after: dict[str, Any], accuracy: float) -> list[Goal]:
    """The demo's goals.

    Args:
        before: held-out evaluation before PPO.
        after: held-out evaluation of the exported policy.
        accuracy: held-out pairwise accuracy of the reward model.
    """
    return [
        Goal("judge score, held out", after["judge"], 0.70),
        Goal("KL to the reference, nats per response", after["kl"], 10.0, at_least=False),
        Goal("distinct-2", after["distinct_2"], 0.80),
        Goal("response length, fraction of the initial one", after["length"] / before["length"], 0.60),
        Goal("reward model's pairwise accuracy, held out", accuracy, 0.75),
    ]


def run_demo(job: DemoJob) -> bool:
    """Run all stages in a new folder and print what PPO changed.

    Returns:
        Whether every goal was met.

    Raises:
        UserError: the folder exists, or the demo's text or judge are not installed.
    """
    from rlhf.trainers.ppo import PPOTrainer
    from rlhf.trainers.reward_model import train_reward_model
    from rlhf.trainers.sft import train_sft

    start = time.perf_counter()
    folder = _new_folder(job.output)
    reviews.judge_model()  # fitted now, so that a missing package is reported before the training
    stages = make_stages(folder, job.seed, job.kl_coef)

    console = Console()
    console.rule("1/4  SFT: a new small language model on film reviews")
    train_sft(stages.sft)
    console.rule("2/4  a reward model that prefers positive reviews")
    train_reward_model(stages.reward)
    console.rule("3/4  PPO")
    trainer = PPOTrainer(stages.ppo)
    trainer.train()
    console.rule("4/4  held-out evaluation")
    assert trainer.state.best_step is not None
    met = _print_outcome(console, stages, trainer.state.best_step)
    report = Path(stages.ppo.output) / "report.html"
    console.print(f"{time.perf_counter() - start:.0f} s in total; the report is {report}")
    return met


def _new_folder(output: str | None) -> Path:
    """The demo's folder, which must not exist yet."""
    if output is None:
        folders = (Path(f"runs/demo-{number}") for number in range(1, 10_000))
        return next(folder for folder in folders if not folder.exists())
    if Path(output).exists():
        raise UserError(f"demo folder {output} exists; name another with --output")
    return Path(output)


def _print_outcome(console: Console, stages: Stages, best_step: int) -> bool:
    """Print the evaluations before PPO and at the exported step, some responses, and the goals; whether all are met."""
    from rlhf.evaluation.tables import responses_table, summary_table
    from rlhf.run.folder import RunFolder

    run = RunFolder(stages.ppo.output, "auto")
    evaluations = {row.pop("step"): row for row in run.read("eval")}
    before, after = evaluations[0], evaluations[best_step]
    console.print(summary_table(before, after))
    console.print(responses_table(run.read("samples"), best_step))
    accuracy = RunFolder(stages.reward.output, "auto").read("eval")[-1]["accuracy"]
    reached = goals(before, after, accuracy)
    for goal in reached:
        console.print(f"{'[green]pass[/]' if goal.met else '[red]FAIL[/]'}  {goal}")
    return all(goal.met for goal in reached)
