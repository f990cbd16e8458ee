"""Evaluates vectors of texts: the contrastive loss, and the ranks of positives.

Shapes: N rows, M texts of the corpus, T tokens, W values of a vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from bloomery.data_contracts.records.scores import default_score
from bloomery.models.evaluation.retrieval import build_corpus, rank_gains, rank_positives
from bloomery.models.training.config import Loop
from bloomery.models.training.data.batches import ExampleSource
from bloomery.models.training.optimization.contrastive_loss import contrastive_loss, pair_tokens
from bloomery.models.training.optimization.score_measure import ScoreMeasure


def evaluate_embedding(
    predict: Callable[[torch.Tensor], torch.Tensor],
    examples: ExampleSource,
    measure: ScoreMeasure | None,
    loop: Loop | None,
) -> tuple[float, float]:
    """Mean loss over the rows, in batches as in training, and the score: by default nDCG@10.

    Args:
        predict: vectors (N, W) of tokens float32 (N, T).
        loop: its temperature and batch size determine the loss; None computes no loss, which is then not a number.
    """
    x_NT, y_NT = (torch.cat(parts) for parts in zip(*examples.iterate(), strict=True))
    corpus = build_corpus(x_NT.numpy(), y_NT.numpy())
    queries_NW, texts_MW = predict(x_NT), predict(torch.from_numpy(corpus.tokens).to(x_NT.dtype))
    loss = math.nan
    if loop is not None:
        positives_NW = texts_MW[torch.from_numpy(corpus.positives)]
        parts = (rows.split(loop.batch_size) for rows in (queries_NW, positives_NW, x_NT, y_NT))
        losses = [
            contrastive_loss(torch.cat([queries, positives]), pair_tokens(x, y), loop)
            for queries, positives, x, y in zip(*parts, strict=True)
        ]
        loss = float(torch.stack(losses).double().sum()) / len(y_NT)
    score = default_score("embedding") if measure is None else measure.score
    ranks_N = rank_positives(corpus, queries_NW.numpy(), texts_MW.numpy())
    return loss, float(rank_gains(score.name, ranks_N).mean())
