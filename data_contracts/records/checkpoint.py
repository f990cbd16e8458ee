"""A pretrained checkpoint: its files with their digests, and what its author says about it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field

from bloomery.data_contracts.documents.digests import digest_of_document
from bloomery.data_contracts.documents.documents import Document, is_empty

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"  # of weights in several files
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_FILES = (TOKENIZER_FILE, "tokenizer_config.json", "special_tokens_map.json")
POOLING_FILE = "1_Pooling/config.json"  # of sentence-transformers
MODULES_FILE = "modules.json"  # of sentence-transformers: the steps from a text to its vector
PROMPTS_FILE = "config_sentence_transformers.json"  # what it puts before a text
TEXTS_FILE = "sentence_bert_config.json"  # whether it lowers the case of a text
PREPROCESSOR_FILE = "preprocessor_config.json"


class Checkpoint(Document):
    """A folder in the layout of `transformers`, as it was when the recipe was read."""

    reference: Annotated[str, Field(description="as the recipe has it")]
    revision: Annotated[
        str | None, Field(description="commit of the hub, or distribution and version of a package")
    ] = None
    folder: Annotated[
        str,
        Field(description="absolute path on this machine; empty in a stored encoder or network", exclude_if=is_empty),
    ] = ""
    files: Annotated[dict[str, str], Field(description="sha256 of each file, by its name in the folder")]
    licence: Annotated[str | None, Field(description="by its model card or its package")] = None
    card: Annotated[str | None, Field(description="the first paragraph of its model card")] = None

    def identity(self) -> Any:
        """The digests: equal files are one checkpoint, wherever they come from."""
        return {"files": dict(sorted(self.files.items()))}

    @property
    def digest(self) -> str:
        """The digest of all files."""
        return digest_of_document(self.identity())

    @property
    def weights(self) -> tuple[str, ...]:
        """The names of the files with weights."""
        return tuple(name for name in self.files if name.endswith(".safetensors"))

    @property
    def name(self) -> str:
        """The reference with the revision, for people."""
        return self.reference if self.revision is None else f"{self.reference} ({self.revision})"

    @property
    def description(self) -> str:
        """Its name, its licence and the beginning of each file's sha256, for people."""
        licence = "no licence stated" if self.licence is None else f"licence {self.licence}"
        files = ", ".join(f"{name} {digest[:12]}" for name, digest in sorted(self.files.items()))
        return f"{self.name}, {licence}: {files}"

    def path(self, name: str) -> Path:
        """The path of one of its files."""
        return Path(self.folder) / name

    def select(self, names: Iterable[str]) -> Self:
        """The same checkpoint with only the files of these names."""
        kept = set(names)
        return self.model_copy(update={"files": {name: sha for name, sha in self.files.items() if name in kept}})

    def without_folder(self) -> Self:
        """The same checkpoint without its path, as an encoder or a network stores it."""
        return self.model_copy(update={"folder": ""})


def checkpoint_tags(checkpoints: Iterable[Checkpoint]) -> dict[str, str]:
    """What MLflow's run and version say about the checkpoints that a network starts from; nothing if there are none."""
    tags: dict[str, str] = {}
    for number, checkpoint in enumerate(checkpoints):
        prefix = "checkpoint" if number == 0 else f"checkpoint.{number + 1}"
        tags |= {prefix: checkpoint.name, f"{prefix}.sha256": checkpoint.digest}
        if checkpoint.licence is not None:
            tags[f"{prefix}.licence"] = checkpoint.licence
    return tags
