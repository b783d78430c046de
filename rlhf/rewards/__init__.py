"""Sources of scores: functions, rules, reward models and adapters, servers, their weighted mixes, and penalties.

`sources` defines what a source is and opens those that a config names; `functions`, `rules`, `models`, `adapters` and
`servers` each hold a kind of source, and `serving` is the other side of `servers`; `mixes` sums several; `results` has
what a source may return; `failures` and `penalties` apply a run's limits and penalties.

May import: rlhf.data, rlhf.models, rlhf.config, rlhf.records, rlhf.errors.
"""
