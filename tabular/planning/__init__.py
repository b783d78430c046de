"""Planning with a known table of transitions: Markov decision processes and dynamic programming.

Imports numpy, scipy and `tabular.compiled` only: environments and learners build on it, not the other way round.
"""
