"""The device that a version was measured on and is served by."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from bloomery.data_contracts.documents.documents import is_unset

GpuDevice = Literal["cuda", "tensorrt"]
# A field that is None for the processor. It is written only for a GPU, so that older keys and digests stay valid.
OptionalGpuDevice: TypeAlias = Annotated[GpuDevice | None, Field(exclude_if=is_unset)]
