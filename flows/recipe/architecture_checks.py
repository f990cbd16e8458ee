"""Checks that pretrained networks of rare architectures can be built, and read the rows, before any row is read.

Such a network is built without its weights, on no device. That needs torch, so familiar ones are not built.
"""

from __future__ import annotations

from collections.abc import Iterator

from bloomery.data_contracts.errors import EngineMissing, RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.flows.recipe.pretrained_checks import check_pretrained
from bloomery.models.features.input_config import ImageInput, Input, TextInput
from bloomery.models.networks.config import Model
from bloomery.models.networks.pretrained_config import Pretrained

# Architectures that are compared with `transformers` in tests: they need not be built to know that they can be.
_FAMILIAR = (
    *("bert", "roberta", "xlm-roberta", "camembert", "mpnet", "electra", "distilbert", "modernbert", "gpt2", "llama"),
    *("mistral", "gemma3_text", "vit", "deit", "dinov2", "dinov2_with_registers", "resnet", "convnext", "swin"),
)
_NUM_TOKENS = 16  # of a vocabulary that is not fitted yet; layers do not depend on it


def check_readable(source: Input, model: Pretrained, place: str = "model") -> Iterator[str]:
    """Yields why a pretrained network cannot read the rows of an input; one of a rare architecture is built."""
    problems = list(check_pretrained(source, model, place))
    yield from problems
    model_type = (model.config or {}).get("model_type")
    if problems or model_type is None or model_type in _FAMILIAR:
        return
    layout = predict_layout(source, model)
    problem = None if layout is None else _find_problem(model, layout)
    if problem is not None:
        yield f"{place}.checkpoint: {problem.found}; required: {problem.required}; {problem.remedy}"


def predict_layout(source: Input, model: Model) -> Layout | None:
    """The layout of encoded texts and images, apart from the size of the vocabulary; None of other rows."""
    if isinstance(source, TextInput):
        num_tokens = _NUM_TOKENS
        if isinstance(model, Pretrained):
            num_tokens = int((model.config or {}).get("vocab_size") or 0) + 1
        return Layout(kind="tokens", shape=(source.length,), num_tokens=num_tokens)
    if isinstance(source, ImageInput):
        return Layout(kind="image", shape=source.input_shape)
    return None


def _find_problem(model: Pretrained, layout: Layout) -> RecipeInvalid | None:
    import torch

    from bloomery.models.networks.architectures.pretrained import build

    try:
        with torch.device("meta"):
            build(model.model_copy(update={"resolved": None}), layout, 2)
    except EngineMissing:
        return None  # reported where the network is trained, with the name of the package
    except RecipeInvalid as problem:
        return problem
    return None
