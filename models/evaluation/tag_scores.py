"""Scores of tagged words: the share of right tags, and precision, recall and F1 of whole entities, as of CoNLL.

Truth and predictions are codes of tags (`data_contracts/serving/entities.py`); NO_TAG in the truth is no word. Words of
a sentence depend on each other, so intervals are from a bootstrap of sentences.

Shapes: N sentences, T words or tokens, D draws, S sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bloomery.data_contracts.records.intervals import Interval
from bloomery.data_contracts.serving.entities import NO_TAG, Entities, entity_types, find_entities, tag_codes

_NUM_DRAWS, _DRAWS_AT_ONCE = 1_000, 50
_MAX_ROWS = 20_000  # that are drawn from; of more an even sample, in which each sentence stands for several
_PSEUDO_COUNT = 0.5  # in each direction of a disagreement
_LEVELS = (0.025, 0.975)


class TagCounts(NamedTuple):
    """Counts of each sentence, float64 (N,): what is right, what is in the truth, and what is predicted.

    They are of words for `tag_accuracy`, and of entities for other scores.
    """

    right: np.ndarray
    true: np.ndarray
    predicted: np.ndarray


def count_tags(name: str, truth_NT: np.ndarray, codes_NT: np.ndarray) -> TagCounts:
    """The counts behind the score `name`."""
    if name != "tag_accuracy":
        true, predicted = (find_entities(codes, truth_NT != NO_TAG) for codes in (truth_NT, codes_NT))
        return count_entities(true, predicted, truth_NT)
    is_word_NT = truth_NT != NO_TAG
    num_words_N = is_word_NT.sum(axis=1).astype(np.float64)
    return TagCounts(count_right_words(truth_NT, codes_NT).astype(np.float64), num_words_N, num_words_N)


def count_right_words(truth_NT: np.ndarray, codes_NT: np.ndarray) -> np.ndarray:
    """The number of words with the right tag in each sentence, int64 (N,)."""
    return np.asarray(((codes_NT == truth_NT) & (truth_NT != NO_TAG)).sum(axis=1))


def count_entities(true: Entities, predicted: Entities, truth_NT: np.ndarray) -> TagCounts:
    """The entities of each sentence; one is right if its words and its type are."""
    is_right = np.isin(predicted.keys(*truth_NT.shape), true.keys(*truth_NT.shape))
    rows = (predicted.row[is_right], true.row, predicted.row)
    return TagCounts(*(np.bincount(row, minlength=len(truth_NT)).astype(np.float64) for row in rows))


class TypeCounts(NamedTuple):
    """How many entities of a type, or words with a tag, are predicted rightly, are in the truth, and are predicted."""

    name: str
    num_right: int
    num_true: int
    num_predicted: int


def count_types(tags: Sequence[int | str], truth_NT: np.ndarray, codes_NT: np.ndarray) -> list[TypeCounts]:
    """The entities of each type; of tags without entities, the words with each tag."""
    is_word_NT, types = truth_NT != NO_TAG, entity_types(tags)
    if not types:
        return [
            TypeCounts(str(tag), *(int(np.count_nonzero(values)) for values in (true & predicted, true, predicted)))
            for tag, code in zip(tags, tag_codes(tags), strict=True)
            for true, predicted in [(truth_NT == code, (codes_NT == code) & is_word_NT)]
        ]
    true, predicted = (find_entities(codes, is_word_NT) for codes in (truth_NT, codes_NT))
    counts = (count_entities(true.select(kind), predicted.select(kind), truth_NT) for kind, _ in enumerate(types))
    return [
        TypeCounts(name, *(int(values.sum()) for values in of_type))
        for name, of_type in zip(types, counts, strict=True)
    ]


def has_entities(truth_NT: np.ndarray) -> bool:
    """Whether a tag of the truth belongs to an entity."""
    return bool((truth_NT > 0).any())


def compute_tag_score(name: str, truth_NT: np.ndarray, codes_NT: np.ndarray) -> float:
    """The score of predicted codes; the truth has a word, and an entity for scores of entities."""
    sums = (values.sum() for values in count_tags(name, truth_NT, codes_NT))
    return float(_ratio(name, *sums))


def _ratio(name: str, right: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """The score of sums of counts; 0 where nothing is predicted."""
    sizes = {"entity_precision": predicted, "entity_f1": (true + predicted) / 2}
    return np.asarray(right / np.maximum(sizes.get(name, true), _PSEUDO_COUNT))


def tag_score_interval(name: str, truth_NT: np.ndarray, codes_NT: np.ndarray) -> Interval:
    """The score with its 95% interval."""
    (draws_D,) = _draw_scores(name, truth_NT, codes_NT)
    value = compute_tag_score(name, truth_NT, codes_NT)
    low, high = np.quantile(draws_D, _LEVELS) + (value - draws_D.mean())
    return Interval(value=value, low=min(max(float(low), 0.0), value), high=max(min(float(high), 1.0), value))


def tag_score_drop(name: str, truth_NT: np.ndarray, before_NT: np.ndarray, after_NT: np.ndarray) -> Interval:
    """How much lower the score of `after` is than that of `before`, paired by sentence, with its 95% interval."""
    draws_2D = _draw_scores(name, truth_NT, before_NT, after_NT)
    before, after = (compute_tag_score(name, truth_NT, codes_NT) for codes_NT in (before_NT, after_NT))
    drops_D, value = draws_2D[0] - draws_2D[1], before - after
    low, high = np.quantile(drops_D, _LEVELS) + (value - drops_D.mean())
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value))


def _draw_scores(name: str, truth_NT: np.ndarray, *sides: np.ndarray) -> np.ndarray:
    """Bootstrapped scores (S, D) of one or two predictions in the same draws of sentences.

    Sentences in which both agree are no proof of equality: half a word or entity that only the first predicts rightly
    is added, and half of one that only the second does.

    Source: Agresti & Min 2005, "Simple improved confidence intervals for comparing matched proportions".
    """
    step = -(-len(truth_NT) // _MAX_ROWS)
    counts = [
        np.stack([values_N[::step] for values_N in count_tags(name, truth_NT, codes_NT)], axis=1) for codes_NT in sides
    ]
    rate = len(truth_NT) / len(counts[0])
    random = np.random.default_rng(0)
    scores_SD = np.zeros((len(sides), _NUM_DRAWS))
    for start in range(0, _NUM_DRAWS, _DRAWS_AT_ONCE):
        weights_DN = random.poisson(rate, (_DRAWS_AT_ONCE, len(counts[0]))).astype(np.float64)
        added = random.poisson(_PSEUDO_COUNT, (2, _DRAWS_AT_ONCE))
        both_D = added.sum(axis=0)
        for side, counts_N3 in enumerate(counts):
            right_D, true_D, predicted_D = (weights_DN @ counts_N3).T
            drawn = (right_D + added[side], true_D + both_D, predicted_D + both_D)
            scores_SD[side, start : start + _DRAWS_AT_ONCE] = _ratio(name, *drawn)
    return scores_SD
