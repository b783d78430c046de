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

from ppo_workload import END, FIRST_WORD, TRL_ON_CPU, WORKLOADS, Workload


def measure(folder: Path, work: Workload, updates: int, threads: int, lora_rank: int) -> dict[str, float]:
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

    microbatch = work.rows if work.microbatch is None else work.microbatch
    config = PPOConfig(
        output_dir=str(folder / "trl"),
        **TRL_ON_CPU,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        per_device_train_batch_size=microbatch,
        gradient_accumulation_steps=work.rows // microbatch,
        num_mini_batches=work.minibatches,
        num_ppo_epochs=work.epochs,
        local_rollout_forward_batch_size=work.rows,
        total_episodes=updates * work.rows,
        num_sample_generations=0,
        response_length=work.response,
        temperature=1.0,
        stop_token="eos" if work.ragged else None,
    )
    adapters = None
    if lora_rank:
        from peft import LoraConfig

        adapters = LoraConfig(r=lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
    if work.ragged:
        fix_lengths(work)
    PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=lm(folder / "policy"),
        ref_model=None if adapters else lm(folder / "policy"),
        reward_model=classifier(folder / "reward"),
        value_model=classifier(folder / "reward"),
        train_dataset=rows,
        callbacks=[Clock()],
        peft_config=adapters,
    ).train()
    seconds = [end - start for start, end in pairwise(stamps)]
    return {
        "seconds": statistics.median(seconds[1:]),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def fix_lengths(work: Workload) -> None:
    """Give TRL's responses the workload's lengths, and its prompts the order of their file.

    Its trainer has no seam for either: the functions that it calls are replaced in its module and in torch.
    """
    import torch
    from trl.experimental.ppo import ppo_trainer  # pyright: ignore[reportMissingImports]

    data_loader, generate, multinomial = ppo_trainer.DataLoader, ppo_trainer.batch_generation, torch.multinomial
    update = -1
    position = 0

    def load_in_order(*args: Any, **options: Any) -> Any:
        return data_loader(*args, **(options | {"shuffle": False}))

    def generate_next_update(*args: Any, **options: Any) -> Any:
        nonlocal update, position
        update += 1
        position = 0
        return generate(*args, **options)

    def draw(probabilities: Any, num_samples: int, **options: Any) -> Any:
        nonlocal position
        tokens = multinomial(probabilities, num_samples, **options)
        position += 1
        lengths = torch.tensor([response for _, response in work.lengths(update)])
        ends = (lengths == position) & (lengths < work.response)
        tokens[tokens == END] = FIRST_WORD
        tokens[ends] = END
        return tokens

    ppo_trainer.DataLoader = load_in_order
    ppo_trainer.batch_generation = generate_next_update
    torch.multinomial = draw


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", choices=list(WORKLOADS))
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lora", type=int, default=0, metavar="RANK", help="the policy's adapters; the critic is full")
    parser.add_argument("--worker", type=Path, required=True, help="folder that benchmark_ppo.py has written")
    options = parser.parse_args()
    output, sys.stdout = sys.stdout, sys.stderr  # whatever the trainer prints goes to standard error
    result = measure(options.worker, WORKLOADS[options.workload], options.updates, options.threads, options.lora)
    print(json.dumps(result), file=output)
