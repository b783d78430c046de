"""Mixes, rewards by token and skipped failures in whole PPO runs."""

import json
import random

import pytest
import torch

from rlhf.config.scores import RewardConfig, SourceSettings, WeightedSource
from rlhf.errors import UserError
from rlhf.rewards.sources import model_sources
from rlhf.trainers.ppo import PPOTrainer

FUNCTIONS = '''
def good(completions):
    return [c.split().count("good") / max(1, len(c.split())) for c in completions]


def some(completions, wanted):
    return [None if w == "the" else float(len(c)) for c, w in zip(completions, wanted)]


def late(completions, step):
    return [float(step)] * len(completions)


def by_word(completions):
    """One for each word that begins with f or g, where it ends."""
    scores = []
    for text in completions:
        ends = [end for end in range(1, len(text) + 1) if text[end : end + 1] in ("", " ")]
        starts = [0, *(end + 1 for end in ends[:-1])]
        scores.append([(end, float(text[start] in "fg")) for start, end in zip(starts, ends)])
    return scores


def by_token(completions, completion_ids):
    return [[0.25] * len(ids) for ids in completion_ids]


def picky(completions, wanted):
    """Fails on one prompt in three."""
    return [float("nan") if w == "film" else float(len(c)) for c, w in zip(completions, wanted)]
'''
PLAIN = {"missing_eos_penalty": None}


@pytest.fixture
def functions(tmp_path):
    path = tmp_path / "functions.py"
    path.write_text(FUNCTIONS)
    return path


def rows(trainer, name="metrics"):
    return [json.loads(line) for line in (trainer.run.path / f"{name}.jsonl").read_text().splitlines()]


def test_a_mix_is_learned_from_and_logged_apart(job, change, functions, reward_folder):
    sources = {
        "good": WeightedSource(function=f"{functions}:good", weight=2.0),
        "some": WeightedSource(function=f"{functions}:some", weight=0.0),
        "late": WeightedSource(function=f"{functions}:late", weight=-1.0),
        "model": WeightedSource(model=str(reward_folder), weight=0.5),
    }
    job = change(job, reward=RewardConfig(sources=sources, **PLAIN), eval={"every": 1})
    trainer = PPOTrainer(job)
    assert len(model_sources(trainer.source)) == 1
    trainer.train()
    for row in rows(trainer):
        means = {name: row[f"reward/{name}/mean"] for name in sources}
        assert means["late"] == row["step"] - 1
        assert row["objective/score"] == pytest.approx(
            2 * means["good"] - means["late"] + 0.5 * means["model"], abs=1e-5
        )
        assert row["reward/late/std"] == 0.0
        assert row["reward/some/std"] > 0
    for row in rows(trainer, "eval"):
        parts = 2 * row["reward/good"] - row["reward/late"] + 0.5 * row["reward/model"]
        assert row["score"] == pytest.approx(parts, abs=1e-5)
        assert row["reward/late"] == row["step"]
    sample = rows(trainer, "samples")[0]
    assert set(sample["scores"]) == {"score", *(f"reward/{name}" for name in sources)}


@pytest.mark.parametrize("name", ["by_word", "by_token"])
def test_rewards_by_token_reach_the_advantages_and_the_score_is_their_sum(job, change, functions, name):
    reward = RewardConfig(function=f"{functions}:{name}", **PLAIN)
    trainer = PPOTrainer(change(job, reward=reward, ppo={"kl_coef": 0.0}))
    batch = trainer.make_batch(trainer.collect(trainer.next_prompts()))
    rollout, mask = batch.rollout, batch.rollout.response_mask
    assert int(mask.sum(-1).max()) > 2
    torch.testing.assert_close(batch.rewards.sum(-1), rollout.scores)
    tokenizer = trainer.tokenizer
    for ids, row, reward_row in zip(rollout.response_ids, mask, batch.rewards, strict=True):
        words = [tokenizer.decode([token], skip_special_tokens=True) for token in ids[row].tolist()]
        expected = [float(word[:1] in ("f", "g")) if name == "by_word" else 0.25 for word in words]
        assert reward_row[row].tolist() == expected
        assert not reward_row[~row].any()


def test_skipped_responses_are_counted_and_change_nothing_else(job, change, functions):
    reward = RewardConfig(function=f"{functions}:picky", on_error="skip", max_error_fraction=0.9)
    trainer = PPOTrainer(change(job, reward=reward))
    batch = trainer.make_batch(trainer.collect(trainer.next_prompts()))
    wanted = batch.rollout.prompts.columns["wanted"]
    assert batch.rollout.is_scored.tolist() == [name != "film" for name in wanted]
    assert batch.loss_mask.any(-1).tolist() == [name != "film" for name in wanted]
    trainer = PPOTrainer(change(job, reward=reward, output=f"{job.output}-2", eval={"every": 1}))
    trainer.train()
    errors = [row["reward/errors"] for row in rows(trainer)]
    assert sum(errors) > 0
    assert all(row["score"] > 0 for row in rows(trainer, "eval"))


@pytest.mark.parametrize("estimator", ["rloo", "grpo", "remax"])
def test_estimators_without_a_critic_train_with_mixes_and_skips(job, change, functions, estimator):
    sources = {
        "picky": WeightedSource(function=f"{functions}:picky"),
        "words": WeightedSource(function=f"{functions}:by_word"),
    }
    reward = RewardConfig(sources=sources, on_error="skip", max_error_fraction=0.9)
    trainer = PPOTrainer(change(job, reward=reward, ppo={"estimator": estimator, "samples_per_prompt": 2}))
    trainer.train()
    assert sum(row["reward/errors"] for row in rows(trainer)) > 0
    assert all(p.isfinite().all() for p in trainer.learner.weights.values())


def test_too_many_failures_end_the_run_with_a_checkpoint(job, change, functions):
    (functions.parent / "later.py").write_text(
        "def f(completions, step):\n    return [1.0 if step < 2 else float('nan')] * len(completions)\n"
    )
    for on_error, message in (
        ("skip", "8 of 8 responses have no score, more than reward.max_error_fraction = 0.1 allows; the first: "),
        (
            "stop",
            r"reward function .*later.py:f returned nan for the completion '.*' \(row 0, prompt '.*'\), but a score",
        ),
    ):
        reward = RewardConfig(function=f"{functions.parent}/later.py:f", on_error=on_error)
        trainer = PPOTrainer(change(job, reward=reward, output=f"{job.output}-{on_error}"))
        with pytest.raises(UserError, match=message):
            trainer.train()
        trainer.run.close(trainer.accelerator)
        assert (trainer.run.path / "checkpoints" / "step_000002").is_dir()


def test_several_second_scorers_are_evaluated_by_name(job, change, functions):
    judge = {
        "sources": {
            "words": SourceSettings(function=f"{functions}:by_word"),
            "length": SourceSettings(rule="length_target", parameters={"target": 3}),
            "some": SourceSettings(function=f"{functions}:some"),
        }
    }
    judge = type(job.eval.judge)(**judge)
    trainer = PPOTrainer(change(job, eval={"judge": judge}))
    trainer.train()
    for row in rows(trainer, "eval"):
        assert {"judge/words", "judge/words_low", "judge/length", "score"} <= set(row)
        assert row["judge/length"] <= 0
        assert row["judge/some"] > 0


@pytest.mark.slow
def test_a_resumed_run_with_a_mix_equals_an_uninterrupted_one(job, change, functions):
    sources = {
        "good": WeightedSource(function=f"{functions}:good"),
        "late": WeightedSource(function=f"{functions}:late", weight=0.5),
        "words": WeightedSource(function=f"{functions}:by_word"),
    }
    job = change(job, reward=RewardConfig(sources=sources, running_scale=True), checkpoint={"every": 1})
    whole = PPOTrainer(job)
    whole.train()
    resumed = PPOTrainer(
        change(job, resume=str(whole.run.path / "checkpoints" / "step_000002"), output=f"{job.output}-2")
    )
    random.seed(3)
    resumed.train()
    for name, p in whole.learner.weights.items():
        assert torch.equal(p, resumed.learner.weights[name])


def test_a_warning_is_printed_and_counted_where_a_judge_falls_while_the_score_rises(job, change, tmp_path, capsys):
    """The score is the step, the judge minus the step: neither varies within an evaluation."""
    path = tmp_path / "opposite.py"
    path.write_text(
        "def up(completions, step):\n    return [float(step)] * len(completions)\n\n\n"
        "def down(completions, step):\n    return [-float(step)] * len(completions)\n"
    )
    judge = type(job.eval.judge)(function=f"{path}:down")
    reward = RewardConfig(function=f"{path}:up", **PLAIN)
    trainer = PPOTrainer(change(job, reward=reward, eval={"every": 2, "judge": judge}))
    trainer.train()
    sentence = "Since step 0 the held-out score rose from 0 to 2 while judge fell from 0 to -2"
    assert f"WARNING: step 2: {sentence}" in capsys.readouterr().out
    assert [row["eval/overoptimised"] for row in rows(trainer)] == [0.0, 1.0, 1.0]
    assert "while judge fell from 0 to -3" in (trainer.run.path / "report.html").read_text()


def test_patience_ends_a_run_and_its_count_survives_a_resume(job, change, tmp_path, capsys):
    """Scores 0, 1, 2, 2, 2, ...: the best is that of step 2, and two evaluations later the run ends."""
    path = tmp_path / "level.py"
    path.write_text("def f(completions, step):\n    return [float(min(step, 2))] * len(completions)\n")
    job = change(
        job,
        reward=RewardConfig(function=f"{path}:f", **PLAIN),
        ppo={"total_episodes": 80},
        eval={"every": 1, "patience": 2},
        checkpoint={"every": 1},
    )
    trainer = PPOTrainer(job)
    trainer.train()
    assert (trainer.state.step, trainer.state.best_step, trainer.is_finished) == (4, 2, True)
    out = capsys.readouterr().out
    assert "stopped at step 4: no better held-out score in 2 evaluations (eval.patience) after that of step 2" in out
    assert f"the model of step 2, which has the best held-out score, 2.000, is in {trainer.run.path / 'model'}" in out
    # From the checkpoint before the last evaluation, one more is enough; a finished run says how to continue.
    checkpoint = str(trainer.run.path / "checkpoints" / "step_000003")
    resumed = PPOTrainer(change(job, resume=checkpoint))
    resumed.train()
    assert (resumed.state.step, resumed.state.best_step, resumed.state.best_score) == (4, 2, 2.0)
    PPOTrainer(change(job, resume="auto")).train()
    assert "is finished at step 4; to continue, raise eval.patience" in capsys.readouterr().out
    more = PPOTrainer(change(job, resume="auto", eval={"patience": 4}))
    more.train()
    assert (more.state.step, more.state.best_step) == (6, 2)


def test_patience_without_held_out_prompts_is_rejected(job, change):
    with pytest.raises(UserError, match=r"eval.patience is set, but data.eval_fraction is 0"):
        change(job, data={"eval_fraction": 0.0}, eval={"every": 1, "patience": 2})
