"""Train a reward model on preference pairs: `accelerate launch scripts/train_reward.py --config FILE`."""

from rlhf import RewardJob, parse, train_reward_model
from rlhf.errors import end_at_once, reported
from rlhf.run.progress import quiet

if __name__ == "__main__":
    with reported():
        quiet()
        job = parse(RewardJob)
        train_reward_model(job)
        end_at_once()
