"""Baselines of an embedding: texts are similar if they have words in common, the more so the rarer the words are.

Shapes: N rows, M texts of the corpus, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bloomery.models.evaluation.baselines import (
    RANDOM_ORDER,
    BaselineTask,
    FittedBaseline,
    count_tokens,
    describe_failure,
)
from bloomery.models.evaluation.retrieval import Corpus, build_corpus, rank_by_similarity

_TF_IDF, _BM25 = "TF-IDF", "BM25"
_K1, _B = 1.2, 0.75
_MAX_SIMILARITIES = 2_000_000_000


def fit_lexical(task: BaselineTask) -> Iterator[FittedBaseline]:
    """Yields the ranks of the test rows' positives in a random order, by the cosine of TF-IDF vectors, and by BM25.

    Words are the tokens of the recipe's tokenizer. How rare they are follows from the training rows.
    """
    assert task.test_y is not None
    assert task.layout.num_tokens is not None
    num_tokens = task.layout.num_tokens
    corpus = build_corpus(task.test_x, task.test_y)
    queries_NV, texts_MV = count_tokens(task.test_x, num_tokens), count_tokens(corpus.tokens, num_tokens)
    yield FittedBaseline(RANDOM_ORDER, _draw_ranks(corpus), len(task.train.y))
    num_similarities = queries_NV.shape[0] * texts_MV.shape[0]
    for name, weigh in ((_TF_IDF, _weigh_tf_idf), (_BM25, _weigh_bm25)):
        if num_similarities > _MAX_SIMILARITIES:
            reason = f"{num_similarities:,} pairs of a query and a text would take too long"
            yield FittedBaseline(name, None, reason=reason)
            continue
        try:
            ranks_N = _rank(corpus, *weigh(task, queries_NV, texts_MV))
        except Exception as failure:  # a finished training does not fail because of a baseline
            yield FittedBaseline(name, None, reason=describe_failure(failure))
            continue
        yield FittedBaseline(name, ranks_N, len(task.train.y))


def _rank(corpus: Corpus, left_NV: Any, right_MV: Any) -> np.ndarray:
    """Ranks float64 (N,) of the positives by the products of sparse weights of queries (N, V) and of texts (M, V)."""
    right_VM = right_MV.T.tocsr()
    return rank_by_similarity(corpus, lambda rows: (left_NV[rows] @ right_VM).toarray())


def _draw_ranks(corpus: Corpus) -> np.ndarray:
    """Ranks float64 (N,) by chance, among the texts that are ranked for each row."""
    num_ranked_N = len(corpus.tokens) - np.bincount(corpus.excluded[0], minlength=len(corpus.positives))
    return np.random.default_rng(0).integers(1, num_ranked_N, endpoint=True).astype(np.float64)


def _weigh_tf_idf(task: BaselineTask, queries_NV: Any, texts_MV: Any) -> tuple[Any, Any]:
    """Vectors of length 1, with logarithmic counts; both texts of training rows count for the frequencies of words."""
    from sklearn.feature_extraction.text import TfidfTransformer

    model = TfidfTransformer(sublinear_tf=True)
    model.fit(count_tokens(np.concatenate([task.train.x, task.train.y]), queries_NV.shape[1]))
    return model.transform(queries_NV), model.transform(texts_MV)


def _weigh_bm25(task: BaselineTask, queries_NV: Any, texts_MV: Any) -> tuple[Any, Any]:
    """Weights of words whose products are the scores of BM25; the positives of training rows are its collection.

    Source: Robertson & Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond", equation 3.9, with the
    inverse document frequency of Lucene, which is never negative.
    """
    training_NV = count_tokens(task.train.y, queries_NV.shape[1])
    num_with_V = np.bincount(training_NV.indices, minlength=queries_NV.shape[1])
    rarity_V = np.log1p((training_NV.shape[0] - num_with_V + 0.5) / (num_with_V + 0.5))
    lengths_M = np.asarray(texts_MV.sum(axis=1)).reshape(-1)
    mean_length = max(float(training_NV.sum()) / max(training_NV.shape[0], 1), 1.0)
    weights_MV = texts_MV.copy()
    penalties = np.repeat(_K1 * (1 - _B + _B * lengths_M / mean_length), np.diff(weights_MV.indptr))
    weights_MV.data = weights_MV.data * (_K1 + 1) / (weights_MV.data + penalties) * rarity_V[weights_MV.indices]
    return queries_NV, weights_MV
