"""The comparison with TRL's trainer: frontiers and tables by hand, and the script with tiny models."""

import json
import os

import pytest

WORDS = ("the", "film", "is", "a", "good", "bad", "fine", "dull", "warm")
"""Of the tiny models' vocabulary; 81 pairs are more than a batch of 64."""


@pytest.fixture
def compare(monkeypatch, request):
    monkeypatch.syspath_prepend(request.config.rootpath / "scripts")
    import compare_trl

    return compare_trl


@pytest.fixture
def tables(compare):
    import compare_trl_tables

    return compare_trl_tables


def run(trainer="ours", seed=0, lr=1e-3, kl_coef=0.1, **measures):
    row = {"trainer": trainer, "seed": seed, "lr": lr, "kl_coef": kl_coef, "judge_before": 0.5, "score_before": 0.0}
    defaults = {"length": 9.0, "distinct_2": 0.8, "eos_fraction": 1.0, "seconds": 30.0, "peak_mb": 500.0}
    return row | defaults | measures


# -------------------------------------------------------------------------------------------------------------- tables


def test_a_frontier_is_the_upper_concave_hull_up_to_the_best_point(tables):
    points = [(0, 0), (1, 1), (2, 1.5), (3, 1.8), (2.5, 1), (4, 3), (5, 2.5)]
    assert tables.frontier(points) == [(0, 0), (1, 1), (4, 3)]  # (2, 1.5) and (3, 1.8) are below the line to (4, 3)
    assert tables.frontier([(0, 2), (3, 1)]) == [(0, 2)]


def test_the_height_of_a_frontier_is_on_its_lines_and_constant_after_its_end(tables):
    rows = [run(kl=4.0, judge=0.7, score=1.0), run(kl=6.0, judge=0.8, score=0.9), run(seed=1, kl=1.0, judge=0.9)]
    assert tables.height_at(rows, "ours", 0, "judge", 2.0) == pytest.approx(0.6)
    assert tables.height_at(rows, "ours", 0, "judge", 5.0) == pytest.approx(0.75)
    assert tables.height_at(rows, "ours", 0, "judge", 9.0) == pytest.approx(0.8)
    assert tables.height_at(rows, "ours", 0, "score", 9.0) == pytest.approx(1.0)


def test_the_best_setting_has_the_best_mean_judge_within_the_kl_and_all_seeds(tables):
    rows = [run(lr=1e-3, seed=seed, kl=8.0, judge=0.9, score=1) for seed in range(2)]
    rows += [run(lr=5e-4, seed=seed, kl=6.0 + seed, judge=0.6 + seed / 10, score=1) for seed in range(2)]
    rows += [run(lr=2e-4, seed=seed, kl=3.0, judge=0.64, score=1) for seed in range(2)]
    rows += [run(lr=1e-4, seed=0, kl=3.0, judge=0.8, score=1)]
    best = tables.best_setting(rows, "ours")
    assert (best["lr"], best["judge"], len(best["runs"])) == (5e-4, pytest.approx(0.65), 2)
    assert tables.best_setting(rows, "trl") is None


def test_the_interval_of_seeds_is_students(tables):
    assert tables.mean_interval([1.0, 2.0, 3.0]) == "2.000 ± 2.484"  # 4.303 * 1 / sqrt(3)
    assert tables.mean_interval([2.0]) == "2.000"


def test_the_tables_have_a_row_for_each_trainer_and_setting(tables):
    rows = [run(trainer, kl=5.0, judge=0.7, score=0.9) for trainer in ("ours", "trl")]
    assert tables.best_table(rows).splitlines()[2:] == [
        f"| {trainer} | lr 0.001, kl_coef 0.1 | 1 | 0.700 | 0.900 | 5.000 | 9.0 | 0.80 | 30 | 500 |"
        for trainer in ("ours", "trl")
    ]
    assert tables.frontier_table(rows).splitlines()[-1] == (
        "| trl | 1 | 0.620 | 0.700 | 0.700 | 0.540 | 0.900 | 0.900 |"
    )
    assert len(tables.grid_table(rows).splitlines()) == 4


# ---------------------------------------------------------------------------------------------------------- the script


@pytest.fixture
def tiny_start(compare, models, reward_folder, tmp_path, monkeypatch):
    """The script with tiny models and a simple judge instead of the demo's."""
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"{word} {other}"} for word in WORDS for other in WORDS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = {
        "policy": str(models("llama")),
        "reward": str(reward_folder),
        "train_prompts": str(file),
        "held_out": str(file),
    }
    monkeypatch.setattr(compare, "write_start", lambda folder: start)
    monkeypatch.setattr("rlhf.demo.reviews.judge", lambda prompts, completions, **_: [0.5] * len(completions))
    return tmp_path / "out"


def command(output, *options):
    return ["--output", str(output), "--episodes", "128", "--eval_prompts", "8", "--kl_coef", "0.1", *options]


def test_each_run_is_made_once_and_drawn(compare, tiny_start, monkeypatch, capsys):
    started = []

    def train_here(run, folder, peer_python):
        started.append(run["lr"])
        return compare.train_ours(run, folder)

    monkeypatch.setattr(compare, "train", train_here)
    trial = ("--trial", "gamma", "ppo.gamma=0.9", "--trainers", "ours", "gamma")
    options = command(tiny_start, "--seeds", "0", "--lr", "1e-3", *trial)
    compare.main([*options, "--runs", "1"])
    results = tiny_start / "results.jsonl"
    first = results.read_text()
    compare.main([*options, "--draw", str(tiny_start / "picture.png")])
    assert results.read_text().startswith(first)
    rows = compare.read_rows(results)
    assert [(row["trainer"], row["settings"]) for row in rows] == [("ours", {}), ("gamma", {"ppo.gamma": "0.9"})]
    assert started == [1e-3, 1e-3]
    assert all(row["kl"] != 0 and row["prompts"] == 8 and row["seconds"] > 0 for row in rows)
    assert (tiny_start / "runs" / "ours-lr0.001-kl0.1-seed0" / "model" / "config.json").exists()
    assert (tiny_start / "picture.png").exists()
    assert capsys.readouterr().out.count("| gamma | 0.001 | 0.1 | 1 |") == 1


def test_the_folder_of_an_interrupted_run_stays(compare, tmp_path):
    settings = run("ours, shared critic")
    folders = [compare.free_folder(tmp_path, settings) for _ in range(2)]
    name = "ours-shared-critic-lr0.001-kl0.1-seed0"
    assert [folder.name for folder in folders] == [name, f"{name}-2"]


def test_what_cannot_be_run_or_shown_is_refused(compare, tmp_path, capsys):
    for options, message in ((["--trainers", "trl"], "no trainer 'trl'"), (["--runs", "0"], "no finished run")):
        with pytest.raises(SystemExit, match="2"):
            compare.main(["--output", str(tmp_path), *options])
        assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif("TRL_PYTHON" not in os.environ, reason="TRL_PYTHON names no python with trl==1.12.0")
def test_both_trainers_run_as_the_script_starts_them(compare, tiny_start):
    python = os.environ["TRL_PYTHON"]
    compare.main([*command(tiny_start, "--seeds", "0", "--lr", "1e-3"), "--peer-python", python])
    rows = compare.read_rows(tiny_start / "results.jsonl")
    assert [row["trainer"] for row in rows] == ["ours", "ours, shared critic", "trl"]
    assert all(0 < row["kl"] < 50 and row["peak_mb"] > 100 for row in rows)
    assert len({row["score_before"] for row in rows}) == 1
