"""The card of a version: what it is for, how good it is and where not, what it cost, where it comes from.

All of it is read from the records and from what the stages have kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.odcs.html_page import describe_type
from bloomery.data_contracts.records.records import Choice, Interval, ResourceUsage, describe_lineage
from bloomery.data_contracts.records.score_format import SCORE_NAMES, format_score, format_score_value
from bloomery.tasks.evaluation import candidate_table, plots
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.model_card.limitations import list_limitations
from bloomery.tasks.model_card.metrics import CardMetrics, compute_card_metrics
from bloomery.tasks.model_card.rendering import Card, Section, Table, render_card, shrink_picture

CARD_FOLDER = "card"  # the folder in a bento's artifacts, and among those of the candidate's run
_MOST_CLASSES = 30  # of more, those that are found least
_MOST_COLUMNS = 40
_OF_CANDIDATES = ("candidate", "verdict", "size", "p50", "time / fp32, 1 row", "why")


def write_card(folder: Path, tag: str, chosen: Choice, recipe: Mapping[str, Any]) -> None:
    """Afterwards `folder` has the card as HTML and as Markdown, and its pictures."""
    folder.mkdir()
    trained = chosen.candidates.trained
    figures = compute_card_metrics(chosen)
    card = Card(
        title=tag.split(":")[0],
        facts=" · ".join(
            [
                f"version {tag.split(':')[1]}",
                f"{trained.dataset.task} of {trained.dataset.label}",
                f"{SCORE_NAMES[trained.dataset.task]} {format_score(trained.dataset.task, figures.score)}",
                f"{chosen.candidate.size_bytes:,} bytes",
                f"p50 {chosen.candidate.latency.p50_ms * 1000:.0f} µs",
            ]
        ),
        sections=[
            _purpose(trained.dataset.valid_rows.contract, recipe),
            _figures(trained.dataset.task, figures),
            _calibration(folder, figures),
            _candidates(folder, chosen),
            _data(chosen),
            _training(folder, chosen, recipe),
            _explanations(folder, chosen),
            _efforts(chosen),
            _licence(trained.dataset.valid_rows.contract, recipe),
            Section("Known limits", points=list_limitations(chosen, figures)),
            _lineage(tag, chosen),
        ],
    )
    render_card(card, folder)


def find_licence(contract: Contract) -> str | None:
    """Of the model, as the contract's custom property `modelLicence` says it, else of the data (`licence`)."""
    stated = [contract.custom_property(name) for name in ("modelLicence", "modelLicense", "licence", "license")]
    return next((str(one) for one in stated if one), None)


def _purpose(contract: Contract, recipe: Mapping[str, Any]) -> Section:
    texts = [str(contract.description.get("purpose") or ""), str(recipe.get("description") or "")]
    return Section("Purpose", texts=[text for text in texts if text] or ["The contract states no purpose."])


def _figures(task: Any, figures: CardMetrics) -> Section:
    rows = (
        f"Of the chosen candidate, in the form that ships, on {figures.num_rows:,} rows that nothing was learnt from."
    )
    over_all = Table(
        ("of all held-out rows", "figure", "95% interval"),
        [
            (SCORE_NAMES[task], format_score_value(task, figures.score.value), _limits(task, figures.score)),
            *((name, f"{value:,.4g}", "") for name, value in figures.others.items()),
        ],
        frozenset({"figure"}),
    )
    tables = [over_all]
    texts = [
        rows,
        "Limits of shares are Wilson's; those of an RMSE come of a bootstrap that keeps neighbours together.",
    ]
    if figures.classes:
        tables.append(_classes(figures))
    if len(figures.classes) > _MOST_CLASSES:
        texts.append(f"Of {len(figures.classes)} classes, those {_MOST_CLASSES} that are found least.")
    if figures.slices:
        heading = f"{SCORE_NAMES[task]} (95% interval)"
        tables.append(
            Table(
                ("column", "value", "rows", heading),
                [(one.column, one.value, f"{one.num_rows:,}", format_score(task, one.score)) for one in figures.slices],
                frozenset({"rows", heading}),
            )
        )
    else:
        texts.append("The recipe tells no slices apart (training.slices).")
    return Section("Figures", texts=texts, tables=tables)


def _classes(figures: CardMetrics) -> Table:
    shown = list(figures.classes)
    if len(shown) > _MOST_CLASSES:
        shown = sorted(shown, key=lambda one: -1 if one.recall is None else one.recall.value)[:_MOST_CLASSES]
    headings = ("class", "rows", "recall (95% interval)", "precision (95% interval)")
    return Table(
        headings,
        [(one.name, f"{one.num_rows:,}", _share(one.recall), _share(one.precision)) for one in shown],
        frozenset(headings[1:]),
    )


def _share(share: Interval | None) -> str:
    return "–" if share is None else format_score("classification", share)


def _limits(task: Any, score: Interval) -> str:
    return f"{format_score_value(task, score.low)} to {format_score_value(task, score.high)}"


def _calibration(folder: Path, figures: CardMetrics) -> Section:
    if figures.reliability is None or figures.calibration_error is None:
        return Section("Calibration", texts=["A figure has no probability that could be right or wrong."])
    drawn = folder / "calibration.drawn.png"
    plots.plot_calibration(figures.reliability, figures.calibration_error, drawn)
    shown = shrink_picture(drawn, folder, "calibration.png", "How often answers are right, by their probability.")
    drawn.unlink()
    return Section(
        "Calibration",
        texts=[
            f"Expected calibration error {figures.calibration_error:.4f} on the held-out rows: the mean distance "
            "between the probability of an answer and how often such answers are right."
        ],
        pictures=shown,
    )


def _candidates(folder: Path, chosen: Choice) -> Section:
    score = f"{SCORE_NAMES[chosen.candidates.trained.dataset.task]} (95% interval)"
    headings = (*_OF_CANDIDATES[:2], score, *_OF_CANDIDATES[2:])
    rows = [[row[name] for name in headings] for row in candidate_table.candidate_rows(chosen)]
    return Section(
        "Candidates",
        texts=[
            f"{chosen.candidate.name} was chosen of {len(rows)}; each was measured in the form in which it would ship."
        ],
        tables=[Table(headings, rows, frozenset({score, "size", "p50", "time / fp32, 1 row"}))],
        pictures=shrink_picture(
            settings().path(chosen.plot_uri),
            folder,
            candidate_table.PICTURE,
            "Score against what each candidate costs.",
        ),
    )


def _data(chosen: Choice) -> Section:
    dataset = chosen.candidates.trained.dataset
    checked, contract = dataset.valid_rows, dataset.valid_rows.contract
    parts = {"train": dataset.train, "val": dataset.val, "test": dataset.test, "unlabelled": dataset.unlabelled}
    counts = ", ".join(f"{part.num_rows:,} {name}" for name, part in parts.items() if part is not None)
    names = [*dataset.inputs, *([] if dataset.label in dataset.inputs else [dataset.label])]
    columns = [(name, column) for name in names[:_MOST_COLUMNS] if (column := contract.column(name)) is not None]
    texts = [
        f"Contract {contract.name} {contract.version} ({contract.status}, id {contract.id}), with "
        f"{len(contract.rules())} rules.",
        f"Source: {checked.raw_rows.source}. {checked.raw_rows.num_rows:,} rows came in, {checked.num_rows:,} kept the "
        f"contract, {checked.num_quarantined:,} are in quarantine. Parts: {counts} rows.",
    ]
    if dataset.classes:
        texts.append(f"The label {dataset.label} has {len(dataset.classes)} classes.")
    if len(names) > _MOST_COLUMNS:
        texts.append(f"Of {len(names)} columns, the first {_MOST_COLUMNS}.")
    rows = [
        (name, describe_type(column), column.unit or "", column.description or column.business_name or "")
        for name, column in columns
    ]
    return Section("Data and contract", texts=texts, tables=[Table(("column", "type", "unit", "what it is"), rows)])


def _training(folder: Path, chosen: Choice, recipe: Mapping[str, Any]) -> Section:
    trained, candidate = chosen.candidates.trained, chosen.candidate
    task = trained.dataset.task
    kind = recipe.get("model", {}).get("kind", "network")
    texts = [
        f"A network of kind {kind}, {trained.num_parameters:,} parameters as trained and {candidate.num_parameters:,} "
        f"as chosen, {candidate.num_nonzero:,} of them not zero. "
        f"Validation {SCORE_NAMES[task]} {format_score_value(task, trained.val_score)}, {_epochs(trained.epochs)}.",
        f"Processor: {trained.processor}.",
    ]
    if trained.privacy is not None:
        texts.append("Training was private: its curves, which tell of training rows without noise, are not shown.")
        return Section("Training", texts=texts)
    curves = settings().path(trained.uri).parent / "report" / "curves.png"
    caption = "Loss and validation score over the epochs."
    return Section("Training", texts=texts, pictures=shrink_picture(curves, folder, "curves.png", caption))


def _epochs(num: int) -> str:
    return f"after {num} epochs" if num else "as it came"


def _explanations(folder: Path, chosen: Choice) -> Section:
    trained = chosen.candidates.trained
    told = settings().path(trained.uri).parent / "explanations"
    if not (told / "weights.json").is_file():
        return Section("Explanations", texts=["The recipe asks for none (training.explain)."])
    document = json.loads((told / "weights.json").read_text(encoding="utf-8"))
    shown = [
        *shrink_picture(told / "importance.png", folder, "importance.png", "What matters over many rows."),
        *shrink_picture(told / "rows.png", folder, "explained-rows.png", "Why single rows were answered as they were."),
    ]
    texts = [f"By {document['method']}, over {document['rows']:,} validation rows."]
    if not shown:
        texts.append(f"The texts with the weights of their words: explanations of MLflow run {trained.run_id}.")
    weights = sorted(document["mean_weights"].items(), key=lambda pair: -abs(pair[1]))[:15]
    table = Table(
        ("what", "mean weight"), [(name, f"{value:.4g}") for name, value in weights], frozenset({"mean weight"})
    )
    return Section("Explanations", texts=texts, tables=[table] if weights else [], pictures=shown)


def _efforts(chosen: Choice) -> Section:
    stages = {"train": chosen.candidates.trained.resource_usage, "compress": chosen.candidates.resource_usage}
    known = {name: effort for name, effort in stages.items() if effort is not None}
    if not known:
        return Section("Energy and cost", texts=["Not known: the stages were run before it was measured."])
    headings = ("stage", "seconds", "seconds of processors", "energy", *_prices())
    rows = [
        (name, f"{one.seconds:,.1f}", f"{one.cpu_seconds:,.1f}", _energy(one.joules), *_priced(one))
        for name, one in known.items()
    ]
    candidate = chosen.candidate
    texts = list(dict.fromkeys(_how(one) for one in known.values()))
    if candidate.energy is not None:
        texts.append(
            f"An answer to {candidate.energy.batch_size} rows takes {candidate.energy.p50_j * 1000:,.3g} mJ of the "
            "processors, measured."
        )
    return Section("Energy and cost", texts=texts, tables=[Table(headings, rows, frozenset(headings[1:]))])


def _how(effort: ResourceUsage) -> str:
    from bloomery.tasks.tracking.resource_usage import WATTS_PER_CORE

    gpu = " What the GPU took is not in it." if effort.used_gpu else ""
    if effort.is_measured:
        return f"Energy was counted by the processors themselves, for whatever ran on them in that time.{gpu}"
    return (
        f"Energy is estimated, not measured: seconds of the processors times {WATTS_PER_CORE:g} W for a busy core, "
        f"within about a factor of two. This machine tells no energy, as most virtual ones.{gpu}"
    )


def _energy(joules: float) -> str:
    return f"{joules / 3.6e6:,.3g} kWh" if joules >= 36_000 else f"{joules / 3600:,.3g} Wh"


def _prices() -> Iterator[str]:
    if settings().grams_per_kwh is not None:
        yield "CO₂e"
    if settings().price_of_hour is not None:
        yield "cost"


def _priced(effort: ResourceUsage) -> Iterator[str]:
    """What the user's own figures make of it, in the order of `_prices`."""
    grams, price = settings().grams_per_kwh, settings().price_of_hour
    if grams is not None:
        yield f"{effort.joules / 3.6e6 * grams:,.3g} g"
    if price is not None:
        amount, currency = price
        yield f"{effort.seconds / 3600 * amount:,.3g} {currency}"


def _licence(contract: Contract, recipe: Mapping[str, Any]) -> Section:
    points = []
    stated = find_licence(contract)
    if stated is not None:
        points.append(f"The contract says: {stated}.")
    obtained = recipe.get("data", {}).get("obtain")
    if obtained:
        points.append(f"The data: {obtained}.")
    points += [
        ": ".join(str(entry[key]) for key in ("description", "url") if entry.get(key))
        for entry in (*contract.authoritative_definitions, *contract.table.authoritative_definitions)
    ]
    if points:
        return Section("Licence", points=points)
    return Section("Licence", texts=["Not stated: the contract may, as its custom property licence or modelLicence."])


def _lineage(tag: str, chosen: Choice) -> Section:
    rows = [(stage, words, digest[:16]) for stage, digest, words in describe_lineage(chosen)]
    return Section(
        "Where it comes from",
        texts=[
            f"Bento {tag}. All digests whole, with the recipe, stand in provenance.json above the card's folder, which "
            "bloomery show draws as a tree."
        ],
        tables=[Table(("stage", "what", "digest"), rows)],
    )
