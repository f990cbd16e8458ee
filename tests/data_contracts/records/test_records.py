"""Records are frozen, and have a lineage."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from bloomery.data_contracts.records.lineage import describe_lineage
from bloomery.data_contracts.records.records import Record, Release


def chain(release: Release) -> list[Record]:
    choice = release.bento.choice
    trained = choice.candidates.trained
    checked = trained.dataset.valid_rows
    return [release, release.bento, choice, choice.candidates, trained, trained.dataset, checked, checked.raw_rows]


def test_every_record_survives_json(release):
    for record in chain(release):
        assert type(record).model_validate(record.model_dump(mode="json", by_alias=True)) == record
        assert type(record).model_validate_json(record.model_dump_json(by_alias=True)) == record


def test_a_record_is_frozen_and_refuses_unknown_keys(release):
    for record in chain(release):
        with pytest.raises(ValidationError):
            record.digest = "another"
        with pytest.raises(ValidationError):
            type(record).model_validate({**dict(record), "extra": 1})


def test_lineage_reads_from_the_release_back_to_the_raw_rows(release):
    assert describe_lineage(release) == [
        ("promote", "d-release", "digits version 3"),
        ("package", "d-bento", "bento digits:abc"),
        ("choose", "d-chosen", "candidate int8"),
        ("compress", "d-options", "2 candidates"),
        ("train", "d-trained", "MLflow run run, 12,345 parameters"),
        ("prepare", "d-dataset", "1253 train, 179 val, 358 test rows"),
        ("validate", "d-checked", "1790 passed, 7 quarantined by contract digits 1.0.0"),
        ("ingest", "d-rows", "1797 rows from sklearn:digits"),
    ]


def test_the_lineage_of_a_record_is_the_end_of_the_lineage_of_the_release(release):
    lines = describe_lineage(release)
    assert [describe_lineage(record) for record in chain(release)] == [lines[start:] for start in range(len(lines))]


def test_a_record_outside_of_the_pipeline_has_no_lineage():
    with pytest.raises(TypeError, match="no lineage for Record"):
        describe_lineage(Record(digest="d"))
