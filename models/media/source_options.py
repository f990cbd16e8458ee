"""How a recipe's data source decodes its files."""

from __future__ import annotations

from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.data_contracts.recipe_sections.file_column import FileColumn
from bloomery.models.media.config import AudioDecoding, ImageDecoding


def image_decoding(data: DataSource) -> ImageDecoding:
    """Returns how the images of a source are decoded."""
    assert data.mode is not None  # DataSource requires it for images
    return ImageDecoding(mode=data.mode, size=data.size)


def audio_decoding(data: DataSource) -> AudioDecoding:
    """Returns how the recordings of a source are decoded."""
    return AudioDecoding(sample_rate=data.sample_rate, resample=bool(data.resample), mono=bool(data.mono))


def column_decoding(options: FileColumn) -> ImageDecoding | AudioDecoding:
    """Returns how the files are decoded that a column names."""
    if options.kind == "audio":
        return AudioDecoding(sample_rate=options.sample_rate, resample=bool(options.resample), mono=bool(options.mono))
    assert options.mode is not None  # FileColumn requires it for images
    return ImageDecoding(mode=options.mode, size=options.size)
