"""Drafts a recipe from a plan: every guess is an explicit option with a comment, and can be changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ruamel.yaml.comments import CommentedMap, CommentedSeq

from bloomery.models.compression.config import CandidateSpec
from bloomery.models.compression.default_candidates import default_candidates
from bloomery.models.features.splits import SPLITS
from bloomery.tasks.scaffolding.mixed_network import draft_mixed_network
from bloomery.tasks.scaffolding.planning.draft_planning import DraftPlan, LabelPlan
from bloomery.tasks.scaffolding.planning.pretrained_inputs import read_pretrained
from bloomery.tasks.scaffolding.planning.split_planning import usual_shares
from bloomery.tasks.scaffolding.pretrained_network import draft_fused_network, draft_pretrained_network
from bloomery.tasks.scaffolding.tabular_network import draft_tabular_network
from bloomery.tasks.scaffolding.tagging_sections import draft_tag_gates, draft_tagging_network, score_of_tags
from bloomery.tasks.scaffolding.yaml_writer import add_blank_line, add_comment, as_sentence, dump_yaml, inline

_PIXELS_SEEN = 100_000_000  # pixels that a convolutional network is shown in all epochs: a minute or so on two cores
_SKEWED = 4  # times as many rows in the largest class as in the rarest
_CLASS_NOISE = 5  # rows of a class that equally good versions may decide differently
_MIN_ROWS_OF_RARE = 50  # of the rarest label whose F1 is not left to chance
_TOKENS_SEEN = 8_000_000  # the same for a Transformer, by tokens
_STEPS_SEEN = 6_000_000  # the same for a recurrent network, by steps of a sequence or series


def draft_recipe(name: str, plan: DraftPlan, names: dict[str, str], data: dict[str, Any], notes: dict[str, str]) -> str:
    """Returns the text of the recipe file.

    Args:
        names: the contract's names of the source's columns.
        data: the options that read the source.
        notes: the reasons for some of these options.
    """
    score, score_reason = _score(plan.label)
    model, training, compression = _network(plan, score, names)
    budget, gates = _budget_and_gates(plan, score)
    document = CommentedMap(
        name=name,
        description=plan.describe_purpose(names),
        data=_data(plan, names, data, notes),
        contract=f"{name}.odcs.yaml",
        features=_features(plan, names),
        model=model,
        training=training,
        score=score,
        compression=compression,
        budget=budget,
        gates=gates,
    )
    add_comment(
        document,
        "name",
        f"Drafted by `bloomery init`. Run it with `bloomery run {name}.yaml`. Every guess may be changed.",
    )
    for section in ("data", "features", "model", "training", "score", "compression", "budget", "gates"):
        add_blank_line(document, section)
    if plan.series is not None:
        for note in plan.series.notes:
            add_comment(document, "features", as_sentence(note))
    add_comment(document, "score", score_reason)
    add_comment(document, "model", f"Sized for about {_num_training_rows(plan):,} training rows.")
    return dump_yaml(document)


def _data(plan: DraftPlan, names: dict[str, str], data: dict[str, Any], notes: dict[str, str]) -> CommentedMap:
    section = CommentedMap()
    for option, value in data.items():
        section[option] = CommentedSeq(map(inline, value)) if option == "sources" else inline(value)
        if option in notes:
            add_comment(section, option, f"Inferred: {notes[option]}.", 2)
    if plan.profile.left_out:
        section["drop"] = inline([*data.get("drop", ()), *plan.profile.left_out])
        reasons = "; ".join(f"{name}: {reason}" for name, reason in plan.profile.left_out.items())
        add_comment(section, "drop", f"Columns that are not read. {reasons}.", 2)
    if plan.key.is_added:
        section["row_id"] = plan.key.name
        add_comment(section, "row_id", f"The row's number, from 0, is added: {plan.key.reason}.", 2)
    new_names = {name: contract_name for name, contract_name in names.items() if name != contract_name}
    if new_names:
        section["rename"] = CommentedMap(new_names)
        add_comment(
            section,
            "rename",
            "A column needs a name.",
            2,
        )
    if plan.profile.normalized:
        section["normalize"] = inline([names[name] for name in plan.profile.normalized])
        add_comment(section, "normalize", "Some texts here differ from others only in what cannot be seen.", 2)
    if plan.profile.missing or isinstance(data.get("missing"), dict):
        section["missing"] = _missing(plan, names, data.get("missing", ()))
        add_comment(section, "missing", "Texts that mark a missing value, by column.", 2)
    if plan.split.replaced and plan.split.column is not None:
        section["replace"] = CommentedMap({names[plan.split.column]: inline(dict(plan.split.replaced))})
        add_comment(section, "replace", "The splits are named train, val and test.", 2)
    return section


def _missing(plan: DraftPlan, names: dict[str, str], stated: Sequence[str] | dict[str, list[str]]) -> CommentedMap:
    """Returns the texts that mark a missing value by column; those of a list `stated`, for all columns."""
    section = CommentedMap()
    for column in plan.profile.columns:
        of_column = stated.get(column.name, ()) if isinstance(stated, dict) else [text for text in stated if text]
        texts = dict.fromkeys([*column.missing, *of_column])
        if texts:
            section[names[column.name]] = inline([*texts])
    return section


def _features(plan: DraftPlan, names: dict[str, str]) -> CommentedMap:
    section = CommentedMap(key=names.get(plan.key.name, plan.key.name), label=names[plan.label.name])
    if plan.label.others:
        section["label"] = inline([names[name] for name in plan.label_names])
    if plan.label.task != "classification" or plan.label.others:
        section["task"] = plan.label.task
    if plan.label.order is not None:
        section["order"] = inline(list(plan.label.order))
        add_comment(section, "order", "From the lowest to the highest.", 2)
    place = "task" if "task" in section else "label"
    add_comment(section, place, f"{plan.task.name.capitalize()}: {plan.task.reason}.", 2)
    section["inputs"] = _inputs(plan, names)
    for leak in plan.leaks:
        add_comment(section, "inputs", f"Leakage: {leak.describe(names)}.", 2)
    section["deduplicate"] = not plan.keep_duplicates
    _comment_unused(section, plan, names)
    add_comment(section, "deduplicate", _describe_duplicates(plan), 2)
    section["split"] = inline(_split(plan, names))
    add_comment(section, "split", as_sentence(plan.split.reason), 2)
    for note in plan.split.notes:
        add_comment(section, "split", as_sentence(note), 2)
    return section


def _describe_duplicates(plan: DraftPlan) -> str:
    if plan.series is not None:
        return "Equal windows of different times are no copies."
    if plan.keep_duplicates:
        return (
            "Most rows are copies of others, or have too many columns to be compared: copies stay, even in two splits."
        )
    return "Of rows with equal inputs and label, one stays."


def _inputs(plan: DraftPlan, names: dict[str, str]) -> CommentedSeq:
    section = CommentedSeq()
    for planned_input in plan.inputs.inputs:
        options = dict(planned_input.options)
        if "column" in options:
            options["column"] = names[options["column"]]
        for option in ("columns", "group"):
            if isinstance(options.get(option), list):
                options[option] = [names[name] for name in options[option]]
            elif option in options:
                options[option] = names[options[option]]
        if "time" in options:
            options["time"] = names[options["time"]]
        section.append(CommentedMap((option, inline(value)) for option, value in options.items()))
        add_comment(section, len(section) - 1, as_sentence(planned_input.reason), 4)
    return section


def _comment_unused(section: CommentedMap, plan: DraftPlan, names: dict[str, str]) -> None:
    """Adds the columns that the model does not use, behind the inputs, each with the reason."""
    unused = {name: why for name, why in plan.inputs.unused.items() if name not in (*plan.label_names, plan.key.name)}
    if unused:
        add_comment(section, "deduplicate", "Columns that the model does not use:", 2)
    for name, reason in unused.items():
        add_comment(section, "deduplicate", f"- {names[name]}: {reason}", 2)


def _split(plan: DraftPlan, names: dict[str, str]) -> dict[str, Any]:
    split: dict[str, Any] = {"by": plan.split.by}
    if plan.split.column is not None:
        split["column"] = names.get(plan.split.column, plan.split.column)
    split |= dict(zip(SPLITS, _split_shares(plan), strict=True))
    split |= {"salt": plan.split.salt} if plan.split.salt else {}
    return split | ({"duplicates": "allow"} if plan.keep_duplicates else {})


def _split_shares(plan: DraftPlan) -> tuple[float, float, float]:
    return plan.split.shares or usual_shares(plan.num_usable_rows)


def _num_training_rows(plan: DraftPlan) -> int:
    return max(round(plan.num_usable_rows * _split_shares(plan)[0]), 1)


def _network(plan: DraftPlan, score: str, names: dict[str, str]) -> tuple[CommentedMap, CommentedMap, CommentedMap]:
    """Returns the sections model, training and compression, sized by the number of training rows."""
    num_rows = _num_training_rows(plan)
    batch_size = next(
        (size for upper, size in ((500, 16), (2_000, 32), (20_000, 128), (200_000, 256)) if num_rows < upper), 1024
    )
    if plan.series is None and plan.inputs.is_tabular:
        has_trees = plan.label.task in ("classification", "regression") and not plan.label.others
        return draft_tabular_network(num_rows, batch_size, is_skewed=score == "macro_f1", has_trees=has_trees)
    if plan.checkpoint is not None:
        inputs, pretrained = plan.inputs.inputs, read_pretrained(plan.checkpoint)
        if len(inputs) == 1:
            return draft_pretrained_network(inputs[0], pretrained, num_rows, batch_size)
        return draft_fused_network(inputs, _part_names(plan, names), pretrained, num_rows, batch_size)
    if plan.series is None and plan.inputs.is_mixed:
        return draft_mixed_network(plan.inputs.inputs, _part_names(plan, names), num_rows, batch_size)
    if plan.series is not None:
        epochs = min(max(_STEPS_SEEN // (num_rows * plan.series.length), 5), 60)
        highway = plan.series.length  # a linear map of the window: what a linear autoregression would predict
        relative = {"relative": True} if plan.label.task == "regression" else {}
        model = CommentedMap(kind="rnn", cell="lstm", hidden=32, highway=highway, **relative, dropout=0.1)
    elif (options := plan.inputs.inputs[0].options)["kind"] == "text" and plan.label.tags is not None:
        model, epochs = draft_tagging_network(num_rows, options["length"])
    elif options["kind"] == "text":
        epochs = min(max(_TOKENS_SEEN // (num_rows * options["length"]), 3), 20)
        model = CommentedMap(kind="transformer", width=128, num_layers=2, num_heads=4)
    elif options["kind"] == "sequence":
        epochs = min(max(_STEPS_SEEN // (num_rows * options["length"]), 5), 60)
        model = CommentedMap(kind="rnn", cell="lstm", hidden=64, bidirectional=True, pooling="mean")
    else:
        num_pixels = math.prod(options.get("resize", options.get("shape", [40, 60])[-2:]))
        epochs = min(max(_PIXELS_SEEN // (num_rows * num_pixels), 3), 30)
        model = CommentedMap(kind="cnn", channels=inline([16, 32]), hidden=64)
    clipping = {"clip_norm": 1.0} if plan.series is not None else {}
    training = CommentedMap(epochs=epochs, batch_size=batch_size, **clipping, seed=0)
    fine_tuning = {"epochs": max(epochs // 3, 2), "batch_size": batch_size, "learning_rate": 0.001}
    candidates = CommentedSeq(inline(_as_written(spec)) for spec in default_candidates(model["kind"]))
    return model, training, CommentedMap(candidates=candidates, fine_tune=inline(fine_tuning))


def _part_names(plan: DraftPlan, names: dict[str, str]) -> list[str]:
    """Returns the names of the parts of a mixed row: that of all flat inputs, which come first, and columns."""
    all_options = [planned_input.options for planned_input in plan.inputs.inputs]
    shaped = [names[options["column"]] for options in all_options if "column" in options]
    table = "table"
    while table in shaped:
        table += "_"
    return [*([table] if len(shaped) < len(all_options) else []), *shaped]


def _score(label: LabelPlan) -> tuple[str, str]:
    """Returns the score that suits the label, and why."""
    if label.others and label.standard_deviation is None:
        return _score_of_classes(label)
    if label.others:
        return (
            "mean_rmse",
            "The score that selects epochs, candidates and versions: the mean over the outputs of the typical error, "
            "in deviations of each label.",
        )
    if label.standard_deviation is not None:
        return (
            "rmse",
            "The score that selects epochs, candidates and versions: the typical error, in the label's units.",
        )
    counts = [num_rows for _, num_rows in label.classes]
    if label.is_ordinal:
        return "quadratic_kappa", (
            "The score that selects epochs, candidates and versions: the agreement beyond chance, in which an error "
            "counts by the square of its distance in ranks. `rank_mae` is the mean distance."
        )
    if label.tags is not None:
        return score_of_tags(label.tags)
    if label.sets is not None:
        return _score_of_sets(counts)
    if max(counts) < _SKEWED * min(counts):
        return "accuracy", "The score that selects epochs, candidates and versions. No class is rare."
    return "macro_f1", (
        f"The rarest class has {min(counts):,} rows and the largest {max(counts):,}: accuracy would hide how well the "
        "rare ones are found. Macro F1 counts all classes alike, and judges the decisions that the endpoint returns; "
        "`average_precision` would judge the order of rows by their probability."
    )


def _score_of_classes(label: LabelPlan) -> tuple[str, str]:
    """Returns the score that suits several labels with classes, and why."""
    skewed = [
        part
        for part in label.all_labels
        if max(num for _, num in part.classes) >= _SKEWED * min(num for _, num in part.classes)
    ]
    if not skewed:
        return "mean_accuracy", (
            "The score that selects epochs, candidates and versions: the mean over the labels of the accuracy of each. "
            "`exact_match` is the share of rows with all labels right."
        )
    counts = [num for _, num in skewed[0].classes]
    return "mean_balanced_accuracy", (
        f"The rarest class of {skewed[0].name} has {min(counts):,} rows and the largest {max(counts):,}: accuracy "
        "would hide how well the rare ones are found. The mean over the labels of the mean recall of their classes "
        "counts all classes alike. `exact_match` is the share of rows with all labels right."
    )


def _score_of_sets(counts: Sequence[int]) -> tuple[str, str]:
    """Returns the score that suits sets of labels with these numbers of rows, and why."""
    if min(counts) >= _MIN_ROWS_OF_RARE and max(counts) >= _SKEWED * min(counts):
        return "label_macro_f1", (
            f"The rarest label has {min(counts):,} rows and the most frequent {max(counts):,}: micro F1 would hide how "
            "well the rare ones are found. Macro F1 over labels counts all labels alike."
        )
    return "micro_f1", (
        "The score that selects epochs, candidates and versions: hits and errors of all labels together."
    )


def _as_written(spec: CandidateSpec) -> dict[str, Any]:
    """Returns a candidate as a person would write it."""
    options = spec.model_dump(exclude_defaults=True)
    if spec.prune is not None and options["prune"].keys() == {"ratio"}:
        options["prune"] = spec.prune.ratio
    return options


_BUDGET_COMMENT = (
    "A compressed candidate must be shown to be no worse than fp32 by more than this, by its held-out labels or by how "
    "few predictions change in all rows. It must also be smaller and no slower; otherwise fp32 stays."
)


def _budget_and_gates(plan: DraftPlan, score: str) -> tuple[CommentedMap, CommentedMap]:
    test_share = _split_shares(plan)[2]
    num_test = max(round(plan.num_usable_rows * test_share), 1)
    if plan.label.standard_deviation is not None:
        # Of several outputs in deviations: always predicting the means is wrong by one.
        return _for_regression(1.0 if plan.label.others else plan.label.standard_deviation, num_test)
    if plan.label.tags is not None:
        return _drop_budget(), draft_tag_gates(plan.label, num_test)
    share = plan.label.majority_share
    if plan.label.others:
        labels = plan.label.all_labels
        if score == "mean_balanced_accuracy":
            margin = max(_macro_f1_margin([num * test_share for _, num in label.classes]) for label in labels)
            shares = [1 / len(label.classes) for label in labels]
        else:
            margin = 8 / num_test
            shares = [label.majority_share for label in labels]
        majority = (
            f"Always predicting the most frequent class of each label has a {score.replace('_', ' ')} of "
            f"{sum(shares) / len(shares):.1%}."
        )
    elif score == "macro_f1":
        margin = _macro_f1_margin([num_rows * test_share for _, num_rows in plan.label.classes])
        share = 2 * share / (1 + share) / len(plan.label.classes)
        majority = f"Always predicting the most frequent class has a macro F1 of {share:.1%}."
    elif plan.label.sets is not None:
        margin = _macro_f1_margin([num_rows * test_share for _, num_rows in plan.label.classes])
        majority = "Always predicting the most frequent set of labels is the simplest baseline."
    else:
        margin = 8 / num_test
        majority = f"Always predicting the most frequent class is right for {share:.1%} of the rows."
    margin = min(max(math.ceil(100 * margin) / 100, 0.02), 1.0)
    gates = CommentedMap(beats="baseline", champion_drop=_short(margin))
    add_comment(
        gates,
        "beats",
        f"{majority} A version must be better than that beyond chance, and no other baseline better by more than "
        "champion_drop.",
        2,
    )
    if score in ("macro_f1", "mean_balanced_accuracy"):
        add_comment(gates, "champion_drop", "As much as equally good versions may differ on so few rows of a class.", 2)
    return _drop_budget(), gates


def _drop_budget() -> CommentedMap:
    budget = CommentedMap(accuracy_drop=0.01, objective="balanced")
    add_comment(budget, "accuracy_drop", _BUDGET_COMMENT, 2)
    return budget


def _macro_f1_margin(test_rows: Sequence[float]) -> float:
    """Returns how much macro F1 may differ by chance between equally good versions: the rows of rare classes decide."""
    shares = [min(_CLASS_NOISE / max(num_rows, 1), 0.5) for num_rows in test_rows]
    return math.hypot(*shares) / len(shares)


def _for_regression(standard_deviation: float, num_test: int) -> tuple[CommentedMap, CommentedMap]:
    margin = min(max(math.ceil(200 / math.sqrt(num_test)) / 100, 0.02), 1.0)
    budget = CommentedMap(error_rise=0.01, objective="balanced")
    add_comment(budget, "error_rise", _BUDGET_COMMENT, 2)
    gates = CommentedMap(beats="baseline", champion_rise=_short(margin))
    add_comment(
        gates,
        "beats",
        f"Always predicting the mean has an RMSE of {standard_deviation:.3g}. A version must be better than that "
        "beyond chance, and no other baseline better by more than champion_rise.",
        2,
    )
    return budget, gates


def _short(number: float) -> float | int:
    """Returns a number as `:g` writes it: a whole one without a point."""
    return int(number) if float(number).is_integer() else float(f"{number:g}")
