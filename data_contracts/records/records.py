"""The records that travel between the stages.

A record is small and frozen: where an output lies, its digest, what was counted, and the record it was made from. The
data itself stays where it is. Lineage is read backwards, from a release to the raw rows.

A `uri` is relative to the storage root, so that a state folder can be moved.
"""

from __future__ import annotations

from datetime import datetime

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.records.tensor_layout import Layout, Task


class Record(Document):
    """What every record has. `digest` names the content of the stage's output."""

    digest: str

    def identity(self) -> dict[str, str]:
        """The digest: where the output lies, and when it was made, do not count."""
        return {"digest": self.digest}


class RawRows(Record):
    """Rows as they came from their source, in one Parquet file, and the lines that are no rows in another.

    `is_text` says that the source has no types, so that every column is text which the contract reads.
    """

    uri: str
    source: str
    num_rows: int
    malformed_uri: str
    num_malformed: int
    is_text: bool


class ValidRows(Record):
    """The rows that keep the contract; those that do not lie in quarantine, with the reason."""

    uri: str
    quarantine_uri: str
    report_uri: str  # Great Expectations' page about every rule
    num_rows: int
    num_quarantined: int
    violations: tuple[tuple[str, int], ...]  # each rule in words, and how many rows broke it
    fresh_until: datetime | None  # when the first of the contract's limits of age is passed; None if it has none
    contract: Contract
    raw_rows: RawRows


class EncodedSplit(Document):
    """One part of the split: encoded rows in one Parquet file, sorted by key."""

    uri: str
    sha256: str
    num_rows: int


class Dataset(Record):
    """Encoded rows in three parts, and the encoder that was fitted on the training part alone.

    Rows without a label are a fourth part, where the features have a use for them.
    At `test_rows_uri` lie the raw rows, among others those of the test part, as the endpoint is asked them.
    """

    train: EncodedSplit
    val: EncodedSplit
    test: EncodedSplit
    unlabelled: EncodedSplit | None = None
    encoder_uri: str
    key: str
    label: str
    inputs: tuple[str, ...]
    task: Task
    layout: Layout
    classes: tuple[int | str, ...]  # none for a regression
    test_rows_uri: str
    num_dropped: int  # rows that a series has no whole window for, or without a label where they cannot teach
    valid_rows: ValidRows


class InitialWeights(Record):
    """Weights of another network that training begins with. `digest` is that of the weights."""

    uri: str
    name: str  # the version that the recipe's words meant when the run began, or the folder


class Privacy(Document):
    """What was promised of each training row: an outsider learns of it within epsilon and delta."""

    epsilon: float  # that was spent
    delta: float

    def __str__(self) -> str:
        return f"private within epsilon {self.epsilon:.3g} and delta {self.delta:g}"


class ResourceUsage(Document):
    """What a stage took. It differs from run to run, so no digest counts it."""

    seconds: float
    cpu_seconds: float  # of all its processes together
    joules: float  # of the processors; of whatever else ran on them, too, if it is measured
    is_measured: bool  # by the processor's own counter; else it follows from the seconds of the processors
    used_gpu: bool  # whose energy is not in it


class TrainedNetwork(Record):
    """A trained network. `digest` is that of its weights."""

    uri: str  # weights, as safetensors; of a network that came trained, its ONNX file
    network_uri: str  # the network's configuration, as JSON
    run_id: str
    num_parameters: int
    epochs: int
    val_score: float  # accuracy, or RMSE in the units of the label
    slice_columns: tuple[str, ...] = ()  # columns for each of whose values the figures are told apart
    processor: str  # threads and instruction set that the weights' bits depend on
    import_error: float | None = None  # of a network that came trained: how far it answers from the file as it came
    initial_weights: InitialWeights | None = None  # the weights that training began with

    def identity(self) -> dict[str, str]:
        """The digests of weights and data set.

        Equal weights may come from data sets whose test rows, or whose rows without a label, differ.
        """
        return {"digest": self.digest, "dataset": self.dataset.digest}

    privacy: Privacy | None = None  # None: nothing is promised
    resource_usage: ResourceUsage | None = None
    dataset: Dataset


class Interval(Document):
    """A 95% interval around `value`."""

    value: float
    low: float
    high: float


class Latency(Document):
    """Milliseconds for one batch in ONNX Runtime, and ratios to the fp32 candidate's in the same rounds.

    Below 1 is faster; the limits of a ratio are those of 95%.
    """

    batch_size: int
    num_rounds: int
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    ratio: Interval  # the median over rounds
    tail_ratio: Interval  # of the 99th percentiles

    def percentile_ms(self, percentile: int) -> float:
        """Milliseconds; of the percentiles that are kept."""
        return {50: self.p50_ms, 90: self.p90_ms, 95: self.p95_ms, 99: self.p99_ms}[percentile]


class Energy(Document):
    """Joules of the processors for one batch in ONNX Runtime, and the ratio to the fp32 candidate's in the same rounds.

    They count for whatever else runs there, and at rest.
    """

    batch_size: int
    num_rounds: int
    p50_j: float
    ratio: Interval  # the median over rounds, with the limits of 95%


class Flips(Document):
    """Rows that a candidate answers otherwise than fp32, as far as one of them is right."""

    num_lost: int  # fp32 was right
    num_gained: int  # fp32 was wrong


class Candidate(Document):
    """One compressed form of the trained network, measured in the form in which it ships."""

    name: str
    uri: str  # ONNX
    sha256: str
    run_id: str
    size_bytes: int
    zstd_bytes: int  # of the same file, compressed as it would be for a download
    coded_bytes: int | None = None  # in the fewest bytes; None of a file too large to try it
    num_parameters: int
    num_nonzero: int  # of the weights in the file
    num_macs: int | None = None  # multiplications with an addition for one row; None of a network that came trained
    integer_share: float  # of the weights, those that ONNX Runtime multiplies as integers on this processor
    score: Interval  # on the test part: accuracy, or RMSE in the units of the label
    degradation: Interval  # than fp32 on the same rows: the drop of accuracy, or the rise of RMSE as a share of fp32's
    flips: Flips | None = None  # of classes
    latencies: tuple[Latency, ...]  # one row at a time first, then more
    energy: Energy | None = None  # of the budget's batch, if its objective weighs it
    parity_error: float  # of an output from PyTorch's, or an imported network's own, at most, before quantization
    predictions_uri: str  # Parquet of the test part: key, truth, answer, and for classes their probabilities
    needs_vnni: bool = False  # measured with exact sums of 8-bit products, which saturate on x86 without VNNI
    is_row_by_row: bool = False  # what is answered to a row would depend on the others in its batch, so it has none

    @property
    def latency(self) -> Latency:
        """Of one row."""
        return self.latency_at(1)

    def latency_at(self, batch_size: int) -> Latency:
        """Of `batch_size` rows at a time, which was measured."""
        return next(one for one in self.latencies if one.batch_size == batch_size)


class Candidates(Record):
    """Every candidate that the compress stage made."""

    candidates: tuple[Candidate, ...]
    baseline: str  # the candidate that is the network as trained, with which the others are compared
    resource_usage: ResourceUsage | None = None
    trained: TrainedNetwork


class BudgetViolation(Document):
    """A limit of the budget that a candidate is not within."""

    limit: str  # its name in the recipe's budget
    allowed: float
    measured: float
    needed_limit: float  # a limit that it would be within, rounded up
    message: str

    @property
    def excess(self) -> float:
        """How far it is beyond the limit, as a share of the limit."""
        return self.measured / self.allowed - 1


class Verdict(Document):
    """Whether a candidate is within the budget, and why it was not chosen; the one that was has no reasons."""

    name: str
    rank: int  # 1 is the best, which is the chosen one if any passed
    passed: bool
    violations: tuple[BudgetViolation, ...] = ()
    reasons: tuple[str, ...]


class Choice(Record):
    """The candidate that goes on."""

    candidate: Candidate
    verdicts: tuple[Verdict, ...]
    run_id: str  # with the candidates in a picture and a ranked table
    plot_uri: str  # PNG: score against size and against time
    candidates: Candidates


class Bento(Record):
    """A bento in BentoML's store. `digest` is that of its name and the files that decide its answers."""

    tag: str
    files: tuple[tuple[str, str], ...]  # path inside the bento and sha256
    choice: Choice


class Release(Record):
    """A registered version that serves as champion; or, beside a champion of newer data, one named by its period."""

    name: str
    version: int
    alias: str  # `champion`, or the period
    num_smoke_test_rows: int  # held-out rows that the bento was asked over HTTP before the release
    example: str  # one of them as JSON: its key, the truth, and the label with its probability or the value
    replaced_version: int | None
    bento: Bento


def describe_lineage(record: Record) -> list[tuple[str, str, str]]:
    """The lineage of a record, newest first: stage, digest, and what it was in words."""
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
            told = [f"MLflow run {record.run_id}", f"{record.num_parameters:,} parameters"]
            told += [f"began with {record.initial_weights.name}"] if record.initial_weights is not None else []
            told += [str(record.privacy)] if record.privacy is not None else []
            begun = (
                [("start", record.initial_weights.digest, f"weights of {record.initial_weights.name}")]
                if record.initial_weights
                else []
            )
            return [("train", record.digest, ", ".join(told)), *begun, *describe_lineage(record.dataset)]
        case Dataset():
            parts = f"{record.train.num_rows} train, {record.val.num_rows} val, {record.test.num_rows} test rows"
            lacked = "whole window" if record.unlabelled is None else "label and not of train"
            dropped = f", {record.num_dropped} without a {lacked} dropped" if record.num_dropped else ""
            parts += "" if record.unlabelled is None else f", {record.unlabelled.num_rows} unlabelled"
            return [("prepare", record.digest, f"{parts}{dropped}"), *describe_lineage(record.valid_rows)]
        case ValidRows():
            contract = f"contract {record.contract.name} {record.contract.version}"
            passed = f"{record.num_rows} passed, {record.num_quarantined} quarantined by {contract}"
            return [("validate", record.digest, passed), *describe_lineage(record.raw_rows)]
        case RawRows():
            return [("ingest", record.digest, f"{record.num_rows} rows from {record.source}")]
    raise TypeError(f"no lineage for {type(record).__name__}")
