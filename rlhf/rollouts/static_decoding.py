"""Sampling with decode steps of fixed shape: no tensor grows, and no step waits for the device.

Every step reads and writes the same tensors, so on a CUDA device it is recorded once for each shape and replayed
(`rlhf.rollouts.cuda_graphs`). The host looks at the rows only every few steps. Rows that ended in between are computed
until then, but what they sample goes to a row of the outputs that is not returned. Shapes come in few sizes: the batch
is halved when half of its rows have ended, and the keys that attention reads grow in blocks. Where responses wait for a
row (`max_rows`), several of them at a time are put into rows that have ended.

The loop over a growing cache in `rlhf.rollouts.sampling` is the specification: both give the same responses.
"""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from rlhf.models.adapters import active_adapter_name
from rlhf.models.distribution import compute_logits, token_mask
from rlhf.models.trunk import trunk_inputs, unwrap_peft
from rlhf.rollouts.cuda_graphs import StepGraphs
from rlhf.rollouts.sampling_records import SampledTokens, SamplingRequest, equal_prompt_groups
from rlhf.rollouts.static_cache import AttentionLayout, StaticRowsCache, StepWindow
from rlhf.rollouts.stopping import StopStrings
from tabular.core.distributions import categorical_logprob, categorical_sample

SLOT_BLOCK = 64
"""The number of keys that attention reads is a multiple of this."""

STEPS_BETWEEN_CHECKS = {"cuda": 8}
"""Device type -> decode steps before the host looks which rows have ended; 1 elsewhere, where looking costs nothing."""

REFILL_FRACTION = 0.25
"""Share of the rows that must be free before waiting responses are put into them: one prefill for several of them."""


@dataclass(frozen=True)
class Capacity:
    """Sizes of the tensors that decoding works on."""

    responses: int
    rows: int
    """Responses that are sampled at once."""
    slots: int
    """Longest text, prompt and response, in tokens."""
    new_tokens: int

    @classmethod
    def of(cls, request: SamplingRequest, max_rows: int | None) -> "Capacity":
        return cls(
            responses=len(request),
            rows=min(max_rows or len(request), len(request)),
            slots=_round_up(request.prompt_ids.shape[1] + request.max_new_tokens, SLOT_BLOCK),
            new_tokens=request.max_new_tokens,
        )

    def extended_to(self, other: "Capacity") -> "Capacity":
        """The smallest capacity that suffices for both."""
        return Capacity(
            responses=max(self.responses, other.responses),
            rows=max(self.rows, other.rows),
            slots=max(self.slots, other.slots),
            new_tokens=max(self.new_tokens, other.new_tokens),
        )


class Buffers:
    """The tensors that decode steps read and write; they keep their addresses.

    Per row of the batch: `response`, the index of its response, C - 1 where the row is free; `step`, the number of
    tokens its response has; `token`, the next one to read (the prompt's last, then the last one sampled); `position`,
    that token's place in the text. Per response: the outputs. Row C - 1 of the outputs takes what free rows sample.
    """

    response: Int[Tensor, "N"]
    step: Int[Tensor, "N"]
    token: Int[Tensor, "N"]
    position: Int[Tensor, "N"]
    ids: Int[Tensor, "C R"]
    mask: Bool[Tensor, "C R"]
    logprobs: Float[Tensor, "C R"]
    values: Float[Tensor, "C R"]
    ended: Bool[Tensor, "C"]
    noise: Float[Tensor, "C R"]

    def __init__(self, capacity: Capacity, n_layers: int, device: torch.device):
        rows = capacity.rows
        outputs = (capacity.responses + 1, capacity.new_tokens)
        self.capacity = capacity
        self.cache = StaticRowsCache(n_layers, rows, capacity.slots)
        self.response = torch.zeros(rows, dtype=torch.long, device=device)
        self.step = torch.zeros(rows, dtype=torch.long, device=device)
        self.token = torch.zeros(rows, dtype=torch.long, device=device)
        self.position = torch.zeros(rows, dtype=torch.long, device=device)
        self.ids = torch.zeros(outputs, dtype=torch.long, device=device)
        self.mask = torch.zeros(outputs, dtype=torch.bool, device=device)
        self.logprobs = torch.zeros(outputs, device=device)
        self.values = torch.zeros(outputs, device=device)
        self.ended = torch.zeros(outputs[0], dtype=torch.bool, device=device)
        self.noise = torch.zeros(outputs, dtype=torch.float64, device=device)
        self.graphs: StepGraphs | None = None
        self.addresses: tuple[Any, ...] = ()

    @property
    def free(self) -> int:
        """The value of `response` in a free row."""
        return self.capacity.responses

    def reset(self, request: SamplingRequest) -> None:
        """Free all rows, and clear the outputs for the responses to a request."""
        self.response.fill_(self.free)
        self.step.zero_()
        self.token.zero_()
        self.position.zero_()
        for output in (self.ids, self.mask, self.logprobs, self.values, self.ended):
            output.zero_()
        if request.noise is not None:
            self.noise[: len(request), : request.max_new_tokens] = request.noise[:, : request.max_new_tokens]

    def prepare_graphs(self, lm: Any) -> None:
        """Make new graphs if the model's weights have moved or another adapter is active since the last ones."""
        addresses = (active_adapter_name(lm), *(p.data_ptr() for p in lm.parameters()))
        if self.graphs is None or addresses != self.addresses:
            self.graphs = StepGraphs()
        self.addresses = addresses


_cuda_buffers: "weakref.WeakKeyDictionary[Any, Buffers]" = weakref.WeakKeyDictionary()
"""Model -> its buffers on a CUDA device, which outlive a rollout, because recorded steps refer to them."""


def _buffers_for(lm: Any, capacity: Capacity, device: torch.device) -> Buffers:
    model = unwrap_peft(lm)
    n_layers = model.config.get_text_config(decoder=True).num_hidden_layers
    if device.type != "cuda" or _has_experts(model):
        return Buffers(capacity, n_layers, device)
    buffers = _cuda_buffers.pop(model, None)
    capacity = capacity if buffers is None else buffers.capacity.extended_to(capacity)
    if buffers is None or buffers.capacity != capacity:
        del buffers  # before the larger ones are allocated
        buffers = Buffers(capacity, n_layers, device)
    buffers.prepare_graphs(lm)
    _cuda_buffers[model] = buffers
    return buffers


def _has_experts(model: Any) -> bool:
    """Whether the model routes tokens to experts, whose forward may wait for the device and cannot be recorded."""
    return any("experts" in name for name in vars(model.config.get_text_config(decoder=True)))


def sample_static(lm: Any, request: SamplingRequest, max_rows: int | None = None) -> SampledTokens:
    """Sample all responses, at most `max_rows` at once."""
    capacity = Capacity.of(request, max_rows)
    buffers = _buffers_for(lm, capacity, request.prompt_ids.device)
    StaticDecoding(lm, request, buffers, n_rows=capacity.rows).run()
    shape = (slice(len(request)), slice(request.max_new_tokens))
    return SampledTokens(  # clones, because the buffers are used again
        ids=buffers.ids[shape].clone(),
        mask=buffers.mask[shape].clone(),
        truncated=~buffers.ended[: len(request)],
        logprobs=buffers.logprobs[shape].clone(),
        values=None if request.value_head is None else buffers.values[shape].clone(),
    )


class StaticDecoding:
    """One request in progress: fills rows with prompts and decodes until every response has ended."""

    def __init__(self, lm: Any, request: SamplingRequest, buffers: Buffers, n_rows: int):
        model = unwrap_peft(lm)
        self.lm = lm
        self.trunk = model.base_model
        self.layout = AttentionLayout.of(model)
        self.request = request
        self.buffers = buffers
        self.device = request.prompt_ids.device
        self.check_every = STEPS_BETWEEN_CHECKS.get(self.device.type, 1)
        self.n_started = 0
        # What the host knows of `response`, `step` and `position`, as of the last check.
        self.responses = [buffers.free] * n_rows
        self.steps = [0] * n_rows
        self.positions = [0] * n_rows
        buffers.reset(request)

    def run(self) -> None:
        """Sample all responses into the buffers' outputs."""
        while self.n_started < len(self.request) or self._live_rows():
            self._fill_free_rows()
            self._halve_rows()
            first_steps = dict(zip(self.responses, self.steps, strict=True))
            self._decode()
            self._read_rows()
            if self.request.stop_strings is not None:
                self._cut_at_stop_strings(self.request.stop_strings, first_steps)

    def _live_rows(self) -> list[int]:
        return [row for row, response in enumerate(self.responses) if response != self.buffers.free]

    def _free_rows(self) -> list[int]:
        return [row for row, response in enumerate(self.responses) if response == self.buffers.free]

    def _fill_free_rows(self) -> None:
        """Put waiting responses into free rows, if there are enough of either for one prefill."""
        n_waiting = len(self.request) - self.n_started
        free_rows = self._free_rows()
        if not n_waiting or len(free_rows) < REFILL_FRACTION * len(self.responses):
            return
        rows = torch.tensor(free_rows[:n_waiting], device=self.device)
        first = self.n_started
        self.n_started += len(rows)
        part = self.request.rows(first, self.n_started)
        self._prefill(part, rows)
        buffers = self.buffers
        buffers.response[rows] = torch.arange(first, self.n_started, device=self.device)
        buffers.step[rows] = 0
        buffers.token[rows] = part.prompt_ids[:, -1]
        buffers.position[rows] = part.prompt_mask.sum(-1) - 1
        self._read_rows()

    def _prefill(self, part: SamplingRequest, rows: Int[Tensor, "N"]) -> None:
        """Write the keys and values of prompts into the cache, except for their last token, which a step reads.

        Equal consecutive prompts are read once.
        """
        representatives, group = equal_prompt_groups(part)
        ids = part.prompt_ids[representatives]
        is_token = part.prompt_mask[representatives]
        width = int(is_token.sum(-1).max()) - 1
        if width == 0:
            return
        # Aligned on the left. Padding on the right needs no mask: no token attends to what comes after it.
        order = is_token.int().argsort(dim=1, descending=True, stable=True)
        ids = ids.gather(1, order)[:, :width]
        prefilled = Cache(layer_class_to_replicate=DynamicLayer)
        inputs = trunk_inputs(self.lm, torch.ones_like(ids, dtype=torch.bool))
        self.trunk(input_ids=ids, past_key_values=prefilled, use_cache=True, **inputs)
        self.buffers.cache.write_prompts(prefilled, rows, source=group)

    def _halve_rows(self) -> None:
        """Copy the live rows into a smaller batch where at most half of the rows are live."""
        live_rows = self._live_rows()
        n_rows = len(self.responses)
        while len(live_rows) <= n_rows // 2:
            n_rows = (n_rows + 1) // 2
        if n_rows == len(self.responses) or self.n_started < len(self.request):
            return
        source = torch.tensor((live_rows + self._free_rows())[:n_rows], device=self.device)
        buffers = self.buffers
        for state in (buffers.response, buffers.step, buffers.token, buffers.position):
            state[:n_rows] = state[source]
        buffers.cache.move_rows(source, n_slots=max(self.positions[row] for row in live_rows))
        self.responses = self.responses[:n_rows]
        self._read_rows()

    def _decode(self) -> None:
        """Run the steps up to the next check."""
        longest = max(self.positions[row] for row in self._live_rows()) + self.check_every
        n_rows = len(self.responses)
        n_slots = min(_round_up(longest, SLOT_BLOCK), self.buffers.capacity.slots)
        request = self.request
        # The hash, because a graph that refers to the value head would keep the whole policy in memory.
        value_head = hash(request.value_head)
        key = (n_rows, n_slots, request.noise is None, request.transform, request.max_new_tokens, value_head)
        for _ in range(self.check_every):
            if self.buffers.graphs is None:
                self._step(n_rows, n_slots)
            else:
                self.buffers.graphs.run(key, lambda: self._step(n_rows, n_slots))

    def _step(self, n_rows: int, n_slots: int) -> None:
        """Read one token and sample the next one in each of the first rows."""
        buffers = self.buffers
        response = buffers.response[:n_rows]
        step = buffers.step[:n_rows]
        token = buffers.token[:n_rows]
        position = buffers.position[:n_rows]
        # 1. one forward over one token a row
        buffers.cache.set_window(StepWindow(torch.arange(n_rows, device=self.device), position, n_slots))
        out = self.trunk(
            input_ids=token.unsqueeze(-1),
            position_ids=position.unsqueeze(-1),
            attention_mask=self.layout.masks(position, n_slots),
            past_key_values=buffers.cache,
            use_cache=True,
        )
        states = out.last_hidden_state[:, -1]
        logits = self.request.transform(compute_logits(self.lm, states), step)
        # 2. draw a token for each row
        if self.request.noise is None:
            sampled = logits.argmax(-1)
        else:
            sampled = categorical_sample(logits, uniforms=buffers.noise[response, step])
        ends = token_mask(self.request.transform.stop_ids, logits.shape[-1], logits.device)[sampled]
        buffers.ids[response, step] = sampled
        buffers.mask[response, step] = torch.ones_like(ends)
        buffers.logprobs[response, step] = categorical_logprob(logits, sampled)
        if self.request.value_head is not None:
            buffers.values[response, step] = self.request.value_head(states)
        buffers.ended[response] = ends
        # 3. rows whose response ends become free, the others advance
        is_last = ends | (step == self.request.max_new_tokens - 1)
        response.masked_fill_(is_last, buffers.free)
        live = response != buffers.free
        step += live
        position += live
        token.copy_(sampled)

    def _read_rows(self) -> None:
        """Copy what the host needs of the rows: the only time at which it waits for the device."""
        buffers = self.buffers
        state = torch.stack([buffers.response, buffers.step, buffers.position])[:, : len(self.responses)]
        self.responses, self.steps, self.positions = state.tolist()

    def _cut_at_stop_strings(self, stop_strings: StopStrings, first_steps: dict[int, int]) -> None:
        """End responses at the token that completes a stop string, and drop the tokens after it.

        Args:
            first_steps: response -> number of its tokens that were checked before.
        """
        buffers = self.buffers
        candidates = [response for response in first_steps if response != buffers.free]
        ids = buffers.ids[candidates].cpu()
        lengths = buffers.mask[candidates].sum(-1).tolist()
        cuts: dict[int, int] = {}  # response -> tokens that remain
        for response, row, length in zip(candidates, ids, lengths, strict=True):
            if (cut := stop_strings.first_end(row[:length].tolist(), first_steps[response])) is not None:
                cuts[response] = cut
        if not cuts:
            return
        cut_responses = torch.tensor(list(cuts), device=self.device)
        remaining = torch.tensor(list(cuts.values()), device=self.device).unsqueeze(-1)
        dropped = torch.arange(buffers.ids.shape[1], device=self.device) >= remaining
        for output in (buffers.ids, buffers.mask, buffers.logprobs, buffers.values):
            output[cut_responses] = output[cut_responses].masked_fill(dropped, 0)
        buffers.ended[cut_responses] = True
        for row, response in enumerate(self.responses):
            if response in cuts:
                buffers.response[row] = buffers.free
                self.responses[row] = buffers.free


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
