"""Names of other trainers' settings are answered with the setting, the formula or the reason, all in one message."""

import pytest

from rlhf.config import aliases
from rlhf.config.jobs import PPOJob, RewardJob, SFTJob
from rlhf.config.parsing import from_dict, parse, setting_types, to_yaml
from rlhf.errors import UserError

NEEDED = ["--model.path", "m", "--data.path", "d", "--reward.function", "f.py:g"]


def message_of(kind, *words):
    with pytest.raises(UserError) as error:
        parse(kind, [*(NEEDED if kind is PPOJob else NEEDED[:4]), *words])
    return str(error.value)


def test_answers_name_settings_that_exist():
    ppo, sft, reward = (set(setting_types(kind)) for kind in (PPOJob, SFTJob, RewardJob))
    assert set(aliases.ALIASES.values()) <= ppo
    assert {text.split(" ")[0] for text in aliases.CONVERSIONS.values()} <= ppo
    supervised = {text.split(" ")[0] for text in aliases.SUPERVISED_CONVERSIONS.values()}
    assert supervised | set(aliases.SUPERVISED_ALIASES.values()) <= sft & reward


def test_no_name_has_two_answers_and_no_setting_is_called_unsupported():
    tables = (aliases.ALIASES, aliases.CONVERSIONS, aliases.UNSUPPORTED, aliases.WITHOUT_COUNTERPART)
    names = [name for table in tables for name in table]
    assert len(names) == len(set(names))
    refused = {*aliases.UNSUPPORTED, *aliases.WITHOUT_COUNTERPART}
    assert not refused & {key.rsplit(".", 1)[-1] for kind in (PPOJob, SFTJob) for key in setting_types(kind)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gradient_accumulation_steps", "4"], "here ppo.rollout_batch_size = per_device_train_batch_size * "),
        (["--num_mini_batches", "2"], "here ppo.minibatch_size = ppo.rollout_batch_size / num_mini_batches"),
        (["--dataset_train_split", "train"], "it is called data.split here"),
        (["--dataset_test_split", "test"], "it is called data.eval_split here"),
        (["--num_train_epochs", "1"], "here ppo.total_episodes = num_train_epochs * number of prompts"),
        (["--push_to_hub"], "push_to_hub has no counterpart here: nothing is uploaded; "),
        (["--logging_steps", "1"], "logging_steps has no counterpart here: every step is logged"),
        (["--bf16"], "here model.mixed_precision = bf16"),
        (["--eval_steps", "10"], "it is called eval.every here"),
        (["--use_peft"], "here model.lora.rank = lora_r; 0 trains all weights"),
    ],
)
def test_a_setting_of_trl_is_answered(words, message):
    assert message in message_of(PPOJob, *words)


@pytest.mark.parametrize("kind", [SFTJob, RewardJob])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rate", "1"], "it is called training.lr here"),
        (["--num_train_epochs", "1"], "it is called training.epochs here"),
        (["--per_device_train_batch_size", "1"], "it is called training.microbatch_size here"),
        (["--gradient_accumulation_steps", "1"], "here training.batch_size = per_device_train_batch_size * "),
        (["--save_steps", "1"], "it is called checkpoint.every here"),
    ],
)
def test_supervised_stages_answer_with_settings_of_their_own(kind, words, message):
    assert message in message_of(kind, *words)


def test_all_old_names_are_reported_at_once(tmp_path):
    """Those of the options, those of the files, and a list whose second word belongs to no option."""
    (tmp_path / "c.yaml").write_text("cliprange: 0.2\nppo: {lambd: 0.9}\n")
    words = ["--learning_rate", "3e-6", "--num_mini_batches", "2", "--report_to", "wandb", "other", "--push_to_hub"]
    first, *others = message_of(PPOJob, "--config", str(tmp_path / "c.yaml"), *words).split("\n  ")
    assert first == "6 settings cannot be used:"
    assert [line.split(";")[0].split(" has ")[0] for line in others] == [
        "unknown setting learning_rate",
        "unknown setting num_mini_batches",
        "unknown setting report_to",
        "push_to_hub",
        f"{tmp_path}/c.yaml: unknown setting cliprange",
        f"{tmp_path}/c.yaml: unknown setting ppo.lambd",
    ]


@pytest.mark.parametrize(
    ("typed", "strings"),
    [
        (r"\n", ["\n"]),
        ("\n", ["\n"]),
        (r'"\n"', ["\n"]),
        (r'["\n"]', ["\n"]),
        (r"[\n, END]", ["\n", "END"]),
        (r"['\n']", ["\\n"]),
        ("END", ["END"]),
        ("Answer: yes", ["Answer: yes"]),
        ("5", ["5"]),
        ("[]", []),
    ],
)
def test_stop_strings_are_read_as_typed_on_a_shell(typed, strings):
    job = parse(PPOJob, [*NEEDED, "--generation.stop_strings", typed])
    assert job.generation.stop_strings == strings


@pytest.mark.parametrize("strings", [["\n"], ["\\n", "a: b", '"'], ["é", "\\"]])
def test_strings_keep_their_backslashes_in_a_file(tmp_path, strings):
    settings = {"model": {"path": "m"}, "generation": {"stop_strings": strings}}
    again = from_dict(PPOJob, settings)
    assert again.generation.stop_strings == strings
    (tmp_path / "c.yaml").write_text(to_yaml(again))
    assert parse(PPOJob, ["--config", str(tmp_path / "c.yaml")]) == again
