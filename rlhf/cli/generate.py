"""Completions from any folder that the stages wrote."""

import json
from pathlib import Path
from typing import Any

from rlhf.config.jobs import DataConfig, GenerationConfig
from rlhf.data.datasets import load_rows
from rlhf.data.encoding import encode_prompts, pad, padding_id, render_chat
from rlhf.data.prompts import prepare_prompts
from rlhf.errors import UserError
from rlhf.models.actor_critic import ActorCritic
from rlhf.models.loading import context_length_of
from rlhf.records import Prompts
from rlhf.rollouts.sampling import uniform_noise
from rlhf.rollouts.stages import Sampler, sample_responses
from rlhf.run.saved_policy import load_policy


def complete(
    model: str,
    prompt: str | None = None,
    file: str | None = None,
    chat: bool = False,
    output: str | None = None,
    count: int = 1,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Continue one prompt, every prompt of a file, or a conversation on the terminal; returns what was said.

    Raises:
        UserError: the model or file cannot be used, or `output` exists.
    """
    import torch

    if count < 1:
        raise UserError(f"--count is {count}, but it must be positive")
    if output is not None and Path(output).exists():
        raise UserError(f"{output} exists; name another --output")
    if prompt is not None and not prompt.strip():
        raise UserError("--prompt is empty; give it some text to continue")
    if output is not None:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
    config = GenerationConfig(max_new_tokens=max_new_tokens, temperature=temperature)
    lm, tokenizer = load_policy(model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lm.to(device).eval()
    policy, sampler = ActorCritic(lm, critic=None), Sampler.of(tokenizer, lm, config)

    def say(prompts: list[Any], turn: int = 0) -> list[str]:
        ids, mask = pad(encode_prompts(tokenizer, prompts), padding_id(tokenizer), "left")
        context_length = context_length_of(lm.config)
        if context_length is not None and ids.shape[1] + max_new_tokens > context_length:
            raise UserError(
                f"a prompt of {ids.shape[1]} tokens and --max_new_tokens {max_new_tokens} exceed the context length of "
                f"{model}, which is {context_length}; lower one of them"
            )
        noise = uniform_noise([seed, turn], range(len(prompts)), len(prompts), max_new_tokens)
        batch = Prompts(ids.to(device), mask.to(device), prompts, {})
        return sample_responses(policy, sampler, batch, noise).completions

    if chat:
        render_chat(tokenizer, [{"role": "user", "content": "hello"}], True)  # no template: said before the first line
        return _converse(say)
    prompts: list[Any] = [prompt]
    if file is not None:
        limit = DataConfig(path=file, max_prompt_length=10**9)
        prompts = prepare_prompts(tokenizer, load_rows(file, "train"), limit, padding_id(tokenizer)).prompts
    prompts = [p for p in prompts for _ in range(count)]
    said = [text for i in range(0, len(prompts), 64) for text in say(prompts[i : i + 64], i)]
    rows = [{"prompt": p, "response": text} for p, text in zip(prompts, said, strict=True)]
    if output is not None:
        Path(output).write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    else:
        for row in rows:
            print(f"{row['prompt']}{row['response']}" if isinstance(row["prompt"], str) else row["response"])
    return rows


def _converse(say: Any) -> list[dict[str, Any]]:
    messages: list[dict[str, str]] = []
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            break
        if not line:
            break
        messages.append({"role": "user", "content": line})
        messages.append({"role": "assistant", "content": say([messages], len(messages))[0]})
        print(messages[-1]["content"])
    return messages
