"""Data sets on their way into token ids: files to checked rows, text to ids, prompts to batches, and their order.

`datasets` reads and checks rows, `encoding` turns text and messages into token ids; `prompts`, `demonstrations` and
`preferences` hold the tokenised rows of PPO, supervised fine-tuning and reward modelling; `streams` shuffles. Mixtures
of data sets belong here.

May import: rlhf.config, rlhf.records, rlhf.errors.
"""
