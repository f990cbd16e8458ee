"""Ranks texts by the similarity of their vectors, and scores the ranks.

Each row is a query with its positive; the corpus has each positive of the rows once. Equal tokens are equal texts.

Shapes: N rows, M texts of the corpus, T tokens, W values of a vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bloomery.data_contracts.records.records import Interval
from bloomery.data_contracts.records.scores import ScoreName
from bloomery.models.evaluation import metrics
from bloomery.models.evaluation.block_bootstrap import bootstrap_interval

_BLOCK_VALUES = 16_000_000  # similarities in memory at once: 64 MB
_CUTOFFS: dict[ScoreName, int] = {"recall_at_1": 1, "recall_at_5": 5, "recall_at_10": 10}
_GAIN_CUTOFF = 10
_PSEUDO_ROWS = 0.5  # in each direction of a disagreement


class Corpus(NamedTuple):
    """The texts among which the positives of rows are found.

    Attributes:
        tokens: the distinct positives (M, T).
        positives: the position of each row's positive (N,).
        excluded: rows and positions of texts, both (E,), that are not ranked for a row: other positives of the same
            query, and the query itself.
    """

    tokens: np.ndarray
    positives: np.ndarray
    excluded: tuple[np.ndarray, np.ndarray]


def build_corpus(queries_NT: np.ndarray, positives_NT: np.ndarray) -> Corpus:
    """The corpus of rows, from the tokens of queries and positives, both (N, T)."""
    tokens_MT, positives_N = _distinct(positives_NT)
    texts = {row.tobytes(): number for number, row in enumerate(tokens_MT)}
    queries_QT, queries_N = _distinct(np.asarray(queries_NT, tokens_MT.dtype))
    order_N = np.argsort(queries_N, kind="stable")
    groups = np.split(order_N, np.flatnonzero(np.diff(queries_N[order_N])) + 1) if len(order_N) else []
    rows, excluded = [], []
    for query_T, group in zip(queries_QT, groups, strict=True):
        candidates = set(positives_N[group].tolist())
        own = texts.get(query_T.tobytes())
        candidates |= set() if own is None else {own}
        for row in group.tolist():
            others = candidates - {int(positives_N[row])}
            rows += [row] * len(others)
            excluded += sorted(others)
    return Corpus(tokens_MT, positives_N, (np.array(rows, np.int64), np.array(excluded, np.int64)))


def _distinct(tokens_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows in order, and the position of each row among them (N,)."""
    distinct, positions = np.unique(tokens_NT, axis=0, return_inverse=True)
    return np.ascontiguousarray(distinct), positions.reshape(-1)


def rank_positives(corpus: Corpus, queries_NW: np.ndarray, texts_MW: np.ndarray) -> np.ndarray:
    """The rank float64 (N,) of each row's positive by cosine similarity to the query: 1 is the most similar text.

    Texts as similar as the positive rank before it, so that equal vectors for all texts score as badly as possible.
    A rank is not a number where a vector is not finite.
    """
    queries_NW, texts_MW = normalise(queries_NW), normalise(texts_MW)
    return rank_by_similarity(corpus, lambda rows: queries_NW[rows] @ texts_MW.T)


def rank_by_similarity(corpus: Corpus, compare: Callable[[slice], np.ndarray]) -> np.ndarray:
    """The ranks float64 (N,) as of `rank_positives`, by the similarities (B, M) of rows to texts, which change."""
    num_rows = len(corpus.positives)
    ranks_N = np.empty(num_rows)
    rows, excluded = corpus.excluded
    step = max(_BLOCK_VALUES // max(len(corpus.tokens), 1), 1)
    for start in range(0, num_rows, step):
        block = slice(start, start + step)
        similarities_BM = compare(block)
        positives_B = corpus.positives[block]
        own_B1 = np.take_along_axis(similarities_BM, positives_B[:, None], axis=1)
        is_inside = (rows >= start) & (rows < start + step)
        similarities_BM[rows[is_inside] - start, excluded[is_inside]] = -np.inf
        ranks_N[block] = np.where(np.isfinite(own_B1[:, 0]), (similarities_BM >= own_B1).sum(axis=1), np.nan)
    return ranks_N


def normalise(vectors_NW: np.ndarray) -> np.ndarray:
    """Vectors of length 1, float32; a vector of zeros stays."""
    vectors_NW = np.asarray(vectors_NW, np.float32)
    lengths_N1 = np.linalg.norm(vectors_NW, axis=1, keepdims=True)
    return vectors_NW / np.where(lengths_N1 > 0, lengths_N1, 1)


def rank_gains(name: ScoreName, ranks_N: np.ndarray) -> np.ndarray:
    """The gain float64 (N,) of each rank, from 0 to 1, whose mean is the score `name`.

    A query has one positive, so that the ideal gain is 1, and nDCG@10 is 1 / log2(1 + rank) down to rank 10.

    Source: Järvelin & Kekäläinen 2002, "Cumulated gain-based evaluation of IR techniques".
    """
    if name in _CUTOFFS:
        return np.asarray(ranks_N <= _CUTOFFS[name], np.float64)
    if name == "mean_reciprocal_rank":
        return np.asarray(1 / ranks_N)
    return np.where(ranks_N <= _GAIN_CUTOFF, 1 / np.log2(1 + ranks_N), 0.0)


def gain_interval(name: ScoreName, ranks_N: np.ndarray) -> Interval:
    """The score with its 95% interval: Wilson's of a recall, and from a bootstrap of queries of other scores."""
    gains_N = rank_gains(name, ranks_N)
    if name in _CUTOFFS:
        return metrics.accuracy(gains_N > 0)
    value = float(gains_N.mean())
    low, high = bootstrap_interval(gains_N[:, None], lambda means: means[..., 0], gains_N)
    return Interval(value=value, low=max(min(low, value), 0.0), high=min(max(high, value), 1.0))


def gain_drop(name: ScoreName, before_N: np.ndarray, after_N: np.ndarray) -> Interval:
    """The drop of the score between two models' ranks of the same rows, with a 95% interval.

    Tango's of a recall. Of other scores it is that of the mean paired difference, to which half a row in each direction
    of a disagreement is added, since few rows with equal ranks do not prove that the models are equal.

    Source: Agresti & Min 2005, "Simple improved confidence intervals for comparing matched proportions".
    """
    gains_before, gains_after = rank_gains(name, before_N), rank_gains(name, after_N)
    if name in _CUTOFFS:
        return metrics.accuracy_drop(gains_before > 0, gains_after > 0)
    drops_N = gains_before - gains_after
    num_rows = len(drops_N) + 2 * _PSEUDO_ROWS
    value, centre = float(drops_N.mean()), float(drops_N.sum()) / num_rows
    variance = (float(np.square(drops_N).sum()) + 2 * _PSEUDO_ROWS) / num_rows - centre**2
    half_width = metrics.Z_95 * math.sqrt(max(variance, 0.0) / num_rows)
    return Interval(value=value, low=min(centre - half_width, value), high=max(centre + half_width, value))
