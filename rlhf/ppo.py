"""Token-level PPO for language models (Schulman et al., 2017; Ziegler et al., 2019).

Rollouts are small beside models: once collected, every process holds the whole batch. Rewards, advantages, whitening
and statistics are then computed on all of it, everywhere alike, and processes share no more than the forward and
backward passes of each minibatch. What one process computes, several compute too.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from rlhf import checkpoint, evaluation
from rlhf.config import PPOJob, SourceConfig
from rlhf.data import prepare_prompts, split_rows
from rlhf.errors import UserError, together
from rlhf.generation import stop_ids, uniforms
from rlhf.loading import add_lora, check_causal, export, load_causal_lm, load_tokenizer, pad_id, room_of
from rlhf.metrics import Clock, Metrics, add_up, over_ranks, peak_memory_mb, rollout_metrics
from rlhf.models import ActorCritic, Reference, check_head, disable_dropout
from rlhf.progress import progress, stop_requests
from rlhf.rewards import FunctionReward, RewardSource
from rlhf.rollout import Sampler, forward_groups, make_batch, respond, score, tokens
from rlhf.run_folder import RunFolder, open_accelerator, require_space
from rlhf.types import PPOBatch, Prompts, Rollout, interleave, microbatches, select, to_device, trim
from tabular.core.kl import AdaptiveKL, FixedKL
from tabular.core.losses import clipped_surrogate_loss, value_loss
from tabular.core.masked import masked_mean
from tabular.core.schedules import make_schedule

MAX_SKIPPED_IN_A_ROW = 10
"""Optimizer steps without a finite gradient after which a run gives up."""


class PPOTrainer:
    """Everything of a run, made from its job. `train()` is the loop, `step()` one turn of it."""

    def __init__(self, job: PPOJob, reward: Callable[..., Any] | None = None):
        """Check all input, then load the models.

        Args:
            reward: a function to use in place of `job.reward`'s source, called as `job.reward.function` would be.

        Raises:
            UserError: anything in the input that cannot work, before a model is loaded where that is possible.
        """
        self.job = job
        self.run = RunFolder(job.output, job.resume)
        self.accelerator = open_accelerator(job.output, job.model.mixed_precision, job.trackers, job.seed)
        job.ppo.check_processes(self.accelerator.num_processes)
        self.resume_from = checkpoint.find(self.run.path, job.resume)
        self._load_data()
        self._load_models(FunctionReward(reward, getattr(reward, "__name__", "reward")) if reward else None)
        config = job.ppo
        self.kl_coef = (
            FixedKL(config.kl_coef)
            if config.kl_target is None
            else AdaptiveKL(config.kl_coef, config.kl_target, config.kl_horizon)
        )
        self.lr = make_schedule(config.lr_schedule, config.lr, config.steps, config.warmup_steps)
        self.state = checkpoint.TrainState()
        self.start_scores: list[dict[str, float]] | None = None
        self.clock = Clock()
        self._skipped_in_a_row = 0

    def _load_data(self) -> None:
        job = self.job
        assert job.model.path is not None
        config = check_causal(job.model.path)
        self.tokenizer = load_tokenizer(job.model.path, job.model.chat_template)
        rows, held_out = split_rows(job.data, job.seed)
        filler = pad_id(self.tokenizer)
        self.prompts = prepare_prompts(self.tokenizer, rows, job.data, filler)
        if len(self.prompts) < job.ppo.rollout_batch_size:
            raise UserError(
                f"{job.data.path} holds {len(self.prompts)} prompts to train on, fewer than one batch of "
                f"ppo.rollout_batch_size = {job.ppo.rollout_batch_size}; lower it or bring more prompts"
            )
        where = job.data.eval_path or job.data.path
        self.held_out = held_out and prepare_prompts(self.tokenizer, held_out, job.data, filler, where)
        self.eval_indices = evaluation.choose(len(self.held_out), job.eval) if self.held_out else []
        known = self.prompts.ids + (self.held_out.ids if self.held_out else [])
        longest = max(map(len, known)) + job.generation.max_new_tokens
        room = room_of(config)
        if room is not None and longest > room:
            raise UserError(
                f"the longest prompt and generation.max_new_tokens = {job.generation.max_new_tokens} make {longest} "
                f"tokens, but {job.model.path} reads at most {room}; lower one of them"
            )

    def _load_models(self, source: RewardSource | None) -> None:
        job, device = self.job, self.accelerator.device
        if source is None and job.reward.model is None and job.reward.function is None:
            raise UserError("no score: set reward.model to a reward model or reward.function to file.py:name")
        given = {} if source is None else {"score": source}
        self.judges = given | evaluation.open_sources(SourceConfig() if given else job.reward, job.eval, device)
        self.source = self.judges["score"]

        lm = load_causal_lm(job.model)
        stops = stop_ids(self.tokenizer, lm.config, job.generation, lm.generation_config)
        self.sampler = Sampler(self.tokenizer, stops, job.generation)
        self.dropout_rates = disable_dropout(lm)
        check_head(lm)
        lm = add_lora(lm, job.model.lora, "CAUSAL_LM")
        self.reference = Reference.of(lm).to(device)
        self.policy = ActorCritic(lm)
        self.weights = self.policy.trainable()
        optimizer = torch.optim.AdamW(
            self.weights.values(),
            lr=job.ppo.lr,
            betas=job.ppo.adam_betas,
            eps=job.ppo.adam_eps,
            weight_decay=job.ppo.weight_decay,
        )
        self.model, self.optimizer = self.accelerator.prepare(self.policy, optimizer)

    # -------------------------------------------------------------------------------------------------- the loop

    def train(self) -> dict[str, float]:
        """Train to the end, or until asked to stop; returns the last step's metrics."""
        job, steps = self.job, self.job.ppo.steps
        self._start()
        if self.state.step >= steps and (self.run.path / "model").exists():
            self.accelerator.print(
                f"{self.run.path} is finished at step {self.state.step}; to go on, raise ppo.total_episodes"
            )
            return {}
        metrics: dict[str, float] = {}
        visible = self.accelerator.is_main_process
        with progress("ppo", steps, self.state.step, visible) as bar, stop_requests() as stop:
            while self.state.step < steps:
                metrics = self.step()
                self.run.log(self.accelerator, self.state.step, metrics)
                bar.advance(f"score {metrics['objective/score']:.3f}  KL {metrics['objective/kl']:.2f}")
                if self._due(job.eval.every) or self.state.step == steps:
                    self.evaluate()
                stopping = stop.anywhere(self.accelerator)
                last = self.state.step == steps and job.checkpoint.every > 0
                if self._due(job.checkpoint.every) or stopping or last:
                    self.save()
                if stopping:
                    self.accelerator.print(f"stopped at step {self.state.step}; --resume auto goes on from here")
                    break
        if self.state.step >= steps:
            self._finish()
        self.accelerator.end_training()
        return metrics

    def step(self) -> dict[str, float]:
        """One PPO iteration: collect responses, estimate advantages, update policy and critic, adjust kl_coef."""
        self.clock = clock = Clock()
        with clock("step"):
            rollout = self.collect(self._next_prompts())
            batch = make_batch(rollout, self.job.ppo, self.kl_coef.coef)
            metrics = rollout_metrics(batch, self.kl_coef.coef)
            with clock("update"):
                metrics |= self.update(batch)
            self.kl_coef.update(metrics["objective/kl"], len(rollout))
        self.state.step += 1
        self.state.episodes += len(rollout)
        seconds = clock.seconds
        metrics |= {f"time/{name}": seconds[name] for name in ("generate", "score", "update", "step")}
        metrics["throughput/response_tokens_per_s"] = float(rollout.response_mask.sum()) / seconds["step"]
        metrics["throughput/episodes_per_s"] = len(rollout) / seconds["step"]
        metrics["memory/peak_mb"] = peak_memory_mb(self.accelerator.device)
        return metrics

    def collect(self, prompts: Prompts) -> Rollout:
        """Responses to a whole batch of prompts, scored; every process samples its share and gets all of it."""
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        length = self.job.generation.max_new_tokens
        noise = uniforms([self.job.seed, self.state.step], range(len(prompts)), len(prompts), length)
        mine = torch.arange(rank, len(prompts), ranks)
        groups = forward_groups(len(mine), self.job.ppo.minibatch_size // ranks, self.job.ppo.microbatch_size)
        share = to_device(select(prompts, mine), self.accelerator.device)
        self.policy.eval()
        with self.accelerator.autocast():
            rollout = respond(self.policy, self.reference, self.sampler, share, noise[mine], groups, self.clock)
        with self.clock("score"):
            rollout = self._score(rollout)
        if self.state.step == 0:
            self._check_start(rollout)
        if ranks == 1:
            return rollout
        return to_device(interleave(gather_object([to_device(rollout, "cpu")])), self.accelerator.device)

    def update(self, batch: PPOBatch) -> dict[str, float]:
        """Epochs over the batch, one optimizer step a minibatch; metrics are means over those steps."""
        self.policy.train()
        lr = self.lr(self.state.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        seen: list[Metrics] = []
        taken = 0
        for rows in self._minibatches():
            metrics, outcome = self._optimize(select(batch, rows))
            seen.append(metrics)
            taken += outcome == "stepped"
            if outcome == "too far":
                break
        means = {name: float(torch.stack([m[name] for m in seen]).mean()) for name in seen[0]}
        means["policy/ratio_max"] = max(float(m["policy/ratio_max"]) for m in seen)
        return means | {"policy/lr": lr, "policy/optimizer_steps": float(taken)}

    def loss(self, batch: PPOBatch, denom: Tensor) -> tuple[Tensor, Metrics]:
        """A microbatch's part of `sum over tokens / denom`: clipped surrogate + value loss - entropy bonus."""
        config, rollout = self.job.ppo, trim(batch.rollout)
        mask, width = rollout.response_mask, rollout.response_mask.shape[1]
        out = self.model(*tokens(rollout), self.job.generation.temperature)
        surrogate, of_policy = clipped_surrogate_loss(
            out.logprobs, rollout.old_logprobs, batch.advantages[:, :width], mask, denom, config.clip_range
        )
        error, of_value = value_loss(
            out.values, rollout.old_values, batch.returns[:, :width], mask, denom, config.clip_range_value
        )
        entropy = masked_mean(out.entropy, mask, denom)
        metrics = {
            "policy/loss": surrogate.detach(),
            "policy/approx_kl": of_policy["approx_kl"],
            "policy/clip_fraction": of_policy["clip_fraction"],
            "policy/ratio_max": of_policy["ratio_max"],
            "policy/entropy": entropy.detach(),
            "value/loss": error.detach(),
            "value/clip_fraction": of_value["clip_fraction"],
        }
        return surrogate + config.vf_coef * error - config.ent_coef * entropy, metrics

    # ------------------------------------------------------------------------------------------- parts of a step

    def _minibatches(self) -> Iterator[Tensor]:
        """Row numbers of each minibatch of each epoch.

        The first epoch takes the rows as they were sampled, which is random enough, and meets the very forwards that
        the old log-probabilities came from; later ones shuffle, with a seed that a resumed run finds again.
        """
        config = self.job.ppo
        for epoch in range(config.ppo_epochs):
            order = np.arange(config.rollout_batch_size)
            if epoch > 0:
                order = np.random.default_rng([self.job.seed, self.state.step, epoch]).permutation(order)
            yield from torch.as_tensor(order).split(config.minibatch_size)

    def _optimize(self, minibatch: PPOBatch) -> tuple[Metrics, Literal["stepped", "skipped", "too far"]]:
        """One optimizer step on a minibatch: this process's share of it, in microbatches."""
        config, ranks = self.job.ppo, self.accelerator.num_processes
        denom = minibatch.rollout.response_mask.sum()
        share = torch.arange(self.accelerator.process_index, len(minibatch), ranks)
        groups = list(microbatches(share, config.microbatch_size))
        self.optimizer.zero_grad()
        parts = []
        for i, rows in enumerate(groups):
            last = i == len(groups) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss, metrics = self.loss(select(minibatch, rows), denom)
                self.accelerator.backward(loss * ranks)  # gradients are averaged over ranks, but their sum is meant
            parts.append(metrics)
        metrics = over_ranks(self.accelerator, add_up(parts))
        norm = self.accelerator.clip_grad_norm_(self.weights.values(), config.max_grad_norm)
        metrics["policy/grad_norm"] = torch.as_tensor(norm).detach()
        if config.target_kl is not None and metrics["policy/approx_kl"] > config.target_kl:
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.update()  # these gradients are done with, though no step used them
            return metrics, "too far"
        return metrics, self._take_step(metrics["policy/grad_norm"])

    def _take_step(self, norm: Tensor) -> Literal["stepped", "skipped"]:
        """Move the weights, unless the gradient is not finite; its norm is the same on all ranks, so they agree."""
        finite = bool(torch.isfinite(norm))
        if finite or self.accelerator.scaler is not None:  # a float16 scaler skips by itself, and learns from it
            self.optimizer.step()
        self._skipped_in_a_row = 0 if finite else self._skipped_in_a_row + 1
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise UserError(
                f"{MAX_SKIPPED_IN_A_ROW} optimizer steps in a row had a gradient that is not finite, the last at step "
                f"{self.state.step + 1}; the newest checkpoint is untouched: resume with a lower ppo.lr or "
                "model.mixed_precision bf16"
            )
        return "stepped" if finite else "skipped"

    def _next_prompts(self) -> Prompts:
        return self.prompts.batch(
            self.prompts.stream(self.state.episodes, self.job.ppo.rollout_batch_size, self.job.seed)
        )

    def _score(self, rollout: Rollout) -> Rollout:
        """Scores from the source; where it fails, the steps that are done are saved first."""
        try:
            with together(self.accelerator):
                return score(rollout, self.source, self.job.reward)
        except UserError:
            if self.state.step > 0:
                self.save()
            raise

    def _check_start(self, rollout: Rollout) -> None:
        """Before the first update policy and reference are one model; if they differ, every KL of the run is wrong."""
        apart = float((rollout.old_logprobs - rollout.ref_logprobs).abs().max())
        if apart > 1e-3:
            raise UserError(
                f"before the first update policy and reference differ by {apart:.3g} nats on a token, but they must "
                "be the same model; does the model behave at random, or depend on more than its inputs?"
            )

    # ------------------------------------------------------------------------------------------ around the steps

    def _due(self, every: int) -> bool:
        return every > 0 and self.state.step % every == 0

    def _start(self) -> None:
        """Open the run folder, take up a checkpoint if there is one, and measure where the policy starts."""
        size = sum(p.numel() * p.element_size() for p in self.policy.parameters())
        trained = sum(p.numel() * p.element_size() for p in self.weights.values())
        require_space(self.run.path, 2 * size + 4 * trained, "a run with this model")
        if self.resume_from is not None:
            self.state = checkpoint.load(self.resume_from, self.weights, self.optimizer, self.accelerator)
            self.kl_coef.load_state_dict(self.state.kl_coef)
            self._keep_best_if_comparable()
        if self.state.step >= self.job.ppo.steps:
            return  # nothing will be run, so nothing is written about it
        comparable = self.resume_from is not None and not self._judged_otherwise()
        self.accelerator.wait_for_everyone()  # all have read the folder's config before it is written anew
        self.run.start(self.job, self.state.step if self.resume_from else None, self.accelerator, self.policy)
        self.accelerator.print(self._plan())
        if self.state.step == 0:
            self.evaluate()
        elif self.eval_indices:
            self.start_scores = (self.run.read("start") or None) if comparable else None

    def _judged_otherwise(self) -> bool:
        """Whether the folder's earlier scores were given by other sources, or to other prompts."""
        return self.run.changed(self.job, "data", "generation", "reward", "eval")

    def _keep_best_if_comparable(self) -> None:
        """Forget the best score so far where its weights are gone, or where it was measured otherwise."""
        if checkpoint.best_saved(self.run.path) != self.state.best_step or self._judged_otherwise():
            self.state.best_step = self.state.best_score = None

    def _plan(self) -> str:
        config, ranks = self.job.ppo, self.accelerator.num_processes
        share = config.minibatch_size // ranks
        return (
            f"{config.steps} steps of {config.rollout_batch_size} responses; {config.ppo_epochs} epochs x "
            f"{config.minibatches} minibatches = {config.ppo_epochs * config.minibatches} optimizer steps each, "
            f"in {-(-share // config.microbatch_size)} forward(s) on each of {ranks} process(es)\n"
            f"{len(self.prompts)} prompts to train on, {len(self.eval_indices)} held out; "
            f"{sum(p.numel() for p in self.weights.values()):,} trained parameters; run folder {self.run.path}"
        )

    def evaluate(self) -> dict[str, float]:
        """Answer the held-out prompts, compare with the start, keep the weights if they are the best so far."""
        if not self.held_out:
            return {}
        answers = evaluation.answer(
            self.policy,
            self.reference,
            self.sampler,
            self.held_out,
            self.eval_indices,
            self.judges,
            self.job.eval,
            self.job.seed,
            self.accelerator,
        )
        state = self.state
        found = evaluation.summarise(answers, self.start_scores)
        best = state.best_score is None or found["score"] > state.best_score
        if best:
            state.best_step, state.best_score = state.step, found["score"]
        if state.step == 0:
            self.start_scores = [a["scores"] for a in answers]
        if self.accelerator.is_main_process:
            if state.step == 0:
                self.run.append("start", self.start_scores or [])
            self.run.append("samples", evaluation.samples(answers, state.step, self.job.eval.samples))
            if best:
                checkpoint.save_best(self.run.path, self.weights, state.step)
        self.run.log(self.accelerator, state.step, found, "eval")
        return found

    def save(self) -> None:
        """Write a checkpoint of this step."""
        self.state.kl_coef = self.kl_coef.state_dict()
        keep = self.job.checkpoint.keep
        checkpoint.save(self.run.path, self.state, self.weights, self.optimizer, self.accelerator, keep)

    def _finish(self) -> None:
        """Export the weights with the best held-out score, and write the report."""
        best = self.state.best_step
        if self.accelerator.is_main_process:
            if best is not None and best != self.state.step:
                checkpoint.load_weights(self.run.path / "checkpoints" / "best" / checkpoint.WEIGHTS, self.weights)
            try:
                export(self.policy, self.tokenizer, self.run.path / "model", self.job.model, self.dropout_rates)
            except OSError as error:
                raise UserError(
                    f"the model cannot be written: {error}; mend that, and --resume auto writes it from the checkpoint"
                ) from error
            from rlhf.report import write_report

            report = write_report(self.run.path)
            why = "" if best is None else f", which has the best held-out score, {self.state.best_score:.3f},"
            print(f"the model of step {self.state.step if best is None else best}{why} is in {self.run.path / 'model'}")
            print(f"report in {report}")
        self.accelerator.wait_for_everyone()
