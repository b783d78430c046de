"""Supervised fine-tuning: the next token of demonstrations, from any causal language model or from nothing."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from rlhf.config.jobs import ScratchConfig, SFTJob
from rlhf.data.datasets import checked_column, delimiter_hint, read_column, split_rows
from rlhf.data.encoding import encode_demonstration, pad, padding_id
from rlhf.errors import UserError
from rlhf.models.distribution import check_head, compute_logits
from rlhf.models.export import export_lm
from rlhf.models.loading import add_lora, check_causal, context_length_of, load_causal_lm, load_tokenizer
from rlhf.models.trunk import trunk_inputs, unwrap_peft
from rlhf.run.distributed import open_accelerator
from rlhf.run.folder import RunFolder
from rlhf.trainers.supervised import check_batches, check_lengths, fit

Demonstration = tuple[list[int], list[bool]]
"""Token ids, and True where a token is to be learnt."""


class NextToken(nn.Module):
    """A causal language model that says how surprised it is."""

    def __init__(self, lm: Any):
        super().__init__()
        self.lm = lm

    def forward(self, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"], learn: Bool[Tensor, "B L"]) -> Tensor:
        """Sum of `-log p(token)` over the tokens to learn; logits exist for these alone."""
        hidden = unwrap_peft(self.lm).base_model(input_ids=ids, use_cache=False, **trunk_inputs(self.lm, mask))
        targets = learn[:, 1:]
        logits = compute_logits(self.lm, hidden.last_hidden_state[:, :-1][targets])
        return nn.functional.cross_entropy(logits, ids[:, 1:][targets], reduction="sum")


def train_sft(job: SFTJob) -> bool:
    """Run a job: check and tokenise the data, train, write the model.

    Returns False where it was asked to stop before its end.

    Raises:
        UserError: the input cannot work.
    """
    run = RunFolder(job.output, job.resume)
    accelerator = open_accelerator(job.output, job.model.mixed_precision, job.trackers, job.seed)
    rows, held_out = split_rows(job.data, job.seed)
    known = None
    if job.model.path is not None:
        known = check_causal(job.model.path, job.model.trust_remote_code)
        tokenizer = load_tokenizer(job.model.path, job.model.chat_template, job.model.trust_remote_code)
        if tokenizer.eos_token_id is None:
            raise UserError(f"the tokenizer of {job.model.path} has no eos_token, so no text could be taught to end")
    else:
        tokenizer = train_tokenizer(_texts(rows, job.data.path), job.scratch)
    filler = padding_id(tokenizer)
    learnt_from, *ignored = dataset_formats(rows, job.data.path)
    if ignored and accelerator.is_main_process:
        others = ", ".join(name for names in ignored for name in names)
        print(f"{job.data.path} has several forms: {', '.join(learnt_from)} is learnt, {others} is not")
    examples = encode(tokenizer, rows, job.training.max_length, job.data.path)
    elsewhere = job.data.eval_path or job.data.path
    tests = encode(tokenizer, held_out, job.training.max_length, elsewhere) if held_out is not None else []
    check_batches(job.training, len(examples), accelerator.num_processes, job.data.path)
    context_length = job.scratch.max_positions if known is None else context_length_of(known)
    check_lengths((len(ids) for ids, _ in examples + tests), context_length, job.data.path)

    lm = load_causal_lm(job.model) if job.model.path is not None else new_lm(job.scratch, tokenizer)
    check_head(lm.eval())
    lm = add_lora(lm, job.model.lora, "CAUSAL_LM")
    model = NextToken(lm)

    def loss(model: nn.Module, batch: list[Demonstration]) -> tuple[Tensor, dict[str, Tensor]]:
        ids, mask = pad([ids for ids, _ in batch], filler, "right")
        learn, _ = pad([learn for _, learn in batch], 0, "right")
        device = accelerator.device
        return model(ids.to(device), mask.to(device), learn.bool().to(device)), {}

    def evaluate() -> dict[str, float]:
        if not tests:
            return {}
        batches = [
            tests[i : i + job.training.microbatch_size] for i in range(0, len(tests), job.training.microbatch_size)
        ]
        total = sum(float(loss(model, batch)[0]) for batch in batches)
        mean = total / sum(map(trained_token_count, tests))
        return {"loss": mean, "perplexity": math.exp(min(mean, 700.0))}

    finished = fit(
        job, run, accelerator, model, examples, lambda e: len(e[0]), trained_token_count, loss, evaluate, "sft"
    )
    if finished:
        if accelerator.is_main_process:
            export_lm(lm, tokenizer, run.path / "model", job.model)
            print(f"model in {run.path / 'model'}")
        accelerator.wait_for_everyone()
    accelerator.end_training()
    return finished


def trained_token_count(example: Demonstration) -> int:
    """How many tokens an example teaches; the first token of a text has nothing before it."""
    return sum(example[1][1:])


def dataset_formats(rows: Any, path: str | None) -> list[list[str]]:
    """The columns of each form of demonstrations that the rows have, the one to learn first; `UserError` for none."""
    found = [
        names for names in (["messages"], ["prompt", "completion"], ["text"]) if set(names) <= set(rows.column_names)
    ]
    if not found:
        raise UserError(
            f"{path} has the columns {', '.join(map(repr, rows.column_names))}, but demonstrations need 'text', "
            "'messages', or 'prompt' and 'completion'" + delimiter_hint(rows)
        )
    return found


def encode(tokenizer: Any, rows: Any, limit: int, path: str | None) -> list[Demonstration]:
    """Tokenised demonstrations, cut at `limit`; `UserError` for a row that says nothing."""
    needed = dataset_formats(rows, path)[0]
    values = [checked_column(rows, name, path) for name in needed]
    examples = []
    for row in zip(*values, strict=True):
        ids, learn = encode_demonstration(tokenizer, dict(zip(needed, row, strict=True)))
        if any(learn[1:limit]):
            examples.append((ids[:limit], learn[:limit]))
    if not examples:
        raise UserError(f"{path}: no row has a token to learn within training.max_length = {limit}")
    return examples


# -------------------------------------------------------------------------------------------------- from scratch


def _texts(rows: Any, path: str | None) -> Iterable[str]:
    if "text" not in rows.column_names:
        raise UserError(f"a new tokenizer is trained on a column 'text', which {path} does not have")
    return (text for text in read_column(rows, "text", path) if text)


def train_tokenizer(texts: Iterable[str], config: ScratchConfig) -> Any:
    """A byte-level BPE tokenizer (Sennrich et al., 2016; Radford et al., 2019) with an end and a padding token."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    if config.lowercase:
        core.normalizer = normalizers.Lowercase()  # pyright: ignore[reportAttributeAccessIssue]
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    core.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=["<|end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>", model_max_length=config.max_positions
    )


def new_lm(config: ScratchConfig, tokenizer: Any) -> Any:
    """A causal language model with random weights, in float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    assert config.model_type is not None
    try:
        known = AutoConfig.for_model(config.model_type)
    except ValueError:
        raise UserError(
            f"scratch.model_type {config.model_type!r} is no architecture of transformers; try llama or gpt2"
        ) from None
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "intermediate_size": 4 * config.hidden_size,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    rates = [name for name, v in vars(known).items() if isinstance(v, float) and ("dropout" in name or "pdrop" in name)]
    settings = {name: value for name, value in sizes.items() if hasattr(known, name)}
    made = AutoConfig.for_model(config.model_type, **settings, **dict.fromkeys(rates, config.dropout))
    return AutoModelForCausalLM.from_config(made, dtype=torch.float32)
