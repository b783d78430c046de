"""`tabular run`, `compare` and `watch`."""

import json

import gymnasium as gym
import numpy as np
import pytest

from tabular.experiments import pictures, runs

PICTURES = {"learning_curve.png", "metrics.png", "policy.png", "visits.png", "exact.png", "episode.gif", "episode.png"}


def test_run(cli, tmp_path):
    argv = (
        "run", "q_learning", "--env", "CliffWalking-v1", "--seeds", "3", "--steps", "20000", "--alpha", "0.5",
        "--eval-episodes", "1",
    )  # fmt: skip
    code, out, err = cli(*argv)
    assert (code, err) == (0, "")
    assert "q_learning on CliffWalking-v1, 20000 steps, 3 seeds" in out
    assert "│ greedy return                     │ -13 " in out
    assert "│ training episode length, last 100 │ " in out
    assert "greedy: means of 1 episode per seed" in out
    folder = tmp_path / "runs" / "q_learning-CliffWalking-v1"
    assert f"written: {folder.relative_to(tmp_path)}" in out
    assert {file.name for file in folder.iterdir()} == {
        *PICTURES, "config.yaml", "summary.json", "seed_0", "seed_1", "seed_2"
    }  # fmt: skip
    assert json.loads((folder / "summary.json").read_text())["success rate"]["value"] == 1
    config = runs.read_config(folder)
    assert config.settings == {"alpha": 0.5}
    assert config.evaluate_every == 2000

    before = (folder / "summary.json").read_bytes()
    assert cli(*argv)[0] == 0  # again: a new folder
    again = tmp_path / "runs" / "q_learning-CliffWalking-v1-2"
    assert (again / "summary.json").read_bytes() == before  # the same seeds are the same run
    code, _, err = cli(*argv, "--output", str(folder))
    assert code == 2
    assert "exists already: take another --output, or continue it with --resume" in err


def test_seed_is_the_first_of_the_seeds(cli, tmp_path):
    argv = ("run", "sarsa", "--env", "maze", "--steps", "500", "--seed", "7", "--seeds", "2", "--eval-episodes", "1")
    assert cli(*argv, "--evaluate-every", "500")[0] == 0
    assert sorted(f.name for f in (tmp_path / "runs" / "sarsa-Maze-v0").glob("seed_*")) == ["seed_7", "seed_8"]


def test_compare(cli, tmp_path):
    code, out, _ = cli(
        "compare", "q_learning", "n_step_sarsa", "--env", "CliffWalking-v1", "--steps", "5000", "--seeds", "2",
        "--eval-episodes", "1", "--n", "2", "--gamma", "1", "--output", "both",
    )  # fmt: skip
    assert code == 0
    assert "q_learning" in out
    assert {"q_learning", "n_step_sarsa", "comparison.yaml", "learning_curves.png", "metrics.png"} == {
        f.name for f in (tmp_path / "both").iterdir()
    }
    assert runs.read_config(tmp_path / "both" / "q_learning").settings == {"gamma": 1}  # n is not one of its settings
    assert runs.read_config(tmp_path / "both" / "n_step_sarsa").settings == {"gamma": 1, "n": 2}
    code, _, err = cli("compare", "q_learning", "sarsa", "--env", "maze", "--output", "both")
    assert (code, err) == (
        2, "error: both exists already: take another --output, or continue it with `run --resume both`\n"
    )  # fmt: skip


def test_resume(cli, tmp_path):
    argv = ("run", "q_learning", "--env", "FrozenLake-v1", "--steps", "4000", "--seeds", "2", "--eval-episodes", "1")
    assert cli(*argv, "--output", "whole")[0] == 0
    config = runs.read_config(tmp_path / "whole")
    runs.create(tmp_path / "parts", config)
    learner = config.make_learner(0)
    for _ in range(3):
        learner.advance(config.evaluate_every)
    runs.save(tmp_path / "parts" / "seed_0", learner, [])
    code, _, _ = cli("run", "--resume", "parts")
    assert code == 0
    for name in ("episodes.csv", "metrics.jsonl"):
        for seed in (0, 1):
            parts = [tmp_path / folder / f"seed_{seed}" / name for folder in ("whole", "parts")]
            assert parts[0].read_bytes() == parts[1].read_bytes()
    code, _, err = cli("run", "q_learning", "--resume", "parts")
    assert code == 2
    assert "--resume takes everything but --steps from the run's folder" in err
    assert "is no run folder" in cli("run", "--resume", "nowhere")[2]


def test_resuming_a_comparison_trains_all_its_runs(cli, tmp_path, monkeypatch):
    argv = ("compare", "sarsa", "q_learning", "--env", "maze", "--steps", "2000", "--seeds", "2")
    argv = (*argv, "--eval-episodes", "1", "--alpha", "0.5")
    assert cli(*argv, "--output", "whole")[0] == 0

    original, saved = runs.save, []

    def interrupt_the_second_algorithm(folder, *rest):
        if folder.parent.name == "q_learning":
            raise KeyboardInterrupt
        saved.append(folder)
        original(folder, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "save", interrupt_the_second_algorithm)
        code, _, err = cli(*argv, "--output", "parts")
    assert code == 130
    assert "`tabular run --resume parts` continues from the last checkpoint" in err
    assert len(saved) == 20

    code, out, _ = cli("run", "--resume", "parts")
    assert code == 0
    assert out.index("sarsa") < out.index("q_learning")  # in the order of the call
    files = sorted(file.relative_to(tmp_path / "whole") for file in (tmp_path / "whole").rglob("*.*"))
    assert files == sorted(file.relative_to(tmp_path / "parts") for file in (tmp_path / "parts").rglob("*.*"))
    for file in files:
        if file.suffix in (".csv", ".json", ".jsonl"):
            assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()

    (tmp_path / "parts" / "comparison.yaml").write_text("algorithms: 3\n")
    assert "comparison.yaml is damaged" in cli("run", "--resume", "parts")[2]


@pytest.mark.parametrize("observation", ["state", "image"])
def test_a_network_is_evaluated_in_each_state_of_a_grid(observation, tmp_path, monkeypatch):
    """The agent goes right in columns 1 and 2, else down, and values a state by its column."""

    class Agent:
        def column(self, observed):
            return np.argwhere(observed[..., 2] == 255)[0][1] if np.ndim(observed) else env.grid.positions[observed][1]

        def act(self, observed, mask):
            return 1 if self.column(observed) < 3 else 2

        def value(self, observed, mask):
            return float(self.column(observed))

    options = {"layout": "#####\n#S..#\n#.#.#\n#..G#\n#####\n", "observation": observation}
    config = runs.RunConfig("dqn", "tabular/Maze-v0", options)
    env, drawn = config.make_env().unwrapped, []
    monkeypatch.setattr(pictures, "grid_values", lambda *args, **rest: drawn.append(args))
    pictures.draw_policy(tmp_path, config, Agent())
    ((file, grid, values, actions, reachable, title),) = drawn
    assert file.name == "policy.png"
    assert title == "dqn on tabular/Maze-v0, seed 0: values and greedy policy"
    places = [place for place, is_reachable in zip(grid.positions, reachable, strict=True) if is_reachable]
    assert places == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)]  # all but the goal
    np.testing.assert_array_equal(values[reachable], [column for _, column in places])
    np.testing.assert_array_equal(actions[reachable].argmax(axis=1), [1 if column < 3 else 2 for _, column in places])
    assert (actions[reachable].sum(axis=1) == 1).all()


def test_the_probabilities_of_a_stochastic_policy_are_drawn(tmp_path, monkeypatch):
    config, drawn = runs.RunConfig("ppo", "tabular/Maze-v0"), []
    learner = config.make_learner(0)
    monkeypatch.setattr(pictures, "grid_values", lambda *args, **rest: drawn.append((*args, rest["probabilities"])))
    pictures.draw_policy(tmp_path, config, learner)
    ((_, _, _, _, reachable, title, chances),) = drawn
    assert title == "ppo on tabular/Maze-v0, seed 0: values and most probable actions"
    assert (chances[reachable] >= 0.25).all()  # the largest of four
    assert (chances[reachable] < 1).all()


def test_one_seed_has_no_interval_and_narrow_screens_show_all_names(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    names = ("q_learning", "sarsa", "expected_sarsa", "double_q_learning", "monte_carlo", "n_step_sarsa")
    argv = ("--env", "CliffWalking-v1", "--steps", "300", "--seeds", "1", "--eval-episodes", "1")
    code, out, _ = cli("compare", *names, *argv)
    assert code == 0
    assert "1 seed" in out
    assert "1 seeds" not in out
    assert "one seed: no interval" in out
    assert "bootstrap" not in out
    assert all(f"┃ {name} " in out for name in names)
    assert "episode.gif: cut after 200 steps, the greedy policy had not ended" in out
    assert max(len(line) for line in out.splitlines() if "┃" in line) <= 80


def test_watch(cli, tmp_path):
    cli(
        "run",
        "q_learning",
        "--env",
        "maze",
        "--steps",
        "20000",
        "--evaluate-every",
        "20000",
        "--output",
        "agent",
    )
    code, out, _ = cli("watch", "agent", "--delay", "0")
    assert code == 0
    assert "step 1: action " in out
    assert "return 1 in 14 steps: terminated" in out
    assert "@.#....#." in out  # the start
    assert cli("watch", "agent", "--gif", "film.gif")[0] == 0
    assert (tmp_path / "film.gif").read_bytes()[:3] == b"GIF"
    assert "has the seeds 0, not 5" in cli("watch", "agent", "--seed", "5")[2]
    assert "film.gif exists already" in cli("watch", "agent", "--gif", "film.gif")[2]


def test_watching_an_environment_without_pictures(cli):
    cli("run", "monte_carlo", "--env", "Blackjack-v1", "--steps", "2000", "--output", "agent")
    code, out, _ = cli("watch", "agent", "--delay", "0")
    assert code == 0
    assert "observation [" in out


def test_an_environment_without_pictures_can_be_run(cli, tmp_path):
    code, _, _ = cli("run", "monte_carlo", "--env", "Blackjack-v1", "--steps", "2000")
    assert code == 0
    folder = tmp_path / "runs" / "monte_carlo-Blackjack-v1"
    assert {"learning_curve.png", "metrics.png"} == {file.name for file in folder.glob("*.*g*")}


def test_without_matplotlib_only_the_pictures_are_missing(cli, tmp_path, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, _ = cli(
        "run", "q_learning", "--env", "maze", "--steps", "1000", "--evaluate-every", "1000", "--output", "run"
    )
    assert code == 0
    assert out.count("no picture: pictures need matplotlib: pip install 'tabular-rlhf[demo]'") == 1
    assert (tmp_path / "run" / "summary.json").is_file()
    assert not (tmp_path / "run" / "policy.png").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["q_lerning", "--env", "maze"], "unknown algorithm 'q_lerning': did you mean q_learning"),
        (["q_learning", "--env", "CliffWalking-v0"], "did you mean CliffWalking-v1"),
        (["q_learning", "--env", "Taxi-v3"], "did you mean Taxi-v4?"),
        (["q_learning", "--env", "mase"], "did you mean tabular/Maze-v0?"),
        (["q_learning"], "--env is missing, for instance --env CliffWalking-v1"),
        ([], "`tabular run` needs an ALGORITHM"),
        (
            ["q_learning", "--env", "maze", "--alhpa", "1"],
            "unknown option --alhpa for q_learning: did you mean --alpha?",
        ),
        (["q_learning", "--env", "maze", "--n", "1"], "unknown option --n for q_learning"),
        (["q_learning", "--env", "maze", "--alpha", "2"], "alpha is 2, but must be between 0 and 1"),
        (["q_learning", "--env", "maze", "--alpha", "big"], "--alpha is 'big', but must be a number"),
        (["q_learning", "--env", "maze", "--env.sise", "9"], "has no option --env.sise: did you mean size?"),
        (
            ["q_learning", "--env", "maze", "--env.size", "8"],
            "the maze is 8 x 8, but its sides must be odd and at least",
        ),
        (["q_learning", "--env", "maze", "--steps", "0"], "--steps is '0', but must be a whole number from 1"),
        (["q_learning", "--env", "maze", "--seed", "-1"], "--seed is '-1', but must be a whole number from 0"),
    ],
)
def test_mistakes_end_before_a_folder_is_made(cli, tmp_path, argv, message):
    code, out, err = cli("run", *argv)
    assert code == 2
    assert message in err
    assert out == ""
    assert not list(tmp_path.iterdir())


def test_a_continuous_action_space_names_the_algorithms_that_fit(cli):
    code, _, err = cli("run", "q_learning", "--env", "Pendulum-v1")
    assert code == 2
    assert "q_learning needs discrete observations and actions, but Pendulum-v1 has observations Box" in err
    assert err.endswith("algorithms that fit: reinforce, actor_critic, a2c, npg, trpo, ppo\n")
    err = cli("run", "sarsa", "--env", "CartPole-v1")[2]
    assert err.endswith("algorithms that fit: dqn, reinforce, actor_critic, a2c, npg, trpo, ppo\n")


def test_no_success_rate_where_none_is_defined(cli, tmp_path):
    """The summary leaves the success rate out."""
    cli("run", "monte_carlo", "--env", "Blackjack-v1", "--steps", "1000", "--output", "run")
    assert "success rate" not in json.loads((tmp_path / "run" / "summary.json").read_text())
    assert gym.make("Blackjack-v1").spec is not None


class Parts(gym.Env):
    """A cart pole whose observation has two parts."""

    def __init__(self):
        self.pole = gym.make("CartPole-v1")
        box = self.pole.observation_space
        self.observation_space = gym.spaces.Dict(
            {"cart": gym.spaces.Box(box.low[:2], box.high[:2]), "pole": gym.spaces.Box(box.low[2:], box.high[2:])}
        )
        self.action_space = self.pole.action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        obs, info = self.pole.reset(seed=seed)
        return {"cart": obs[:2], "pole": obs[2:]}, info

    def step(self, action):
        obs, *rest = self.pole.step(action)
        return {"cart": obs[:2], "pole": obs[2:]}, *rest


@pytest.mark.parametrize("algorithm", ["dqn", "ppo"])
def test_networks_get_the_parts_of_an_observation_as_one_vector(cli, tmp_path, monkeypatch, algorithm):
    """They learn the same as from the vector itself."""
    for name, make in (("Parts", Parts), ("Whole", lambda: gym.make("CartPole-v1").unwrapped)):
        monkeypatch.setitem(gym.registry, f"tests/{name}-v0", gym.envs.registration.EnvSpec(f"tests/{name}-v0", make))
    argv = ("run", algorithm, "--steps", "3000", "--eval-episodes", "2")
    for name in ("Parts", "Whole"):
        options = () if name == "Parts" else ("--env.max_episode_steps", "500")
        assert cli(*argv, "--env", f"tests/{name}-v0", *options, "--output", name)[0] == 0
    parts, whole = ((tmp_path / name / "seed_0" / "episodes.csv").read_bytes() for name in ("Parts", "Whole"))
    assert parts == whole
    assert cli("watch", "Parts", "--delay", "0")[0] == 0
    assert cli("evaluate", "Parts", "--episodes", "1", "--noise", "0.1")[0] == 0
    assert cli("run", algorithm, "--env", "Blackjack-v1", "--steps", "1100", "--eval-episodes", "1")[0] == 0


def test_divergence_ends_with_a_reason(cli, tmp_path):
    argv = ("run", "ppo", "--env", "CartPole-v1", "--steps", "512", "--lr", "1e30", "--output", "run")
    code, _, err = cli(*argv)
    assert code == 2
    assert "learning has diverged: the gradient's norm is" in err
    assert "use a smaller learning rate" in err
