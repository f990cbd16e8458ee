"""The lineage of a record, as lines for people."""

from __future__ import annotations

from bloomery.data_contracts.records.records import (
    Bento,
    Candidates,
    Choice,
    Dataset,
    RawRows,
    Record,
    Release,
    TrainedNetwork,
    ValidRows,
)

Line = tuple[str, str, str]  # stage, digest and description


def describe_lineage(record: Record) -> list[Line]:
    """The stages that led to `record`, newest first: the stage's name, the digest of its output, and a description.

    Raises:
        TypeError: the record is not the output of a stage.
    """
    match record:
        case Release():
            line = ("promote", record.digest, f"{record.name} version {record.version}")
            return [line, *describe_lineage(record.bento)]
        case Bento():
            return [("package", record.digest, f"bento {record.tag}"), *describe_lineage(record.choice)]
        case Choice():
            line = ("choose", record.digest, f"candidate {record.candidate.name}")
            return [line, *describe_lineage(record.candidates)]
        case Candidates():
            line = ("compress", record.digest, f"{len(record.candidates)} candidates")
            return [line, *describe_lineage(record.trained)]
        case TrainedNetwork():
            return [*_training(record), *describe_lineage(record.dataset)]
        case Dataset():
            return [("prepare", record.digest, _splits(record)), *describe_lineage(record.valid_rows)]
        case ValidRows():
            contract = f"contract {record.contract.name} {record.contract.version}"
            description = f"{record.num_rows} passed, {record.num_quarantined} quarantined by {contract}"
            return [("validate", record.digest, description), *describe_lineage(record.raw_rows)]
        case RawRows():
            return [("ingest", record.digest, f"{record.num_rows} rows from {record.source}")]
    raise TypeError(f"no lineage for {type(record).__name__}")


def _training(record: TrainedNetwork) -> list[Line]:
    facts = [f"MLflow run {record.run_id}", f"{record.num_parameters:,} parameters"]
    initial = record.initial_weights
    if initial is not None:
        facts.append(f"began with {initial.name}")
    if record.privacy is not None:
        facts.append(str(record.privacy))
    lines = [("train", record.digest, ", ".join(facts))]
    lines += [("checkpoint", checkpoint.digest, checkpoint.description) for checkpoint in record.checkpoints]
    transfer = "" if record.transfer is None else f": {record.transfer}"
    return lines if initial is None else [*lines, ("start", initial.digest, f"weights of {initial.name}{transfer}")]


def _splits(record: Dataset) -> str:
    counts = f"{record.train.num_rows} train, {record.val.num_rows} val, {record.test.num_rows} test rows"
    if record.unlabelled is not None:
        counts += f", {record.unlabelled.num_rows} unlabelled"
    if record.num_dropped:
        reason = "without a complete window" if record.unlabelled is None else "without a label, outside of train"
        counts += f", {record.num_dropped} dropped {reason}"
    return counts
