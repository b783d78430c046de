"""The same trainer on a CUDA device."""

import pytest
import torch

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
