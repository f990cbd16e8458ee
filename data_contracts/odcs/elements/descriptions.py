"""The descriptive sections of a contract: team, roles, support, price and relationships. They are kept, not acted on.

Source: Open Data Contract Standard v3.1.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag

from bloomery.data_contracts.odcs.base import (
    AuthoritativeDefinition,
    CamelModel,
    CustomProperty,
    Element,
    Number,
    PlainText,
    StableId,
)


class Role(CamelModel):
    """A role that gives access to the data."""

    id: StableId | None = None
    role: str
    description: str | None = None
    access: str | None = None
    first_level_approvers: str | None = None
    second_level_approvers: str | None = None
    custom_properties: tuple[CustomProperty, ...] = ()


class SupportItem(CamelModel):
    """A channel where people get help."""

    id: StableId | None = None
    channel: str
    url: str | None = None
    description: str | None = None
    tool: str | None = None
    scope: str | None = None
    invitation_url: str | None = None
    custom_properties: tuple[CustomProperty, ...] = ()


class Price(CamelModel):
    """What the data costs."""

    id: StableId | None = None
    price_amount: Number | None = None
    price_currency: str | None = None
    price_unit: str | None = None


class TeamMember(Element):
    """A member of the team."""

    username: str
    name: str | None = None
    role: str | None = None
    date_in: PlainText | None = None
    date_out: PlainText | None = None
    replaced_by_username: str | None = None
    comment: str | None = None  # before v3.0.2, where `description` replaces it


class Team(Element):
    """The team that owns the contract."""

    name: str | None = None
    members: tuple[TeamMember, ...] = ()


def _form_of_team(team: Any) -> str:
    return "members" if isinstance(team, list | tuple) else "team"


# Before v3.1 the team was the list of its members.
TeamOrMembers = Annotated[
    Annotated[Team, Tag("team")] | Annotated[tuple[TeamMember, ...], Tag("members")], Discriminator(_form_of_team)
]

_SHORTHAND = r"[A-Za-z_][A-Za-z0-9_]*\.[A-Za-z_][A-Za-z0-9_]*"
_QUALIFIED = (
    r"(?:(?:https?:\/\/)?[A-Za-z0-9._\-\/]+\.yaml#)?\/?[A-Za-z_][A-Za-z0-9_]*\/[A-Za-z0-9_-]+"
    r"(?:\/[A-Za-z_][A-Za-z0-9_]*\/[A-Za-z0-9_-]+)*"
)


def _require_reference(reference: str) -> str:
    if re.fullmatch(f"{_SHORTHAND}|{_QUALIFIED}", reference) is None:
        raise ValueError("must be a reference such as table.column, or /schema/ID/properties/ID")
    return reference


Reference = Annotated[str, AfterValidator(_require_reference)]
References = Annotated[tuple[Reference, ...], Field(min_length=1)]


class ColumnRelationship(CamelModel):
    """A foreign key of one column."""

    type: Literal["foreignKey"] = "foreignKey"
    to: Reference | References
    custom_properties: tuple[CustomProperty, ...] = ()

    @property
    def target(self) -> str:
        """The columns that the key refers to."""
        return self.to if isinstance(self.to, str) else ", ".join(self.to)


class TableRelationship(ColumnRelationship):
    """A foreign key of a table, of one or more columns."""

    from_: Annotated[Reference | References, Field(alias="from")]


class _Description(CamelModel):
    """The keys of a contract's description that the standard defines. It may have others."""

    model_config = ConfigDict(extra="allow")

    usage: str | None = None
    purpose: str | None = None
    limitations: str | None = None
    authoritative_definitions: tuple[AuthoritativeDefinition, ...] = ()
    custom_properties: tuple[CustomProperty, ...] = ()


def require_description(description: dict[str, Any]) -> dict[str, Any]:
    """Raises ValidationError if a key of the standard has a value of another kind."""
    _Description.model_validate(description)
    return description
