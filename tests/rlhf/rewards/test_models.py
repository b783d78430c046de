"""Reward models against the scores of transformers."""

import json
import shutil

import pytest
import torch

from rlhf.config.scores import SourceSettings
from rlhf.errors import UserError
from rlhf.models.loading import load_tokenizer
from rlhf.models.reward_models import scores_every_token
from rlhf.rewards.models import ModelReward, plain_chat
from rlhf.rewards.sources import open_source

PROMPTS = ["the film is ", "a story ", "it is "]

COMPLETIONS = ["good and warm", "bad", "dull with no heart in it"]


def transformers_scores(folder, tokenizer, texts):
    """Scores by transformers, which takes them at the last token that is not padding."""
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


@pytest.mark.parametrize(("batch_size", "batch_tokens"), [(1, None), (2, None), (64, None), (64, 1), (64, 12)])
def test_scores_equal_those_of_transformers_in_the_order_of_the_texts(reward_folder, batch_size, batch_tokens):
    texts = [p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    scores = ModelReward(str(reward_folder), "cpu", batch_size, batch_tokens)(PROMPTS, COMPLETIONS, {})
    expected = transformers_scores(reward_folder, load_tokenizer(str(reward_folder)), texts)
    torch.testing.assert_close(torch.tensor(scores), expected, rtol=1e-5, atol=1e-6)
    assert expected.std() > 0.001


def test_end_token_is_scored_even_if_it_is_also_the_padding_token(changed_folder, reward_folder):
    """Transformers would then score at the token before the end token."""
    tokenizer = load_tokenizer(str(reward_folder))
    texts = [p + c + "<|end|>" for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    expected = transformers_scores(reward_folder, tokenizer, texts)
    tokenizer.pad_token = tokenizer.eos_token
    scores = ModelReward(changed_folder(tokenizer, append_eos=True, pad_token_id=1), "cpu")(PROMPTS, COMPLETIONS, {})
    torch.testing.assert_close(torch.tensor(scores), expected, rtol=1e-5, atol=1e-6)


def test_scores_are_normalised_by_the_statistics_in_the_config(changed_folder):
    folder = changed_folder(score_mean=0.25, score_std=0.5)
    plain, normal = (ModelReward(folder, "cpu", normalize=on)(PROMPTS, COMPLETIONS, {}) for on in (False, True))
    assert normal == pytest.approx([(score - 0.25) / 0.5 for score in plain], abs=1e-6)


def test_reward_model_uses_its_own_tokenizer(changed_folder, reward_folder):
    """Its token ids mean other words than the policy's: the same text through another vocabulary."""
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
    torch.testing.assert_close(
        torch.tensor(scores), transformers_scores(reward_folder, other, texts), rtol=1e-5, atol=1e-6
    )
    assert scores != pytest.approx(ModelReward(str(reward_folder), "cpu")(PROMPTS, COMPLETIONS, {}))


def test_texts_longer_than_the_context_are_cut(reward_folder):
    source = ModelReward(str(reward_folder), "cpu")
    assert source.max_length == 128
    long, cut = source(["the "] * 2, ["film " * 200, "film " * 127], {})
    assert long == cut


@pytest.fixture
def three_labels(build, tmp_path):
    """`three_labels("bert")`: a classifier with the labels bad, dull and good."""
    from transformers import AutoModelForSequenceClassification

    def made(kind):
        torch.manual_seed(3)
        labels = {0: "bad", 1: "dull", 2: "good"}
        config = build.config(kind, num_labels=3, id2label=labels, label2id={name: i for i, name in labels.items()})
        AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / kind)
        build.tokenizer().save_pretrained(tmp_path / kind)
        return str(tmp_path / kind)

    return made


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize(("label", "position"), [("good", 2), ("0", 0)])
def test_the_logit_of_a_named_label_is_the_score_of_decoders_and_encoders(three_labels, kind, label, position):
    folder = three_labels(kind)
    texts = [p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    expected = transformers_scores(folder, load_tokenizer(folder), texts)[:, position]
    scores = ModelReward(folder, "cpu", 2, label=label)(PROMPTS, COMPLETIONS, {})
    torch.testing.assert_close(torch.tensor(scores), expected, rtol=1e-5, atol=1e-6)
    assert expected.std() > 0.001


def test_a_label_that_is_not_there_is_rejected(three_labels):
    with pytest.raises(UserError, match=r"bert has no label 'fine'; it has bad, dull, good"):
        ModelReward(three_labels("bert"), "cpu", label="fine")
    with pytest.raises(
        UserError, match=r"bert has 3 labels \(bad, dull, good\), but a score is one number; name the one"
    ):
        ModelReward(three_labels("bert"), "cpu")


def test_chats_are_plain_text_for_a_tokenizer_without_a_template(reward_folder, tmp_path):
    chat = [{"role": "system", "content": "the story"}, {"role": "user", "content": "is it good"}]
    assert plain_chat(chat) == "System: the story\n\nUser: is it good\n\nAssistant: "
    assert plain_chat("the film") == "the film"
    source = ModelReward(str(reward_folder), "cpu")
    assert source([chat], ["fine"], {}) == source([plain_chat(chat)], ["fine"], {})
    (tmp_path / "template").write_text("{% for m in messages %}{{ m['content'] }} {% endfor %}")
    with_template = ModelReward(str(reward_folder), "cpu", chat_template=str(tmp_path / "template"))
    assert with_template([chat], ["fine"], {}) == source(["the story is it good "], ["fine"], {})
    with pytest.raises(UserError, match="a message must be"):
        source([[{"role": "user"}]], ["fine"], {})


def test_models_without_a_single_label_are_rejected(changed_folder, models, tmp_path):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    with pytest.raises(UserError, match="LlamaForCausalLM, which is no reward model; train one with `rlhf reward`"):
        ModelReward(str(models("llama")), "cpu")
    config = AutoConfig.from_pretrained(models("llama"), num_labels=3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "three")
    load_tokenizer(str(models("llama"))).save_pretrained(tmp_path / "three")
    with pytest.raises(UserError, match=r"has 3 labels .*, but a score is one number"):
        ModelReward(str(tmp_path / "three"), "cpu")


def test_code_in_a_reward_model_s_folder_is_not_run(reward_folder, tmp_path):
    """Not even where a terminal would ask whether to."""
    folder = tmp_path / "own_code"
    shutil.copytree(reward_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('this code was run')")
    with pytest.raises(UserError, match="own_code brings code of its own, which is not run"):
        ModelReward(str(folder), "cpu")
    with pytest.raises(UserError, match="own_code brings code of its own, which is not run"):
        scores_every_token(str(folder))


def test_weights_that_cannot_be_read_are_reported(reward_folder, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(reward_folder, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=r"cannot load a reward model from .*cut: "):
        ModelReward(str(folder), "cpu")


def test_an_offloaded_model_is_on_the_device_only_while_it_scores(reward_folder, monkeypatch):
    """A copy in the CPU's memory stands for one on a GPU: it is made anew for each batch, and dropped after it."""
    source = ModelReward(str(reward_folder), "cpu", offload=True)
    expected = ModelReward(str(reward_folder), "cpu")(PROMPTS, COMPLETIONS, {})
    stored = [p.data_ptr() for p in source.model.parameters()]
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *_, **__: x.clone())
    copied = []
    forward = source.forward

    def record(*inputs):
        copied.append(all(p.data_ptr() != at for p, at in zip(source.model.parameters(), stored, strict=True)))
        return forward(*inputs)

    monkeypatch.setattr(source, "forward", record)
    assert source(PROMPTS, COMPLETIONS, {}) == expected
    assert copied == [True]
    assert [p.data_ptr() for p in source.model.parameters()] == stored
    monkeypatch.setattr(source, "forward", lambda *x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        source(PROMPTS, COMPLETIONS, {})
    assert [p.data_ptr() for p in source.model.parameters()] == stored


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_of_half_precision_have_a_float32_head(reward_folder, dtype):
    source = ModelReward(str(reward_folder), "cpu", dtype=dtype)
    assert {p.dtype for p in source.model.model.parameters()} == {getattr(torch, dtype)}
    assert source.model.score.weight.dtype == torch.float32
    scores = torch.tensor(source(PROMPTS, COMPLETIONS, {}))
    exact = torch.tensor(ModelReward(str(reward_folder), "cpu")(PROMPTS, COMPLETIONS, {}))
    torch.testing.assert_close(scores, exact, rtol=0.02, atol=0.02)
    assert not torch.equal(scores, exact)
    assert not torch.equal(scores, scores.to(getattr(torch, dtype)).float())  # not rounded to the weights' precision


@pytest.mark.parametrize(("stored", "loaded"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_auto_takes_the_data_type_of_the_files(reward_folder, tmp_path, stored, loaded):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(reward_folder, dtype=getattr(torch, stored))
    model.save_pretrained(tmp_path / "r")
    load_tokenizer(str(reward_folder)).save_pretrained(tmp_path / "r")
    assert ModelReward(str(tmp_path / "r"), "cpu", dtype="auto").model.dtype == loaded
    assert ModelReward(str(tmp_path / "r"), "cpu").model.dtype == torch.float32


def test_a_reward_model_has_a_device_of_its_own(reward_folder):
    settings = SourceSettings(model=str(reward_folder), device="cpu")
    source = open_source(settings, "cuda:0")
    assert {p.device for p in source.model.parameters()} == {torch.device("cpu")}
    assert source.device == torch.device("cpu")
    with pytest.raises(UserError, match=r"device cuda:99 of reward model .* cannot be used: .*this process can use"):
        open_source(SourceSettings(model=str(reward_folder), device="cuda:99"), "cpu")
    with pytest.raises(UserError, match=r"device warp of reward model .* cannot be used: "):
        open_source(SourceSettings(model=str(reward_folder), device="warp"), "cpu")
