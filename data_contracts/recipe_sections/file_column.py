"""A recipe's `data.media`: columns with names of files, which become the pixels or samples of these files."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bloomery.data_contracts.documents.documents import Document

_OPTIONS = {"image": ("mode", "size"), "audio": ("sample_rate", "resample", "mono")}
_Count = Annotated[int, Field(ge=1)]


class FileColumn(Document):
    """Where the files of a column are, and how they are decoded, with the options of folders of such files."""

    kind: Literal["image", "audio"]
    folder: Annotated[
        str | None,
        Field(
            min_length=1,
            description="folder that the names start at: here, a .zip, in `s3://`, `hdfs://`, `https://` or `http://`; "
            "left out, the folder of the table, and names may be URLs",
        ),
    ] = None
    prefix: Annotated[str | None, Field(min_length=1, description="text at the start of names to leave out")] = None
    suffix: Annotated[str | None, Field(min_length=1, description="text to add to names without it, such as .jpg")] = (
        None
    )
    mode: Annotated[Literal["L", "RGB"] | None, Field(description="of images: grey (L) or colour (RGB)")] = None
    size: Annotated[
        tuple[_Count, _Count] | None,
        Field(description="height and width that images are resized to; left out, all must have one size"),
    ] = None
    sample_rate: Annotated[int | None, Field(ge=1, description="of recordings, in Hz")] = None
    resample: Annotated[
        bool | None, Field(description="whether to convert recordings of other sample rates; else they are malformed")
    ] = None
    mono: Annotated[bool | None, Field(description="whether to average the channels of recordings into one")] = None

    @model_validator(mode="after")
    def _has_options_of_its_kind(self) -> Self:
        for kind, names in _OPTIONS.items():
            misplaced = [name for name in names if getattr(self, name) is not None and kind != self.kind]
            if misplaced:
                raise ValueError(
                    f"{', '.join(misplaced)}: no meaning for files of kind {self.kind}; its options are "
                    f"{', '.join(_OPTIONS[self.kind])}"
                )
        if self.kind == "image" and self.mode is None:
            raise ValueError("mode: images need `L` (grey) or `RGB` (colour)")
        if self.kind == "audio" and self.sample_rate is None:
            raise ValueError("sample_rate: recordings need the rate in Hz that they have or are converted to")
        return self
