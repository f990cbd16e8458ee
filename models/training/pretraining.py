"""Self-supervised objectives: a network learns from rows without their labels, by temporary layers around it.

Both modules map rows to the losses of rows (B,), with which `loop.train` trains them.

Shapes: B rows, T tokens, W width, V tokens of the vocabulary, M masked tokens, F features, P projected features.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.checkpoint import TOKENIZER_FILE
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.architectures.pretrained import PretrainedNetwork
from bloomery.models.networks.config import Model
from bloomery.models.networks.layers.padding import trim_common_padding
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.models.training.config import Augment, Objective, Training
from bloomery.models.training.data.augmentation import augment_batch
from bloomery.models.training.layer_freezing import frozen_modules

_MASKED, _REPLACED, _KEPT = 0.15, 0.8, 0.9  # shares of BERT: masked tokens, of which 80% by the mask, 10% by another
_TEMPERATURE = {"image": 0.5, "tokens": 0.05}  # of SimCLR and of SimCSE
_PROJECTED = 128
_WHERE = "the recipe's training.stages"
# What an image is changed by, if the recipe does not say: as far as images of any kind keep their content.
_DEFAULT_AUGMENT = Augment(shift=3, rotate=15, erase=0.5)
# The options of `augment` that change single rows of a kind; `mixup` changes labels, too.
_VIEW_OPTIONS = {"image": ("flip", "shift", "rotate", "erase", "mask"), "tokens": ("drop_tokens",)}
_NUM_TRIED_ROWS = 32


class TokenFacts(NamedTuple):
    """Tokens of the vocabulary: the mask (None without one), and those that are never masked."""

    mask: int | None = None
    special: tuple[int, ...] = ()


NO_FACTS = TokenFacts()


def find_tokens(config: Model) -> TokenFacts:
    """The mask and the special tokens of a checkpoint's tokenizer, as rows have them: a token's id plus 1."""
    if not isinstance(config, Pretrained) or config.resolved is None:
        return NO_FACTS
    tokenizer = json.loads(config.resolved.path(TOKENIZER_FILE).read_text(encoding="utf-8"))
    special = {token["content"]: token["id"] + 1 for token in tokenizer["added_tokens"] if token["special"]}
    options_path = config.resolved.path("tokenizer_config.json")
    options = json.loads(options_path.read_text(encoding="utf-8")) if options_path.is_file() else {}
    mask = options.get("mask_token") or "[MASK]"
    return TokenFacts(special.get(mask["content"] if isinstance(mask, dict) else mask), tuple(special.values()))


class StateNetwork(Protocol):
    """A network with a state for each token."""

    def states(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...


def build_objective(
    objective: Objective, network: nn.Module, layout: Layout, training: Training, tokens: TokenFacts = NO_FACTS
) -> nn.Module:
    """A module around `network` that computes the losses of rows. Its temporary layers are drawn at random.

    Raises:
        RecipeInvalid: the network or its rows do not suit the objective.
    """
    if objective == "masked_tokens":
        embedding = _token_embedding(network, layout)
        return MaskedTokens(network, embedding, layout, tokens, training.batch_size)
    if layout.kind not in _TEMPERATURE:
        raise _unsuitable(objective, f"the rows are of kind {layout.kind}", "images or text")
    if not isinstance(getattr(network, "head", None), nn.Linear):
        raise _unsuitable(objective, "the network has no linear layer `head`", "a network whose last layer is `head`")
    return Contrastive(network, layout, training)


class MaskedTokens(nn.Module):
    """x (B, T) -> the mean cross entropy of each row's masked tokens (B,), 0 for a row without one.

    Of 15% of the tokens, 80% become the mask, 10% another token, and 10% stay. The temporary output layer shares the
    token embedding. A vocabulary without a mask has a learnt vector instead, which is temporary, too.

    Source: Devlin et al. 2019, "BERT", section 3.1 and appendix A.1.
    """

    def __init__(
        self, network: nn.Module, embedding: nn.Embedding, layout: Layout, tokens: TokenFacts, batch_size: int
    ) -> None:
        super().__init__()
        self.network = network
        self.trims_padding = bool(getattr(network, "trims_padding", False))
        width, device = embedding.embedding_dim, embedding.weight.device
        x = torch.ones(1, 2, device=device)
        with _evaluation(network), torch.no_grad():
            num_states = cast(StateNetwork, network).states(x)[0].shape[-1]
        self.transform = nn.Sequential(nn.Linear(num_states, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(embedding.num_embeddings))
        self.mask_vector = None if tokens.mask is not None else nn.Parameter(embedding.weight.detach().mean(0))
        self._embedding = [embedding]  # in a list, so that its weights are not those of this module, too
        self._shift = int(isinstance(network, PretrainedNetwork))  # rows have 0 for padding before the vocabulary
        self._num_tokens, self._tokens, self._batch_size = cast(int, layout.num_tokens), tokens, batch_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            return self._row_losses(x, None)
        random = torch.Generator().manual_seed(0)  # the same masks in every evaluation
        return torch.cat([self._row_losses(rows, random) for rows in x.split(self._batch_size)])

    def _row_losses(self, x: torch.Tensor, random: torch.Generator | None) -> torch.Tensor:
        x = trim_common_padding(x)
        masked = _mask_tokens(x, self._tokens, self._num_tokens, random)
        with self._mask_inserted(masked.is_hidden):
            h_BTW, _ = cast(StateNetwork, self.network).states(masked.x)
        states_MW = self.transform(h_BTW[masked.is_target])
        logits_MV = F.linear(states_MW, self._embedding[0].weight, self.bias)
        losses_M = F.cross_entropy(logits_MV.float(), x[masked.is_target].long() - self._shift, reduction="none")
        rows_M = masked.is_target.nonzero()[:, 0]
        sums_B = torch.zeros(len(x), device=x.device).index_add(0, rows_M, losses_M)
        return sums_B / masked.is_target.sum(1).clamp(min=1)

    @contextmanager
    def _mask_inserted(self, is_hidden_BT: torch.Tensor) -> Iterator[None]:
        """Within the context, hidden tokens have the mask's vector, if the vocabulary has no mask."""
        vector = self.mask_vector
        if vector is None:
            yield
            return
        hook = self._embedding[0].register_forward_hook(
            lambda _, inputs, embedded_BTW: torch.where(is_hidden_BT.unsqueeze(-1), vector, embedded_BTW)
        )
        try:
            yield
        finally:
            hook.remove()


class _MaskedBatch(NamedTuple):
    x: torch.Tensor
    is_target: torch.Tensor  # (B, T): whose tokens are predicted
    is_hidden: torch.Tensor  # (B, T): targets that the mask replaces


def _mask_tokens(x: torch.Tensor, tokens: TokenFacts, num_tokens: int, random: torch.Generator | None) -> _MaskedBatch:
    """Draws on the CPU, from `random` or from torch's global generator."""
    share_BT = torch.rand(x.shape, generator=random).to(x.device)
    fate_BT = torch.rand(x.shape, generator=random).to(x.device)
    others_BT = torch.randint(1, num_tokens, x.shape, generator=random).to(x)
    special = torch.tensor([0, *tokens.special], device=x.device, dtype=x.dtype)
    is_target_BT = (share_BT < _MASKED) & ~torch.isin(x, special)
    is_hidden_BT = is_target_BT & (fate_BT < _REPLACED)
    is_replaced_BT = is_target_BT & ~is_hidden_BT & (fate_BT < _KEPT)
    masked = torch.where(is_replaced_BT, others_BT, x)
    if tokens.mask is not None:
        masked = masked.masked_fill(is_hidden_BT, tokens.mask)
    return _MaskedBatch(masked, is_target_BT, is_hidden_BT)


class Contrastive(nn.Module):
    """x (B, ...) -> the loss by which each row's two views find each other among the views of all rows (B,).

    Views of images are augmented as the stage says, or by default if it says nothing that changes single images; those
    of text differ by dropout, and by `drop_tokens` if the stage says so. The temporary projection reads what the head
    reads.

    Source: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations", section 2; Gao et
    al. 2021, "SimCSE: Simple Contrastive Learning of Sentence Embeddings", section 3.
    """

    def __init__(self, network: nn.Module, layout: Layout, training: Training) -> None:
        super().__init__()
        self.network = network
        width = cast(nn.Linear, network.head).in_features
        self.projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, _PROJECTED))
        self._augment = training.augment
        if layout.kind == "image" and not any(getattr(training.augment, name) for name in _VIEW_OPTIONS["image"]):
            self._augment = _DEFAULT_AUGMENT
        self._kind = layout.kind
        self._temperature, self._batch_size = _TEMPERATURE[layout.kind], training.batch_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            return self._row_losses(x)
        with repeatable_random(x.device), _dropout(self.network):  # the same views in every evaluation
            return torch.cat([self._row_losses(rows) for rows in x.split(self._batch_size)])

    def _row_losses(self, x: torch.Tensor) -> torch.Tensor:
        first_BP, second_BP = (F.normalize(self._project(self._view(x)).float(), dim=1) for _ in range(2))
        views_2BP = torch.cat([first_BP, second_BP])
        similarities = views_2BP @ views_2BP.T / self._temperature
        similarities = similarities.masked_fill(
            torch.eye(len(views_2BP), dtype=torch.bool, device=x.device), -torch.inf
        )
        partners = torch.arange(len(views_2BP), device=x.device).roll(len(x))
        return F.cross_entropy(similarities, partners, reduction="none").view(2, -1).mean(0)

    def draws_equal_views(self, x: torch.Tensor) -> bool:
        """Whether two views of each row of x are equal, so that finding them teaches nothing."""
        with torch.no_grad(), _evaluation(self), repeatable_random(x.device), _dropout(self.network):
            first_BF, second_BF = (features(self.network, self._view(x)) for _ in range(2))
        return torch.equal(first_BF, second_BF)

    def _view(self, x: torch.Tensor) -> torch.Tensor:
        if not any(getattr(self._augment, name) for name in _VIEW_OPTIONS[self._kind]):
            return x
        random = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        return augment_batch(x.cpu(), self._augment, random).to(x.device)

    def _project(self, x: torch.Tensor) -> torch.Tensor:
        return self.projection(features(self.network, x))


def require_different_views(module: nn.Module, layout: Layout) -> None:
    """Tries rows of random values; other objectives than contrastive learning have no views.

    Raises:
        RecipeInvalid: two views of a row are equal.
    """
    if not isinstance(module, Contrastive):
        return
    with repeatable_random(torch.device("cpu")):
        x = torch.rand(_NUM_TRIED_ROWS, *layout.shape)
        if layout.num_tokens is not None:
            x = 1 + (x * (layout.num_tokens - 1)).floor()
    if module.draws_equal_views(x):
        raise RecipeInvalid(
            "objective contrastive: both views of each row are equal, so there is nothing to learn from them",
            required="views that differ by dropout, or by an option of `augment` that changes single rows: "
            f"{' or '.join(_VIEW_OPTIONS[layout.kind])}",
            where=_WHERE,
            remedy=f"set `augment: {{{_VIEW_OPTIONS[layout.kind][-1]}: 0.1}}` in this stage, or a `dropout` of the "
            "network",
        )


def freeze_unused(module: nn.Module, network: nn.Module, x: torch.Tensor) -> None:
    """Freezes parameters of `network` that the losses of `module` do not depend on, such as the head's.

    The optimizer has no state of a parameter without a gradient, which a checkpoint could not restore.

    Raises:
        RecipeInvalid: the losses depend on no trainable parameter.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    with _evaluation(module):
        gradients = torch.autograd.grad(module(x).sum(), parameters, allow_unused=True) if parameters else ()
    if all(gradient is None for gradient in gradients):
        raise RecipeInvalid(
            "a self-supervised stage trains nothing but its temporary layers",
            required="a part of the network, before its head, that is not frozen",
            where=f"{_WHERE}: freeze",
            remedy="freeze less in this stage",
        )
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)


def features(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """x_BF: what the network's head reads."""
    inputs: list[torch.Tensor] = []
    hook = cast(nn.Linear, network.head).register_forward_pre_hook(lambda _, values: inputs.append(values[0]))
    try:
        network(x)
    finally:
        hook.remove()
    return inputs[0]


@contextmanager
def _evaluation(network: nn.Module) -> Iterator[None]:
    is_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(is_training)


@contextmanager
def _dropout(network: nn.Module) -> Iterator[None]:
    """Within the context, dropout is active in a network in evaluation mode, also that of attention.

    Batch normalisation and frozen modules stay in evaluation mode, as in training.
    """
    frozen = {part for module in frozen_modules(network) for part in module.modules()}
    modules = [
        module
        for module in network.modules()
        if module not in frozen and not isinstance(module, nn.modules.batchnorm._NormBase)
    ]
    for module in modules:
        module.training = True
    try:
        yield
    finally:
        for module in modules:
            module.training = False


@contextmanager
def repeatable_random(device: torch.device) -> Iterator[None]:
    """Within the context, random numbers start from 0; afterwards those of the CPU and of `device` go on as before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


def _token_embedding(network: nn.Module, layout: Layout) -> nn.Embedding:
    """The token embedding of a network with a state for each token."""
    if layout.kind != "tokens" or layout.num_tokens is None:
        raise _unsuitable("masked_tokens", f"the rows are of kind {layout.kind}", "text")
    if not hasattr(network, "states"):
        raise _unsuitable("masked_tokens", "the network has no state for each token", "a transformer, or `pretrained`")
    if isinstance(network, PretrainedNetwork) and isinstance(embedding := network.token_embedding(), nn.Embedding):
        return embedding
    embeddings = [
        module
        for module in network.modules()
        if isinstance(module, nn.Embedding) and module.num_embeddings == layout.num_tokens
    ]
    if not embeddings:
        raise _unsuitable("masked_tokens", "the network has no embedding of the vocabulary", "an embedding of tokens")
    return max(embeddings, key=lambda module: module.embedding_dim)


def _unsuitable(objective: str, problem: str, required: str) -> RecipeInvalid:
    return RecipeInvalid(
        f"objective {objective}: {problem}",
        required=required,
        where=_WHERE,
        remedy="use another objective, or another network",
    )
