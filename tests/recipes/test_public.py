"""Settings for public data: they parse; the rewritten rows and GSM8K's reward are right. Nothing is loaded."""

import json
from pathlib import Path

import pytest

from rlhf.config.jobs import PPOJob, RewardJob, SFTJob
from rlhf.config.parsing import parse, read_yaml
from rlhf.errors import UserError
from rlhf.rewards.functions import FunctionReward, load_function

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "public"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))


@pytest.fixture(scope="module")
def data(load_script):
    return load_script(FOLDER / "data.py")


def job_of(file: str):
    settings = read_yaml(FOLDER / file)
    kind = PPOJob if "ppo" in settings else SFTJob if file.endswith("_sft.yaml") else RewardJob
    return parse(kind, ["--config", str(FOLDER / file)])


# ------------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize("file", FILES)
def test_the_settings_parse_and_say_that_they_were_not_run(file):
    assert (FOLDER / file).read_text().startswith("# Not run here. ")
    job = job_of(file)
    data_set, _, stage = file.removesuffix(".yaml").partition("_")
    assert job.output == f"runs/{data_set}/{stage}"


@pytest.mark.parametrize("file", FILES)
def test_the_command_in_the_comment_names_the_file_and_its_stage(file):
    comment = "".join(line for line in (FOLDER / file).read_text().splitlines(True) if line.startswith("#"))
    assert f"--config recipes/public/{file}" in comment
    stage = {PPOJob: "ppo", SFTJob: "sft", RewardJob: "reward"}[type(job_of(file))]
    assert f"rlhf {stage} " in comment or f"scripts/train_{stage}.py" in comment


def test_later_stages_start_from_what_the_earlier_ones_write():
    jobs = [job_of(file) for file in FILES]
    outputs = {job.output for job in jobs}
    named = {job.model.path for job in jobs} | {job.reward.model for job in jobs if isinstance(job, PPOJob)}
    runs = {path for path in named if path is not None and path.startswith("runs/")}
    assert len(runs) == 5
    assert runs <= outputs


@pytest.mark.parametrize("file", [name for name in FILES if "ppo" in name or "gsm8k" in name])
def test_a_batch_can_be_divided_among_the_processes(file):
    text = (FOLDER / file).read_text()
    processes = int(text.split("--num_processes ")[1].split()[0]) if "--num_processes" in text else 1
    job = job_of(file)
    assert isinstance(job, PPOJob)
    job.ppo.check_processes(processes)


# ---------------------------------------------------------------------------------------------------------------- data


def test_gsm8k_becomes_a_prompt_for_chat_models_and_a_number(data):
    row = {"question": "How many?\n", "answer": "1000 + 2 = <<1000+2=1002>>1002.\n#### 1,002"}
    content = "How many?\nReason step by step. End with a line of #### and the number alone."
    assert data.gsm8k_rows(row) == {"prompts": {"prompt": [{"role": "user", "content": content}], "answer": "1002"}}


def test_a_dialogue_becomes_messages_and_blank_lines_stay_in_theirs(data):
    dialogue = "\n\nHuman: Two things:\n\nfirst: this\n\nAssistant: Yes?\n\nHuman: More\n\nAssistant: "
    assert data.hh_messages(dialogue) == [
        {"role": "user", "content": "Two things:\n\nfirst: this"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "More"},
        {"role": "assistant", "content": ""},
    ]


def test_two_dialogues_become_a_demonstration_a_pair_and_a_prompt(data):
    start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
    rows = data.hh_rows({"chosen": f"{start} Because.", "rejected": f"{start} No."})
    prompt = data.hh_messages(start)[:-1]
    assert len(prompt) == 3
    assert rows == {
        "demonstrations": {"messages": [*prompt, {"role": "assistant", "content": "Because."}]},
        "pairs": {"prompt": prompt, "chosen": "Because.", "rejected": "No."},
        "prompts": {"prompt": prompt},
    }


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("\n\nHuman: Hi\n\nAssistant: Hello", "\n\nHuman: Hey\n\nAssistant: Hello"),  # other prompts
        ("\n\nHuman: Hi\n\nAssistant: Hello", "\n\nHuman: Hi\n\nAssistant:"),  # an empty answer
        ("\n\nHuman: Hi\n\nHuman: Hello", "\n\nHuman: Hi\n\nHuman: You"),  # no answer
        ("\n\nHuman: Hi\n\nAssistant: Hello", ""),
    ],
)
def test_dialogues_that_are_no_pair_are_left_out(data, chosen, rejected):
    assert data.hh_rows({"chosen": chosen, "rejected": rejected}) == {}


def test_ultrafeedback_conversations_end_before_the_answer(data):
    question = {"role": "user", "content": "Why?"}
    row = {"chosen": [question, {"role": "assistant", "content": "So."}], "rejected": [], "score_chosen": 8.0}
    assert data.ultrafeedback_rows(row) == {"prompts": {"prompt": [question]}}


def test_rows_go_to_a_file_for_each_kind(data, tmp_path):
    dialogue = "\n\nHuman: Hi\n\nAssistant: Hello"
    rows = [{"chosen": dialogue, "rejected": f"{dialogue}!"}, {"chosen": dialogue, "rejected": "\n\nHuman: x"}]
    assert data.write_files(rows, data.hh_rows, tmp_path, "_test") == 1
    files = {path.name: path.read_text().splitlines() for path in tmp_path.iterdir()}
    assert set(files) == {"demonstrations_test.jsonl", "pairs_test.jsonl", "prompts_test.jsonl"}
    assert json.loads(files["pairs_test.jsonl"][0])["rejected"] == "Hello!"


def test_existing_data_is_not_overwritten(data, tmp_path):
    with pytest.raises(UserError, match="exists already"):
        data.main(["gsm8k", str(tmp_path)])


# -------------------------------------------------------------------------------------------------------------- reward


def test_the_number_after_the_last_mark_must_equal_the_answer():
    name = f"{FOLDER / 'gsm8k_reward.py'}:exact_answer"
    completions = [
        "So it is 5.\n#### 5",
        "####  $1,000.0",
        "#### 4\n#### 5",
        "5",
        "#### 15",
        "#### five",
        "#### -5",
        "#### ,5",
    ]
    answers = ["5", "1000", "5", "5", "5", "5", "-5", "5"]
    scores = FunctionReward(load_function(name), name)([""] * 8, completions, {"answer": answers})
    assert scores == [1, 1, 1, 0, 0, 0, 1, 1]
