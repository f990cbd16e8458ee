"""A recipe drafted from a plan: every guess is stated in it, with a comment, and can be changed."""

from __future__ import annotations

import math
from typing import Any

from bloomery.models.compression.config import CandidateSpec, default_candidates
from bloomery.tasks.scaffolding.draft_planning import DraftPlan
from bloomery.tasks.scaffolding.yaml_writer import comment, entry, flow

Lines = list[str]
_ROWS_SEEN = 500_000  # rows that a perceptron is shown in all epochs together: a minute or so on two cores
_PIXELS_SEEN = 100_000_000  # the same for a convolutional network, by pixels
_TOKENS_SEEN = 8_000_000  # the same for a Transformer, by tokens


def draft_recipe(name: str, plan: DraftPlan, names: dict[str, str], data: dict[str, Any], notes: dict[str, str]) -> str:
    """The text of the recipe file. `data` are the options that read the source, `notes` the reasons for some."""
    label = plan.label
    lines = [
        *comment(f"Drafted by `bloomery init`. Run it with `bloomery run {name}.yaml`; every guess may be changed."),
        *entry("name", name),
        *entry("description", f"{'Which' if label.classes else 'How much'} {names[label.name]} does a row have?"),
        "",
        *_data(plan, names, data, notes),
        *entry("contract", f"{name}.odcs.yaml"),
        "",
        *_features(plan, names),
        *_split(plan),
        "",
        *_model(plan),
        "",
        *_gates(plan),
    ]
    return "\n".join(lines) + "\n"


def _data(plan: DraftPlan, names: dict[str, str], data: dict[str, Any], notes: dict[str, str]) -> Lines:
    lines = ["data:"]
    for option, value in data.items():
        lines += comment(f"Guessed: {notes[option]}.", 2) if option in notes else []
        if option == "sources":
            lines += ["  sources:", *(f"    - {flow(one)}" for one in value)]
        else:
            lines += entry(option, value, 2)
    if plan.profile.missing:
        lines += comment("Texts that mean that a value is missing, seen in these rows.", 2)
        lines += entry("missing", ["", *plan.profile.missing], 2)
    if plan.key.is_added:
        lines += comment("No column tells rows apart, so this one is added: the row's number, from 0.", 2)
        lines += entry("row_id", plan.key.name, 2)
    renamed = {name: new for name, new in names.items() if name != new}
    if renamed:
        lines += comment("A contract's names are letters, digits and underscores, and differ in more than capitals.", 2)
        lines.append("  rename:")
        for name, new in renamed.items():
            lines += entry(name, new, 4)
    return lines


def _features(plan: DraftPlan, names: dict[str, str]) -> Lines:
    lines = ["features:", *entry("key", names.get(plan.key.name, plan.key.name), 2)]
    lines += entry("label", names[plan.label.name], 2)
    if plan.label.task == "regression":
        lines += [*comment("The label is a quantity, so the answer is a figure.", 2), "  task: regression"]
    lines.append("  inputs:")
    for one in plan.inputs.planned:
        options = dict(one.options)
        if "column" in options:
            options["column"] = names[options["column"]]
        columns = [names[name] for name in options.pop("columns", [])]
        first = f"    - kind: {options.pop('kind')}"
        lines += [*comment(f"{one.why[0].upper()}{one.why[1:]}.", 4), first]
        lines += entry("columns", columns, 6) if columns else []
        for option, value in options.items():
            lines += entry(option, value, 6)
    left_out = {name: why for name, why in plan.inputs.left_out.items() if name not in (plan.label.name, plan.key.name)}
    if left_out:
        lines += comment("Not read:", 2)
        for name, why in left_out.items():
            lines += comment(f"  {names[name]}: {why}", 2)
    return lines


def _split(plan: DraftPlan) -> Lines:
    if plan.keeps_copies:
        lines = comment(
            "Most rows are copies of others, or are too wide to compare: copies stay, even in two parts.",
            2,
        )
        lines += ["  deduplicate: false"]
    else:
        lines = [*comment("Of rows that are equal in inputs and label, one stays.", 2), "  deduplicate: true"]
    split: dict[str, Any] = {"by": "given", "column": "part"} if plan.part else {"by": "key"}
    split |= dict(zip(("train", "val", "test"), _shares(plan), strict=True))
    split |= {"duplicates": "allow"} if plan.keeps_copies else {}
    has_times = any(column.kind in ("date", "timestamp") for column in plan.profile.columns)
    if plan.part is None:
        lines += comment("Each row's part is a hash of its key.", 2)
        if has_times:
            lines += comment("If the model will answer for later rows, split by time instead: by: time, column: …", 2)
    return [*lines, f"  split: {flow(split)}"]


def _shares(plan: DraftPlan) -> tuple[float, float, float]:
    return (0.6, 0.2, 0.2) if plan.num_rows < 1_000 else (0.7, 0.1, 0.2)


def _model(plan: DraftPlan) -> Lines:
    num_rows = max(round(plan.num_rows * _shares(plan)[0]), 1)
    batch_size = next(
        (size for most, size in ((500, 16), (2_000, 32), (20_000, 128), (200_000, 256)) if num_rows < most), 1024
    )
    if plan.inputs.is_flat:
        hidden = [32] if num_rows < 1_000 else [64, 32] if num_rows < 10_000 else [128, 64]
        epochs = min(max(_ROWS_SEEN // num_rows, 3), 60)
        model = ["  kind: mlp", f"  hidden: {hidden}", f"  dropout: {0.3 if len(hidden) > 1 else 0.1}"]
    elif (options := plan.inputs.planned[0].options)["kind"] == "text":
        epochs = min(max(_TOKENS_SEEN // (num_rows * options["length"]), 3), 20)
        model = ["  kind: transformer", "  width: 128", "  num_layers: 2", "  num_heads: 4"]
    else:
        pixels = math.prod(options.get("resize", options.get("shape", [40, 60])[-2:]))
        epochs = min(max(_PIXELS_SEEN // (num_rows * pixels), 3), 30)
        model = ["  kind: cnn", "  channels: [16, 32]", "  hidden: 64"]
    kind = model[0].removeprefix("  kind: ")
    return [
        *comment(f"Of a size for some {num_rows:,} rows to learn from.", 0),
        "model:",
        *model,
        "",
        "training:",
        f"  epochs: {epochs}",
        f"  batch_size: {batch_size}",
        "  seed: 0",
        "",
        "compression:",
        "  candidates:",
        *(f"    - {flow(_as_stated(one))}" for one in default_candidates(kind)),
        f"  fine_tune: {{epochs: {max(epochs // 3, 2)}, batch_size: {batch_size}, learning_rate: 0.001}}",
    ]


def _gates(plan: DraftPlan) -> Lines:
    num_test = max(round(plan.num_rows * _shares(plan)[2]), 1)
    if plan.label.deviation is not None:
        return _gates_of_figures(plan.label.deviation, num_test)
    margin = min(max(math.ceil(800 / num_test) / 100, 0.02), 1.0)
    known = 384 / (num_test + 3.84)
    return [
        "budget:",
        *comment(
            f"With some {num_test:,} held-out rows, a model that answers exactly like fp32 is known to be at most "
            f"{known:.2g} points worse. The margin must be larger than that.",
            2,
        ),
        f"  accuracy_drop: {margin:g}",
        "  objective: size",
        "",
        "gates:",
        *comment(
            f"Always answering with the most frequent class is right for {plan.label.majority:.1%} of the rows: "
            "a model for use should be required to beat that.",
            2,
        ),
        "  min_accuracy: 0",
        f"  champion_drop: {margin:g}",
    ]


def _gates_of_figures(deviation: float, num_test: int) -> Lines:
    margin = min(max(math.ceil(200 / math.sqrt(num_test)) / 100, 0.02), 1.0)
    return [
        "budget:",
        *comment(
            "The RMSE of a candidate may be larger than that of fp32 by this share, as far as the held-out rows, some "
            f"{num_test:,}, tell.",
            2,
        ),
        f"  error_rise: {margin:g}",
        "  objective: size",
        "",
        "gates:",
        *comment(
            f"Always answering with the mean has an RMSE of {deviation:.3g}: a model for use should be required to "
            "beat that.",
            2,
        ),
        f"  # max_error: {deviation:.3g}",
        f"  champion_rise: {margin:g}",
    ]


def _as_stated(spec: CandidateSpec) -> dict[str, Any]:
    """A candidate as a person would write it."""
    stated = spec.model_dump(exclude_defaults=True)
    if spec.prune is not None and stated["prune"].keys() == {"share"}:
        stated["prune"] = spec.prune.share
    return stated
