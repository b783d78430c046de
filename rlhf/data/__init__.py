"""Data sets on their way into token ids: files to checked rows, text to ids, prompts to batches, and their order.

`datasets` reads and checks rows, `encoding` tokenises, `prompts` holds tokenised prompts, `streams` shuffles. Mixtures
of data sets belong here.

May import: rlhf.config, rlhf.records, rlhf.errors.
"""
