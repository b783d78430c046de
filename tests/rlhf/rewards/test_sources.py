"""Opening the source that a config names."""

import pytest

from rlhf.config.scores import JudgeConfig, RewardConfig, WeightedSource
from rlhf.errors import UserError
from rlhf.rewards import sources
from rlhf.rewards.functions import FunctionReward
from rlhf.rewards.models import ModelReward
from rlhf.rewards.sources import open_source, open_sources


def test_config_opens_the_source_it_names(reward_file, reward_folder):
    assert isinstance(open_source(RewardConfig(function=f"{reward_file}:good"), "cpu"), FunctionReward)
    assert isinstance(open_source(RewardConfig(model=str(reward_folder)), "cpu"), ModelReward)
    assert open_source(JudgeConfig(), "cpu") is None


def test_sources_keep_the_order_of_their_configs_and_unset_ones_are_left_out(reward_file, reward_folder):
    configs = {"score": RewardConfig(model=str(reward_folder)), "judge": JudgeConfig(function=f"{reward_file}:good")}
    assert list(open_sources(configs, "cpu")) == ["score", "judge"]
    assert list(open_sources({"score": RewardConfig(), "judge": configs["judge"]}, "cpu")) == ["judge"]


def test_a_mistake_in_one_source_of_a_mix_names_it(reward_file):
    sources = {"a": WeightedSource(function=f"{reward_file}:good"), "b": WeightedSource(rule="length_target")}
    with pytest.raises(UserError, match="source b: rule length_target needs a parameter 'target'"):
        open_sources({"score": RewardConfig(sources=sources)}, "cpu")


def test_function_is_opened_before_a_model_is_loaded(reward_file, monkeypatch):
    def load(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(sources, "ModelReward", load)
    configs = {"score": RewardConfig(model="m"), "judge": JudgeConfig(function=f"{reward_file}:missing")}
    with pytest.raises(UserError, match="has no function 'missing'"):
        open_sources(configs, "cpu")
