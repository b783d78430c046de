"""`docs/from_trl.md`, the answers to TRL's names, and TRL 1.12's list of settings agree; the page's commands run."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState

from rlhf.cli.main import main
from rlhf.config import aliases
from rlhf.config.jobs import PPOJob
from rlhf.config.parsing import flatten, parse, setting_types
from rlhf.errors import UserError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "from_trl.md").read_text(encoding="utf-8")
TRL = {
    name
    for names in json.loads(Path(__file__).with_name("trl_1_12_settings.json").read_text()).values()
    for name in names
}
"""Every field of TRL 1.12's PPOConfig, ScriptArguments and ModelConfig; `tests/peers` compares it with TRL itself."""
SETTINGS = setting_types(PPOJob)


def names_in(text: str) -> list[str]:
    return re.findall(r"`([a-z_0-9.]+)`", text)


def rows_below(heading: str) -> list[list[str]]:
    """The cells of the rows of the table in a section."""
    section = re.split(r"^## ", PAGE.split(f"## {heading}\n")[1], flags=re.MULTILINE)[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()[1:] if line[:1] == "|"
    ][2:]


TRANSLATED = rows_below("Settings of `PPOConfig`") + rows_below("Settings of `ScriptArguments` and `ModelConfig`")
UNUSED = rows_below("Not used here")
COMMANDS = [
    [word for word in shlex.split(part) if word != "\n"]
    for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    for part in block.split("\n\n")
]


def answer(name: str) -> str:
    """The message about an option of TRL; the name itself where it is a setting here too."""
    if name in SETTINGS:
        return name
    with pytest.raises(UserError) as error:
        parse(PPOJob, ["--model.path", "m", f"--{name}", "1"])
    return str(error.value)


def setting_in(message: str) -> str | None:
    """The first setting that a message names."""
    words = (word.strip(".,;?") for word in message.split())
    return next((word for word in words if word in SETTINGS), None)


def test_the_page_has_every_setting_of_trl_once():
    names = [name for cells in TRANSLATED for name in names_in(cells[0])]
    names += [name for cells in UNUSED for name in names_in(cells[1])]
    assert sorted(names) == sorted(TRL)


@pytest.mark.parametrize("cells", TRANSLATED, ids=lambda cells: cells[0])
def test_a_name_is_answered_with_the_setting_of_its_row(cells):
    """And each setting of a row is the answer to one of its names."""
    answers = [setting_in(answer(name)) for name in names_in(cells[0])]
    assert set(answers) == set(names_in(cells[1]))


@pytest.mark.parametrize("cells", UNUSED, ids=lambda cells: cells[0][:40])
def test_a_name_without_a_counterpart_is_answered_with_the_reason_of_its_row(cells):
    for name in names_in(cells[1]):
        assert answer(name) == f"{name} has no counterpart here: {cells[0]}"


def test_formulas_of_the_page_are_those_of_the_answers():
    for name in ("gradient_accumulation_steps", "num_mini_batches", "num_train_epochs", "max_steps"):
        formula = aliases.CONVERSIONS[name].split(" = ")[1]
        row = next(cells for cells in TRANSLATED if name in names_in(cells[0]))
        assert formula in row[2].replace("`", "")


def options_of(words: list[str]) -> dict[str, str]:
    """Option -> value; the page's commands have a value for each."""
    start = next(i for i, word in enumerate(words) if word.startswith("--"))
    if "accelerate" in words:
        start = next(i for i, word in enumerate(words) if word.endswith(".py")) + 1
    return dict(zip((word[2:] for word in words[start::2]), words[start + 1 :: 2], strict=True))


PAIRS = [
    (theirs, next(words for words in COMMANDS[i + 1 :] if "ppo" in words or "scripts/train_ppo.py" in words))
    for i, theirs in enumerate(COMMANDS)
    if any("trl/examples/scripts" in word for word in theirs)
]


def test_the_page_has_the_three_examples():
    assert len(PAIRS) == 3


@pytest.mark.parametrize(("theirs", "ours"), PAIRS)
def test_each_option_of_an_example_is_in_the_command_here(theirs, ours):
    """By itself or in the config, with the same value where the names mean the same."""
    options = options_of(ours)
    settings = flatten(yaml.safe_load((ROOT / options.pop("config")).read_text())) | options
    for name, value in options_of(theirs).items():
        setting = setting_in(answer(name))
        if name in ("model_name_or_path", "stop_token"):  # the policy's path counts; the end token is the default
            continue
        assert setting in settings, name
        is_same = aliases.ALIASES.get(name) == setting or setting.endswith(f".{name}")
        if is_same and name not in ("reward_model_path", "local_rollout_forward_batch_size"):  # the text explains these
            assert str(settings[setting]) == value, name
    rows = int(options_of(theirs)["per_device_train_batch_size"]) * int(
        options_of(theirs)["gradient_accumulation_steps"]
    )
    processes = int(ours[ours.index("--num_processes") + 1]) if "--num_processes" in ours else 1
    assert int(options["ppo.rollout_batch_size"]) == int(options["ppo.minibatch_size"]) == rows * processes


@pytest.fixture
def tiny(models, reward_folder, tmp_path, monkeypatch):
    """A working folder where the page's hub ids are tiny models and data."""
    import datasets

    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    rows = [
        {
            "prompt": f"the film {w}",
            "chosen": f"the film {w} good",
            "rejected": f"the film {w} bad",
            "completion": "good",
        }
        for w in ["is", "a", "dull", "fine"] * 40
    ]
    part = datasets.Dataset.from_list(rows)
    parts = {"train": part, "validation": part.select(range(8)), "descriptiveness": part}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "data"))
    yield {
        "EleutherAI/pythia-1b-deduped": str(models("llama")),
        "cleanrl/EleutherAI_pythia-1b-deduped__sft__tldr": str(models("llama")),
        "cleanrl/EleutherAI_pythia-1b-deduped__reward__tldr": str(reward_folder),
        "trl-internal-testing/descriptiveness-sentiment-trl-style": str(tmp_path / "data"),
        "trl-lib/tldr": str(tmp_path / "data"),
    }
    AcceleratorState._reset_state(True)


def run_here(words: list[str], tiny: dict[str, str], *more: str) -> Path:
    """Run a command of the page on tiny models; its output folder."""
    stage = "ppo" if "scripts/train_ppo.py" in words else words[1]
    options = {name: tiny.get(value, value) for name, value in options_of(words).items()}
    AcceleratorState._reset_state(True)  # as in a new process
    assert main([stage, *(f"--{name}={value}" for name, value in options.items()), "--trackers", "[]", *more]) == 0
    return Path(options["output"])


OURS = [words for words in COMMANDS if words[0] == "rlhf" or "scripts/train_ppo.py" in words]


@pytest.mark.slow
@pytest.mark.parametrize("ours", [words for _, words in PAIRS], ids=["documentation", "ppo.py", "ppo_tldr.py"])
def test_the_commands_of_the_page_run(tiny, ours, reward_folder):
    """One step each; the reward model of the first two is that of the page's `rlhf reward`, which runs before them."""
    (train_reward,) = [words for words in OURS if words[:2] == ["rlhf", "reward"]]
    run_here(train_reward, tiny)
    size = options_of(ours)["ppo.rollout_batch_size"]
    short = ["--ppo.total_episodes", size, "--generation.max_new_tokens", "4"]
    folder = run_here(ours, tiny, *short)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
    assert (folder / "model" / "config.json").exists()
    job = yaml.safe_load((folder / "config.yaml").read_text())
    assert (job["critic"]["kind"], job["critic"]["init"], job["reward"]["truncated"]) == (
        "separate",
        "reward",
        "subtract",
    )
