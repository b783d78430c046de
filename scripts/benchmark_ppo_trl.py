"""TRL 1.12's PPOTrainer on the work of `benchmark_ppo.py`, which starts it with the python that has TRL."""

import argparse
import json
import resource
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from ppo_workload import WORKLOADS, Workload


def measure(folder: Path, work: Workload, updates: int, threads: int) -> dict[str, float]:
    import torch
    from datasets import load_dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # TRL tells padding from the end token by its id
    rows = load_dataset("json", data_files=str(folder / "prompts.jsonl"), split="train")
    rows = rows.map(lambda row: {"input_ids": tokenizer(row["prompt"]).input_ids}, remove_columns=["prompt"])
    # One batch more than is trained on: accelerate ends a data set with an optimizer step of its own.
    rows = rows.select([*range(len(rows)), *range(work.rows)])
    lm = AutoModelForCausalLM.from_pretrained
    classifier = AutoModelForSequenceClassification.from_pretrained
    stamps = [0.0]

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            stamps[0] = time.process_time()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            stamps.append(time.process_time())

    config = PPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        per_device_train_batch_size=work.rows,
        gradient_accumulation_steps=1,
        num_mini_batches=work.minibatches,
        num_ppo_epochs=work.epochs,
        local_rollout_forward_batch_size=work.rows,
        total_episodes=updates * work.rows,
        num_sample_generations=0,
        response_length=work.response,
        temperature=1.0,
        stop_token=None,
    )
    PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=lm(folder / "policy"),
        ref_model=lm(folder / "policy"),
        reward_model=classifier(folder / "reward"),
        value_model=classifier(folder / "reward"),
        train_dataset=rows,
        callbacks=[Clock()],
    ).train()
    seconds = [end - start for start, end in pairwise(stamps)]
    return {
        "seconds": statistics.median(seconds[1:]),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", choices=list(WORKLOADS))
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", type=Path, required=True, help="folder that benchmark_ppo.py has written")
    options = parser.parse_args()
    output, sys.stdout = sys.stdout, sys.stderr  # whatever the trainer prints goes to standard error
    result = measure(options.worker, WORKLOADS[options.workload], options.updates, options.threads)
    print(json.dumps(result), file=output)
