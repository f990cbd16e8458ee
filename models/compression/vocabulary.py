"""Vocabulary trimming: only tokens of the training rows keep an embedding of their own.

The embedding is half of a small pretrained network in 8 bits, and most of its tokens never occur in one task's texts.
The tokenizer does not change: the network reads each other token as the most similar one, plus a coarse difference.

Shapes: B rows, T steps, V tokens of the tokenizer, K tokens that keep their embedding, W width.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from bloomery.models.compression.product_codes import fit_product_codes
from bloomery.models.networks.architectures.fused import FusedNetwork, part_rows
from bloomery.models.networks.architectures.pretrained import PretrainedNetwork
from bloomery.models.networks.blueprint import Blueprint, rebuild_network
from bloomery.models.networks.body_layers import find_position_table, keep_positions, measure_shape
from bloomery.models.networks.layers.trimmed_embedding import TrimmedEmbedding
from bloomery.models.networks.pretrained_config import Pretrained, without_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Marks of a word's start or continuation, in front of a token's letters.
_MARKS = ("##", "Ġ", "▁")
_LAST_LETTER = 0x17F  # of Latin scripts; also the last of those by which byte-level tokenizers write bytes
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # how sentencepiece writes them
_CHUNK = 2048  # tokens that are compared at once


class EssentialTokens(NamedTuple):
    """Ids of tokens that keep their embedding whether they occur or not."""

    special: frozenset[int]
    letters: frozenset[int]  # single letters and bytes, to which tokenizers reduce unknown words


def find_essential_tokens(tokenizer: str) -> EssentialTokens:
    """The essential tokens of a tokenizer in the JSON format of the library `tokenizers`."""
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_str(tokenizer)
    special = frozenset(number for number, token in loaded.get_added_tokens_decoder().items() if token.special)
    letters = frozenset(number for token, number in loaded.get_vocab().items() if _is_letter(token))
    return EssentialTokens(special, letters)


def _is_letter(token: str) -> bool:
    for mark in _MARKS:
        token = token.removeprefix(mark) or token
    return (len(token) == 1 and ord(token) <= _LAST_LETTER) or _BYTE.fullmatch(token) is not None


def select_tokens(x_BT: torch.Tensor, share: float, essential: EssentialTokens) -> torch.Tensor:
    """The ids int64 (K,), rising, that keep their embedding: the most frequent ones of the rows, and the essential.

    `x_BT` has the tokens' ids plus 1, and 0 for padding. The most frequent tokens together cover at least `share` of
    all tokens of these rows; with 1 these are all that occur.
    """
    counts_V = torch.bincount(x_BT.long().flatten())[1:].double()
    order_V = counts_V.argsort(descending=True, stable=True)
    covered_V = counts_V[order_V].cumsum(0)
    num_frequent = int((covered_V < share * covered_V[-1] * (1 - 1e-12)).sum()) + 1
    return torch.tensor(sorted({*order_V[:num_frequent].tolist(), *essential.special, *essential.letters}))


def trim_vocabulary(
    network: PretrainedNetwork, blueprint: Blueprint, kept_K: torch.Tensor, special: Collection[int] = ()
) -> tuple[nn.Module, Blueprint]:
    """A copy of `network` with embeddings of the tokens `kept_K` only, and its blueprint.

    Outputs for rows of these tokens stay the same. Each other token has the embedding of the kept token, which is not
    `special`, whose embedding has the largest cosine with its own, plus the difference in one byte per 16 values.
    Positions that rows of this layout never reach are removed, too.

    Source: Abdaoui et al. 2020, "Load What You Need: Smaller Versions of Multilingual BERT", section 3 (embeddings of
    the tokens that a language uses); Jégou et al. 2011, "Product Quantization for Nearest Neighbor Search".
    """
    assert isinstance(blueprint.config, Pretrained)
    trimmed = copy.deepcopy(network)
    original = trimmed.body.get_input_embeddings()
    assert isinstance(original, nn.Embedding)
    weight_VW = original.weight.data
    entries = TrimmedEmbedding(len(weight_VW), len(kept_K), weight_VW.shape[1])
    entries.entries.weight.data.copy_(weight_VW[kept_K])
    entries.tokens.copy_(kept_K)
    entries.rows.copy_(_nearest_rows(weight_VW, kept_K, special))
    is_removed_V = torch.ones(len(weight_VW), dtype=torch.bool)
    is_removed_V[kept_K] = False
    differences = (weight_VW - weight_VW[kept_K][entries.rows.long()])[is_removed_V]
    codes, codebook = fit_product_codes(differences)
    entries.codes[is_removed_V] = codes
    entries.codebook.copy_(codebook.flatten(0, 1))
    trimmed.body.set_input_embeddings(entries)
    _remove_positions(trimmed.body, blueprint.layout.shape[0])
    config = without_checkpoint(blueprint.config).model_copy(update={"shape": measure_shape(trimmed.body)})
    smaller = blueprint.model_copy(update={"config": config})
    return rebuild_network(smaller, trimmed), smaller


def _remove_positions(body: PreTrainedModel, length: int) -> None:
    """Remove the positions behind those of rows of `length` steps, in place."""
    entry = find_position_table(body)
    if entry is not None:
        padding = entry[1].padding_idx  # RoBERTa and its relatives number positions from the one after it
        keep_positions(body, length if padding is None else length + padding + 1)


def _nearest_rows(weight_VW: torch.Tensor, kept_K: torch.Tensor, special: Collection[int]) -> torch.Tensor:
    """int32 (V,): for each token the position among `kept_K` of itself or of the most similar token."""
    unit_VW = F.normalize(weight_VW, dim=1)
    is_ordinary_K = torch.tensor([token not in special for token in kept_K.tolist()])
    ordinary_K = is_ordinary_K.nonzero().flatten() if is_ordinary_K.any() else torch.arange(len(kept_K))
    unit_KW = unit_VW[kept_K[ordinary_K]]
    rows_V = torch.cat([ordinary_K[(part @ unit_KW.T).argmax(1)] for part in unit_VW.split(_CHUNK)])
    rows_V[kept_K] = torch.arange(len(kept_K))
    return rows_V.int()


def measure_removed_tokens(network: nn.Module, x: torch.Tensor) -> float:
    """The share of the tokens of the rows `x` that use the embedding of another token, also of mixed rows."""
    fused = next((module for module in network.modules() if isinstance(module, FusedNetwork)), None)
    readers = [(network, x)]
    if fused is not None:
        places = zip(fused.branches, fused.slices, strict=True)
        readers = [(branch, part_rows(x, *place)) for branch, place in places]
    num_removed, num_tokens = 0, 0
    for reader, rows in readers:
        embedding = next((module for module in reader.modules() if isinstance(module, TrimmedEmbedding)), None)
        if embedding is not None:
            ids = rows.long().flatten() - 1
            ids = ids[ids >= 0]
            num_removed += int((~torch.isin(ids, embedding.tokens)).sum())
            num_tokens += len(ids)
    return num_removed / num_tokens if num_tokens else 0.0
