"""The columns of a version that its endpoint takes as files, if the training rows were decoded from files."""

from __future__ import annotations

from typing import Literal

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.models.features.config import Features
from bloomery.models.features.input_config import AudioInput, ImageInput
from bloomery.models.media.config import AudioDecoding, ImageDecoding, MediaColumn
from bloomery.models.media.source_options import audio_decoding, column_decoding, image_decoding

_MODES: dict[int, Literal["L", "RGB"]] = {1: "L", 3: "RGB"}  # by the number of channels


def media_columns(data: DataSource, features: Features, contract: Contract) -> list[MediaColumn]:
    """Returns the columns with images or recordings that the model reads, and how they are decoded.

    IDX and NumPy files hold pixels as images do, so an image of the same size is decoded to them.
    """
    columns = []
    for source in features.inputs:
        decoding: ImageDecoding | AudioDecoding | None = None
        options = (data.media or {}).get(source.columns[0])
        if options is not None:
            decoding = column_decoding(options)
        elif isinstance(source, ImageInput) and (data.kind == "images" or data.has_media):
            decoding = image_decoding(data)
        elif isinstance(source, ImageInput) and data.kind in ("idx", "numpy") and _has_bytes(source.column, contract):
            mode = _MODES.get(source.shape[0])
            decoding = None if mode is None else ImageDecoding(mode=mode)
        elif isinstance(source, AudioInput) and (data.kind == "audio" or data.has_media):
            decoding = audio_decoding(data)
            if decoding.sample_rate is None:  # the recordings have one rate, which the recipe's input states
                decoding = decoding.model_copy(update={"sample_rate": source.sample_rate})
        if decoding is not None:
            shape = source.shape if isinstance(source, ImageInput) else None
            columns.append(MediaColumn(column=source.columns[0], decoding=decoding, shape=shape))
    return columns


def _has_bytes(name: str, contract: Contract) -> bool:
    column = contract.column(name)
    return column is not None and column.items is not None and column.items.arrow_type == "uint8"
