"""Reads YAML into frozen models. Errors name each problem and its line."""

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
def read_bicycle(tmp_path: Path) -> Callable[[str], Bicycle]:
    def read_text(text: str) -> Bicycle:
        path = tmp_path / "bicycle.yaml"
        path.write_text(text, encoding="utf-8")
        return read_document(path, Bicycle, RecipeInvalid)

    return read_text


@pytest.fixture
def read_error(read_bicycle: Callable[[str], Bicycle]) -> Callable[[str], RecipeInvalid]:
    def read_text(text: str) -> RecipeInvalid:
        with pytest.raises(RecipeInvalid) as caught:
            read_bicycle(text)
        return caught.value

    return read_text


def test_a_file_becomes_a_frozen_document(read_bicycle):
    bicycle = read_bicycle(
        "name: red\nwheels:\n  - {diameter: 28}\n  - diameter: 29.5\n    spokes: 28\nframeSize: 56\n"
    )
    assert bicycle == Bicycle(name="red", wheels=(Wheel(diameter=28), Wheel(diameter=29.5, spokes=28)), frameSize=56)
    with pytest.raises(ValidationError):
        bicycle.name = "blue"


def test_every_problem_has_its_line_in_the_order_of_the_file(read_error):
    error = read_error("frameSize: big\nname: red\nwheels:\n  - diameter: 28\n  - diameter: wide\n    spokes: 1.5\n")
    places = [line.split(": ")[:2] for line in error.found.splitlines()]
    assert places == [
        ["bicycle.yaml:1", "frameSize"],
        ["bicycle.yaml:5", "wheels.1.diameter"],
        ["bicycle.yaml:6", "wheels.1.spokes"],
    ]
    assert error.where.endswith("bicycle.yaml:1")


def test_a_problem_names_the_value(read_error):
    assert (
        "frameSize: found 'big', but input should be a valid integer" in read_error("name: a\nframeSize: big\n").found
    )


def test_a_problem_in_an_optional_section_has_its_own_line(read_error):
    assert read_error("name: red\nfront:\n  spokes: 3\n  diameter: wide\n").found.startswith("bicycle.yaml:4: front")


def test_a_missing_key_is_reported_at_its_section(read_error):
    assert read_error("name: red\nwheels:\n  - diameter: 1\n  - spokes: 3\n").found == (
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
def test_the_message_corrects_a_misspelt_key(read_error, text, problem):
    assert read_error(text).found == problem


def test_the_message_lists_the_keys_of_the_section_if_none_is_similar(read_error):
    assert read_error("name: red\nwheels:\n- diameter: 1\n  zzz: 2\n").found == (
        "bicycle.yaml:4: wheels.0.zzz: unknown key; known here: diameter, spokes"
    )


def test_a_repeated_key_is_refused(read_error):
    error = read_error("name: red\nfront:\n  diameter: 1\n  spokes: 2\n  diameter: 3\n")
    assert error.found == "bicycle.yaml has the key 'diameter' twice"
    assert error.where.endswith("bicycle.yaml:5")


def test_two_sections_may_have_the_same_key(read_bicycle):
    assert len(read_bicycle("name: red\nwheels: [{diameter: 1}, {diameter: 1}]\n").wheels) == 2


def test_an_anchor_may_be_used_twice(read_bicycle):
    front, back = read_bicycle("name: red\nwheels: [&wheel {diameter: 1}, *wheel]\n").wheels
    assert front == back


@pytest.mark.parametrize(
    ("text", "line"),
    [("name: red\nfront: {diameter: 1\n", 3), ("name: red\nfront:\n\tdiameter: 1\n", 3), ("name: [red\n", 2)],
)
def test_invalid_yaml_is_reported_with_its_line(read_error, text, line):
    error = read_error(text)
    assert "is not YAML" in error.found
    assert error.where.endswith(f"bicycle.yaml:{line}")


@pytest.mark.parametrize("text", ["", "# nothing\n", "- red\n", "red\n", "name: red\n---\nname: blue\n", "1: red\n"])
def test_a_file_that_is_not_one_mapping_is_refused(read_error, text):
    assert "bicycle.yaml" in read_error(text).found


def test_a_key_that_is_a_list_is_refused(read_error):
    assert "bicycle.yaml" in str(read_error("name: red\n? [a, b]\n: 1\n"))


def test_a_section_that_contains_itself_is_refused(read_error):
    assert "bicycle.yaml" in str(read_error("name: red\nwheels: &all [*all]\n"))


def test_nan_is_refused(read_error):
    assert "found nan, but input should be a finite number" in read_error("name: a\nfront: {diameter: .nan}\n").found


def test_a_missing_or_unreadable_file_is_missing_data(tmp_path: Path):
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")
    for name in ("none.yaml", ".", "latin.yaml"):
        with pytest.raises(DataMissing, match="cannot be read") as caught:
            read_document(tmp_path / name, Bicycle, DocumentInvalid)
        assert caught.value.where == str(tmp_path / name)
