"""The recipe's `serve` section: how versions are served."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bloomery.data_contracts.documents.documents import Document


class Serve(Document):
    """The device that the endpoint computes on. Candidates are measured on the same."""

    device: Annotated[
        Literal["auto", "cpu", "cuda", "tensorrt"],
        Field(description="auto: cuda, if this machine has an NVIDIA GPU and onnxruntime-gpu; otherwise cpu"),
    ] = "auto"
