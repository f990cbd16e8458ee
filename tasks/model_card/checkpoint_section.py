"""What the card says about the pretrained checkpoints that a network starts from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bloomery.data_contracts.records.checkpoint import Checkpoint
from bloomery.tasks.model_card.rendering import Section, Table


def checkpoint_sections(checkpoints: Sequence[Checkpoint]) -> Iterator[Section]:
    """Yields a section for each checkpoint: its reference, revision and licence, an excerpt of its card, its files."""
    for checkpoint in checkpoints:
        licence = checkpoint.licence or "not stated by its card"
        texts = [f"Training began with the weights of {checkpoint.name}. Licence: {licence}."]
        if checkpoint.card is not None:
            texts.append(f"Its own card begins: “{checkpoint.card}”")
        files = Table(("file", "sha256"), sorted(checkpoint.files.items()))
        yield Section("Pretrained checkpoint", texts=texts, tables=[files])
