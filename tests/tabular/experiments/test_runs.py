import csv
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import yaml

from tabular.core.statistics import median
from tabular.experiments import runs
from tabular.experiments.runs import RunConfig
from tabular.experiments.statistics import NOT_REACHED, seed_interval
from tabular.experiments.summary import summarise, write_summary
from tabular.history import History


def config(**changes):
    base = RunConfig(
        "q_learning", "FrozenLake-v1", {"is_slippery": False}, {"alpha": 0.5}, 3000, (0, 1), evaluate_every=1000
    )
    return replace(base, **changes)


def train(folder, conf):
    runs.create(folder, conf)
    return runs.train(folder, conf)


def rows(file):
    with file.open() as lines:
        return list(csv.DictReader(lines))


def contents(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.suffix in (".csv", ".jsonl", ".yaml")
    }


def test_files_of_a_run_folder(tmp_path):
    results = train(tmp_path / "run", config())
    history, folder = results[1].learner.history, tmp_path / "run" / "seed_1"
    assert [int(row["end"]) for row in rows(folder / "episodes.csv")] == history.ends
    assert [float(row["return"]) for row in rows(folder / "episodes.csv")] == history.returns
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["q_change"]) for line in metrics] == history.metrics["q_change"]
    evaluations = rows(folder / "evaluations.csv")
    assert [int(row["step"]) for row in evaluations] == [1000, 2000, 3000]
    assert float(evaluations[-1]["success_rate"]) in (0, 1)
    assert not list(folder.glob("*.tmp"))


def test_a_config_is_read_back_unchanged(tmp_path):
    conf = config(algorithm="ppo", settings={"lr": 0.5, "hidden": (64, 64)}, threshold=0.7)
    runs.create(tmp_path / "run", conf)
    assert runs.read_config(tmp_path / "run") == conf
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["env"] == "FrozenLake-v1"


def test_nothing_is_overwritten(tmp_path):
    runs.create(tmp_path / "run", config())
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="exists already: take another --output, or continue it with --resume"):
        runs.create(tmp_path / "run", config(steps=5))
    assert contents(tmp_path) == before


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop_after", [1, 3, 4])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, stop_after):
    conf = config(env_options={})
    whole = train(tmp_path / "whole", conf)

    reported = []

    def interrupt(steps):
        reported.append(steps)
        if len(reported) > stop_after:
            raise Stop

    runs.create(tmp_path / "parts", conf)
    with pytest.raises(Stop):
        runs.train(tmp_path / "parts", conf, interrupt)
    resumed = runs.train(tmp_path / "parts", runs.read_config(tmp_path / "parts"))
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")
    for one, other in zip(whole, resumed, strict=True):
        assert (one.learner.q == other.learner.q).all()
        assert one.evaluations == other.evaluations


def test_an_extended_run_equals_one_of_that_length(tmp_path):
    whole = train(tmp_path / "whole", config(seeds=(0,)))
    first = config(seeds=(0,), steps=1000)
    train(tmp_path / "parts", first)
    extended = runs.extend(tmp_path / "parts", first, 3000)
    assert runs.read_config(tmp_path / "parts") == extended == config(seeds=(0,))
    (result,) = runs.train(tmp_path / "parts", extended)
    assert (result.learner.q == whole[0].learner.q).all()
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")
    with pytest.raises(ValueError, match="--steps is 3000, but must be above the 3000 steps of"):
        runs.extend(tmp_path / "parts", extended, 3000)


def test_folder_names_hold_no_module_and_no_namespace():
    assert runs.env_name("tabular/Maze-v0") == "Maze-v0"
    assert runs.env_name("my_module:Chain-v0") == "Chain-v0"


def test_progress_counts_every_step_once(tmp_path):
    reported = []
    runs.create(tmp_path / "run", config())
    runs.train(tmp_path / "run", config(), reported.append)
    assert sum(reported) == 2 * 3000
    again = []
    runs.train(tmp_path / "run", config(), again.append)  # finished: nothing is done again, the bar is full at once
    assert again == [3000, 3000]


def test_seeds_differ_and_the_same_seed_repeats(tmp_path):
    one, two = train(tmp_path / "a", config()), train(tmp_path / "b", config(seeds=(1,)))
    assert (one[1].learner.q == two[0].learner.q).all()
    assert one[0].learner.history.ends != one[1].learner.history.ends


def test_the_summary(tmp_path):
    conf = config(seeds=(0, 1, 2))
    results = train(tmp_path / "run", conf)
    summary = summarise(conf, results)
    assert summary["success rate"].value == np.mean([r.evaluations[-1]["success_rate"] for r in results])
    assert 0 < summary["state coverage"].value <= 1
    assert "steps to 0.7 (median)" in summary  # the reward threshold that the lake is registered with
    write_summary(tmp_path / "run", {**summary, "x": seed_interval([NOT_REACHED] * 2, median)})
    saved = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert saved["success rate"]["value"] == summary["success rate"].value
    assert saved["x"] == {"value": "never", "low": "never", "high": "never"}


def test_figures_without_a_value_are_left_out(tmp_path):
    conf = config(env="tabular/Maze-v0", env_options={}, steps=5, evaluate_every=5, seeds=(0,), episodes=1)
    summary = summarise(conf, train(tmp_path / "run", conf))
    assert "training return, last 100" not in summary  # no episode ended
    assert not [name for name in summary if name.startswith("steps to")]  # no threshold is registered


def test_damaged_folders(tmp_path):
    with pytest.raises(ValueError, match="is no run folder"):
        runs.read_config(tmp_path)
    (tmp_path / "config.yaml").write_text("algorithm: q_learning\n")
    with pytest.raises(ValueError, match="damaged"):
        runs.read_config(tmp_path)
    train(tmp_path / "run", config(seeds=(0,)))
    (tmp_path / "run" / "seed_0" / "checkpoint.pt").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
        runs.resume(tmp_path / "run", config(), 0)


def test_a_flipped_bit_in_a_checkpoint_is_noticed(tmp_path):
    train(tmp_path / "run", config(seeds=(0,)))
    file = tmp_path / "run" / "seed_0" / "checkpoint.pt"
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        entry = max(archive.infolist(), key=lambda info: info.file_size)
    start = whole.index(entry.filename.encode()) + len(entry.filename)
    damaged = bytearray(whole)
    damaged[start + entry.file_size // 2] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
        runs.resume(tmp_path / "run", config(), 0)


def test_nan_metrics_are_null_in_json(tmp_path):
    class Learner:
        history = History()

        def state_dict(self):
            return {}

    Learner.history.add(1, explained_variance=float("nan"))
    runs.save(tmp_path / "x", Learner(), [])
    assert json.loads((tmp_path / "x" / "metrics.jsonl").read_text()) == {"step": 1, "explained_variance": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0, but must be at least 1"),
        ({"episodes": 0}, "episodes is 0, but must be at least 1"),
        ({"seeds": ()}, r"seeds is \(\), but must be different numbers"),
        ({"seeds": (1, 1)}, r"seeds is \(1, 1\), but must be different numbers"),
    ],
)
def test_impossible_runs(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)
