"""The body of a pretrained checkpoint of Hugging Face `transformers`, pooled to one vector per row, with a new head.

Shapes: B rows, T steps, W width, K outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.body_layers import reshape_body
from bloomery.models.networks.layers.padding import EACH_STEP, mask_steps, pool, trim_common_padding
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.models.networks.transformers_body import count_positions, is_causal, load_body, unsuitable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_POOLINGS = {"mean": "mean", "cls": "first", "last": "last"}  # as `pool` calls them


class PretrainedNetwork(nn.Module, ABC):
    """x float32 as in the layout -> float32 (B, K)."""

    def __init__(self, body: PreTrainedModel, config: Pretrained, width: int, num_outputs: int) -> None:
        super().__init__()
        self.body = body
        self.dropout = nn.Dropout(config.dropout)
        self.head: nn.Module = nn.Linear(width, num_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.embed(x)))

    @abstractmethod
    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """One vector per row (B, W), before dropout and head."""

    @abstractmethod
    def states(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The state of each step h_BTW, and mask_BT bool, which is True for real ones."""

    def token_embedding(self) -> nn.Module:
        """The layer that looks up the vectors of tokens, or embeds patches."""
        return self.body.get_input_embeddings()


class PretrainedText(PretrainedNetwork):
    """x float32 (B, T), 0 for padding and otherwise a token's id plus 1 -> float32 (B, K), or (B, T, K) for each step.

    Rows may have at most `max_length` steps. Steps that are padding in all rows may be left out (`trims_padding`):
    padding does not affect the output. A row of only padding counts as one step.
    """

    trims_padding = True

    def __init__(self, body: PreTrainedModel, config: Pretrained, layout: Layout, num_outputs: int) -> None:
        super().__init__(body, config, body.config.hidden_size, num_outputs)
        self.max_length = count_positions(body) or layout.shape[0]
        self._pooling = _POOLINGS[choose_pooling(config)]
        self._last_token: int = body.config.vocab_size - 1  # of the tokenizer, also of a trimmed vocabulary
        self._pad_token: int = getattr(body.config, "pad_token_id", None) or 0
        has_token_types = getattr(body.config, "type_vocab_size", 0) > 1
        self._separator = layout.separator if has_token_types else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._pooling != EACH_STEP:
            return super().forward(x)
        if self.training:
            x = trim_common_padding(x)
        h_BTW, mask_BT = self.states(x)
        return mask_steps(self.head(self.dropout(h_BTW)), mask_BT, self._pooling)

    def predict_each_step(self) -> None:
        """Gives the network outputs for each token, (B, T, K), which are 0 for padding."""
        self._pooling = EACH_STEP

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            x = trim_common_padding(x)
        return pool(*self.states(x), self._pooling)

    def states(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The state of each token h_BTW, and mask_BT bool, which is True for real ones and for the first one."""
        ids_BT = x.long() - 1
        is_first_T = torch.arange(x.shape[1], device=x.device) == 0
        mask_BT = (ids_BT >= 0) | is_first_T
        if self._pad_token:
            ids_BT = torch.where(ids_BT < 0, self._pad_token, ids_BT)
        ids_BT = ids_BT.clamp(0, self._last_token)
        types = {} if self._separator is None else {"token_type_ids": _token_types(x, self._separator)}
        h_BTW = self.body(input_ids=ids_BT, attention_mask=mask_BT, return_dict=True, **types).last_hidden_state
        return h_BTW, mask_BT


class PretrainedSignal(PretrainedNetwork):
    """Images x float32 (B, C, H, W), spectrograms (B, 1, mels, frames) or waveforms (B, 1, 1, samples) -> (B, K)."""

    def __init__(self, body: PreTrainedModel, config: Pretrained, num_outputs: int) -> None:
        super().__init__(body, config, _signal_width(body), num_outputs)
        self._input = body.main_input_name
        self._is_waveform = self._input == "input_values" and hasattr(body.config, "conv_dim")
        self._pooling = config.pooling

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        outputs = self._run_body(x)
        pooled = getattr(outputs, "pooler_output", None)
        if self._pooling == "auto" and pooled is not None:
            return pooled.flatten(1)
        h_BTW = _as_steps(outputs.last_hidden_state)
        is_first = self._pooling == "cls" or (self._pooling == "auto" and self._input == "pixel_values")
        return h_BTW[:, 0] if is_first else h_BTW.mean(1)

    def states(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The state of each patch or frame h_BTW, with those of special tokens first, and mask_BT of True."""
        h_BTW = _as_steps(self._run_body(x).last_hidden_state)
        return h_BTW, torch.ones_like(h_BTW[..., 0], dtype=torch.bool)

    def _run_body(self, x: torch.Tensor) -> Any:
        if self._is_waveform:
            x = x.flatten(1)
        elif self._input == "input_values":  # frames first
            x = x[:, 0].transpose(1, 2)
        elif self._input == "input_features":
            x = x[:, 0]
        return self.body(**{self._input: x}, return_dict=True)


def _signal_width(body: PreTrainedModel) -> int:
    sizes = getattr(body.config, "hidden_sizes", None) or (getattr(body.config, "hidden_size", None),)
    if not isinstance(sizes[-1], int):
        raise unsuitable(f"the configuration of {body.config.model_type} has no hidden_size", "a network such as vit")
    return sizes[-1]


def _as_steps(states: torch.Tensor) -> torch.Tensor:
    """h_BTW, also of a convolutional network with states (B, W, height, width)."""
    return states.flatten(2).transpose(1, 2) if states.dim() == 4 else states


def _token_types(x_BT: torch.Tensor, separator: int) -> torch.Tensor:
    """int64 (B, T): 0 for the first text with the separator after it, and 1 for all that follows."""
    is_separator_BT = (x_BT.long() == separator).long()
    return (is_separator_BT.cumsum(1) - is_separator_BT).clamp(max=1)


def build(config: Pretrained, layout: Layout, num_outputs: int) -> PretrainedNetwork:
    """Builds the network with the checkpoint's weights, or with random ones where `resolved` names no folder.

    Raises:
        EngineMissing: `transformers` is not installed.
        RecipeInvalid: the checkpoint's network does not read such rows, or its weights are incomplete.
    """
    body = load_body(config, layout)
    if config.shape is not None:
        reshape_body(body, config.shape)
    if layout.kind == "tokens":
        _require_sizes(body)
        text = PretrainedText(body, config, layout, num_outputs)
        _require_tokens(text, layout)
        return text.train()
    network = PretrainedSignal(body, config, num_outputs)
    _require_signal(network, config, layout)
    return network.train()


def _require_sizes(body: PreTrainedModel) -> None:
    missing = [name for name in ("vocab_size", "hidden_size") if not isinstance(getattr(body.config, name, None), int)]
    if missing:
        raise unsuitable(
            f"the configuration of {body.config.model_type} has no {' and no '.join(missing)}",
            "a network with a vector for each token of a vocabulary, such as bert",
        )


def _require_tokens(network: PretrainedText, layout: Layout) -> None:
    config, positions = network.body.config, network.max_length
    num_tokens = (layout.num_tokens or 1) - 1
    if num_tokens > config.vocab_size:
        raise unsuitable(
            f"the tokenizer has {num_tokens:,} tokens, but the network {config.vocab_size:,}",
            "a network with a vector for each token",
            "use the tokenizer and the weights of one checkpoint",
        )
    if layout.shape[0] > positions:
        raise unsuitable(
            f"a text has {layout.shape[0]} tokens, but {config.model_type} has {positions} positions",
            f"a `length` of at most {positions}",
            "lower the `length` of the text in `features.inputs`",
        )
    obstacle = _find_obstacle(network, torch.ones(1, min(layout.shape[0], 2)))
    if obstacle is not None:
        raise unsuitable(
            f"{config.model_type} cannot read a row of tokens alone: {obstacle}",
            "a network that computes a state of each token (last_hidden_state) from tokens and their mask",
        )
    if _depends_on_padding(network, min(layout.shape[0], positions)):
        raise unsuitable(
            f"the states of {config.model_type} depend on the padding of a row",
            "a network whose attention_mask leaves padding out, such as bert",
        )


def _depends_on_padding(network: PretrainedText, max_length: int) -> bool:
    """Whether the states of two tokens change by more than rounding when padding follows."""
    weight = next(network.body.parameters())
    if max_length < 3 or weight.is_meta:
        return False
    x = torch.tensor([[1.0, network.body.config.vocab_size]], device=weight.device)
    padding = torch.zeros(1, min(max_length - 2, 2), device=weight.device)
    with torch.no_grad():
        network.eval()
        states, padded = network.states(x)[0], network.states(torch.cat([x, padding], dim=1))[0][:, :2]
    scale = float(states.abs().mean())
    return not torch.allclose(states, padded, rtol=1e-3, atol=0.01 * scale, equal_nan=True)


def _require_signal(network: PretrainedNetwork, config: Pretrained, layout: Layout) -> None:
    """Raises RecipeInvalid if the network cannot read such rows: a row of zeros is tried."""
    model_type, shape = network.body.config.model_type, list(layout.shape)
    if config.pooling == "last" or (config.pooling == "cls" and hasattr(network.body.config, "depths")):
        problem = f"{model_type} has no {'first' if config.pooling == 'cls' else 'last'} token that has seen all others"
        raise unsuitable(problem, "`pooling: auto` or mean", "change `pooling`")
    obstacle = _find_obstacle(network, torch.zeros(1, *layout.shape))
    if obstacle is not None:
        raise unsuitable(
            f"{model_type} cannot read rows of shape {shape}: {obstacle}",
            "images or audio as the checkpoint's preprocessing makes them",
            "set `preprocessing: checkpoint` of the input",
        )


def _find_obstacle(network: PretrainedNetwork, x: torch.Tensor) -> str | None:
    """Why the network cannot read the rows x; None if it can.

    Its attention becomes the library's own ("eager") if the rest of its code does not work with ours.
    """
    obstacle = _try_rows(network, x)
    if obstacle is not None and network.body.config._attn_implementation != "eager":
        network.body.set_attn_implementation("eager")
        obstacle = _try_rows(network, x)
    return obstacle


def _try_rows(network: PretrainedNetwork, x: torch.Tensor) -> str | None:
    try:
        with torch.no_grad():
            network.eval()(x)
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError) as failure:
        if x.is_meta and "meta" in str(failure):
            return None  # its code reads values, which no tensor on this device has
        return (str(failure).splitlines() or ["no reason given"])[0][:300]
    return None


def choose_pooling(config: Pretrained) -> str:
    """What `auto` stands for: the last token of a causal decoder, otherwise the mean."""
    if config.pooling != "auto":
        return config.pooling
    return "last" if is_causal(config) else "mean"


def layer_groups(network: PretrainedNetwork) -> list[list[str]]:
    """The names of all parameters in groups, in their order: the embeddings, each layer, the head.

    Parameters between the layers and the head, such as those of a last normalisation, belong to the last layer.
    """
    layers = _find_layers(network)
    groups: list[list[str]] = [[] for _ in range(len(layers) + 2)]
    position = 0
    for name, _ in network.named_parameters():
        number = next((number for number, prefix in enumerate(layers) if name.startswith(prefix)), None)
        position = position if number is None else number + 1
        groups[-1 if name.startswith("head.") else position].append(name)
    return groups


def _find_layers(network: PretrainedNetwork) -> list[str]:
    """The prefixes of the layers' parameters: the elements of the list that holds most of the body's parameters."""
    lists = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.ModuleList)]
    name, layers = max(lists, key=lambda entry: sum(parameter.numel() for parameter in entry[1].parameters()))
    return [f"{name}.{number}." for number in range(len(layers))]
