"""Planning with a known table of transitions: Markov decision processes and dynamic programming.

Imports numpy, scipy, `tabular.core.checks` and `tabular.compiled` only: environments and learners build on it, not the
other way round.
"""
