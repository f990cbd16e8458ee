"""A Transformer decoder like GPT-2: predicts a label from the last step, or the next token.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3; Press & Wolf 2017,
"Using the Output Embedding to Improve Language Models" (the embedding is also the output layer of the next token).

Shapes: B rows, T steps, W width, V tokens of the vocabulary, K outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.config import Gpt
from bloomery.models.networks.layers.attention import (
    KeyValueCache,
    PositionEmbedding,
    TransformerBlock,
    attention_heads,
    init_weights,
)
from bloomery.models.networks.layers.padding import StepEmbedding, pool, sequence_length, trim_common_padding

PADDING = 0
_VOCABULARY_MULTIPLE = 64


class GptDecoder(nn.Module):
    """x float32 as in the layout -> the state of each step, float32 (B, T, W), independent of later steps.

    Padding is at the end, so it does not affect real steps.
    """

    def __init__(self, config: Gpt, layout: Layout) -> None:
        super().__init__()
        self.max_length = config.max_length or sequence_length(layout)
        self.steps = StepEmbedding(layout, config.width)
        self.positions = PositionEmbedding(self.max_length, config.width)
        self.dropout = nn.Dropout(config.dropout)
        hidden = max(round(config.width * config.feed_forward), 1)
        self.blocks = nn.ModuleList(
            TransformerBlock(config.width, attention_heads(config), hidden, config.dropout, is_causal=True)
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.apply(init_weights)
        # Residual projections are scaled down, so that the sum over all blocks does not grow with their number.
        for name, weight in self.blocks.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                nn.init.normal_(weight, std=0.02 / (2 * config.num_layers) ** 0.5)

    def forward(self, x: torch.Tensor, caches: Sequence[KeyValueCache] | None = None) -> torch.Tensor:
        """With `caches`, one per block, x contains only the steps after the cached ones."""
        h_BTW = self.embed(x, first=len(caches[0]) if caches else 0)
        for number, block in enumerate(self.blocks):
            h_BTW = block(h_BTW, cache=caches[number] if caches else None)
        return self.norm(h_BTW)

    def embed(self, x: torch.Tensor, first: int = 0) -> torch.Tensor:
        """The input of the first block, h_BTW; `first` is the position of the first step."""
        x_BTW, _ = self.steps(x)
        return self.dropout(self.positions(x_BTW, first=first))

    def next_token_logits(self, tokens_BT: torch.Tensor, caches: Sequence[KeyValueCache] | None = None) -> torch.Tensor:
        """logits_BTV float32 of the next token at each step."""
        if self.steps.embedding is None:
            raise ValueError("only a decoder of tokens predicts the next token")
        weight_VW = self.steps.embedding.weight
        h_BTW = self(tokens_BT, caches)
        if not h_BTW.is_cuda:
            return F.linear(h_BTW, weight_VW)
        # GPUs are slow at matrix products of odd sizes.
        rounded_VW = F.pad(weight_VW, (0, 0, 0, -len(weight_VW) % _VOCABULARY_MULTIPLE))
        return F.linear(h_BTW, rounded_VW)[..., : len(weight_VW)]


class GptClassifier(nn.Module):
    """x float32 as in the layout -> float32 (B, K), from the state of the last real step."""

    def __init__(self, config: Gpt, layout: Layout, num_outputs: int) -> None:
        super().__init__()
        self.decoder = GptDecoder(config, layout)
        self.max_length = self.decoder.max_length
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.width, num_outputs)
        self._has_padding = layout.kind == "tokens" or layout.is_padded
        init_weights(self.head)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and self._has_padding:
            x = trim_common_padding(x)
        return self._answer(self.decoder(x), x)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.decoder.blocks

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """The input of the first block, h_BTW."""
        return self.decoder.embed(x)

    def padding_mask(self, x: torch.Tensor) -> torch.Tensor | None:
        """None: padding is at the end, and causal attention does not see it."""
        return None

    def compute_outputs(self, h_BTW: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """float32 (B, K), from the output of the last block."""
        return self._answer(self.decoder.norm(h_BTW), x)

    def _answer(self, h_BTW: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(pool(h_BTW, self.decoder.steps.step_mask(x), "last")))


def next_token_loss(logits_BTV: torch.Tensor, tokens_BT: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy, in nats, over all tokens but the first of each row; padding is ignored.

    It is 0 if there is no such token.
    """
    # The last step has no target. It is padded, because slicing it off would copy all logits.
    targets_BT = F.pad(tokens_BT[:, 1:].long(), (0, 1), value=PADDING)
    loss = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=PADDING, reduction="sum")
    return loss / (targets_BT != PADDING).sum().clamp(min=1)


@torch.no_grad()
def generate(
    decoder: GptDecoder,
    prompt_BT: torch.Tensor,
    num_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Generates `num_tokens` tokens after each prompt: int64 (B, prompt + num_tokens).

    Tokens are sampled from the decoder, which is set to evaluation mode; with `top_k`, from the most likely ones. A
    temperature of 0 always takes the most likely token. Padding is never sampled. Keys and values are cached.

    Args:
        prompt_BT: token ids of equal length, without padding.

    Raises:
        ValueError: the prompt is empty or has padding, or the rows would exceed the decoder's maximum length.
    """
    length = prompt_BT.shape[1] + num_tokens
    if prompt_BT.shape[1] == 0 or bool((prompt_BT == PADDING).any()) or length > decoder.max_length:
        raise ValueError(
            f"the prompt has shape {list(prompt_BT.shape)}, for {num_tokens} more tokens; it needs at least one token, "
            f"no padding ({PADDING}), and {decoder.max_length} tokens at most together with the new ones"
        )
    decoder.eval()
    caches = [KeyValueCache() for _ in decoder.blocks]
    tokens_BT = new_BT = prompt_BT.long()
    for _ in range(num_tokens):
        logits_BV = decoder.next_token_logits(new_BT, caches)[:, -1].float()
        new_BT = _sample_token(logits_BV, temperature, top_k, generator)
        tokens_BT = torch.cat([tokens_BT, new_BT], dim=1)
    return tokens_BT


def _sample_token(
    logits_BV: torch.Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> torch.Tensor:
    logits_BV[:, PADDING] = -torch.inf
    if temperature == 0:
        return logits_BV.argmax(1, keepdim=True)
    if top_k is not None and top_k < logits_BV.shape[1]:
        min_logit_B1 = logits_BV.topk(top_k, dim=1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < min_logit_B1, -torch.inf)
    return torch.multinomial((logits_BV / temperature).softmax(1), 1, generator=generator)


def build(config: Gpt, layout: Layout, num_outputs: int) -> GptClassifier:
    return GptClassifier(config, layout, num_outputs)
