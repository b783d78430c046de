"""`tabular offline`."""

import pytest

MAZE = ("offline", "--env", "maze", "--transitions", "20000", "--epochs", "30")


def field(out, name):
    (line,) = [line for line in out.split("\n") if name in line]
    return line.split("│")[2].strip()


def test_a_random_log_gives_the_optimal_policy(cli, tmp_path):
    status, out, err = cli(*MAZE)
    assert (status, err) == (0, "")
    assert float(field(out, "logged policy, value at the start")) == pytest.approx(0.001418)
    assert float(field(out, "greedy policy of the learned table")) == pytest.approx(0.95**13, abs=1e-4)
    assert float(field(out, "optimal value at the start")) == pytest.approx(0.95**13, abs=1e-4)
    assert field(out, "state-action pairs in the log") == "100%"
    assert float(field(out, "largest error of an action value in the log")) < 1e-9
    assert {file.name for file in (tmp_path / "runs" / "offline-Maze-v0").iterdir()} == {"metrics.png", "policy.png"}


def test_the_log_of_a_good_policy_covers_less(cli):
    _, out, _ = cli("offline", "double_q_learning", *MAZE[1:], "--epsilon", "0.1")
    assert float(field(out, "logged policy, value at the start")) > 0.4
    assert int(field(out, "state-action pairs in the log").rstrip("%")) < 100


def test_the_same_seed_repeats_and_masks_are_obeyed(cli):
    argv = ("offline", "--env", "maskedmaze", "--transitions", "500", "--epochs", "2")
    first, again, other = (cli(*argv, "--seed", seed)[1].split("written")[0] for seed in ("1", "1", "2"))
    assert first == again != other


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["offline"], "--env is missing, for instance --env maze"),
        (["offline", "sarsa", "--env", "maze"], "is 'sarsa', but must be one of q_learning, double_q_learning"),
        (["offline", "--env", "CartPole-v1"], "CartPole-v1 has no transition table `P` that describes it completely"),
        (["offline", "--env", "maze", "--alpha", "0"], "--alpha is 0, but must be above 0 and at most 1"),
    ],
)
def test_mistakes(cli, tmp_path, argv, message):
    status, _, err = cli(*argv)
    assert status == 2
    assert message in err
    assert not list(tmp_path.iterdir())
