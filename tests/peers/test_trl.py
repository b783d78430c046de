"""TRL 1.12.0, the last release with a PPO trainer: its masked moments, and what its trainers compute while they run.

Most of TRL's formulas stand in the middle of long methods. So its trainers take a real step with a tiny model here, and
the numbers are read out of their frames.
"""

import os
import sys
from collections import defaultdict
from functools import partial
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

from rlhf.config.ppo import PPOConfig
from rlhf.config.scores import RewardConfig
from rlhf.rewards.penalties import apply_penalties
from rlhf.trainers.advantages import estimate, rloo
from rlhf.trainers.advantages import grpo as group_norm
from rlhf.trainers.loss import loss_weights
from tabular.core.kl import kl_estimate
from tabular.core.losses import aggregate, clipped_surrogate_loss, value_loss
from tabular.core.masked import masked_mean, masked_var, masked_whiten
from tabular.core.returns import gae

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
trl = pytest.importorskip("trl")
ppo = import_module("trl.experimental.ppo.ppo_trainer")
grpo = import_module("trl.trainer.grpo_trainer")

pytestmark = pytest.mark.slow
assert_same = partial(torch.testing.assert_close, rtol=0, atol=1e-6)


# --------------------------------------------------------------------------------------------------- whitening


def test_moments(ragged):
    x, mask = ragged.rewards, ragged.mask
    assert_same(masked_mean(x, mask), ppo.masked_mean(x, mask))
    assert_same(masked_var(x, mask), ppo.masked_var(x, mask, unbiased=False))
    assert_same(masked_var(x, mask, unbiased=True), ppo.masked_var(x, mask))


def test_whitening_differs_by_the_divisor_alone(ragged):
    x, mask = ragged.rewards, ragged.mask
    bessel = (mask.sum() / (mask.sum() - 1)).sqrt()
    assert_same(masked_whiten(x, mask)[mask] / bessel, ppo.masked_whiten(x, mask)[mask])


def test_scaling_alone_is_ours_only(ragged):
    """Theirs centres, scales and adds the unscaled mean back; ours leaves every sign as it is."""
    x, mask = ragged.rewards, ragged.mask
    bessel = (mask.sum() / (mask.sum() - 1)).sqrt()
    assert_same((masked_whiten(x, mask) / bessel + masked_mean(x, mask))[mask], ppo.masked_whiten(x, mask, False)[mask])
    assert torch.equal(masked_whiten(x, mask, shift_mean=False).sign()[mask], x.sign()[mask])


def test_one_real_entry_is_nan_there():
    """Bessel's correction divides by n - 1 = 0; ours has variance 0, and whitens to 0."""
    x, mask = torch.tensor([[5.0, 1.0]]), torch.tensor([[True, False]])
    assert ppo.masked_whiten(x, mask)[mask].isnan().all()
    assert masked_whiten(x, mask)[mask] == 0


# ------------------------------------------------------------------------------------------ their PPO, a real step


def ppo_trainer(models, reward_folder, output, prompts=8, **settings):
    """TRL's PPO of short prompts on tiny models, with a policy that differs from its reference."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    folder = models("llama")
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.1 * p.std() * torch.randn_like(p))
    reward, value = (AutoModelForSequenceClassification.from_pretrained(reward_folder) for _ in range(2))
    defaults = {
        "total_episodes": 8, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_mini_batches": 1,
        "num_ppo_epochs": 3, "response_length": 10, "stop_token": "eos", "gamma": 0.97, "lam": 0.9, "kl_coef": 0.3,
        "learning_rate": 0.02, "num_sample_generations": 0, "report_to": [], "save_strategy": "no", "bf16": False,
        "gradient_checkpointing": False, "use_cpu": True, "seed": 1,
    }  # fmt: skip
    args = trl.experimental.ppo.PPOConfig(output_dir=str(output), **{**defaults, **settings})
    data = Dataset.from_dict({"input_ids": [[7 + i % 5, 9, 10 + i % 8] for i in range(prompts)]})
    return ppo.PPOTrainer(
        args, AutoTokenizer.from_pretrained(folder), policy, reference, reward, data, value, eval_dataset=data
    )


@pytest.fixture(scope="module", params=["k1", "k3"])
def step(request, tmp_path_factory, models, reward_folder):
    """The local variables of TRL's PPO where it whitens, and at each of its backward passes."""
    trainer = ppo_trainer(models, reward_folder, tmp_path_factory.mktemp("trl"), kl_estimator=request.param)
    args = trainer.args
    recorded = SimpleNamespace(args=args, whiten=[], backward=[])
    whiten, backward = ppo.masked_whiten, trainer.accelerator.backward

    def seen_whiten(*args, **settings):
        recorded.whiten.append(dict(sys._getframe(1).f_locals))
        return whiten(*args, **settings)

    def seen_backward(loss):
        recorded.backward.append(dict(sys._getframe(1).f_locals))
        return backward(loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo, "masked_whiten", seen_whiten)
        patch.setattr(trainer.accelerator, "backward", seen_backward)
        trainer.train()
    return recorded


def test_gae_of_a_step(step):
    (x,) = step.whiten
    assert len(set(x["sequence_lengths"].tolist())) > 1
    discounts = torch.full_like(x["rewards"], step.args.gamma)
    discounts[:, -1] = 0
    ours = gae(x["rewards"], x["values"], discounts, step.args.lam)
    assert_same(ours, x["advantages"])
    assert_same(ours + x["values"], x["returns"])


def test_kl_of_a_step(step):
    (x,) = step.whiten
    kl = kl_estimate(x["logprobs"], x["ref_logprobs"], step.args.kl_estimator)
    assert_same(kl, x["kl"])
    paid = -step.args.kl_coef * kl
    rows, score_at = torch.arange(8), x["actual_end"]
    paid[rows, score_at] += x["scores"]
    assert_same(paid, x["rewards"])


def test_score_of_a_step_lies_behind_the_end_token(step):
    """Theirs pays a response that ended one place later, where padding is; ours on the end token, an action taken."""
    (x,) = step.whiten
    ended = ~x["padding_mask"].all(-1) & x["padding_mask"].any(-1)
    assert ended.any()
    rows = torch.arange(8)[ended]
    assert x["padding_mask"][rows, x["actual_end"][ended]].all()


def test_losses_of_a_step(step):
    assert len(step.backward) == 3
    for x in step.backward:
        rows = x["micro_batch_inds"]
        mask, value_mask = ~x["padding_mask"][rows], ~x["padding_mask_p1"][rows]
        policy, metrics = clipped_surrogate_loss(
            x["new_logprobs"], x["mb_logprobs"], x["mb_advantage"], mask, mask.sum(), step.args.cliprange
        )
        assert_same(policy, x["pg_loss"])
        critic, clipped = value_loss(
            x["vpred"], x["mb_values"], x["mb_return"], value_mask, value_mask.sum(), step.args.cliprange_value
        )
        assert_same(critic, x["vf_loss"])
        assert_same(clipped["clip_fraction"], x["vf_clipfrac"])
        # Theirs averages over padding too, where the difference is 0, and so comes out smaller.
        assert_same(metrics["approx_kl"] * mask.sum() / mask.numel(), 0.5 * (x["logprobs_diff"] ** 2).mean())
    assert metrics["clip_fraction"] > 0


def test_a_value_that_moved_little_is_not_clipped():
    random = torch.Generator().manual_seed(0)
    values, old_values, returns = 0.1 * torch.randn(3, 1000, generator=random)
    mask = (values - old_values).abs() < 0.19
    _, metrics = value_loss(values, old_values, returns, mask, mask.sum(), 0.2)
    assert metrics["clip_fraction"] == 0


# --------------------------------------------------------------------------------------------- GRPO's loss, alone


MODES = {"token": "bnpo", "sequence": "grpo", "fixed": "dr_grpo"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("high", "delta"), [(0.2, None), (0.28, None), (0.2, 1.5)])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_grpo_loss_and_its_gradient(ragged, mode, high, delta, beta):
    """Its two-sided clip `delta` is the dual clip; its KL term is k3, not clamped, as ours."""
    mask, logprobs = ragged.mask, ragged.logprobs.requires_grad_()
    advantages = ragged.advantages
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
        accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1),
        args=SimpleNamespace(delta=delta, use_bias_correction_kl=False),
        model=SimpleNamespace(training=False),
        _metrics=defaultdict(lambda: defaultdict(list)),
        max_completion_length=mask.shape[1], loss_type=MODES[mode], beta=beta, epsilon_low=0.2, epsilon_high=high,
        importance_sampling_level="token", top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        use_vllm=False, aux_loss_enabled=False, _entropy_bonus_enabled=False,
    )  # fmt: skip
    inputs = {
        "prompt_ids": torch.ones(len(mask), 1), "prompt_mask": torch.ones(len(mask), 1),
        "completion_ids": torch.ones(mask.shape), "completion_mask": mask.double(), "advantages": advantages,
        "old_per_token_logps": ragged.old_logprobs, "ref_per_token_logps": ragged.ref_logprobs,
    }  # fmt: skip
    wanted = grpo.GRPOTrainer._compute_loss(trainer, None, inputs)

    weights = loss_weights(mask, mode, *mask.shape)
    weights = weights if weights is None else weights.double()
    ours, _ = clipped_surrogate_loss(
        logprobs, ragged.old_logprobs, advantages, mask, mask.sum(), 0.2, high, delta, weights=weights
    )
    kl = kl_estimate(logprobs, ragged.ref_logprobs, "k3")
    ours = ours + beta * aggregate(torch.where(mask, kl, 0), mask, mask.sum(), weights)
    assert_same(ours, wanted)
    assert_same(*(torch.autograd.grad(loss, logprobs)[0] for loss in (ours, wanted)))


# -------------------------------------------------------------------------------- their GRPO and RLOO, a real step


def advantages_of(trainer_class, config_class, folder, tmp_path, **settings):
    """The scores that a trainer was given in its one step, and the advantages it made of them."""
    from datasets import Dataset

    scores, made = [], []

    def reward(completions, **_):
        scores.extend(torch.randn(len(completions), generator=random).tolist())
        return scores

    random = torch.Generator().manual_seed(0)
    args = config_class(
        output_dir=str(tmp_path), per_device_train_batch_size=8, num_generations=4, max_completion_length=6,
        max_steps=1, report_to=[], save_strategy="no", bf16=False, gradient_checkpointing=False, use_cpu=True,
        **settings,
    )  # fmt: skip
    trainer = trainer_class(str(folder), reward, args, Dataset.from_dict({"prompt": ["the film", "a good story"]}))
    score = trainer._generate_and_score_completions

    def seen(inputs):
        made.append(score(inputs))
        return made[-1]

    trainer._generate_and_score_completions = seen
    trainer.train()
    return torch.tensor(scores), made[0]["advantages"]


@pytest.mark.parametrize("scale", ["group", "none"])
def test_grpo_advantages_of_a_step(models, tmp_path, scale):
    """Theirs adds 1e-4 to the deviation, ours 1e-6: a hundredth of a per cent where scores spread by 1."""
    scores, wanted = advantages_of(trl.GRPOTrainer, trl.GRPOConfig, models("llama"), tmp_path, scale_rewards=scale)
    if scale == "group":
        deviations = scores.view(-1, 4).std(-1, keepdim=True)
        wanted = (wanted.view(-1, 4) * (deviations + 1e-4) / (deviations + 1e-6)).flatten()
    assert_same(group_norm(scores, 4, divide_by_std=scale == "group"), wanted)


def test_rloo_advantages_of_a_step(models, tmp_path):
    scores, wanted = advantages_of(trl.RLOOTrainer, trl.RLOOConfig, models("llama"), tmp_path, beta=0.0)
    assert_same(rloo(scores, 4), wanted)


def test_rloo_and_grpo_pay_each_token_what_the_response_earned(ragged):
    """So the tokens' advantages here are TRL's one number a response."""
    for name, whole in (("rloo", rloo), ("grpo", group_norm)):
        ours, _ = estimate(ragged.rollout(), ragged.outcome, None, PPOConfig(estimator=name, samples_per_prompt=4))
        assert_same(ours, torch.where(ragged.mask, whole(ragged.scores, 4)[:, None], 0))


# ------------------------------------------------------------------------------------------- names of settings


def test_the_list_of_settings_that_the_documentation_is_held_to_is_trls():
    import dataclasses
    import json
    from pathlib import Path

    config = import_module("trl.experimental.ppo").PPOConfig
    listed = json.loads((Path(__file__).parents[1] / "docs" / "trl_1_12_settings.json").read_text())
    kinds = (config, trl.ScriptArguments, trl.ModelConfig)
    assert listed == {kind.__name__: sorted(field.name for field in dataclasses.fields(kind)) for kind in kinds}


# ------------------------------------------------------------------------- what docs/from_trl.md says of its trainer


@pytest.mark.parametrize("minibatches", [1, 4])
def test_an_epoch_is_one_optimizer_step_there_whatever_the_minibatches(models, reward_folder, tmp_path, minibatches):
    batches = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_mini_batches": minibatches}
    trainer = ppo_trainer(models, reward_folder, tmp_path, prompts=24, total_episodes=16, **batches)
    steps = []
    trainer.optimizer.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    trainer.train()
    assert len(steps) == 2 * trainer.args.num_ppo_epochs


def test_the_last_batch_of_a_pass_over_the_prompts_takes_a_step_a_microbatch_there(models, reward_folder, tmp_path):
    """accelerate synchronises gradients at the end of a data loader, here with the first batch already."""
    trainer = ppo_trainer(models, reward_folder, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    steps = []
    trainer.optimizer.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    trainer.train()
    assert len(steps) == 4 * trainer.args.num_ppo_epochs


def test_gradients_are_never_clipped_there(models, reward_folder, tmp_path):
    weights = []
    for name, norm in (("tight", 1e-6), ("wide", 1e6)):
        trainer = ppo_trainer(
            models, reward_folder, tmp_path / name, max_grad_norm=norm, adam_epsilon=1.0, learning_rate=1.0
        )
        trainer.train()
        weights.append(torch.cat([p.flatten() for p in trainer.policy_model.parameters()]))
    assert_same(*weights)


def test_the_penalty_for_a_missing_end_is_subtracted_there(models, reward_folder, tmp_path):
    scores = []
    for name, penalty in (("without", None), ("with", 3.0)):
        trainer = ppo_trainer(models, reward_folder, tmp_path / name, missing_eos_penalty=penalty)
        whiten = ppo.masked_whiten

        def seen_whiten(*args, whiten=whiten, **settings):
            frame = sys._getframe(1).f_locals
            scores.append((frame["scores"].clone(), frame["contain_eos_token"].clone()))
            return whiten(*args, **settings)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ppo, "masked_whiten", seen_whiten)
            trainer.train()
    (plain, ended), (penalised, also_ended) = scores
    assert torch.equal(ended, also_ended)
    assert ended.any()
    assert not ended.all()
    assert_same(
        penalised,
        apply_penalties(
            plain, torch.full((8,), 10), ~ended, RewardConfig(truncated="subtract", missing_eos_penalty=3.0), 10
        ),
    )
