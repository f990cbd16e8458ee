"""A Transformer decoder in the manner of GPT-2: it answers from the last step, or tells which token comes next.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3; Press & Wolf 2017,
"Using the Output Embedding to Improve Language Models" (the embedding is also the head for the next token).

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
    """x float32 as the layout has it -> the state of each step, float32 (B, T, W); none depends on a later step.

    Padding is behind, so the steps before it do not feel it.
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
        # What each block adds is drawn smaller, so that the sum over all blocks does not grow with their number.
        for name, weight in self.blocks.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                nn.init.normal_(weight, std=0.02 / (2 * config.num_layers) ** 0.5)

    def forward(self, x: torch.Tensor, pasts: Sequence[KeyValueCache] | None = None) -> torch.Tensor:
        """With `pasts`, one for each block, x holds only the steps that come after those remembered there."""
        h_BTW = self.embed(x, first=len(pasts[0]) if pasts else 0)
        for number, block in enumerate(self.blocks):
            h_BTW = block(h_BTW, past=pasts[number] if pasts else None)
        return self.norm(h_BTW)

    def embed(self, x: torch.Tensor, first: int = 0) -> torch.Tensor:
        """h_BTW, which the first block takes; `first` is the place of the first step."""
        x_BTW, _ = self.steps(x)
        return self.dropout(self.positions(x_BTW, first=first))

    def next_token_logits(self, tokens_BT: torch.Tensor, pasts: Sequence[KeyValueCache] | None = None) -> torch.Tensor:
        """logits_BTV float32: at each step, of the token that comes after it."""
        if self.steps.embedding is None:
            raise ValueError("only a decoder of tokens tells the next one")
        weight_VW = self.steps.embedding.weight
        h_BTW = self(tokens_BT, pasts)
        if not h_BTW.is_cuda:
            return F.linear(h_BTW, weight_VW)
        # A GPU is slow at products whose number of rows is odd.
        rounded_VW = F.pad(weight_VW, (0, 0, 0, -len(weight_VW) % _VOCABULARY_MULTIPLE))
        return F.linear(h_BTW, rounded_VW)[..., : len(weight_VW)]


class GptClassifier(nn.Module):
    """x float32 as the layout has it -> float32 (B, K), from the state of the last step that is no padding."""

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
        """h_BTW, which the first block takes."""
        return self.decoder.embed(x)

    def padding_mask(self, x: torch.Tensor) -> torch.Tensor | None:
        """No block needs one: padding is behind, and no step looks there."""
        return None

    def compute_outputs(self, h_BTW: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """float32 (B, K), from what the last block gives."""
        return self._answer(self.decoder.norm(h_BTW), x)

    def _answer(self, h_BTW: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(pool(h_BTW, self.decoder.steps.step_mask(x), "last")))


def next_token_loss(logits_BTV: torch.Tensor, tokens_BT: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy, in nats, of each token but the first of a row; padding does not count.

    It is 0 where there is nothing to tell.
    """
    # Behind the last step nothing comes: to cut it off would copy all logits.
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
    """The prompts, whole numbers of equal length without padding, and `num_tokens` more behind: int64.

    Each is drawn from what the decoder, which goes into evaluation mode, holds likely; of the `top_k` likeliest where
    that is stated. A temperature of 0 always takes the likeliest. Padding is never drawn. Keys and values of earlier
    steps are kept, so each new token takes one step of work.

    Raises:
        ValueError: there is no prompt, it has padding, or the rows would grow longer than the decoder can read.
    """
    length = prompt_BT.shape[1] + num_tokens
    if prompt_BT.shape[1] == 0 or bool((prompt_BT == PADDING).any()) or length > decoder.max_length:
        raise ValueError(
            f"a prompt of shape {list(prompt_BT.shape)} and {num_tokens} more tokens, where the prompt must have one "
            f"token at least, no padding ({PADDING}), and both together {decoder.max_length} tokens at most"
        )
    decoder.eval()
    pasts = [KeyValueCache() for _ in decoder.blocks]
    tokens_BT = new_BT = prompt_BT.long()
    for _ in range(num_tokens):
        logits_BV = decoder.next_token_logits(new_BT, pasts)[:, -1].float()
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
        least_B1 = logits_BV.topk(top_k, dim=1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    return torch.multinomial((logits_BV / temperature).softmax(1), 1, generator=generator)


def build(config: Gpt, layout: Layout, num_outputs: int) -> GptClassifier:
    return GptClassifier(config, layout, num_outputs)
