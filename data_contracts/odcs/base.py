"""The base of all elements of a contract file, and the custom properties that Bloomery acts on."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import InitErrorDetails, PydanticCustomError

from bloomery.data_contracts.documents.documents import Document

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


class CamelModel(Document):
    """An element of an ODCS file, where keys are in camel case."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, alias_generator=to_camel, populate_by_name=True
    )


class CustomProperty(CamelModel):
    """A property beyond the standard."""

    id: str | None = None
    property: str
    value: PlainValue = None
    description: str | None = None


class Element(CamelModel):
    """An element with descriptive keys, which are kept but not acted on."""

    id: str | None = None
    description: str | None = None
    tags: tuple[str, ...] = ()
    authoritative_definitions: tuple[dict[str, PlainValue], ...] = ()
    custom_properties: tuple[CustomProperty, ...] = ()

    def custom_property(self, name: str, default: Any = None) -> Any:
        """The value of the custom property `name`, or `default` if it is missing."""
        return next((entry.value for entry in self.custom_properties if entry.property == name), default)


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


def find_custom_property_problems(element: Element, part: str) -> list[Problem]:
    """The custom properties of `element`, a `part` of the contract, that are misspelt, repeated or belong elsewhere."""
    problems = []
    names: set[str] = set()
    for position, entry in enumerate(element.custom_properties):
        name = entry.property
        place = ("customProperties", position, "property")
        close = difflib.get_close_matches(name.lower(), [key.lower() for key in CUSTOM_PROPERTIES], n=1, cutoff=0.8)
        if name in CUSTOM_PROPERTIES:
            if CUSTOM_PROPERTIES[name] != part:
                problems.append(Problem(f"{name} belongs to {CUSTOM_PROPERTIES[name]}, not to {part}", *place))
            elif name in names:
                problems.append(Problem(f"{name} is set twice", *place))
        elif close:
            suggestion = next(key for key in CUSTOM_PROPERTIES if key.lower() == close[0])
            problems.append(Problem(f"unknown custom property {name!r}; did you mean {suggestion!r}?", *place))
        names.add(name)
    return problems
