"""Compiled decoder layers: the numbers of scoring and update stay equal, and training is as without compilation."""

import shutil

import pytest
import torch

from rlhf.config.shared import LoraConfig
from rlhf.errors import UserError
from rlhf.models.compiled_layers import compile_layers
from rlhf.rollouts.stages import sample_responses
from rlhf.trainers.ppo import PPOTrainer

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler"
)


def run(job, output, steps=3):
    trainer = PPOTrainer(job.__class__(**(vars(job) | {"output": str(output)})))
    return trainer, [trainer.step() for _ in range(steps)]


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("family", "kind"), [("llama", "shared"), ("llama", "separate"), ("llama", "adapter"), ("gpt2", "shared")]
)
def test_the_first_ratio_is_1_and_the_first_kl_0_with_compiled_layers(job, change, models, tmp_path, family, kind):
    """Microbatches of one row and of several, with and without gradient, run different graphs."""
    lora = LoraConfig(rank=2) if kind == "adapter" else LoraConfig()
    ppo = {"ppo_epochs": 1, "minibatch_size": 8, "microbatch_size": 3, "lr": 1e-3}
    eager = change(job, ppo=ppo, critic={"kind": kind}, model={"path": str(models(family)), "lora": lora})
    compiled = change(eager, model={"compile": True})
    trainer, steps = run(compiled, tmp_path / "compiled")
    assert [step["policy/ratio_max"] for step in steps] == [1.0] * 3
    assert steps[0]["objective/kl"] == 0.0
    assert steps[1]["objective/kl"] != 0.0
    _, expected = run(eager, tmp_path / "eager")
    for name in ("policy/loss", "value/loss", "policy/grad_norm", "response/length", "objective/score"):
        assert [s[name] for s in steps] == pytest.approx([s[name] for s in expected], rel=1e-3, abs=1e-6), name
    trainer.export(tmp_path / "model")  # names of weights are those of the uncompiled model
    weights = torch.nn.Module.state_dict(trainer.policy)
    assert not any("_orig_mod" in name for name in weights)


@pytest.mark.slow
@needs_compiler
def test_sampling_runs_the_layers_uncompiled(job, change, monkeypatch):
    from torch._dynamo.utils import counters

    trainer = PPOTrainer(change(job, model={"compile": True}))
    torch._dynamo.reset()
    counters.clear()
    prompts = trainer.next_prompts()
    sample_responses(trainer.policy, trainer.sampler, prompts, None)
    assert not counters["stats"]["unique_graphs"]
    trainer.policy.lm(prompts.prompt_ids)
    assert counters["stats"]["unique_graphs"]


def test_a_model_without_layers_of_transformers_is_rejected(build):
    from transformers import AutoModelForCausalLM

    config = build.config("llama")
    config.num_hidden_layers = 0
    lm = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match="LlamaModel has no layers that can be compiled"):
        compile_layers(lm)
