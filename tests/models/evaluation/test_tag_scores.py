"""Scores of tags count words and whole entities; their intervals draw sentences."""

from __future__ import annotations

import numpy as np
import pytest

from bloomery.data_contracts.records.scores import Score
from bloomery.data_contracts.serving.entities import code_tags
from bloomery.models.evaluation.score_intervals import degradation_interval, score_interval
from bloomery.models.evaluation.scores import UndefinedScore, compute_metrics, compute_score
from bloomery.models.evaluation.tag_scores import count_types

TAGS = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")


def codes_of(*sentences: str, tags: tuple[str, ...] = TAGS) -> np.ndarray:
    positions = np.full((len(sentences), 6), -1)
    for row, sentence in enumerate(sentences):
        names = sentence.split()
        positions[row, : len(names)] = [tags.index(name) for name in names]
    return code_tags(tags, positions)


def test_scores_are_those_of_conlleval():
    truth = codes_of("B-PER I-PER O B-LOC", "O B-LOC I-LOC", "O")
    predicted = codes_of("B-PER I-PER O O", "O B-LOC O", "B-PER")
    # 4 entities are predicted or true: 3 of each, of which one is right. seqeval 1.2.2 gives the same.
    assert compute_metrics("tagging", truth, predicted) == pytest.approx(
        {"tag_accuracy": 5 / 8, "entity_f1": 1 / 3, "entity_precision": 1 / 3, "entity_recall": 1 / 3}
    )


def test_entities_are_counted_by_type_and_other_tags_by_word():
    truth = codes_of("B-PER I-PER O B-LOC", "O B-LOC I-LOC", "O")
    predicted = codes_of("B-PER I-PER O B-PER", "O B-LOC O", "B-PER")
    assert count_types(TAGS, truth, predicted) == [("LOC", 0, 2, 1), ("PER", 1, 1, 3)]
    tags = ("NOUN", "VERB")
    truth, predicted = codes_of("NOUN VERB VERB", tags=tags), codes_of("NOUN NOUN VERB", tags=tags)
    assert count_types(tags, truth, predicted) == [("NOUN", 1, 1, 2), ("VERB", 1, 2, 1)]


def test_an_entity_of_another_type_is_wrong_and_no_prediction_gives_no_precision():
    truth = codes_of("B-PER O", "O O")
    assert compute_score(Score(name="entity_f1"), truth, codes_of("B-LOC O", "O O")) == 0
    assert compute_metrics("tagging", truth, codes_of("O O", "O O"))["entity_precision"] == 0


def test_tags_without_entities_have_an_accuracy_alone():
    truth = codes_of("NOUN VERB", "VERB", tags=("NOUN", "VERB"))
    assert compute_metrics("tagging", truth, truth) == {"tag_accuracy": 1}
    with pytest.raises(UndefinedScore, match="no word is in an entity"):
        compute_score(Score(name="entity_f1"), truth, truth)
    with pytest.raises(UndefinedScore, match="no row has a word"):
        compute_score(Score(name="tag_accuracy"), codes_of("", ""), codes_of("", ""))


def draw(num_rows: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sentences of six words, all of which are predicted rightly or wrongly together."""
    random = np.random.default_rng(seed)
    truth = code_tags(TAGS, random.integers(0, 5, (num_rows, 6)))
    wrong = np.roll(truth, 1, axis=0)
    return truth, np.where((random.random(num_rows) < share)[:, None], truth, wrong)


def test_the_interval_is_that_of_sentences_whose_words_depend_on_each_other():
    truth, predicted = draw(400, 0.8, 0)
    interval = score_interval(Score(name="tag_accuracy"), truth, predicted)
    is_right_N = (truth == predicted).mean(axis=1)
    expected = 2 * 1.96 * is_right_N.std() / 20  # of independent words it would be narrower by the square root of six
    assert interval.low < is_right_N.mean() < interval.high
    assert interval.high - interval.low == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("name", ["tag_accuracy", "entity_f1", "entity_precision", "entity_recall"])
def test_equal_predictions_may_differ_on_other_sentences_and_a_drop_is_found(name):
    score = Score(name=name)
    truth, before = draw(300, 0.9, 1)
    equal = degradation_interval(score, truth, before, before)
    assert equal.low < equal.value == 0 < equal.high < 0.02
    _, after = draw(300, 0.5, 1)
    drop = degradation_interval(score, truth, before, after)
    assert drop.low > 0.1
    assert drop.value == pytest.approx(compute_score(score, truth, before) - compute_score(score, truth, after))


def test_all_right_is_no_proof_that_all_are():
    truth, _ = draw(50, 1.0, 2)
    interval = score_interval(Score(name="entity_f1"), truth, truth)
    assert interval.value == interval.high == 1
    assert 0.95 < interval.low < 1
