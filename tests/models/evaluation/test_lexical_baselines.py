"""Lexical baselines rank positives by the words that they share with queries."""

from __future__ import annotations

import numpy as np
import pytest

from bloomery.data_contracts.records.scores import Score
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.evaluation import lexical_baselines
from bloomery.models.evaluation.baseline_fits import fit_baselines
from bloomery.models.evaluation.baselines import CONSTANT, BaselineRows, BaselineTask, FittedBaseline

# Words 1 and 2 are in all texts; 3 to 9 are rare.
QUERIES = np.array([[1, 3, 0], [2, 4, 0], [1, 2, 5], [6, 1, 2]])
POSITIVES = np.array([[2, 3, 0], [1, 4, 4], [5, 1, 0], [7, 1, 2]])


def make_task(score: str = "ndcg_at_10") -> BaselineTask:
    return BaselineTask(
        score=Score(name=score),
        layout=Layout(kind="tokens", shape=(3,), num_tokens=10),
        num_classes=0,
        train=BaselineRows(QUERIES.astype(np.float32), POSITIVES.astype(np.int32)),
        test_x=QUERIES.astype(np.float32),
        test_y=POSITIVES.astype(np.int32),
    )


def test_a_shared_rare_word_ranks_a_text_first():
    names = [baseline.name for baseline in fit_baselines(make_task())]
    assert names == ["random order", "TF-IDF", "BM25"]
    assert names[0] in CONSTANT
    for baseline in list(fit_baselines(make_task()))[1:]:
        assert baseline.predictions is not None
        assert baseline.predictions[:3].tolist() == [1, 1, 1]
        assert baseline.num_rows == 4


def test_bm25_is_the_sum_over_shared_words_of_rarity_and_saturated_counts():
    _, _, bm25 = fit_baselines(make_task())
    scores = np.zeros((4, 4))
    for row, query in enumerate(QUERIES):
        for column, text in enumerate(POSITIVES):
            for word in query[query > 0]:
                count, num_with = (text == word).sum(), (word == POSITIVES).any(axis=1).sum()
                penalty = 1.2 * (0.25 + 0.75 * (text > 0).sum() / ((POSITIVES > 0).sum() / 4))
                scores[row, column] += np.log(1 + (4.5 - num_with) / (num_with + 0.5)) * count * 2.2 / (count + penalty)
    expected = [(scores[row] >= scores[row, row] - 1e-12).sum() for row in range(4)]
    assert bm25.predictions is not None
    assert bm25.predictions.tolist() == expected


def test_tf_idf_is_that_of_scikit_learn():
    from sklearn.feature_extraction.text import TfidfVectorizer

    def as_texts(tokens: np.ndarray) -> list[str]:
        return [" ".join(f"w{token}" for token in row if token) for row in tokens]

    vectorizer = TfidfVectorizer(sublinear_tf=True).fit([*as_texts(QUERIES), *as_texts(POSITIVES)])
    cosines = (vectorizer.transform(as_texts(QUERIES)) @ vectorizer.transform(as_texts(POSITIVES)).T).toarray()
    expected = [(cosines[row] >= cosines[row, row] - 1e-12).sum() for row in range(4)]
    _, tf_idf, _ = fit_baselines(make_task())
    assert tf_idf.predictions is not None
    assert tf_idf.predictions.tolist() == expected


def test_what_would_take_too_long_or_fails_has_a_reason(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise MemoryError("no memory")

    monkeypatch.setattr(lexical_baselines, "_weigh_bm25", fail)
    _, _, bm25 = fit_baselines(make_task())
    assert bm25 == FittedBaseline("BM25", None, reason="it failed with MemoryError: no memory")
    monkeypatch.setattr(lexical_baselines, "_MAX_SIMILARITIES", 15)
    reasons = [baseline.reason for baseline in fit_baselines(make_task())]
    assert reasons == ["", *["16 pairs of a query and a text would take too long"] * 2]


def test_a_random_order_draws_ranks_among_the_texts_that_are_ranked():
    random = np.random.default_rng(1)
    queries, positives = random.integers(1, 9, (400, 3)), random.integers(1, 9, (400, 3))
    queries[200:] = queries[:200]  # two positives for each query
    task = make_task()._replace(test_x=queries, test_y=positives)
    ranks = next(iter(fit_baselines(task))).predictions
    assert ranks is not None
    num_ranked = len(np.unique(positives, axis=0)) - 1
    assert (ranks.min() >= 1, ranks.max() <= num_ranked) == (True, True)
    assert abs(ranks.mean() / num_ranked - 0.5) < 0.05
