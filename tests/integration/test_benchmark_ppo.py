"""The PPO benchmark's counts of necessary work, and the script as a user runs it."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def workload(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import ppo_workload

    return ppo_workload


def test_operations_of_a_forward_pass_by_hand(workload):
    """Width 4, 2 layers, 2 heads of 2, 1 of keys and values, 8 between: 16 + 2 * 8 + 16 + 3 * 32 = 144 a layer."""
    work = workload.Workload(10, 4, 2, 2, 1, 8, rows=1, prompt=3, response=2, epochs=1, minibatches=1)
    assert work.trunk_weights == 2 * 144
    assert work.head_weights == 40
    # Five tokens attend to 1, 2, 3, 4 and 5 positions, each at 4 operations for each layer and unit of width.
    assert work.trunk_flops(0, 5) == 5 * 2 * 288 + 4 * 2 * 4 * 15
    assert work.trunk_flops(3, 5) == 2 * 2 * 288 + 4 * 2 * 4 * 9
    assert work.head_flops(2) == 160


def test_weights_are_those_of_the_model_that_is_written(workload, tmp_path):
    from transformers import AutoModelForCausalLM

    work = workload.Workload(64, 16, 2, 4, 2, 32, rows=2, prompt=3, response=2, epochs=1, minibatches=1)
    workload.write_models(tmp_path, work, updates=2)
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    matrices = {name: p.numel() for name, p in lm.named_parameters() if p.dim() == 2}
    assert work.trunk_weights == sum(n for name, n in matrices.items() if "layers" in name)
    assert work.head_weights == lm.get_output_embeddings().weight.numel()
    assert len((tmp_path / "prompts.jsonl").read_text().splitlines()) == 4


def ragged(workload, **changes):
    shape = {"rows": 6, "prompt": 12, "response": 9, "epochs": 1, "minibatches": 1, "microbatch": 2}
    return workload.Workload(64, 16, 2, 4, 2, 32, **(shape | changes), ragged=True)


def test_ragged_lengths_depend_on_the_update_alone_and_keep_their_mean(workload):
    work = ragged(workload, rows=20_000, prompt=40, response=60)
    prompts, responses = zip(*work.lengths(3), strict=True)
    assert work.lengths(3) == list(zip(prompts, responses, strict=True)) != work.lengths(4)
    assert (min(prompts), max(prompts)) == (8, 40)
    assert (min(responses), max(responses)) == (1, 60)
    assert sum(responses) / len(responses) == pytest.approx(20, rel=0.02)
    assert set(workload.WORKLOADS["tiny"].lengths(0)) == {(32, 32)}


def test_the_roofline_of_ragged_work_counts_real_tokens_only(workload):
    import ppo_roofline

    work = ragged(workload)
    machine = ppo_roofline.Machine(gflops=1e-9, gbytes=1e9)  # one operation a second
    seconds = ppo_roofline.roofline_seconds(work, 0, machine, own_critic=True, passes=3)
    trunk = sum(work.trunk_flops(0, prompt + response) for prompt, response in work.lengths(0))
    unread = sum(work.trunk_flops(p + r - 1, p + r) for p, r in work.lengths(0))
    head = 2 * 16 * 64 * sum(response for _, response in work.lengths(0))
    assert seconds["generate"] == pytest.approx(trunk - unread + head)
    assert seconds["score"] == pytest.approx(4 * trunk + 2 * head)  # policy, reference, critic and reward model
    assert seconds["update"] == pytest.approx(2 * (2 * trunk + head))  # the forward pass counts as scoring
    copied = ppo_roofline.Machine(gflops=1e9, gbytes=1e-9)  # one byte a second
    weights = 2 * work.trunk_weights + work.head_weights
    update = ppo_roofline.roofline_seconds(work, 0, copied, own_critic=True, passes=3)["update"]
    assert update == pytest.approx(28 * weights)
    assert ppo_roofline.roofline_seconds(work, 0, copied, own_critic=True, passes=2)["update"] < 1


def test_the_roofline_without_recomputed_logprobs_has_no_scoring_pass_of_the_policy(workload):
    import ppo_roofline

    work = ragged(workload)
    machine = ppo_roofline.Machine(gflops=1e-9, gbytes=1e9)
    recomputed, sampler = (
        ppo_roofline.roofline_seconds(work, 0, machine, own_critic=False, passes=3, recomputes=value)
        for value in (True, False)
    )
    forward = sum(work.trunk_flops(0, p + r) + work.head_flops(r) for p, r in work.lengths(0))
    assert recomputed["score"] - sampler["score"] == pytest.approx(forward)
    assert sampler["update"] - recomputed["update"] == pytest.approx(forward / work.minibatches)  # it was that pass
    assert sampler["generate"] == recomputed["generate"]


def test_responses_of_our_trainer_have_the_lengths_of_the_workload(workload, monkeypatch, tmp_path):
    import benchmark_ppo

    from rlhf import PPOTrainer
    from rlhf.trainers import ppo

    monkeypatch.setattr(ppo, "uniform_noise", ppo.uniform_noise)  # put back after the test
    work = ragged(workload)
    workload.write_models(tmp_path, work, updates=2)
    options = Namespace(updates=2, critic="shared", lora=0, set=[])
    trainer = PPOTrainer(benchmark_ppo.job(tmp_path, work, options))
    benchmark_ppo.fix_lengths(trainer, work)
    for update in range(2):
        rollout = trainer.collect(trainer.next_prompts())
        prompts = rollout.prompts.prompt_mask.sum(-1).tolist()
        assert list(zip(prompts, rollout.response_mask.sum(-1).tolist(), strict=True)) == work.lengths(update)
        trainer.update(trainer.make_batch(rollout))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "small-ragged"])
def test_the_benchmark_runs_and_writes_its_figures(name, tmp_path):
    output = tmp_path / "runs.jsonl"
    command = [sys.executable, SCRIPTS / "benchmark_ppo.py", name, "--updates", "2", "--output", output]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPTS.parent)
    assert done.returncode == 0, done.stderr
    assert "share of the roofline" in done.stdout
    row = json.loads(output.read_text())
    assert 0 < row["roofline"] < 1
    assert row["seconds"] >= row["generate"] + row["score"] + row["update"]
    assert row["peak_mb"] > 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--updates", "1"], "--updates must be at least 2"),
        (["--critic", "adapter"], "--critic adapter needs --lora RANK"),
    ],
)
def test_options_that_cannot_be_measured_are_refused(options, message):
    command = [sys.executable, SCRIPTS / "benchmark_ppo.py", "tiny", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
