"""A custom loop with two turns per conversation: `python examples/custom_loop_two_turns.py [MODEL] [FOLDER]`.

The policy answers, an environment replies, and the policy answers again. The reply stays in the context but is masked
out of the loss. MODEL is a Hugging Face model; without one, a tiny model is trained first, so that the script runs
offline in seconds.
"""

import json
import sys
from pathlib import Path

from rlhf import PPOJob, PPOTrainer, SFTJob, make_rollout, parse, train_sft


def reply_to(answer: str) -> str:
    """The environment: replace it by a tool, a game, or another model."""
    return " and" if "good" in answer else " but"


def score(answers: list[str]) -> float:
    """The score of a whole conversation, from the policy's answers: short ones score higher."""
    return -sum(len(answer) for answer in answers) / 50


def train(model: str, folder: Path, steps: int = 3) -> None:
    options = ["--ppo.rollout_batch_size", "16", "--ppo.minibatch_size", "16", "--generation.max_new_tokens", "8"]
    job = parse(PPOJob, ["--model.path", model, "--output", str(folder / "ppo"), "--ppo.lr", "1e-3", *options])
    trainer = PPOTrainer(job, custom_loop=True)
    tokenizer = trainer.tokenizer
    prompts = [tokenizer.encode(text) for text in ["the film is", "the story is"] * 8]
    for step in range(steps):
        first = trainer.generate(prompts)
        replies = [tokenizer.encode(reply_to(text), add_special_tokens=False) for text in first.completions]
        contexts = [p + a + r for p, a, r in zip(prompts, first.token_ids(), replies, strict=True)]
        second = trainer.generate(contexts)
        turns = list(zip(first.token_ids(), replies, second.token_ids(), strict=True))
        answers = zip(first.completions, second.completions, strict=True)
        rollout = make_rollout(
            trainer,
            prompts,
            responses=[a + r + b for a, r, b in turns],
            masks=[[True] * len(a) + [False] * len(r) + [True] * len(b) for a, r, b in turns],
            scores=[score(list(pair)) for pair in answers],
        )
        metrics = trainer.learn(rollout)
        print(f"step {step + 1}: score {metrics['objective/score']:.2f}, KL {metrics['objective/kl']:.2f} nats")
    trainer.save()
    trainer.export(folder / "ppo" / "model")


def tiny_model(folder: Path) -> str:
    """Train a new model for a few steps; replace it by a model of yours."""
    sentences = [
        f"the {noun} is {word} ." for noun in ["film", "story"] for word in ["good", "bad", "warm", "cold"] * 8
    ]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences))
    options = ["--scratch.model_type", "llama", "--scratch.vocab_size", "300", "--scratch.hidden_size", "64"]
    train_sft(parse(SFTJob, ["--data.path", str(folder / "texts.jsonl"), "--output", str(folder / "sft"), *options]))
    return str(folder / "sft")


if __name__ == "__main__":
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else "runs/example-custom-loop")
    folder.mkdir(parents=True)
    train(sys.argv[1] if len(sys.argv) > 1 else tiny_model(folder), folder)
