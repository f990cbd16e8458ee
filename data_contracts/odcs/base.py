"""What every part of a contract file has, and the custom properties that mean something here."""

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

# Our custom properties, and the part of a contract that each belongs to. All others are descriptive.
CUSTOM_PROPERTIES = {
    "quarantineLimit": "the schema object",
    "unit": "a column",
    "personal": "a column",
    "unknownCategory": "a column",
}


def dates_as_text(value: Any) -> Any:
    """YAML reads a date as a date and JSON as text: text it is, in both."""
    if isinstance(value, dict):
        return {key: dates_as_text(one) for key, one in value.items()}
    if isinstance(value, list):
        return [dates_as_text(one) for one in value]
    return value.isoformat() if isinstance(value, date) else value


PlainValue = Annotated[Any, BeforeValidator(dates_as_text)]


class CamelModel(Document):
    """A part of an ODCS file: keys are in camel case there."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, alias_generator=to_camel, populate_by_name=True
    )


class CustomProperty(CamelModel):
    """A property that the standard has no word for."""

    id: str | None = None
    property: str
    value: PlainValue = None
    description: str | None = None


class Element(CamelModel):
    """A part that can be described: descriptive keys are kept but not acted on."""

    id: str | None = None
    description: str | None = None
    tags: tuple[str, ...] = ()
    authoritative_definitions: tuple[dict[str, PlainValue], ...] = ()
    custom_properties: tuple[CustomProperty, ...] = ()

    def custom_property(self, name: str, default: Any = None) -> Any:
        """The value of the custom property `name`, or `default` where it is not stated."""
        return next((entry.value for entry in self.custom_properties if entry.property == name), default)


class Problem(Exception):
    """What is wrong with the part of a document at `place`, seen from the part that is being read."""

    def __init__(self, sentence: str, *place: str | int) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.place = place


def raise_problems(problems: Sequence[Problem], title: str) -> None:
    """Raises pydantic's ValidationError, with the place of each problem, if there is one."""
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
    """The custom properties of `element`, which is `part`, that are misspelt, stated twice or belong elsewhere."""
    found = []
    seen: set[str] = set()
    for position, entry in enumerate(element.custom_properties):
        name = entry.property
        place = ("customProperties", position, "property")
        close = difflib.get_close_matches(name.lower(), [known.lower() for known in CUSTOM_PROPERTIES], n=1, cutoff=0.8)
        if name in CUSTOM_PROPERTIES:
            if CUSTOM_PROPERTIES[name] != part:
                found.append(Problem(f"{name} belongs to {CUSTOM_PROPERTIES[name]}, not to {part}", *place))
            elif name in seen:
                found.append(Problem(f"{name} is stated twice", *place))
        elif close:
            meant = next(known for known in CUSTOM_PROPERTIES if known.lower() == close[0])
            found.append(Problem(f"unknown custom property {name!r}; did you mean {meant!r}?", *place))
        seen.add(name)
    return found
