"""Names of columns that name entities, codes and times."""

from __future__ import annotations

from typing import Any

import pytest

from bloomery.tasks.scaffolding.planning.entity_columns import find_entities, is_birth_date, names_event
from bloomery.tasks.scaffolding.profiling.profiler import ColumnProfile, SourceProfile


def make_column(name: str, values: list[Any]) -> ColumnProfile:
    return ColumnProfile(
        name=name,
        logical_type="integer" if isinstance(values[0], int) else "string",
        num_rows=len(values),
        num_missing=0,
        value_counts=tuple((value, values.count(value)) for value in dict.fromkeys(values)),
        num_distinct=len(set(values)),
    )


NUMBERS = [number % 25 for number in range(100)]
CODES = [f"P{number % 25:03}" for number in range(100)]
NAMES = ["red", "green", "blue", "black", "white"] * 20
ENTITIES: dict[str, tuple[list[Any], str | None]] = {
    **dict.fromkeys(("patient_id", "PatientID", "userId", "customer", "subject_no"), (NUMBERS, "person")),
    **dict.fromkeys(("patient", "participant", "subj"), (CODES, "person")),
    **dict.fromkeys(("speaker", "writer"), (NAMES, "person")),
    **dict.fromkeys(("session", "session_id", "visit_id", "video_id"), (NUMBERS, "part")),
    **dict.fromkeys(("machine", "device_id", "unit_number", "id", "Sample code number"), (NUMBERS, "object")),
    "trace_id": ([number % 50 for number in range(100)], "object"),
    "ratecode_id": (NUMBERS, None),
    **dict.fromkeys(("store_id", "product_id", "zip", "store", "city", "category_id", "item"), (NUMBERS, None)),
    **dict.fromkeys(("patient_age", "num_users", "users", "customer_type", "visit_number", "covid"), (NUMBERS, None)),
    **dict.fromkeys(("unit", "student", "house", "checking_account", "grid", "subject"), (NAMES, None)),
}  # fmt: skip


@pytest.mark.parametrize("name", ENTITIES)
def test_entities_are_recognized_by_name_and_values(name: str) -> None:
    values, kind = ENTITIES[name]
    profile = SourceProfile(columns=(make_column(name, values),), num_rows=100, num_malformed=0)
    assert [entity.kind for entity in find_entities(profile, ())] == ([] if kind is None else [kind])
    unique = SourceProfile(columns=(make_column(name, list(range(100))),), num_rows=100, num_malformed=0)
    assert find_entities(unique, ()) == []


def test_numbers_of_patients_may_be_floats_with_gaps() -> None:
    column = make_column("patient_id", NUMBERS)
    for values in ([float(number) for number in NUMBERS], [f"{number}.0" for number in NUMBERS]):
        floats = make_column("patient_id", values).model_copy(update={"logical_type": "number", "num_missing": 3})
        profile = SourceProfile(columns=(floats,), num_rows=103, num_malformed=0)
        assert [entity.kind for entity in find_entities(profile, ())] == ["person"]
    fractions = column.model_copy(update={"logical_type": "number", "value_counts": ((0.5, 50), (1.0, 50))})
    assert find_entities(SourceProfile(columns=(fractions,), num_rows=100, num_malformed=0), ()) == []


def test_persons_come_before_their_sessions_and_households_before_persons() -> None:
    columns = tuple(
        make_column(name, [number % size for number in range(100)])
        for name, size in (("machine", 3), ("session", 10), ("person_id", 40), ("household_id", 20))
    )
    profile = SourceProfile(columns=columns, num_rows=100, num_malformed=0)
    names = [entity.column.name for entity in find_entities(profile, ())]
    assert names == ["household_id", "person_id", "session", "machine"]


@pytest.mark.parametrize("name", ["date", "order_date", "createdAt", "Timestamp", "Transaction Date", "dt", "time_2"])
def test_the_time_of_a_row_is_recognized(name: str) -> None:
    assert names_event(name)


@pytest.mark.parametrize("name", ["expiry_date", "hire_date", "release_date", "birth_date", "valid_until", "member"])
def test_the_time_of_a_thing_is_not_taken_for_that_of_its_row(name: str) -> None:
    assert not names_event(name)


@pytest.mark.parametrize("name", ["birth_date", "DOB", "born", "DateOfBirth"])
def test_dates_of_birth_are_recognized(name: str) -> None:
    assert is_birth_date(name)
