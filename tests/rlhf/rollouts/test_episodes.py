"""Episodes in an environment: whose tokens they hold, where their rewards are, and how they end."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlhf.config.environment import EnvironmentConfig
from rlhf.config.shared import GenerationConfig, LoraConfig, ModelConfig
from rlhf.data.encoding import encode_reply
from rlhf.data.prompts import make_prompts
from rlhf.environments.batch import load_environment
from rlhf.errors import UserError
from rlhf.models.actor_critic import ActorCritic
from rlhf.models.loading import load_causal_lm, load_tokenizer
from rlhf.rollouts.episodes import Player, check_episodes
from rlhf.rollouts.stages import Sampler
from rlhf.trainers.ppo import PPOTrainer

GAME = '''
class Game:
    """Replies until `turns` turns are over; a turn's reward is its number, from 1."""

    def __init__(self, turns=3, fails=False):
        self.turns, self.fails, self.taken = turns, fails, 0

    def reset(self, prompt, **columns):
        self.prompt = prompt
        return "the film " + prompt

    def step(self, text):
        self.taken += 1
        if self.fails and self.prompt.startswith("film"):
            raise ConnectionError("the game server is gone")
        self.last = text
        return (None if self.taken == self.turns else "and no"), float(self.taken)
'''


@pytest.fixture
def game(tmp_path):
    path = tmp_path / "game.py"
    path.write_text(GAME)
    return f"{path}:Game"


@pytest.fixture
def player(models, game):
    def make(turns=3, max_turns=4, max_tokens=64, length=4, chat=False):
        config = EnvironmentConfig(
            path=game, parameters={"turns": turns}, max_turns=max_turns, max_tokens=max_tokens, chat=chat
        )
        folder = str(models("llama", chat=chat))
        lm = load_causal_lm(ModelConfig(path=folder))
        tokenizer = load_tokenizer(folder)
        sampler = Sampler.of(
            tokenizer, lm, GenerationConfig(max_new_tokens=length, suppress_ids=[1], stop_strings=["never"])
        )
        return Player(config, load_environment(config), sampler), ActorCritic(lm), tokenizer

    return make


def play(made, prompts=("film", "a story"), key=(0, 1)):
    player, policy, tokenizer = made
    batch = make_prompts(tokenizer, list(prompts))
    return player.play(policy, batch, key, range(len(prompts)), len(prompts))


def test_turns_alternate_and_rewards_are_on_their_last_tokens(player):
    rollout = play(player())
    tokenizer = player()[2]
    reply = tokenizer("and no", add_special_tokens=False).input_ids
    turn = [True] * 4
    assert rollout.response_mask[0].tolist() == turn + [False] * 2 + turn + [False] * 2 + turn
    assert rollout.response_ids[0][4:6].tolist() == reply
    assert rollout.response_ids[1][10:12].tolist() == reply
    rewards = torch.zeros(16)
    rewards[[3, 9, 15]] = torch.tensor([1.0, 2.0, 3.0])
    assert rollout.score_by_token[0].tolist() == rewards.tolist()
    assert rollout.scores.tolist() == [6.0, 6.0]
    assert tokenizer.decode(rollout.prompts.prompt_ids[0]).endswith("the film film")
    assert rollout.errors == [None, None]


def test_the_same_episode_whatever_the_batch(player):
    made = player()
    together = play(made)
    alone = made[0].play(made[1], make_prompts(made[2], ["a story"]), (0, 1), [1], 2)
    assert torch.equal(alone.response_ids[0], together.response_ids[1])
    torch.testing.assert_close(alone.sampler_logprobs[0], together.sampler_logprobs[1], rtol=1e-5, atol=1e-6)


def test_limits_of_turns_and_tokens(player):
    two = play(player(max_turns=2))
    assert two.response_mask.sum(-1).tolist() == [8, 8]
    assert two.scores.tolist() == [3.0, 3.0]
    assert two.truncated.tolist() == [True, True]  # the last turn reached its 4 tokens without an end token
    short = play(player(max_tokens=13))  # 4 + 2 + 4 tokens, and no space for 2 + 4 more
    assert short.response_mask.sum(-1).tolist() == [8, 8]
    assert short.truncated.tolist() == [True, True]
    assert play(player(turns=1)).response_mask.sum(-1).tolist() == [4, 4]


def test_chat_replies_continue_the_template(models, player):
    tokenizer = load_tokenizer(str(models("llama", chat=True)))
    end = tokenizer.eos_token_id
    whole = tokenizer(
        tokenizer.apply_chat_template(
            [
                {"role": "user", "content": "the film"},
                {"role": "assistant", "content": "good"},
                {"role": "user", "content": "and no"},
            ],
            tokenize=False,
            add_generation_prompt=True,
        ),
        add_special_tokens=False,
    ).input_ids
    answered = whole.index(tokenizer.convert_tokens_to_ids("good")) + 1
    assert encode_reply(tokenizer, "and no", True, whole[answered - 1]) == whole[answered:]
    assert whole[answered] == end
    assert encode_reply(tokenizer, "and no", True, end) == whole[answered + 1 :]
    rollout = play(player(chat=True))
    assert tokenizer.decode(rollout.prompts.prompt_ids[0]).endswith("film <|end|> <|assistant|>")


def test_failed_episodes_end_the_run_or_are_left_out(player, game):
    made = player()
    made[0].config = replace(made[0].config, parameters={"fails": True})
    rollout = play(made)
    assert rollout.errors[1] is None
    assert "the game server is gone" in rollout.errors[0]
    assert rollout.response_mask.any(-1).all()
    assert check_episodes(rollout, skip=True) is rollout
    with pytest.raises(UserError, match=r"the game server is gone; reward\.on_error skip leaves"):
        check_episodes(rollout, skip=False)


# ---------------------------------------------------------------------------------------------------- inside PPO runs


@pytest.fixture
def episodes(job, change, game):
    return change(
        job,
        reward={"function": None},
        environment={"path": game, "max_turns": 3, "max_tokens": 32},
        generation={"max_new_tokens": 4},
        checkpoint={"every": 1},
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"critic": {"kind": "separate"}},
        {"model": {"lora": LoraConfig(rank=2)}, "critic": {"kind": "adapter"}},
        {"ppo": {"estimator": "grpo", "samples_per_prompt": 2}},
        {"ppo": {"estimator": "rloo", "samples_per_prompt": 2}},
        {"ppo": {"estimator": "reinforce_pp"}},
    ],
    ids=str,
)
def test_every_method_trains_on_episodes(episodes, change, settings):
    job = change(episodes, **settings)
    metrics = PPOTrainer(job).train()
    rows = [json.loads(line) for line in (Path(job.output) / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["policy/ratio_max"] >= 1
    assert abs(rows[0]["objective/kl"]) < 1e-6
    assert metrics["response/length"] <= 12
    samples = [json.loads(line) for line in (Path(job.output) / "samples.jsonl").read_text().splitlines()]
    row = samples[0]
    assert len(row["tokens"]) == len(row["token_kl"])
    written = [token for token, is_reply in zip(row["tokens"], row["from_environment"], strict=True) if is_reply]
    assert written[:2] == ["and", "no"]
    page = (Path(job.output) / "report.html").read_text()
    assert 'class="environment"' in page or "t environment" in page


def test_the_first_ratio_is_one_on_episodes(episodes, change):
    trainer = PPOTrainer(change(episodes, ppo={"ppo_epochs": 1, "minibatch_size": 8}))
    assert trainer.step()["policy/ratio_max"] == 1.0


def test_a_resumed_run_of_episodes_is_an_uninterrupted_one(episodes, change, tmp_path):
    whole = PPOTrainer(change(episodes, output=str(tmp_path / "whole")))
    whole.train()
    PPOTrainer(change(episodes, ppo={"total_episodes": 16})).train()
    resumed = PPOTrainer(change(episodes, resume="auto"))
    resumed.train()
    for name, p in whole.learner.weights.items():
        assert torch.equal(p, resumed.learner.weights[name])


def test_a_failing_environment_saves_and_ends_or_is_counted(episodes, change, game):
    fails = {"parameters": {"fails": True}}
    with pytest.raises(UserError, match="the game server is gone"):
        PPOTrainer(change(episodes, environment=fails)).train()
    skipping = change(
        episodes,
        environment=fails,
        reward={"on_error": "skip", "max_error_fraction": 0.9},
        output=episodes.output + "2",
    )
    assert PPOTrainer(skipping).train()["reward/errors"] >= 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward": {"function": "f.py:g"}}, "a reward source is set too"),
        ({"ppo": {"old_logprobs": "sampler"}}, "ppo.old_logprobs sampler works on one turn"),
        ({"ppo": {"estimator": "remax"}}, "ppo.estimator remax works on one turn"),
        ({"generation": {"min_new_tokens": 2}}, "generation.min_new_tokens is 2"),
        ({"environment": {"max_tokens": 3}}, "at least generation.max_new_tokens = 4, the longest turn"),
    ],
)
def test_settings_that_do_not_go_with_an_environment(episodes, change, settings, message):
    with pytest.raises(UserError, match=message):
        change(episodes, **settings)
