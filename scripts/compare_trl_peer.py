"""One run of TRL 1.12's PPOTrainer for `compare_trl.py`, which starts it with the python that has TRL.

    trl/bin/python scripts/compare_trl_peer.py RUN.json

Reads the run's settings, trains, writes the policy to the folder `model` beside the file, and prints CPU seconds and
peak memory as one line of JSON. TRL's code is untouched and its arguments have their defaults, except those below.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from ppo_workload import TRL_ON_CPU, peak_mb

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"


def train(run: dict[str, Any], folder: Path) -> dict[str, float]:
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from trl.experimental.ppo import PPOConfig, PPOTrainer  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    set_seed(run["seed"])  # its trainer draws minibatches from numpy's global generator
    start = time.process_time()
    tokenizer = AutoTokenizer.from_pretrained(run["policy"], padding_side="left")
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # as TRL's examples do: it finds padding by its id
    prompts = load_dataset("json", data_files=run["train_prompts"], split="train", cache_dir=str(folder / "cache"))
    prompts = prompts.map(lambda row: {"input_ids": tokenizer(row["prompt"]).input_ids}, remove_columns=["prompt"])
    config = PPOConfig(
        output_dir=str(folder / "trl"),
        seed=run["seed"],
        **TRL_ON_CPU,
        num_sample_generations=0,
        learning_rate=run["lr"],
        warmup_steps=run["warmup_steps"],
        total_episodes=run["episodes"],
        # The batch as one microbatch: with more of them, and several minibatches, it takes fewer optimizer steps.
        per_device_train_batch_size=run["batch"],
        num_mini_batches=run["batch"] // run["minibatch"],
        local_rollout_forward_batch_size=run["batch"],
        num_ppo_epochs=run["epochs"],
        kl_coef=run["kl_coef"],
        response_length=run["response_tokens"],
        temperature=run["temperature"],
        stop_token="eos",
        missing_eos_penalty=run["missing_eos_penalty"],
    )
    lm = AutoModelForCausalLM.from_pretrained
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=lm(run["policy"], dtype=torch.float32),
        ref_model=lm(run["policy"], dtype=torch.float32),
        reward_model=load_classifier(run["reward"]),
        value_model=load_classifier(run["reward"]),
        train_dataset=prompts,
    )
    trainer.train()
    seconds = time.process_time() - start
    peak = peak_mb()
    trainer.save_model(str(folder / "model"))
    AutoTokenizer.from_pretrained(run["policy"]).save_pretrained(folder / "model")
    return {"seconds": seconds, "peak_mb": peak}


def load_classifier(path: str) -> Any:
    """The reward model with a head that gives the scores as our trainer uses them: mean 0 and deviation 1.

    `rlhf reward` writes mean and deviation of its training scores to the model's config, and TRL does not read them.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    mean, std = getattr(model.config, "score_mean", 0.0), getattr(model.config, "score_std", 1.0)
    head = torch.nn.Linear(model.score.in_features, 1)
    with torch.no_grad():
        head.weight.copy_(model.score.weight / std)
        head.bias.fill_(-mean / std)
    model.score = head
    return model


if __name__ == "__main__":
    file = Path(sys.argv[1])
    output, sys.stdout = sys.stdout, sys.stderr  # whatever the trainer prints goes to standard error
    print(json.dumps(train(json.loads(file.read_text(encoding="utf-8")), file.parent)), file=output)
