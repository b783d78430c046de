"""Over-optimisation: a judge that falls while the score rises, by hand."""

import numpy as np
import pytest

from rlhf.run.trends import judge_names, overoptimised


def evaluation(step, half=0.1, **measures):
    """A row of eval.jsonl with intervals of the same width."""
    row = {"step": step, "prompts": 9.0}
    for name, value in measures.items():
        name = name.replace("__", "/")
        row |= {name: value, f"{name}_low": value - half, f"{name}_high": value + half}
    return row


def test_a_judge_that_falls_while_the_score_rises_is_reported_from_its_best_evaluation_on():
    measures = {0: (0.0, 0.5), 20: (0.5, 0.8), 40: (1.0, 0.4)}
    rows = [evaluation(step, score=score, judge=judge) for step, (score, judge) in measures.items()]
    assert overoptimised(rows[:1]) == overoptimised(rows[:2]) == overoptimised([]) == []
    assert overoptimised(rows) == [
        "since step 20 the held-out score rose from 0.5 to 1 while judge fell from 0.8 to 0.4: the policy may exploit "
        "errors of the reward"
    ]


@pytest.mark.parametrize(
    ("last", "half"),
    [
        ({"score": 0.4, "judge": 0.4}, 0.1),  # the score fell too
        ({"score": 1.0, "judge": 0.7}, 0.1),  # the judge's fall of .1 is below sqrt(.1 ** 2 + .1 ** 2)
        ({"score": 0.6, "judge": 0.4}, 0.1),  # and the score's rise of .1
        ({"score": 1.0, "judge": 0.4}, 0.5),
        ({"score": 1.0, "judge": 0.9}, 0.1),
        ({"score": 1.0}, 0.1),
        ({"judge": 0.4}, 0.1),
    ],
)
def test_other_changes_are_not(last, half):
    rows = [evaluation(20, half, score=0.5, judge=0.8), evaluation(40, half, **last)]
    assert overoptimised(rows) == []


def test_each_judge_is_compared_for_itself():
    first = evaluation(0, score=0.0, judge=0.5, judge__fluency=0.5, judge__low=0.5)
    last = evaluation(9, score=1.0, judge=0.0, judge__fluency=0.6, judge__low=0.0)
    assert judge_names(last) == ["judge", "judge/fluency", "judge/low"]
    assert [sentence.split(" while ")[1].split(" fell")[0] for sentence in overoptimised([first, last])] == [
        "judge",
        "judge/low",
    ]
    broken = last | {"judge": None, "judge/low": float("nan")}
    assert overoptimised([first, broken]) == []


def test_chance_alone_rarely_warns():
    """Twenty evaluations of one policy on 64 prompts, drawn anew each time, in each of 100 runs."""
    random = np.random.default_rng(0)
    warned = 0
    for _ in range(100):
        rows = []
        for step in range(20):
            row = {"step": step}
            for name in ("score", "judge"):
                mean = random.normal() / 8
                row |= {name: mean, f"{name}_low": mean - 1.96 / 8, f"{name}_high": mean + 1.96 / 8}
            rows.append(row)
            warned += bool(overoptimised(rows))
    assert warned <= 20  # of 2,000 evaluations, although each is compared with the best one before
