"""Token-level PPO for language models (Schulman et al., 2017; Ziegler et al., 2019).

Rollouts are small beside models: once collected, every process holds the whole batch. Rewards, advantages, whitening
and statistics are then computed on all of it, everywhere alike, and processes share no more than the forward and
backward passes of each minibatch. What one process computes, several compute too.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf.config.jobs import PPOJob
from rlhf.data.prompts import load_prompts, make_prompts
from rlhf.errors import UserError
from rlhf.evaluation.responses import evaluate_responses, held_out_indices
from rlhf.evaluation.summary import sample_rows, summarise
from rlhf.models.actor_critic import Reference, check_head, disable_dropout
from rlhf.models.build import build_policy
from rlhf.models.loading import check_causal, context_length_of, export, load_causal_lm, load_tokenizer, resolve
from rlhf.records import PPOBatch, Prompts, Rollout
from rlhf.rewards.functions import FunctionReward
from rlhf.rewards.sources import RewardSource, attach_sources, open_sources
from rlhf.rollouts.collector import Collector, check_reference_matches_policy
from rlhf.rollouts.external import check_rollout
from rlhf.rollouts.rollout import Sampler
from rlhf.rollouts.sampling import uniform_noise
from rlhf.run import checkpoint
from rlhf.run.distributed import open_accelerator
from rlhf.run.folder import RunFolder, require_space
from rlhf.run.metrics import PhaseTimer, peak_memory_mb, rollout_metrics
from rlhf.run.progress import progress, stop_requests
from rlhf.trainers.advantages import RunningScale, make_batch
from rlhf.trainers.preflight import estimate_memory, plan
from rlhf.trainers.ptx import TextStream
from rlhf.trainers.update import Learner
from rlhf.trainers.value_pretraining import pretrain_critic
from tabular.core.kl import AdaptiveKL, FixedKL


class PPOTrainer:
    """Everything of a run, made from its job. `train()` is the loop, `step()` one turn of it.

    For a loop of one's own: `generate(prompts)`, `score(rollout)` and `step(rollout)` are the parts of a turn;
    `rlhf.rollouts.external.make_rollout` makes a rollout of text from elsewhere.
    """

    def __init__(self, job: PPOJob, reward: Callable[..., Any] | None = None, custom_loop: bool = False):
        """Check all input, then load the models.

        Args:
            reward: a function to use in place of `job.reward`'s source, called as `job.reward.function` would be.
            custom_loop: `train()` will not be called, so neither data nor a source of scores is needed.

        Raises:
            UserError: anything in the input that cannot work, before a model is loaded where that is possible.
        """
        self.job = job
        if job.data.path is None and not custom_loop:
            raise UserError("data.path is not set; give it with --data.path or in a --config file")
        if not custom_loop and reward is None and job.reward.model is None and job.reward.function is None:
            raise UserError("no score: set reward.model to a reward model or reward.function to file.py:name")
        self.run = RunFolder(job.output, job.resume)
        self.accelerator = open_accelerator(job.output, job.model.mixed_precision, job.trackers, job.seed)
        job.ppo.check_processes(self.accelerator.num_processes)
        self.resume_from = checkpoint.find(self.run.path, job.resume)
        self._load_data()
        self._load_models(FunctionReward(reward, getattr(reward, "__name__", "reward")) if reward else None)
        self._start_state()

    def _load_data(self) -> None:
        job = self.job
        assert job.model.path is not None
        config = check_causal(job.model.path, job.model.trust_remote_code)
        self.context_length = context_length_of(config)
        self.tokenizer = load_tokenizer(job.model.path, job.model.chat_template, job.model.trust_remote_code)
        self.prompts = self.held_out = self.texts = None
        self.longest = 0
        if job.data.path is not None:
            self.prompts, self.held_out = load_prompts(self.tokenizer, job.data, job.seed)
            if len(self.prompts) < job.ppo.prompts_per_step:
                raise UserError(
                    f"{job.data.path} holds {len(self.prompts)} prompts to train on, fewer than the "
                    f"{job.ppo.prompts_per_step} of one batch (ppo.rollout_batch_size = {job.ppo.rollout_batch_size}, "
                    f"ppo.samples_per_prompt = {job.ppo.samples_per_prompt}); lower it or bring more prompts"
                )
            self.longest = max(map(len, self.prompts.ids + (self.held_out.ids if self.held_out else [])))
            self.check_context_length(self.longest, job.generation.max_new_tokens)
        self.eval_indices = held_out_indices(len(self.held_out), job.eval) if self.held_out else []
        if job.critic.init not in (None, "reward"):
            resolve(job.critic.init)  # a folder that is not there should not wait for the policy to load
        if job.ptx.path is not None:
            self.texts = TextStream.load(job.ptx, self.tokenizer, self.context_length, job.seed)

    def check_context_length(self, prompt: int, response: int) -> None:
        """Refuse a prompt and a response, lengths in tokens, that are longer together than the model reads."""
        if self.context_length is not None and prompt + response > self.context_length:
            raise UserError(
                f"the longest prompt and generation.max_new_tokens = {response} make {prompt + response} "
                f"tokens, but {self.job.model.path} reads at most {self.context_length}; lower one of them"
            )

    def _load_models(self, source: RewardSource | None) -> None:
        job, device = self.job, self.accelerator.device
        configs = {"score": job.reward, "judge": job.eval.judge} if source is None else {"judge": job.eval.judge}
        sources = ({} if source is None else {"score": source}) | open_sources(configs, device, job.model)

        lm = load_causal_lm(job.model)
        self.sampler = Sampler.of(self.tokenizer, lm, job.generation)
        self.dropout_rates = disable_dropout(lm)
        check_head(lm)
        self.policy = build_policy(job, lm)
        sources |= attach_sources(configs, device, job.model, self.policy.lm)
        self.scorers = {name: sources[name] for name in ("score", "judge") if name in sources}
        self.source = self.scorers.get("score")
        self.reference = Reference.of(self.policy.lm).to(device)
        self.learner = Learner(job, self.policy, self.reference, self.sampler.decoding, self.accelerator, self.texts)
        self.collector = Collector(
            job, self.policy, self.reference, self.sampler, self.source, self.learner.extras, self.accelerator
        )
        self.weights, self.optimizer = self.learner.weights, self.learner.optimizer

    def _start_state(self) -> None:
        config = self.job.ppo
        self.kl_coef = (
            FixedKL(config.kl_coef)
            if config.kl_target is None
            else AdaptiveKL(config.kl_coef, config.kl_target, config.kl_horizon)
        )
        self.scale = RunningScale() if self.job.reward.running_scale else None
        self.state = checkpoint.TrainState()
        self.start_scores: list[dict[str, float]] | None = None
        self._is_open = False
        self.begin_step()

    # -------------------------------------------------------------------------------------------------- the loop

    def train(self) -> dict[str, float]:
        """Train to the end, or until asked to stop; returns the last step's metrics."""
        job, steps = self.job, self.job.ppo.steps
        if self.prompts is None or self.source is None:
            raise UserError(f"{'data.path' if self.prompts is None else 'a reward'} is not set, which train() needs")
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

    def step(self, given: Rollout | PPOBatch | None = None) -> dict[str, float]:
        """One PPO iteration: collect responses, estimate advantages, update policy and critic, adjust kl_coef.

        Args:
            given: a scored rollout to learn from in place of a new one, or a batch whose advantages are known.
        """
        clock, before = self.collector.clock, sum(self.collector.clock.seconds.values())
        with clock("step"):
            rollout = self.collect(self._next_prompts()) if given is None else given
            batch = rollout if isinstance(rollout, PPOBatch) else self.make_batch(rollout)
            rollout = batch.rollout
            metrics = rollout_metrics(batch, self.kl_coef.coef, self.policy.critic is not None)
            with clock("update"):
                metrics |= self.learner.update(batch, self.state.step, self.kl_coef.coef)
            self.kl_coef.update(metrics["objective/kl"], len(rollout))
        self.state.step += 1
        self.state.episodes += len(rollout)
        seconds = clock.seconds | {"step": clock.seconds["step"] + before}
        metrics |= {f"time/{name}": seconds.get(name, 0.0) for name in ("generate", "score", "update", "step")}
        metrics["throughput/response_tokens_per_s"] = float(rollout.response_mask.sum()) / seconds["step"]
        metrics["throughput/episodes_per_s"] = len(rollout) / seconds["step"]
        metrics["memory/peak_mb"] = peak_memory_mb(self.accelerator.device)
        self.begin_step()
        return metrics

    def begin_step(self) -> None:
        """Start the clock of a step, and the count of its calls of `generate`."""
        self.collector.clock, self._generated = PhaseTimer(), 0

    def collect(self, prompts: Prompts) -> Rollout:
        """Responses to a whole batch of prompts, scored."""
        return self.score(self.generate(prompts))

    def generate(self, prompts: Prompts | Sequence[Any]) -> Rollout:
        """Responses to texts, messages or token ids, read by policy and reference; their scores are still nan.

        Every process is given the same prompts, samples its share of them, and gets all responses.
        """
        batch = prompts if isinstance(prompts, Prompts) else make_prompts(self.tokenizer, prompts)
        length = self.job.generation.max_new_tokens
        self.check_context_length(batch.prompt_ids.shape[1], length)
        # A second call within a step, as for another turn of a conversation, gets numbers of its own.
        key = [self.job.seed, self.state.step] + ([self._generated] if self._generated else [])
        noise = uniform_noise(key, range(len(batch)), len(batch), length)
        self._generated += 1
        return self._checked(self.collector.generate(batch, noise))

    def read(self, rollout: Rollout) -> Rollout:
        """The rollout with what policy, critic and reference say of its tokens now; all processes read a share."""
        return self._checked(self.collector.read(rollout))

    def score(self, rollout: Rollout) -> Rollout:
        """The rollout with its scores; where the source fails, the steps that are done are saved first."""
        if self.source is None:
            raise UserError("no score: set reward.model or reward.function, or fill in the rollout's scores yourself")
        try:
            return self.collector.score(rollout)
        except UserError:
            if self.state.step > 0:
                self.save()
            raise

    def _checked(self, rollout: Rollout) -> Rollout:
        if self.state.step == 0:
            check_reference_matches_policy(rollout)
        return rollout

    def make_batch(self, rollout: Rollout) -> PPOBatch:
        """Rewards, advantages and returns of a scored rollout."""
        check_rollout(rollout, self.job.ppo)
        if not bool(rollout.old_logprobs[rollout.response_mask].isfinite().all()):
            rollout = self.read(rollout)
        if self.scale is not None:
            self.scale.update(rollout.scores)
        return make_batch(rollout, self.job.ppo, self.kl_coef.coef, self.job.reward, self.scale)

    def _next_prompts(self) -> Prompts:
        return self.prompts_at(self.state.episodes // self.job.ppo.samples_per_prompt, self.job.seed)

    def prompts_at(self, first: int, seed: int) -> Prompts:
        """A step's prompts from the stream, each as often as it is answered."""
        config = self.job.ppo
        if self.prompts is None:
            raise UserError("data.path is not set, so there are no prompts to take; give step() a rollout")
        picked = self.prompts.stream(first, config.prompts_per_step, seed)
        return self.prompts.batch([i for i in picked for _ in range(config.samples_per_prompt)])

    # ------------------------------------------------------------------------------------------ around the steps

    def _due(self, every: int) -> bool:
        return every > 0 and self.state.step % every == 0

    def _start(self) -> None:
        """Open the run folder, take up a checkpoint if there is one, and measure where the policy starts."""
        if self.resume_from is not None:
            self.load()
            self._keep_best_if_comparable()
        if self.state.step >= self.job.ppo.steps:
            return  # nothing will be run, so nothing is written about it
        comparable = self.resume_from is not None and not self._eval_settings_changed()
        self._open()
        self.accelerator.print(self._plan())
        if comparable:
            self.start_scores = self.run.read("start") or None
        if self.state.step == 0 and self.start_scores is None:
            self.evaluate()
        if self.state.step == 0 and self.job.critic.pretraining_steps > self.state.pretraining_rollouts == 0:
            pretrain_critic(self)
            self.save()

    def _open(self) -> None:
        """Make the run folder, or take it up."""
        if self._is_open:
            return
        size = sum(p.numel() * p.element_size() for p in self.policy.parameters())
        trained = sum(p.numel() * p.element_size() for p in self.weights.values())
        require_space(self.run.path, 2 * size + 4 * trained, "a run with this model")
        self.accelerator.wait_for_everyone()  # all have read the folder's config before it is written anew
        self.run.start(self.job, self.state.step if self.resume_from else None, self.accelerator, self.policy)
        self._is_open = True

    def _eval_settings_changed(self) -> bool:
        """Whether the folder's earlier scores were given by other sources, or to other prompts."""
        return self.run.changed(self.job, "data", "generation", "reward", "eval")

    def _keep_best_if_comparable(self) -> None:
        """Forget the best score so far where its weights are gone, or where it was measured otherwise."""
        if checkpoint.best_saved_step(self.run.path) != self.state.best_step or self._eval_settings_changed():
            self.state.best_step = self.state.best_score = None

    def _plan(self) -> str:
        job, ranks = self.job, self.accelerator.num_processes
        longest = self.longest + job.generation.max_new_tokens
        models = {"reference": self.reference.lm, "reward model": getattr(self.source, "model", None)}
        memory = estimate_memory(
            job, longest, ranks, self.policy, {name: model for name, model in models.items() if model is not None}
        )
        count = len(self.prompts) if self.prompts is not None else 0
        return plan(job, ranks, count, len(self.eval_indices), longest, self.policy, memory)

    def evaluate(self) -> dict[str, float]:
        """Answer the held-out prompts, compare with the start, keep the weights if they are the best so far."""
        if not self.held_out:
            return {}
        responses = evaluate_responses(
            self.policy,
            self.reference,
            self.sampler,
            prompts=self.held_out,
            indices=self.eval_indices,
            sources=self.scorers,
            batch_size=self.job.eval.batch_size,
            seed=self.job.seed,
            accelerator=self.accelerator,
        )
        state = self.state
        found = summarise(responses, self.start_scores)
        best = state.best_score is None or found["score"] > state.best_score
        if best:
            state.best_step, state.best_score = state.step, found["score"]
        if state.step == 0:
            self.start_scores = [response.scores for response in responses]
        if self.accelerator.is_main_process:
            if state.step == 0:
                self.run.append("start", self.start_scores or [])
            self.run.append("samples", sample_rows(responses, state.step, self.job.eval.samples))
            if best:
                checkpoint.save_best(self.run.path, self.weights, state.step)
        self.run.log(self.accelerator, state.step, found, "eval")
        return found

    def save(self) -> None:
        """Write a checkpoint of this step."""
        self._open()
        self.state.kl_coef, self.state.beta = self.kl_coef.state_dict(), self.learner.beta.state_dict()
        self.state.scale = asdict(self.scale) if self.scale is not None else {}
        keep = self.job.checkpoint.keep
        checkpoint.save(self.run.path, self.state, self.weights, self.optimizer, self.accelerator, keep)

    def load(self) -> None:
        """Take up the checkpoint that `resume` names; `train()` does it by itself."""
        if self.resume_from is None:
            return
        self.state = checkpoint.load(self.resume_from, self.weights, self.optimizer, self.accelerator)
        self.kl_coef.load_state_dict(self.state.kl_coef)
        self.learner.beta.load_state_dict(self.state.beta)
        if self.scale is not None and self.state.scale:
            self.scale = RunningScale(**self.state.scale)

    def export(self, folder: Path | str) -> None:
        """Write the policy as plain `from_pretrained` loads it, with its tokenizer and its critic."""
        if self.accelerator.is_main_process:
            export(self.policy, self.tokenizer, Path(folder), self.job.model, self.dropout_rates)

    def _finish(self) -> None:
        """Export the weights with the best held-out score, and write the report."""
        best = self.state.best_step
        if self.accelerator.is_main_process:
            if best is not None and best != self.state.step:
                checkpoint.load_weights(self.run.path / "checkpoints" / "best" / checkpoint.WEIGHTS, self.weights)
            try:
                self.export(self.run.path / "model")
            except OSError as error:
                raise UserError(
                    f"the model cannot be written: {error}; mend that, and --resume auto writes it from the checkpoint"
                ) from error
            from rlhf.report.report import write_report

            report = write_report(self.run.path)
            why = "" if best is None else f", which has the best held-out score, {self.state.best_score:.3f},"
            print(f"the model of step {self.state.step if best is None else best}{why} is in {self.run.path / 'model'}")
            print(f"report in {report}")
        self.accelerator.wait_for_everyone()
