"""Entities in tagged sentences are those that `conlleval` finds."""

from __future__ import annotations

import numpy as np
import pytest

from bloomery.data_contracts.serving.entities import code_tags, entity_types, find_entities, tag_codes


def entities_of(*sentences: str) -> list[tuple[int, str, int, int]]:
    tags = tuple(sorted({tag for sentence in sentences for tag in sentence.split()}))
    positions = np.full((len(sentences), max(len(sentence.split()) for sentence in sentences)), -1)
    for row, sentence in enumerate(sentences):
        names = sentence.split()
        positions[row, : len(names)] = [tags.index(name) for name in names]
    rows, starts, stops, kinds = find_entities(code_tags(tags, positions), positions >= 0)
    types = entity_types(tags)
    return [
        (row, types[kind], start, stop)
        for row, start, stop, kind in zip(*map(np.ndarray.tolist, (rows, starts, stops, kinds)), strict=True)
    ]


# The entities that seqeval 1.2.2 finds, whose rules are those of conlleval.
@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("B-PER B-PER I-PER", [("PER", 0, 1), ("PER", 1, 3)]),
        ("O I-PER I-PER O", [("PER", 1, 3)]),  # IOB1
        ("B-PER I-LOC I-LOC", [("PER", 0, 1), ("LOC", 1, 3)]),
        ("I-PER I-LOC I-PER", [("PER", 0, 1), ("LOC", 1, 2), ("PER", 2, 3)]),
        ("O O", []),
        ("B-PER I-PER E-PER S-LOC E-LOC", [("PER", 0, 3), ("LOC", 3, 4), ("LOC", 4, 5)]),
        ("B-A E-A E-A I-A", [("A", 0, 2), ("A", 2, 3), ("A", 3, 4)]),
        ("B-A I-A L-A U-B U-B", [("A", 0, 3), ("B", 3, 4), ("B", 4, 5)]),  # BILOU
        ("B-geo-political I-geo-political NOUN", [("geo-political", 0, 2)]),
    ],
)
def test_prefixes_are_read_as_conlleval_reads_them(sentence: str, expected: list[tuple[str, int, int]]):
    assert entities_of(sentence) == [(0, *entity) for entity in expected]


def test_an_entity_ends_with_its_sentence():
    assert entities_of("O B-PER", "I-PER O", "", "I-PER") == [(0, "PER", 1, 2), (1, "PER", 0, 1), (3, "PER", 0, 1)]


def test_positions_that_are_no_words_are_skipped():
    codes = code_tags(("B-X", "I-X", "O"), np.array([[-1, 0, -1, 1, 2]]))
    (row,), (start,), (stop,), (kind,) = find_entities(codes, codes != -1)
    assert (row, start, stop, kind) == (0, 0, 2, 0)


def test_tags_without_a_prefix_are_no_entities_and_all_codes_differ():
    codes = tag_codes(("O", "NOUN", "B-X", "L-X", "E-X", 7, "-", "B-"))
    assert codes[0] == 0
    assert (codes[[1, 4, 5, 6, 7]] < -1).all()  # L-X and E-X are the same; one of them stays a tag of its own
    assert len(set(codes.tolist())) == len(codes)
    assert entity_types(("NOUN", "VERB", "O", 3)) == ()
