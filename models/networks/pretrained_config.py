"""The network `pretrained` of a recipe: the body of a checkpoint of `transformers`, and a new head."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from bloomery.data_contracts.documents.documents import Document, is_unset
from bloomery.data_contracts.records.checkpoint import Checkpoint
from bloomery.models.networks.pruned_shape import PrunedShape

# Networks of `transformers` for text that compute other states for a row when padding is added to it: they ignore the
# mask of real tokens, or mix neighbouring or all steps besides attention.
PADDING_SENSITIVE = ("fnet", "convbert", "nystromformer", "yoso")

RANDOM_STATES = ("vit_mae",)  # networks that leave out random parts of each row, after the training as well
ANY_SIZE = ("dinov2", "dinov2_with_registers")  # networks with positions that read images of other sizes


class Pretrained(Document):
    """The body of a pretrained checkpoint, pooled to one vector per row, and a new linear head.

    The body keeps the dropout of its own configuration; `dropout` is that of the pooled vector. Its rows are encoded by
    the tokenizer or the preprocessing of the same checkpoint.
    """

    kind: Literal["pretrained"]
    checkpoint: Annotated[
        str, Field(min_length=1, description="a folder, hf://org/name@revision, org/name in the cache, or package:NAME")
    ]
    pooling: Annotated[
        Literal["auto", "mean", "cls", "last"],
        Field(description="auto: that of sentence-transformers if stated, last of a decoder, otherwise mean"),
    ] = "auto"
    dropout: Annotated[float, Field(ge=0, lt=1, description="of the pooled vector")] = 0.1
    gradient_checkpointing: Annotated[
        bool, Field(description="recompute the layers in the backward pass: less memory, about 30% more time")
    ] = False
    resolved: Annotated[
        Checkpoint | None, Field(exclude_if=is_unset, description="set by Bloomery: the files of the checkpoint")
    ] = None
    config: Annotated[
        dict[str, Any] | None, Field(exclude_if=is_unset, description="set by Bloomery: the checkpoint's config.json")
    ] = None
    shape: Annotated[
        PrunedShape | None, Field(exclude_if=is_unset, description="set by Bloomery: what compression has left")
    ] = None

    def identity(self) -> Any:
        """The checkpoint counts by its files, not by its name and its folder."""
        options = self.model_dump(mode="json", exclude={"checkpoint", "resolved"})
        return options if self.resolved is None else options | {"resolved": self.resolved.identity()}


def without_checkpoint(config: Pretrained) -> Pretrained:
    """The config of a trained network, which no longer needs the checkpoint's files, but names them."""
    resolved = None if config.resolved is None else config.resolved.without_folder()
    return config.model_copy(update={"resolved": resolved})
