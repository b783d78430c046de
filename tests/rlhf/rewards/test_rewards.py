"""Sources of scores: functions as people write them, and reward models against transformers' own reading."""

import sys

import numpy as np
import pytest
import torch

from rlhf.config.jobs import JudgeConfig, RewardConfig
from rlhf.errors import UserError
from rlhf.models.loading import load_tokenizer
from rlhf.rewards.sources import FunctionReward, ModelReward, RewardSource, apply_rules, load_function, open_source

PROMPTS = ["the film is ", "a story ", "it is "]
COMPLETIONS = ["good and warm", "bad", "dull with no heart in it"]


def ask(returned):
    """What a function that returns this scores two completions."""
    return FunctionReward(lambda **_: returned, "mine")(["p", "p"], ["left", "right"], {})


# ------------------------------------------------------------------------------------------------------------ functions


def test_function_is_called_by_keyword_with_texts_and_every_column():
    given = {}
    source = FunctionReward(lambda **columns: given.update(columns) or [1, 2.5], "mine")
    assert isinstance(source, RewardSource)
    assert source(["a", "b"], ["c", "d"], {"wanted": ["x", "y"], "n": [1, 2]}) == [1.0, 2.5]
    assert given == {"prompts": ["a", "b"], "completions": ["c", "d"], "wanted": ["x", "y"], "n": [1, 2]}


@pytest.mark.parametrize(
    "returned",
    [
        [1, -2.5],
        (True, -2.5),
        torch.tensor([1.0, -2.5]),
        torch.tensor([1.0, -2.5], dtype=torch.bfloat16, requires_grad=True),
        np.array([1.0, -2.5], dtype=np.float32),
        [np.float32(1), np.float64(-2.5)],
        [torch.tensor(1), torch.tensor(-2.5)],
    ],
)
def test_numbers_of_every_kind_are_taken(returned):
    scores = ask(returned)
    assert scores == [1.0, -2.5]
    assert [type(score) for score in scores] == [float, float]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "mine returned 1 scores for 2 completions"),
        ([1.0, 2.0, 3.0], "mine returned 3 scores for 2 completions"),
        ([1.0, float("nan")], "mine returned nan for the completion 'right', but a score must be a finite number"),
        ([float("-inf"), 1.0], "mine returned -inf for the completion 'left'"),
        (torch.tensor([torch.nan, 1.0]), "mine returned nan for the completion 'left'"),
        (["good", 1.0], "mine returned 'good' for the completion 'left'"),
        ([1.0, None], "mine returned None for the completion 'right'"),
        ([[1.0], [2.0]], r"mine returned \[1.0\] for the completion 'left'"),
        (torch.ones(2, 1), r"mine returned \[1.0\] for the completion 'left'"),
        ([torch.ones(2), torch.ones(2)], "mine returned tensor.* for the completion 'left'"),
        (None, "mine returned None, but must return a list of numbers"),
        (1.0, "mine returned 1.0, but must return a list"),
        (torch.tensor(1.0), "mine returned 1.0, but must return a list"),
        ("ab", "mine returned 'ab', but must return a list"),
        ([10**400, 1], "mine returned 1000.* for the completion 'left'"),
        ({"a": 1, "b": 2}, "mine returned {.*}, but must return a list"),
    ],
)
def test_anything_else_is_refused_with_what_was_returned(returned, message):
    with pytest.raises(UserError, match=message):
        ask(returned)


def test_function_that_raises_is_named_with_its_error():
    def broken(**_):
        raise KeyError("label")

    with pytest.raises(UserError, match="reward function mine raised KeyError: 'label'"):
        FunctionReward(broken, "mine")(["p"], ["c"], {})


def test_function_is_found_in_a_file_and_in_a_module(reward_file, monkeypatch):
    monkeypatch.syspath_prepend(reward_file.parent)
    for where in (f"{reward_file}:good", "my_reward:good"):
        assert load_function(where)(prompts=[""], completions=["good a"], anything=[0]) == [0.5]
    sys.modules.pop("my_reward")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("{dir}/none.py:good", "reward function file .*none.py does not exist"),
        ("{file}:godo", "my_reward.py has no function 'godo'; it has good"),
        ("no_such_module_anywhere:good", "cannot import no_such_module_anywhere .*ModuleNotFoundError"),
        ("{dir}/broken.py:good", "cannot import .*broken.py for the reward function: SyntaxError"),
        ("{dir}/failing.py:good", "cannot import .*failing.py for the reward function: ZeroDivisionError"),
        ("{dir}/constant.py:good", "constant.py has no function 'good'; it has none"),
        ("{dir}/strict.py:good", r"must take \*\*kwargs: it is called as good\(prompts=..., completions=..."),
        ("builtins:max", r"must take \*\*kwargs"),  # has no signature that Python could tell
    ],
)
def test_functions_that_cannot_be_used_are_refused_at_once(reward_file, where, message):
    folder = reward_file.parent
    (folder / "broken.py").write_text("def good(:\n")
    (folder / "failing.py").write_text("1 / 0\n")
    (folder / "constant.py").write_text("good = 3\n")
    (folder / "strict.py").write_text("def good(prompts, completions):\n    return [0.0] * len(prompts)\n")
    with pytest.raises(UserError, match=message):
        load_function(where.format(dir=folder, file=reward_file))


def test_config_opens_the_source_it_names(reward_file, reward_folder):
    assert isinstance(open_source(RewardConfig(function=f"{reward_file}:good"), "cpu"), FunctionReward)
    assert isinstance(open_source(RewardConfig(model=str(reward_folder)), "cpu"), ModelReward)
    assert open_source(JudgeConfig(), "cpu") is None


# --------------------------------------------------------------------------------------------------------------- models


def theirs(folder, tokenizer, texts):
    """Transformers' own scores, which it reads at the last token that is not padding."""
    from transformers import AutoModelForSequenceClassification

    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        return model(batch.input_ids, attention_mask=batch.attention_mask).logits.squeeze(-1)


@pytest.fixture
def changed_folder(reward_folder, tmp_path):
    """`changed_folder(score_mean=...)`: the reward model with other settings in its config."""
    from transformers import AutoModelForSequenceClassification

    def changed(tokenizer=None, **settings):
        model = AutoModelForSequenceClassification.from_pretrained(reward_folder)
        for name, value in settings.items():
            setattr(model.config, name, value)
        model.save_pretrained(tmp_path / "changed")
        (tokenizer or load_tokenizer(str(reward_folder))).save_pretrained(tmp_path / "changed")
        return str(tmp_path / "changed")

    return changed


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_reward_model_says_what_transformers_says_in_the_order_of_the_texts(reward_folder, batch_size):
    texts = [p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    scores = ModelReward(str(reward_folder), "cpu", batch_size)(PROMPTS, COMPLETIONS, {})
    expected = theirs(reward_folder, load_tokenizer(str(reward_folder)), texts)
    torch.testing.assert_close(torch.tensor(scores), expected, rtol=1e-5, atol=1e-6)
    assert expected.std() > 0.001


def test_end_token_is_read_where_the_model_learnt_to_and_is_no_padding(changed_folder, reward_folder):
    """Also where padding and end are one token: transformers would then read the token before the end."""
    tokenizer = load_tokenizer(str(reward_folder))
    texts = [p + c + "<|end|>" for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    expected = theirs(reward_folder, tokenizer, texts)
    tokenizer.pad_token = tokenizer.eos_token
    scores = ModelReward(changed_folder(tokenizer, append_eos=True, pad_token_id=1), "cpu")(PROMPTS, COMPLETIONS, {})
    torch.testing.assert_close(torch.tensor(scores), expected, rtol=1e-5, atol=1e-6)


def test_scores_are_normalised_by_what_the_config_names_unless_told_not_to(changed_folder):
    folder = changed_folder(score_mean=0.25, score_std=0.5)
    plain, normal = (ModelReward(folder, "cpu", normalize=on)(PROMPTS, COMPLETIONS, {}) for on in (False, True))
    assert normal == pytest.approx([(score - 0.25) / 0.5 for score in plain], abs=1e-6)


def test_reward_model_reads_texts_with_its_own_tokenizer(changed_folder, reward_folder):
    """Its ids stand for other words than the policy's: the same text through another vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for text in (*PROMPTS, *COMPLETIONS) for word in text.split()})
    core = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(["<u>", "<e>", "<p>", *words])}, unk_token="<u>")
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    other = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<u>", eos_token="<e>", pad_token="<p>")
    texts = [p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    scores = ModelReward(changed_folder(other), "cpu")(PROMPTS, COMPLETIONS, {})
    torch.testing.assert_close(torch.tensor(scores), theirs(reward_folder, other, texts), rtol=1e-5, atol=1e-6)
    assert scores != pytest.approx(ModelReward(str(reward_folder), "cpu")(PROMPTS, COMPLETIONS, {}))


def test_texts_longer_than_the_model_reads_are_cut(reward_folder):
    source = ModelReward(str(reward_folder), "cpu")
    assert source.max_length == 128
    long, cut = source(["the "] * 2, ["film " * 200, "film " * 127], {})
    assert long == cut


def test_models_that_give_no_single_score_are_refused(changed_folder, models, tmp_path):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    with pytest.raises(UserError, match="LlamaForCausalLM, which is no reward model; train one with `rlhf reward`"):
        ModelReward(str(models("llama")), "cpu")
    config = AutoConfig.from_pretrained(models("llama"), num_labels=3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "three")
    load_tokenizer(str(models("llama"))).save_pretrained(tmp_path / "three")
    with pytest.raises(UserError, match="has 3 labels, but a score needs exactly 1"):
        ModelReward(str(tmp_path / "three"), "cpu")


# ---------------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"missing_eos_penalty": None}, [0.5, 1.5, 2.5, 3.5]),
        ({"missing_eos_penalty": 2.0}, [-2.0, 1.5, -2.0, 3.5]),
        ({"missing_eos_penalty": 0.0}, [0.0, 1.5, 0.0, 3.5]),
        ({"missing_eos_penalty": None, "min_length": 3, "short_penalty": 5.0}, [0.5, 1.5, -5.0, -5.0]),
        ({"missing_eos_penalty": 2.0, "min_length": 3, "short_penalty": 5.0}, [-2.0, 1.5, -2.0, -5.0]),
        ({"missing_eos_penalty": None, "min_length": 1}, [0.5, 1.5, 2.5, 3.5]),
    ],
)
def test_penalties_take_the_place_of_scores(rules, expected):
    """Lengths 4, 3, 2, 1; the first and the third are cut off."""
    lengths = torch.tensor([4, 3, 2, 1])
    truncated = torch.tensor([True, False, True, False])
    scores = torch.tensor([0.5, 1.5, 2.5, 3.5])
    assert apply_rules(scores, lengths, truncated, RewardConfig(**rules), 4).tolist() == expected


def test_overlong_responses_pay_more_with_every_token_of_the_buffer():
    """Limit 10, buffer 4, price 2: six tokens are free, the next four cost 2 / 4 each, later ones no more.

    It is taken from the score, truncated or not, and nothing replaces the score.
    """
    lengths = torch.tensor([1, 6, 7, 8, 9, 10, 10, 13])
    truncated = torch.tensor([False, False, False, False, False, False, True, True])
    config = RewardConfig(truncated="overlong", overlong_penalty=2.0, overlong_buffer=4)
    found = apply_rules(torch.full((8,), 5.0), lengths, truncated, config, 10)
    assert found.tolist() == [5.0, 5.0, 4.5, 4.0, 3.5, 3.0, 3.0, 3.0]


def test_overlong_buffer_as_long_as_the_limit_prices_every_token():
    config = RewardConfig(truncated="overlong", overlong_penalty=1.0, overlong_buffer=4)
    found = apply_rules(torch.zeros(4), torch.tensor([1, 2, 3, 4]), torch.zeros(4, dtype=torch.bool), config, 4)
    assert found.tolist() == [-0.25, -0.5, -0.75, -1.0]


def test_too_short_and_overlong_are_both_paid_for():
    """A response below min_length scores minus short_penalty; the soft penalty comes on top of whatever there is."""
    config = RewardConfig(
        truncated="overlong", overlong_penalty=2.0, overlong_buffer=4, min_length=2, short_penalty=3.0
    )
    found = apply_rules(torch.ones(3), torch.tensor([1, 2, 4]), torch.zeros(3, dtype=torch.bool), config, 4)
    assert found.tolist() == [-3.5, 0.0, -1.0]


@pytest.mark.parametrize("policy", ["bootstrap", "mask"])
def test_other_truncation_policies_leave_the_scores_alone(policy):
    """Though a penalty for a missing end has a default."""
    scores = torch.tensor([0.5, 1.5])
    found = apply_rules(scores, torch.tensor([4, 4]), torch.tensor([True, False]), RewardConfig(truncated=policy), 4)
    assert torch.equal(found, scores)
