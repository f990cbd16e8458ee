"""The gates of a release: its score, and its degradation from the champion on the test split."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from bloomery.data_contracts.errors import ReleaseRefused
from bloomery.data_contracts.records.key_column import key_column
from bloomery.data_contracts.records.output_units import ClassOutput, max_classes, restore_units, standardise_outputs
from bloomery.data_contracts.records.records import Bento, Interval
from bloomery.data_contracts.records.score_format import (
    degradation_name,
    format_degradation,
    format_score_value,
)
from bloomery.data_contracts.records.scores import ACCURACY, RMSE, Score, default_score
from bloomery.data_contracts.records.tensor_layout import describe_task, predicts_one_class
from bloomery.models.evaluation.gates import Gates
from bloomery.models.evaluation.metrics import accuracy_drop
from bloomery.models.evaluation.score_intervals import degradation_interval
from bloomery.models.evaluation.scores import RANKINGS
from bloomery.models.features.encoder import Encoder, encode, encode_labels, read_encoder
from bloomery.models.features.labels import code_tag_lists
from bloomery.models.features.statistics.arrow_arrays import combine_chunks
from bloomery.tasks.bentos.bento_store import artifacts_folder
from bloomery.tasks.evaluation.baseline_text import describe_comparison
from bloomery.tasks.evaluation.held_out import (
    ground_truth,
    predicted_values,
    read_held_out_rows,
    read_measured_predictions,
)
from bloomery.tasks.evaluation.row_predictions import predict_rows
from bloomery.tasks.evaluation.scoring import compare_predictions
from bloomery.tasks.evaluation.slices import read_slice_values
from bloomery.tasks.registry import model_registry

if TYPE_CHECKING:
    from bloomery.tasks.tracking.model_versions import ModelVersion


def require_score(bento: Bento, gates: Gates) -> None:
    """Requires a score within the gates.

    Raises:
        ReleaseRefused: the score on the test split does not reach the gate.
    """
    score = bento.choice.candidates.trained.score
    default = default_score(score.facts.task)
    limits: list[tuple[str, Score, float | None]] = [
        ("min_accuracy", ACCURACY, gates.min_accuracy if default == ACCURACY else None),
        ("min_score", score, gates.min_score),
        ("max_error", score if score.is_error else default if default.is_error else RMSE, gates.max_error),
    ]
    for gate, measured, limit in limits:
        if limit is None:
            continue
        value = _metric(bento, measured)
        if measured.is_better(limit, value):
            raise ReleaseRefused(
                f"{measured.title} is {format_score_value(measured, value)} on the held-out rows",
                required=f"at {'most' if measured.is_error else 'least'} {format_score_value(measured, limit)}",
                where=f"the recipe's gates.{gate}",
                remedy="train longer or on more data; or relax the gate, if a lower score is enough",
            )


def require_better_than_baselines(bento: Bento, gates: Gates) -> None:
    """Requires what `gates.beats` says of the comparisons with the baselines.

    Raises:
        ReleaseRefused: the version is not shown to beat the constant baseline, or is shown to be worse than a baseline
            by more than the margin against the champion.
    """
    if gates.beats is None:
        return
    score, comparisons = bento.choice.candidates.trained.score, bento.choice.comparisons
    margin = gates.champion_limit(score)
    losses = [comparison for comparison in comparisons if comparison.degradation.low > margin]
    losses = losses or [item for item in comparisons if item.is_constant and not item.is_beaten]
    if any(comparison.is_constant for comparison in comparisons) and not losses:
        return
    baselines = bento.choice.candidates.trained.baselines
    missing = [f"{item.name} was not computed: {item.reason}" for item in baselines if item.score is None]
    value = format_score_value(score, bento.choice.candidate.score.value)
    results = [describe_comparison(score, comparison) for comparison in losses]
    reasons = "; ".join(results or missing) or "no baseline was fitted"
    constant = next((item.name for item in comparisons if item.is_constant), "one that does not read the inputs")
    raise ReleaseRefused(
        f"the model has {score.title} {value} on the held-out rows: {reasons}",
        required=f"a model that is better than {constant} beyond chance, and not shown to be worse than a baseline by "
        f"more than {format_degradation(score, margin)}",
        where="the recipe's gates.beats",
        remedy="use a stronger model, more rows or other columns; or leave `beats` out to release it nevertheless"
        if results
        else "mend what the reason names, or leave `beats` out"
        if missing
        else "leave out `training.baselines: false`, or `beats`",
    )


def _metric(bento: Bento, score: Score) -> float:
    """A score of the test split."""
    candidate = bento.choice.candidate
    is_primary = score == bento.choice.candidates.trained.score
    return candidate.score.value if is_primary else candidate.metrics[score.name]


def compare_with_champion(bento: Bento, champion: ModelVersion | None) -> Interval | None:
    """The degradation from `champion` to this version on the current test rows, both as packaged.

    None if they cannot be compared: there is no other champion, or it has another task or other outputs, reads other
    columns, or its bento cannot be read. A broken champion must not block its successor.
    """
    tag = model_registry.bento_of(champion)
    if tag is None or tag == bento.tag:
        return None
    encoder = read_bento_encoder(tag)
    if encoder is None or encoder.features.task != bento.choice.candidates.trained.dataset.task:
        return None
    dataset = bento.choice.candidates.trained.dataset
    if encoder.features.labels is not None and encoder.features.label != dataset.label:
        return None
    if encoder.features.task == "embedding":
        return _compare_ranks(bento, tag, encoder)
    if encoder.features.task == "tagging":
        return _compare_tags(bento, tag, encoder)
    predictions = run_bento(tag, encoder, read_held_out_rows(bento.choice))
    return None if predictions is None else _measure_degradation(bento, encoder, predictions)


def require_not_worse(bento: Bento, gates: Gates, champion: ModelVersion | None, degradation: Interval | None) -> None:
    """Requires that this version may replace `champion`; `degradation` comes from `compare_with_champion`.

    Raises:
        ReleaseRefused: the degradation may exceed the gate, or the champion has another task.
    """
    tag = model_registry.bento_of(champion)
    if tag is None or tag == bento.tag:
        return
    dataset = bento.choice.candidates.trained.dataset
    task = dataset.task
    encoder = read_bento_encoder(tag)
    if encoder is not None and encoder.features.task != task:
        raise ReleaseRefused(
            f"champion {tag} is {describe_task(encoder.features.task)}, and this version is {describe_task(task)}",
            required="a version with the same task as the champion of its name",
            where="the recipe's features.task and name",
            remedy="give the recipe another name: clients of the champion would not understand the predictions",
        )
    score = bento.choice.candidates.trained.score
    gate = "champion_rise" if score.is_error else "champion_drop"
    limit = gates.champion_limit(score)
    if degradation is not None and degradation.high > limit:
        value, low, high = (
            format_degradation(score, number) for number in (degradation.value, degradation.low, degradation.high)
        )
        raise ReleaseRefused(
            f"against champion {tag} {score.title} has a {degradation_name(score)} of {value} "
            f"(95% interval {low} to {high})",
            required=f"an interval that ends below {format_degradation(score, limit)}",
            where=f"the {dataset.test.num_rows} held-out rows; the recipe's gates.{gate}",
            remedy="improve the model; or relax the gate, if the champion need not be matched",
        )


def _measure_degradation(bento: Bento, champion: Encoder, champion_predictions: np.ndarray) -> Interval:
    """The degradation of the score from the champion's predictions to the measured ones on the test rows."""
    trained = bento.choice.candidates.trained
    dataset, table = trained.dataset, read_measured_predictions(bento.choice)
    if trained.score == ACCURACY:
        truth, predictions = (np.array(table[name].to_pylist(), dtype=object) for name in ("truth", "prediction"))
        return accuracy_drop(predicted_labels(champion, champion_predictions) == truth, predictions == truth)
    labels, after = ground_truth(dataset, table), predicted_values(dataset, table)
    if predicts_one_class(dataset.task):
        names = [str(name) for name in dataset.classes]
        before = align_classes(champion, champion_predictions, names)
        return compare_aligned(trained.score, labels.truth, before, np.pad(after, ((0, 0), (0, 1))))
    if dataset.class_outputs:
        before = align_class_outputs(champion, champion_predictions, dataset.class_outputs)
        return compare_predictions(trained.score, labels, before, np.pad(after, ((0, 0), (0, 0), (0, 1))))
    if dataset.outputs:
        champion_predictions = standardise_outputs(
            dataset.outputs, restore_units(champion.outputs, champion_predictions)
        )
    if dataset.task == "multilabel":
        champion_predictions = align_labels(champion, champion_predictions, dataset.classes)
    return compare_predictions(trained.score, labels, champion_predictions, after)


def align_classes(encoder: Encoder, probabilities_NK: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Probabilities in the order of `names`, and in a last column of all other classes that the encoder knows."""
    aligned = np.zeros((len(probabilities_NK), len(names) + 1))
    positions = {name: number for number, name in enumerate(names)}
    for column_N, name in zip(probabilities_NK.T, encoder.classes, strict=True):
        aligned[:, positions.get(str(name), len(names))] += column_N
    return aligned


def align_class_outputs(encoder: Encoder, shares_NMK: np.ndarray, outputs: Sequence[ClassOutput]) -> np.ndarray:
    """Probabilities of the classes of `outputs` in their order (N, M, K + 1), the last column for all other classes.

    The encoder predicts the same labels, whose classes may be others.
    """
    aligned = np.zeros((len(shares_NMK), len(outputs), max_classes(outputs) + 1))
    for number, (known, output) in enumerate(zip(encoder.class_outputs, outputs, strict=True)):
        positions = {str(name): position for position, name in enumerate(output.classes)}
        for column_N, name in zip(shares_NMK[:, number].T, known.classes, strict=False):
            aligned[:, number, positions.get(str(name), -1)] += column_N
    return aligned


def align_labels(encoder: Encoder, probabilities_NK: np.ndarray, names: Sequence[int | str]) -> np.ndarray:
    """Probabilities of a multilabel task in the order of `names`; a label that the encoder does not know has 0."""
    positions = {str(name): number for number, name in enumerate(encoder.classes)}
    unknown_N = np.zeros(len(probabilities_NK))
    columns = [probabilities_NK[:, positions[str(name)]] if str(name) in positions else unknown_N for name in names]
    return np.stack(columns, axis=1)


def compare_aligned(score: Score, truth_N: np.ndarray, before_NL: np.ndarray, after_NL: np.ndarray) -> Interval:
    """The degradation from `before` to `after`, both from `align_classes`.

    No row has the class of the last column, so rankings leave it out: two classes stay two, and the rarer one counts.

    Raises:
        UndefinedScore: the score does not exist for these labels.
    """
    if score.name in RANKINGS:
        before_NL, after_NL = before_NL[:, :-1], after_NL[:, :-1]
    return degradation_interval(score, truth_N, before_NL, after_NL)


def predicted_labels(encoder: Encoder, probabilities_NK: np.ndarray) -> np.ndarray:
    """The most probable classes (N,)."""
    return np.array(encoder.classes, dtype=object)[probabilities_NK.argmax(axis=1)]


def read_bento_encoder(tag: str) -> Encoder | None:
    """The encoder of a bento; None if this code cannot read it."""
    try:
        return read_encoder(artifacts_folder(tag) / "encoder.json")
    except (OSError, ValueError):
        return None


def run_bento(tag: str, encoder: Encoder, rows: pa.Table) -> np.ndarray | None:
    """The probabilities or numbers that the files of a bento predict for raw rows; None if they cannot be used."""
    from bloomery.models.inference.outputs import predictions_from

    try:
        return predictions_from(encoder, _open_network(tag)(encode(encoder, rows)))
    except Exception:  # a broken champion must not block its successor
        return None


def _open_network(tag: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function from encoded rows to outputs of a bento's file."""
    from bloomery.models.inference.outputs import compute_outputs
    from bloomery.models.inference.runtime import create_session

    folder = artifacts_folder(tag)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    session = create_session(folder / manifest.get("model", "model.onnx"), device=manifest.get("device"))
    return partial(compute_outputs, session, is_row_by_row=manifest.get("is_row_by_row", False))


def _compare_ranks(bento: Bento, tag: str, encoder: Encoder) -> Interval | None:
    """The degradation from an embedding as champion, which ranks the positives of the test rows by its vectors."""
    trained, table = bento.choice.candidates.trained, read_measured_predictions(bento.choice)
    dataset = trained.dataset
    try:
        keys = table[key_column(dataset.key)].combine_chunks()
        rows = read_slice_values(dataset, keys, [*encoder.columns, dataset.label])
        texts = combine_chunks(encode_labels(encoder, rows[dataset.label]))
        y = texts.flatten().to_numpy().reshape(len(texts), -1)
        ranks_N = predict_rows(encoder, encode(encoder, rows), y, _open_network(tag)).values
    except Exception:  # a broken champion must not block its successor
        return None
    labels, after = ground_truth(dataset, table), predicted_values(dataset, table)
    return compare_predictions(trained.score, labels, ranks_N, after)


def _compare_tags(bento: Bento, tag: str, encoder: Encoder) -> Interval | None:
    """The degradation from a champion that tags words, among all words of the test rows.

    Tags that only the champion knows are wrong, and the words that a version has not read are wrong for it: otherwise a
    version that reads fewer words would not look worse.
    """
    from bloomery.models.inference.tagged_words import tag_words

    trained, table = bento.choice.candidates.trained, read_measured_predictions(bento.choice)
    dataset = trained.dataset
    try:
        keys = table[key_column(dataset.key)].combine_chunks()
        rows = read_slice_values(dataset, keys, list(dict.fromkeys([*encoder.columns, dataset.label])))
        sentences = tag_words(encoder, rows.select(list(encoder.columns)), _open_network(tag))
        truth = combine_chunks(rows[dataset.label])
        names = [[encoder.classes[position] for position in sentence.tags.tolist()] for sentence in sentences]
        before = pa.array(names, truth.type)
    except Exception:  # a broken champion must not block its successor
        return None
    classes = (*dataset.classes, *(name for name in encoder.classes if name not in dataset.classes))
    num_words = max((len(words) for words in (*names, *truth.to_pylist())), default=0)
    after = table["prediction"].combine_chunks()
    codes = [code_tag_lists(classes, lists, num_words) for lists in (truth, before, after)]
    return degradation_interval(trained.score, *codes)
