"""TRL 1.12.0's DPO: the loss of its first training step, on the same pairs and models as ours."""

import os

import pytest
import torch

from rlhf.config.dpo import DPOConfig
from rlhf.data.preferences import encode_completion_pairs
from rlhf.models.sequence_logprobs import SequenceLogprobs
from rlhf.trainers.dpo import DPOTask, PairForward

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
trl = pytest.importorskip("trl")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("loss", "beta"), [("sigmoid", 0.1), ("sigmoid", 2.0), ("ipo", 0.5)])
@pytest.mark.filterwarnings("ignore")
def test_loss_of_a_step(models, tmp_path, loss, beta):
    """Of completions of unequal length, by a policy that differs from its reference."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    policy, reference = (AutoModelForCausalLM.from_pretrained(models("llama")).eval() for _ in range(2))
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.1 * p.std() * torch.randn_like(p))
    tokenizer = AutoTokenizer.from_pretrained(models("llama"))
    words = ("good", "bad and dull", "a warm story with heart", "fine")
    rows = Dataset.from_list(
        [
            {"prompt": f"the film is {a}", "chosen": f" {b}", "rejected": f" {a} {a}"}
            for a in words
            for b in words
            if a != b
        ]
    )
    pairs = encode_completion_pairs(tokenizer, rows, 64, "pairs").pairs
    forward = PairForward(tokenizer.pad_token_id, len(pairs), torch.device("cpu"))
    with torch.no_grad():
        references = forward(SequenceLogprobs(reference), pairs)
        task = DPOTask(pairs, [], references, references, forward, DPOConfig(loss=loss, beta=beta))
        ours = float(task.loss(SequenceLogprobs(policy), pairs)[0]) / len(pairs)

    arguments = trl.DPOConfig(
        output_dir=str(tmp_path), beta=beta, loss_type=[loss], max_steps=1, per_device_train_batch_size=len(pairs),
        learning_rate=1e-9, report_to=[], save_strategy="no", bf16=False, gradient_checkpointing=False, use_cpu=True,
    )  # fmt: skip
    trainer = trl.DPOTrainer(policy, reference, arguments, train_dataset=rows, processing_class=tokenizer)
    theirs = []
    backward = trainer.accelerator.backward
    trainer.accelerator.backward = lambda value: (theirs.append(float(value)), backward(value))
    trainer.train()
    assert theirs == pytest.approx([ours], rel=1e-5)
