"""Train a policy with PPO: `accelerate launch scripts/train_ppo.py --config FILE --ppo.lr 1e-5`."""

from rlhf import PPOJob, PPOTrainer, parse
from rlhf.errors import report_user_errors
from rlhf.run.distributed import exit_launched_process, report_lost_processes
from rlhf.run.startup import prepare_libraries

if __name__ == "__main__":
    with report_user_errors(), report_lost_processes():
        prepare_libraries()
        job = parse(PPOJob)
        trainer = PPOTrainer(job)
        trainer.train()
        exit_launched_process(finished=trainer.is_finished)
