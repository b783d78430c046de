"""PPO with a Python function as the reward: `python examples/ppo_python_reward.py [MODEL] [FOLDER]`.

MODEL is a Hugging Face model; without one, a tiny model is trained first, so that the script runs offline in seconds.
"""

import json
import sys
from pathlib import Path

from rlhf import PPOJob, PPOTrainer, SFTJob, parse, train_sft


def share_of_good(prompts, completions, **columns):
    """One score per completion: how many of its words are `good`. `columns` are the dataset's other columns."""
    return [text.split().count("good") / max(1, len(text.split())) for text in completions]


def train(model: str, folder: Path) -> dict[str, float]:
    prompts = folder / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"prompt": f"the {word} is"}) + "\n" for word in ["film", "story", "end"] * 20)
    )
    options = ["--ppo.total_episodes", "384", "--ppo.rollout_batch_size", "32", "--ppo.minibatch_size", "16"]
    options += ["--ppo.lr", "2e-3", "--ppo.kl_coef", "0.02", "--generation.max_new_tokens", "12"]
    job = parse(PPOJob, ["--model.path", model, "--data.path", str(prompts), "--output", str(folder / "ppo"), *options])
    return PPOTrainer(job, reward=share_of_good).train()


def tiny_model(folder: Path) -> str:
    """Train a new model with random weights on 64 sentences; replace it by a model of yours."""
    words = ["good", "bad", "warm", "cold", "dull", "fine", "slow", "long"]
    sentences = [f"the {noun} is {a} and {b} ." for noun in ["film", "story"] for a in words for b in words[:4]]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences))
    options = ["--scratch.model_type", "llama", "--scratch.vocab_size", "300", "--scratch.hidden_size", "64"]
    options += ["--training.lr", "3e-3", "--training.epochs", "20", "--training.max_length", "32"]
    train_sft(parse(SFTJob, ["--data.path", str(folder / "texts.jsonl"), "--output", str(folder / "sft"), *options]))
    return str(folder / "sft")


if __name__ == "__main__":
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else "runs/example-ppo")
    folder.mkdir(parents=True)
    metrics = train(sys.argv[1] if len(sys.argv) > 1 else tiny_model(folder), folder)
    print(f"score {metrics['objective/score']:.2f} after training, KL {metrics['objective/kl']:.1f} nats")
