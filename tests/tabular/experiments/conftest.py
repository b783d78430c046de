"""Fixtures of the tests of experiments."""

import gymnasium as gym
import pytest

from tabular.experiments import plots, value_plots
from tabular.td.control import ControlConfig, QLearning


@pytest.fixture(scope="session")
def cliff():
    """Makes the cliff."""
    return lambda **options: gym.make("CliffWalking-v1", **options)


@pytest.fixture(scope="session")
def learner(cliff):
    """Q-learning on the cliff after 20,000 steps."""
    learner = QLearning(cliff, ControlConfig(), 0)
    learner.advance(20_000)
    return learner


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, each with its axes."""
    figures = []
    for module in (plots, value_plots):
        original = module.new_figure

        def record(*args, original=original, **size):
            figures.append(original(*args, **size))
            return figures[-1]

        monkeypatch.setattr(module, "new_figure", record)
    return figures
