"""Pictures of one episode, as an animation or as a strip.

pillow comes with the `demo` extra; without it the functions that write files raise ValueError.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from tabular.envs.arrays import time_limit
from tabular.envs.table import Grid, grid_of

WIDEST = 2400
"""Pixels of a strip of pictures; a wider one is scaled down."""

NO_FRAMES = "this environment draws no pictures (render_mode rgb_array)"


def episode_frames(learner: Any, make_env: Callable[..., gym.Env], seed: int, max_steps: int = 200) -> list[np.ndarray]:
    """The pictures [H, W, 3] of one episode of the greedy policy, at most `max_steps` of it.

    Grid worlds are drawn by this package: gymnasium's own pictures of them need pygame.

    Raises:
        ValueError: the environment draws no pictures.
    """
    return film_episode(learner, make_env, seed, max_steps)[0]


def film_episode(
    learner: Any, make_env: Callable[..., gym.Env], seed: int, max_steps: int = 200
) -> tuple[list[np.ndarray], bool]:
    """The same pictures, and whether the episode terminated within them."""
    env = make_env()
    grid = grid_of(env)
    if grid is None and "rgb_array" not in env.metadata.get("render_modes", []):
        raise ValueError(NO_FRAMES)
    try:
        env = env if grid is not None else make_env(render_mode="rgb_array")
        observation, info = env.reset(seed=seed)
        frames = [_frame(env, grid)]
    except Exception as error:  # environments raise many types when they cannot draw
        raise ValueError(f"{NO_FRAMES}: {error}") from error
    terminated = False
    for _ in range(min(max_steps, time_limit(env) or max_steps)):
        observation, _, terminated, truncated, info = env.step(learner.act(observation, info.get("action_mask")))
        frames.append(_frame(env, grid))
        if terminated or truncated:
            break
    env.close()
    return frames, bool(terminated)


def _frame(env: Any, grid: Grid | None) -> np.ndarray:
    frame = np.asarray(env.render() if grid is None else grid.pixels(int(env.unwrapped.s)))
    if frame.ndim != 3:
        raise ValueError(f"render() gave {frame.shape}")
    return frame


def save_gif(file: Path, frames: Sequence[np.ndarray], fps: int = 8) -> None:
    """An animation of pictures [H, W, 3]."""
    image = _pillow()
    first, *others = [image.fromarray(frame) for frame in frames]
    first.save(file, save_all=True, append_images=others, duration=1000 // fps, loop=0)


def save_strip(file: Path, frames: Sequence[np.ndarray], count: int = 8) -> None:
    """At most `count` pictures [H, W, 3], evenly through the episode, side by side in at most `WIDEST` pixels."""
    chosen = [frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, count).astype(int))]
    gap = np.full((len(chosen[0]), 4, 3), 255, dtype=np.uint8)
    parts = [part for frame in chosen for part in (frame, gap)][:-1]
    strip = _pillow().fromarray(np.concatenate(parts, axis=1))
    strip.thumbnail((WIDEST, strip.height))
    strip.save(file)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError("pictures need pillow: pip install 'tabular-rlhf[demo]'") from error
    return Image
