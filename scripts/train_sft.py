"""Fine-tune a language model, or train a new one: `accelerate launch scripts/train_sft.py --config FILE`."""

from rlhf import SFTJob, parse, train_sft
from rlhf.errors import end_at_once, reported
from rlhf.run.progress import quiet

if __name__ == "__main__":
    with reported():
        quiet()
        job = parse(SFTJob)
        train_sft(job)
        end_at_once()
