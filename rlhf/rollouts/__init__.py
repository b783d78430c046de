"""Rollouts: sampling responses, computing what PPO needs of their tokens, scoring them.

`sampling` is the sampling engine (token by token over a growing key-value cache), `stopping` decides where a response
ends, `stages` are the three stages of a rollout on one process, `collector` runs them on all processes, `external`
makes a rollout of text that a custom loop brings, `checks` refuses rollouts that PPO cannot train on.

May import: `rlhf.errors`, `rlhf.records`, `rlhf.config`, `rlhf.data`, `rlhf.models`, `rlhf.rewards`, `rlhf.run`,
`tabular.core`.
"""
