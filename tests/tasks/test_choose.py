"""The best candidate within the budget goes on; if there is none, it is said what each one missed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data_contracts.errors import NoCandidate
from data_contracts.records import Candidate, Interval, Latency, Options, Release, describe
from models.compression.config import Budget
from tasks.choose import choose, judge


def candidate(name: str, *, size: int = 1000, drop: float = 0.0, p99: float = 0.1, ratio: float = 1.0) -> Candidate:
    return Candidate(
        name=name,
        uri=f"{name}.onnx",
        sha256=name,
        run_id=name,
        size_bytes=size,
        num_parameters=10,
        score=Interval(value=0.9, low=0.8, high=0.95),
        worse=Interval(value=0.0, low=-drop, high=drop),
        latency=Latency(batch_size=1, p50_ms=p99 / 2, p99_ms=p99, ratio=ratio),
        parity_error=0.0,
        answers_uri=f"{name}.parquet",
    )


MakeOptions = Callable[..., Options]


@pytest.fixture
def options(release: Release) -> MakeOptions:
    """The options that a compress stage with the given candidates leaves."""
    return lambda *candidates: release.bento.chosen.options.model_copy(update={"candidates": candidates})


def test_the_smallest_that_passes_is_chosen(home: Path, options: MakeOptions) -> None:
    chosen = choose.task.fn(
        options(candidate("fp32", size=900), candidate("tiny", size=10, drop=0.5), candidate("int8", size=300)),
        Budget(accuracy_drop=0.01),
    )
    assert chosen.candidate.name == "int8"
    assert [verdict.passed for verdict in chosen.verdicts] == [True, False, True]


def test_the_fastest_that_passes_is_chosen_and_a_slower_one_than_fp32_never(
    home: Path, options: Callable[..., Options]
) -> None:
    some = options(candidate("fp32"), candidate("small", size=1, ratio=1.2), candidate("fast", ratio=0.5))
    chosen = choose.task.fn(some, Budget(objective="latency"))
    assert chosen.candidate.name == "fast"
    assert chosen.verdicts[1].reasons == ("1.20x the time of fp32",)


def test_if_none_passes_each_reason_is_said(home: Path, options: MakeOptions) -> None:
    some = options(candidate("fp32", size=5000), candidate("int8", size=1000, drop=0.03, p99=9.0))
    with pytest.raises(NoCandidate) as caught:
        choose.task.fn(some, Budget(size_bytes=2000, latency_ms=1.0))
    assert "fp32: size 5.0 kB, limit 2.0 kB" in caught.value.found
    assert "int8: drop up to 3.00 pp, limit 1.00 pp; p99 9.000 ms, limit 1 ms" in caught.value.found
    assert caught.value.exit_code == 4


def test_a_limit_that_is_just_reached_holds() -> None:
    exact = candidate("exact", size=2000, drop=0.01, p99=1.0)
    assert judge(exact, Budget(accuracy_drop=0.01, size_bytes=2000, latency_ms=1.0), "classification").passed


def test_lineage_reads_backwards_from_the_choice_to_the_rows(home: Path, options: MakeOptions) -> None:
    chosen = choose.task.fn(options(candidate("fp32")), Budget())
    assert [stage for stage, _, _ in describe(chosen)] == [
        "choose",
        "compress",
        "train",
        "prepare",
        "validate",
        "ingest",
    ]


@pytest.fixture
def of_figures(options: MakeOptions) -> MakeOptions:
    """The options that a regression leaves."""

    def make(*candidates: Candidate) -> Options:
        made = options(*candidates)
        dataset = made.trained.dataset.model_copy(update={"task": "regression", "classes": ()})
        return made.model_copy(update={"trained": made.trained.model_copy(update={"dataset": dataset})})

    return make


def test_a_regression_is_judged_by_the_rise_of_its_error(home: Path, of_figures: MakeOptions) -> None:
    some = of_figures(candidate("fp32", size=900), candidate("tiny", size=10, drop=0.2), candidate("int8", size=300))
    chosen = choose.task.fn(some, Budget(error_rise=0.1, accuracy_drop=0.9))
    assert chosen.candidate.name == "int8"
    assert chosen.verdicts[1].reasons == ("rise up to 20.00%, limit 10.00%",)


def test_if_no_regression_passes_the_limit_is_said_in_its_own_words(home: Path, of_figures: MakeOptions) -> None:
    with pytest.raises(NoCandidate) as caught:
        choose.task.fn(of_figures(candidate("fp32", size=900)), Budget(size_bytes=10))
    assert caught.value.required.startswith("a rise of RMSE of at most 1.00% (end of the 95% interval)")
