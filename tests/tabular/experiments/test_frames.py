import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

from tabular.experiments import frames


def test_animations_and_strips(tmp_path, cliff, learner):
    episode = frames.episode_frames(learner, cliff, seed=0)
    assert len(episode) == 14  # 13 steps
    frames.save_gif(tmp_path / "e.gif", episode)
    frames.save_strip(tmp_path / "e.png", episode, count=4)
    with Image.open(tmp_path / "e.gif") as film:
        assert film.n_frames == 14
    height, width, _ = episode[0].shape
    with Image.open(tmp_path / "e.png") as strip:
        assert strip.size == (4 * width + 3 * 4, height)


def test_film_episode_returns_whether_the_episode_ended(cliff, learner):
    assert frames.film_episode(learner, cliff, seed=0)[1]
    episode, ended = frames.film_episode(learner, cliff, seed=0, max_steps=5)
    assert (len(episode), ended) == (6, False)


def test_a_strip_of_wide_pictures_is_scaled_down(tmp_path):
    frames.save_strip(tmp_path / "e.png", [np.zeros((600, 980, 3), dtype=np.uint8)] * 8)
    with Image.open(tmp_path / "e.png") as strip:
        assert strip.width == frames.WIDEST


@pytest.mark.filterwarnings("error")
def test_no_warning_where_nothing_can_be_drawn(learner):
    class Silent(gym.Env):
        metadata = {"render_modes": []}  # noqa: RUF012
        calls: list = []  # noqa: RUF012

    def make(**options):
        Silent.calls.append(options)
        return Silent()

    with pytest.raises(ValueError, match="draws no pictures"):
        frames.episode_frames(learner, make, seed=0)
    assert Silent.calls == [{}]


def test_environments_without_pictures(learner):
    with pytest.raises(ValueError, match="draws no pictures"):
        frames.episode_frames(learner, lambda **options: gym.make("Blackjack-v1", **options), seed=0)
