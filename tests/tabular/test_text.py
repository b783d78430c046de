from tabular.text import did_you_mean, parse_value


def test_text_is_parsed_to_the_value_it_spells():
    texts = ("1", "-2.5", "False", "abc", "1e5", "None", "[32,16]", "(8,)")
    assert [parse_value(text) for text in texts] == [1, -2.5, False, "abc", 1e5, None, (32, 16), (8,)]


def test_a_misspelled_name_is_answered_with_the_similar_ones_or_with_all():
    assert did_you_mean("Q-Learning", ["q_learning", "sarsa"]) == "did you mean q_learning?"
    assert did_you_mean("zzz", ["a", "b"]) == "there are a, b"
