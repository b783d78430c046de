import math

import pytest

from tabular.core.schedules import constant, cosine, linear, linear_to_zero, make_schedule, warmup


def test_constant_linear_and_cosine_by_hand():
    assert [constant(3)(step) for step in (0, 7)] == [3, 3]
    assert [linear(1, 0, 4)(step) for step in range(6)] == [1, 0.75, 0.5, 0.25, 0, 0]
    assert [linear(0.2, 1.0, 4)(step) for step in (0, 2, 4, 99)] == pytest.approx([0.2, 0.6, 1, 1])
    quarter = 0.5 * (1 + math.sqrt(0.5))
    assert [cosine(1, 0, 4)(step) for step in range(6)] == pytest.approx([1, quarter, 0.5, 1 - quarter, 0, 0])
    assert [cosine(3, 1, 2)(step) for step in (0, 1, 2)] == pytest.approx([3, 2, 1])


def test_warmup_rises_to_the_start_and_then_begins_the_schedule():
    schedule = warmup(linear(8, 0, 4), 4)
    assert [schedule(step) for step in range(9)] == [2, 4, 6, 8, 8, 6, 4, 2, 0]
    assert warmup(constant(5), 0)(0) == 5


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_make_schedule_ends_at_the_total_with_or_without_warmup(name):
    for warmup_steps in (0, 3):
        schedule = make_schedule(name, 1e-3, 10, warmup_steps, end=1e-4)
        assert schedule(warmup_steps) == pytest.approx(1e-3)
        assert schedule(9) > 1e-4
        assert schedule(10) == pytest.approx(1e-4)
    assert schedule(0) == pytest.approx(1e-3 / 3)


def test_make_schedule_by_name():
    assert make_schedule("linear", 1, 4)(1) == 0.75
    assert make_schedule("cosine", 1, 4)(1) == pytest.approx(0.5 * (1 + math.sqrt(0.5)))
    assert make_schedule("constant", 1, 4, warmup_steps=2)(0) == 0.5
    assert make_schedule("constant", 1, 4, warmup_steps=2)(100) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: make_schedule("exponential", 1, 4),
            "schedule is 'exponential', but must be one of constant, linear, cosine",
        ),
        (
            lambda: make_schedule("linear", 1, 4, warmup_steps=4),
            "warmup_steps is 4, but must be below the total of 4 steps",
        ),
        (lambda: linear(1, 0, 0), "total is 0, but must be at least 1"),
        (lambda: cosine(1, 0, -1), "total is -1, but must be at least 1"),
        (lambda: warmup(constant(1), -1), "warmup_steps is -1, but must be at least 0"),
    ],
)
def test_out_of_range_schedules_are_rejected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_linear_to_zero_is_constant_without_a_total():
    assert [linear_to_zero(4, 4)(step) for step in (0, 1, 4, 9)] == [4, 3, 0, 0]
    assert [linear_to_zero(4, 0)(step) for step in (0, 9)] == [4, 4]
