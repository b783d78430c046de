"""Fine-tune a language model, or train a new one: `accelerate launch scripts/train_sft.py --config FILE`."""

from rlhf import SFTJob, parse, train_sft
from rlhf.errors import report_user_errors
from rlhf.run.distributed import exit_launched_process, report_lost_processes
from rlhf.run.startup import prepare_libraries

if __name__ == "__main__":
    with report_user_errors(), report_lost_processes():
        prepare_libraries()
        job = parse(SFTJob)
        exit_launched_process(finished=train_sft(job))
