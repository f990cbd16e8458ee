"""The properties of a contract file: columns of a table, fields of an object, and items of an array.

They keep every key of the standard. `columns/column.py` derives the columns that Bloomery reads.

Source: Open Data Contract Standard v3.1, Schema.
"""

from __future__ import annotations

from typing import Self

from pydantic import StrictBool, StrictInt, model_validator

from bloomery.data_contracts.odcs.base import (
    Element,
    PlainValue,
    Problem,
    StandardType,
    find_custom_property_problems,
    raise_problems,
)
from bloomery.data_contracts.odcs.elements.descriptions import ColumnRelationship
from bloomery.data_contracts.odcs.elements.physical_types import refine_type
from bloomery.data_contracts.odcs.elements.quality import Quality
from bloomery.data_contracts.odcs.elements.type_options import TypeOptions


class Property(Element):
    """The keys that columns, fields of objects and items of arrays share."""

    name: str | None = None
    physical_name: str | None = None
    business_name: str | None = None
    logical_type: StandardType | None = None
    physical_type: str | None = None
    logical_type_options: TypeOptions = TypeOptions()
    required: StrictBool = False
    unique: StrictBool = False
    primary_key: StrictBool = False
    primary_key_position: StrictInt | None = None
    partitioned: StrictBool = False
    partition_key_position: StrictInt | None = None
    classification: str | None = None
    encrypted_name: str | None = None
    transform_source_objects: tuple[str, ...] = ()
    transform_logic: str | None = None
    transform_description: str | None = None
    examples: tuple[PlainValue, ...] = ()
    critical_data_element: StrictBool = False
    relationships: tuple[ColumnRelationship, ...] = ()
    quality: tuple[Quality, ...] = ()
    items: ItemProperty | None = None
    properties: tuple[SchemaProperty, ...] | None = None

    @model_validator(mode="after")
    def _fits_its_type(self) -> Self:
        logical_type = refine_type(self.logical_type, self.physical_type)
        if self.items is not None and self.logical_type not in ("array", None):
            raise ValueError("items is required for arrays, and allowed only for them")
        options = self.logical_type_options.find_problems(self.logical_type or logical_type)
        problems = [Problem(problem.sentence, "logicalTypeOptions", *problem.place) for problem in options]
        problems += find_custom_property_problems(self, "a column")
        if self.properties is not None and not self._may_have_properties:
            problems.append(Problem(f"properties has no meaning for {self.logical_type}", "properties"))
        raise_problems(problems, self.name or "items")
        return self

    @property
    def _may_have_properties(self) -> bool:
        return self.logical_type in ("object", None)


class ItemProperty(Property):
    """The items of an array. They are required unless the file says otherwise."""

    required: StrictBool = True

    @property
    def _may_have_properties(self) -> bool:
        return True


class SchemaProperty(Property):
    """One property of a table or an object."""

    name: str


Property.model_rebuild()
ItemProperty.model_rebuild()
SchemaProperty.model_rebuild()
