"""The records that stages pass on.

A record is small and frozen: the URI and digest of an output, its counts, and the record that it was computed from. The
data stays in the state folder. Lineage is read backwards, from a release to the raw rows.

A `uri` is relative to the state folder, so that the folder can be moved.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from bloomery.data_contracts.documents.documents import Document, is_empty, is_unset
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.records import output_units
from bloomery.data_contracts.records.checkpoint import Checkpoint
from bloomery.data_contracts.records.intervals import Interval as Interval
from bloomery.data_contracts.records.intervals import PredictionInterval as PredictionInterval
from bloomery.data_contracts.records.measurements import Energy as Energy
from bloomery.data_contracts.records.measurements import Latency as Latency
from bloomery.data_contracts.records.privacy import Privacy as Privacy
from bloomery.data_contracts.records.scope_shift import ScopeShift
from bloomery.data_contracts.records.scores import Score, default_score
from bloomery.data_contracts.records.tensor_layout import Layout, Task
from bloomery.data_contracts.records.weight_transfer import OptionalSource, OptionalTransfer


class Record(Document):
    """The base of all records. `digest` identifies the content of the stage's output."""

    digest: str

    def identity(self) -> dict[str, str]:
        """The digest. The location and time of the output do not count."""
        return {"digest": self.digest}


class RawRows(Record):
    """The rows as their source has them, in one Parquet file, and the lines that could not be read, in another.

    With `is_text` the source has no types: every column is text, which is cast to the contract's types.
    """

    uri: str
    source: str
    num_rows: int
    malformed_uri: str
    num_malformed: int
    is_text: bool


class ValidRows(Record):
    """The rows that keep the contract. The others are in quarantine, each with its reasons."""

    uri: str
    quarantine_uri: str
    report_uri: str  # the Data Docs page of Great Expectations
    num_rows: int
    num_quarantined: int
    violations: tuple[tuple[str, int], ...]  # each rule's description, and the number of rows that broke it
    fresh_until: datetime | None  # when the first freshness rule would fail; None without such a rule
    contract: Contract
    raw_rows: RawRows


class EncodedSplit(Document):
    """One split: its encoded rows in one Parquet file, sorted by key."""

    uri: str
    sha256: str
    num_rows: int


class Dataset(Record):
    """The encoded rows of the three splits, and the encoder that was fitted on the training split alone.

    Rows without a label are a fourth split if the features use them.
    `test_rows_uri` has the rows before encoding, those of the test split among them, as a client sends them.
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
    classes: tuple[int | str, ...]  # or labels; empty for a regression
    outputs: output_units.OptionalOutputs = ()
    class_outputs: output_units.OptionalClassOutputs = ()
    test_rows_uri: str
    num_dropped: int  # rows without a complete window, or without a label outside of training
    valid_rows: ValidRows


class InitialWeights(Record):
    """The weights of another network that training starts from. `digest` is that of the weights."""

    uri: str
    name: str  # the version that the recipe's reference resolved to when the run began, or the folder
    source: OptionalSource = None  # where the tokens and classes of the weights are stated

    def identity(self) -> dict[str, str]:
        """The digest of the weights, and of what states their tokens and classes."""
        return {"digest": self.digest, **({} if self.source is None else {"source": self.source.digest})}


class ResourceUsage(Document):
    """The time and energy that a stage used. It differs from run to run, so no digest includes it."""

    seconds: float
    cpu_seconds: float  # summed over its processes
    joules: float  # of the CPUs; if measured, including other processes on them
    is_measured: bool  # by the CPU's energy counter; else estimated from `cpu_seconds`
    used_gpu: bool  # the energy of the GPU is not included


class Baseline(Document):
    """A simple model that was fitted to the training split and scored on the test split, or why there is none."""

    name: str
    # npy: probabilities (N, K), numbers (N,) or codes of tags (N, words), in the order of the test split
    predictions_uri: str | None = None
    num_rows: int = 0  # of the training split, that it was fitted to
    score: Interval | None = None  # by the score of the trained network
    metrics: dict[str, float] = Field(default_factory=dict)  # all scores that are defined, by name
    reason: str = ""  # why it was not fitted


class TrainedNetwork(Record):
    """A trained network. `digest` is that of its weights."""

    uri: str  # the weights as safetensors; of an imported network and of one with boosted trees the ONNX file
    network_uri: str  # the network's configuration, as JSON
    run_id: str
    num_parameters: int
    epochs: int
    num_rounds: int | None = None  # of boosting, where the network has boosted trees
    val_score: float  # by `score`, of the validation split
    stated_score: Score | None = None  # of the recipe; None where it names none
    slice_columns: tuple[str, ...] = ()  # columns whose values have metrics of their own
    baselines: tuple[Baseline, ...] = ()  # the simplest first
    processor: str  # the threads and instruction set that the bits of the weights depend on
    import_error: float | None = None  # of an imported network: largest difference from the original file's outputs
    trees_error: float | None = None  # of boosted trees: largest difference from the outputs of scikit-learn
    initial_weights: InitialWeights | None = None  # that training started from
    checkpoints: Annotated[tuple[Checkpoint, ...], Field(exclude_if=is_empty)] = ()
    transfer: OptionalTransfer = None  # what the training took over from the initial weights
    privacy: Privacy | None = None  # None without a guarantee
    scope_shift: Annotated[ScopeShift | None, Field(exclude_if=is_unset)] = None  # which the weights contain
    resource_usage: ResourceUsage | None = None
    dataset: Dataset

    @property
    def file_error(self) -> float | None:
        """The largest difference of the ONNX file's outputs from its origin's; None of a network in PyTorch."""
        return self.trees_error if self.import_error is None else self.import_error

    @property
    def origin(self) -> str:
        """The origin of the weights, such as `after 12 epochs`."""
        if self.import_error is not None:
            return "imported as trained"
        rounds = () if self.num_rounds is None else (f"{self.num_rounds} rounds of boosting",)
        parts = (*rounds, f"{self.epochs} epochs") if self.epochs else rounds
        return f"after {' and '.join(parts)}" if parts else "of the checkpoint as it is"

    def identity(self) -> dict[str, str]:
        """The digests of weights and data set; also the score if the recipe names one, and a lack of baselines.

        Equal weights may come from data sets whose test rows, or whose rows without a label, differ.
        """
        score = {} if self.stated_score is None else {"score": self.stated_score.model_dump_json()}
        baselines = {} if self.baselines else {"baselines": "none"}
        shift = {} if self.scope_shift is None else {"scope_shift": self.scope_shift.model_dump_json()}
        return {"digest": self.digest, "dataset": self.dataset.digest, **score, **baselines, **shift}

    @property
    def score(self) -> Score:
        """The score by which candidates and versions are compared."""
        return self.stated_score or default_score(self.dataset.task)


class Flips(Document):
    """Rows that the candidate and fp32 classify differently, where one of the two is right; sets as a whole."""

    num_lost: int  # fp32 was right
    num_gained: int  # fp32 was wrong


class Disagreement(Document):
    """How a candidate's predictions differ from those of fp32 on rows of one split, with or without labels."""

    split: Literal["train", "val", "test", "unlabelled"]
    num_rows: int
    num_changed: int | None = None  # rows that get another class or set of labels; None of a regression
    rms_change: float | None = None  # of a regression: root mean square of the differences, in the units of the label

    @property
    def change(self) -> float:
        """The share of rows that get another class, or `rms_change`."""
        return (self.num_changed or 0) / self.num_rows if self.rms_change is None else self.rms_change


class ClassRecall(Document):
    """The recall of one class on the test split, and its paired change against fp32 on the rows held out.

    Validation and test rows are compared, since a rare class has few of either.
    """

    name: str
    num_rows: int  # of the test split
    num_right: int
    num_compared: int  # of the validation and test splits
    num_lost: int  # of these: fp32 was right, and the candidate is wrong
    num_gained: int  # of these: the candidate is right, and fp32 was wrong

    @property
    def recall(self) -> float:
        """The share of the test rows of this class that are predicted as such; there is at least one."""
        return self.num_right / self.num_rows


class Candidate(Document):
    """One compressed form of the trained network, measured in the form that is served."""

    name: str
    uri: str  # ONNX
    sha256: str
    run_id: str
    size_bytes: int
    vector_bytes: int | None = None  # of an embedding: the size of one vector
    zstd_bytes: int  # of the same file compressed by zstd, as for a download
    coded_bytes: int | None = None  # of the smallest encoding; None of a file too large to try it
    num_parameters: int
    num_nonzero: int  # of the weights in the file
    num_macs: int | None = None  # multiply-accumulate operations for one row; None of an imported network
    integer_share: float  # share of the weights that ONNX Runtime multiplies as integers on this processor
    score: Interval  # on the test split, by the score of the trained network
    metrics: dict[str, float] = Field(default_factory=dict)  # all scores of the test split that are defined, by name
    degradation: Interval  # against fp32 on the same rows: drop of the score, or rise of an error as a share of fp32's
    disagreements: tuple[Disagreement, ...] = ()  # with fp32, by split; empty of fp32 itself
    bound_by_disagreement: float | None = None  # of the degradation; None of fp32 itself
    flips: Flips | None = None  # of a classification
    interval: PredictionInterval | None = None  # of a regression with enough validation rows
    recalls: tuple[ClassRecall, ...] = ()  # of a classification: each class with rows that were held out
    outputs: output_units.OptionalOutputScores = ()
    class_outputs: output_units.OptionalClassOutputScores = ()
    latencies: tuple[Latency, ...]  # of single rows first, then of larger batches
    energy: Energy | None = None  # of the budget's batch size, if its objective weighs energy
    parity_error: float  # largest difference from PyTorch's or the imported network's outputs, before quantization
    predictions_uri: str  # Parquet of the test split: key, truth, prediction and, for classes, probabilities
    needs_vnni: bool = False  # measured with exact sums of 8-bit products, which saturate on x86 without VNNI
    is_row_by_row: bool = False  # runs one row at a time, since its outputs would depend on the other rows of a batch

    @property
    def max_degradation(self) -> float:
        """The upper 95% limit of the degradation: that of the labelled test rows, or of the disagreement if lower."""
        bound = self.bound_by_disagreement
        return self.degradation.high if bound is None else min(self.degradation.high, bound)

    @property
    def weakest_class(self) -> ClassRecall | None:
        """The class with the lowest recall on the test split; None of a regression."""
        return min((recall for recall in self.recalls if recall.num_rows), key=lambda item: item.recall, default=None)

    @property
    def latency(self) -> Latency:
        """The latency of single rows."""
        return self.latency_at(1)

    def latency_at(self, batch_size: int) -> Latency:
        """The latency of batches of `batch_size` rows, which was measured."""
        return next(latency for latency in self.latencies if latency.batch_size == batch_size)


class Candidates(Record):
    """The candidates of the compress stage."""

    candidates: tuple[Candidate, ...]
    baseline: str  # the candidate that is the network as trained; the others are compared with it
    resource_usage: ResourceUsage | None = None
    trained: TrainedNetwork


class BudgetViolation(Document):
    """A limit of the budget that a candidate exceeds."""

    limit: str  # its name in the recipe's budget
    allowed: float
    measured: float
    needed_limit: float  # the smallest limit that it would be within, rounded up
    message: str

    @property
    def excess(self) -> float:
        """By how much the limit is exceeded, as a share of the limit; infinite where nothing is allowed."""
        return self.measured / self.allowed - 1 if self.allowed else math.inf


class Verdict(Document):
    """Whether a candidate is within the budget, and why it was not chosen; the chosen one has no reasons."""

    name: str
    rank: int  # 1 is the best, which is chosen if any candidate passed
    passed: bool
    violations: tuple[BudgetViolation, ...] = ()
    reasons: tuple[str, ...]


class BaselineComparison(Document):
    """How much worse the chosen candidate is than a baseline on the test split; negative is better."""

    name: str  # of the baseline
    score: Interval  # of the baseline
    degradation: Interval  # the drop of the score, or the rise of an error as a share of the baseline's
    is_constant: bool = False  # the baseline predicts the same for all rows

    @property
    def is_beaten(self) -> bool:
        """Whether the candidate is significantly better than the baseline: the 95% interval is below 0."""
        return self.degradation.high < 0

    @property
    def is_better(self) -> bool:
        """Whether the baseline is significantly better than the candidate: the 95% interval is above 0."""
        return self.degradation.low > 0


class Choice(Record):
    """The candidate that is packaged, and the verdict on each candidate."""

    candidate: Candidate
    verdicts: tuple[Verdict, ...]
    run_id: str  # of MLflow, with the ranked table and the plot of the candidates
    plot_uri: str  # PNG: score against size and against latency
    comparisons: tuple[BaselineComparison, ...] = ()  # of the chosen candidate with each baseline
    candidates: Candidates


class Bento(Record):
    """A bento in BentoML's store. `digest` covers its name and the files that determine its predictions."""

    tag: str
    files: tuple[tuple[str, str], ...]  # path inside the bento and sha256
    choice: Choice


class Release(Record):
    """A registered version: the champion, or a version named by its period beside a champion of newer data."""

    name: str
    version: int
    alias: str  # `champion`, or the period
    num_smoke_test_rows: int  # held-out rows that the bento predicted over HTTP before the release
    example: str  # one of them as JSON: its key, the truth, and the prediction
    replaced_version: int | None
    bento: Bento
