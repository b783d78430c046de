"""Experiments: the algorithms by name, runs over seeds and their folders, evaluation, statistics, pictures.

May import everything below it (`planning`, `envs`, `td`, `deep`); only the command line builds on it.
"""
