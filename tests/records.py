"""A pytest plugin with records made up for tests: contracts and a release."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from bloomery.data_contracts.odcs.contract import Contract
    from bloomery.data_contracts.records.records import Release

ROOT = Path(__file__).resolve().parent.parent


def contract_document(*properties: dict[str, Any], table: str = "rows", **keys: Any) -> dict[str, Any]:
    """A contract as in its file: one table of these properties with these keys."""
    return {
        "apiVersion": "v3.1.0",
        "kind": "DataContract",
        "id": "made-for-a-test",
        "name": "made",
        "version": "1.0.0",
        "status": "active",
        "schema": [{"name": table, "properties": list(properties), **keys}],
    }


@pytest.fixture(scope="session")
def contract_of() -> Callable[..., Contract]:
    """Creates a contract from properties and keys of its table, as in a contract file."""

    def make(*properties: dict[str, Any], **table: Any) -> Contract:
        from bloomery.data_contracts.odcs.contract import Contract

        top = {name: table.pop(name) for name in ("slaProperties", "name", "references") if name in table}
        return Contract.model_validate({**contract_document(*properties, **table), **top})

    return make


@pytest.fixture(scope="session")
def release() -> Release:
    """A made-up release with every record that it contains."""
    from bloomery.data_contracts.odcs.contract import read_contract
    from bloomery.data_contracts.records.records import (
        Bento,
        Candidate,
        Candidates,
        Choice,
        Dataset,
        EncodedSplit,
        Interval,
        Latency,
        RawRows,
        Release,
        TrainedNetwork,
        ValidRows,
        Verdict,
    )
    from bloomery.data_contracts.records.tensor_layout import Layout

    rows = RawRows(
        uri="ingest/rows.parquet",
        source="sklearn:digits",
        num_rows=1797,
        malformed_uri="ingest/malformed.parquet",
        num_malformed=0,
        is_text=False,
        digest="d-rows",
    )
    checked = ValidRows(
        uri="validate/rows.parquet",
        quarantine_uri="validate/quarantine.parquet",
        report_uri="validate/report.html",
        num_rows=1790,
        num_quarantined=7,
        violations=(("id: must be unique", 7),),
        fresh_until=None,
        contract=read_contract(ROOT / "data_contracts" / "contracts" / "digits.odcs.yaml"),
        raw_rows=rows,
        digest="d-checked",
    )
    dataset = Dataset(
        train=EncodedSplit(uri="train.parquet", sha256="a", num_rows=1253),
        val=EncodedSplit(uri="val.parquet", sha256="b", num_rows=179),
        test=EncodedSplit(uri="test.parquet", sha256="c", num_rows=358),
        encoder_uri="encoder.json",
        key="id",
        label="label",
        inputs=("image",),
        task="classification",
        layout=Layout(kind="image", shape=(1, 8, 8)),
        classes=(0, "one"),
        test_rows_uri="validate/rows.parquet",
        num_dropped=0,
        valid_rows=checked,
        digest="d-dataset",
    )
    trained = TrainedNetwork(
        uri="weights.safetensors",
        network_uri="network.json",
        run_id="run",
        num_parameters=12345,
        epochs=3,
        val_score=0.5,
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
        zstd_bytes=1,
        num_parameters=12345,
        num_nonzero=12000,
        integer_share=0.0,
        score=Interval(value=0.5, low=0.4, high=0.6),
        degradation=Interval(value=0.0, low=-0.1, high=0.1),
        latencies=(
            Latency(
                batch_size=1,
                num_rounds=300,
                p50_ms=1.0,
                p90_ms=1.5,
                p95_ms=1.7,
                p99_ms=2.0,
                ratio=Interval(value=1.0, low=1.0, high=1.0),
                tail_ratio=Interval(value=1.0, low=1.0, high=1.0),
            ),
        ),
        parity_error=1e-7,
        predictions_uri="predictions.parquet",
    )
    options = Candidates(candidates=(candidate, candidate), baseline="int8", trained=trained, digest="d-options")
    verdict = Verdict(name="int8", rank=1, passed=False, reasons=("too large",))
    choice = Choice(
        candidate=candidate,
        verdicts=(verdict,),
        run_id="run",
        plot_uri="choose/candidates.png",
        candidates=options,
        digest="d-chosen",
    )
    bento = Bento(tag="digits:abc", files=(("model.onnx", "e"),), choice=choice, digest="d-bento")
    return Release(
        name="digits",
        version=3,
        alias="champion",
        num_smoke_test_rows=100,
        example="id 5: 3 is 3",
        replaced_version=None,
        bento=bento,
        digest="d-release",
    )
