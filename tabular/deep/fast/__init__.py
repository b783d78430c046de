"""The computations of `tabular.deep` written for speed, selected by the setting `fast` of each algorithm.

In a network of two small layers on a CPU most of the time is spent between PyTorch's operations, not in them. Here a
whole MLP is one node of the graph with its passes written in numpy (`mlp.py`), all weights are one vector that the
optimizer updates in one operation (`optimizers.py`), and DQN's gradient steps need no graph at all (`dqn.py`). Tests
hold each of them to the plain PyTorch version.

May import torch and numpy, and the records and networks of `tabular.deep` (not its algorithms).
"""
