"""The inputs of a network as a recipe writes them, with reasons."""

from __future__ import annotations

from typing import Any, NamedTuple


class PlannedInput(NamedTuple):
    """An input as a recipe writes it, and the reason for its options."""

    options: dict[str, Any]
    reason: str


class InputPlan(NamedTuple):
    """The inputs of a network, and the columns that it does not read, each with the reason."""

    inputs: tuple[PlannedInput, ...]
    unused: dict[str, str]

    @property
    def columns(self) -> list[str]:
        """The columns that the network reads, each once."""
        all_options = [planned_input.options for planned_input in self.inputs]
        names = (name for options in all_options for name in options.get("columns", [options.get("column")]))
        return list(dict.fromkeys(names))

    @property
    def is_mixed(self) -> bool:
        """Whether there are several inputs, and not all of them are columns of single values."""
        return len(self.inputs) > 1 and not self.is_tabular

    @property
    def is_tabular(self) -> bool:
        return all(
            "columns" in planned_input.options and planned_input.options["kind"] != "series"
            for planned_input in self.inputs
        )
