"""Train a reward model on preference pairs: `accelerate launch scripts/train_reward.py --config FILE`."""

from rlhf import RewardJob, parse, train_reward_model
from rlhf.errors import report_user_errors
from rlhf.run.distributed import exit_launched_process, report_lost_processes
from rlhf.run.startup import prepare_libraries

if __name__ == "__main__":
    with report_user_errors(), report_lost_processes():
        prepare_libraries()
        job = parse(RewardJob)
        exit_launched_process(finished=train_reward_model(job))
