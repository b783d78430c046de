"""Where tokens end in the text of a response: words, bytes of one character, special tokens, and cut text."""

import pytest

from rlhf.rewards.results import TokenRewards, rewards_by_token
from rlhf.rollouts.token_ends import token_ends


@pytest.fixture(scope="module")
def byte_tokenizer():
    """One token for each byte, and an end token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({"<|end|>": 0} | {c: i + 1 for i, c in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>")


def test_words_end_before_the_space_that_the_next_one_brings(build):
    tokenizer = build.tokenizer()
    ids = [*tokenizer.encode("the film is good"), tokenizer.eos_token_id]
    assert token_ends(tokenizer, ids, "the film is good") == [3, 8, 11, 16, 16]


def test_long_responses_are_aligned_beyond_the_window(build):
    tokenizer = build.tokenizer()
    text = " ".join(["film", "is"] * 30)
    expected = [len(" ".join((["film", "is"] * 30)[: i + 1])) for i in range(60)]
    assert token_ends(tokenizer, tokenizer.encode(text), text) == expected


def test_a_character_of_several_tokens_ends_with_the_last_of_them(byte_tokenizer):
    """e with an accent has two bytes, a smiling face four."""
    text = "é\N{GRINNING FACE}!"
    ids = [*byte_tokenizer.encode(text), 0]
    assert token_ends(byte_tokenizer, ids, text) == [0, 1, 1, 1, 1, 2, 3, 3]


def test_text_that_was_cut_ends_all_later_tokens(build):
    tokenizer = build.tokenizer()
    assert token_ends(tokenizer, tokenizer.encode("the film is good"), "the fi") == [3, 6, 6, 6]
    assert token_ends(tokenizer, [tokenizer.eos_token_id], "") == [0]
    assert token_ends(tokenizer, [], "") == []


@pytest.mark.parametrize(
    ("ends", "expected"), [([3], [1, 0, 0]), ([4], [0, 1, 0]), ([8], [0, 1, 0]), ([0], [1, 0, 0]), ([5, 8], [0, 2, 0])]
)
def test_a_reward_goes_to_the_token_in_which_its_text_ends(ends, expected):
    """Tokens `the`, ` film` and the end token."""
    assert rewards_by_token(TokenRewards([1.0] * len(ends), ends), [3, 8, 8]) == expected
