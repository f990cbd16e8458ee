"""Infers how a data set of Hugging Face is read: its splits, and the size of its images or rate of its recordings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.ingest.readers.application_files.huggingface import (
    DatasetSplit,
    has_labels,
    list_splits,
    media_columns,
    read_media_column,
)
from bloomery.tasks.ingest.readers.media.media_files import MediaFile
from bloomery.tasks.scaffolding.source_options.media_options import (
    ANY_TARGET,
    MediaTarget,
    infer_audio_options,
    infer_image_options,
)
from bloomery.tasks.scaffolding.source_options.split_names import SPLIT_NAMES, in_split_order


class ApplicationOptions(NamedTuple):
    """The options of `data` with their reasons, and the sizes of an array. `origins` replaces one source by several."""

    options: dict[str, Any]
    notes: dict[str, str]
    array_shape: tuple[int, ...] = ()
    origins: tuple[dict[str, Any], ...] = ()


def infer_dataset_options(
    paths: Sequence[str], label: str, stated: Mapping[str, Any], target: MediaTarget = ANY_TARGET
) -> ApplicationOptions:
    """Returns the sources for the splits of a data set, and the options that decode its images or recordings.

    A split of which no row has a label, as those of competitions have, is not read.

    Raises:
        DataMissing: there is no file, or there are several splits and none has rows to train with.
    """
    splits = list_splits(paths[0]) if len(paths) == 1 and "files" not in stated else []
    options: dict[str, Any] = {"format": "huggingface"}
    notes: dict[str, str] = {}
    origins: tuple[dict[str, Any], ...] = ()
    sources: list[dict[str, Any]] = [{"source": path} for path in paths]
    if splits:
        labelled = [split for split in splits if has_labels(_data_source(split), label)] or splits
        by_part = _assign_parts(labelled)
        ignored = [
            split.name + ("" if split in labelled else " (no row has a label)")
            for split in splits
            if split not in by_part.values()
        ]
        note = f"the data set has these splits; not read: {', '.join(ignored)}" if ignored else "they are its splits"
        sources = [_origin(split) for split in by_part.values()]
        if len(by_part) == 1:
            options |= sources[0]
            notes["source"] = note
        else:
            origins = tuple({**origin, "part": part} for origin, part in zip(sources, by_part, strict=True))
            notes["sources"] = note
    media = _infer_media([DataSource(format="huggingface", **source) for source in sources], target)
    return ApplicationOptions({**options, **media.options}, {**notes, **media.notes}, media.array_shape, origins)


def _origin(split: DatasetSplit) -> dict[str, Any]:
    return {"source": split.folder} | ({} if split.files is None else {"files": split.files})


def _data_source(split: DatasetSplit) -> DataSource:
    return DataSource(format="huggingface", **_origin(split))


def _assign_parts(splits: Sequence[DatasetSplit]) -> dict[str, DatasetSplit]:
    """Returns the splits by what they are for: train and test, perhaps val; or train alone.

    Without a split for tests, that for validation is it.
    """
    by_part: dict[str, DatasetSplit] = {}
    for split in splits:
        part = SPLIT_NAMES.get(split.name)
        if part is not None:
            by_part.setdefault(part, split)
    if "test" not in by_part and "val" in by_part:
        by_part["test"] = by_part.pop("val")
    if "train" not in by_part and len(splits) > 1:
        names = ", ".join(split.name for split in splits)
        raise DataMissing(
            f"the data set has the splits {names}",
            required="a split train",
            where="--data",
            remedy="name each split: --data train=FOLDER/NAME --data test=FOLDER/NAME",
        )
    if "train" not in by_part:
        return {"train": splits[0]}
    return in_split_order(by_part)


def _infer_media(sources: Sequence[DataSource], target: MediaTarget) -> ApplicationOptions:
    """Returns how the images, or else the recordings, of a data set are decoded."""
    columns = media_columns(sources[0])
    images = [name for name, kind in columns.items() if kind == "image"]
    if images:
        files = _read_files(sources, images[0])
        return ApplicationOptions(*infer_image_options(files, f"column {images[0]}", target))
    if columns:
        return ApplicationOptions(*infer_audio_options(_read_files(sources, next(iter(columns))), target))
    return ApplicationOptions({}, {})


def _read_files(sources: Sequence[DataSource], column: str) -> Iterator[MediaFile]:
    for source in sources:
        yield from read_media_column(source, column)
