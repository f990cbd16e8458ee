"""A linear map of the words of a text and of their pairs, which count by how rare they are in the training rows.

Source: Joulin et al. 2017, "Bag of Tricks for Efficient Text Classification" (summed vectors of words and of hashed
pairs); Salton & Buckley 1988, "Term-Weighting Approaches in Automatic Text Retrieval" (importances of terms).

Shapes: B rows, T tokens, I terms of a row (tokens and pairs), V terms, W width, K outputs.
"""

from __future__ import annotations

import torch
from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.architectures.fused import FusedNetwork, part_rows
from bloomery.models.networks.layers.padding import require_tokens, trim_common_padding
from bloomery.models.networks.token_bag_config import TokenBag

_MULTIPLIER = 92_821  # a prime, so that pairs spread evenly over their vectors
_MIN_ROWS = 2  # with a term: one in a single row could only recall that row
_EPSILON = 1e-6
_NUM_COUNTED_ROWS = 100_000  # training rows in which terms are counted


class TokenVectors(nn.Identity):
    """What each token adds to the sum, float32 (B, T, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding_dim = width


class TokenBagNetwork(nn.Module):
    """x float32 (B, T), token ids -> float32 (B, K).

    The vectors of a row's terms are summed by importance, and divided by the length of their importances, so that long
    and short texts have features of the same size. Training leaves out terms at random.
    """

    def __init__(self, config: TokenBag, layout: Layout, num_outputs: int) -> None:
        super().__init__()
        self._num_tokens = require_tokens(layout, "a token_bag reads tokens", "use another kind of network")
        self._num_pairs = config.pairs
        self.max_length = layout.shape[0]
        num_terms = self._num_tokens + config.pairs
        self.embedding = nn.Embedding(num_terms, config.width, padding_idx=0)
        nn.init.uniform_(self.embedding.weight, -1 / config.width, 1 / config.width)
        importances_V = torch.ones(num_terms)
        importances_V[0] = 0
        self.importances_V: torch.Tensor
        self.register_buffer("importances_V", importances_V)
        self.token_vectors = TokenVectors(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.width, num_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        terms = self._find_tokens_and_pairs(trim_common_padding(x) if self.training else x)
        importances = [self.dropout(self.importances_V[terms_BT]) for terms_BT in terms]
        # A pair counts for its first token.
        vectors_BTW = torch.stack(
            [
                self.embedding(terms_BT) * weights.unsqueeze(-1)
                for terms_BT, weights in zip(terms, importances, strict=True)
            ]
        ).sum(0)
        squares_B1 = torch.stack([weights.square().sum(1, keepdim=True) for weights in importances]).sum(0)
        sums_BW = self.token_vectors(vectors_BTW).sum(1)
        outputs_BK: torch.Tensor = self.head(sums_BW / (squares_B1 + _EPSILON).sqrt())
        return outputs_BK

    def find_terms(self, x: torch.Tensor) -> torch.Tensor:
        """terms_BI int64: the tokens, then for each one its pair with the next; 0 is padding, and no pair."""
        return torch.cat(self._find_tokens_and_pairs(x), dim=1)

    def _find_tokens_and_pairs(self, x: torch.Tensor) -> list[torch.Tensor]:
        tokens_BT = x.long().clamp(0, self._num_tokens - 1)
        if not self._num_pairs:
            return [tokens_BT]
        next_BT = torch.cat([tokens_BT[:, 1:], torch.zeros_like(tokens_BT[:, :1])], dim=1)
        pairs_BT = self._num_tokens + (tokens_BT * _MULTIPLIER + next_BT) % self._num_pairs
        return [tokens_BT, pairs_BT * ((tokens_BT > 0) & (next_BT > 0))]

    def token_embedding(self) -> TokenVectors:
        """The module whose outputs explanations attribute to tokens."""
        return self.token_vectors

    @torch.no_grad()
    def learn_importances(self, x: torch.Tensor) -> None:
        """Sets each term's importance to its inverse document frequency in training rows `x`; 0 in fewer than two."""
        terms_BI = self.find_terms(x)
        num_terms = len(self.importances_V)
        keys = (torch.arange(len(x)).unsqueeze(1) * num_terms + terms_BI).unique()  # each term once per row
        num_rows_V = torch.bincount(keys % num_terms, minlength=num_terms)
        importances_V = ((1 + len(x)) / (1 + num_rows_V)).log() + 1
        importances_V[num_rows_V < _MIN_ROWS] = 0
        importances_V[0] = 0
        self.importances_V.copy_(importances_V)


def learn_importances(network: nn.Module, x: torch.Tensor) -> None:
    """Sets the importances of all terms of a network, or of the branches of a fused one, from training rows `x`.

    Other networks stay. Of many rows, an even sample is counted.
    """
    x = x[:: max(len(x) // _NUM_COUNTED_ROWS, 1)]
    if isinstance(network, TokenBagNetwork):
        network.learn_importances(x)
    if isinstance(network, FusedNetwork):
        for branch, (part, start, stop) in zip(network.branches, network.slices, strict=True):
            if isinstance(branch, TokenBagNetwork):
                is_present_B = x[:, stop] > 0 if part.is_optional else slice(None)
                branch.learn_importances(part_rows(x, part, start, stop)[is_present_B])


def build(config: TokenBag, layout: Layout, num_outputs: int) -> TokenBagNetwork:
    return TokenBagNetwork(config, layout, num_outputs)
