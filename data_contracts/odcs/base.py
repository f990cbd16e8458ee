"""The base of all elements of a contract file, and the custom properties that Bloomery acts on."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StrictBool,
    StrictFloat,
    StrictInt,
    ValidationError,
    model_serializer,
)
from pydantic.alias_generators import to_camel
from pydantic_core import InitErrorDetails, PydanticCustomError

from bloomery.data_contracts.documents.documents import Document

# The types of the standard, and those that rows can be cast to.
StandardType = Literal["string", "date", "timestamp", "time", "number", "integer", "object", "array", "boolean"]
LogicalType = Literal["integer", "number", "string", "boolean", "date", "timestamp", "array"]

# Bloomery's custom properties, and the element that each belongs to. All others are descriptive.
CUSTOM_PROPERTIES = {
    "quarantineLimit": "the schema object",
    "unit": "a column",
    "personal": "a column",
    "unknownCategory": "a column",
}


def dates_as_text(value: Any) -> Any:
    """Turns dates into text, since YAML reads them as dates and JSON as text."""
    if isinstance(value, dict):
        return {key: dates_as_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [dates_as_text(item) for item in value]
    return value.isoformat() if isinstance(value, date) else value


PlainValue = Annotated[Any, BeforeValidator(dates_as_text)]
PlainText = Annotated[str, BeforeValidator(dates_as_text)]
Number = StrictInt | StrictFloat
Scalar = Annotated[StrictBool | StrictInt | StrictFloat | str | None, BeforeValidator(dates_as_text)]
StableId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


class CamelModel(Document):
    """An element of an ODCS file, where keys are in camel case. It is written with the keys that it was read with."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, alias_generator=to_camel, populate_by_name=True
    )

    @model_serializer(mode="wrap")
    def _write_keys_of_the_file(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = write(self)
        fields = type(self).model_fields
        unset = {key for name in fields.keys() - self.model_fields_set for key in (name, fields[name].alias)}
        return {key: value for key, value in document.items() if key not in unset}


class CustomProperty(CamelModel):
    """A property beyond the standard."""

    id: StableId | None = None
    property: str
    value: PlainValue
    description: str | None = None


class AuthoritativeDefinition(CamelModel):
    """A link to where an element is defined."""

    id: StableId | None = None
    url: str
    type: str
    description: str | None = None


class Element(CamelModel):
    """An element with descriptive keys, which are kept but not acted on."""

    id: StableId | None = None
    description: str | None = None
    tags: tuple[str, ...] = ()
    authoritative_definitions: tuple[AuthoritativeDefinition, ...] = ()
    custom_properties: tuple[CustomProperty, ...] = ()

    def custom_property(self, name: str, default: Any = None) -> Any:
        """The value of the custom property `name`, or `default` if it is missing."""
        return next((entry.value for entry in self.custom_properties if entry.property == name), default)


class Unchecked(Document):
    """A requirement of a contract that Bloomery does not check. `where` is a column, or "" for the table."""

    where: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.where}: {self.sentence}" if self.where else self.sentence


class Unsupported(ValueError):
    """The standard allows it, but Bloomery cannot check it. It is listed instead of refused."""


class Problem(Exception):
    """A problem at `place`, relative to the element that is being validated."""

    def __init__(self, sentence: str, *place: str | int) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.place = place


def raise_problems(problems: Sequence[Problem], title: str) -> None:
    """Raises a ValidationError with the place of each problem, if there is any."""
    details: list[InitErrorDetails] = [
        {
            "type": PydanticCustomError("value_error", "{sentence}", {"sentence": problem.sentence}),
            "loc": problem.place,
            "input": {},
        }
        for problem in problems
    ]
    if details:
        raise ValidationError.from_exception_data(title, details)


def unknown_key(key: str, known_keys: Sequence[str]) -> str:
    """Says that `key` is unknown, with the nearest known key, or all of them."""
    close = difflib.get_close_matches(key, known_keys, n=1)
    return f"unknown key; did you mean {close[0]!r}?" if close else f"unknown key; known: {', '.join(known_keys)}"


def find_custom_property_problems(element: Element, part: str) -> Iterator[Problem]:
    """Bloomery's custom properties that are set twice for `element`, a `part` of the contract."""
    names: set[str] = set()
    for position, entry in enumerate(element.custom_properties):
        if CUSTOM_PROPERTIES.get(entry.property) == part and entry.property in names:
            yield Problem(f"{entry.property} is set twice", "customProperties", position, "property")
        names.add(entry.property)


def find_ineffective_custom_properties(element: Element, part: str) -> Iterator[str]:
    """The custom properties of `element`, a `part` of the contract, that resemble Bloomery's or belong elsewhere."""
    known_names = {name.lower(): name for name in CUSTOM_PROPERTIES}
    for entry in element.custom_properties:
        name = entry.property
        owner = CUSTOM_PROPERTIES.get(name)
        if owner is not None and owner != part:
            yield f"custom property {name} belongs to {owner}, not to {part}, and has no effect"
        close = difflib.get_close_matches(name.lower(), known_names, n=1, cutoff=0.8)
        if owner is None and close:
            yield f"unknown custom property {name!r} has no effect; did you mean {known_names[close[0]]!r}?"
