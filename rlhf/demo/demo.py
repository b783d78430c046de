"""The whole road on film reviews: a new language model, a reward model, PPO, evaluation, report; minutes on a CPU."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config.jobs import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    GenerationConfig,
    JudgeConfig,
    ModelConfig,
    PPOConfig,
    PPOJob,
    RewardConfig,
    RewardJob,
    ScratchConfig,
    SFTJob,
    TrainingConfig,
)
from rlhf.demo import reviews
from rlhf.errors import UserError


def jobs(folder: Path, seed: int, kl_coef: float | None = None) -> tuple[SFTJob, RewardJob, PPOJob]:
    """The three stages of the demo, each reading what the one before wrote."""
    data = {name: str(path) for name, path in reviews.write_files(folder / "data").items()}
    off = CheckpointConfig(every=0)
    sft = SFTJob(
        output=str(folder / "sft"),
        seed=seed,
        scratch=ScratchConfig(model_type="llama", lowercase=True, max_positions=128, dropout=0.0),
        data=DataConfig(path=data["demonstrations"], eval_path=data["demonstrations_test"]),
        training=TrainingConfig(
            epochs=5.0, batch_size=32, microbatch_size=32, max_length=64, lr=3e-3, warmup_steps=20, weight_decay=0.5
        ),
        checkpoint=off,
    )
    reward = RewardJob(
        output=str(folder / "reward"),
        seed=seed,
        model=ModelConfig(path=sft.output),
        data=DataConfig(path=data["pairs"], eval_path=data["pairs_test"]),
        training=TrainingConfig(
            epochs=1.0, batch_size=32, microbatch_size=32, max_length=64, lr=3e-3, warmup_steps=20, weight_decay=3.0
        ),
        checkpoint=off,
    )
    ppo = PPOJob(
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
            kl_horizon=1_000 if kl_coef is None else 10_000,
        ),
        eval=EvalConfig(every=20, judge=JudgeConfig(function="rlhf.demo.reviews:judge")),
        checkpoint=off,
    )
    return sft, reward, ppo


@dataclass(frozen=True)
class Goal:
    """A number the demo must reach, and whether it did."""

    name: str
    value: float
    bound: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def goals(start: dict[str, Any], end: dict[str, Any], accuracy: float) -> list[Goal]:
    return [
        Goal("judge score, held out", end["judge"], 0.70),
        Goal("KL to the start, nats a response", end["kl"], 10.0, at_least=False),
        Goal("distinct-2", end["distinct_2"], 0.80),
        Goal("length, share of the start's", end["length"] / start["length"], 0.60),
        Goal("reward model's pairwise accuracy, held out", accuracy, 0.75),
    ]


def run_demo(output: str, seed: int = 0, kl_coef: float | None = None) -> bool:
    """Run the demo in a new folder; True when every goal was met.

    Raises:
        UserError: the folder exists, or the demo's text or judge are not installed.
    """
    from rich.console import Console

    from rlhf.evaluation.tables import responses_table, summary_table
    from rlhf.run.folder import RunFolder
    from rlhf.trainers.ppo import PPOTrainer
    from rlhf.trainers.reward_model import train_reward_model
    from rlhf.trainers.sft import train_sft

    console, began = Console(), time.perf_counter()
    folder = Path(output)
    if folder.exists():
        raise UserError(f"demo folder {output} exists; name another with --output")
    reviews.judge(["a"], ["b"])  # the judge is fitted now: a missing package should not wait for the end
    sft, reward, ppo = jobs(folder, seed, kl_coef)

    console.rule("1/4  a small language model learns to write film reviews")
    train_sft(sft)
    console.rule("2/4  a reward model learns which review praises its film")
    train_reward_model(reward)
    console.rule("3/4  PPO")
    trainer = PPOTrainer(ppo)
    trainer.train()
    console.rule("4/4  what changed")
    rows = RunFolder(ppo.output, "auto").read("eval")
    start, end = rows[0], next(row for row in rows if row["step"] == trainer.state.best_step)
    accuracy = RunFolder(reward.output, "auto").read("eval")[-1]["accuracy"]
    console.print(
        summary_table({k: v for k, v in start.items() if k != "step"}, {k: v for k, v in end.items() if k != "step"})
    )
    console.print(responses_table(RunFolder(ppo.output, "auto").read("samples"), end["step"]))
    reached = goals(start, end, accuracy)
    for goal in reached:
        sign = ">=" if goal.at_least else "<="
        mark = "[green]pass[/]" if goal.met else "[red]FAIL[/]"
        console.print(f"{mark}  {goal.name}: {goal.value:.3f} (must be {sign} {goal.bound})")
    console.print(f"{time.perf_counter() - began:.0f} s in all; the report is {Path(ppo.output) / 'report.html'}")
    return all(goal.met for goal in reached)
