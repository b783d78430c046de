"""The evaluations of a PPO run on held-out prompts: scores against the start, and the weights that score best."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlhf.evaluation.responses import EvaluatedResponse
from rlhf.evaluation.summary import selection_score, summarise
from rlhf.models.actor_critic import ActorCritic
from rlhf.report.model_card import write_model_card
from rlhf.run import checkpoint
from rlhf.run.folder import RunFolder
from rlhf.run.trends import judge_names, overoptimised


class Evaluations:
    """The evaluations of one run so far.

    Attributes:
        start_scores: the scores of each held-out response before training, by source; None before that evaluation.
        rows: the rows of `eval.jsonl`.
    """

    def __init__(self) -> None:
        self.start_scores: list[dict[str, float | None]] | None = None
        self.rows: list[dict[str, Any]] = []

    def add(
        self, responses: Sequence[EvaluatedResponse], state: checkpoint.TrainState
    ) -> tuple[dict[str, float], bool]:
        """Summarise an evaluation, and note in `state` whether it is the best one so far.

        Returns:
            The summary, and whether it is the best.
        """
        summary = summarise(responses, self.start_scores)
        score = selection_score(summary)
        is_best = state.best_score is None or score > state.best_score
        state.evaluations_since_best = 0 if is_best else state.evaluations_since_best + 1
        if is_best:
            state.best_step = state.step
            state.best_score = score
        self.rows.append({"step": state.step, **summary})
        if state.step == 0:
            self.start_scores = [response.scores for response in responses]
        return summary, is_best

    def overoptimised(self) -> list[str]:
        """A sentence for each judge that fell while the score rose."""
        return overoptimised(self.rows)

    def metrics(self) -> dict[str, float]:
        """Of the last evaluation, the number of judge sources that fell while the score rose; nothing without one."""
        if not self.rows or not judge_names(self.rows[-1]):
            return {}
        return {"eval/overoptimised": float(len(self.overoptimised()))}


def write_best_model(
    run: RunFolder,
    state: checkpoint.TrainState,
    policy: ActorCritic,
    export: Callable[[Path], None],
    has_penalties: bool,
) -> None:
    """Export the weights with the best held-out score, write the report, and print where both are.

    Args:
        policy: has the weights of the last step; gets those that are exported.
        export: writes the policy to a folder.
        has_penalties: whether the held-out score is taken after the penalties of training.
    """
    best = state.best_step
    if best is not None and best != state.step:
        if checkpoint.best_saved_step(run.path) == best:
            checkpoint.load_weights(run.path / "checkpoints" / "best" / checkpoint.WEIGHTS, policy.trainable())
        else:  # a damaged file was reported
            best = None
    with run.writing_model() as folder:
        export(folder)
        write_model_card(run.path, folder)
    from rlhf.report.report import write_report

    report = write_report(run.path)
    step = state.step if best is None else best
    penalties = " after penalties" if has_penalties else ""
    reason = "" if best is None else f", which has the best held-out score{penalties}, {state.best_score:.3f},"
    print(f"the model of step {step}{reason} is in {run.path / 'model'}")
    if best == 0:
        print(
            f"WARNING: {run.path / 'model'} holds the untrained model, because no evaluation after the start had a "
            f"better held-out score{penalties}; see eval.jsonl"
        )
    print(f"report in {report}")
