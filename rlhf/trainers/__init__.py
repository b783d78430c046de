"""Trainers: PPO, supervised fine-tuning and reward modelling.

`ppo` is the PPO loop, from `setup` (data and models), `preflight` (what a run will do, and its memory), `advantages`
(from scores to advantages), `loss` and `update` (the optimisation), `value_pretraining` (the critic before the first
step) and `ptx` (text mixed into the updates). `sft` and `reward_model` share the loop in `supervised`.

May import: everything in `rlhf` but `rlhf.demo`, `rlhf.cli` and `rlhf.report` (PPO's last act is to write a report:
`rlhf.report.report.write_report`, the one exception), and `tabular.core`.
"""
