"""`bloomery init` drafts tags of words where an array of tags has as many elements as an array of words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloomery.data_contracts.errors import DataUnfit
from bloomery.flows.cli.commands.init import list_inferences, write_drafts
from bloomery.flows.recipe.recipe import Recipe, read_recipe
from bloomery.tasks.scaffolding.planning.draft_planning import ColumnRoles
from bloomery.tasks.scaffolding.planning.task_inference import parse_request
from bloomery.tasks.scaffolding.source_options.reader_options import UserOptions

pytestmark = pytest.mark.usefixtures("home")
WORDS = [f"Ada met Bob in Rome at {number}".split() for number in range(120)]
SIZES = [number % 37 / 4 for number in range(len(WORDS))]
TAGS: list[list[Any]] = [["B-PER", "O", "B-PER", "O", "B-LOC", "O", "O"] for _ in WORDS]


def draft(folder: Path, tags: list[Any], task: str | None = None, **columns: Any) -> tuple[Recipe, dict[str, str]]:
    path = folder / "rows.parquet"
    pq.write_table(pa.table({"id": range(len(tags)), "words": WORDS, "tags": tags, **columns}), path)
    roles = ColumnRoles("tags", task=parse_request(task, None, None, None))
    result = write_drafts("mine", [str(path)], roles, UserOptions(), output=folder, force=True)
    return read_recipe(str(result.recipe)), dict(list_inferences(result))


def test_equally_long_arrays_are_words_and_tags(tmp_path: Path) -> None:
    tags = [*TAGS[:-2], TAGS[0][:3], ["B-ORG", *TAGS[0][1:]]]
    recipe, lines = draft(tmp_path, tags, source=["a", "b"] * 60)
    assert (recipe.features.task, recipe.model.kind, recipe.training.score.name) == ("tagging", "rnn", "entity_f1")
    (words,) = recipe.features.inputs
    assert (words.column, words.tokenizer, words.length) == ("words", "words", 8)
    assert lines["task"] == "tagging: tags has as many elements as words in nearly all rows, a tag for each word"
    assert lines["label"].startswith("tags: 4 tags for the words in words; fewer than 10 rows have B-ORG")
    rules = [rule.expression for rule in recipe.contract.rules() if rule.kind == "expression"]
    assert rules == ['LENGTH("words") = LENGTH("tags")']
    assert "for each word" in recipe.contract.description["purpose"]


def test_tags_without_entities_are_scored_by_words(tmp_path: Path) -> None:
    recipe, _ = draft(tmp_path, [[1, 2, 1, 3, 1, 3, 4]] * len(WORDS))
    assert recipe.features.task == "tagging"
    assert recipe.training.score is None  # the default, tag_accuracy


def test_arrays_that_seldom_are_as_long_or_do_not_repeat_are_sets(tmp_path: Path) -> None:
    recipe, _ = draft(tmp_path, [["a", "b"][: number % 3] for number in range(len(WORDS))], size=SIZES)
    assert recipe.features.task == "multilabel"
    recipe, _ = draft(tmp_path, [list("abcdefg")] * 60 + [list("hijklmn")] * 60, size=SIZES)
    assert recipe.features.task == "multilabel"
    recipe, _ = draft(tmp_path, [list("abcdefg")] * 60 + [list("hijklmn")] * 60, "tagging")
    assert recipe.features.task == "tagging"


def test_requested_tags_need_words(tmp_path: Path) -> None:
    with pytest.raises(DataUnfit, match="column tags is string, and no array of words has as many elements"):
        draft(tmp_path, ["O O"] * len(WORDS), "tagging")
    with pytest.raises(DataUnfit, match="column tags is an array of string, and no array of words"):
        draft(tmp_path, [["O"]] * len(WORDS), "tagging")
