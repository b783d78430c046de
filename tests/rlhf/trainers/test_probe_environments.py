"""Probe environments: tasks so simple that a run which fails one of them names the part of the trainer that is broken.

Each trains a tiny model with real rollouts for a second and looks at critic, advantages, sampling, masks, optimizer and
policy in the order in which an error would spread, so that the first message names the cause. The second half breaks
one part at a time and expects its name. The idea is Andy Jones's, "Debugging RL, Without the Agonizing Pain" (2021).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf import PPOTrainer
from rlhf.config.jobs import PPOJob
from rlhf.config.ppo import CriticConfig, PPOConfig
from rlhf.config.scores import RewardConfig
from rlhf.config.shared import CheckpointConfig, DataConfig, EvalConfig, GenerationConfig, ModelConfig
from rlhf.models.actor_critic import is_critic_weight
from rlhf.records import PPOBatch, Prompts, Rollout
from rlhf.rollouts import sampling
from rlhf.rollouts.collector import Collector
from rlhf.trainers import advantages as advantages_module
from rlhf.trainers import loss as loss_module
from rlhf.trainers.update import Learner
from tabular.core.returns import gae

DIGITS = [str(digit) for digit in range(10)]
VOCABULARY = ["<|unk|>", "<|end|>", "<|pad|>", "go", "a", "b", *DIGITS]
END, ZERO = VOCABULARY.index("<|end|>"), VOCABULARY.index("0")
GO_PROMPTS = ["go", "go go", "go go go"]
Reward = Callable[..., list[float]]


@dataclass
class Run:
    """A run of a probe: its trainer, and every batch that it trained on."""

    trainer: PPOTrainer
    batches: list[PPOBatch] = field(default_factory=list)

    def __post_init__(self):
        make_batch = self.trainer.make_batch

        def recorded(rollout: Rollout) -> PPOBatch:
            self.batches.append(make_batch(rollout))
            return self.batches[-1]

        self.trainer.make_batch = recorded
        self.start = {name: p.detach().clone() for name, p in self.trainer.learner.weights.items()}

    def steps(self, count: int) -> PPOBatch:
        """Train for some steps. Returns the last one's batch."""
        for _ in range(count):
            self.trainer.step()
        return self.batches[-1]

    def rate(self, succeeded: Callable[[Rollout], Tensor], batches: int = 4) -> float:
        """The share of the responses of the last batches that succeeded."""
        return float(torch.cat([succeeded(batch.rollout).float() for batch in self.batches[-batches:]]).mean())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("probe")
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<|unk|>"))
    core.add_special_tokens(VOCABULARY[:3])
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("unk_token", "eos_token", "pad_token"), VOCABULARY[:3], strict=True))
    PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=2,
        initializer_range=0.1,  # a policy that is far enough from uniform for another temperature to show
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture
def start(model: Path, tmp_path: Path) -> Callable[..., Run]:
    """`start(reward, prompts, length=4, stops=False, ppo={...}, critic={...})`: a run, and responses of fixed length
    unless they stop."""

    def started(
        reward: Reward,
        prompts: list[str] = GO_PROMPTS,
        length: int = 4,
        stops: bool = False,
        warmup: int = 0,
        **ppo: Any,
    ) -> Run:
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts * 32))
        settings = {
            "total_episodes": 64_000,
            "rollout_batch_size": 64,
            "minibatch_size": 64,
            "microbatch_size": 64,
            "ppo_epochs": 4,
            "lr": 1e-2,
            "lr_schedule": "constant",
            "whiten_advantages": False,
            "clip_range_value": None,
            "vf_coef": 1.0,
            "kl_coef": 0.0,
            "use_reference": False,
        }
        job = PPOJob(
            output=str(tmp_path / "run"),
            trackers=[],
            model=ModelConfig(path=str(model)),
            data=DataConfig(path=str(path), eval_fraction=0.0),
            generation=GenerationConfig(
                max_new_tokens=length, min_new_tokens=0 if stops else length - 1, suppress_ids=[0, 2]
            ),
            reward=RewardConfig(missing_eos_penalty=None),
            critic=CriticConfig(kind="separate", warmup_steps=warmup),
            ppo=PPOConfig(**(settings | ppo)),
            eval=EvalConfig(every=0),
            checkpoint=CheckpointConfig(every=0),
        )
        return Run(PPOTrainer(job, reward=reward))

    return started


# ------------------------------------------------------------------------------------ checks that every probe makes


def check_sampling(run: Run) -> None:
    """The mean of `log pi(token) + entropy` is 0 over tokens that were drawn from the distribution that is scored."""
    trainer = run.trainer
    rollouts = [trainer.generate(trainer.next_prompts()) for _ in range(8)]
    excess = []
    for rollout in rollouts:
        out = trainer.policy(rollout.tokens, trainer.sampler.transform)
        excess.append((rollout.old_logprobs + out.entropy)[rollout.response_mask])
    tokens = torch.cat(excess).detach()
    error = float(tokens.std() / len(tokens) ** 0.5)
    assert abs(float(tokens.mean())) < 5 * error, (
        f"sampling: the log-probability of the sampled tokens is on average {float(tokens.mean()):.3f} nats off minus "
        f"the entropy (standard error {error:.3f}), so they come from another distribution than the one that is scored"
    )
    assert not torch.equal(rollouts[0].response_ids, rollouts[1].response_ids), "sampling: random numbers are repeated"


def check_optimizer(run: Run, policy: bool = True) -> None:
    for part, is_part in (("critic", is_critic_weight), ("policy", lambda name: not is_critic_weight(name))):
        weights = {name: p for name, p in run.trainer.learner.weights.items() if is_part(name)}
        if part == "critic" or policy:
            changed = any(not torch.equal(p, run.start[name]) for name, p in weights.items())
            assert changed, f"optimizer: no weight of the {part} changed in {len(run.batches)} steps"


# ------------------------------------------------------------------------------------------------------- the probes


def is_small(rollout: Rollout, place: int = 0) -> Tensor:
    """Whether the response's token at a place is one of the digits 0 to 4."""
    digits = rollout.response_ids[:, place] - ZERO
    return (digits >= 0) & (digits < 5)


def small_digit_at(place: int) -> Reward:
    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [float(text.split()[place : place + 1] in [[digit] for digit in DIGITS[:5]]) for text in completions]

    return reward


def probe_constant_reward(start: Callable[..., Run]) -> None:
    """Every response scores 1: the critic learns 1 everywhere, and then nothing is left for the policy to learn."""
    run = start(lambda prompts, completions, **columns: [1.0] * len(prompts), warmup=25, adam_eps=1e-2)
    check_sampling(run)
    values = run.steps(26).rollout.old_values
    check_optimizer(run, policy=False)
    assert float((values - 1).abs().max()) < 0.2, (
        f"critic: every reward is 1, but after 25 steps the values are {values.min():.2f} to {values.max():.2f}"
    )
    before = run.batches[0].rollout
    start_logprobs = before.old_logprobs
    run.steps(10)
    moved = float((run.trainer.compute_logprobs_and_values(before).old_logprobs - start_logprobs).abs().mean())
    assert moved < 0.4, (
        f"advantage: the policy moved by {moved:.2f} nats a token although every response has the same reward: its "
        "advantages are not the rewards less the values"
    )


def probe_reward_by_prompt(start: Callable[..., Run]) -> None:
    """The prompt alone decides the score: the critic separates the prompts."""
    prompts = ["a go", "b go go", "go a", "go go b"]
    run = start(lambda prompts, completions, **columns: [float("a" in prompt) for prompt in prompts], prompts)
    rollout = run.steps(15).rollout
    check_optimizer(run)
    expected = torch.tensor([float("a" in prompt) for prompt in rollout.prompts.prompts])
    assert torch.equal(rollout.scores, expected), "scores: a response has the score of another prompt's"
    means = [float(rollout.old_values[expected == score].mean()) for score in (0.0, 1.0)]
    assert means[0] < 0.15, f"critic: prompts of reward 0 and 1 have the values {means[0]:.2f} and {means[1]:.2f}"
    assert means[1] > 0.85, f"critic: prompts of reward 0 and 1 have the values {means[0]:.2f} and {means[1]:.2f}"


def probe_token_at_a_place(start: Callable[..., Run], place: int = 1, length: int = 4) -> None:
    """One place of the response decides: with lambda 0 the credit is that place's alone."""
    run = start(
        small_digit_at(place),
        length=length,
        warmup=30,
        lam=0.0,
        lam_critic=1.0,
    )
    check_sampling(run)
    batch = run.steps(31)
    check_optimizer(run, policy=False)
    small = is_small(batch.rollout, place)
    values = batch.rollout.old_values
    raised = values[small].mean(0) - values[~small].mean(0)
    after = (raised > 0.4).nonzero().flatten().tolist()
    if place + 1 < length:
        assert after, f"critic: a token of reward 1 raises the values of the response by {raised.tolist()}"
        assert after[0] == place + 1, (
            f"value alignment: the values depend on the token at place {place} from place {after[0]} on, but should "
            f"from {place + 1}: {raised.tolist()}"
        )
    credit = batch.advantages[small].mean(0) - batch.advantages[~small].mean(0)
    assert int(credit.abs().argmax()) == place, (
        f"advantage: place {place} decides, but the credit is at {int(credit.abs().argmax())}: {credit.tolist()}"
    )
    assert credit[place] > 0, f"advantage: a rewarded token's is lower than another's by {-credit[place]:.2f}"
    first = float(small.float().mean())
    run.steps(15)
    check_optimizer(run)
    last = run.rate(lambda rollout: is_small(rollout, place))
    assert last > 0.9, (
        f"{'policy loss' if last < first / 2 else 'update'}: the advantages are right, but the probability of the "
        f"rewarded token at place {place} went from {first:.2f} to {last:.2f}"
    )


def probe_delayed_reward(start: Callable[..., Run], length: int = 4, gamma: float = 0.8, lam: float = 0.9) -> None:
    """The first token decides and the last is paid."""
    run = start(
        small_digit_at(0),
        length=length,
        warmup=25,
        gamma=gamma,
        lam=lam,
        lam_critic=1.0,
    )
    batch = run.steps(1)
    assert torch.equal(batch.rewards[:, -1], batch.rollout.scores), "score placement: not on the last token"
    assert bool((batch.rewards[:, :-1] == 0).all()), "score placement: tokens before the last have a reward"
    steps_to_go = torch.arange(length - 1, -1, -1)
    expected = batch.rollout.scores[:, None] * (gamma * lam) ** steps_to_go  # the value head starts at 0
    assert torch.allclose(batch.advantages, expected, atol=1e-6), (
        f"GAE: with values of 0 a reward of 1 at the end is worth {batch.advantages.amax(0).tolist()} at the places of "
        f"the response, but should be (gamma * lambda)^n: {expected.amax(0).tolist()}"
    )
    batch = run.steps(25)
    good = is_small(batch.rollout)
    values = batch.rollout.old_values[good].mean(0)[1:]
    expected = gamma ** steps_to_go[1:]
    assert float((values - expected).abs().max()) < 0.2, (
        f"critic: after the decisive token the values are {values.tolist()}, but should be gamma^n: {expected.tolist()}"
    )
    run.steps(15)
    check_optimizer(run)
    rate = run.rate(lambda rollout: is_small(rollout))
    assert rate > 0.9, f"credit: the token that decides {length} places before the reward has the rate {rate:.2f}"


def probe_modulo(start: Callable[..., Run]) -> None:
    """The first digit of the response must equal the prompt's modulo 3: the policy has to read the prompt."""

    def digit_matches(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        pairs = zip(prompts, completions, strict=True)
        return [float(answer.isdigit() and int(prompt) % 3 == int(answer) % 3) for prompt, answer in pairs]

    run = start(digit_matches, DIGITS[:9], length=1)
    run.steps(40)
    check_optimizer(run)

    def matches(rollout: Rollout) -> Tensor:
        numbers = torch.tensor([int(prompt) for prompt in rollout.prompts.prompts])
        digits = rollout.response_ids[:, 0] - ZERO
        return (digits >= 0) & (digits % 3 == numbers % 3)

    rate = run.rate(matches)
    assert rate > 0.6, f"policy: its answers match the prompt's digit at a rate of {rate:.2f}: it does not read prompts"
    assert rate > 0.9, f"policy: its answers match the prompt's digit at a rate of {rate:.2f} only"


def probe_masks(start: Callable[..., Run]) -> None:
    """Responses of different lengths, and an advantage at one kind of token alone: it is trained, and padding never."""
    for kind in ("padding", "first", "last", "end"):  # each on a new run, whose optimizer has no momentum
        run = start(lambda prompts, completions, **columns: [1.0] * len(prompts), length=6, stops=True)
        trainer = run.trainer
        batch = trainer.make_batch(trainer.collect(trainer.next_prompts()))
        rollout = batch.rollout
        mask = rollout.response_mask
        is_last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
        ended = rollout.response_ids[is_last] == END
        assert bool((ended | rollout.truncated).all()), (
            "masks: the last token of a response that stopped is not its end"
        )
        places = {
            "padding": ~mask,
            "first": (torch.arange(mask.shape[1]) == 0) & (rollout.response_ids == ZERO),
            "last": is_last & (rollout.response_ids == ZERO),
            "end": is_last & ~rollout.truncated[:, None],
        }[kind]
        # without an error of the critic only the policy has a gradient
        trainer.learn_from_batch(replace(batch, advantages=places.float(), returns=rollout.old_values))
        raised = trainer.compute_logprobs_and_values(rollout).old_logprobs - rollout.old_logprobs
        if kind == "padding":
            assert bool((raised == 0).all()), "masks: padding is trained on"
        else:
            gained = float(raised[places].mean())
            assert gained > 0.2, (
                f"masks: an advantage at the {kind} token alone changes its log-probability by {gained:.2f}"
            )


def probe_stopping(start: Callable[..., Run]) -> None:
    """The reward is for stopping at the second token: stopping is an action like any other."""

    def two_tokens(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [float(len(text.split()) == 1) for text in completions]

    run = start(two_tokens, length=6, stops=True)
    run.steps(25)
    check_optimizer(run)
    rate = run.rate(lambda rollout: (rollout.response_mask.sum(-1) == 2) & ~rollout.truncated)
    assert rate > 0.9, f"stopping: the end token at the second place is rewarded, but its rate is {rate:.2f}"


PROBES = [
    probe_reward_by_prompt,
    probe_modulo,
    probe_masks,
    probe_stopping,
    *(
        pytest.param(probe, marks=pytest.mark.slow)
        for probe in (probe_constant_reward, probe_token_at_a_place, probe_delayed_reward)
    ),
]


@pytest.mark.parametrize("probe", PROBES)
def test_the_trainer_passes_every_probe(start, probe):
    probe(start)


# --------------------------------------------------------------------------------- each part broken, and its name


def change_batch(monkeypatch: pytest.MonkeyPatch, changed: Callable[[PPOBatch], dict[str, Tensor]]) -> None:
    original = PPOTrainer.make_batch

    def make_batch(trainer: PPOTrainer, rollout: Rollout) -> PPOBatch:
        batch = original(trainer, rollout)
        return replace(batch, **changed(batch))

    monkeypatch.setattr(PPOTrainer, "make_batch", make_batch)


def shift(x: Tensor, places: int) -> Tensor:
    """Along the response, with zeros (or False) from its other end."""
    rolled = x.roll(places, -1)
    rolled[:, 0 if places > 0 else -1] = 0
    return rolled


def change_rollout(
    monkeypatch: pytest.MonkeyPatch, stage: str, field: str, changed: Callable[[Tensor], Tensor]
) -> None:
    original = getattr(Collector, stage)

    def collect(*args: Any, **kwargs: Any) -> Rollout:
        rollout = original(*args, **kwargs)
        return replace(rollout, **{field: changed(getattr(rollout, field))})

    monkeypatch.setattr(Collector, stage, collect)


def change_sampler(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    original = sampling.categorical_sample

    def sample(logits: Tensor, **kwargs: Any) -> Tensor:
        return original(torch.where(logits.isinf(), logits, factor * logits), **kwargs)

    monkeypatch.setattr(sampling, "categorical_sample", sample)


def change_gae(monkeypatch: pytest.MonkeyPatch, **changed: float) -> None:
    def changed_gae(rewards: Tensor, values: Tensor, discounts: Tensor, lam: Any, **kwargs: Any) -> Tensor:
        discounts = torch.full_like(discounts, changed["gamma"]) if "gamma" in changed else discounts
        return gae(rewards, values, discounts, changed.get("lam", lam), **kwargs)

    monkeypatch.setattr(advantages_module, "gae", changed_gae)


def mix_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    original = PPOTrainer.next_prompts

    def next_prompts(trainer: PPOTrainer) -> Prompts:
        prompts = original(trainer)
        return replace(prompts, prompt_ids=prompts.prompt_ids.roll(1, 0), prompt_mask=prompts.prompt_mask.roll(1, 0))

    monkeypatch.setattr(PPOTrainer, "next_prompts", next_prompts)


def stop_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Learner, "_optimizer_step", lambda learner, norm, step: "stepped")


def stop_gradients_of_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Learner._clip_gradients

    def clip_gradients(learner: Learner, metrics: dict[str, Tensor]) -> Tensor:
        for p in learner.policy_weights.values():
            p.grad = None
        return original(learner, metrics)

    monkeypatch.setattr(Learner, "_clip_gradients", clip_gradients)


def negate_policy_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    original = loss_module.clipped_surrogate_loss

    def negated(*args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = original(*args, **kwargs)
        return -loss, metrics

    monkeypatch.setattr(loss_module, "clipped_surrogate_loss", negated)


def without_first(batch: PPOBatch) -> dict[str, Tensor]:
    return {"loss_mask": batch.loss_mask & (torch.arange(batch.loss_mask.shape[1]) > 0)}


def without_last(batch: PPOBatch) -> dict[str, Tensor]:
    mask = batch.loss_mask
    return {"loss_mask": mask & torch.nn.functional.pad(mask[:, 1:], (0, 1))}


BROKEN = {
    "returns of another response": (
        lambda m: change_batch(m, lambda batch: {"returns": batch.returns.roll(1, 0)}),
        probe_reward_by_prompt,
        "critic: prompts of reward 0 and 1",
    ),
    "score of another response": (
        lambda m: change_rollout(m, "score", "scores", lambda scores: scores.roll(1)),
        probe_reward_by_prompt,
        "scores: ",
    ),
    "score on the first token": (
        lambda m: m.setattr(advantages_module, "last_index", lambda mask: torch.zeros(len(mask), dtype=torch.long)),
        probe_delayed_reward,
        "score placement: ",
    ),
    "lambda ignored": (lambda m: change_gae(m, lam=1.0), probe_delayed_reward, "GAE: "),
    "gamma ignored": (lambda m: change_gae(m, gamma=1.0), probe_delayed_reward, "GAE: "),
    "uniform sampling": (lambda m: change_sampler(m, 0.0), probe_constant_reward, "sampling: "),
    "sampling at another temperature": (lambda m: change_sampler(m, 1.5), probe_constant_reward, "sampling: "),
    "policy without gradient": (stop_gradients_of_policy, probe_reward_by_prompt, "optimizer: no weight of the policy"),
    "mask without the first token": (lambda m: change_batch(m, without_first), probe_masks, "masks: .* the first"),
    "mask without the last token": (lambda m: change_batch(m, without_last), probe_masks, "masks: .* the last"),
    "mask with a token of padding": (
        lambda m: change_rollout(m, "generate", "response_mask", lambda mask: mask | shift(mask, 1)),
        probe_masks,
        "masks: .* is not its end",
    ),
}

BROKEN_LATE = {  # noticed only after some seconds of training
    "negative advantages": (
        lambda m: change_batch(m, lambda batch: {"advantages": -batch.advantages}),
        probe_token_at_a_place,
        "advantage: a rewarded token's is lower",
    ),
    "advantages without values": (
        lambda m: change_batch(m, lambda batch: {"advantages": batch.returns}),
        probe_constant_reward,
        "advantage: the policy moved",
    ),
    "advantages of the token after": (
        lambda m: change_batch(m, lambda batch: {"advantages": batch.advantages.roll(-1, -1)}),
        probe_token_at_a_place,
        "advantage: place 1 decides, but the credit is at 0",
    ),
    "values of the state after": (
        lambda m: change_rollout(m, "generate", "old_values", lambda values: shift(values, -1)),
        probe_token_at_a_place,
        "value alignment: the values depend on the token at place 1 from place 1 on",
    ),
    "values of the state before": (
        lambda m: change_rollout(m, "generate", "old_values", lambda values: shift(values, 1)),
        probe_token_at_a_place,
        "value alignment: the values depend on the token at place 1 from place 3 on",
    ),
    "prompt of another response": (mix_prompts, probe_modulo, "policy: .* does not read prompts"),
    "optimizer without steps": (stop_optimizer, probe_constant_reward, "optimizer: no weight of the critic"),
    "policy loss of the wrong sign": (negate_policy_loss, probe_token_at_a_place, "policy loss: the advantages are"),
}


@pytest.mark.parametrize(
    ("break_part", "probe", "message"),
    [pytest.param(*case, id=name) for name, case in BROKEN.items()]
    + [pytest.param(*case, id=name, marks=pytest.mark.slow) for name, case in BROKEN_LATE.items()],
)
def test_a_broken_part_is_named(start, monkeypatch, break_part, probe, message):
    break_part(monkeypatch)
    with pytest.raises(AssertionError, match=message):
        probe(start)
