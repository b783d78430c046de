"""The same trainer on a CUDA device."""

import pytest
import torch

from rlhf.trainers.memory_estimate import estimate_memory
from rlhf.trainers.ppo import PPOTrainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_run_on_the_gpu_starts_at_ratio_one_and_kl_zero(job, change, rank, precision):
    lora = change(job.model, lora={"rank": rank}).lora
    trainer = PPOTrainer(change(job, model={"mixed_precision": precision, "lora": lora}, ppo={"ppo_epochs": 1}))
    first = trainer.step()
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-6)
    assert first["memory/peak_mb"] > 0
    assert trainer.step()["objective/kl"] != 0.0


@pytest.mark.parametrize(
    "settings",
    [
        {"offload_reference": True},
        {"offload_optimizer": True},
        {"offload_reference": True, "reference_update_steps": 1},
    ],
    ids=str,
)
def test_offload_changes_no_number(job, change, tmp_path, settings):
    plain = {name: value for name, value in settings.items() if not name.startswith("offload")}
    rows = []
    for name, ppo in (("plain", plain), ("offload", settings)):
        trainer = PPOTrainer(change(job, ppo={"lr": 1e-2} | ppo, output=str(tmp_path / name)))
        metrics = [trainer.step() for _ in range(3)]
        rows.append([[row["objective/kl"], row["policy/grad_norm"]] for row in metrics])
    torch.testing.assert_close(torch.tensor(rows[1]), torch.tensor(rows[0]), rtol=1e-3, atol=1e-5)


def test_offloaded_weights_are_on_the_cpu_between_their_uses(job, change, reward_folder):
    reward = {"function": None, "model": str(reward_folder), "offload": True}
    ppo = {"offload_reference": True, "offload_optimizer": True}
    trainer = PPOTrainer(change(job, ppo=ppo, reward=reward))
    trainer.step()
    moments = [x for state in trainer.learner.optimizer.state.values() for x in state.values() if x.numel() > 1]
    source = trainer.models.scorers["score"]
    offloaded = [*trainer.reference.lm.parameters(), *source.model.parameters(), *moments]
    assert moments
    assert {x.device.type for x in offloaded} == {"cpu"}
    assert all(x.is_pinned() for x in offloaded)
    assert {p.device.type for p in trainer.policy.parameters()} == {"cuda"}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_memory_estimate_is_within_a_fifth_of_the_peak(job, change, build, tmp_path, checkpointing):
    from transformers import AutoModelForCausalLM, LlamaConfig

    tokenizer = build.tokenizer()
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
    config = LlamaConfig(vocab_size=8192, pad_token_id=tokenizer.pad_token_id, eos_token_id=1, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    changed = change(
        job,
        model={"path": str(tmp_path / "m"), "gradient_checkpointing": checkpointing},
        ppo={"rollout_batch_size": 64, "minibatch_size": 64, "microbatch_size": 16, "total_episodes": 256},
        generation={"max_new_tokens": 128, "min_new_tokens": 127},
    )
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    trainer = PPOTrainer(changed)
    for _ in range(2):
        trainer.step()
    peak = torch.cuda.max_memory_allocated() - before
    longest = trainer.data.longest_prompt + 128
    estimate = estimate_memory(trainer.job, longest, 1, trainer.policy, {"reference": trainer.reference.lm})
    assert peak / estimate.peak == pytest.approx(1.0, abs=0.2)
