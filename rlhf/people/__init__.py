"""`rlhf compare`: people compare two answers in a local page; what they prefer trains a reward model.

`sources` makes the pairs, `store` keeps pairs and answers in SQLite, `server` shows them in the page of `page/`,
`agreement` and `win_rates` are the statistics of `summary`, `command` is `rlhf compare`.

May import: rlhf.rollouts, rlhf.rewards, rlhf.run, rlhf.data, rlhf.models, rlhf.config, rlhf.records, rlhf.errors.
"""
