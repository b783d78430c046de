"""Train a policy with PPO: `accelerate launch scripts/train_ppo.py --config FILE --ppo.lr 1e-5`."""

from rlhf import PPOJob, PPOTrainer, parse
from rlhf.errors import end_at_once, reported
from rlhf.run.progress import quiet

if __name__ == "__main__":
    with reported():
        quiet()
        job = parse(PPOJob)
        trainer = PPOTrainer(job)
        trainer.train()
        end_at_once()
