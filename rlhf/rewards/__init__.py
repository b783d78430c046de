"""Sources of scores: Python functions, reward models and reward adapters, and the rules applied to their scores.

`sources` defines what a source is and opens the one that a config names; `functions`, `models` and `adapters` each
hold a kind of source; `rules` applies penalties. Mixtures of sources and reward servers belong here.

May import: rlhf.data, rlhf.models, rlhf.config, rlhf.records, rlhf.errors.
"""
