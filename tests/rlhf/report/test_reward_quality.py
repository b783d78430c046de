"""The report's section on a reward model."""

import pytest

from rlhf.report.reward_quality import faultless, people, reliability_chart, reward_quality

SHARE = {"count": 3, "total": 4, "value": 0.75, "low": 0.3, "high": 0.954}
NONE = {"count": 0, "total": 0, "value": None, "low": None, "high": None}
CONTENT = {
    "held_out": {
        "accuracy": SHARE,
        "calibration_error": 0.125,
        "reliability": [{"low": 0.5, "high": 0.6, "confidence": 0.55, "accuracy": SHARE}],
        "margins": [{"low": 0.1, "high": 2.0, "accuracy": SHARE}],
        "length": {"correlation": 0.25, "chosen_longer": SHARE, "scored_longer": NONE},
    },
    "people": {"self_consistency": SHARE, "agreement": SHARE, "agreement_decided": NONE, "alpha": 0.5},
}


def test_human_agreement_stands_beside_the_accuracy():
    rows = people(CONTENT)
    assert [(row.name, row.value, row.bounds, row.total) for row in rows] == [
        ("reward model’s held-out accuracy", "75.0%", "30.0% to 95.4%", "4"),
        ("accuracy of a faultless model", "85.4%", "", ""),
        ("self-consistency", "75.0%", "30.0% to 95.4%", "4"),
        ("agreement of two people", "–", "", "none"),
        ("agreement with ties", "75.0%", "30.0% to 95.4%", "4"),
        ("Krippendorff’s alpha", "0.500", "", ""),
    ]


@pytest.mark.parametrize("error", [0.0, 0.1, 0.3, 0.5])
def test_a_faultless_model_agrees_more_often_with_people_than_they_do(error):
    """With errors in a share e, two people agree in (1 - e)² + e², and with the truth in 1 - e."""
    agreed = (1 - error) ** 2 + error**2
    row = faultless({"value": agreed, "low": agreed, "high": 1.0}, "agreement")
    assert (row.value, row.bounds) == (f"{100 * (1 - error):.1f}%", f"{100 * (1 - error):.1f}% to 100.0%")
    assert faultless({"value": 0.4}, "agreement").value == "–"


def test_points_of_the_reliability_chart_are_where_they_belong():
    chart = reliability_chart(CONTENT["held_out"]["reliability"])
    (point,) = chart.points
    assert point.x == pytest.approx(chart.x.start + 0.1 * (chart.x.end - chart.x.start), abs=0.1)
    assert point.y == pytest.approx(chart.y.start + 0.75 * (chart.y.end - chart.y.start), abs=0.1)
    assert point.high < point.y < point.low  # SVG counts from the top
    assert point.tooltip == "4 pairs: confidence 55.0%, accuracy 75.0%"


@pytest.mark.parametrize(
    "content", [{"held_out": 3}, {"held_out": {"reliability": [1, {}], "margins": "x"}}, {"people": []}]
)
def test_a_file_with_other_content_gives_an_empty_section(content):
    quality = reward_quality(content)
    assert (quality.reliability, quality.margins, quality.people) == (None, [], [])
    assert reward_quality({}) is None
