"""The tokens and classes that the rows of a network's weights belong to, by its encoder or its checkpoint's files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bloomery.data_contracts.documents.digests import digest_of_document, digest_of_file
from bloomery.data_contracts.records.output_units import max_classes
from bloomery.data_contracts.records.weight_transfer import WeightSource
from bloomery.tasks.infrastructure.settings import settings

if TYPE_CHECKING:
    from bloomery.models.features.encoder import Encoder
    from bloomery.models.training.transfer_learning import Names

_ENCODER, _TOKENIZER, _CONFIG = "encoder.json", "tokenizer.json", "config.json"


def find_source(uri: str) -> WeightSource | None:
    """The encoder at `uri`, or what states tokens and classes in that folder; None if there is nothing."""
    if not uri:
        return None
    path = settings().path(uri)
    if path.is_file():
        return WeightSource(uri=uri, digest=digest_of_file(path))
    if (path / _ENCODER).is_file():
        return WeightSource(uri=str(path / _ENCODER), digest=digest_of_file(path / _ENCODER))
    digests = {name: digest_of_file(path / name) for name in (_TOKENIZER, _CONFIG) if (path / name).is_file()}
    return WeightSource(uri=uri, digest=digest_of_document(digests)) if digests else None


def read_names(source: WeightSource | None) -> Names:
    """The tokens and classes of a source; what it does not state is unknown."""
    from bloomery.models.features.encoder import read_encoder
    from bloomery.models.training.transfer_learning import UNKNOWN, Names

    if source is None:
        return UNKNOWN
    path = settings().path(source.uri)
    if path.is_file():
        return names_of_encoder(read_encoder(path))
    tokens: tuple[str, ...] = ()
    if (path / _TOKENIZER).is_file():
        tokens = _tokens((path / _TOKENIZER).read_text(encoding="utf-8"))
    labels: Any = {}
    if (path / _CONFIG).is_file():
        labels = json.loads((path / _CONFIG).read_text(encoding="utf-8")).get("id2label") or {}
    return Names(tokens, tuple(str(labels[number]) for number in sorted(labels, key=int)))


def names_of_encoder(encoder: Encoder | None) -> Names:
    """The tokens of the encoder's text, if it has one, and its classes or the thresholds between them.

    Texts with tokens of their own each have no single vocabulary.
    """
    from bloomery.models.training.transfer_learning import UNKNOWN, Names, name_thresholds

    if encoder is None:
        return UNKNOWN
    tokenizers = {str(fitted.tokenizer) for fitted in encoder.fitted if hasattr(fitted, "tokenizer")}
    classes = tuple(map(str, encoder.classes))
    if encoder.features.task == "ordinal":
        classes = name_thresholds(classes)
    if encoder.class_outputs:  # each label has as many outputs as the one with the most classes
        width = max_classes(encoder.class_outputs)
        names = [[f"{output.name}: {name}" for name in output.classes] for output in encoder.class_outputs]
        classes = tuple(name for of_label in names for name in (*of_label, *[""] * (width - len(of_label))))
    return Names(_tokens(tokenizers.pop()) if len(tokenizers) == 1 else (), classes)


def _tokens(tokenizer: str) -> tuple[str, ...]:
    """The text of each token of a tokenizer in JSON; "" for an unused number."""
    from tokenizers import Tokenizer

    vocabulary = Tokenizer.from_str(tokenizer).get_vocab()
    texts = [""] * (max(vocabulary.values(), default=-1) + 1)
    for text, number in vocabulary.items():
        texts[number] = text
    return tuple(texts)
