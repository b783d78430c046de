"""Environments: small worlds given by a table, mazes, vector environments, normalisation, and environments by name.

Importing this package registers its environments with gymnasium under `tabular/`. May import `tabular.planning` and the
modules beside it (`compiled`, `history`, `text`); learners build on it, not the other way round.
"""

import gymnasium as gym

IDS = {
    "tabular/Maze-v0": ("tabular.envs.maze:Maze", {}),
    "tabular/MaskedMaze-v0": ("tabular.envs.maze:Maze", {"masked": True}),
    "tabular/MazePool-v0": ("tabular.envs.maze:MazePool", {}),
    "tabular/LineWorld-v0": ("tabular.envs.small:LineWorld", {}),
    "tabular/RandomWalk-v0": ("tabular.envs.small:RandomWalk", {}),
    "tabular/ShortCorridor-v0": ("tabular.envs.small:ShortCorridor", {}),
    "tabular/WindyGrid-v0": ("tabular.envs.small:WindyGrid", {}),
    "tabular/Gambler-v0": ("tabular.envs.gambler:Gambler", {}),
    "tabular/CarRental-v0": ("tabular.envs.car_rental:CarRental", {}),
    "tabular/BlackjackTable-v0": ("tabular.envs.blackjack:Blackjack", {}),
}
"""Gymnasium id -> class and options. Cliff, lake, taxi and the id `tabular/Blackjack-v0` are gymnasium's own."""

for env_id, (entry_point, options) in IDS.items():
    gym.register(env_id, entry_point=entry_point, kwargs=options)
