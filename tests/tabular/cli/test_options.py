"""The grammar of the command line: options, config files, settings, options of environments."""

import pytest

from tabular.cli.options import CommandParser, count, fraction, fractions, seed, seed_count, whole
from tabular.core.errors import UserError
from tabular.experiments import runs


@pytest.fixture
def parser():
    parser = CommandParser("run", "train an algorithm")
    parser.add_argument("algorithm", nargs="?")
    parser.add_argument("--env")
    parser.add_argument("--steps", type=count, default=100)
    parser.add_argument("--seeds", type=seed_count, default=1)
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--evaluate_every", type=count)
    return parser


def read(parser, *argv):
    return parser.read(argv, settings=True, env_options=True)


def test_both_spellings_and_any_order(parser):
    one = read(parser, "sarsa", "--env", "maze", "--evaluate-every", "5", "--initial-q", "-1", "--env.size", "9")
    other = read(parser, "--initial_q=-1", "--env.size=9", "--evaluate_every=5", "sarsa", "--env=maze")
    assert one == other
    assert one.values["algorithm"] == "sarsa"
    assert one.values["evaluate_every"] == 5
    assert one.explicit == {"algorithm", "env", "evaluate_every"}
    assert (one.settings, one.env_options) == ({"initial_q": "-1"}, {"size": "9"})


def test_later_files_win_and_options_win_over_files(parser, tmp_path):
    (tmp_path / "one.yaml").write_text("algorithm: sarsa\nenv: maze\nsteps: 7\nalpha: 0.5\nenv.size: 9\n")
    (tmp_path / "two.yaml").write_text("steps: 8\nalpha: 1e-2\nhidden: [64]\nflag: true\nlimit: null\n")
    options = read(parser, "--alpha", "0.25", "--config", "one.yaml", "--config=two.yaml", "--evaluate_every", "3")
    assert options.values == {
        "algorithm": "sarsa", "env": "maze", "steps": 8, "seeds": 1, "seed": 0, "evaluate_every": 3
    }  # fmt: skip
    assert options.settings == {"alpha": "0.25", "hidden": "(64,)", "flag": "true", "limit": "none"}
    assert options.env_options == {"size": "9"}
    assert read(parser, "--config", "one.yaml", "q_learning").values["algorithm"] == "q_learning"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "must hold options such as `alpha: 0.5`, got list"),
        ("a: [1", "is not valid YAML: while parsing"),
        ("steps: none", "--steps is 'none', but must be a whole number from 1"),
        ("seeds: [0, 2]", "seeds must be a number or successive numbers, got [0, 2]"),
        ("env: {id: maze}", "env holds a section"),
    ],
)
def test_config_files_that_cannot_be_used(parser, tmp_path, content, message):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(UserError) as error:
        read(parser, "--config", "c.yaml")
    assert message in str(error.value)


def test_settings_where_a_command_takes_none(parser):
    with pytest.raises(UserError, match=r"unknown option --stps: did you mean --steps\?"):
        parser.read(["--stps", "3"])
    with pytest.raises(UserError, match=r"unknown option --env\.size"):
        parser.read(["--env.size", "3"])


def test_numbers():
    assert (whole("100_000"), whole("1e5"), whole("2.5e1")) == (100_000, 100_000, 25)
    assert fractions("0,0.5,1") == (0, 0.5, 1)
    for parse, text in ((whole, "1.5"), (whole, "1e-1"), (whole, "x"), (fraction, "1.1"), (seed_count, "10001")):
        with pytest.raises(Exception, match=r"is .* but must be"):
            parse(text)


def test_a_run_is_repeated_from_its_config(cli, tmp_path):
    argv = ("run", "q_learning", "--env", "maze", "--env.size", "5", "--alpha", "0.5", "--steps", "300", "--seed", "3")
    assert cli(*argv, "--seeds", "2", "--eval_episodes", "2", "--output", "first")[0] == 0
    assert cli("run", "--config", "first/config.yaml", "--output", "second")[0] == 0
    assert (tmp_path / "first" / "config.yaml").read_bytes() == (tmp_path / "second" / "config.yaml").read_bytes()
    assert (tmp_path / "first" / "summary.json").read_bytes() == (tmp_path / "second" / "summary.json").read_bytes()


def test_a_prediction_is_repeated_from_its_config(cli, tmp_path):
    argv = ("td", "n_step", "--env", "RandomWalk", "--env.n_states", "7", "--n", "2", "--seeds", "2", "--episodes", "3")
    assert cli("predict", *argv, "--output", "first")[0] == 0
    assert cli("predict", "--config", "first/config.yaml", "--output", "second")[0] == 0
    assert (tmp_path / "first" / "errors.csv").read_bytes() == (tmp_path / "second" / "errors.csv").read_bytes()


def test_a_finished_run_and_comparison_are_extended(cli, tmp_path):
    argv = ("--env", "maze", "--seeds", "1", "--eval_episodes", "1", "--evaluate_every", "100")
    assert cli("run", "q_learning", *argv, "--steps", "200", "--output", "run")[0] == 0
    status, out, _ = cli("run", "--resume", "run", "--steps", "500")
    assert status == 0
    assert "q_learning on tabular/Maze-v0, 500 steps" in out
    assert cli("run", "q_learning", *argv, "--steps", "500", "--output", "whole")[0] == 0
    for name in ("summary.json", "seed_0/episodes.csv", "seed_0/evaluations.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    status, _, err = cli("run", "--resume", "run", "--steps", "500")
    assert (status, err) == (2, "error: --steps is 500, but must be above the 500 steps of run to extend it\n")
    assert cli("compare", "q_learning", "sarsa", *argv, "--steps", "200", "--output", "both")[0] == 0
    assert cli("run", "--resume", "both", "--steps", "300")[0] == 0
    assert runs.read_config(tmp_path / "both" / "sarsa").steps == 300


def test_a_run_of_an_environment_in_the_current_folder(cli, tmp_path):
    (tmp_path / "chain_module.py").write_text(
        "import gymnasium as gym\n\n\n"
        "class Chain(gym.Env):\n"
        "    observation_space, action_space = gym.spaces.Discrete(3), gym.spaces.Discrete(2)\n\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        super().reset(seed=seed)\n"
        "        self.state = 0\n"
        "        return 0, {}\n\n"
        "    def step(self, action):\n"
        "        self.state += int(action)\n"
        "        return min(self.state, 2), float(self.state), self.state == 3, False, {}\n\n\n"
        "gym.register('Chain-v0', Chain)\n"
    )
    status, out, err = cli("run", "q_learning", "--env", "chain_module:Chain-v0", "--steps", "200")
    assert (status, err) == (0, "")
    assert "written: runs/q_learning-Chain-v0" in out
