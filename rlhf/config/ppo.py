"""PPO's own settings: batches, optimizer, advantages, losses, KL to the reference, critic, and the PTX loss.

Defaults follow Ziegler et al. (2019). A setting that has no effect beside the others is rejected, so that every value
in a config file means something.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from rlhf.config.checks import (
    ABOVE_1,
    AT_LEAST_0,
    AT_LEAST_2,
    FRACTION,
    POSITIVE,
    check,
    check_ranges,
    divisors_near,
    reject_unused,
)
from rlhf.config.training import AdamWConfig
from rlhf.errors import UserError

CRITIC_SETTINGS = ("lam", "lam_critic", "lam_length_alpha", "vf_coef", "clip_range_value")
"""Settings of `PPOConfig` that only matter with a critic."""


@dataclass(frozen=True)
class PPOConfig(AdamWConfig):
    """Proximal policy optimisation (Schulman et al., 2017) on tokens; defaults from Ziegler et al. (2019)."""

    section: ClassVar[str] = "ppo"

    # ----------------------------------------------------------------------------------------------- optimizer
    lr: float = 1e-5
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the learning rate decays to 0 over the PPO steps; constant keeps it."""
    warmup_steps: int = 0
    """PPO steps over which the learning rate rises linearly from 0 to its peak."""
    adam_eps: float = 1e-5
    """Epsilon in AdamW's denominator."""
    offload_optimizer: bool = False
    """Keep AdamW's moments in the CPU's memory outside of updates, so that sampling has their room on the GPU."""
    max_grad_norm: float = 1.0
    """Gradients with a larger L2 norm are scaled down to this one; the weights of a separate or adapter critic are
    clipped apart from the policy's."""
    # ------------------------------------------------------------------------------------------------- batches
    total_episodes: int = 100_000
    """Responses to sample in the whole run; rounded up to full rollout batches."""
    rollout_batch_size: int = 64
    """Responses sampled per PPO step, over all processes."""
    minibatch_size: int = 64
    """Responses per optimizer step, over all processes; must divide rollout_batch_size."""
    microbatch_size: int = 16
    """Responses per forward pass on one device; changes memory and speed, not the result."""
    microbatch_tokens: int | None = None
    """Tokens per forward pass on one device, prompts and padding included, instead of microbatch_size responses; null:
    microbatch_size counts."""
    ppo_epochs: int = 4
    """Passes over each rollout batch."""
    samples_per_prompt: int = 1
    """Responses per prompt; a rollout batch has rollout_batch_size / samples_per_prompt prompts."""
    # ----------------------------------------------------------------------------------------------- advantages
    estimator: Literal["gae", "rloo", "grpo", "reinforce_pp", "remax"] = "gae"
    """Advantage estimator, by its baseline: the critic (gae), the other responses to the prompt (rloo, grpo), the batch
    mean (reinforce_pp), or the greedy response to the prompt (remax)."""
    gamma: float = 1.0
    """Discount per token; not used by rloo and grpo."""
    lam: float = 0.95
    """Lambda of generalised advantage estimation (Schulman et al., 2016)."""
    lam_critic: float | None = None
    """Lambda of the critic's targets; null: lam (Yuan et al., 2025, VC-PPO: 1.0)."""
    lam_length_alpha: float | None = None
    """Lambda = 1 - 1 / (alpha * length) for each response, instead of lam (Yue et al., 2025, VAPO: 0.05)."""
    grpo_divide_by_std: bool = True
    """Divide GRPO's advantages by the standard deviation of a prompt's scores (Shao et al., 2024); Dr. GRPO: false."""
    skip_equal_groups: bool = False
    """With rloo and grpo: leave prompts out of the loss whose responses all have the same score before penalties (Yu et
    al., 2025, DAPO)."""
    refill_rounds: int = 0
    """With skip_equal_groups: how many times a step draws further prompts to replace those that it would leave out;
    their responses do not count towards total_episodes."""
    whiten_advantages: bool | None = None
    """Whiten a batch's advantages to mean 0 and deviation 1 over its tokens; null: with gae and reinforce_pp only."""
    whiten_rewards: bool = False
    """Divide a batch's token rewards by their standard deviation, without centring."""
    # ------------------------------------------------------------------------------------------------ objective
    policy_loss: Literal["clip", "kl_penalty"] = "clip"
    """Clipped surrogate, or surrogate with an adaptive penalty on the exact KL(old || new) (Schulman et al., 2017)."""
    clip_range: float = 0.2
    """The ratio is clipped to [1 - clip_range, 1 + clip_range]."""
    clip_range_high: float | None = None
    """The ratio is clipped at 1 + clip_range_high from above; null: clip_range (Yu et al., 2025, DAPO: 0.28)."""
    dual_clip: float | None = None
    """Bound on the ratio of tokens with a negative advantage (Ye et al., 2020: 3); null: no bound."""
    old_logprobs: Literal["recomputed", "sampler"] = "recomputed"
    """Old log-probabilities by the forward pass that the update repeats, so that the first ratio is exactly 1; or those
    computed while sampling, which saves that forward pass and makes the first ratio 1 only up to rounding."""
    log_ratio_clamp: float = 20.0
    """Bound on the absolute log-ratio before it is exponentiated."""
    kl_penalty_beta: float = 1.0
    """Initial coefficient of KL(old || new) in the kl_penalty loss; adapted after each step."""
    kl_penalty_target: float = 0.01
    """Target of KL(old || new) per step, in nats per token: above 1.5 times the target beta doubles, below the target /
    1.5 it halves."""
    clip_range_value: float | None = 0.2
    """New values are clipped to this distance from the old ones in the value loss; null does not clip."""
    vf_coef: float = 0.1
    """Coefficient of the value loss."""
    ent_coef: float = 0.0
    """Coefficient of the entropy bonus."""
    loss_aggregation: Literal["token", "sequence", "fixed"] = "token"
    """Mean over tokens; mean over responses of their token means; or sum over tokens divided by minibatch_size *
    generation.max_new_tokens (Liu et al., 2025, Dr. GRPO)."""
    target_kl: float | None = None
    """Stop a step's updates once approx_kl of a minibatch exceeds this, in nats per token; null never stops."""
    # --------------------------------------------------------------------------------------- KL to the reference
    kl_coef: float = 0.05
    """Coefficient of the KL to the reference; its initial value if kl_target is set."""
    kl_target: float | None = None
    """Target of the adaptive kl_coef, in nats per response; null: kl_coef is fixed."""
    kl_controller: Literal["pi", "ziegler"] = "pi"
    """How the adaptive kl_coef follows the KL: by its error and its rise (pi, proportional-integral; Stooke et al.,
    2020), or by its error alone, at most 20% of it (Ziegler et al., 2019)."""
    kl_horizon: int | None = None
    """Time scale on which the adaptive kl_coef changes, in responses; null: with ziegler 10,000, with pi an
    eighth of total_episodes, and at least 8 rollout batches."""
    kl_gain: float = 2.0
    """Proportional gain of the pi controller: relative change of kl_coef when the KL rises by its target."""
    kl_estimator: Literal["k1", "k2", "k3", "full"] = "k1"
    """Estimator of a token's KL from its log-ratio d: d (k1), d^2 / 2 (k2), exp(-d) - 1 + d (k3; Schulman, 2020), or
    the exact sum over the vocabulary (full)."""
    use_reference: bool = True
    """Hold the initial policy as the reference, and measure the KL to it; false, which needs kl_coef 0, saves its
    memory and its forward passes."""
    offload_reference: bool = False
    """Keep the reference in the CPU's memory, and copy it to the GPU only while it reads responses."""
    reference_update_steps: int | None = None
    """Steps between updates of the reference, which then moves by reference_update_rate towards the policy; null: it
    stays the initial policy. KLs, those of evaluations included, are to the reference of the moment."""
    reference_update_rate: float = 1.0
    """Share of the way to the policy that an update of the reference goes: 1 copies the policy; a small one with
    reference_update_steps 1 makes the reference an exponential average of the policies."""
    kl_placement: Literal["reward", "loss"] = "reward"
    """Subtract the KL from the token rewards, or add it to the loss with its gradient (k2, k3, full)."""

    def __post_init__(self):
        super().__post_init__()
        self._check_values()
        self._check_batches()
        self._check_estimator()
        self._check_losses()
        self._check_old_logprobs()

    def _check_values(self) -> None:
        counts = ("total_episodes", "rollout_batch_size", "minibatch_size", "microbatch_size", "ppo_epochs")
        clips = ("clip_range", "clip_range_high", "clip_range_value", "log_ratio_clamp")
        kl = (
            "kl_penalty_beta",
            "kl_penalty_target",
            "kl_target",
            "kl_horizon",
            "target_kl",
            "reference_update_steps",
            "reference_update_rate",
        )
        ranges = {
            POSITIVE: (*counts, "microbatch_tokens", "samples_per_prompt", *clips, *kl, "lam_length_alpha"),
            AT_LEAST_0: ("vf_coef", "ent_coef", "kl_coef", "kl_gain", "refill_rounds"),
            FRACTION: ("gamma", "lam", "lam_critic"),
            ABOVE_1: ("dual_clip",),
        }
        check_ranges(self, ranges)
        check(self.clip_range < 1, "ppo.clip_range", self.clip_range, "below 1")
        rate = self.reference_update_rate
        check(rate <= 1, "ppo.reference_update_rate", rate, "at most 1")

    def _check_batches(self) -> None:
        if self.microbatch_tokens is not None:
            reject_unused(self, ("microbatch_size",), "ppo.microbatch_tokens limits the forward passes")
        for name in ("minibatch_size", "samples_per_prompt"):
            check(
                self.rollout_batch_size % getattr(self, name) == 0,
                f"ppo.{name}",
                getattr(self, name),
                f"a divisor of ppo.rollout_batch_size = {self.rollout_batch_size}, "
                f"such as {divisors_near(getattr(self, name), self.rollout_batch_size)}",
            )
        check(
            self.lr_schedule == "constant" or self.warmup_steps < self.steps,
            "ppo.warmup_steps",
            self.warmup_steps,
            f"below the run's {self.steps} steps (ppo.total_episodes / ppo.rollout_batch_size)",
        )
        check(
            self.kl_target is None or 5 * self.kl_time_scale > self.rollout_batch_size,
            "ppo.kl_horizon",
            self.kl_horizon,
            f"above a fifth of ppo.rollout_batch_size = {self.rollout_batch_size}, or one step could take kl_coef to 0",
        )

    def _check_estimator(self) -> None:
        estimator = f"ppo.estimator {self.estimator}"
        if self.compares_groups:
            condition = f"at least 2 with {estimator}, which compares the responses to a prompt"
            check(self.samples_per_prompt > 1, "ppo.samples_per_prompt", self.samples_per_prompt, condition)
            reject_unused(self, ("gamma",), f"{estimator} rewards whole responses")
        else:
            reject_unused(self, ("skip_equal_groups",), f"{estimator} does not compare the responses to a prompt")
        if not self.skip_equal_groups:
            reject_unused(self, ("refill_rounds",), "ppo.skip_equal_groups is false")
        if not self.has_critic:
            reject_unused(self, CRITIC_SETTINGS, f"{estimator} has no critic")
        if self.estimator != "grpo":
            reject_unused(self, ("grpo_divide_by_std",), f"ppo.estimator is {self.estimator}")
        if self.estimator == "reinforce_pp" and self.whiten_advantages is False:
            raise UserError(
                "ppo.whiten_advantages is false, but whitening by the batch is the only baseline of ppo.estimator "
                "reinforce_pp; set it to null"
            )
        if self.lam_length_alpha is not None:
            reject_unused(self, ("lam",), "ppo.lam_length_alpha sets lambda for each response")

    def _check_losses(self) -> None:
        if self.policy_loss == "clip":
            reject_unused(self, ("kl_penalty_beta", "kl_penalty_target"), "ppo.policy_loss is clip")
        else:
            reject_unused(self, ("clip_range", "clip_range_high", "dual_clip"), "ppo.policy_loss is kl_penalty")
        if self.kl_placement == "loss" and self.kl_estimator == "k1":
            raise UserError(
                "ppo.kl_estimator is k1 and ppo.kl_placement is loss, but the gradient of k1 as a loss is zero in "
                "expectation, so that it would not bound the KL; use k2, k3 or full"
            )
        if self.kl_target is None:
            reject_unused(self, ("kl_controller", "kl_horizon", "kl_gain"), "ppo.kl_target is null")
        if self.kl_controller == "ziegler":
            reject_unused(self, ("kl_gain",), "ppo.kl_controller is ziegler")
        check(
            self.use_reference or self.kl_coef == 0,
            "ppo.use_reference",
            self.use_reference,
            "true unless ppo.kl_coef is 0, because the KL penalty needs the reference",
        )
        if not self.use_reference:
            reject_unused(self, ("reference_update_steps", "offload_reference"), "ppo.use_reference is false")
        if self.reference_update_steps is None:
            reject_unused(self, ("reference_update_rate",), "ppo.reference_update_steps is null")
        if self.offload_reference and (self.kl_estimator, self.kl_placement) == ("full", "loss"):
            raise UserError(
                "ppo.offload_reference is true, but with ppo.kl_estimator full and ppo.kl_placement loss the update "
                "reads the reference's output head; set ppo.kl_placement to reward, or ppo.kl_estimator to k2 or k3"
            )
        if self.kl_coef == 0:
            reason = "ppo.kl_coef is 0, which the adaptive controller cannot raise"
            reject_unused(self, ("kl_target", "kl_estimator", "kl_placement"), reason)

    def _check_old_logprobs(self) -> None:
        if self.old_logprobs == "recomputed":
            return
        if self.policy_loss == "kl_penalty":
            raise UserError(
                "ppo.old_logprobs is sampler, but ppo.policy_loss kl_penalty needs the policy's forward pass over the "
                "responses; set ppo.old_logprobs to recomputed, or ppo.policy_loss to clip"
            )
        if self.kl_estimator == "full" and self.kl_placement == "reward":
            raise UserError(
                "ppo.old_logprobs is sampler, but the token rewards of ppo.kl_estimator full need the policy's forward "
                "pass over the responses; set ppo.old_logprobs to recomputed, or ppo.kl_estimator to k1, k2 or k3"
            )

    @property
    def has_critic(self) -> bool:
        """Whether the advantages need values; the other estimators build and store no critic."""
        return self.estimator == "gae"

    @property
    def compares_groups(self) -> bool:
        """Whether advantages compare the responses to a prompt with each other."""
        return self.estimator in ("rloo", "grpo")

    @property
    def whitens(self) -> bool:
        """Whether advantages are whitened; null follows the estimator's paper."""
        return self.estimator in ("gae", "reinforce_pp") if self.whiten_advantages is None else self.whiten_advantages

    @property
    def steps(self) -> int:
        """PPO steps: rollout batches that make up `total_episodes`."""
        return -(-self.total_episodes // self.rollout_batch_size)

    @property
    def kl_time_scale(self) -> int:
        """Responses in which the adaptive KL coefficient answers to the KL: `kl_horizon`, or its default."""
        if self.kl_horizon is not None:
            return self.kl_horizon
        if self.kl_controller == "ziegler":
            return 10_000
        return max(self.total_episodes // 8, 8 * self.rollout_batch_size)

    @property
    def minibatches(self) -> int:
        """Minibatches per epoch."""
        return self.rollout_batch_size // self.minibatch_size

    @property
    def prompts_per_step(self) -> int:
        """Prompts per rollout batch."""
        return self.rollout_batch_size // self.samples_per_prompt

    def check_processes(self, processes: int) -> None:
        """Raise UserError if a minibatch cannot be divided evenly among the processes."""
        if self.minibatch_size % processes:
            near = max(processes, round(self.minibatch_size / processes) * processes)
            raise UserError(
                f"ppo.minibatch_size is {self.minibatch_size}, but must be a multiple of the {processes} processes, "
                f"such as {near}, with a ppo.rollout_batch_size that it divides"
            )


@dataclass(frozen=True)
class CriticConfig:
    """The critic, which estimates values; only `ppo.estimator: gae` has one."""

    section: ClassVar[str] = "critic"

    kind: Literal["auto", "shared", "separate", "adapter"] = "auto"
    """A value head on the policy's trunk (shared), on a trunk of its own (separate), or on a second adapter over the
    policy's frozen base model (adapter; needs model.lora.rank). auto: separate, with init reward, where all weights of
    the policy are trained against a whole reward.model with the policy's tokenizer; else shared."""
    init: str | None = None
    """Initial weights of a separate critic: null copies the policy, `reward` copies reward.model with its head, or a
    path: run folder, reward model or language model."""
    head_init: Literal["zero", "normal"] = "zero"
    """Initial weights of the value head: zero (Ziegler et al., 2019), or normal with deviation 1 / sqrt(hidden size +
    1)."""
    lr: float | None = None
    """Peak learning rate of the critic's own weights, including the value head; null: ppo.lr."""
    warmup_steps: int = 0
    """First PPO steps, in which only the critic is trained."""
    pretraining_steps: int = 0
    """Maximum number of rollouts of the frozen policy on which the critic is trained before the first step, with Monte
    Carlo returns as targets (Yuan et al., 2025, VC-PPO)."""
    pretraining_patience: int = 5
    """Pretraining ends after this many rollouts in which explained variance did not rise by 0.01."""

    def __post_init__(self):
        ranges = {
            POSITIVE: ("lr", "pretraining_patience"),
            AT_LEAST_0: ("warmup_steps", "pretraining_steps"),
        }
        check_ranges(self, ranges)
        if self.pretraining_steps == 0:
            reject_unused(self, ("pretraining_patience",), "critic.pretraining_steps is 0")
        if self.kind != "separate":
            reject_unused(
                self, ("init",), f"critic.kind is {self.kind}, and only separate starts from weights that it names"
            )
        if self.init is not None and self.head_init != "zero":
            raise UserError(
                f"critic.head_init is {self.head_init!r}, but critic.init = {self.init!r} includes the value head; "
                "remove one of them"
            )


@dataclass(frozen=True)
class PTXConfig:
    """A language-modelling loss on additional text, which reduces forgetting: PPO-ptx (Ouyang et al., 2022)."""

    section: ClassVar[str] = "ptx"

    path: str | None = None
    """Text dataset, in the formats of `rlhf sft`; null: no such loss."""
    split: str = "train"
    """Split of a hub dataset or saved folder."""
    coef: float = 1.0
    """Coefficient of the loss, which is a mean over tokens."""
    batch_size: int = 8
    """Texts per optimizer step, over all processes."""
    max_length: int = 512
    """Maximum length of a text, in tokens; longer ones are truncated at the end."""

    def __post_init__(self):
        check_ranges(self, {POSITIVE: ("coef", "batch_size"), AT_LEAST_2: ("max_length",)})
        if self.path is None:
            reject_unused(self, ("split", "coef", "batch_size", "max_length"), "ptx.path is null")
