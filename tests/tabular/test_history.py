from tabular.history import History


def test_what_is_added_is_there_and_survives_saving():
    history = History()
    history.add_episode(7, -3, 7)
    history.add_episode(9, 1.5, 2)
    history.add(5, td_error=0.5, epsilon=1)
    history.add(10, td_error=0.25)
    assert (history.ends, history.returns, history.lengths) == ([7, 9], [-3.0, 1.5], [7, 2])
    assert history.metrics == {"td_error": [(5, 0.5), (10, 0.25)], "epsilon": [(5, 1.0)]}

    state = history.state_dict()
    history.add_episode(20, 0, 11)  # a state is a copy
    history.add(20, td_error=0.1)
    other = History()
    other.load_state_dict(state)
    assert other.ends == [7, 9]
    assert other.metrics["td_error"] == [(5, 0.5), (10, 0.25)]
    assert other.state_dict() == state
