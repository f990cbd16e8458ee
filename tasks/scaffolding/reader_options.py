"""How a source is read: what a recipe has to state and nobody has stated yet, guessed once and written down."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from bloomery.data_contracts.errors import DataMissing, RecipeInvalid
from bloomery.data_contracts.recipe_sections.data_source import Data, Origin
from bloomery.tasks.ingest import locations
from bloomery.tasks.ingest.readers.media import read_media
from bloomery.tasks.scaffolding.csv_dialect import infer_dialect
from bloomery.tasks.scaffolding.format_detection import detect_format, find_label_file, read_image_shape

_PARTS = ("train", "val", "test")
_LARGEST_SIDE = 64  # pixels; larger images are made smaller when they are read


class UserOptions(NamedTuple):
    """What the user has said of the source; None is left to be guessed."""

    format: str | None = None
    delimiter: str | None = None
    columns: tuple[str, ...] | None = None
    path_pattern: str | None = None
    query: str | None = None
    uri_variable: str | None = None


class ReaderOptions(NamedTuple):
    """The options of `data`; why they are as they are; and the sizes of an array, where the source tells them."""

    data: Data
    notes: dict[str, str]
    shape: tuple[int, ...]


def infer_reader_options(sources: Sequence[str], label: str, stated: UserOptions) -> ReaderOptions:
    """How to read `sources`: one path, or several as `train=PATH`, `test=PATH`.

    Raises:
        DataMissing: there is no such source, or nothing tells what it is.
        RecipeInvalid: what was stated does not fit the source.
    """
    parts = _parts(sources)
    paths = [path for _, path in parts]
    kind = stated.format or detect_format(paths[0])
    origins: dict[str, Any]
    notes: dict[str, str] = {}
    if parts[0][0] is None:
        origins = {"source": paths[0], **_labels(paths[0], kind)}
    else:
        origins = {"sources": [{"source": path, "part": part, **_labels(path, kind)} for part, path in parts]}
    options = {**origins, **_format(paths[0], kind), **_said(stated)}
    shape: tuple[int, ...] = ()
    if kind == "csv":
        found = [place for path in paths for place in locations.find_files(Data(source=path, format="csv"), path)]
        dialect = infer_dialect(found, label, stated.delimiter, stated.columns)
        options |= dialect.options
        notes |= dialect.notes
    elif kind == "images":
        found_images, shape = _images(paths)
        options |= found_images
    elif kind == "audio":
        options["mono"] = True
    elif kind == "text":
        options["unit"] = "file"
    elif kind == "idx":
        shape = read_image_shape(paths[0])
    if stated.columns is not None and kind != "csv":
        raise _no_meaning("--columns", kind)
    if stated.delimiter is not None and kind != "csv":
        raise _no_meaning("--delimiter", kind)
    return ReaderOptions(_read(options), notes, shape)


def recipe_options(data: Data) -> dict[str, Any]:
    """The options as a recipe states them."""
    return data.model_dump(mode="json", exclude_none=True)


def _read(options: dict[str, Any]) -> Data:
    try:
        return Data.model_validate(options)
    except ValidationError as failure:
        told = "; ".join(str(one["msg"]).removeprefix("Value error, ") for one in failure.errors())
        raise RecipeInvalid(
            f"the source cannot be read as it is described: {told}",
            required="a source and options that fit each other",
            where="the command line",
            remedy="mend --data, --format, --delimiter, --columns or --path-pattern",
        ) from failure


def _parts(sources: Sequence[str]) -> list[tuple[str | None, str]]:
    cut = [source.partition("=") for source in sources]
    parts = [(name, path) for name, sign, path in cut if sign and path and name in _PARTS]
    if len(parts) == len(sources) and {"train", "test"} <= {name for name, _ in parts}:
        return list(parts)
    if parts or len(sources) != 1:
        raise RecipeInvalid(
            f"the sources are {', '.join(sources)}",
            required="one source; or several, each as train=PATH, val=PATH or test=PATH, with at least train and test",
            where="--data",
            remedy="name the part of each source; or put files of one kind into one folder",
        )
    return [(None, sources[0])]


def _labels(path: str, kind: str) -> dict[str, str]:
    beside = find_label_file(path) if kind == "idx" else None
    return {"labels": beside} if beside else {}


def _format(path: str, kind: str) -> dict[str, str]:
    """The format, where neither suffix nor scheme says it."""
    minimal = {"mode": "L"} if kind == "images" else {}
    with contextlib.suppress(ValidationError):
        if Data.model_validate({"source": path, **minimal}).kind == kind:
            return {}
    return {} if kind in ("sql", "sklearn", "delta", "iceberg", "hive") else {"format": kind}


def _said(stated: UserOptions) -> dict[str, str]:
    said = {"path_pattern": stated.path_pattern, "query": stated.query, "uri_variable": stated.uri_variable}
    return {name: value for name, value in said.items() if value is not None}


def _images(paths: Sequence[str]) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The mode and, where images are large or of several sizes, the size that all are brought to; and their shape."""
    from PIL import Image

    modes: set[str] = set()
    sizes: Counter[tuple[int, int]] = Counter()
    for path in paths:
        data = Data(source=path, format="images", mode="L")
        for medium in read_media(data, Origin(source=path)):
            try:
                with Image.open(io.BytesIO(medium.content)) as image:
                    modes.add(image.mode)
                    sizes[image.height, image.width] += 1
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                continue  # what is no image is put aside when it is read
    if not sizes:
        raise DataMissing(
            f"there is no image in {', '.join(paths)}",
            required="files that Pillow reads, such as PNG and JPEG",
            where="--data",
            remedy="mend the path",
        )
    mode = "L" if modes <= {"1", "L", "LA"} else "RGB"
    (height, width), _ = min(sizes.items(), key=lambda one: (-one[1], one[0]))
    largest = max(height, width)
    channels = 1 if mode == "L" else 3
    if len(sizes) == 1 and largest <= _LARGEST_SIDE:
        return {"mode": mode}, (channels, height, width)
    ratio = min(_LARGEST_SIDE / largest, 1.0)
    height, width = max(round(height * ratio), 1), max(round(width * ratio), 1)
    return {"mode": mode, "size": [height, width]}, (channels, height, width)


def _no_meaning(option: str, kind: str) -> RecipeInvalid:
    return RecipeInvalid(
        f"{option} has no meaning for a source of format {kind}",
        required="options that fit the source",
        where=option,
        remedy="leave it out, or state --format csv",
    )
