"""Mathematics shared by `tabular` and `rlhf`: returns, losses, KL divergences, distributions, schedules, statistics.

Pure functions over tensors (and three small KL controllers). Time is the last axis; masks are True on real steps.
May import torch, numpy, jaxtyping and the standard library, and nothing else of this project.
"""
