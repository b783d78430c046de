"""What the PPO benchmarks share: model shapes, batches, random models on disk, settings of TRL. Needs no `rlhf`.

Both trainers load the same folders, so they run the same shapes; weights are random, because no time depends on them.
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads make a busy machine many times slower

_RAGGED_SEED = 77
TRL_ON_CPU: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
}
"""Settings of TRL's PPOConfig with which it computes as ours does, and writes nothing."""


@dataclass(frozen=True)
class Workload:
    """A Llama-shaped model and the batch of one PPO update."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    rows: int
    """Responses of an update; all of them also make its minibatches."""
    prompt: int
    """Tokens of each prompt, or of the longest one possible."""
    response: int
    """Tokens of each response, or of the longest one possible."""
    epochs: int
    minibatches: int
    microbatch: int | None = None
    """Responses of one forward and backward pass; None: a minibatch."""
    microbatch_tokens: int | None = None
    """Tokens of one forward and backward pass instead, for a trainer that can limit them."""
    ragged: bool = False
    """Whether lengths vary from row to row."""

    def lengths(self, update: int) -> list[tuple[int, int]]:
        """Prompt and response tokens of each row of an update, counted from 0.

        Ragged prompts are uniform from 8 tokens on; ragged responses are geometric and truncated, a third of the
        longest one on average.
        """
        if not self.ragged:
            return [(self.prompt, self.response)] * self.rows
        rng = np.random.default_rng([_RAGGED_SEED, update])
        prompts = rng.integers(8, self.prompt + 1, size=self.rows)
        ends = rng.geometric(_end_probability(self.response / 3, self.response), size=self.rows)
        return list(zip(prompts.tolist(), np.minimum(ends, self.response).tolist(), strict=True))

    @property
    def trunk_weights(self) -> int:
        """Weights in the matrix products of all layers; each token of a forward pass multiplies each of them once."""
        head_size = self.hidden // self.heads
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.kv_heads * head_size
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_weights(self) -> int:
        return self.hidden * self.vocab

    def trunk_flops(self, first: int, last: int) -> float:
        """Floating-point operations of the layers over the tokens at positions first to last - 1 of one text."""
        tokens = last - first
        context = (first + 1 + last) / 2  # positions that a token attends to, on average
        return tokens * (2 * self.trunk_weights + 4 * self.layers * self.hidden * context)

    def head_flops(self, tokens: int) -> float:
        return 2.0 * self.head_weights * tokens


def _end_probability(mean: float, longest: int) -> float:
    """The p of a geometric distribution that has this mean once its values are truncated at `longest`."""
    low, high = 1e-6, 1.0
    for _ in range(60):
        p = (low + high) / 2
        truncated_mean = (1 - (1 - p) ** longest) / p
        low, high = (p, high) if truncated_mean > mean else (low, p)
    return low


_135M = Workload(49152, 576, 30, 9, 3, 1536, rows=4, prompt=32, response=32, epochs=1, minibatches=1)
_SMALL = Workload(8192, 256, 4, 8, 4, 768, rows=16, prompt=64, response=64, epochs=2, minibatches=2)
WORKLOADS = {
    "tiny": Workload(4096, 128, 4, 4, 2, 384, rows=16, prompt=32, response=32, epochs=2, minibatches=2),
    "small": _SMALL,
    "135m": _135M,
    # One minibatch: with more of them, TRL's trainer takes fewer optimizer steps than its arguments say.
    "small-ragged": replace(_SMALL, minibatches=1, microbatch=2, microbatch_tokens=512, ragged=True),
    "135m-ragged": replace(_135M, rows=8, microbatch=2, microbatch_tokens=512, ragged=True),
    "gpu": replace(_135M, rows=256, prompt=128, response=256, minibatches=4),
}

END, START, UNKNOWN, FIRST_WORD = range(4)
"""The end token comes first in the vocabulary: drawn by the smallest uniform number, see `benchmark_ppo.py`."""


def write_models(folder: Path, work: Workload, updates: int) -> None:
    """Write `policy/` and `reward/` with their tokenizer, and `prompts.jsonl` for that many updates."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

    transformers.logging.disable_progress_bar()
    vocabulary = {"<unk>": UNKNOWN, "<s>": START, "</s>": END}
    vocabulary |= {f"w{i}": i for i in range(FIRST_WORD, work.vocab)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    shape: dict[str, Any] = {
        "vocab_size": work.vocab,
        "hidden_size": work.hidden,
        "num_hidden_layers": work.layers,
        "num_attention_heads": work.heads,
        "num_key_value_heads": work.kv_heads,
        "intermediate_size": work.intermediate,
        "max_position_embeddings": max(2048, work.prompt + work.response),
        "tie_word_embeddings": True,
        "bos_token_id": START,
        "eos_token_id": END,
        "pad_token_id": END,
    }
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig.from_dict(shape)).save_pretrained(folder / "policy")
    LlamaForSequenceClassification(LlamaConfig.from_dict(shape | {"num_labels": 1})).save_pretrained(folder / "reward")
    for name in ("policy", "reward"):
        tokenizer.save_pretrained(folder / name)
    ids = np.random.default_rng(0).integers(FIRST_WORD, work.vocab, size=(updates * work.rows, work.prompt))
    lengths = [length for update in range(updates) for length, _ in work.lengths(update)]
    with open(folder / "prompts.jsonl", "w", encoding="utf-8") as file:
        for row, length in zip(ids, lengths, strict=True):
            # The closing space keeps the response's first word apart from the prompt's last for the reward model.
            file.write(json.dumps({"prompt": "".join(f"w{i} " for i in row[:length])}) + "\n")
    (folder / "workload.json").write_text(json.dumps(asdict(work)), encoding="utf-8")


def peak_mb() -> float:
    """Peak memory of this process; getrusage would count the parent's too, from which it was forked."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:"))
