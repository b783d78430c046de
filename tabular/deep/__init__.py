"""Deep reinforcement learning: DQN, REINFORCE, actor-critic, A2C, natural policy gradient, TRPO and PPO.

One file per algorithm, all with the same skeleton, so that a diff of two files is the difference of two algorithms.
They share networks, policies, trajectories, the replay buffer and saved state. `fast/` holds the same computations
written for speed; `fast=False` in an algorithm's settings selects the plain PyTorch of these files.

May import `tabular.core`, `tabular.envs` and `tabular.history`.
"""
