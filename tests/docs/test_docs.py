"""The documentation agrees with the code: examples run, tables are complete, links lead somewhere."""

import json
import re
from pathlib import Path

import pytest

from rlhf.cli.main import COMMANDS, main
from rlhf.config.mappings import setting_types, type_of
from rlhf.config.parsing import to_yaml

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tabular/README.md", *sorted(
    str(page.relative_to(ROOT)) for folder in ("docs", "recipes") for page in (ROOT / folder).rglob("*.md")
)]  # fmt: skip


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def python_blocks(page: str) -> list[str]:
    return [part.split("```")[0] for part in read(page).split("```python\n")[1:]]


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", without_code(read(page)), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def write_docs(load_script):
    return load_script(ROOT / "scripts" / "write_docs.py")


# --------------------------------------------------------------------------------------------------- tables and links


@pytest.mark.parametrize("page", ["docs/settings.md", "docs/layout.md"])
def test_generated_tables_are_up_to_date(write_docs, page):
    assert write_docs.updated(page) == read(page), f"{page} is out of date: run `python scripts/write_docs.py`"


def test_every_setting_and_every_file_has_a_description():
    for page in ("docs/settings.md", "docs/layout.md"):
        assert not re.findall(r"^\|.*\|\s+\|$", read(page).split("<!-- begin")[1], flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings_that_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(read(page))):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(str(path.resolve().relative_to(ROOT))), f"{page} links to {target}"


def test_every_page_of_the_documentation_is_in_the_index():
    index = read("docs/README.md")
    assert all(f"({page.name})" in index for page in (ROOT / "docs").glob("*.md") if page.name != "README.md")


def test_readme_is_short():
    assert len(read("README.md").splitlines()) <= 180


def test_settings_named_in_the_documentation_exist(write_docs):
    """Names such as `ppo.lr` or `--model.lora.rank` in the pages and in the shell commands."""
    groups = {name.split(".")[0] for job in write_docs.JOBS.values() for name in write_docs._groups(job)}
    settings = set(re.findall(r"^\| `([a-z_0-9.]+)` \|", read("docs/settings.md"), flags=re.MULTILINE))
    for page in PAGES:
        if page in ("CHANGELOG.md", "tabular/README.md"):
            continue
        named = re.findall(rf"(?:--|`)((?:{'|'.join(sorted(groups))})\.[a-z_0-9.]+)", read(page))
        unknown = {name for name in named if not any(f"{s}.".startswith(f"{name.rstrip(chr(46))}.") for s in settings)}
        jobs = [setting_types(job) for job in write_docs.JOBS.values()]
        unknown -= {name for name in named if any(type_of(types, name) is not None for types in jobs)}
        unknown -= {name for name in named if Path(name).suffix in (".md", ".py", ".yaml", ".jsonl", ".json")}
        assert not unknown, f"{page} names settings that do not exist: {sorted(unknown)}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_files_named_in_the_documentation_exist(page):
    """The `rlhf` commands of shell blocks, and paths such as `scripts/train_ppo.py` or `configs/ppo_full.yaml`."""
    if page == "CHANGELOG.md":
        return
    text = read(page)
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL))
    assert set(re.findall(r"^(?:\.venv/bin/)?rlhf ([\w-]+)", shell, flags=re.MULTILINE)) <= set(COMMANDS)
    added = {"rlhf/rewards/patterns.py", "tests/rlhf/rewards/test_patterns.py", "tabular/td/q_sigma.py"}
    paths = set(
        re.findall(r"(?<![\w./-])((?:rlhf|tabular|scripts|tests|configs|examples|recipes)/[\w/.-]+\.(?:py|yaml))", text)
    )
    assert not {path for path in paths - added if not (ROOT / path).exists()}


def test_metrics_table_has_every_logged_metric_and_no_other(job, tmp_path):
    config = tmp_path / "job.yaml"
    config.write_text(to_yaml(job))
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "the film is good"}\n' * 8)
    variants = [
        [],
        ["--critic.kind", "separate", "--ppo.policy_loss", "kl_penalty"],
        ["--ppo.estimator", "grpo", "--ppo.samples_per_prompt", "2", "--ppo.skip_equal_groups", "--ppo.vf_coef", "0.1"],
        ["--ppo.kl_placement", "loss", "--ppo.kl_estimator", "k3", "--ptx.path", str(texts)],
        [
            "--reward.function",
            "null",
            "--reward.sources.NAME.rule",
            "repetition",
            "--reward.on_error",
            "skip",
            "--eval.judge.rule",
            "repetition",
        ],
    ]
    logged: set[str] = set()
    for i, options in enumerate(variants):
        output = tmp_path / f"run-{i}"
        assert main(["ppo", "--config", str(config), "--output", str(output), *options]) == 0
        logged |= set(json.loads((output / "metrics.jsonl").read_text().splitlines()[0])) - {"step"}
    assert documented_metrics("") == logged


def documented_metrics(section: str) -> set[str]:
    """The names in the first columns of a section of docs/metrics.md; "" for the page before its first section."""
    before, *sections = read("docs/metrics.md").split("\n## ")
    text = {part.split("\n")[0]: part for part in sections}[section] if section else before
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name.strip(" `") for row in rows for name in row.split(",")}


def test_metrics_table_of_dpo_has_every_logged_metric_and_no_other(models, tmp_path):
    pair = {"prompt": "the film is ", "chosen": "good", "rejected": "bad and dull"}
    (tmp_path / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * 10)
    options = [
        "--data.path",
        str(tmp_path / "pairs.jsonl"),
        "--data.eval_fraction",
        "0.2",
        "--training.batch_size",
        "8",
    ]
    output = tmp_path / "run"
    assert main(["dpo", "--model.path", str(models("llama")), "--output", str(output), *options]) == 0
    logged, evaluated = (
        set(json.loads((output / f"{name}.jsonl").read_text().splitlines()[0])) - {"step"}
        for name in ("metrics", "eval")
    )
    assert documented_metrics("DPO") == logged
    assert logged - evaluated == {"grad_norm", "lr", "time/step", "memory/peak_mb"}
    assert evaluated < logged


# ------------------------------------------------------------------------------------------------------------ examples


@pytest.fixture
def folder_with_sft(models, prompts_file, monkeypatch):
    """A working folder with `prompts.jsonl` and a tiny model in `runs/sft`, as the examples expect them."""
    folder = prompts_file.parent
    monkeypatch.chdir(folder)
    (folder / "runs").mkdir()
    (folder / "runs" / "sft").symlink_to(models("llama"))
    return folder


def test_the_readmes_reward_function_returns_a_score_for_each_completion():
    namespace: dict = {}
    exec(next(block for block in python_blocks("README.md") if "my_reward.py" in block), namespace)
    assert namespace["brevity"](prompts=["a"] * 2, completions=["two words", ""], label=[0, 1]) == [-0.2, 0.0]


def test_the_readmes_python_example_trains(folder_with_sft):
    """As printed, with the run shortened."""
    example = next(block for block in python_blocks("README.md") if "PPOTrainer(job, reward=" in block)
    assert example.count('"--output"') == 1
    short = '"--ppo.total_episodes", "8", "--ppo.rollout_batch_size", "8", "--ppo.minibatch_size", "8", "--output"'
    exec(compile(example.replace('"--output"', short), "README.md", "exec"), {})
    assert (folder_with_sft / "runs" / "python" / "model" / "config.json").exists()


def test_the_custom_loop_runs_as_printed(folder_with_sft, capsys):
    """Two turns with an environment's tokens between them, which stay in the context and out of the loss."""
    (example,) = python_blocks("docs/custom_loop.md")
    namespace: dict = {}
    exec(compile(example, "custom_loop.md", "exec"), namespace)
    rollout = namespace["rollout"]
    first, replies, second = zip(*namespace["turns"], strict=True)
    assert rollout.token_ids() == [a + b for a, b in zip(first, second, strict=True)]
    for i, (a, reply) in enumerate(zip(first, replies, strict=True)):
        assert rollout.response_ids[i, len(a) : len(a) + len(reply)].tolist() == reply
        assert not rollout.response_mask[i, len(a) : len(a) + len(reply)].any()
    assert rollout.token_scores is not None
    assert (folder_with_sft / "runs" / "custom" / "checkpoints" / "latest").exists()
    assert (folder_with_sft / "runs" / "custom" / "model" / "config.json").exists()
    assert len(capsys.readouterr().out.splitlines()) >= 3  # a score per step
