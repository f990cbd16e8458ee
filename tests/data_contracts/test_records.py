"""The records: small, frozen, and readable backwards."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from data_contracts.contract import Contract
from data_contracts.records import (
    Bento,
    Candidate,
    CheckedRows,
    Chosen,
    Dataset,
    Interval,
    Latency,
    Options,
    Part,
    RawRows,
    Record,
    Release,
    Trained,
    Verdict,
    describe,
)


@pytest.fixture(scope="module")
def release(digits_contract: Contract) -> Release:
    rows = RawRows(uri="ingest/rows.parquet", source="sklearn:digits", num_rows=1797, digest="d-rows")
    checked = CheckedRows(
        uri="validate/rows.parquet",
        quarantine_uri="validate/quarantine.parquet",
        num_rows=1790,
        num_quarantined=7,
        checked=(("id: must be unique", 7),),
        contract=digits_contract,
        rows=rows,
        digest="d-checked",
    )
    dataset = Dataset(
        train=Part(uri="train.parquet", sha256="a", num_rows=1253),
        val=Part(uri="val.parquet", sha256="b", num_rows=179),
        test=Part(uri="test.parquet", sha256="c", num_rows=358),
        encoder_uri="encoder.json",
        key="id",
        label="label",
        inputs=("image",),
        input_shape=(1, 8, 8),
        classes=(0, "one"),
        checked=checked,
        digest="d-dataset",
    )
    trained = Trained(
        uri="weights.safetensors",
        network_uri="network.json",
        run_id="run",
        num_parameters=12345,
        epochs=3,
        val_accuracy=0.5,
        processor="1 thread(s)",
        dataset=dataset,
        digest="d-trained",
    )
    candidate = Candidate(
        name="int8",
        uri="int8.onnx",
        sha256="e",
        run_id="run",
        size_bytes=1,
        num_parameters=12345,
        accuracy=Interval(value=0.5, low=0.4, high=0.6),
        drop=Interval(value=0.0, low=-0.1, high=0.1),
        latency=Latency(batch_size=1, p50_ms=1.0, p99_ms=2.0, ratio=1.0),
        parity_error=1e-7,
        answers_uri="answers.parquet",
    )
    options = Options(candidates=(candidate, candidate), trained=trained, digest="d-options")
    verdict = Verdict(name="int8", passed=False, reasons=("too large",))
    chosen = Chosen(candidate=candidate, verdicts=(verdict,), options=options, digest="d-chosen")
    bento = Bento(tag="digits:abc", files=(("model.onnx", "e"),), chosen=chosen, digest="d-bento")
    return Release(
        name="digits",
        version=3,
        alias="champion",
        num_asked=100,
        example="id 5: 3 is 3",
        replaced_version=None,
        bento=bento,
        digest="d-release",
    )


def chain(release: Release) -> list[Record]:
    chosen = release.bento.chosen
    trained = chosen.options.trained
    checked = trained.dataset.checked
    return [release, release.bento, chosen, chosen.options, trained, trained.dataset, checked, checked.rows]


def test_every_record_survives_json(release):
    for record in chain(release):
        assert type(record).model_validate(record.model_dump(mode="json", by_alias=True)) == record
        assert type(record).model_validate_json(record.model_dump_json(by_alias=True)) == record


def test_a_record_cannot_be_changed_and_knows_its_keys(release):
    for record in chain(release):
        with pytest.raises(ValidationError):
            record.digest = "another"
        with pytest.raises(ValidationError):
            type(record).model_validate({**dict(record), "extra": 1})


def test_lineage_reads_from_the_release_back_to_the_raw_rows(release):
    assert describe(release) == [
        ("promote", "d-release", "digits version 3"),
        ("package", "d-bento", "bento digits:abc"),
        ("choose", "d-chosen", "candidate int8"),
        ("compress", "d-options", "2 candidates"),
        ("train", "d-trained", "MLflow run run, 12,345 parameters"),
        ("prepare", "d-dataset", "1253 train, 179 val, 358 test rows"),
        ("validate", "d-checked", "1790 passed, 7 quarantined by contract digits 1.0.0"),
        ("ingest", "d-rows", "1797 rows from sklearn:digits"),
    ]


def test_the_lineage_of_a_record_is_the_rest_of_the_lineage(release):
    whole = describe(release)
    assert [describe(record) for record in chain(release)] == [whole[start:] for start in range(len(whole))]


def test_a_record_outside_of_the_pipeline_has_no_lineage():
    with pytest.raises(TypeError, match="no lineage for Record"):
        describe(Record(digest="d"))
