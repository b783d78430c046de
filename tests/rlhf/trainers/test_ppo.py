"""The invariants of the trainer on tiny real models."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlhf.cli.main import main
from rlhf.errors import UserError
from rlhf.models.distribution import LogitTransform
from rlhf.records import select
from rlhf.run import checkpoint
from rlhf.run import folder as run_folder
from rlhf.run.metrics import sum_microbatches
from rlhf.trainers.loss import Normalizers
from rlhf.trainers.optimizer import total_norm
from rlhf.trainers.ppo import PPOTrainer
from rlhf.trainers.replay import replay
from rlhf.trainers.update import UpdateContext

FAMILIES = ["llama", "gpt2", "qwen2"]


def collected(trainer):
    return trainer.make_batch(trainer.collect(trainer.next_prompts()))


CONTEXT = UpdateContext(step=0, kl_coef=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_first_ratio_is_exactly_one_and_first_kl_exactly_zero(job, change, models, family):
    trainer = PPOTrainer(change(job, model={"path": str(models(family))}))
    batch = collected(trainer)
    rollout = batch.rollout
    assert rollout.response_mask.sum(-1).unique().numel() > 1  # ragged, or the test shows little
    assert torch.equal(rollout.old_logprobs, rollout.ref_logprobs)
    trainer.policy.train()
    minibatch = select(batch, next(trainer.learner.minibatches(8, 0)))
    normalizers = Normalizers.of(minibatch)
    parts = [
        trainer.learner.loss(select(minibatch, rows), normalizers, CONTEXT).metrics
        for rows in trainer.learner.own_microbatches(minibatch)
    ]
    metrics = sum_microbatches(parts)
    assert float(metrics["policy/approx_kl"]) == 0.0
    assert float(metrics["policy/ratio_max"]) == 1.0


def test_first_epoch_gradient_is_the_policy_gradient(job, change):
    """At ratio 1 the clipped surrogate's gradient is the mean of advantage times the score function."""
    trainer = PPOTrainer(change(job, ppo={"minibatch_size": 8, "microbatch_size": 8, "vf_coef": 0.0}))
    batch = collected(trainer)
    mask = batch.rollout.response_mask
    trainer.learner.loss(batch, Normalizers.of(batch), CONTEXT).total.backward()
    surrogate = {
        name: p.grad.clone() for name, p in trainer.learner.weights.items() if not name.startswith("value_head")
    }
    trainer.policy.zero_grad()
    out = trainer.policy(batch.rollout.tokens, LogitTransform())
    (-(out.logprobs * batch.advantages)[mask].mean()).backward()
    for name, grad in surrogate.items():
        torch.testing.assert_close(grad, trainer.learner.weights[name].grad, rtol=1e-5, atol=1e-7)


def test_number_of_optimizer_steps(job):
    trainer = PPOTrainer(job)
    metrics = trainer.step()
    assert metrics["policy/optimizer_steps"] == 2 * (8 // 4)  # epochs x minibatches
    assert {int(s["step"]) for s in trainer.learner.optimizer.state_dict()["state"].values()} == {4}


def test_target_kl_stops_the_epochs_before_the_optimizer_step_above_it(job, change):
    trainer = PPOTrainer(change(job, ppo={"target_kl": 1e-9, "ppo_epochs": 4}))
    assert trainer.step()["policy/optimizer_steps"] == 1  # the first is at ratio 1, the second is not


def test_a_gradient_that_is_not_finite_changes_no_weight(job, monkeypatch):
    trainer = PPOTrainer(job)
    before = {name: p.detach().clone() for name, p in trainer.learner.weights.items()}
    true_loss = trainer.learner.loss

    def broken(*args):
        part = true_loss(*args)
        return replace(part, total=part.total * torch.nan)

    monkeypatch.setattr(trainer.learner, "loss", broken)
    assert trainer.step()["policy/optimizer_steps"] == 0
    assert all(torch.equal(before[name], p) for name, p in trainer.learner.weights.items())
    trainer.step()
    with pytest.raises(ValueError, match="10 optimizer steps in a row"):
        trainer.step()


def test_a_skipped_optimizer_step_is_reported_and_can_be_replayed(job, capsys):
    def reward(completions, **columns):
        calls.append(len(completions))
        scores = [0.1 * i for i in range(len(completions))]
        return [*scores[:2], 1e30, *scores[3:]] if len(calls) > 1 else scores

    calls = []
    job = replace(job, data=replace(job.data, eval_fraction=0.0), ppo=replace(job.ppo, ppo_epochs=1))
    PPOTrainer(job, reward=reward).train()
    lines = capsys.readouterr().err.splitlines()
    dump = Path(job.output) / "dumps" / "step_000002"
    skipped = [line for line in lines if "optimizer steps are skipped" in line]
    assert skipped[0].startswith("warning: step 2: ")
    assert skipped[0].endswith("to 1e+30)")
    assert [line for line in lines if "rlhf replay" in line] == [
        f"`rlhf replay {dump}` shows a skipped optimizer step again"
    ]
    rows = [json.loads(line) for line in (Path(job.output) / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["policy/skipped_steps"] == 0
    assert f"step 2: {rows[1]['policy/skipped_steps']:.0f} of 2 " in skipped[0]

    assert main(["replay", str(dump)]) == 0
    output = capsys.readouterr().out
    assert "1e+30" in output
    assert "the largest score is 1e+30, in row 2" in output


def test_a_replay_computes_the_gradient_of_the_whole_minibatch(job, change):
    trainer = PPOTrainer(job)
    trainer._start()
    seen = {}

    def record(metrics):
        seen["norm"] = float(total_norm(p.grad for p in trainer.learner.weights.values() if p.grad is not None))
        return torch.tensor(torch.inf)  # the optimizer step is skipped

    trainer.learner._clip_gradients = lambda metrics: record(metrics) if not seen else torch.tensor(0.0)
    trainer.step()
    result = replay(Path(job.output) / "dumps" / "step_000001")
    assert result.grad_norm == pytest.approx(seen["norm"], rel=1e-5)
    assert result.weights == []
    assert len(result.rows) == job.ppo.minibatch_size
    (Path(job.output) / "dumps" / "step_000001" / "minibatch.pt").write_bytes(b"no")
    with pytest.raises(UserError, match=r"the dump .* is damaged"):
        replay(Path(job.output) / "dumps" / "step_000001")
    with pytest.raises(UserError, match="is no dump"):
        replay(Path(job.output))


def test_weights_that_overflow_end_the_run(job, change):
    with pytest.raises(UserError, match=r"the weights are no longer finite after step 1; .* lower ppo.lr than 1e\+30"):
        PPOTrainer(change(job, ppo={"lr": 1e30})).train()


@pytest.mark.parametrize("old_logprobs", ["recomputed", "sampler"])
def test_killed_and_resumed_is_uninterrupted_bit_for_bit(job, change, tmp_path, old_logprobs):
    whole = change(
        job,
        output=str(tmp_path / "whole"),
        checkpoint={"every": 2},
        ppo={"kl_target": 1.0, "old_logprobs": old_logprobs},
        eval={"every": 1},
    )
    PPOTrainer(whole).train()

    part = change(whole, output=str(tmp_path / "part"))
    trainer = PPOTrainer(part)
    trainer._start()
    for _ in range(2):
        metrics = trainer.step()
        trainer.evaluate()
        trainer._log(metrics)
    trainer.save()
    trainer._log(trainer.step())  # a step that the checkpoint knows nothing of, then the kill
    with open(tmp_path / "part" / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "objec')

    resumed = PPOTrainer(change(part, resume="auto"))
    resumed.train()
    a, b = (
        torch.load(tmp_path / which / "checkpoints" / "step_000002" / "optimizer.pt") for which in ("whole", "part")
    )
    assert a["optimizer"]["param_groups"] == b["optimizer"]["param_groups"]

    from transformers import AutoModelForCausalLM

    one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / which / "model") for which in ("whole", "part"))
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q), name
    for file in ("metrics", "eval", "samples"):
        rows = [
            [
                {k: v for k, v in json.loads(line).items() if k.split("/")[0] not in ("time", "throughput", "memory")}
                for line in (tmp_path / which / f"{file}.jsonl").read_text().splitlines()
            ]
            for which in ("whole", "part")
        ]
        assert rows[0] == rows[1], file


def test_generators_are_restored_right_before_the_first_step(job, change, monkeypatch):
    """What is imported while a run starts, such as the progress bar, may draw from Python's generator."""
    PPOTrainer(change(job, checkpoint={"every": 2})).train()
    start = Path(job.output) / "checkpoints" / "step_000002"
    trainer = PPOTrainer(change(job, output=job.output + "-resumed", resume=str(start)))
    trainer._start()
    random.seed(1)
    states = []
    monkeypatch.setattr(trainer, "_start", lambda: None)
    monkeypatch.setattr(trainer, "next_prompts", lambda: states.append(random.getstate()) or pytest.fail("stop"))
    with pytest.raises(pytest.fail.Exception):
        trainer.train()
    assert states == [torch.load(start / "rng.pt")[0]["python"]]


def test_a_resume_with_other_data_or_another_start_model_is_reported(job, change, capsys):
    PPOTrainer(change(job, checkpoint={"every": 2})).train()
    start = Path(job.output) / "checkpoints" / "step_000002"
    resumed = change(job, output=job.output + "-resumed", resume=str(start))
    PPOTrainer(resumed)._start()
    assert "changed since" not in capsys.readouterr().out
    trainer = PPOTrainer(resumed)
    trainer.state.inputs = dict.fromkeys(trainer.state.inputs, "other")
    trainer.load()
    output = capsys.readouterr().out
    assert "warning: the model of model.path changed since" in output
    assert "warning: the prompts of data.path changed since" in output


def test_a_run_may_resume_from_another_run_s_checkpoint(job, change, tmp_path):
    PPOTrainer(change(job, checkpoint={"every": 2}, eval={"every": 1})).train()
    start = Path(job.output) / "checkpoints" / "step_000002"
    other = change(job, output=str(tmp_path / "other"), resume=str(start), eval={"every": 1})
    trainer = PPOTrainer(other)
    trainer.train()
    assert trainer.state.step == trainer.state.best_step == 3  # the best of its own evaluations
    assert [row["step"] for row in trainer.run.read("metrics")] == [3]
    assert "win_rate" not in trainer.run.read("eval")[0]  # its start was not seen here


def test_exported_model_loads_with_plain_transformers_and_gives_the_same_logprobs(job):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trainer = PPOTrainer(job)
    trainer.train()
    folder = Path(job.output) / "model"
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("the film is", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(lm(ids).logits, trainer.policy.lm(ids).logits)
    assert (Path(job.output) / "report.html").exists()


def test_best_weights_are_exported_not_the_last(job, change, monkeypatch):
    """Held-out scores after penalties 1, 3, 2, 0: the weights of step 1 are the ones that are exported."""
    from rlhf.trainers import evaluations

    told = iter([1.0, 3.0, 2.0, 0.0])
    original = evaluations.summarise
    monkeypatch.setattr(evaluations, "summarise", lambda *a: {**original(*a), "penalised_score": next(told)})
    trainer = PPOTrainer(change(job, eval={"every": 1}))
    snapshots = []
    step = trainer.step
    monkeypatch.setattr(
        trainer, "step", lambda: (step(), snapshots.append(trainer.policy.value_head.weight.detach().clone()))[0]
    )
    trainer.train()
    from safetensors.torch import load_file

    exported = load_file(Path(job.output) / "model" / "value_head.safetensors")["weight"]
    assert trainer.state.best_step == 1
    assert torch.equal(exported, snapshots[0])
    assert not torch.equal(exported, snapshots[2])


def test_only_adapters_and_value_head_are_trained_under_lora(job, change):
    trainer = PPOTrainer(change(job, model={"lora": change(job.model, lora={"rank": 2}).lora}))
    assert trainer.learner.weights
    assert all("lora_" in name or name.startswith("value_head") for name in trainer.learner.weights)
    base = {n: p.detach().clone() for n, p in trainer.policy.named_parameters() if not p.requires_grad}
    first = trainer.step()
    assert first["objective/kl"] == 0.0
    second = trainer.step()
    assert second["objective/kl"] != 0.0
    assert all(torch.equal(p, base[n]) for n, p in trainer.policy.named_parameters() if n in base)


def test_toy_reward_is_learned(job, change):
    """The share of one word rises from chance to most of the text."""
    toy = change(
        job,
        ppo={
            "total_episodes": 60 * 32,
            "rollout_batch_size": 32,
            "minibatch_size": 32,
            "microbatch_size": 32,
            "ppo_epochs": 4,
            "lr": 3e-3,
            "kl_coef": 0.0,
        },
        data={"eval_fraction": 0.0},
    )
    trainer = PPOTrainer(toy)
    scores = [trainer.step()["objective/score"] for _ in range(60)]
    assert sum(scores[:3]) / 3 < 0.2
    assert sum(scores[-5:]) / 5 > 0.8


def test_checkpoint_survives_a_full_disk(job, monkeypatch, capsys):
    trainer = PPOTrainer(job)
    trainer._start()
    trainer.step()
    trainer.save()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_weights", full)
    trainer.step()
    trainer.save()
    folder = Path(job.output) / "checkpoints"
    assert [p.name for p in checkpoint.list_checkpoints(Path(job.output))] == ["step_000001"]
    assert (folder / "latest").resolve().name == "step_000001"
    assert not list(folder.glob(".*partial"))
    assert "No space left" in capsys.readouterr().out


def test_a_reward_that_fails_during_a_run_loses_no_finished_step(job, change):
    calls = []

    def moody(prompts, completions, **columns):
        calls.append(1)
        if len(calls) > 3:  # the evaluation at the start, then two steps
            raise ConnectionError("the server went away")
        return [float(len(c)) for c in completions]

    with pytest.raises(ValueError, match="reward function moody raised ConnectionError: the server went away"):
        PPOTrainer(job, reward=moody).train()
    state = checkpoint.read_state(Path(job.output) / "checkpoints" / "latest")
    assert (state.step, state.episodes) == (2, 16)


def test_a_temporarily_full_disk_loses_no_row(job, monkeypatch):
    trainer = PPOTrainer(job)
    trainer._start()
    told = []

    def log_next():
        values = trainer.step()
        told.append(values["objective/score"])
        trainer.run.log(trainer.accelerator, trainer.state.step, values)

    class Full:
        """A file that takes half of what it is given."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def writelines(self, lines):
            text = "".join(lines)
            self.file.write(text[: len(text) // 2])
            self.file.flush()
            raise OSError(28, "No space left on device")

    log_next()
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "open", lambda *a, **k: Full(open(*a, **k)), raising=False)  # noqa: SIM115
        log_next()
    log_next()
    rows = trainer.run.read("metrics")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["objective/score"] for row in rows] == told


def test_scores_are_logged_for_each_of_several_data_sets(job, change, tmp_path):
    """The share of each is fixed, the reward function gets their names, and their scores make up the whole."""
    (tmp_path / "hard.jsonl").write_text(
        "".join(json.dumps({"prompt": f"a {w}"}) + "\n" for w in ["the", "film", "is", "good"] * 5)
    )
    (tmp_path / "by_set.py").write_text(
        "def f(completions, data_set):\n    return [float(name == 'hard') for name in data_set]\n"
    )
    job = change(
        job,
        data={"more": [str(tmp_path / "hard.jsonl")], "shares": [0.75, 0.25]},
        reward={"function": f"{tmp_path / 'by_set.py'}:f", "missing_eos_penalty": None},
    )
    PPOTrainer(job).train()
    rows = [json.loads(line) for line in (Path(job.output) / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert (row["objective/score/prompts"], row["objective/score/hard"]) == (0.0, 1.0)
        assert row["objective/score"] == 0.25
    evaluated = json.loads((Path(job.output) / "eval.jsonl").read_text().splitlines()[0])
    sets = {name for name in evaluated if name.startswith("set/") and not name.endswith(("_low", "_high"))}
    assert sets <= {"set/prompts/score", "set/hard/score"}
    assert sets
    assert (tmp_path / "run" / "report.html").exists()


def test_samples_have_the_values_and_advantages_of_their_tokens(job, change):
    """With lambda and gamma 1, value and advantage add up to what is still to come: the score after penalties."""
    trainer = PPOTrainer(change(job, ppo={"kl_coef": 0.0, "lam": 1.0}, reward={"missing_eos_penalty": 0.25}))
    trainer.train()
    rows = [json.loads(line) for line in Path(job.output, "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 4  # of two prompts, at the start and at the end
    for row in rows:
        final = -0.25 if row["truncated"] else row["scores"]["score"]
        assert len(row["token_values"]) == len(row["token_advantages"]) == len(row["tokens"])
        sums = [value + gain for value, gain in zip(row["token_values"], row["token_advantages"], strict=True)]
        assert sums == pytest.approx([final] * len(sums), abs=2e-4)
    assert any(value != 0 for row in rows for value in row["token_values"])


@pytest.mark.parametrize(
    "ppo", [{"estimator": "rloo", "samples_per_prompt": 4}, {"estimator": "grpo", "samples_per_prompt": 4}]
)
def test_samples_without_a_critic_have_no_values(job, change, ppo):
    PPOTrainer(change(job, ppo=ppo)).train()
    row = json.loads(Path(job.output, "samples.jsonl").read_text().splitlines()[0])
    assert "token_values" not in row
    assert "token_advantages" not in row
