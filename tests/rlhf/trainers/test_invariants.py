"""What must hold before the first update, and what each critic, estimator and objective may and may not move."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from rlhf.config.shared import LoraConfig
from rlhf.models.build import choose_critic
from rlhf.records import select, trim
from rlhf.run.metrics import sum_microbatches
from rlhf.trainers.loss import Normalizers
from rlhf.trainers.ppo import PPOTrainer
from rlhf.trainers.update import UpdateContext
from tabular.core.masked import masked_mean, masked_var

FAMILIES = [
    "llama", "gpt2", "qwen2", "gpt_neox", "opt", "mistral", "qwen3", "gemma2", "phi3", "falcon", "bloom", "mamba",
]  # fmt: skip
LORA = {"lora": LoraConfig(rank=4)}
CRITICS = {
    "shared": {},
    "shared, adapted policy": {"model": LORA},
    "separate": {"critic": {"kind": "separate"}},
    "separate, adapted policy": {"critic": {"kind": "separate"}, "model": LORA},
    "adapter": {"critic": {"kind": "adapter"}, "model": LORA},
}
ESTIMATORS = {
    "gae": {},
    "rloo": {"estimator": "rloo", "samples_per_prompt": 4},
    "grpo": {"estimator": "grpo", "samples_per_prompt": 2},
    "reinforce_pp": {"estimator": "reinforce_pp"},
    "remax": {"estimator": "remax"},
}


FIRST_ROWS = torch.arange(4)


def collected(trainer):
    return trainer.make_batch(trainer.collect(trainer.next_prompts()))


def first_minibatch(trainer):
    """The metrics of the first minibatch, in the microbatches of an update, before anything has moved."""
    batch = collected(trainer)
    trainer.policy.train()
    part = select(batch, next(trainer.learner.minibatches(len(batch), 0)))
    context = UpdateContext(0, trainer.kl_coef.coef)
    normalizers = Normalizers.of(part)
    groups = trainer.learner.own_microbatches(part)
    return batch, sum_microbatches(
        [trainer.learner.loss(select(part, rows), normalizers, context).metrics for rows in groups]
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_first_kl_is_zero_and_first_ratio_one_for_every_family(job, change, models, family):
    batch, metrics = first_minibatch(PPOTrainer(change(job, model={"path": str(models(family))})))
    rollout = batch.rollout
    assert not rollout.prompts.prompt_mask.all()  # some prompts are padded on the left
    apart = float((rollout.old_logprobs - rollout.ref_logprobs).abs().max())
    assert apart == 0.0 if family != "mamba" else apart < 1e-5  # whose scan rounds by where its weights lie in memory
    assert float(metrics["policy/ratio_max"]) == 1.0
    assert float(metrics["policy/approx_kl"]) == 0.0
    assert float(((rollout.sampler_logprobs - rollout.old_logprobs).abs() * rollout.response_mask).max()) < 1e-4


@pytest.mark.parametrize("kind", CRITICS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_first_kl_is_zero_and_first_ratio_one_for_every_critic(job, change, kind, checkpointing):
    settings = {"critic": {}, "model": {}} | CRITICS[kind]
    settings["model"] = settings["model"] | {"gradient_checkpointing": checkpointing}
    batch, metrics = first_minibatch(PPOTrainer(change(job, **settings)))
    assert torch.equal(batch.rollout.old_logprobs, batch.rollout.ref_logprobs)
    assert float(metrics["policy/ratio_max"]) == 1.0
    assert float(metrics["value/loss"]) > 0


@pytest.mark.parametrize("kind", CRITICS)
def test_critic_learns_and_a_later_step_has_a_kl(job, change, kind):
    trainer = PPOTrainer(change(job, **CRITICS[kind], ppo={"lr": 3e-3}))
    before = {name: p.detach().clone() for name, p in trainer.policy.named_parameters()}
    first, second = trainer.step(), trainer.step()
    assert first["objective/kl"] == 0.0
    assert second["objective/kl"] != 0.0
    moved = {n for n, p in trainer.policy.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(trainer.learner.weights)  # all that is trained moves, and nothing else
    critics = {n for n in moved if n in trainer.learner.critic_weights}
    assert any(n.startswith("value_head") for n in critics)
    if kind.startswith("separate"):
        assert any(n.startswith("critic_lm") for n in critics)
    if kind == "adapter":
        assert any(".critic." in n for n in critics)
        assert not any(n.startswith("critic_lm") for n in moved)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["adapter", "separate"])
def test_policy_and_critic_losses_reach_only_their_own_weights(job, change, kind, checkpointing):
    """The value loss reaches the critic alone, and the policy loss the policy alone; recomputed layers too."""
    settings = {"critic": {}, "model": {}} | CRITICS[kind]
    settings["model"] = settings["model"] | {"gradient_checkpointing": checkpointing}
    trainer = PPOTrainer(change(job, **settings, ppo={"minibatch_size": 8, "microbatch_size": 8}))
    trainer.step()  # adapters start at zero, and the value head too: a first step gives each something to say
    batch = collected(trainer)
    trainer.policy.train()
    learner = trainer.learner
    normalizers = Normalizers.of(batch)
    context = UpdateContext(1, 0.0)

    def gradients(pick):
        trainer.policy.zero_grad()
        part = learner.loss(batch, normalizers, context)
        pick(part.total, part.critic).backward()
        return {n for n, p in trainer.learner.weights.items() if p.grad is not None and bool(p.grad.any())}

    assert gradients(lambda loss, of_critic: of_critic) == set(learner.critic_weights)
    assert gradients(lambda loss, of_critic: loss - of_critic) == set(learner.policy_weights)


def test_gradient_checkpointing_gives_the_same_gradients_for_every_critic(job, change):
    """With two adapters over one base: a layer must be recomputed through the adapter that it first ran through."""
    gradients_by_size = []
    for checkpointing in (False, True):
        settings = {"critic": {"kind": "adapter"}, "model": LORA | {"gradient_checkpointing": checkpointing}}
        trainer = PPOTrainer(change(job, **settings, ppo={"minibatch_size": 8, "microbatch_size": 4}))
        trainer.step()
        batch = collected(trainer)
        trainer.policy.train()
        trainer.policy.zero_grad()
        for rows in torch.arange(8).split(4):
            trainer.learner.loss(select(batch, rows), Normalizers.of(batch), UpdateContext(1, 0.0)).total.backward()
        gradients_by_size.append({n: p.grad.clone() for n, p in trainer.learner.weights.items()})
        trainer.accelerator.free_memory()
        job = replace(job, output=job.output + "-2")
    for name, grad in gradients_by_size[0].items():
        torch.testing.assert_close(gradients_by_size[1][name], grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", CRITICS)
def test_critic_warmup_trains_the_critic_alone(job, change, kind):
    """Bit for bit: with weight decay on, and a trunk that is shared."""
    settings = {"critic": {}} | CRITICS[kind]
    settings["critic"] = settings["critic"] | {"warmup_steps": 2}
    trainer = PPOTrainer(change(job, **settings, ppo={"lr": 1e-2, "weight_decay": 0.1}))
    start = {n: p.detach().clone() for n, p in trainer.learner.weights.items()}
    for _ in range(2):
        assert trainer.step()["objective/kl"] == 0.0
    assert all(torch.equal(p, start[n]) for n, p in trainer.learner.policy_weights.items())
    assert not all(torch.equal(p, start[n]) for n, p in trainer.learner.critic_weights.items())
    assert trainer.learner.optimizer.state_dict()["state"].keys() <= set(range(len(start)))
    trainer.step()
    assert not all(torch.equal(p, start[n]) for n, p in trainer.learner.policy_weights.items())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_only_gae_builds_a_critic(job, change, name, tmp_path):
    trainer = PPOTrainer(change(job, ppo=ESTIMATORS[name]))
    metrics = trainer.train()
    has = name == "gae"
    assert (trainer.policy.critic is not None) == has == bool(trainer.learner.critic_weights)
    assert any(key.startswith("value/") for key in metrics) == has
    assert (Path(job.output) / "model" / "value_head.safetensors").exists() == has
    assert metrics["policy/grad_norm"] > 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_whitened_advantages_have_mean_zero_and_deviation_one_over_real_tokens(job, change, name):
    batch = collected(PPOTrainer(change(job, ppo={**ESTIMATORS[name], "whiten_advantages": True})))
    mask = batch.rollout.response_mask
    assert not mask.all()
    assert abs(float(masked_mean(batch.advantages, mask))) < 1e-5
    assert abs(float(masked_var(batch.advantages, mask)) - 1) < 1e-4


OBJECTIVES = {
    "clip": {},
    "clip higher, dual": {"clip_range": 0.1, "clip_range_high": 0.3, "dual_clip": 3.0},
    "kl_penalty": {"policy_loss": "kl_penalty", "kl_penalty_target": 1e-4},
    "kl in the loss, k2": {"kl_placement": "loss", "kl_estimator": "k2"},
    "kl in the loss, k3": {"kl_placement": "loss", "kl_estimator": "k3"},
    "kl in the loss, full": {"kl_placement": "loss", "kl_estimator": "full"},
    "kl in the reward, full": {"kl_estimator": "full"},
    "kl in the reward, k3": {"kl_estimator": "k3"},
    "by sequence": {"loss_aggregation": "sequence"},
    "by a fixed number": {"loss_aggregation": "fixed"},
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("size", [1, 3])
def test_microbatches_sum_to_the_minibatch_for_every_objective(job, change, name, size):
    """Gradients to 1e-6, on responses of unequal lengths, with every term of the loss alive."""
    settings = {"minibatch_size": 8, "microbatch_size": 8, "ent_coef": 0.01, "kl_coef": 0.3, **OBJECTIVES[name]}
    trainer = PPOTrainer(change(job, ppo=settings))
    trainer.step()
    batch = collected(trainer)
    with torch.no_grad():  # the policy has moved on from the one that sampled, and from its reference
        for p in trainer.learner.policy_weights.values():
            p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    head = trainer.reference.head if trainer.learner.requested.old_states else None
    context = UpdateContext(1, 0.3, old_head=head)
    normalizers = Normalizers.of(batch)
    trainer.policy.train()

    def gradients(rows_at_once):
        trainer.policy.zero_grad()
        parts = []
        for rows in torch.arange(8).split(rows_at_once):
            part = trainer.learner.loss(select(batch, rows), normalizers, context)
            part.total.backward()
            parts.append(part.metrics)
        return sum_microbatches(parts), {n: p.grad.clone() for n, p in trainer.learner.weights.items()}

    whole, grads = gradients(8)
    cut, cut_grads = gradients(size)
    assert float(whole["policy/approx_kl"]) > 0
    for key in whole:  # rounding may put one token in 50 on the other side of a clip's boundary
        slack = 0.021 if key.endswith("clip_fraction") else 1e-6
        torch.testing.assert_close(cut[key], whole[key], rtol=1e-5, atol=slack)
    for key in grads:
        torch.testing.assert_close(cut_grads[key], grads[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains(job, change, name):
    trainer = PPOTrainer(change(job, ppo={"lr": 1e-2, **OBJECTIVES[name]}))
    metrics = [trainer.step() for _ in range(3)]
    assert metrics[0]["objective/kl"] == 0.0
    assert metrics[2]["objective/kl"] != 0.0
    if name == "kl_penalty":
        assert metrics[0]["policy/kl_old_new"] > 1.5e-4  # far more than the target
        assert [m["policy/kl_penalty_beta"] for m in metrics[:2]] == [1.0, 2.0]
    if "kl_placement" in OBJECTIVES[name]:
        assert metrics[0]["policy/kl_loss"] >= 0.0
        assert metrics[2]["policy/kl_loss"] > 0.0


def test_first_kl_between_old_and_new_is_exactly_zero(job, change):
    """The old distribution is recomputed from stored states and a copy of the head, and must be exactly the same."""
    trainer = PPOTrainer(change(job, ppo={"policy_loss": "kl_penalty", "minibatch_size": 4, "microbatch_size": 2}))
    from rlhf.models.distribution import OutputHead

    batch = collected(trainer)
    part = select(batch, torch.arange(4))
    context = UpdateContext(0, 0.0, old_head=OutputHead.of(trainer.policy.lm).frozen())
    assert trainer.learner._kl_old_new(part, context) == 0.0
    with torch.no_grad():
        trainer.policy.lm.get_output_embeddings().weight.mul_(1.1)
    assert trainer.learner._kl_old_new(part, context) > 0.0  # the copy did not move with the head


@pytest.mark.parametrize("rule", ["replace", "overlong", "bootstrap", "mask"])
def test_truncated_responses_are_treated_as_configured(job, change, rule):
    settings = {"truncated": rule} | ({"overlong_buffer": 2} if rule == "overlong" else {})
    trainer = PPOTrainer(change(job, reward=settings, generation={"max_new_tokens": 4}))
    torch.nn.init.constant_(trainer.policy.value_head.bias, 2.5)
    batch = collected(trainer)
    rollout, cut = batch.rollout, batch.rollout.truncated
    assert cut.any()
    assert not cut.all()
    last = rollout.response_mask.sum(-1) - 1
    paid = batch.rewards[torch.arange(8), last]  # the KL is 0, so this is the score alone
    whole = ~cut
    if rule == "replace":
        assert (paid[cut] == -1.0).all()
    if rule == "overlong":
        assert (rollout.scores[cut] <= 1.0 - 1.0).all()
    if rule == "bootstrap":
        torch.testing.assert_close(paid[cut], torch.full_like(paid[cut], 2.5))
        assert torch.equal(paid[whole], rollout.scores[whole])
    assert torch.equal(batch.loss_mask.any(-1), whole if rule == "mask" else torch.ones_like(cut))
    assert trainer.learner.update(batch, 0, 0.0)["policy/grad_norm"] > 0


# ------------------------------------------------------------------------------------------------ batches and steps


@pytest.mark.parametrize(
    ("total", "rollout", "minibatch", "microbatch", "epochs", "samples"),
    [
        (8, 8, 8, 8, 1, 1),
        (8, 8, 4, 2, 3, 1),
        (16, 8, 2, 1, 2, 2),
        (24, 12, 4, 3, 1, 3),
        (20, 8, 8, 3, 2, 4),
        (9, 4, 1, 16, 2, 1),
        (12, 12, 6, 4, 2, 6),
    ],
)
def test_batch_sizes_give_the_documented_number_of_rows_and_steps(
    job, change, total, rollout, minibatch, microbatch, epochs, samples
):
    """Steps, optimizer steps, forwards, responses and prompts of a whole run."""
    sizes = {"total_episodes": total, "rollout_batch_size": rollout, "minibatch_size": minibatch}
    more = {"microbatch_size": microbatch, "ppo_epochs": epochs, "samples_per_prompt": samples}
    trainer = PPOTrainer(change(job, ppo=sizes | more, data={"eval_fraction": 0.0}))
    read, batches = [], []
    original, true_source = trainer.learner.loss, trainer.collector.source
    trainer.learner.loss = lambda batch, *rest: (read.append(len(batch)), original(batch, *rest))[1]
    trainer.collector.source = lambda prompts, texts, columns: (
        batches.append(prompts),
        true_source(prompts, texts, columns),
    )[1]
    metrics = trainer.train()
    steps = -(-total // rollout)
    per_epoch = rollout // minibatch
    assert trainer.state.step == steps == len(batches)
    assert trainer.state.episodes == steps * rollout == sum(map(len, batches))
    assert metrics["policy/optimizer_steps"] == epochs * per_epoch
    taken = {int(s["step"]) for s in trainer.learner.optimizer.state_dict()["state"].values()}
    assert taken == {steps * epochs * per_epoch}
    assert len(read) == steps * epochs * per_epoch * -(-minibatch // microbatch)
    assert max(read) == min(minibatch, microbatch)
    for prompts in batches:  # each prompt samples_per_prompt times, in consecutive rows
        assert all(prompts[i] == prompts[i - i % samples] for i in range(rollout))
    started = trainer.data.prompts.stream(0, steps * rollout // samples, job.seed)
    assert [p for batch in batches for p in batch[::samples]] == [trainer.data.prompts.prompts[i] for i in started]


# --------------------------------------------------------------------------------------- the sampler is the policy


@pytest.mark.parametrize(
    "options",
    [{"repetition_penalty": 2.0}, {"suppress_tokens": [8, 9]}, {"no_repeat_ngram_size": 1}, {"top_k": 2, "top_p": 0.5}],
)
def test_a_model_s_own_generation_config_is_ignored(job, change, models, tmp_path, options, capsys):
    """It is named before the start and set aside: the responses are those of a model without it."""
    import shutil

    from transformers import GenerationConfig

    folder = tmp_path / "bent"
    shutil.copytree(models("llama"), folder)
    GenerationConfig(eos_token_id=1, do_sample=True, **options).save_pretrained(folder)
    plain = collected(PPOTrainer(job)).rollout
    trainer = PPOTrainer(change(job, model={"path": str(folder)}, output=str(tmp_path / "other")))
    bent, metrics = first_minibatch(trainer)
    assert bent.rollout.completions == plain.completions
    assert float(metrics["policy/ratio_max"]) == 1.0
    trainer._start()
    output = capsys.readouterr().out
    assert "ignored from the model's generation_config:" in output
    assert all(name in output for name in options)


# -------------------------------------------------------------------------------------------------- where critics start


def test_a_saved_critic_can_initialise_another_run(job, change, tmp_path):
    """Trunk and head of a separate critic, and the head of a shared one with its trunk."""
    for kind in ("separate", "shared"):
        first = PPOTrainer(change(job, critic={"kind": kind}, output=str(tmp_path / kind), data={"eval_fraction": 0.0}))
        first.train()
        again = PPOTrainer(
            change(
                job,
                critic={"kind": "separate", "init": str(tmp_path / kind)},
                model={"path": str(tmp_path / kind)},
                output=str(tmp_path / f"{kind}-again"),
            )
        )
        rollout = first.generate(["the film is", "a good"] * 4)
        assert rollout.old_values.abs().max() > 0
        torch.testing.assert_close(again.compute_logprobs_and_values(rollout).old_values, rollout.old_values)


def test_a_critic_from_the_reward_model_predicts_its_scores(job, change, build, tmp_path):
    """After the last token, shifted and scaled as PPO sees them."""
    from transformers import AutoModelForSequenceClassification

    from rlhf.rewards.models import ModelReward

    config = build.config("llama", num_labels=1)
    config.score_mean, config.score_std = 0.3, 2.0
    torch.manual_seed(3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "reward")
    build.tokenizer().save_pretrained(tmp_path / "reward")
    trainer = PPOTrainer(
        change(
            job,
            critic={"kind": "separate", "init": "reward"},
            reward={"function": None, "model": str(tmp_path / "reward")},
        )
    )
    rollout = trainer.generate(["the film is", "a good", "it", "no end in"] * 2)
    rows = torch.arange(8)
    values = trainer.policy.values_after(rollout.tokens)
    scorer = ModelReward(str(tmp_path / "reward"), "cpu")
    from rlhf.data.encoding import pad
    from rlhf.models.trunk import sequence_scores

    ids = [
        rollout.prompts.prompt_ids[i][rollout.prompts.prompt_mask[i]].tolist() + rollout.token_ids()[i] for i in rows
    ]
    expected = (sequence_scores(scorer.model, *pad(ids, 2, "right")) - 0.3) / 2.0
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)


def test_critics_that_do_not_fit_the_policy_are_refused(job, change, models, build, tmp_path, reward_folder):
    from transformers import AutoModelForSequenceClassification

    from rlhf.errors import UserError

    build.tokenizer(bos="<|start|>").save_pretrained(tmp_path / "other")
    AutoModelForSequenceClassification.from_config(build.config("llama", num_labels=1)).save_pretrained(
        tmp_path / "other"
    )
    vocabulary = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    words = vocabulary["model"]["vocab"]
    words["good"], words["bad"] = words["bad"], words["good"]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(vocabulary))
    separate = {"kind": "separate"}
    with pytest.raises(
        UserError, match=r"has another tokenizer than .* \(token '(good|bad)' has id 1[12] there and 1[12] h"
    ):
        PPOTrainer(change(job, critic=separate | {"init": str(tmp_path / "other")}))
    with pytest.raises(UserError, match="does not exist"):
        PPOTrainer(change(job, critic=separate | {"init": str(tmp_path / "nowhere")}))
    bert = tmp_path / "bert"
    AutoModelForSequenceClassification.from_config(build.config("bert", num_labels=1)).save_pretrained(bert)
    build.tokenizer().save_pretrained(bert)
    with pytest.raises(UserError, match="BertForSequenceClassification, which cannot value the middle of a text"):
        PPOTrainer(change(job, critic=separate | {"init": str(bert)}))


def test_the_default_critic_starts_from_the_reward_model_where_it_can(
    job, change, build, tmp_path, reward_folder, capsys
):
    from transformers import AutoModelForSequenceClassification

    bert, other = tmp_path / "bert", tmp_path / "other"
    AutoModelForSequenceClassification.from_config(build.config("bert", num_labels=1)).save_pretrained(bert)
    build.tokenizer().save_pretrained(bert)
    AutoModelForSequenceClassification.from_config(build.config("llama", num_labels=1)).save_pretrained(other)
    build.tokenizer(chat=True, bos="<|start|>").save_pretrained(other)

    def chosen(reward=None, **groups):
        path = groups.pop("path", reward_folder)
        groups["reward"] = {"function": None, "model": str(path)} if path else {}
        changed, reason = choose_critic(change(job, **groups), scored_by_model=reward is None)
        return changed.critic.kind, changed.critic.init, reason

    assert chosen()[:2] == ("separate", "reward")
    assert "--critic.kind shared saves its memory" in chosen()[2]
    assert chosen(path=None) == ("shared", None, "")
    assert chosen(reward=len) == ("shared", None, "")
    assert chosen(critic={"kind": "shared"}) == ("shared", None, "")
    assert "the policy's own weights are frozen" in chosen(model={"lora": LoraConfig(rank=2)})[2]
    assert "critic.head_init is set" in chosen(critic={"head_init": "normal"})[2]
    assert "it scores whole texts only" in chosen(path=bert)[2]
    assert chosen(ppo={"estimator": "reinforce_pp"})[0] == "auto"
    words = json.loads((other / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["good"], vocabulary["bad"] = vocabulary["bad"], vocabulary["good"]
    (other / "tokenizer.json").write_text(json.dumps(words))
    assert "it has another tokenizer" in chosen(path=other)[2]


def test_a_resumed_run_has_the_critic_that_it_began_with(job, change, reward_folder, capsys):
    scored = change(job, reward={"function": None, "model": str(reward_folder)}, checkpoint={"every": 1})
    PPOTrainer(change(scored, critic={"kind": "shared"})).train()
    longer = change(scored, resume="auto", ppo={"total_episodes": 32})
    trainer = PPOTrainer(longer)
    assert trainer.policy.critic == "shared"
    trainer.train()
    trainer = PPOTrainer(change(scored, output=job.output + "-new"))
    assert trainer.policy.critic == "separate"
    trainer.train()
    assert "critic: a model of its own that starts from the reward model" in capsys.readouterr().out
    config = yaml.safe_load((Path(job.output + "-new") / "config.yaml").read_text())
    assert (config["critic"]["kind"], config["critic"]["init"]) == ("separate", "reward")


# ------------------------------------------------------------------------- the first forward pass, stored while scoring


def trained(trainer, steps=2):
    metrics = [trainer.step() for _ in range(steps)]
    dropped = ("time/", "throughput/", "memory/")
    return [{k: v for k, v in m.items() if not k.startswith(dropped)} for m in metrics], {
        name: p.detach().clone() for name, p in trainer.learner.weights.items()
    }


@pytest.mark.parametrize("kind", ["shared", "separate", "adapter"])
def test_stored_forward_changes_nothing_but_the_number_of_forwards(job, change, monkeypatch, kind):
    settings = {"ppo": {"microbatch_size": 4, "ent_coef": 0.01}, "critic": {"kind": kind}}
    if kind == "adapter":
        settings["model"] = {"lora": LoraConfig(rank=2), "gradient_checkpointing": True}
    results, forwards = [], []
    for stores in (True, False):
        trainer = PPOTrainer(change(job, **settings))
        monkeypatch.setattr(type(trainer.learner), "can_store_forward", stores)
        calls = []
        trainer.learner.model.register_forward_hook(lambda *args, calls=calls: calls.append(1))
        results.append(trained(trainer))
        forwards.append(len(calls))
        assert trainer.learner._stored_forward is None
    # 2 steps of 2 epochs of 2 minibatches; without storing, scoring reads both minibatches once more.
    assert forwards == [2 * (4 + 1), 2 * (4 + 2)]
    (metrics, weights), (expected_metrics, expected_weights) = results
    assert metrics == expected_metrics
    assert metrics[0]["policy/approx_kl"] != 0.0
    assert all(torch.equal(weights[name], expected_weights[name]) for name in expected_weights)


def test_stored_forward_is_not_used_once_weights_or_rollout_have_changed(job, change):
    trainer = PPOTrainer(change(job, ppo={"microbatch_size": 4}))
    rollout = trainer.collect(trainer.next_prompts(), for_update=True)
    part = trim(select(rollout, trainer.learner.own_microbatches(select(trainer.make_batch(rollout), FIRST_ROWS))[0]))
    stored = trainer.learner._stored_forward
    versions = trainer.learner._weight_versions()
    assert stored.belongs_to(part, versions)
    assert not stored.belongs_to(replace(part, old_logprobs=part.old_logprobs - 1), versions)
    assert not stored.belongs_to(replace(part, response_ids=part.response_ids + 1), versions)
    with torch.no_grad():
        trainer.policy.value_head.bias.add_(1)
    assert not stored.belongs_to(part, trainer.learner._weight_versions())


def test_forward_is_stored_only_for_the_update_of_a_step(job, change):
    """What a custom loop or an evaluation samples must not stay in memory with its graph."""
    trainer = PPOTrainer(change(job, ppo={"microbatch_size": 4}))
    trainer.collect(trainer.next_prompts())
    assert trainer.learner._stored_forward is None


@pytest.mark.parametrize("settings", [{"microbatch_size": 2}, {"policy_loss": "kl_penalty"}, {"kl_estimator": "full"}])
def test_forward_is_not_stored_where_it_is_not_the_whole_minibatch_or_not_the_whole_output(job, change, settings):
    trainer = PPOTrainer(change(job, ppo={"microbatch_size": 4, **settings}))
    trainer.collect(trainer.next_prompts(), for_update=True)
    assert trainer.learner._stored_forward is None


# ------------------------------------------------------------------------------------------------- without a reference


@pytest.mark.parametrize("rank", [0, 2])
def test_a_run_without_reference_trains_the_same_policy_and_logs_no_kl(job, change, rank):
    """With kl_coef 0 the reference is only measured against."""
    model = {"lora": LoraConfig(rank=rank)} if rank else {}
    results = []
    for use_reference in (True, False):
        trainer = PPOTrainer(change(job, model=model, ppo={"kl_coef": 0.0, "use_reference": use_reference}))
        assert (trainer.reference is not None) == use_reference
        results.append(trained(trainer))
    (with_kl, weights), (without_kl, other_weights) = results
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    kl_metrics = {"objective/kl", "objective/kl_k3"}
    for a, b in zip(with_kl, without_kl, strict=True):
        assert a.keys() - b.keys() == kl_metrics
        assert {name: a[name] for name in b} == b
    assert with_kl[1]["objective/kl"] != 0.0


def test_a_whole_run_without_reference_is_evaluated_reported_and_resumed(job, change, tmp_path):
    settings = {"ppo": {"kl_coef": 0.0, "use_reference": False}, "checkpoint": {"every": 1}, "eval": {"every": 1}}
    whole = change(job, output=str(tmp_path / "whole"), **settings)
    PPOTrainer(whole).train()
    folder = Path(whole.output)
    evaluations = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert all("kl" not in row and "score" in row for row in evaluations)
    assert all(row["token_kl"] is None for row in samples)
    assert (folder / "report.html").exists()
    first = next(p for p in sorted((folder / "checkpoints").iterdir()) if p.name.startswith("step_"))
    resumed = replace(whole, output=str(tmp_path / "resumed"), resume=str(first))
    PPOTrainer(resumed).train()
    name = sorted(p.name for p in (folder / "checkpoints").glob("step_*"))[-1]
    a, b = (tmp_path / run / "checkpoints" / name / "weights.safetensors" for run in ("whole", "resumed"))
    assert a.read_bytes() == b.read_bytes()
