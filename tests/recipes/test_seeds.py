"""Runs over seeds: what is run, what is not repeated, and the table."""

import json
from pathlib import Path

import pytest

from rlhf.config.parsing import to_yaml
from rlhf.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def seeds(load_script):
    return load_script(ROOT / "recipes" / "seeds.py")


def test_the_table_has_scores_first_step_at_the_goal_kl_and_times(seeds):
    times = {"time/step": 5.0, "time/generate": 1.0, "time/score": 1.5, "time/update": 2.5}
    evaluations = [
        {"step": 0, "score": 0.5, "kl": 0.0},
        {"step": 2, "score": 0.96, "kl": 2.0},
        {"step": 4, "score": 0.98, "kl": 3.25},
    ]
    run = seeds.Run("lora", 1, [times, {**times, "time/step": 6.0}], evaluations, 123.4)
    assert seeds.table([run], 0.95).splitlines()[2] == (
        "| lora | 1 | 0.500 | 0.980 | step 2 | 3.2 | 5.5 | 1.0 | 1.5 | 2.5 | 123 |"
    )
    assert "| none |" in seeds.table([run], 0.99)


def test_a_missing_file_and_a_wrong_setting_end_before_any_run(seeds, tmp_path):
    with pytest.raises(UserError, match=r"no settings file .*absent.yaml"):
        seeds.main([str(tmp_path / "absent.yaml")])
    config = tmp_path / "wrong.yaml"
    config.write_text("ppo: {lrr: 1}")
    with pytest.raises(UserError, match=r"ppo\.lrr"):
        seeds.main([str(config)])


def test_an_unfinished_run_is_left_alone(seeds, job, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(to_yaml(job))
    folder = Path(f"{job.output}-0")
    folder.mkdir()
    with pytest.raises(UserError, match="has not finished"):
        seeds.main([str(config), "--seeds", "0"])
    assert not list(folder.iterdir())


def test_a_sweep_needs_values(seeds, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text("{}")
    with pytest.raises(UserError, match=r"--sweep has only ppo\.kl_coef"):
        seeds.main([str(config), "--sweep", "ppo.kl_coef"])


@pytest.mark.slow
def test_a_sweep_is_a_run_for_each_value_and_a_picture_against_kl(seeds, job, tmp_path, capfd):
    config = tmp_path / "tiny.yaml"
    config.write_text(to_yaml(job))
    picture = tmp_path / "kl.png"
    sweep = ["--sweep", "ppo.kl_coef", "0", "0.5", "--plot-kl", str(picture)]
    assert seeds.main([str(config), "--seeds", "0", *sweep]) == 0
    rows = capfd.readouterr().out.split("\n| settings")[1].splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| ppo.kl_coef 0", "| ppo.kl_coef 0.5"]
    assert "kl_coef: 0.5" in Path(f"{job.output}-kl_coef_0.5-0", "config.yaml").read_text()
    assert picture.stat().st_size > 10_000


@pytest.mark.slow
def test_two_seeds_run_once_and_give_a_table_and_curves(seeds, job, tmp_path, capfd):
    config = tmp_path / "tiny.yaml"
    config.write_text(to_yaml(job))
    arguments = [str(config), "--seeds", "0", "1", "--plot", str(tmp_path / "curve.png"), "--", "--ppo.lr", "2e-3"]
    assert seeds.main(arguments) == 0
    first = capfd.readouterr().out
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    assert json.loads(Path(f"{job.output}-1.cost.json").read_text())["cpu_seconds"] > 0
    assert "lr: 0.002" in Path(f"{job.output}-1", "config.yaml").read_text()
    assert seeds.main(arguments) == 0
    second = capfd.readouterr().out
    assert "rlhf ppo" in first
    assert "rlhf ppo" not in second
    assert first.split("\n| settings")[1] == second.split("\n| settings")[1]
