"""Learning with tables: bandits, temporal-difference and Monte Carlo control, Dyna-Q, prediction, learning from logs.

May import `tabular.core`, `tabular.planning`, `tabular.envs` and the modules beside them (`compiled`, `history`,
`text`); never `tabular.deep`, `tabular.experiments` or `tabular.cli`.
"""
