"""Sources of scores: functions, rules, reward models and adapters, their weighted mixes, and penalties.

`sources` defines what a source is and opens those that a config names; `functions`, `rules`, `models` and `adapters`
each hold a kind of source; `mixes` sums several; `results` has what a source may return; `failures` and `penalties`
apply a run's limits and penalties.

May import: rlhf.data, rlhf.models, rlhf.config, rlhf.records, rlhf.errors.
"""
