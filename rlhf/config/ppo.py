"""PPO's own settings: the objective, the advantages, the critic, and the batches.

Defaults are Ziegler et al. (2019). Whatever a combination would never read is refused when it is set, so that no value
in a file means nothing.
"""

from dataclasses import dataclass
from typing import Literal

from rlhf.config.shared import check, divisors_near, reject_unused
from rlhf.errors import UserError

CRITIC_ONLY = ("lam", "lam_critic", "lam_length_alpha", "vf_coef", "clip_range_value")
"""Settings that only a critic reads."""


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation (Schulman et al., 2017) on tokens; defaults from Ziegler et al. (2019)."""

    # ------------------------------------------------------------------------------------------------- batches
    total_episodes: int = 100_000
    """Responses to sample in the whole run; rounded up to full rollout batches."""
    rollout_batch_size: int = 64
    """Responses sampled for one step, over all processes."""
    minibatch_size: int = 64
    """Responses for one optimizer step, over all processes."""
    microbatch_size: int = 16
    """Responses in one forward pass on one device; changes memory and speed, never the result."""
    ppo_epochs: int = 4
    """Passes over a rollout batch."""
    samples_per_prompt: int = 1
    """Responses to each prompt; a rollout batch holds rollout_batch_size / samples_per_prompt prompts."""
    # ----------------------------------------------------------------------------------------------- optimizer
    lr: float = 1e-5
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How lr falls to 0 over the steps."""
    warmup_steps: int = 0
    """Steps over which lr rises from 0."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's moments."""
    adam_eps: float = 1e-5
    """AdamW's epsilon."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to at most this norm; a critic with weights of its own has a norm of its own."""
    # ----------------------------------------------------------------------------------------------- advantages
    estimator: Literal["gae", "rloo", "grpo", "reinforce_pp", "remax"] = "gae"
    """Where advantages come from: a critic (gae), other responses to the prompt (rloo, grpo), the batch's mean
    (reinforce_pp), or the greedy response to the prompt (remax)."""
    gamma: float = 1.0
    """Discount per token; rloo and grpo know none."""
    lam: float = 0.95
    """Lambda of generalised advantage estimation (Schulman et al., 2016)."""
    lam_critic: float | None = None
    """Lambda of the critic's targets; null takes the policy's (Yuan et al., 2025, VC-PPO: 1.0)."""
    lam_length_alpha: float | None = None
    """Lambda 1 - 1 / (alpha * length) for each response in place of lam (Yue et al., 2025, VAPO: 0.05)."""
    grpo_divide_by_std: bool = True
    """GRPO divides by the deviation of a prompt's scores (Shao et al., 2024); false leaves it out (Dr. GRPO)."""
    whiten_advantages: bool | None = None
    """Give a batch's advantages mean 0 and deviation 1 over its tokens; null does for gae and reinforce_pp."""
    whiten_rewards: bool = False
    """Divide a batch's token rewards by their deviation; mean and sign stay in proportion."""
    # ------------------------------------------------------------------------------------------------ objective
    policy_loss: Literal["clip", "kl_penalty"] = "clip"
    """Clipped surrogate, or surrogate minus an adaptive price on the exact KL(old || new) (Schulman et al., 2017)."""
    clip_range: float = 0.2
    """The ratio's clip interval is [1 - clip_range, 1 + clip_range]."""
    clip_range_high: float | None = None
    """Upper half of the interval; null takes clip_range (DAPO: 0.28)."""
    dual_clip: float | None = None
    """Bounds the loss of tokens with negative advantage at this ratio (Ye et al., 2020: 3); null does not."""
    log_ratio_clamp: float = 20.0
    """Bound on the log-ratio before it is exponentiated."""
    kl_penalty_beta: float = 1.0
    """First price of a nat of KL(old || new); doubles and halves with what a step caused."""
    kl_penalty_target: float = 0.01
    """Nats a token that a step may cause: above 1.5 times this beta doubles, below this / 1.5 it halves."""
    clip_range_value: float | None = 0.2
    """How far a value may move from its old value before its loss stops falling; null does not clip."""
    vf_coef: float = 0.1
    """Weight of the value loss."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""
    loss_aggregation: Literal["token", "sequence", "fixed"] = "token"
    """Mean over tokens; mean over responses of their tokens' means; or sum over tokens divided by the fixed number
    minibatch_size * generation.max_new_tokens (Liu et al., 2025)."""
    target_kl: float | None = None
    """Ends a step's updates once approx_kl of a minibatch exceeds this; null never does."""
    # --------------------------------------------------------------------------------------- KL to the reference
    kl_coef: float = 0.05
    """Price of one nat of divergence from the reference; the start value where kl_target is set."""
    kl_target: float | None = None
    """Nats per response that an adaptive kl_coef aims at (Ziegler et al., 2019); null keeps kl_coef fixed."""
    kl_horizon: int = 10_000
    """Responses over which the adaptive kl_coef reacts."""
    kl_estimator: Literal["k1", "k2", "k3", "full"] = "k1"
    """How a token's divergence is told: from its log-ratio d by d, d^2 / 2 or exp(-d) - 1 + d, or exactly over the
    vocabulary."""
    kl_placement: Literal["reward", "loss"] = "reward"
    """Paid by each token as a reward, or added to the loss with its gradient (k2, k3, full)."""

    def __post_init__(self):
        self._check_values()
        self._check_batches()
        self._check_combinations()

    def _check_values(self) -> None:
        def every(names: tuple[str, ...], ok, need: str) -> None:
            for name in names:
                check(ok(getattr(self, name)), f"ppo.{name}", getattr(self, name), need)

        every(("total_episodes", "rollout_batch_size", "minibatch_size"), lambda x: x > 0, "positive")
        every(("microbatch_size", "ppo_epochs", "samples_per_prompt", "kl_horizon"), lambda x: x > 0, "positive")
        every(("lr", "max_grad_norm", "adam_eps", "clip_range"), lambda x: x > 0, "positive")
        every(("log_ratio_clamp", "kl_penalty_beta", "kl_penalty_target"), lambda x: x > 0, "positive")
        every(("warmup_steps", "weight_decay", "vf_coef", "ent_coef", "kl_coef"), lambda x: x >= 0, "at least 0")
        every(("clip_range_value", "kl_target", "target_kl"), lambda x: x is None or x > 0, "null or positive")
        every(("clip_range_high", "lam_length_alpha"), lambda x: x is None or x > 0, "null or positive")
        every(("dual_clip",), lambda x: x is None or x > 1, "null or above 1")
        every(("gamma", "lam"), lambda x: 0 <= x <= 1, "between 0 and 1")
        every(("lam_critic",), lambda x: x is None or 0 <= x <= 1, "null or between 0 and 1")
        every(("clip_range",), lambda x: x < 1, "below 1")
        every(("adam_betas",), lambda x: all(0 <= b < 1 for b in x), "at least 0 and below 1")

    def _check_batches(self) -> None:
        for name in ("minibatch_size", "samples_per_prompt"):
            check(
                self.rollout_batch_size % getattr(self, name) == 0,
                f"ppo.{name}",
                getattr(self, name),
                f"a divisor of ppo.rollout_batch_size = {self.rollout_batch_size}; "
                f"near: {divisors_near(getattr(self, name), self.rollout_batch_size)}",
            )
        check(
            self.lr_schedule == "constant" or self.warmup_steps < self.steps,
            "ppo.warmup_steps",
            self.warmup_steps,
            f"below the run's {self.steps} steps (ppo.total_episodes / ppo.rollout_batch_size)",
        )
        check(
            self.kl_target is None or 5 * self.kl_horizon > self.rollout_batch_size,
            "ppo.kl_horizon",
            self.kl_horizon,
            f"above a fifth of ppo.rollout_batch_size = {self.rollout_batch_size}, or kl_coef could fall to 0 at once",
        )

    def _check_combinations(self) -> None:
        if self.estimator in ("rloo", "grpo"):
            need = f"at least 2 with ppo.estimator {self.estimator}, which compares the responses to a prompt"
            check(self.samples_per_prompt > 1, "ppo.samples_per_prompt", self.samples_per_prompt, need)
            reject_unused(self, "ppo", ("gamma",), f"ppo.estimator {self.estimator} pays whole responses")
        if not self.has_critic:
            reject_unused(self, "ppo", CRITIC_ONLY, f"ppo.estimator {self.estimator} has no critic")
        if self.estimator != "grpo":
            reject_unused(self, "ppo", ("grpo_divide_by_std",), f"ppo.estimator is {self.estimator}")
        if self.estimator == "reinforce_pp" and self.whiten_advantages is False:
            raise UserError(
                "ppo.whiten_advantages is false, but the batch's mean and deviation are all the baseline that "
                "ppo.estimator reinforce_pp has; leave it null"
            )
        if self.lam_length_alpha is not None:
            reject_unused(self, "ppo", ("lam",), "ppo.lam_length_alpha sets lambda for each response")
        if self.policy_loss == "clip":
            reject_unused(self, "ppo", ("kl_penalty_beta", "kl_penalty_target"), "ppo.policy_loss is clip")
        else:
            reject_unused(self, "ppo", ("clip_range", "clip_range_high", "dual_clip"), "ppo.policy_loss is kl_penalty")
        if self.kl_placement == "loss" and self.kl_estimator == "k1":
            raise UserError(
                "ppo.kl_estimator is k1 and ppo.kl_placement is loss, but as a loss k1's gradient is zero in "
                "expectation and nothing would hold the policy; use k2, k3 or full there"
            )
        if self.kl_target is None:
            reject_unused(self, "ppo", ("kl_horizon",), "ppo.kl_target is null")
        if self.kl_coef == 0:
            why = "ppo.kl_coef is 0, from which no controller rises"
            reject_unused(self, "ppo", ("kl_target", "kl_estimator", "kl_placement"), why)

    @property
    def has_critic(self) -> bool:
        """Whether advantages need values; the other estimators build and store no critic."""
        return self.estimator == "gae"

    @property
    def whitens(self) -> bool:
        """Whether advantages are whitened: as said, or as the estimator's own paper does."""
        return self.estimator in ("gae", "reinforce_pp") if self.whiten_advantages is None else self.whiten_advantages

    @property
    def steps(self) -> int:
        """PPO iterations: rollout batches that make up `total_episodes`."""
        return -(-self.total_episodes // self.rollout_batch_size)

    @property
    def minibatches(self) -> int:
        return self.rollout_batch_size // self.minibatch_size

    @property
    def prompts_per_step(self) -> int:
        return self.rollout_batch_size // self.samples_per_prompt

    def check_processes(self, processes: int) -> None:
        """Refuse a minibatch that the processes cannot share evenly."""
        if self.minibatch_size % processes:
            near = max(processes, round(self.minibatch_size / processes) * processes)
            raise UserError(
                f"ppo.minibatch_size is {self.minibatch_size}, which {processes} processes cannot share evenly; "
                f"use a multiple of {processes}, such as {near}, with a ppo.rollout_batch_size that it divides"
            )


@dataclass(frozen=True)
class CriticConfig:
    """Who says what a state is worth. Only `ppo.estimator: gae` has a critic."""

    kind: Literal["shared", "separate", "adapter"] = "shared"
    """A value head on the policy's trunk; on a trunk of its own; or on a second adapter over the policy's frozen
    base (needs model.lora.rank)."""
    init: str | None = None
    """First weights of a separate critic: null copies the policy, `reward` the reward model with its head, or a path:
    a run folder, reward model or language model."""
    head_init: Literal["zero", "normal"] = "zero"
    """First weights of the value head: zero (Ziegler et al., 2019) or N(0, 1 / sqrt(hidden size + 1))."""
    lr: float | None = None
    """Peak learning rate of the critic's own weights, the value head included; null takes ppo.lr."""
    warmup_steps: int = 0
    """First steps of the run in which only the critic learns."""
    pretraining_steps: int = 0
    """Rollouts of the frozen policy, before the first step, from which the critic learns at most, towards Monte Carlo
    returns (Yuan et al., 2025); it stops sooner once explained variance stops rising."""
    pretraining_patience: int = 5
    """Rollouts without a rise of explained variance by .01 that end the pretraining."""

    def __post_init__(self):
        check(self.lr is None or self.lr > 0, "critic.lr", self.lr, "null or positive")
        for name in ("warmup_steps", "pretraining_steps"):
            check(getattr(self, name) >= 0, f"critic.{name}", getattr(self, name), "at least 0")
        check(self.pretraining_patience > 0, "critic.pretraining_patience", self.pretraining_patience, "positive")
        if self.pretraining_steps == 0:
            reject_unused(self, "critic", ("pretraining_patience",), "critic.pretraining_steps is 0")
        if self.kind != "separate":
            reject_unused(self, "critic", ("init",), f"critic.kind {self.kind} stands on the policy's weights")
        if self.init is not None and self.head_init != "zero":
            raise UserError(
                f"critic.head_init is {self.head_init!r}, but the value head comes with critic.init = {self.init!r}; "
                "drop one of them"
            )


@dataclass(frozen=True)
class PTXConfig:
    """A language-modelling loss on text of one's own beside PPO's, so that the policy does not forget it.

    InstructGPT's PPO-ptx (Ouyang et al., 2022).
    """

    path: str | None = None
    """Text data as `rlhf sft` reads it; null mixes nothing in."""
    split: str = "train"
    """Split of a hub dataset or saved folder."""
    coef: float = 1.0
    """Weight of the loss, a mean over tokens (InstructGPT: 27.8 for a sum of another scale)."""
    batch_size: int = 8
    """Texts for each optimizer step, over all processes."""
    max_length: int = 512
    """Longest text, in tokens; longer ones are cut at the end."""

    def __post_init__(self):
        for name in ("coef", "batch_size"):
            check(getattr(self, name) > 0, f"ptx.{name}", getattr(self, name), "positive")
        check(self.max_length > 1, "ptx.max_length", self.max_length, "at least 2")
        if self.path is None:
            reject_unused(self, "ptx", ("split", "coef", "batch_size", "max_length"), "ptx.path is null")
