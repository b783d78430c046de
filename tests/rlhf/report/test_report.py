"""The report: the text that a reader sees, in pages from complete, broken and hostile run folders."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rlhf.errors import UserError
from rlhf.report.health import compare, health_warnings
from rlhf.report.numbers import duration, number, parameters, percent, signed
from rlhf.report.report import write_report
from rlhf.report.run_files import Run, load
from rlhf.report.samples import colour_tokens, colourings_of

STEPS = 100
HOSTILE = '</pre></style></script><script>alert("x")</script><img src=x onerror=alert(1)> & "quotes"'
CURVES = """Score|Score against KL|KL to the reference|KL coefficient|Reward|Response length|Ended with EOS|Repetition
Approximate KL of a step|Clip fraction|Largest ratio|Policy loss|Entropy|Gradient norm|Explained variance|Value loss
Mean value|Learning rate|Time of a step|Throughput""".replace("\n", "|").split("|")

CONFIG = {
    "output": "runs/reviews",
    "seed": 0,
    "resume": None,
    "trackers": ["tensorboard"],
    "model": {"path": "runs/sft", "dtype": "float32", "lora": {"rank": 0, "alpha": 16.0, "targets": None}},
    "data": {"path": "data/reviews.jsonl", "eval_fraction": 0.05, "max_prompt_length": 16, "too_long": "truncate"},
    "generation": {"max_new_tokens": 24, "temperature": 1.0, "stop_ids": None},
    "reward": {"model": "runs/reward", "function": None, "missing_eos_penalty": None, "normalize": True},
    "ppo": {"rollout_batch_size": 128, "minibatch_size": 64, "ppo_epochs": 4, "lr": 1e-4, "kl_coef": 0.05, "lam": 0.95},
    "eval": {"every": 50, "prompts": 256, "judge": {"function": "judge.py:stars"}},
}
ENVIRONMENT = {
    "versions": {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.1.0", "accelerate": "1.15.0"},
    "command": "rlhf ppo --config configs/reviews.yaml --output runs/reviews",
    "started": "2026-01-05T09:30:00+00:00",
    "device": "cpu",
    "processes": 1,
    "parameters": 950_000,
}
PROMPTS = [
    "the film opens with",
    "its cast is",
    "what could have been a dull remake",
    "two hours later ,",
    "the director seems to",
    "for a comedy , it",
    "nothing in the plot",
    "the score and the pictures",
]
BEFORE = [
    " a chase that goes nowhere , and the rest of it is not much better .",
    " wasted on a script that nobody seems to have read to the end .",
    " is exactly that , a dull remake with louder music .",
    " you still wait for something , anything , to happen .",
    " think that a shaking camera is the same as suspense .",
    " has three jokes , and two of them are in the trailer .",
    " makes sense , and by the end i had stopped asking .",
    " are fine , but they cannot save the story .",
]
AFTER = [
    " a quiet joy , and it is a funny , moving and beautifully made piece of work .",
    " a delight , warm and funny , and each of them has a moment to shine .",
    " turns out to be a smart , touching and wonderfully acted film .",
    " you leave with a smile , moved by a rich and gentle story .",
    " love these people , and his film is a heartfelt , gorgeous treat .",
    " is fresh , sweet and very funny from the first scene to the last .",
    " feels forced , and it is an engaging , honest and lovely film .",
    " are a pleasure , and the performances are simply wonderful .",
]


def metric_rows(steps: int = STEPS) -> list[dict[str, Any]]:
    """Noisy but plausible curves: the score climbs to 0.8 while the KL flattens at 4.5 nats."""
    rng = np.random.default_rng(0)
    rows = []
    for step in range(1, steps + 1):
        noise = lambda scale: float(rng.normal(0, scale))  # noqa: E731
        done = 1 - math.exp(-3 * step / steps)
        kl, score = abs(4.7 * done + noise(0.2)), 0.1 + 0.75 * done + noise(0.05)
        times = {"generate": 0.9 + abs(noise(0.05)), "score": 0.2 + abs(noise(0.02)), "update": 0.8 + abs(noise(0.03))}
        rows.append(
            {
                "step": step,
                "objective/score": score,
                "objective/kl": kl,
                "objective/kl_k3": abs(kl * 1.05 + noise(0.1)),
                "objective/reward": score - 0.05 * kl,
                "objective/entropy": 80 - 20 * done + noise(2),
                "objective/kl_coef": 0.05,
                "policy/loss": -0.012 + noise(0.004),
                "policy/approx_kl": 0.006 + abs(noise(0.002)),
                "policy/clip_fraction": 0.08 + abs(noise(0.02)),
                "policy/entropy": 4.12 - 1.32 * done + noise(0.05),
                "policy/ratio_max": 1.8 + abs(noise(0.5)),
                "policy/grad_norm": 0.8 + abs(noise(0.2)),
                "policy/lr": 1e-4 * (1 - (step - 1) / steps),
                "value/loss": 0.3 * math.exp(-step / 12) + 0.04 + abs(noise(0.008)),
                "value/clip_fraction": 0.1 + abs(noise(0.02)),
                "value/explained_variance": 0.75 - 2.2 * math.exp(-step / 5) + noise(0.03),
                "value/mean": 0.05 + 0.5 * done + noise(0.01),
                "response/length": 19 + 2.5 * done + noise(0.5),
                "response/eos_fraction": min(1.0, 0.62 + 0.1 * done + noise(0.03)),
                "response/truncated_fraction": max(0.0, 0.38 - 0.1 * done + noise(0.03)),
                "response/repetition": 0.05 + 0.03 * done + abs(noise(0.006)),
                **{f"time/{name}": seconds for name, seconds in times.items()},
                "time/step": sum(times.values()) + 0.05,
                "throughput/response_tokens_per_s": 1400 + noise(60),
                "throughput/episodes_per_s": 66 + noise(3),
                "memory/peak_mb": 812.0,
            }
        )
    return rows


def eval_rows() -> list[dict[str, Any]]:
    common = {"prompts": 256.0, "repetition": 0.06, "distinct_1": 0.93, "eos_fraction": 0.66}
    wins = {"win_rate": 0.871, "win_rate_low": 0.832, "win_rate_high": 0.908}
    return [
        common
        | {"step": 0, "score": 0.112, "score_low": 0.061, "score_high": 0.163, "judge": 0.482, "judge_low": 0.432}
        | {"judge_high": 0.53, "kl": 0.0, "length": 19.2, "distinct_2": 0.991, "entropy": 4.12},
        common
        | {"step": 50, "score": 0.655, "score_low": 0.612, "score_high": 0.698, "judge": 0.701, "judge_low": 0.655}
        | {"judge_high": 0.747, "kl": 3.61, "length": 21.0, "distinct_2": 0.984, "entropy": 3.1}
        | {"win_rate": 0.76, "win_rate_low": 0.71, "win_rate_high": 0.81},
        common
        | {"step": 100, "score": 0.809, "score_low": 0.771, "score_high": 0.847, "judge": 0.783, "judge_low": 0.742}
        | {"judge_high": 0.824, "kl": 4.52, "length": 21.6, "distinct_2": 0.977, "entropy": 2.84, "best": True, **wins},
    ]


def sample_rows() -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    rows = []
    for step, responses in ((0, BEFORE), (100, AFTER)):
        for index, (prompt, response) in enumerate(zip(PROMPTS, responses, strict=True)):
            tokens = re.findall(r"\s?\S+", response)
            kl = rng.normal(0.25, 0.9, len(tokens)) if step else np.zeros(len(tokens))
            rows.append(
                {
                    "step": step,
                    "index": index,
                    "prompt": prompt,
                    "response": response,
                    "tokens": tokens,
                    "token_kl": kl.round(4).tolist(),
                    "scores": {"score": 0.1 + step / 140, "judge": 0.4 + step / 250},
                    "truncated": index == 3,
                }
            )
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "reviews")


def make_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT), encoding="utf-8")
    write_rows(folder / "metrics.jsonl", metric_rows())
    write_rows(folder / "eval.jsonl", eval_rows())
    write_rows(folder / "samples.jsonl", sample_rows())
    return folder


class Page(HTMLParser):
    """The text that a reader sees, all elements with their attributes, and whether they nest."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input", "circle", "line", "path"})

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(folder: Path) -> Page:
    page = Page(write_report(folder))
    assert not page.open, "every element is closed"
    return page


def run_of(rows: list[dict[str, Any]], evals: list[dict[str, Any]] | None = None) -> Run:
    return Run("run", list(rows), list(evals or []), [], {}, {}, [])


def warnings_of(rows: list[dict[str, Any]], evals: list[dict[str, Any]] | None = None) -> str:
    return "\n".join(map(str, health_warnings(rows, evals or [])))


# ---------------------------------------------------------------------------------------------------- the page


def test_the_page_begins_with_the_change_of_the_key_numbers(run_dir):
    page = page_of(run_dir)
    assert "<h1>reviews</h1>" in page.source
    for fact in ("runs/sft", "950k parameters", "100 steps", "12,800 episodes", "2026-01-05 09:30"):
        assert fact in page.text
    cards = page.text[: page.text.index("No warnings")]
    for outcome in (
        "Held-out score 0.112 → 0.809 95% interval 0.771 to 0.847",
        "Judge 0.482 → 0.783 95% interval 0.742 to 0.824",
        "Win rate against the start 87.1% 95% interval 83.2% to 90.8%",
        "KL to the reference 0 → 4.52",
        "Response length 19.2 → 21.6",
        "Distinct bigrams 0.991 → 0.977",
        "Training time 3 min",
        "812 MB at peak",
        "Throughput 1,",
    ):
        assert outcome in cards


def test_the_table_compares_the_start_with_the_best_step(run_dir):
    page = page_of(run_dir)
    table = page.text[page.text.index("Held-out measure") :]
    assert "Before (step 0) After (step 100) Change" in table
    assert "Score what training maximises 0.061 to 0.163 0.112 0.771 to 0.847 0.809 +0.697" in table
    assert "Entropy nats per token 4.12 2.84 −1.28" in table
    assert "Distinct-2 distinct word pairs / all word pairs 0.991 0.977 −0.014" in table
    assert "256 held-out prompts, answered at step 0 and at step 100, the checkpoint with the best score." in page.text
    evaluations = table[table.index("All evaluations (3)") : table.index("Curves")]
    assert re.search(r" 50 256 .*0\.655", evaluations)


def test_every_curve_has_a_caption(run_dir):
    page = page_of(run_dir)
    titles = re.findall(r'<div class="head"><h4>(.*?)</h4>', page.source)
    assert sorted(titles) == sorted(CURVES)
    assert [svg["aria-label"] for svg in page.all("svg")] == titles
    assert page.source.count("<figcaption>") == len(CURVES)
    assert "Not logged" not in page.text
    assert "the mean of the 7 steps around it" in page.text


def test_shapes_are_finite_and_inside_their_chart(run_dir):
    page = page_of(run_dir)
    paths = [str(path["d"]) for path in page.all("path")]
    assert len(paths) > 100
    assert not any(re.search("nan|inf|None", path) for path in paths)
    pairs = [tuple(map(float, pair)) for path in paths for pair in re.findall(r"([\d.-]+),([\d.-]+)", path)]
    assert all(0 <= x <= 560 and 0 <= y <= 310 for x, y in pairs)


def test_curves_carry_their_values_for_the_cursor(run_dir):
    marks = [json.loads(str(svg["data-marks"])) for svg in page_of(run_dir).all("svg") if "data-marks" in svg]
    assert [len(points) for points in marks] == [STEPS] * (len(CURVES) - 1)
    assert marks[0][-1][2] == f"step 100: {number(metric_rows()[-1]['objective/score'])}"


def test_held_out_points_are_on_the_score_and_on_score_against_kl(run_dir):
    page = page_of(run_dir)
    tips = re.findall(r"<title>(held-out, .*?)</title>", page.source)
    assert tips.count("held-out, step 50: 0.655") == 2
    assert tips.count("held-out, step 100: 0.809") == 2
    assert len(re.findall(r'class="line timed" style="--progress:\d+%"', page.source)) == STEPS - 1
    assert re.findall(r">(step \d+)</text>", page.source) == ["step 0", "step 100"]


def test_samples_are_side_by_side_with_coloured_tokens(run_dir):
    page = page_of(run_dir)
    positions = [page.text.index(f"Prompt {index} {prompt}") for index, prompt in enumerate(PROMPTS)]
    assert positions == sorted(positions)
    assert all(response.strip() in page.text for response in BEFORE)
    assert page.text.count("Before · step 0 score 0.100 judge 0.400") == len(PROMPTS)
    assert page.text.count("After · step 100 score 0.814 judge 0.800") == len(PROMPTS)
    assert page.text.count("truncated at the limit") == 2
    tokens = [span for span in page.all("span") if (span.get("class") or "").split()[:1] == ["t"]]
    assert len(tokens) == sum(len(response.split()) for response in AFTER)
    for token in tokens:
        level = re.fullmatch(r"t (?:(more|less)-([1-4]))?", str(token["class"]))
        log_ratio = float(str(token["title"]).removesuffix(" nats").replace("−", "-"))
        assert level
        assert (level[1] or "none") == ("none" if abs(log_ratio) < 0.1 else "more" if log_ratio > 0 else "less")


def test_a_token_has_the_colour_of_its_log_ratio():
    row = {"tokens": ["a", "b", "c", "d", "e"], "token_kl": [0.05, 0.6, -0.1, -7.0, None]}
    colourings = colourings_of([row])
    assert [style for _, style, _ in colour_tokens(row, colourings)] == ["", "more-2", "less-1", "less-4", ""]
    assert colour_tokens({"tokens": ["a"], "token_kl": []}, colourings) == []
    row |= {"from_environment": [False, True, False, False, False]}
    assert [style for _, style, _ in colour_tokens(row, colourings)] == ["", "environment", "less-1", "less-4", ""]


def test_the_page_shows_set_up_and_source_files(run_dir):
    page = page_of(run_dir)
    assert ENVIRONMENT["command"] in page.text
    for entry in ("torch 2.13.0", "device cpu", "rollout_batch_size 128", "lora.rank 0", "resume null", "lr 0.0001"):
        assert entry in page.text
    assert "metrics.jsonl (100 rows), eval.jsonl (3 rows), samples.jsonl (16 rows)" in page.text
    assert "value/clip_fraction" in page.text[page.text.index("All 28 logged metrics") :]


def test_the_page_loads_nothing_from_outside(run_dir):
    page = page_of(run_dir)
    assert not re.search(r"https?:", page.source)
    assert not re.search(r"@import|url\(", page.source)
    for _, attributes in page.elements:
        assert "src" not in attributes
        assert str(attributes.get("href", "#")).startswith("#")
    assert {link["href"] for link in page.all("a")} <= {f"#{a['id']}" for _, a in page.elements if "id" in a}
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_same_folder_gives_the_same_bytes(run_dir):
    first = write_report(run_dir).read_bytes()
    assert write_report(run_dir, run_dir / "elsewhere" / "page.html").read_bytes() == first
    assert [path.name for path in (run_dir / "elsewhere").iterdir()] == ["page.html"]


def test_a_page_replaces_no_other_file(run_dir):
    page, notes = run_dir / "page.html", run_dir / "notes.html"
    write_report(run_dir, page)
    write_report(run_dir, page)
    notes.write_text("<!doctype html><title>notes</title>")
    with pytest.raises(UserError, match=r"notes.html exists and is no report; name another file with --output"):
        write_report(run_dir, notes)
    assert notes.read_text() == "<!doctype html><title>notes</title>"


def test_a_failed_write_keeps_the_old_page(run_dir, monkeypatch):
    path = write_report(run_dir)
    old = path.read_bytes()
    write_rows(run_dir / "metrics.jsonl", metric_rows(5))

    def fail(*_):
        raise OSError("no space")

    monkeypatch.setattr("rlhf.run.files.os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_report(run_dir)
    assert path.read_bytes() == old
    assert not list(run_dir.glob(".*"))


# ---------------------------------------------------------------------------------------------------- hostile input


def test_everything_from_the_folder_is_escaped(run_dir):
    harmless = page_of(run_dir)
    rows = sample_rows()
    for row in rows:
        row |= {"prompt": HOSTILE, "response": HOSTILE, "scores": {HOSTILE: 1.0}}
        row |= {"tokens": [HOSTILE, HOSTILE], "token_kl": [3.0, -3.0]}
    write_rows(run_dir / "samples.jsonl", rows)
    write_rows(run_dir / "metrics.jsonl", [row | {HOSTILE: 1.0} for row in metric_rows()])
    write_rows(run_dir / "eval.jsonl", [row | {HOSTILE: 1.0} for row in eval_rows()])
    config = CONFIG | {"model": {"path": HOSTILE}, HOSTILE: {HOSTILE: HOSTILE, "list": [HOSTILE]}}
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    environment = ENVIRONMENT | {"command": HOSTILE, "started": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    (run_dir / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    page = page_of(run_dir)
    for tag in ("script", "style", "img"):
        assert len(page.all(tag)) == len(harmless.all(tag))
    assert {name for _, a in page.elements for name in a} == {name for _, a in harmless.elements for name in a}
    assert page.text.count(HOSTILE) >= 8 * 5 + 10


def test_text_in_any_script_is_kept(run_dir):
    rows = sample_rows()[:1]
    rows[0] |= {"response": "naïve 映画 🎬 \u2028 next", "prompt": "half an emoji \ud83d"}
    text = json.dumps(rows[0], ensure_ascii=False).replace("\ud83d", "\\ud83d")
    (run_dir / "samples.jsonl").write_text(text + "\n", encoding="utf-8")
    page = page_of(run_dir)
    assert "naïve 映画 🎬" in page.text
    assert "half an emoji ?" in page.text


# ---------------------------------------------------------------------------------------------------- broken folders


def test_an_incomplete_line_is_skipped_and_counted(run_dir):
    for name in ("metrics.jsonl", "eval.jsonl", "samples.jsonl"):
        with open(run_dir / name, "ab") as file:
            file.write('{"step": 101, "index": 0, "prompt": "caf\N{LATIN SMALL LETTER E WITH ACUTE}'.encode()[:-1])
    page = page_of(run_dir)
    assert "metrics.jsonl (100 rows, 1 unreadable skipped)" in page.text
    assert "eval.jsonl (3 rows, 1 unreadable skipped)" in page.text
    assert "100 steps" in page.text


def test_a_step_repeated_after_a_resume_counts_once(run_dir):
    again = [row | {"objective/score": 0.5} for row in metric_rows()[89:]]
    write_rows(run_dir / "metrics.jsonl", metric_rows() + again)
    run = load(run_dir)
    assert [row["step"] for row in run.rows] == list(range(1, STEPS + 1))
    assert run.metric("objective/score")[-11:].tolist() == [0.5] * 11


def test_optional_files_may_be_missing(run_dir):
    for name in ("eval.jsonl", "samples.jsonl", "config.yaml", "environment.json"):
        (run_dir / name).unlink()
        page = page_of(run_dir)
        assert f"{name} (missing)" in page.text
    assert "Training score 0." in page.text
    assert "means over the first and the last tenth of training" in page.text
    assert "Samples" not in page.text
    assert "Configuration" not in page.text


def test_a_run_killed_before_its_second_evaluation_shows_the_first(run_dir):
    write_rows(run_dir / "eval.jsonl", eval_rows()[:1])
    write_rows(run_dir / "samples.jsonl", sample_rows()[:8])
    page = page_of(run_dir)
    assert "Training score" in page.text
    assert "All evaluations (1)" in page.text
    assert page.text.count("Before · step 0") == 8
    assert "After · " not in page.text


def test_values_may_be_missing_null_or_nan(run_dir):
    rows = metric_rows()
    for row in rows:
        row |= {"value/loss": None, "objective/kl_k3": float("nan"), "time/score": None}
        del row["policy/ratio_max"]
    rows[10] |= {"objective/score": float("inf"), "objective/kl": None}
    write_rows(run_dir / "metrics.jsonl", rows)
    evals = eval_rows()
    evals[2] |= {"judge": None, "score_low": float("nan")}
    write_rows(run_dir / "eval.jsonl", evals)
    page = page_of(run_dir)
    assert page.text.count("Not logged in this run.") == 2
    assert '<path class="layer-3"' in page.source, "the other layers are still drawn"
    assert "value/loss is not finite in 100 of 100 steps, first at step 1." in page.text
    assert not re.search(r"\bnan\b|\binf\b|None|Infinity", page.text + "".join(str(p["d"]) for p in page.all("path")))


def test_a_run_of_another_stage_shows_all_that_it_logged(run_dir):
    (run_dir / "samples.jsonl").unlink()
    write_rows(run_dir / "metrics.jsonl", [{"step": step, "loss": 2.5, "note": "text"} for step in (1, 2)])
    write_rows(run_dir / "eval.jsonl", [{"step": 2, "loss": 2.25}])
    page = page_of(run_dir)
    assert [svg["aria-label"] for svg in page.all("svg")] == ["loss"]
    assert "loss 2.50 2.50 2.50 2.50" in page.text
    assert "All evaluations (1) step loss 2 2.25" in page.text
    assert "<title>held-out, step 2: 2.25</title>" in page.source
    assert "Not logged" not in page.text
    assert "warning" not in page.text


@pytest.mark.parametrize("steps", [1, 2, 29, 30, 3000])
def test_runs_of_any_length(run_dir, steps):
    write_rows(run_dir / "metrics.jsonl", metric_rows(steps))
    page = page_of(run_dir)
    assert f"{steps:,} step" in page.text
    assert len(page.source) < 900_000


@pytest.mark.parametrize("content", [None, "", "\n", '{"objective/score": 1}\n', '{"step": 1, "objec', "[1, 2]\n"])
def test_no_metrics_is_an_error_that_names_the_file(tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "metrics.jsonl"))):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_missing_folder_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"no run folder at {tmp_path / 'nowhere'}")):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content"), [("config.yaml", "a: [1"), ("config.yaml", "- 1"), ("environment.json", '{"a": ')]
)
def test_a_broken_config_is_an_error_that_names_it(run_dir, name, content):
    (run_dir / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(str(run_dir / name))):
        write_report(run_dir)


# ---------------------------------------------------------------------------------------------------- health


def test_the_best_evaluation_is_the_marked_one_or_else_the_best_score():
    evals = eval_rows()
    assert compare(metric_rows(), evals).after["step"] == 100
    evals[1]["score"] = 0.9
    assert compare(metric_rows(), evals).after["step"] == 100
    del evals[2]["best"]
    assert compare(metric_rows(), evals).after["step"] == 50
    evals[1]["score"] = None
    assert compare(metric_rows(), evals).after["step"] == 100
    evals[1]["penalised_score"] = 0.9  # counts before the plain score, as in the run's own choice
    assert compare(metric_rows(), evals).after["step"] == 50


def test_without_evaluations_the_first_and_last_tenth_of_training_are_compared():
    rows = [{"step": step, "objective/score": float(step), "policy/entropy": 4.0} for step in range(1, 21)]
    outcome = compare(rows, [])
    assert outcome.change("entropy") == 0
    assert (outcome.before["score"], outcome.after["score"], outcome.held_out) == (1.5, 19.5, False)


def test_a_healthy_run_gives_no_warning(run_dir):
    assert warnings_of(metric_rows(), eval_rows()) == ""
    assert "No warnings" in page_of(run_dir).text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": 0.1}, "The score did not rise: 0.112 before, 0.100 after, so the initial weights remain the best."),
        ({"kl": 10.1}, "KL above 10 nats (10.1)"),
        ({"length": 11.5}, "Responses shrank to 59.9% of their initial length"),
        ({"distinct_2": 0.79}, "Distinct-2 fell from 0.991 to 0.790"),
        ({"entropy": 0.8}, "Entropy fell from 4.12 to 0.800"),
    ],
)
def test_warnings_about_the_best_checkpoint(run_dir, change, message):
    evals = eval_rows()
    evals[-1] |= change
    text = warnings_of(metric_rows(), evals)
    assert text.startswith(message)
    assert "\n" not in text
    write_rows(run_dir / "eval.jsonl", evals)
    assert f"1 warning {message}" in page_of(run_dir).text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective/kl": 30.0}, "KL above 10 nats (30.0)"),
        ({"policy/clip_fraction": 0.31}, "Clip fraction above 0.3 in 10 of 100 steps"),
        ({"value/explained_variance": -0.2}, "Explained variance negative at the end (−0.200)"),
        ({"policy/loss": float("nan")}, "policy/loss is not finite in 10 of 100 steps, first at step 91."),
        ({"policy/grad_norm": float("inf")}, "policy/grad_norm is not finite in 10 of 100 steps"),
    ],
)
def test_warnings_about_the_training(change, message):
    rows = metric_rows()
    text = warnings_of([*rows[:90], *(row | change for row in rows[90:])], eval_rows())
    assert text.startswith(message)
    assert "\n" not in text


# ---------------------------------------------------------------------------------------------------- numbers


def test_numbers_are_written_with_their_units():
    assert [signed(x) for x in (0.25, -0.25, 0, None)] == ["+0.250", "−0.250", "0", "–"]
    assert [percent(x) for x in (0.8714, None)] == ["87.1%", "–"]
    assert [duration(x) for x in (4.2, 202, 11_520)] == ["4.20 s", "3 min 22 s", "3 h 12 min"]
    assert [parameters(x) for x in (950_000, 1_235_814_400, 124_439_808, 12)] == ["950k", "1.24B", "124M", "12"]


# ---------------------------------------------------------------------------------------------------- more sections


def test_the_tokens_colours_are_chosen_without_javascript(run_dir):
    rows = [row | {"token_values": [0.5] * len(row["tokens"])} for row in sample_rows()]
    write_rows(run_dir / "samples.jsonl", rows)
    page = page_of(run_dir)
    switch = [attributes for attributes in page.all("input") if attributes["type"] == "radio"]
    assert [radio["id"] for radio in switch] == ["by-log-ratio", "by-value"]
    assert [label["for"] for label in page.all("label")] == ["by-log-ratio", "by-value"]
    assert ["checked" in radio for radio in switch] == [True, False]
    assert "#by-value:checked ~ div .value-more-1" in page.source


def test_without_a_critic_there_is_nothing_to_choose(run_dir):
    page = page_of(run_dir)
    assert not page.all("label")
    assert ["hidden" in radio for radio in page.all("input")] == [True]  # the rules of its colours need it


def test_bars_of_the_histogram_open_their_samples(run_dir):
    page = page_of(run_dir)
    assert "Scores of the samples (score)" in page.text
    links = re.findall(r'<a href="#sample-(\d+)">Prompt \1</a>\s*<span class="aside">(\w+),', page.source)
    assert sorted(links) == sorted((str(i), side) for i in range(len(PROMPTS)) for side in ("before", "after"))
    articles = {article["id"] for article in page.all("article")}
    assert articles == {f"sample-{i}" for i in range(len(PROMPTS))}


def test_a_reward_models_accuracy_stands_beside_the_agreement_of_people(run_dir):
    share = {"count": 18, "total": 20, "value": 0.9, "low": 0.699, "high": 0.972}
    model = {"accuracy": share | {"value": 0.81}, "margins": [{"low": 0.1, "high": 1.5, "accuracy": share}]}
    content = {"held_out": model, "people": {"self_consistency": share, "alpha": 0.62}}
    (run_dir / "reward_quality.json").write_text(json.dumps(content), encoding="utf-8")
    page = page_of(run_dir)
    section = page.text[page.text.index("People and model") : page.text.index("Curves Thin")]
    assert "reward model’s held-out accuracy it prefers what people preferred 81.0% 69.9% to 97.2% 20" in section
    assert "self-consistency the same choice when a pair comes again 90.0% 69.9% to 97.2% 20" in section
    assert "Krippendorff’s alpha agreement beyond chance: 1 is full, 0 chance 0.620" in section
    assert {"href": "#reward-model"} in page.all("a")


def test_an_empty_response_is_named_and_a_huge_one_is_whole(run_dir):
    rows = sample_rows()
    rows[0] |= {"response": "", "tokens": [], "token_kl": []}
    rows[-1] |= {"response": "word " * 20_000, "tokens": ["word "] * 20_000, "token_kl": [0.7] * 20_000}
    write_rows(run_dir / "samples.jsonl", rows)
    page = page_of(run_dir)
    assert '<span class="void">empty</span>' in page.source
    assert page.source.count('<span class="t more-2" title="+0.700 nats">word </span>') == 20_000
