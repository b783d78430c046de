"""The work that the PPO benchmarks share: model shapes, batches, and random models on disk. Needs no `rlhf`.

Both trainers load the same folders, so they run the same shapes; weights are random, because no time depends on them.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads make a busy machine many times slower


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
    """Tokens of each prompt."""
    response: int
    """Tokens of each response."""
    epochs: int
    minibatches: int

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


WORKLOADS = {
    "tiny": Workload(4096, 128, 4, 4, 2, 384, rows=16, prompt=32, response=32, epochs=2, minibatches=2),
    "small": Workload(8192, 256, 4, 8, 4, 768, rows=16, prompt=64, response=64, epochs=2, minibatches=2),
    "135m": Workload(49152, 576, 30, 9, 3, 1536, rows=4, prompt=32, response=32, epochs=1, minibatches=1),
    "gpu": Workload(49152, 576, 30, 9, 3, 1536, rows=256, prompt=128, response=256, epochs=1, minibatches=4),
}

UNKNOWN, START, END, FIRST_WORD = range(4)


def write_models(folder: Path, work: Workload, updates: int) -> None:
    """Write `policy/` and `reward/` with their tokenizer, and `prompts.jsonl` for that many updates."""
    import numpy as np
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
    with open(folder / "prompts.jsonl", "w", encoding="utf-8") as file:
        # The closing space keeps the response's first word apart from the prompt's last for the reward model.
        file.writelines(json.dumps({"prompt": "".join(f"w{i} " for i in row)}) + "\n" for row in ids)
    (folder / "workload.json").write_text(json.dumps(asdict(work)), encoding="utf-8")
