"""Custom loops: generate, score and learn with rollouts, scores and rewards from anywhere."""

from dataclasses import replace

import pytest
import torch

from rlhf.errors import UserError
from rlhf.rollouts.external import make_rollout
from rlhf.trainers.ppo import PPOTrainer

PROMPTS = ["the film is", "a good", "a story with heart and", "no end", "it", "cold story", "warm", "bad film"]


@pytest.fixture
def trainer(job, change):
    """Neither data nor a source of scores."""
    return PPOTrainer(change(job, data={"path": None}, reward={"function": None}), custom_loop=True)


def same(a, b):
    return {k: v for k, v in a.items() if k.split("/")[0] not in ("time", "throughput", "memory")} == {
        k: v for k, v in b.items() if k.split("/")[0] not in ("time", "throughput", "memory")
    }


def test_generate_score_and_learn_make_up_a_step(job, change, tmp_path):
    whole = PPOTrainer(job)
    parts = PPOTrainer(change(job, output=str(tmp_path / "parts")))
    for _ in range(2):
        rollout = parts.score(parts.generate(parts.next_prompts()))
        assert same(whole.step(), parts.learn(rollout))
    assert all(
        torch.equal(p, q) for p, q in zip(whole.learner.weights.values(), parts.learner.weights.values(), strict=True)
    )


def test_scores_may_come_from_anywhere(trainer):
    rollout = trainer.generate(PROMPTS)
    assert rollout.scores.isnan().all()
    scores = torch.tensor([float("good" in text) for text in rollout.completions])
    assert trainer.learn(replace(rollout, scores=scores))["objective/score"] == float(scores.mean())
    assert trainer.state.step == 1


def test_a_second_call_within_a_step_draws_other_numbers_and_the_next_step_begins_anew(trainer):
    first, second = trainer.generate(PROMPTS), trainer.generate(PROMPTS)
    assert first.completions != second.completions
    trainer._begin_step()
    assert trainer.generate(PROMPTS).completions == first.completions


def test_external_text_gets_the_logprobs_that_sampled_text_gets(trainer):
    """The same ids, whether the policy has just sampled them or a caller brings them."""
    sampled = trainer.generate(PROMPTS)
    ids = [row[keep].tolist() for row, keep in zip(sampled.response_ids, sampled.response_mask, strict=True)]
    brought = make_rollout(trainer, PROMPTS, ids, truncated=sampled.truncated.tolist())
    for name in ("response_ids", "response_mask", "old_logprobs", "ref_logprobs", "old_values", "truncated"):
        assert torch.equal(getattr(brought, name), getattr(sampled, name)), name
    assert brought.completions == sampled.completions


def test_environment_tokens_are_context_but_not_scored_and_change_no_advantage(trainer):
    """Two turns with the environment's words between them: the policy's words after them depend on them."""
    torch.nn.init.normal_(trainer.policy.value_head.weight, generator=torch.Generator().manual_seed(0))
    turns = [[8, 9, 13, 14, 15, 1]] * 8  # the third and fourth are the environment's
    mask = [[True, True, False, False, True, True]] * 8
    rollout = make_rollout(trainer, PROMPTS, turns, mask, scores=[1.0] * 8)
    whole = make_rollout(trainer, PROMPTS, turns, scores=[1.0] * 8)
    real = rollout.response_mask
    torch.testing.assert_close(rollout.old_logprobs[real], whole.old_logprobs[real])
    torch.testing.assert_close(rollout.old_values[real], whole.old_values[real])
    assert not rollout.old_logprobs[~real].any()
    other = make_rollout(trainer, PROMPTS, [[8, 9, 20, 21, 15, 1]] * 8, mask, scores=[1.0] * 8)
    assert (other.old_logprobs[:, 4:] - rollout.old_logprobs[:, 4:]).abs().min() > 1e-4  # they are read

    batch = trainer.make_batch(rollout)
    for i in range(8):  # a plain loop over the policy's tokens alone, gamma 1 and lambda .95
        values, after, expected = rollout.old_values[i, mask[i]].tolist(), 0.0, []
        rewards = [0.0, 0.0, 0.0, 1.0]
        for t in reversed(range(4)):
            following = values[t + 1] if t < 3 else 0.0
            after = rewards[t] + following - values[t] + 0.95 * after
            expected.insert(0, after + values[t])
        torch.testing.assert_close(batch.returns[i, mask[i]], torch.tensor(expected))
    assert not batch.advantages[~real].any()
    assert trainer.learn(rollout)["policy/optimizer_steps"] == 4.0


def test_prompts_may_be_token_ids(trainer):
    """Whatever the tokenizer would make of their text: the end token in the middle stays."""
    ids = [[8, 9, 1, 13], [7]] * 4
    rollout = trainer.generate(ids)
    rows = zip(rollout.prompts.prompt_ids, rollout.prompts.prompt_mask, strict=True)
    assert [row[real].tolist() for row, real in rows] == ids


def test_a_batch_may_bring_its_own_advantages(trainer):
    rollout = replace(trainer.generate(PROMPTS), scores=torch.zeros(8))
    batch = trainer.make_batch(rollout)
    advantages = torch.where(rollout.response_mask, 1.0, 0.0)
    before = trainer.learner.policy_weights["lm.lm_head.weight"].detach().clone()
    trainer.learn_from_batch(replace(batch, advantages=advantages))
    after = trainer.compute_logprobs_and_values(rollout).old_logprobs
    assert (after - rollout.old_logprobs)[rollout.response_mask].mean() > 0  # the sampled tokens became more likely
    assert not torch.equal(before, trainer.learner.policy_weights["lm.lm_head.weight"])


def test_a_custom_loop_can_save_and_resume(job, change, tmp_path):
    bare = change(job, data={"path": None}, reward={"function": None})
    one = PPOTrainer(bare, custom_loop=True)

    def turn(trainer):
        rollout = trainer.generate(PROMPTS)
        return trainer.learn(replace(rollout, scores=torch.tensor([float(len(t)) for t in rollout.completions])))

    turn(one)
    one.save()
    expected = turn(one)
    two = PPOTrainer(replace(bare, resume="auto"), custom_loop=True)
    two.load()
    assert two.state.step == 1
    assert same(turn(two), expected)
    two.export(tmp_path / "exported")
    assert (tmp_path / "exported" / "config.json").exists()
    assert (tmp_path / "exported" / "value_head.safetensors").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: r, r"response 0 has the score nan; call score\(\), or fill in scores"),
        (lambda r: replace(r, scores=torch.full((8,), torch.inf)), "response 0 has the score inf"),
        (
            lambda r: replace(r, scores=torch.zeros(8), token_scores=torch.ones(r.response_ids.shape)),
            "token_scores holds 1 at position . of response ., which is no token of the policy's",
        ),
        (
            lambda r: replace(r, scores=torch.zeros(8), token_scores=torch.full(r.response_ids.shape, torch.nan)),
            "token_scores are not finite",
        ),
        (
            lambda r: replace(r, scores=torch.zeros(8), response_mask=torch.zeros_like(r.response_mask)),
            "response 0 of the rollout has no token of the policy's",
        ),
    ],
)
def test_rollouts_that_cannot_be_trained_on_are_refused(trainer, spoil, message):
    rollout = trainer.generate(PROMPTS)
    assert not rollout.response_mask.all()
    with pytest.raises(UserError, match=message):
        trainer.learn(spoil(rollout))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"responses": [[8]] * 7}, "8 prompts, but 7 responses"),
        ({"responses": [[8]] * 8, "scores": [1.0]}, "8 prompts, but 1 scores"),
        ({"responses": [[8, 9]] * 8, "masks": [[True]] * 8}, "response 0 has 2 tokens, but its masks 1"),
        ({"responses": [[8]] * 8, "masks": [[False]] * 8}, "response 0 of the rollout has no token of the policy's"),
        ({"responses": [[8]] * 8, "token_scores": [[0.0, 1.0]] * 8}, "response 0 has 1 tokens, but its token_scores 2"),
        ({"responses": [[8]] * 7 + [[]]}, "response 7 of the rollout has no token of the policy's"),
        ({"responses": [[8] * 200] * 8}, "but the context length of .* is 128"),
    ],
)
def test_lists_of_different_lengths_are_refused(trainer, arguments, message):
    with pytest.raises(UserError, match=message):
        make_rollout(trainer, PROMPTS, **arguments)


def test_calls_that_need_data_or_a_reward_are_refused_without_them(trainer, job, change):
    with pytest.raises(UserError, match=r"no score: set reward\.model"):
        trainer.score(trainer.generate(PROMPTS))
    with pytest.raises(UserError, match=r"data.path is not set, so there are no prompts; pass prompts to generate"):
        trainer.step()
    with pytest.raises(UserError, match=r"data\.path is not set"):
        trainer.train()
    with pytest.raises(UserError, match="prompt 1 is '', but must be text"):
        trainer.generate(["the film", ""])
    rollout = trainer.generate(PROMPTS[:6])
    with pytest.raises(UserError, match=r"has 6 responses, no multiple of ppo\.minibatch_size = 4"):
        trainer.learn(replace(rollout, scores=torch.zeros(6)))


def test_groups_must_share_a_prompt(job, change):
    grouped = change(
        job,
        data={"path": None},
        reward={"function": None},
        ppo={"estimator": "rloo", "samples_per_prompt": 2},
    )
    trainer = PPOTrainer(grouped, custom_loop=True)
    with pytest.raises(UserError, match="not every 2 consecutive rows have the same prompt; repeat each prompt"):
        trainer.learn(replace(trainer.generate(PROMPTS), scores=torch.zeros(8)))
    twice = [p for p in PROMPTS[:4] for _ in range(2)]
    assert trainer.learn(replace(trainer.generate(twice), scores=torch.arange(8.0)))["policy/optimizer_steps"] == 4
