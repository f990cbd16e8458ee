"""Runs a network on encoded rows, and converts its outputs to what scores compare.

Shapes: N rows, M texts of a corpus, T tokens, W values of a vector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bloomery.data_contracts.serving.entities import code_tags
from bloomery.models.features.encoder import Encoder


class RowPredictions(NamedTuple):
    """Predictions for rows.

    Attributes:
        values: probabilities (N, K), numbers (N,), ranks of positives (N,) of an embedding, or codes of tags (N, T).
        vectors: of an embedding, float32 (N, W).
        shares: of a tagging task the probabilities of the tags, float32 (N, T).
    """

    values: np.ndarray
    vectors: np.ndarray | None = None
    shares: np.ndarray | None = None


def predict_rows(
    encoder: Encoder, x: np.ndarray, y: np.ndarray, compute: Callable[[np.ndarray], np.ndarray]
) -> RowPredictions:
    """Predictions for encoded rows `x` with labels `y`; `compute` returns the network's outputs for encoded rows.

    The positive of an embedding's row is ranked among the positives of all these rows. A tag counts where `y` has one.
    """
    from bloomery.models.evaluation.retrieval import build_corpus, rank_positives
    from bloomery.models.inference.outputs import predictions_from
    from bloomery.models.inference.tagged_words import tag_tokens

    if encoder.features.task == "tagging":
        tags_NT, shares_NT = tag_tokens(compute, x)
        return RowPredictions(code_tags(encoder.classes, np.where(y >= 0, tags_NT, -1)), shares=shares_NT)
    outputs = compute(x)
    if encoder.features.task != "embedding":
        return RowPredictions(predictions_from(encoder, outputs))
    if not len(x):
        return RowPredictions(np.empty(0), outputs)
    corpus = build_corpus(x, y)
    return RowPredictions(rank_positives(corpus, outputs, compute(corpus.tokens.astype(np.float32))), outputs)
