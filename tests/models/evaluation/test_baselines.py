"""Baselines: what they predict, what they skip and why, and the rows that they are limited to."""

from itertools import pairwise

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from bloomery.data_contracts.records.scores import ACCURACY, RMSE, Score
from bloomery.data_contracts.records.tensor_layout import Layout, Part, mixed_layout
from bloomery.models.evaluation import baseline_fits, baselines
from bloomery.models.evaluation.baseline_fits import fit_baselines
from bloomery.models.evaluation.baselines import BaselineRows, BaselineTask, Features, LabelWindows

RANDOM = np.random.default_rng(0)


def flat(width: int, **options: object) -> Layout:
    return Layout.model_validate({"kind": "flat", "shape": (width,), **options})


def fit(**fields: object) -> dict[str, baselines.FittedBaseline]:
    return {fitted.name: fitted for fitted in fit_baselines(BaselineTask(**fields))}  # type: ignore[arg-type]


def test_linear_rows_are_separated_and_the_majority_is_not():
    x = RANDOM.normal(size=(600, 3)).astype(np.float32)
    y = (x[:, 0] > 0.5).astype(np.int64)
    results = fit(score=ACCURACY, layout=flat(3), num_classes=2, train=BaselineRows(x[:400], y[:400]), test_x=x[400:])
    accuracies = {name: (fitted.predictions.argmax(axis=1) == y[400:]).mean() for name, fitted in results.items()}
    assert list(accuracies) == ["majority class", "logistic regression", "boosted trees"]
    assert accuracies["majority class"] == (y[400:] == 0).mean()
    assert min(accuracies["logistic regression"], accuracies["boosted trees"]) > 0.95
    assert all(fitted.predictions.sum(axis=1) == pytest.approx(1) for fitted in results.values())


def test_words_have_the_most_frequent_tag_of_all_and_of_their_first_token():
    x = np.array([[5, 6, 0], [5, 7, 0], [5, 6, 8], [9, 9, 0]], np.float32)
    y = np.array([[0, 2, -100], [1, 2, -100], [1, 2, -100], [1, -100, -100]], np.int16)
    test_x = np.array([[5, 8, 7], [3, 0, 0], [99, 6, 9], [0, 0, 0]], np.float32)
    test_y = np.array([[0, -100, 0], [2, -100, -100], [1, 1, 1], [-100, -100, -100]], np.int16)
    layout = Layout(kind="tokens", shape=(3,), num_tokens=100)
    score = Score(name="tag_accuracy")
    train = BaselineRows(x, y)
    results = fit(score=score, layout=layout, num_classes=3, train=train, test_x=test_x, test_y=test_y)
    constant, of_tokens = (results[name] for name in ("most frequent tag", "most frequent tag of each first token"))
    assert constant.name in baselines.CONSTANT
    # Tags 1 and 2 are equally frequent. Token 8 begins no word, and tokens 3 and 99 are unknown.
    assert constant.predictions.tolist() == [[1, -1, 1], [1, -1, -1], [1, 1, 1], [-1, -1, -1]]
    assert of_tokens.predictions.tolist() == [[1, -1, 2], [1, -1, -1], [1, 2, 1], [-1, -1, -1]]
    assert {fitted.num_rows for fitted in results.values()} == {4}
    (without_words,) = fit(
        score=score, layout=layout, num_classes=3, train=BaselineRows(x, y * 0 - 100), test_x=test_x, test_y=test_y
    ).values()
    assert without_words.reason == "the sampled training rows have no word"


def test_a_class_that_the_sample_lacks_has_probability_0():
    x = RANDOM.normal(size=(100, 2)).astype(np.float32)
    y = np.where(x[:, 0] > 0, 2, 0)
    results = fit(score=ACCURACY, layout=flat(2), num_classes=3, train=BaselineRows(x, y), test_x=x)
    assert all(fitted.predictions.shape == (100, 3) for fitted in results.values())
    assert all((fitted.predictions[:, 1] == 0).all() for fitted in results.values())


def test_numbers_are_predicted_in_the_units_of_the_label():
    x = RANDOM.normal(size=(500, 2)).astype(np.float32)
    y = 1000 + 50 * x[:, 0].astype(np.float64)
    fields = {"layout": flat(2), "num_classes": 0, "train": BaselineRows(x, y), "test_x": x}
    results = fit(score=RMSE, **fields)
    assert list(results) == ["mean", "ridge regression", "boosted trees"]
    assert results["mean"].predictions == pytest.approx(np.full(500, y.mean()))
    assert results["ridge regression"].predictions == pytest.approx(y, abs=1)
    upper = fit(score=Score(name="quantile_loss", quantile=0.9), **fields)
    assert upper["quantile of the labels"].predictions[0] == pytest.approx(np.quantile(y, 0.9))


def test_numbers_of_categories_are_not_quantities_to_logistic_regression():
    x = RANDOM.integers(0, 6, size=(600, 1)).astype(np.float32)
    y = (x[:, 0] % 2).astype(np.int64)
    layout = flat(1, categories=((0, 6),))
    results = fit(score=ACCURACY, layout=layout, num_classes=2, train=BaselineRows(x, y), test_x=x)
    for name in ("logistic regression", "boosted trees"):
        assert (results[name].predictions.argmax(axis=1) == y).all()


def test_texts_are_bags_of_words():
    x = RANDOM.integers(1, 50, size=(300, 8)).astype(np.float32)
    y = (x == 7).any(axis=1).astype(np.int64)
    x[:, 6:] = 0  # padding
    y = (x == 7).any(axis=1).astype(np.int64)
    layout = Layout(kind="tokens", shape=(8,), num_tokens=50)
    results = fit(score=ACCURACY, layout=layout, num_classes=2, train=BaselineRows(x, y), test_x=x)
    assert (results["logistic regression"].predictions.argmax(axis=1) == y).mean() > 0.97
    assert results["boosted trees"].predictions is None
    assert "texts" in results["boosted trees"].reason
    counts = Features(layout).for_linear(x[:1]).toarray()
    assert counts[0, 0] == 0
    assert np.expm1(counts).sum() == pytest.approx(6)


def test_large_images_are_averaged_and_have_no_trees():
    layout = Layout(kind="image", shape=(3, 64, 40))
    x = RANDOM.normal(size=(5, 3, 64, 40)).astype(np.float32)
    features = Features(layout)
    assert features.for_linear(x).shape == (5, features.num_used)
    assert features.num_used <= 3 * 256
    assert features.for_linear(x)[0, 0] == pytest.approx(x[0, 0, :4, :4].mean(), abs=1e-6)
    assert features.tree_obstacle is not None
    assert Features(Layout(kind="image", shape=(1, 8, 8))).tree_obstacle is None


def test_naive_forecasts_take_the_last_value_and_that_of_the_season():
    series = 100 + 10 * np.sin(2 * np.pi * np.arange(400) / 7) + 0.01 * np.arange(400)
    horizon, length = 3, 20
    windows = np.lib.stride_tricks.sliding_window_view(series, length)[:-horizon]
    truth = series[length - 1 + horizon :]
    train, test = windows[:300], windows[300:]
    results = fit(
        score=RMSE,
        layout=Layout(kind="sequence", shape=(length, 1)),
        num_classes=0,
        train=BaselineRows(train[:, :, None].astype(np.float32), truth[:300]),
        test_x=test[:, :, None].astype(np.float32),
        windows=LabelWindows(train, test, horizon),
    )
    assert list(results)[:3] == ["mean", "last value", "seasonal naive (7 rows)"]
    assert results["last value"].predictions == pytest.approx(test[:, -1])
    assert results["seasonal naive (7 rows)"].predictions == pytest.approx(truth[300:], abs=0.1)


def test_a_window_shorter_than_any_season_has_no_seasonal_forecast():
    windows = LabelWindows(np.ones((5, 2)), np.ones((3, 2)), horizon=1)
    last, seasonal = baselines.fit_naive(np.ones(5), windows)
    assert (last.name, seasonal.predictions) == ("last value", None)
    assert "shorter" in seasonal.reason


def test_many_rows_are_sampled_evenly(monkeypatch):
    monkeypatch.setattr(baselines, "_MAX_LINEAR_VALUES", 2_000)
    monkeypatch.setattr(baselines, "MIN_ROWS", 100)
    fitted_rows = []
    original = LogisticRegression.fit

    def spy(model: LogisticRegression, x: np.ndarray, y: np.ndarray) -> LogisticRegression:
        fitted_rows.append(len(y))
        return original(model, x, y)

    monkeypatch.setattr(LogisticRegression, "fit", spy)
    x = np.arange(2_000, dtype=np.float32)[:, None]
    y = (x[:, 0] >= 1_000).astype(np.int64)
    results = fit(score=ACCURACY, layout=flat(1), num_classes=2, train=BaselineRows(x, y), test_x=x[::100])
    assert fitted_rows == [1_000] == [results["logistic regression"].num_rows]
    sample = BaselineRows(x, y).sample(5)
    assert sample.x[:, 0].tolist()[::4] == [0, 1_999]
    assert all(later > earlier for earlier, later in pairwise(sample.x[:, 0]))


def test_many_rows_of_which_one_class_has_a_single_one_are_fitted():
    """scikit-learn holds rows of each class out where there are more than 10,000, which a single row does not allow."""
    x = RANDOM.normal(size=(10_100, 2)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    y[5] = 2
    task = {"score": ACCURACY, "layout": flat(2), "num_classes": 3, "train": BaselineRows(x, y), "test_x": x[:500]}
    trees = fit(**task)["boosted trees"]
    assert trees.num_rows == 10_099
    assert (trees.predictions.argmax(axis=1) == y[:500]).mean() > 0.95


@pytest.mark.parametrize("layout", [flat(6, categories=((5, 4),)), Layout(kind="image", shape=(1, 2, 3))])
def test_test_rows_are_converted_in_blocks(layout, monkeypatch):
    x = RANDOM.normal(size=(300, *layout.shape)).astype(np.float32)
    if layout.kind == "flat":
        x[:, 5] = RANDOM.integers(0, 4, 300)
    y = (x.reshape(300, 6)[:, 0] > 0).astype(np.int64)
    task = {"score": ACCURACY, "layout": layout, "num_classes": 2, "train": BaselineRows(x[:200], y[:200])}
    at_once = fit(**task, test_x=x[200:])
    sizes = []
    original = Features.for_trees
    monkeypatch.setattr(Features, "for_trees", lambda self, rows: sizes.append(len(rows)) or original(self, rows))
    monkeypatch.setattr(baselines, "_BLOCK_VALUES", 100)
    in_blocks = fit(**task, test_x=x[200:])
    assert max(size for size in sizes if size != 200) <= 100 // 6 + 1
    for name, fitted in at_once.items():
        assert in_blocks[name].predictions == pytest.approx(fitted.predictions)


def test_a_model_that_fails_has_a_reason_and_the_others_are_fitted(monkeypatch):
    def fail(self: object, *arguments: object) -> None:
        raise np.linalg.LinAlgError("SVD did not converge\nwith many details")

    monkeypatch.setattr(LogisticRegression, "fit", fail)
    x = RANDOM.normal(size=(100, 2)).astype(np.float32)
    rows = BaselineRows(x, (x[:, 0] > 0).astype(np.int64))
    results = fit(score=ACCURACY, layout=flat(2), num_classes=2, train=rows, test_x=x)
    assert results["logistic regression"].predictions is None
    assert results["logistic regression"].reason == "it failed with LinAlgError: SVD did not converge"
    assert results["boosted trees"].predictions is not None


def test_sets_of_labels_have_a_model_for_each_label():
    x = RANDOM.normal(size=(400, 3)).astype(np.float32)
    y = np.stack([x[:, 0] > 0, x[:, 1] > 0.5, np.arange(400) == 7, x[:, 2] > -9], axis=1).astype(np.int64)
    score = Score(name="micro_f1")
    results = fit(score=score, layout=flat(3), num_classes=4, train=BaselineRows(x[:300], y[:300]), test_x=x[300:])
    names = ["most frequent labels", "logistic regression for each label", "boosted trees for each label"]
    assert list(results) == names
    assert names[0] in baselines.CONSTANT
    assert (results[names[0]].predictions == [0, 0, 0, 1]).all() or (results[names[0]].predictions[:, 3] == 1).all()
    for name in names[1:]:
        shares = results[name].predictions
        assert ((shares[:, :2] > 0.5) == y[300:, :2]).mean() > 0.9
        # Labels of one row, or of all rows, keep their frequency.
        assert shares[:, 2:] == pytest.approx(np.tile([1 / 300, 1], (100, 1)))
    many = fit(score=score, layout=flat(3), num_classes=4, train=BaselineRows(x, y[:, [2] * 4]), test_x=x)
    assert many[names[1]].reason == "no label has enough rows"


def test_a_label_that_the_sampled_rows_lack_leaves_the_others_their_models(monkeypatch):
    monkeypatch.setattr(baseline_fits, "MIN_ROWS", 100)
    monkeypatch.setattr(baseline_fits, "MAX_ROWS", 100)
    monkeypatch.setattr(baselines, "MIN_ROWS", 100)
    monkeypatch.setattr(baselines, "MAX_ROWS", 100)
    x = RANDOM.normal(size=(300, 3)).astype(np.float32)
    is_sampled = np.isin(np.arange(300), np.linspace(0, 299, 100 // 3 + 100).round())
    rare = np.zeros(300, dtype=bool)
    rare[np.flatnonzero(~is_sampled)[:5]] = True
    y = np.stack([rare, x[:, 0] > 0, x[:, 1] > 0.5], axis=1).astype(np.int64)
    results = fit(score=Score(name="micro_f1"), layout=flat(3), num_classes=3, train=BaselineRows(x, y), test_x=x)
    for name in ("logistic regression for each label", "boosted trees for each label"):
        shares = results[name].predictions
        assert shares[:, 0] == pytest.approx(np.full(300, 5 / 300))
        assert ((shares[:, 1:] > 0.5) == y[:, 1:]).mean() > 0.9


def test_a_label_that_cannot_be_fitted_leaves_the_others_their_models(monkeypatch):
    original = LogisticRegression.fit

    def fit_balanced(self, x, y):
        if y.mean() < 0.4:
            raise ValueError("too few rows")
        return original(self, x, y)

    monkeypatch.setattr(LogisticRegression, "fit", fit_balanced)
    x = RANDOM.normal(size=(300, 2)).astype(np.float32)
    y = np.stack([x[:, 1] > 0.8, x[:, 0] > 0], axis=1).astype(np.int64)
    score, name = Score(name="micro_f1"), "logistic regression for each label"
    results = fit(score=score, layout=flat(2), num_classes=2, train=BaselineRows(x, y), test_x=x)
    assert results[name].predictions[:, 0] == pytest.approx(np.full(300, y[:, 0].mean()))
    assert ((results[name].predictions[:, 1] > 0.5) == y[:, 1]).mean() > 0.9
    none = fit(score=score, layout=flat(2), num_classes=2, train=BaselineRows(x, y[:, [0, 0]]), test_x=x)
    assert none[name].reason == "it failed with ValueError: too few rows"


def test_baselines_read_the_parts_of_mixed_rows_that_they_can():
    flat = Layout(kind="flat", shape=(3,), categories=((1, 4),))
    text, image = Layout(kind="tokens", shape=(4,), num_tokens=6), Layout(kind="image", shape=(1, 2, 2))
    parts = [
        Part(name="note", layout=text, is_optional=True),
        Part(name="table", layout=flat),
        Part(name="photo", layout=image, is_optional=True),
    ]
    features = Features(mixed_layout(parts))
    x = np.array([[2, 2, 5, 0, 1, 0.5, 3, 0.25, 9, 8, 7, 6, 1]], np.float32)
    assert features.for_trees(x).tolist() == [[0.5, 3, 0.25, 9, 8, 7, 6, 1]]
    assert features.tree_categories == [1]
    linear = features.for_linear(x).toarray()[0]
    assert np.expm1(linear[:6]).round(6).tolist() == [0, 0, 2, 0, 0, 1]
    assert linear[6:].tolist() == [1, 0.5, 3, 0.25, 0, 0, 0, 1, 9, 8, 7, 6, 1]
    assert features.tree_obstacle is None
    assert Features(mixed_layout([parts[0], Part(name="b", layout=text)])).tree_obstacle is not None
