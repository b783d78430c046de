"""Reward models: sequence classifiers with one label."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf.data.batching import group_by_length
from rlhf.data.encoding import encode_for_scoring, pad, padding_id
from rlhf.errors import UserError
from rlhf.models.loading import context_length_of, load_tokenizer
from rlhf.models.offload import OffloadedModel, on_device
from rlhf.models.reward_models import label_index, load_reward_model
from rlhf.models.trunk import sequence_scores
from rlhf.rewards.results import TEXTS_ONLY, Context, Failure, Score, as_numbers, describe_row

_UNBOUNDED = 1_000_000
"""Length limit in tokens for a model without a context length."""


def plain_chat(prompt: Any) -> str:
    """A prompt for a tokenizer without a chat template: `User: Hello`, a blank line, `Assistant: `; texts as they are.

    Raises:
        UserError: a message is not `{"role": ..., "content": "text"}`.
    """
    if isinstance(prompt, str):
        return prompt
    for message in prompt:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str) or "role" not in message:
            raise UserError(f"a message must be {{'role': ..., 'content': 'text'}}, got {message!r}")
    return "".join(f"{str(m['role']).capitalize()}: {m['content']}\n\n" for m in prompt) + "Assistant: "


class ScoringModel:
    """Tokenise prompts with their completions and score them in batches. Subclasses hold the model.

    It reads text, not token ids: its tokenizer may differ from the policy's. With `score_mean` and `score_std` among
    the statistics (`rlhf reward` writes them), scores are shifted and scaled to mean 0 and standard deviation 1 on its
    training data (Ziegler et al., 2019).
    """

    model: Any
    offloaded: OffloadedModel | None = None
    """Where the weights are on the device only while they score."""

    def __init__(
        self,
        path: str,
        device: torch.device | str,
        *,
        context_length: int | None,
        statistics: Mapping[str, Any],
        batch_size: int,
        batch_tokens: int | None,
        normalize: bool,
        chat_template: str | None = None,
    ):
        """Load the tokenizer.

        Args:
            path: of the reward model.
            context_length: longer texts are cut; None: no limit.
            statistics: `score_mean`, `score_std`, and `append_eos` where it was trained on texts with an end token.
            batch_size: texts of one forward pass.
            batch_tokens: tokens of one forward pass, padding included, instead of `batch_size` texts.
            normalize: whether to shift and scale the scores.
            chat_template: file with a Jinja chat template; None: the tokenizer's own, or `plain_chat`.
        """
        self.path = path
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.tokenizer = load_tokenizer(path, chat_template)
        self.max_length = context_length or _UNBOUNDED
        self.append_eos = bool(statistics.get("append_eos", False))
        self.mean = float(statistics.get("score_mean", 0.0)) if normalize else 0.0
        self.std = float(statistics.get("score_std", 1.0)) if normalize else 1.0

    def forward(self, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B"]:
        """Raw scores of right-padded texts."""
        raise NotImplementedError

    def __str__(self) -> str:
        return f"reward model {self.path}"

    def __call__(self, prompts: list[Any], completions: list[str], columns: dict[str, list[Any]]) -> list[float]:
        """One score for each completion.

        Raises:
            UserError: a score is not finite.
        """
        return as_numbers(self.score(prompts, completions, columns), str(self), prompts, completions)

    @torch.no_grad()
    def score(
        self, prompts: list[Any], completions: list[str], columns: dict[str, list[Any]], context: Context = TEXTS_ONLY
    ) -> list[Score]:
        """One score for each completion; a Failure where it is not finite."""
        texts = prompts if self.tokenizer.chat_template else [plain_chat(prompt) for prompt in prompts]
        encoded = encode_for_scoring(self.tokenizer, texts, completions, self.append_eos, self.max_length)
        scores = torch.empty(len(encoded))
        for rows in group_by_length([len(ids) for ids in encoded], self.batch_size, self.batch_tokens):
            ids, mask = pad([encoded[i] for i in rows], padding_id(self.tokenizer), "right")
            scores[rows] = self.forward(ids.to(self.device), mask.to(self.device)).cpu()
        scores = (scores - self.mean) / self.std
        numbers: list[Score] = scores.tolist()
        for row in (~scores.isfinite()).nonzero().flatten().tolist():
            numbers[row] = Failure(
                f"{self} gives {describe_row(row, prompts, completions)} the score {numbers[row]}, which is not finite "
                f"(score_mean is {self.mean}, score_std is {self.std})"
            )
        return numbers


class ModelReward(ScoringModel):
    """Scores by a reward model with weights of its own."""

    def __init__(
        self,
        path: str,
        device: torch.device | str,
        batch_size: int = 64,
        batch_tokens: int | None = None,
        normalize: bool = True,
        label: str | None = None,
        chat_template: str | None = None,
        dtype: str = "float32",
        offload: bool = False,
    ):
        """Load the model and its tokenizer.

        Args:
            label: the label whose logit is the score; None: the only one.
            chat_template: file with a Jinja chat template; None: the tokenizer's own, or `plain_chat`.
            dtype: of the weights, its head excepted, as torch names it; auto: that of the files.
            offload: keep the model in the CPU's memory while it does not score.

        Raises:
            UserError: `path` is not a reward model, or has no such label.
        """
        self.model = load_reward_model(path, dtype, label).requires_grad_(False).eval()
        if hasattr(self.model, "score"):
            self.model.score.float()  # a score of 10 has steps of 1/16 in bfloat16
        self.offloaded = OffloadedModel(self.model, device) if offload else None
        if not offload:
            self.model.to(device)
        self.label = label_index(path, self.model.config, label)
        super().__init__(
            path,
            device,
            context_length=context_length_of(self.model.config),
            statistics=vars(self.model.config),
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            normalize=normalize,
            chat_template=chat_template,
        )

    def score(
        self, prompts: list[Any], completions: list[str], columns: dict[str, list[Any]], context: Context = TEXTS_ONLY
    ) -> list[Score]:
        with on_device(self.offloaded):
            return super().score(prompts, completions, columns, context)

    def forward(self, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B"]:
        return sequence_scores(self.model, ids, mask, self.label)
