"""Comparisons with baselines as text."""

from bloomery.data_contracts.records.records import Baseline, BaselineComparison, Interval, Release
from bloomery.data_contracts.records.scores import ACCURACY, RMSE
from bloomery.tasks.evaluation.baseline_text import (
    baseline_rows,
    describe_comparison,
    explain_loss,
    verdict_on_baseline,
)


def interval(value: float, low: float, high: float) -> Interval:
    return Interval(value=value, low=low, high=high)


def comparison_of(name: str, value: float, low: float, high: float) -> BaselineComparison:
    return BaselineComparison(name=name, score=interval(0.9, 0.8, 0.95), degradation=interval(value, low, high))


LOST = comparison_of("boosted trees", 0.02, 0.01, 0.03)
BEHIND = comparison_of("logistic regression", 0.01, -0.01, 0.03)
BEATEN = comparison_of("majority class", -0.5, -0.6, -0.4)


def test_a_comparison_is_seen_from_the_baseline():
    assert describe_comparison(ACCURACY, LOST) == (
        "boosted trees has 90.00%, 2.00 pp better (95% interval 1.00 pp to 3.00 pp)"
    )
    assert describe_comparison(ACCURACY, BEATEN) == (
        "majority class has 90.00%, 50.00 pp worse (95% interval 40.00 pp to 60.00 pp)"
    )
    assert describe_comparison(RMSE, LOST) == (
        "boosted trees has 0.900 (the model's error is 2% higher; 95% interval 1% to 3%)"
    )
    assert "(the model's error is 7,813% higher" in describe_comparison(RMSE, comparison_of("last", 78.13, 56.9, 107.0))
    assert "(the model's error is 50% lower; 95% interval 40% to 60%)" in describe_comparison(RMSE, BEATEN)
    assert "no difference (95% interval" in describe_comparison(ACCURACY, comparison_of("mean", 0.0, -0.01, 0.01))
    assert [verdict_on_baseline(item) for item in (LOST, BEHIND, BEATEN)] == [
        "better",
        "no difference shown",
        "beaten",
    ]


def test_only_baselines_that_are_ahead_are_explained(release: Release):
    choice = release.bento.choice

    def explain(*comparisons: BaselineComparison) -> str | None:
        return explain_loss(choice.model_copy(update={"comparisons": comparisons}))

    assert explain() is None
    assert explain(BEATEN) is None
    text = explain(BEATEN, BEHIND, LOST) or ""
    assert text.startswith("The model loses to a baseline: ")
    assert "boosted trees has 90.00%" in text
    assert "logistic" not in text
    assert "not beyond chance" in (explain(BEHIND, BEATEN) or "")


def test_the_table_has_baselines_that_were_not_fitted_with_the_reason(release: Release):
    choice = release.bento.choice
    fitted = Baseline(name="majority class", predictions_uri="a.npy", num_rows=1234, score=interval(0.5, 0.4, 0.6))
    skipped = Baseline(name="boosted trees", reason="boosted trees do not read texts")
    trained = choice.candidates.trained.model_copy(update={"baselines": (fitted, skipped)})
    candidates = choice.candidates.model_copy(update={"trained": trained})
    rows = baseline_rows(choice.model_copy(update={"comparisons": (BEATEN,), "candidates": candidates}))
    assert [row["verdict"] for row in rows] == ["beaten", "not fitted: boosted trees do not read texts"]
    assert [row["training rows"] for row in rows] == ["1,234", "–"]
