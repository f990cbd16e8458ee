"""Positives are ranked by cosine similarity, and ranks are scored with intervals."""

from __future__ import annotations

import numpy as np
import pytest

from bloomery.data_contracts.records.scores import Score
from bloomery.models.evaluation.retrieval import build_corpus, gain_drop, gain_interval, rank_gains, rank_positives
from bloomery.models.evaluation.score_intervals import degradation_interval, score_interval
from bloomery.models.evaluation.scores import compute_metrics, compute_score

QUERIES = np.array([[1, 0], [2, 0], [3, 0], [1, 0]])
POSITIVES = np.array([[7, 0], [8, 0], [7, 0], [9, 0]])


def test_the_corpus_has_each_positive_once_and_leaves_out_other_positives_of_a_query():
    corpus = build_corpus(QUERIES, POSITIVES)
    assert corpus.tokens.tolist() == [[7, 0], [8, 0], [9, 0]]
    assert corpus.positives.tolist() == [0, 1, 0, 2]
    assert sorted(zip(*(part.tolist() for part in corpus.excluded), strict=True)) == [(0, 2), (3, 0)]


def test_a_query_that_is_in_the_corpus_is_not_ranked_for_itself():
    corpus = build_corpus(np.array([[1, 2], [3, 4]]), np.array([[3, 4], [1, 2]]))
    vectors = np.eye(2, dtype=np.float32)
    # Each query equals the other's positive: without the exclusion, it would be the most similar text.
    assert rank_positives(corpus, vectors, vectors).tolist() == [1, 1]


def test_ranks_equal_those_of_sorted_similarities(monkeypatch):
    random = np.random.default_rng(0)
    queries, positives = (random.integers(0, 1000, (40, 3)) for _ in range(2))
    corpus = build_corpus(queries, positives)
    vectors, texts = random.normal(size=(40, 8)), random.normal(size=(len(corpus.tokens), 8))
    similarities = (vectors @ texts.T) / np.outer(np.linalg.norm(vectors, axis=1), np.linalg.norm(texts, axis=1))
    expected = [
        1 + sorted(-row).index(-row[position]) for row, position in zip(similarities, corpus.positives, strict=True)
    ]
    assert rank_positives(corpus, vectors, texts).tolist() == expected
    monkeypatch.setattr("bloomery.models.evaluation.retrieval._BLOCK_VALUES", 100)
    assert rank_positives(corpus, vectors, texts).tolist() == expected


def test_equal_vectors_rank_last_and_vectors_that_are_not_finite_have_no_rank():
    corpus = build_corpus(np.arange(5)[:, None] + 10, np.arange(5)[:, None])
    assert rank_positives(corpus, np.ones((5, 4)), np.ones((5, 4))).tolist() == [5] * 5
    vectors = np.eye(5, dtype=np.float32)
    vectors[2] = np.nan
    ranks = rank_positives(corpus, vectors, np.eye(5))
    assert np.isnan(ranks[2])
    assert ranks[[0, 1, 3, 4]].tolist() == [1, 1, 1, 1]
    assert np.isnan(compute_score(Score(name="ndcg_at_10"), corpus.positives, ranks))


def test_scores_of_ranks():
    ranks = np.array([1.0, 2.0, 3.0, 10.0, 11.0])
    values = compute_metrics("embedding", np.arange(5), ranks)
    assert values["recall_at_1"] == 0.2
    assert values["recall_at_5"] == pytest.approx(0.6)
    assert values["recall_at_10"] == 0.8
    assert values["mean_reciprocal_rank"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 10 + 1 / 11) / 5)
    assert values["ndcg_at_10"] == pytest.approx((1 + 1 / np.log2(3) + 1 / 2 + 1 / np.log2(11)) / 5)


@pytest.mark.parametrize("name", ["ndcg_at_10", "recall_at_1", "mean_reciprocal_rank"])
def test_intervals_contain_the_score_and_cover_it_about_as_often_as_they_state(name):
    random = np.random.default_rng(1)
    population = np.minimum(random.geometric(0.3, 100_000), 40).astype(float)
    truth = rank_gains(name, population).mean()
    intervals = [gain_interval(name, random.choice(population, 200)) for _ in range(60)]
    assert all(interval.low <= interval.value <= interval.high for interval in intervals)
    assert sum(interval.low <= truth <= interval.high for interval in intervals) >= 50


@pytest.mark.parametrize("name", ["ndcg_at_10", "recall_at_5"])
def test_few_rows_with_equal_ranks_do_not_prove_equality(name):
    score, ranks = Score(name=name), np.ones(20)
    few, many = (degradation_interval(score, ranks, rows, rows) for rows in (ranks, np.ones(2000)))
    assert few.value == many.value == 0
    assert few.high > 0.05 > 0.005 > many.high
    assert score_interval(score, ranks, ranks).value == 1


def test_a_drop_is_positive_and_paired():
    random = np.random.default_rng(2)
    before = random.integers(1, 20, 1000).astype(float)
    after = before + (random.random(1000) < 0.1)
    drop = gain_drop("ndcg_at_10", before, after)
    assert 0 < drop.low < drop.value < drop.high < 0.05
    assert gain_drop("ndcg_at_10", after, before).value == -drop.value
