"""Evaluation on held-out prompts: a policy's responses, their scores, and comparisons with the start of training.

`responses` samples and scores, `summary` computes statistics, `command` is `rlhf evaluate`, `tables` formats results
for the terminal.

May import: rlhf.rollouts, rlhf.rewards, rlhf.run, rlhf.data, rlhf.models, rlhf.config, rlhf.records, rlhf.errors.
"""
