"""Train a policy on preference pairs by DPO: `accelerate launch scripts/train_dpo.py --config FILE`."""

from rlhf import DPOJob, parse, train_dpo
from rlhf.errors import report_user_errors
from rlhf.run.distributed import exit_launched_process, report_lost_processes
from rlhf.run.startup import prepare_libraries

if __name__ == "__main__":
    with report_user_errors(), report_lost_processes():
        prepare_libraries()
        job = parse(DPOJob)
        exit_launched_process(finished=train_dpo(job))
