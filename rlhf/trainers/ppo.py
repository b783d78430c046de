"""Token-level PPO for language models (Schulman et al., 2017; Ziegler et al., 2019).

Rollouts are small beside models: once collected, every process holds the whole batch. Rewards, advantages, whitening
and statistics are computed on all of it, on every process alike, and processes share only the forward and backward
passes of each minibatch. So a run gives the same result on any number of processes.
"""

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from rlhf.config.jobs import PPOJob
from rlhf.data.prompts import make_prompts
from rlhf.errors import UserError
from rlhf.evaluation.responses import TokenDetails, evaluate_responses
from rlhf.evaluation.summary import sample_rows
from rlhf.models.build import choose_critic
from rlhf.models.export import export_policy
from rlhf.models.sharding import gather_on_main, whole_weights
from rlhf.records import PPOBatch, Prompts, Rollout
from rlhf.rollouts.checks import check_reference_matches_policy, check_rollout
from rlhf.rollouts.collector import Collector
from rlhf.rollouts.sampling import uniform_noise
from rlhf.run import checkpoint
from rlhf.run.distributed import check_alike, check_sharding, open_accelerator, raise_on_all_ranks
from rlhf.run.folder import RunFolder, read_rows, require_space
from rlhf.run.metrics import PhaseTimer, data_set_scores, peak_memory_mb, rollout_metrics
from rlhf.run.progress import is_due, progress, stop_requests
from rlhf.trainers.advantages import RunningScale, make_batch, sample_advantages
from rlhf.trainers.equal_groups import equal_groups, refill
from rlhf.trainers.evaluations import Evaluations, write_best_model
from rlhf.trainers.live_health import LiveHealth
from rlhf.trainers.preflight import preflight
from rlhf.trainers.setup import fingerprint_inputs, load_data, load_models, make_kl_coef, with_critic_of_run
from rlhf.trainers.update import Learner
from rlhf.trainers.value_pretraining import SEED_OFFSET, pretrain_critic, record_pretraining


class PPOTrainer:
    """One PPO run, built from its job: `train()` is the loop, `step()` one iteration of it.

    In a custom loop, `generate(prompts)` and `score(rollout)` make a rollout (or `rlhf.make_rollout`, from any text),
    and `learn(rollout)` trains on it.

    Attributes:
        data: tokenizer, prompts and texts.
        models: policy, reference, sampler and scorers.
        learner: trainable weights, optimizer and loss.
        state: what a resume needs besides weights and optimizer.
        kl_coef: the fixed or adaptive KL coefficient.
        reward_scale: running scale of the scores, where `reward.running_scale` asks for it.
        evaluations: the evaluations on held-out prompts so far.
        health: the health rules that the run breaks.
    """

    def __init__(self, job: PPOJob, reward: Callable[..., Any] | None = None, custom_loop: bool = False):
        """Check all input, then load the models.

        Args:
            reward: a function to use in place of `job.reward`'s source, called as `job.reward.function` would be.
            custom_loop: `train()` will not be called, so neither data nor a reward source is needed.

        Raises:
            UserError: anything in the input that cannot work, before a model is loaded where that is possible.
        """
        if job.data.path is None and not custom_loop:
            raise UserError("data.path is not set; give it with --data.path or in a --config file")
        if not custom_loop and reward is None and not job.reward.is_set and job.environment.path is None:
            raise UserError("no score: set reward.model to a reward model or reward.function to file.py:name")
        self.is_custom_loop = custom_loop
        self.run = RunFolder(job.output, job.resume)
        self.accelerator = open_accelerator(
            job.output, job.model.mixed_precision, job.trackers, job.seed, job.model.matmul_precision, job.model.dtype
        )
        job.ppo.check_processes(self.accelerator.num_processes)
        check_sharding(job.model.shard, self.accelerator)
        self.resume_from = checkpoint.find(self.run.path, job.resume, self.accelerator)
        if self.resume_from is not None:
            job = with_critic_of_run(job, self.run.path)
        self.job, self._critic_choice = choose_critic(job, scored_by_model=reward is None)
        job = self.job

        with raise_on_all_ranks(self.accelerator):
            self.data = load_data(job)
        self.models = load_models(
            job,
            self.data.tokenizer,
            self.accelerator.device,
            reward,
            self.data.prompt_sets,
            self.accelerator.mixed_precision,
        )
        self.state = checkpoint.TrainState(inputs=fingerprint_inputs(self.data, self.models))
        check_alike(self.accelerator, self.state.inputs)
        self.tokenizer = self.data.tokenizer
        self.policy = self.models.policy
        self.reference = self.models.reference
        self.sampler = self.models.sampler
        self.source = self.models.scorers.get("score")
        self.player = self.models.player
        self.learner = Learner(
            job,
            self.policy,
            self.reference,
            self.sampler.transform,
            self.accelerator,
            self.data.texts,
            self.models.frozen.get("reference"),
        )
        self.timer = PhaseTimer()
        self.collector = Collector(
            job,
            policy=self.policy,
            reference=self.reference,
            sampler=self.sampler,
            source=self.source,
            player=self.player,
            requested=self.learner.requested,
            forward_size=self.learner.forward_size,
            accelerator=self.accelerator,
            timer=self.timer,
        )
        self.kl_coef = make_kl_coef(job.ppo)
        self.reward_scale = RunningScale() if job.reward.running_scale else None
        self.evaluations = Evaluations()
        self.health = LiveHealth(job.ppo.steps)
        self._generate_calls = 0
        self._folder_is_open = False

    # -------------------------------------------------------------------------------------------------- the loop

    def train(self) -> dict[str, float]:
        """Train to the end, or until asked to stop.

        Returns:
            The last step's metrics.
        """
        job = self.job
        steps = job.ppo.steps
        if self.data.prompts is None or (self.source is None and self.player is None):
            missing = "data.path" if self.data.prompts is None else "a reward source"
            raise UserError(f"{missing} is not set, but train() needs it")
        self._start()
        if self.is_finished and (self.run.path / "model").exists():
            setting = "eval.patience" if self.state.step < steps else "ppo.total_episodes"
            self.accelerator.print(
                f"{self.run.path} is finished at step {self.state.step}; to continue, raise {setting}"
            )
            return {}
        metrics: dict[str, float] = {}
        is_main = self.accelerator.is_main_process
        with progress("ppo", steps, self.state.step, is_main) as bar, stop_requests() as stop:
            if self.resume_from is not None:  # again: what was imported since `load` may have drawn from them
                checkpoint.load_generators(self.resume_from, self.accelerator)
            while not self.is_finished:
                metrics = self.step()
                is_last = self.state.step == steps
                try:
                    if is_due(job.eval.every, self.state.step) or is_last:
                        self.evaluate()
                finally:
                    metrics |= self.evaluations.metrics()
                    self._log(metrics)
                kl = f"  KL {metrics['objective/kl']:.2f}" if "objective/kl" in metrics else ""
                length = f"  length {metrics['response/length']:.1f}"
                bar.advance(f"score {metrics['objective/score']:.3f}{kl}{length}{self.health.live}")
                stopping = stop.anywhere(self.accelerator)
                is_last = self.is_finished
                if is_due(job.checkpoint.every, self.state.step) or stopping or (is_last and job.checkpoint.every > 0):
                    self.save()
                if stopping:
                    self.accelerator.print(f"stopped at step {self.state.step}; --resume auto continues from here")
                    break
        if self.is_finished:
            if self.state.step < steps:
                self.accelerator.print(
                    f"stopped at step {self.state.step}: no better held-out score in {job.eval.patience} evaluations "
                    f"(eval.patience) after that of step {self.state.best_step}"
                )
            self._finish()
        self.run.close(self.accelerator)
        return metrics

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done, or the held-out score has not risen for `eval.patience` evaluations."""
        patience = self.job.eval.patience
        is_out_of_patience = patience is not None and self.state.evaluations_since_best >= patience
        return self.state.step >= self.job.ppo.steps or is_out_of_patience

    def _log(self, metrics: dict[str, float]) -> None:
        """Write a step's metrics with the names of the health rules that the run breaks, and print new warnings."""
        for warning in self.health.check(self.state.step, metrics, self.evaluations.rows):
            self.accelerator.print(f"WARNING: step {self.state.step}: {warning}")
        metrics["health/warnings"] = float(len(self.health.names))
        self.run.log(self.accelerator, self.state.step, metrics, warnings=self.health.names)

    def step(self) -> dict[str, float]:
        """One PPO iteration: collect responses, estimate advantages, update policy and critic, adjust kl_coef."""
        with self._measured_step() as metrics:
            with self.whole_weights():
                if self.job.ppo.refill_rounds:
                    rollout, drawn = self._collect_unequal()
                else:
                    rollout, drawn = self.collect(self.next_prompts(), for_update=True), {}
            batch = self.make_batch(rollout)
            metrics |= self.update(batch) | drawn
            self._update_kl_coef(metrics, len(batch))
        return metrics

    def learn(self, rollout: Rollout) -> dict[str, float]:
        """One PPO iteration of a custom loop, on a scored rollout that it brings."""
        return self.learn_from_batch(self.make_batch(rollout))

    def learn_from_batch(self, batch: PPOBatch) -> dict[str, float]:
        """One PPO iteration of a custom loop, on a batch with advantages and returns that it brings."""
        with self._measured_step() as metrics:
            metrics |= self.update(batch)
            self._update_kl_coef(metrics, len(batch))
        return metrics

    # ---------------------------------------------------------------------------------------- parts of an iteration

    def next_prompts(self) -> Prompts:
        """The prompts of the next step, each repeated `samples_per_prompt` times."""
        return self._prompts_at(self._prompts_drawn, self.job.seed)

    @property
    def _prompts_drawn(self) -> int:
        return self.state.episodes // self.job.ppo.samples_per_prompt + self.state.extra_prompts

    def _collect_unequal(self) -> tuple[Rollout, dict[str, float]]:
        """A step's rollout, whose groups of equal scores are replaced by those of further prompts; and its metrics."""
        config = self.job.ppo
        first = self._prompts_drawn

        def collect(number: int, count: int) -> Rollout:
            start = first + config.prompts_per_step + number
            return self.collect(self._prompts_at(start, self.job.seed, count))

        rollout = self.collect(self.next_prompts())
        ranks = self.accelerator.num_processes
        refilled = refill(rollout, config.samples_per_prompt, config.refill_rounds, ranks, collect)
        self.state.extra_prompts += refilled.prompts - config.prompts_per_step
        rollout = refilled.rollout
        if config.old_logprobs == "recomputed":  # in the microbatches of the update, so that the first ratio is 1
            rollout = self.compute_logprobs_and_values(rollout)
        metrics = {
            "objective/equal_groups": refilled.equal / refilled.prompts,
            "objective/prompts_drawn": float(refilled.prompts),
        }
        return rollout, metrics

    def _prompts_at(self, first: int, seed: int, count: int | None = None) -> Prompts:
        config = self.job.ppo
        if self.data.prompts is None:
            raise UserError("data.path is not set, so there are no prompts; pass prompts to generate()")
        indices = self.data.prompts.stream(first, count or config.prompts_per_step, seed)
        return self.data.prompts.batch([i for i in indices for _ in range(config.samples_per_prompt)])

    def collect(self, prompts: Prompts, for_update: bool = False) -> Rollout:
        """A scored response to every prompt, or an episode of the environment; `for_update` as in `generate`."""
        if self.player is not None:
            return self._play(prompts, for_update)
        return self.score(self.generate(prompts, for_update))

    def _play(self, prompts: Prompts, for_update: bool) -> Rollout:
        """An episode for every prompt; where an environment fails, the steps so far are saved first."""
        first_forward = self.learner.store_forward if for_update and self.learner.can_store_forward else None
        with self._saved_on_failure():
            rollout = self.collector.play(prompts, self._noise_key(), first_forward)
        self.check_context_length(rollout.prompts.prompt_ids.shape[1], self.job.max_response_tokens)
        return self._checked(rollout)

    def generate(self, prompts: Prompts | Sequence[Any], for_update: bool = False) -> Rollout:
        """Responses to texts, messages or token ids, with log-probabilities and values; the scores are still nan.

        Every process passes the same prompts, samples its share of them, and gets all responses.

        Args:
            for_update: the next update trains on this rollout, so its first forward pass is stored where that saves
                one.
        """
        batch = prompts if isinstance(prompts, Prompts) else make_prompts(self.tokenizer, prompts)
        max_new_tokens = self.job.generation.max_new_tokens
        self.check_context_length(batch.prompt_ids.shape[1], max_new_tokens)
        noise = uniform_noise(self._noise_key(), range(len(batch)), len(batch), max_new_tokens)
        first_forward = self.learner.store_forward if for_update and self.learner.can_store_forward else None
        with self.whole_weights():
            rollout = self.collector.generate(batch, noise, first_forward)
        return self._checked(rollout, from_sampler=self.job.ppo.old_logprobs == "sampler")

    def _noise_key(self) -> list[int]:
        """Identifies the random numbers of a call of `generate`; a second call within a step gets others."""
        key = [self.job.seed, self.state.step] + ([self._generate_calls] if self._generate_calls else [])
        self._generate_calls += 1
        return key

    def compute_logprobs_and_values(self, rollout: Rollout) -> Rollout:
        """The rollout with the present log-probabilities and values of its tokens."""
        with self.whole_weights():
            return self._checked(self.collector.compute_logprobs_and_values(rollout))

    @contextmanager
    def whole_weights(self, judge: bool = False) -> Iterator[None]:
        """With `model.shard`, hold the whole weights of policy, critic, reference and reward model.

        All processes enter together, and then need each other no more, whatever each of them reads or samples. A custom
        loop enters once around the calls of a step, which otherwise gather the weights one by one, and around code of
        its own that runs the policy.

        Args:
            judge: hold the weights of the models of `eval.judge` too.
        """
        shards = [frozen for name, frozen in self.models.frozen.items() if judge or not name.startswith("judge")]
        if self.learner.shards is not None:
            shards.append(self.learner.shards)
        with whole_weights(shards):
            yield

    def _checked(self, rollout: Rollout, from_sampler: bool = False) -> Rollout:
        if self.state.step == 0:
            check_reference_matches_policy(rollout, from_sampler)
        return rollout

    def check_context_length(self, prompt: int, response: int) -> None:
        """Refuse a prompt and a response, lengths in tokens, that together exceed the context length."""
        self.data.check_context_length(self.job.model.path, prompt, response)

    def score(self, rollout: Rollout) -> Rollout:
        """The rollout with its scores; where the source fails, a checkpoint of the steps so far is saved first."""
        if self.source is None:
            raise UserError("no score: set reward.model or reward.function, or fill in the rollout's scores yourself")
        with self._saved_on_failure(), self.whole_weights():
            return self.collector.score(rollout, self.state.step)

    @contextmanager
    def _saved_on_failure(self) -> Iterator[None]:
        """Save the steps so far where a source fails, and add to the error how to continue from there."""
        try:
            yield
        except UserError as error:
            if self.state.step == 0:
                raise
            self.save()
            if self.is_custom_loop:
                raise
            config = shlex.quote(str(self.run.path / "config.yaml"))
            command = f"`rlhf ppo --config {config} --resume auto`"
            if self.accelerator.num_processes > 1:
                command = f"the launcher with --config {config} --resume auto"
            raise UserError(f"{error}; step {self.state.step} is saved, and {command} continues from it") from error

    def make_batch(self, rollout: Rollout) -> PPOBatch:
        """Rewards, advantages and returns of a scored rollout."""
        check_rollout(rollout, self.job.ppo)
        if not bool(rollout.old_logprobs[rollout.response_mask].isfinite().all()):
            rollout = self.compute_logprobs_and_values(rollout)
        if self.reward_scale is not None:
            self.reward_scale.update(rollout.scores[rollout.is_scored])
        return make_batch(rollout, self.job.ppo, self.kl_coef.coef, self.job.reward, self.reward_scale)

    def update(self, batch: PPOBatch) -> dict[str, float]:
        """Train policy and critic on a batch, and count it as a step.

        Returns:
            Statistics of the rollout and metrics of the update.
        """
        metrics = rollout_metrics(batch, self.kl_coef.coef, has_critic=self.policy.critic is not None)
        if self.data.prompts is not None and self.data.prompts.counts:
            metrics |= data_set_scores(batch.rollout)
        if self.job.ppo.compares_groups:
            equal = equal_groups(batch.rollout, self.job.ppo.samples_per_prompt)
            metrics["objective/equal_groups"] = float(equal.float().mean())
        if self.job.ppo.skip_equal_groups:
            metrics["objective/prompts_drawn"] = float(self.job.ppo.prompts_per_step)
        with self.timer("update"):
            metrics |= self.learner.update(batch, self.state.step, self.kl_coef.coef)
        self.state.step += 1
        self.state.episodes += len(batch)
        if self.reference is not None and is_due(self.job.ppo.reference_update_steps or 0, self.state.step):
            self.reference.move_towards(self.policy.lm, self.job.ppo.reference_update_rate)
        return metrics

    def _update_kl_coef(self, metrics: dict[str, float], responses: int) -> None:
        """Adjust `kl_coef` to the measured KL; without a reference there is none, and the coefficient is 0."""
        if "objective/kl" in metrics:
            self.kl_coef.update(metrics["objective/kl"], responses)

    @contextmanager
    def _measured_step(self) -> Iterator[dict[str, float]]:
        """Yield a step's metrics, and add times, throughput and memory to them when the step is done.

        What a custom loop generated and scored before the step counts towards its time.
        """
        metrics: dict[str, float] = {}
        seconds_before = self.timer.total()
        episodes_before = self.state.episodes
        with self.timer("step"):
            yield metrics
        seconds = self.timer.seconds
        step_seconds = seconds["step"] + seconds_before
        episodes = self.state.episodes - episodes_before
        metrics |= {f"time/{phase}": seconds.get(phase, 0.0) for phase in ("generate", "score", "update")}
        metrics["time/step"] = step_seconds
        metrics["throughput/response_tokens_per_s"] = metrics["response/length"] * episodes / step_seconds
        metrics["throughput/episodes_per_s"] = episodes / step_seconds
        metrics["memory/peak_mb"] = peak_memory_mb(self.accelerator.device)
        self._begin_step()

    def _begin_step(self) -> None:
        self.timer.reset()
        self._generate_calls = 0

    # ------------------------------------------------------------------------------------------ around the steps

    def evaluate(self) -> dict[str, float]:
        """Evaluate on the held-out prompts, compare with the start, and keep the weights if they score best so far."""
        if not self.data.held_out:
            return {}
        with self._saved_on_failure(), self.whole_weights(judge=True):
            responses = evaluate_responses(
                self.policy,
                self.reference,
                self.sampler,
                prompts=self.data.held_out,
                indices=self.data.eval_indices,
                sources=self.models.scorers,
                reward=self.job.reward,
                batch_size=self.job.eval.batch_size,
                seed=self.job.seed,
                accelerator=self.accelerator,
                step=self.state.step,
                player=self.player,
                details=self._token_details(),
            )
        summary, is_best = self.evaluations.add(responses, self.state)
        if self.is_custom_loop:  # train() checks this and the other health rules after each step
            for sentence in self.evaluations.overoptimised():
                self.accelerator.print(f"WARNING: step {self.state.step}: {sentence}")
        best_weights = gather_on_main(self.learner.weights, self.accelerator.is_main_process) if is_best else {}
        if self.accelerator.is_main_process:
            if self.state.step == 0:
                self.run.append("start", self.evaluations.start_scores or [])
            rows = sample_rows(responses, self.state.step, self.job.eval.samples)
            self.run.log_samples(self.accelerator, self.state.step, rows)
            if is_best:
                checkpoint.save_best(self.run.path, best_weights, self.state.step)
        self.run.log(self.accelerator, self.state.step, summary, "eval")
        return summary

    def _token_details(self) -> TokenDetails | None:
        """Values and advantages for the responses of `samples.jsonl`; None without a critic."""
        job = self.job
        if self.policy.critic is None:
            return None

        def advantages(rollout: Rollout) -> Tensor | None:
            return sample_advantages(rollout, job.ppo, self.kl_coef.coef, job.reward, self.reward_scale)

        return TokenDetails(job.eval.samples, advantages)

    def save(self) -> None:
        """Write a checkpoint of this step."""
        self._open_folder()
        state = self.state
        state.kl_coef = self.kl_coef.state_dict()
        state.beta = self.learner.beta.state_dict()
        state.scale = asdict(self.reward_scale) if self.reward_scale is not None else {}
        checkpoint.save(
            self.run.path,
            state,
            self.learner.weights,
            self.learner.optimizer,
            self.accelerator,
            self.job.checkpoint.keep,
            self._moving_reference,
        )

    @property
    def _moving_reference(self) -> dict[str, Any] | None:
        """The weights of a reference that moves; None for one that stays the initial policy."""
        moves = self.reference is not None and self.job.ppo.reference_update_steps is not None
        return self.reference.weights if self.reference is not None and moves else None

    def load(self) -> None:
        """Restore the checkpoint that `resume` names; `train()` calls it."""
        if self.resume_from is None:
            return
        weights, optimizer = self.learner.weights, self.learner.optimizer
        self.state = checkpoint.load(self.resume_from, weights, optimizer, self.accelerator, self.state.inputs)
        if self.learner.moments is not None:
            self.learner.moments.release()
        reference = self._moving_reference
        if reference is not None and (self.resume_from / checkpoint.REFERENCE).exists():
            checkpoint.load_weights(self.resume_from / checkpoint.REFERENCE, reference)
        checkpoint.load_generators(self.resume_from, self.accelerator)
        self.kl_coef.load_state_dict(self.state.kl_coef)
        self.learner.beta.load_state_dict(self.state.beta)
        if self.reward_scale is not None and self.state.scale:
            self.reward_scale = RunningScale(**self.state.scale)

    def export(self, folder: Path | str) -> None:
        """Write the policy as plain `from_pretrained` loads it, with its tokenizer and its critic.

        Called on every rank; rank 0 writes.
        """
        with whole_weights([] if self.learner.shards is None else [self.learner.shards], exact=True):
            if self.accelerator.is_main_process:
                self._export(Path(folder))

    def _export(self, folder: Path) -> None:
        export_policy(
            self.policy,
            self.tokenizer,
            folder,
            self.job.model,
            self.models.dropout_rates,
            merged=self.job.export == "merged",
        )

    def _start(self) -> None:
        """Restore a checkpoint if there is one, open the run folder, and evaluate the policy before training."""
        if self.resume_from is not None:
            self.load()
            if self._eval_settings_changed() or checkpoint.best_saved_step(self.run.path) != self.state.best_step:
                self.state.best_step = self.state.best_score = None
                self.state.evaluations_since_best = 0
            else:
                self.evaluations.rows = [row for row in self.run.read("eval") if row["step"] <= self.state.step]
            run = self.resume_from.parents[1]  # which may be another folder than that of this run
            evals = [] if self._eval_settings_changed(run) else read_rows(run / "eval.jsonl", self.state.step)
            self.health.resume(read_rows(run / "metrics.jsonl", self.state.step), evals)
        if self.is_finished:
            return  # no step will run, so nothing is written
        can_compare_with_start = self.resume_from is not None and not self._eval_settings_changed()
        self._open_folder()
        self.accelerator.print(preflight(self.job, self.data, self.models, self.accelerator))
        if self._critic_choice:
            self.accelerator.print(self._critic_choice)
        if can_compare_with_start:
            self.evaluations.start_scores = self.run.read("start") or None
        if self.state.step == 0 and self.evaluations.start_scores is None:
            self.evaluate()
        if self.state.step == 0 and self.job.critic.pretraining_steps > self.state.pretraining_rollouts == 0:
            self._pretrain_critic()
            self.save()

    def _open_folder(self) -> None:
        """Create the run folder, or continue it."""
        if self._folder_is_open:
            return
        all_bytes = sum(p.numel() * p.element_size() for p in self.policy.parameters())
        trained_bytes = sum(p.numel() * p.element_size() for p in self.learner.weights.values())
        require_space(self.run.path, 2 * all_bytes + 4 * trained_bytes, "a run with this model")
        self.accelerator.wait_for_everyone()  # all have read the folder's config before it is written anew
        self.run.start(self.job, self.state.step if self.resume_from else None, self.accelerator, self.policy)
        self.learner.dump_folder = self.run.path / "dumps"
        self._folder_is_open = True

    def _eval_settings_changed(self, folder: Path | None = None) -> bool:
        """Whether the earlier evaluations of a run folder, by default this run's, used other scorers or prompts."""
        sections = ("data", "generation", "reward", "eval")
        ignored = ("eval.every", "eval.patience", "eval.samples")
        return self.run.changed(self.job, *sections, ignored=ignored, folder=folder)

    def _pretrain_critic(self) -> None:
        """Train the critic on rollouts of the frozen policy; written to `pretraining.jsonl`."""
        prompts_per_step = self.job.ppo.prompts_per_step

        def collect(number: int) -> Rollout:
            return self.collect(self._prompts_at(number * prompts_per_step, self.job.seed + SEED_OFFSET))

        results = pretrain_critic(self.job, collect, self.learner, self.kl_coef.coef, self.reward_scale)
        self.state.pretraining_rollouts = record_pretraining(
            results, self.run, self.job.critic.pretraining_steps, self.accelerator
        )
        self._begin_step()

    def _finish(self) -> None:
        """Export the weights with the best held-out score, and write the report."""
        with whole_weights([] if self.learner.shards is None else [self.learner.shards], exact=True):
            if self.accelerator.is_main_process:
                write_best_model(self.run, self.state, self.policy, self._export, self.job.reward.has_penalties)
        self.accelerator.wait_for_everyone()
