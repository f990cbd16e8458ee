"""Checks that the columns of `data.media` suit the contract and the inputs that read them."""

from __future__ import annotations

from collections.abc import Iterator

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.data_contracts.recipe_sections.file_column import FileColumn
from bloomery.models.features.config import Features
from bloomery.models.features.input_config import AudioInput, ImageInput

_CHANNELS = {"L": 1, "RGB": 3}


def check_file_columns(features: Features, data: DataSource, contract: Contract) -> Iterator[str]:
    """Yields what keeps the values of decoded files from the rows, or from an input."""
    inputs = {source.columns[0]: source for source in features.inputs if isinstance(source, ImageInput | AudioInput)}
    for name, options in (data.media or {}).items():
        column = contract.column(name)
        if column is None:
            yield f"data.media: contract {contract.name} has no column {name!r}"
        elif column.logical_type != "array":
            yield f"data.media: column {name!r} becomes an array of numbers, but the contract has {column.logical_type}"
        if name in inputs:
            yield from _check_input(inputs[name], options)


def _check_input(source: ImageInput | AudioInput, options: FileColumn) -> Iterator[str]:
    where = f"features.inputs: column {source.columns[0]!r}"
    if source.kind != options.kind:
        yield f"{where} is read as {source.kind}, but data.media has files of kind {options.kind}"
    elif isinstance(source, AudioInput):
        if source.sample_rate != options.sample_rate:
            yield f"{where} has {source.sample_rate} samples per second, but data.media has {options.sample_rate}"
    elif options.mode is not None:
        channels, height, width = source.shape
        if channels != _CHANNELS[options.mode]:
            yield f"{where} has {channels} channel(s), but data.media has mode {options.mode}"
        if options.size not in (None, (height, width)):
            yield f"{where} has the size {[height, width]}, but data.media has {list(options.size or ())}"
