"""Reading YAML into frozen models, and what a mistake is answered with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import Field, ValidationError

from bloomery.data_contracts.documents.documents import Document, read_document
from bloomery.data_contracts.errors import DataMissing, DocumentInvalid, RecipeInvalid


class Wheel(Document):
    diameter: float
    spokes: int = 32


class Bicycle(Document):
    name: str
    wheels: tuple[Wheel, ...] = ()
    front: Wheel | None = None
    frame_size: int = Field(default=54, alias="frameSize")


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str], Bicycle]:
    def read_text(text: str) -> Bicycle:
        path = tmp_path / "bicycle.yaml"
        path.write_text(text, encoding="utf-8")
        return read_document(path, Bicycle, RecipeInvalid)

    return read_text


@pytest.fixture
def refused(read: Callable[[str], Bicycle]) -> Callable[[str], RecipeInvalid]:
    def read_text(text: str) -> RecipeInvalid:
        with pytest.raises(RecipeInvalid) as caught:
            read(text)
        return caught.value

    return read_text


def test_a_file_becomes_a_frozen_document(read):
    bicycle = read("name: red\nwheels:\n  - {diameter: 28}\n  - diameter: 29.5\n    spokes: 28\nframeSize: 56\n")
    assert bicycle == Bicycle(name="red", wheels=(Wheel(diameter=28), Wheel(diameter=29.5, spokes=28)), frameSize=56)
    with pytest.raises(ValidationError):
        bicycle.name = "blue"


def test_every_problem_has_its_line_in_the_order_of_the_file(refused):
    error = refused("frameSize: big\nname: red\nwheels:\n  - diameter: 28\n  - diameter: wide\n    spokes: 1.5\n")
    places = [line.split(": ")[:2] for line in error.found.splitlines()]
    assert places == [
        ["bicycle.yaml:1", "frameSize"],
        ["bicycle.yaml:5", "wheels.1.diameter"],
        ["bicycle.yaml:6", "wheels.1.spokes"],
    ]
    assert error.where.endswith("bicycle.yaml:1")


def test_a_problem_says_what_was_found(refused):
    assert "frameSize: found 'big', but input should be a valid integer" in refused("name: a\nframeSize: big\n").found


def test_a_problem_inside_an_optional_part_has_its_own_line(refused):
    assert refused("name: red\nfront:\n  spokes: 3\n  diameter: wide\n").found.startswith("bicycle.yaml:4: front")


def test_a_missing_key_is_named_at_the_part_that_lacks_it(refused):
    assert refused("name: red\nwheels:\n  - diameter: 1\n  - spokes: 3\n").found == (
        "bicycle.yaml:4: wheels.1.diameter: missing"
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: red\nnmae: blue\n", "bicycle.yaml:2: nmae: unknown key; did you mean 'name'?"),
        ("name: red\nframesize: 1\n", "bicycle.yaml:2: framesize: unknown key; did you mean 'frameSize'?"),
        (
            "name: red\nwheels:\n- diameter: 1\n  spoke: 2\n",
            "bicycle.yaml:4: wheels.0.spoke: unknown key; did you mean 'spokes'?",
        ),
        (
            "name: red\nfront:\n  diameter: 1\n  diametre: 2\n",
            "bicycle.yaml:4: front.diametre: unknown key; did you mean 'diameter'?",
        ),
    ],
)
def test_a_misspelt_key_is_answered_with_the_right_one(refused, text, problem):
    assert refused(text).found == problem


def test_a_key_like_no_other_is_answered_with_those_of_its_own_part(refused):
    assert refused("name: red\nwheels:\n- diameter: 1\n  zzz: 2\n").found == (
        "bicycle.yaml:4: wheels.0.zzz: unknown key; known here: diameter, spokes"
    )


def test_a_key_given_twice_is_refused(refused):
    error = refused("name: red\nfront:\n  diameter: 1\n  spokes: 2\n  diameter: 3\n")
    assert error.found == "bicycle.yaml has the key 'diameter' twice"
    assert error.where.endswith("bicycle.yaml:5")


def test_one_key_may_stand_in_two_parts(read):
    assert len(read("name: red\nwheels: [{diameter: 1}, {diameter: 1}]\n").wheels) == 2


def test_an_anchor_may_be_used_twice(read):
    front, back = read("name: red\nwheels: [&wheel {diameter: 1}, *wheel]\n").wheels
    assert front == back


@pytest.mark.parametrize(
    ("text", "line"),
    [("name: red\nfront: {diameter: 1\n", 3), ("name: red\nfront:\n\tdiameter: 1\n", 3), ("name: [red\n", 2)],
)
def test_a_file_that_is_no_yaml_is_named_with_its_line(refused, text, line):
    error = refused(text)
    assert "is not YAML" in error.found
    assert error.where.endswith(f"bicycle.yaml:{line}")


@pytest.mark.parametrize("text", ["", "# nothing\n", "- red\n", "red\n", "name: red\n---\nname: blue\n", "1: red\n"])
def test_a_file_that_is_not_one_mapping_of_names_is_refused(refused, text):
    assert "bicycle.yaml" in refused(text).found


def test_a_key_that_is_a_list_is_refused_like_any_other_mistake(refused):
    assert "bicycle.yaml" in str(refused("name: red\n? [a, b]\n: 1\n"))


def test_a_part_that_holds_itself_is_refused_like_any_other_mistake(refused):
    assert "bicycle.yaml" in str(refused("name: red\nwheels: &all [*all]\n"))


def test_a_number_that_is_none_is_refused(refused):
    assert "found nan, but input should be a finite number" in refused("name: a\nfront: {diameter: .nan}\n").found


def test_a_file_that_is_not_there_or_no_text_is_missing_data(tmp_path: Path):
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")
    for name in ("none.yaml", ".", "latin.yaml"):
        with pytest.raises(DataMissing, match="cannot be read") as caught:
            read_document(tmp_path / name, Bicycle, DocumentInvalid)
        assert caught.value.where == str(tmp_path / name)
