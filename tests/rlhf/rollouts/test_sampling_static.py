"""The static engine beside the growing-cache loop: the same responses, for every model family and setting."""

import pytest
import torch

from rlhf.config.shared import GenerationConfig, LoraConfig, ModelConfig
from rlhf.data.encoding import pad
from rlhf.errors import UserError
from rlhf.models.adapters import active_adapter
from rlhf.models.distribution import LogitTransform
from rlhf.models.loading import add_lora, load_causal_lm, load_tokenizer
from rlhf.rollouts import static_decoding
from rlhf.rollouts.engines import static_engine_obstacle, use_static_engine
from rlhf.rollouts.sampling import sample, uniform_noise
from rlhf.rollouts.sampling_records import SamplingRequest
from rlhf.rollouts.stages import Sampler
from rlhf.rollouts.stopping import StopStrings

FAMILIES = [
    "llama",
    "mistral",
    "gemma2",
    "gemma3_text",
    "qwen2",
    "qwen3",
    "phi3",
    "gpt2",
    "gpt_neox",
    "opt",
    "olmo2",
    "stablelm",
    "falcon",
    "qwen3_moe",
]
PROMPTS = [[7, 8, 9, 10], [11], [12, 13], [14, 15, 16], [17], [18, 19], [20, 21, 22, 23, 24], [13, 12]]
STOPS = (1, 9, 21, 25)
LENGTH = 10

TRANSFORMS = {
    "plain": LogitTransform(stop_ids=STOPS),
    "cold": LogitTransform(0.6, stop_ids=STOPS),
    "suppressed": LogitTransform(0.8, suppress_ids=(0, 8, 20, 25), stop_ids=STOPS),
    "shortest": LogitTransform(0.8, suppress_ids=(8,), min_new_tokens=4, stop_ids=STOPS),
    "endless": LogitTransform(),
}


@pytest.fixture
def load(models):
    def loaded(family="llama"):
        return load_causal_lm(ModelConfig(path=str(models(family)))).eval()

    return loaded


def both_engines(lm, transform=TRANSFORMS["plain"], prompts=PROMPTS * 2, greedy=False, length=LENGTH, **options):
    ids, mask = pad(prompts, 2, "left")
    noise = None if greedy else uniform_noise([0], range(len(prompts)), len(prompts), length)
    return [sample(lm, ids, mask, noise, transform, length, engine=name, **options) for name in ("growing", "static")]


def assert_same_responses(expected, sampled):
    assert torch.equal(sampled.ids, expected.ids)
    assert torch.equal(sampled.mask, expected.mask)
    assert torch.equal(sampled.truncated, expected.truncated)
    torch.testing.assert_close(sampled.logprobs, expected.logprobs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_engines_sample_the_same_responses(load, family):
    expected, sampled = both_engines(load(family))
    assert len(set(expected.mask.sum(-1).tolist())) > 2  # responses of several lengths
    assert_same_responses(expected, sampled)


@pytest.mark.parametrize("strings", [(), ("good", "film")])
def test_engines_compute_the_same_values(load, models, strings, monkeypatch):
    """The value head reads the states that the tokens are sampled from; dropped tokens have no value."""
    monkeypatch.setitem(static_decoding.STEPS_BETWEEN_CHECKS, "cpu", 3)
    weights = torch.randn(32, generator=torch.Generator().manual_seed(0))
    tokenizer = load_tokenizer(str(models("llama")))
    expected, sampled = both_engines(
        load(),
        max_rows=5,
        stop_strings=StopStrings(tokenizer, strings) if strings else None,
        value_head=lambda states: states.float() @ weights,
    )
    assert_same_responses(expected, sampled)
    torch.testing.assert_close(sampled.values, expected.values, rtol=0, atol=1e-4)
    assert torch.equal(expected.values != 0, expected.mask)
    assert torch.equal(sampled.values != 0, sampled.mask)
    assert both_engines(load())[1].values is None


def test_noise_may_be_wider_than_the_responses(load):
    ids, mask = pad(PROMPTS, 2, "left")
    noise = uniform_noise([0], range(8), 8, LENGTH)
    results = [sample(load(), ids, mask, noise, TRANSFORMS["plain"], 4, engine=name) for name in ("growing", "static")]
    assert_same_responses(*results)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_engines_agree_under_every_transform(load, family, greedy, name):
    assert_same_responses(*both_engines(load(family), TRANSFORMS[name], greedy=greedy))


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text"])
def test_sliding_window_shorter_than_the_text(load, family):
    lm = load(family)
    wide, _ = both_engines(lm)
    lm.config.sliding_window = 3
    for module in lm.modules():
        if getattr(module, "sliding_window", None) is not None:
            module.sliding_window = 3
    expected, sampled = both_engines(lm)
    assert not torch.equal(wide.ids, expected.ids)
    assert_same_responses(expected, sampled)


@pytest.mark.parametrize("check_every", [1, 3, 8, 50])
@pytest.mark.parametrize("greedy", [False, True])
def test_steps_between_checks_change_no_response(load, monkeypatch, check_every, greedy):
    monkeypatch.setitem(static_decoding.STEPS_BETWEEN_CHECKS, "cpu", check_every)
    assert_same_responses(*both_engines(load(), greedy=greedy))


@pytest.mark.parametrize("block", [1, 4])
def test_blocks_of_keys_change_no_response(load, monkeypatch, block):
    monkeypatch.setattr(static_decoding, "SLOT_BLOCK", block)
    assert_same_responses(*both_engines(load()))


@pytest.mark.parametrize("text", ["good", "film", "st", "the film"])
@pytest.mark.parametrize("check_every", [1, 3, 8])
@pytest.mark.parametrize("max_rows", [None, 3])
def test_stop_strings_end_at_the_same_token(load, models, monkeypatch, text, check_every, max_rows):
    """Also where several tokens were sampled before the host looked at them."""
    monkeypatch.setitem(static_decoding.STEPS_BETWEEN_CHECKS, "cpu", check_every)
    stop = StopStrings(load_tokenizer(str(models("llama"))), (text,))
    lm = load()
    free, _ = both_engines(lm, LogitTransform(stop_ids=(1,)), PROMPTS * 6)
    expected, sampled = both_engines(
        lm, LogitTransform(stop_ids=(1,)), PROMPTS * 6, stop_strings=stop, max_rows=max_rows
    )
    assert " " in text or not torch.equal(free.mask, expected.mask)
    assert_same_responses(expected, sampled)


@pytest.mark.parametrize("max_rows", [1, 2, 5, 16, 99])
@pytest.mark.parametrize("check_every", [1, 4])
def test_refilled_rows_sample_the_same_responses(load, monkeypatch, max_rows, check_every):
    monkeypatch.setitem(static_decoding.STEPS_BETWEEN_CHECKS, "cpu", check_every)
    lm = load()
    expected, _ = both_engines(lm, prompts=PROMPTS * 3)
    _, sampled = both_engines(lm, prompts=PROMPTS * 3, max_rows=max_rows)
    assert_same_responses(expected, sampled)


@pytest.fixture
def step_rows(monkeypatch):
    """The number of rows of each decode step."""
    rows = []
    step = static_decoding.StaticDecoding._step

    def recorded(self, n_rows, n_slots):
        rows.append(n_rows)
        step(self, n_rows, n_slots)

    monkeypatch.setattr(static_decoding.StaticDecoding, "_step", recorded)
    return rows


def test_rows_are_refilled_before_the_whole_batch_has_ended(load, step_rows):
    """Fewer decode steps than batches that wait for their longest response."""
    lm = load()
    static_engine_obstacle(lm)
    step_rows.clear()
    _, sampled = both_engines(lm, prompts=PROMPTS * 8, max_rows=8)
    lengths = sampled.mask.sum(-1)
    steps_in_batches = sum(int(lengths[i : i + 8].max()) for i in range(0, len(lengths), 8))
    assert len(step_rows) < 0.8 * steps_in_batches
    assert max(step_rows) == 8


def test_batch_is_halved_as_responses_end(load, step_rows):
    lm = load()
    static_engine_obstacle(lm)
    step_rows.clear()
    both_engines(lm, LogitTransform(stop_ids=(*STOPS, 5, 13, 14)))
    assert step_rows == sorted(step_rows, reverse=True)
    assert set(step_rows) <= {16, 8, 4, 2, 1}
    assert len(set(step_rows)) >= 3


def test_equal_consecutive_prompts_are_read_once(load, monkeypatch):
    lm = load()
    shapes = []
    trunk_inputs = static_decoding.trunk_inputs
    monkeypatch.setattr(
        static_decoding, "trunk_inputs", lambda lm, mask: (shapes.append(tuple(mask.shape)), trunk_inputs(lm, mask))[1]
    )
    expected, sampled = both_engines(lm, prompts=[p for p in PROMPTS for _ in range(4)])
    assert shapes[-1] == (len(PROMPTS), 4)
    assert_same_responses(expected, sampled)


@pytest.mark.parametrize("family", ["bloom", "mamba"])
def test_unsupported_family_is_refused_by_name(load, models, family):
    lm = load(family)
    assert not use_static_engine("growing", lm, torch.device("cpu"))
    assert not use_static_engine("auto", lm, torch.device("cuda"))
    with pytest.raises(UserError, match=rf"generation.engine is static, but {type(lm).__name__} takes no position_ids"):
        Sampler.of(load_tokenizer(str(models(family))), lm, GenerationConfig(engine="static"))


def test_supported_family_is_static_on_cuda_only_by_default(load):
    lm = load()
    assert use_static_engine("auto", lm, torch.device("cuda"))
    assert not use_static_engine("auto", lm, torch.device("cpu"), max_new_tokens=255)
    assert use_static_engine("auto", lm, torch.device("cpu"), max_new_tokens=256)
    assert use_static_engine("auto", lm, torch.device("cpu"), responses_wait=True)
    assert use_static_engine("static", lm, torch.device("cpu"))


def test_responses_that_wait_are_sampled_by_the_static_engine(load, step_rows):
    lm = load()
    ids, mask = pad(PROMPTS, 2, "left")
    noise = uniform_noise([0], range(8), 8, LENGTH)
    use_static_engine("static", lm, torch.device("cpu"))
    step_rows.clear()
    for max_rows, expected in ((None, 0), (8, 0), (9, 0), (7, 7)):
        sample(lm, ids, mask, noise, TRANSFORMS["plain"], LENGTH, max_rows=max_rows)
        assert max(step_rows, default=0) == expected
    step_rows.clear()
    sample(lm, ids, mask, noise, TRANSFORMS["plain"], LENGTH, max_rows=7, engine="growing")
    assert not step_rows


def test_model_that_reads_the_mask_in_its_own_way_is_refused(load, monkeypatch):
    """A model is compared with its plain forward pass, whatever it declares."""
    lm = load()
    forward = type(lm.model).forward

    def without_mask(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None):
        return forward(self, input_ids, position_ids=position_ids, past_key_values=past_key_values, use_cache=use_cache)

    monkeypatch.setattr(type(lm.model), "forward", without_mask)
    assert "other log-probabilities" in static_engine_obstacle(lm)


def test_rotary_embeddings_that_depend_on_the_batch_are_refused(load):
    lm = load()
    lm.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert static_engine_obstacle(lm).startswith("has dynamic rotary embeddings")


def test_requests_of_several_sizes_share_buffers(load):
    """On a GPU the buffers of a training batch are used by smaller batches, too."""
    lm = load()
    ids, mask = pad(PROMPTS * 2, 2, "left")
    noise = uniform_noise([0], range(16), 16, LENGTH)
    request = SamplingRequest(ids, mask, noise, TRANSFORMS["plain"], LENGTH, None)
    buffers = static_decoding.Buffers(static_decoding.Capacity.of(request, None), 2, torch.device("cpu"))
    for part, n_rows in ((request, 16), (request.rows(3, 9), 6), (request, 5)):
        static_decoding.StaticDecoding(lm, part, buffers, n_rows).run()
        expected = sample(lm, part.prompt_ids, part.prompt_mask, part.noise, part.transform, LENGTH, engine="growing")
        shape = (slice(len(part)), slice(expected.ids.shape[1]))
        assert torch.equal(buffers.ids[shape], expected.ids)
        assert torch.equal(buffers.mask[shape], expected.mask)


def test_buffers_grow_to_what_every_request_needs():
    """Training and evaluation in turn do not replace each other's buffers."""
    training = static_decoding.Capacity(responses=64, rows=32, slots=128, new_tokens=48)
    evaluation = static_decoding.Capacity(responses=16, rows=16, slots=256, new_tokens=48)
    both = training.extended_to(evaluation)
    assert both == static_decoding.Capacity(responses=64, rows=32, slots=256, new_tokens=48)
    assert both.extended_to(training) == both.extended_to(evaluation) == both


def test_parameters_that_move_and_other_adapters_make_recorded_steps_invalid(load, monkeypatch):
    lm = load()
    monkeypatch.setattr(static_decoding, "StepGraphs", object)
    capacity = static_decoding.Capacity(responses=2, rows=2, slots=64, new_tokens=4)
    buffers = static_decoding.Buffers(capacity, 2, torch.device("cpu"))
    buffers.prepare_graphs(lm)
    first = buffers.graphs
    with torch.no_grad():
        lm.lm_head.weight.mul_(2)  # in place, as optimizers do
    buffers.prepare_graphs(lm)
    assert buffers.graphs is first
    lm.lm_head.weight.data = lm.lm_head.weight.data.clone()
    buffers.prepare_graphs(lm)
    assert buffers.graphs is not first
    adapted = add_lora(lm, LoraConfig(rank=2), "CAUSAL_LM")
    buffers.prepare_graphs(adapted)
    second = buffers.graphs
    with active_adapter(adapted, None):
        buffers.prepare_graphs(adapted)
    assert buffers.graphs is not second


class FirstCalls:
    """Stands for CUDA graphs on a CPU: every step of a shape repeats the first call of that shape."""

    def __init__(self):
        self.steps = {}

    def run(self, key, step):
        self.steps.setdefault(key, step)()


def test_steps_depend_on_buffers_alone(load, monkeypatch):
    """A recorded step serves later rollouts too: other prompts, numbers and responses, and changed weights."""
    monkeypatch.setitem(static_decoding.STEPS_BETWEEN_CHECKS, "cpu", 4)
    lm = load()
    capacity = static_decoding.Capacity(responses=20, rows=8, slots=64, new_tokens=LENGTH)
    buffers = static_decoding.Buffers(capacity, 2, torch.device("cpu"))
    buffers.graphs = FirstCalls()
    for seed, prompts in enumerate((PROMPTS, PROMPTS[::-1] * 2, PROMPTS[:3])):
        ids, mask = pad(prompts, 2, "left")
        noise = uniform_noise([seed], range(len(ids)), len(ids), LENGTH)
        with torch.no_grad():
            lm.lm_head.weight.mul_(1.1)
        expected = sample(lm, ids, mask, noise, TRANSFORMS["shortest"], LENGTH, engine="growing")
        request = SamplingRequest(ids, mask, noise, TRANSFORMS["shortest"], LENGTH, None)
        with torch.no_grad():
            static_decoding.StaticDecoding(lm, request, buffers, min(8, len(ids))).run()
        shape = (slice(len(ids)), slice(expected.ids.shape[1]))
        assert torch.equal(buffers.ids[shape], expected.ids)
        assert torch.equal(buffers.mask[shape], expected.mask)
        assert torch.equal(~buffers.ended[: len(ids)], expected.truncated)
    assert len(buffers.graphs.steps) >= 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_engines_agree_in_mixed_precision(load, dtype):
    """Up to rounding: the first tokens of each response."""
    with torch.autocast("cpu", getattr(torch, dtype)):
        expected, sampled = both_engines(load(), prompts=PROMPTS)
    assert (expected.ids[:, :3] == sampled.ids[:, :3]).float().mean() > 0.9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_recorded_steps_follow_the_weights(load, family):
    """Three rollouts on a GPU: the second one replays the graphs of the first, the third has other weights."""
    lm = load(family).cuda()
    ids, mask = (x.cuda() for x in pad(PROMPTS * 8, 2, "left"))
    responses = []
    for seed in (0, 1, 2):
        if seed == 2:
            with torch.no_grad():
                for p in lm.parameters():
                    p.mul_(1.1)
        noise = uniform_noise([seed], range(len(ids)), len(ids), 64).cuda()
        results = [
            sample(lm, ids, mask, noise, LogitTransform(), 64, engine=e, max_rows=16) for e in ("growing", "static")
        ]
        assert_same_responses(*results)
        responses.append(results[0].ids)
    assert not torch.equal(responses[1], responses[2])
