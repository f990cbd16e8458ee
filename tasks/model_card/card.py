"""Writes the model card of a version from its records and from the files of its stages.

Source: Mitchell et al. 2019, "Model Cards for Model Reporting", for the sections.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.odcs.html_page import describe_type
from bloomery.data_contracts.records.lineage import describe_lineage
from bloomery.data_contracts.records.provenance import PROVENANCE_FILE
from bloomery.data_contracts.records.records import Choice, Interval, ResourceUsage
from bloomery.data_contracts.records.score_format import SCORE_NAMES, class_noun, format_score, format_score_value
from bloomery.data_contracts.records.scores import Score
from bloomery.data_contracts.records.tensor_layout import Task
from bloomery.tasks.evaluation import baseline_text, candidate_table, plots
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.model_card.checkpoint_section import checkpoint_sections
from bloomery.tasks.model_card.limitations import list_limitations
from bloomery.tasks.model_card.metric_texts import describe_metrics
from bloomery.tasks.model_card.metrics import CardMetrics, compute_card_metrics
from bloomery.tasks.model_card.output_tables import class_output_table, output_table
from bloomery.tasks.model_card.rendering import Card, Section, Table, render_card, shrink_picture
from bloomery.tasks.tracking.resource_usage import WATTS_PER_CORE

CARD_FOLDER = "card"  # in a bento's artifacts, and among the artifacts of the candidate's MLflow run
_TASK_NAMES: dict[Task, str] = {"multioutput": "regression", "multitask": "classification"}  # of several labels
_MAX_CLASSES = 30  # of more, the card lists those with the lowest recall
_MAX_COLUMNS = 40
_MAX_WEIGHTS = 15
_CANDIDATE_COLUMNS = ("candidate", "verdict", "size", "p50", "time / fp32, 1 row", "reason")


def write_card(folder: Path, tag: str, choice: Choice, recipe: Mapping[str, Any]) -> None:
    """Writes the card as HTML and as Markdown, and its pictures, into the new folder `folder`."""
    folder.mkdir()
    dataset = choice.candidates.trained.dataset
    metrics = compute_card_metrics(choice)
    score = choice.candidates.trained.score
    name, version = tag.split(":")
    card = Card(
        title=name,
        facts=" · ".join(
            [
                f"version {version}",
                f"{_TASK_NAMES.get(dataset.task, dataset.task)} of {dataset.label}",
                f"{score.title} {format_score(score, metrics.score)}",
                f"{choice.candidate.size_bytes:,} bytes",
                f"p50 {choice.candidate.latency.p50_ms * 1000:.0f} µs{choice.candidate.latency.where}",
            ]
        ),
        sections=[
            _model_details(choice, recipe),
            _intended_use(dataset.valid_rows.contract, recipe),
            _evaluation_data(choice),
            _metrics(dataset.task),
            _quantitative_analyses(score, metrics),
            _calibration(folder, metrics, choice),
            _baselines(choice),
            _candidates(folder, choice),
            _training_data(choice),
            _training_procedure(folder, choice),
            *checkpoint_sections(choice.candidates.trained.checkpoints),
            _explanations(folder, choice),
            _resource_usage(choice),
            Section("Limitations", points=list_limitations(choice, metrics)),
            _provenance(tag, choice),
        ],
    )
    render_card(card, folder)


def find_licence(contract: Contract) -> str | None:
    """The licence of the model (custom property `modelLicence` of the contract), else that of the data (`licence`)."""
    licences = [contract.custom_property(name) for name in ("modelLicence", "modelLicense", "licence", "license")]
    return next((str(licence) for licence in licences if licence), None)


def _model_details(choice: Choice, recipe: Mapping[str, Any]) -> Section:
    trained, candidate = choice.candidates.trained, choice.candidate
    contract = trained.dataset.valid_rows.contract
    kind = recipe.get("model", {}).get("kind", "unknown")
    text = (
        f"Network kind {kind}, compressed as candidate {candidate.name}: {trained.num_parameters:,} parameters after "
        f"training, {candidate.num_parameters:,} in the chosen candidate, {candidate.num_nonzero:,} of them not zero."
    )
    licence = find_licence(contract)
    unknown = "not stated (set the custom property `licence` or `modelLicence` in the contract)"
    points = [f"Licence: {licence or unknown}."]
    obtained = recipe.get("data", {}).get("obtain")
    if obtained:
        points.append(f"How to obtain the data: {obtained}.")
    points += [
        ": ".join(text for text in (entry.description, entry.url) if text)
        for entry in (*contract.authoritative_definitions, *contract.table.authoritative_definitions)
    ]
    return Section("Model details", texts=[text], points=points)


def _intended_use(contract: Contract, recipe: Mapping[str, Any]) -> Section:
    texts = [str(contract.description.get("purpose") or ""), str(recipe.get("description") or "")]
    return Section("Intended use", texts=[text for text in texts if text] or ["The contract states no purpose."])


def _evaluation_data(choice: Choice) -> Section:
    test = choice.candidates.trained.dataset.test
    return Section(
        "Evaluation data",
        texts=[
            f"The test split: {test.num_rows:,} rows that neither training nor compression has seen. The chosen "
            "candidate was evaluated in the form that ships."
        ],
    )


def _metrics(task: Task) -> Section:
    return Section("Metrics", texts=describe_metrics(task))


def _quantitative_analyses(score: Score, metrics: CardMetrics) -> Section:
    task = score.facts.task
    overall = Table(
        ("metric", "value", "95% interval"),
        [
            (score.title, format_score_value(score, metrics.score.value), _format_interval(score, metrics.score)),
            *((name, f"{value:,.4g}", "") for name, value in metrics.further.items()),
        ],
        frozenset({"value"}),
    )
    tables, texts = [overall], []
    if metrics.outputs:
        tables.append(output_table(metrics.outputs))
    if metrics.class_outputs:
        tables.append(class_output_table(metrics.class_outputs))
    if metrics.classes:
        headings = ("entity or tag", "number") if task == "tagging" else (class_noun(task), "rows")
        tables.append(_class_table(metrics, headings))
    if len(metrics.classes) > _MAX_CLASSES:
        texts.append(f"Of {len(metrics.classes)} classes, the {_MAX_CLASSES} with the lowest recall are listed.")
    if metrics.slices:
        heading = f"{SCORE_NAMES[task]} (95% interval)"
        rows = [
            (part.column, part.value, f"{part.num_rows:,}", format_score(task, part.score)) for part in metrics.slices
        ]
        tables.append(Table(("column", "value", "rows", heading), rows, frozenset({"rows", heading})))
    else:
        texts.append("No metrics by slice: the recipe names no columns under training.slices.")
    return Section("Quantitative analyses", texts=texts, tables=tables)


def _class_table(metrics: CardMetrics, names: tuple[str, str]) -> Table:
    classes = list(metrics.classes)
    if len(classes) > _MAX_CLASSES:
        classes = sorted(classes, key=lambda row: -1 if row.recall is None else row.recall.value)[:_MAX_CLASSES]
    headings = (*names, "recall (95% interval)", "precision (95% interval)")
    return Table(
        headings,
        [(row.name, f"{row.num_rows:,}", _format_share(row.recall), _format_share(row.precision)) for row in classes],
        frozenset(headings[1:]),
    )


def _format_share(share: Interval | None) -> str:
    return "–" if share is None else format_score("classification", share)


def _format_interval(score: Score, interval: Interval) -> str:
    return f"{format_score_value(score, interval.low)} to {format_score_value(score, interval.high)}"


def _calibration(folder: Path, metrics: CardMetrics, choice: Choice) -> Section:
    if metrics.bins is None or metrics.calibration_error is None:
        texts = {"embedding": "None: vectors have no probabilities.", "tagging": "Not measured for the tags of words."}
        if (task := choice.candidates.trained.dataset.task) in texts:
            return Section("Calibration", texts=[texts[task]])
        return _prediction_intervals(choice)
    num_decisions = int(metrics.bins.counts.sum())
    if not num_decisions:
        return Section("Calibration", texts=["Unknown: no label is predicted for any row of the test split."])
    is_multilabel = choice.candidates.trained.dataset.task == "multilabel"
    rows = f"the {num_decisions:,} labels that are predicted for the test split" if is_multilabel else "the test split"
    plot_path = folder / "calibration.drawn.png"
    plots.plot_calibration(metrics.bins, metrics.calibration_error, plot_path)
    caption = "Share of correct predictions by predicted probability."
    pictures = shrink_picture(plot_path, folder, "calibration.png", caption)
    plot_path.unlink()
    return Section(
        "Calibration",
        texts=[
            f"Expected calibration error {metrics.calibration_error:.4f} on {rows}: the mean difference "
            "between the predicted probability and the share of correct predictions."
        ],
        pictures=pictures,
    )


def _prediction_intervals(choice: Choice) -> Section:
    interval, label = choice.candidate.interval, choice.candidates.trained.dataset.label
    title = "Prediction intervals"
    if choice.candidates.trained.dataset.outputs:
        return Section(title, texts=["None: a version with several outputs has none."])
    if interval is None:
        return Section(
            title, texts=["None: the validation split has too few rows, or the version is older than they are."]
        )
    coverage = format_score("classification", interval.coverage)
    return Section(
        title,
        texts=[
            f"Each prediction of {label} has a split conformal interval of ±{interval.half_width:,.4g}, from the "
            f"errors of {interval.num_rows:,} validation rows. It is to contain the true value in "
            f"{interval.level:.0%} of the rows; of the test rows it contains {coverage}."
        ],
    )


def _baselines(choice: Choice) -> Section:
    """Simple models on the same rows, and whether the chosen candidate is better."""
    rows = baseline_text.baseline_rows(choice)
    if not rows:
        return Section("Baselines", texts=["None: the recipe sets `training.baselines: false`."])
    headings = tuple(rows[0])
    explanation = baseline_text.explain_loss(choice)
    return Section(
        "Baselines",
        texts=[
            "Simple models, fitted to the same training rows and scored on the same test rows. A baseline is beaten, "
            "or better, if the 95% interval of the paired difference excludes 0.",
            *([] if explanation is None else [explanation]),
        ],
        tables=[Table(headings, [tuple(row.values()) for row in rows], frozenset(headings[1:3]))],
    )


def _candidates(folder: Path, choice: Choice) -> Section:
    score = f"{choice.candidates.trained.score.title} (95% interval)"
    headings = (*_CANDIDATE_COLUMNS[:2], score, *_CANDIDATE_COLUMNS[2:])
    rows = [[row[name] for name in headings] for row in candidate_table.candidate_rows(choice)]
    return Section(
        "Candidates",
        texts=[
            f"{choice.candidate.name} was chosen from {len(rows)} candidates; each was measured in the form "
            "in which it would ship."
        ],
        tables=[Table(headings, rows, frozenset({score, "size", "p50", "time / fp32, 1 row"}))],
        pictures=shrink_picture(
            settings().path(choice.plot_uri),
            folder,
            candidate_table.PICTURE,
            "Score against the costs of each candidate.",
        ),
    )


def _training_data(choice: Choice) -> Section:
    dataset = choice.candidates.trained.dataset
    valid_rows = dataset.valid_rows
    contract = valid_rows.contract
    splits = {"train": dataset.train, "validation": dataset.val, "test": dataset.test, "unlabelled": dataset.unlabelled}
    counts = ", ".join(f"{split.num_rows:,} {name}" for name, split in splits.items() if split is not None)
    labels = [output.name for output in dataset.outputs] + [output.name for output in dataset.class_outputs]
    names = list(dict.fromkeys([*dataset.inputs, *(labels or [dataset.label])]))
    columns = [(name, column) for name in names[:_MAX_COLUMNS] if (column := contract.column(name)) is not None]
    texts = [
        f"Contract {contract.name} {contract.version} ({contract.status}, id {contract.id}) with "
        f"{len(contract.rules())} rules.",
        f"Source: {valid_rows.raw_rows.source}. Of {valid_rows.raw_rows.num_rows:,} rows, {valid_rows.num_rows:,} "
        f"satisfied the contract and {valid_rows.num_quarantined:,} were quarantined. Splits: {counts} rows.",
    ]
    if dataset.classes:
        texts.append(f"The label {dataset.label} has {len(dataset.classes)} classes.")
    texts += [f"The label {output.name} has {len(output.classes)} classes." for output in dataset.class_outputs]
    if len(names) > _MAX_COLUMNS:
        texts.append(f"Of {len(names)} columns, the first {_MAX_COLUMNS} are listed.")
    rows = [
        (name, describe_type(column), column.unit or "", column.description or column.business_name or "")
        for name, column in columns
    ]
    return Section("Training data", texts=texts, tables=[Table(("column", "type", "unit", "description"), rows)])


def _training_procedure(folder: Path, choice: Choice) -> Section:
    trained = choice.candidates.trained
    score = trained.score
    texts = [
        f"Validation {score.title} {format_score_value(score, trained.val_score)}, {trained.origin}.",
        f"Processor: {trained.processor}.",
    ]
    if trained.initial_weights is not None:
        transfer = "" if trained.transfer is None else f": {trained.transfer}"
        texts.append(f"Training began with weights of {trained.initial_weights.name}{transfer}.")
    if trained.privacy is not None:
        texts.append(
            "Training was differentially private. Training curves are omitted: they reveal training rows without noise."
        )
        return Section("Training procedure", texts=texts)
    if not trained.epochs and not trained.num_rounds:
        return Section("Training procedure", texts=texts)
    curves = settings().path(trained.uri).parent / "report" / "curves.png"
    pictures = shrink_picture(curves, folder, "curves.png", "Loss and validation score by epoch.")
    return Section("Training procedure", texts=texts, pictures=pictures)


def _explanations(folder: Path, choice: Choice) -> Section:
    trained = choice.candidates.trained
    source = settings().path(trained.uri).parent / "explanations"
    if not (source / "weights.json").is_file():
        return Section("Explanations", texts=["None: the recipe does not request them (training.explain)."])
    document = json.loads((source / "weights.json").read_text(encoding="utf-8"))
    pictures = [
        *shrink_picture(source / "importance.png", folder, "importance.png", "Feature importance over many rows."),
        *shrink_picture(source / "rows.png", folder, "explained-rows.png", "Attributions for single rows."),
    ]
    texts = [f"Method: {document['method']}, over {document['rows']:,} validation rows."]
    if not pictures:
        texts.append(f"Texts with the weights of their words: artifact `explanations` of MLflow run {trained.run_id}.")
    weights = sorted(document["mean_weights"].items(), key=lambda pair: -abs(pair[1]))[:_MAX_WEIGHTS]
    rows = [(name, f"{value:.4g}") for name, value in weights]
    tables = [Table(("feature", "mean weight"), rows, frozenset({"mean weight"}))] if weights else []
    return Section("Explanations", texts=texts, tables=tables, pictures=pictures)


def _resource_usage(choice: Choice) -> Section:
    title = "Resource usage"
    stages = {"train": choice.candidates.trained.resource_usage, "compress": choice.candidates.resource_usage}
    usages = {name: usage for name, usage in stages.items() if usage is not None}
    if not usages:
        return Section(title, texts=["Unknown: the stages ran before resource usage was recorded."])
    headings = ("stage", "seconds", "CPU seconds", "energy", *_price_headings())
    rows = [
        (name, f"{usage.seconds:,.1f}", f"{usage.cpu_seconds:,.1f}", _format_energy(usage.joules), *_prices(usage))
        for name, usage in usages.items()
    ]
    energy = choice.candidate.energy
    texts = list(dict.fromkeys(_describe_energy_source(usage) for usage in usages.values()))
    if energy is not None:
        texts.append(
            f"A prediction for {energy.batch_size} rows takes {energy.p50_j * 1000:,.3g} mJ of CPU energy (measured)."
        )
    return Section(title, texts=texts, tables=[Table(headings, rows, frozenset(headings[1:]))])


def _describe_energy_source(usage: ResourceUsage) -> str:
    gpu = " The energy of the GPU is not included." if usage.used_gpu else ""
    if usage.is_measured:
        return f"Energy was measured by the CPU's own counter (RAPL); it includes other processes on this machine.{gpu}"
    return (
        f"Energy is estimated, not measured: CPU seconds times {WATTS_PER_CORE:g} W per busy core, accurate to about a "
        f"factor of two. This machine has no readable energy counter, like most virtual machines.{gpu}"
    )


def _format_energy(joules: float) -> str:
    return f"{joules / 3.6e6:,.3g} kWh" if joules >= 36_000 else f"{joules / 3600:,.3g} Wh"


def _price_headings() -> Iterator[str]:
    if settings().grams_per_kwh is not None:
        yield "CO₂e"
    if settings().price_of_hour is not None:
        yield "cost"


def _prices(usage: ResourceUsage) -> Iterator[str]:
    """Emissions and cost by the user's settings, in the order of `_price_headings`."""
    grams, price = settings().grams_per_kwh, settings().price_of_hour
    if grams is not None:
        yield f"{usage.joules / 3.6e6 * grams:,.3g} g"
    if price is not None:
        amount, currency = price
        yield f"{usage.seconds / 3600 * amount:,.3g} {currency}"


def _provenance(tag: str, choice: Choice) -> Section:
    rows = [(stage, description, digest[:16]) for stage, digest, description in describe_lineage(choice)]
    return Section(
        "Provenance",
        texts=[
            f"Bento {tag}. The complete digests and the recipe are in {PROVENANCE_FILE} in the parent folder of this "
            "card; bloomery show prints them as a tree."
        ],
        tables=[Table(("stage", "output", "digest"), rows)],
    )
