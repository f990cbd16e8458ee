"""Attributes the output for a row to its values, with Captum.

The explained output is a logit minus the mean of the row's logits, since the softmax ignores what all logits share. A
single output, as of a regression, is explained as it is.

Shapes: B rows, K outputs, G feature groups of a row, T steps, W width of an embedding; a row has its layout's shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import onnxruntime
import torch
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.explainability.feature_groups import FeatureGroups, group_features
from bloomery.models.inference.outputs import compute_outputs
from bloomery.models.networks.architectures.imported_branch import ImportedBranch
from bloomery.models.training.config import AttributionMethod

OutputFunction = Callable[[torch.Tensor], torch.Tensor]  # x float32 (B, ...) -> float32 (B, K)

_GRADIENT_STEPS = 32
_PASSES_PER_GROUP = 16  # of one row through the network
_MAX_ROWS = 256
_MAX_VALUES = 1_000_000
_TOKEN_WIDTH = 128  # assumed for a token without an embedding
_LIME_WIDTH = 0.25
_LIME_RIDGE = 0.01


class Explanation(NamedTuple):
    """Attributions of the rows' outputs.

    Attributes:
        weights: float32 (B, ...) of the rows' shape; positive ones increase the output. A group's weight is divided
            equally among its positions that differ from the baseline.
        target: int64 (B,), the output that is explained.
        output_change: float32 (B,), the output for the row minus that for its baseline. Weights of integrated
            gradients (approximately), KernelSHAP and Shapley values sum up to it; those of occlusion and LIME need not.
    """

    weights: np.ndarray
    target: np.ndarray
    output_change: np.ndarray


class AttributionOptions(NamedTuple):
    """How outputs are explained.

    Attributes:
        method: default: `default_method`.
        target: the output to explain for each row, int64 (B,); default: the largest one.
        groups: features that all methods except integrated gradients treat as one; default: those of the layout.
        num_passes: passes of a row through the network: steps of integrated gradients, samples of a local linear model,
            or permutations times groups. Occlusion needs one for each position.
        is_multilabel: outputs are independent of each other, so a logit is explained as it is.
    """

    method: AttributionMethod | None = None
    target: np.ndarray | None = None
    groups: FeatureGroups | None = None
    num_passes: int | None = None
    seed: int = 0
    is_multilabel: bool = False


class _Rows(NamedTuple):
    """The rows to explain, and how many pass through the network at once."""

    outputs: OutputFunction
    x: torch.Tensor  # (B, ...)
    baseline: torch.Tensor  # (B, ...)
    target: torch.Tensor  # int64 (B,)
    batch_size: int


class _Row(NamedTuple):
    """One row to explain by its feature groups."""

    outputs: OutputFunction
    x: torch.Tensor  # (1, ...)
    baseline: torch.Tensor  # (1, ...)
    target: int
    groups: torch.Tensor  # int64 (1, ...), the group of each position
    num_groups: int
    num_passes: int
    batch_size: int


def explain(
    network: nn.Module | OutputFunction,
    x: torch.Tensor,
    layout: Layout,
    baseline: torch.Tensor,
    options: AttributionOptions | None = None,
) -> Explanation:
    """Explain the output for each row of x against `baseline` (both float32 (B, ...), on one device).

    Deterministic; torch's random state and the network's mode and gradients do not change. Memory does not grow with
    the number of rows. `network` is a module or a function; only a module has gradients.

    Raises:
        RecipeInvalid: integrated gradients of a network without them.

    Source: Sundararajan, Taly & Yan 2017, "Axiomatic Attribution for Deep Networks" (integrated gradients); Zeiler &
    Fergus 2014, "Visualizing and Understanding Convolutional Networks", section 4.2 (occlusion); Ribeiro, Singh &
    Guestrin 2016, "Why Should I Trust You?" (LIME); Lundberg & Lee 2017, "A Unified Approach to Interpreting Model
    Predictions" (KernelSHAP); Castro, Gomez & Tejada 2009, "Polynomial calculation of the Shapley value based on
    sampling" (Shapley values).
    """
    options = options or AttributionOptions()
    method = options.method or default_method(network, layout)
    outputs = network if options.is_multilabel else _centre_outputs(network)
    embedding = _find_embedding(network, layout)
    batch_size = _batch_size(layout, embedding)
    with _isolated(network, options.seed, x.device):
        outputs_BK = _in_batches(outputs, x, batch_size)
        target_B = outputs_BK.argmax(1) if options.target is None else torch.as_tensor(options.target, device=x.device)
        rows = _Rows(outputs, x, baseline, target_B, batch_size)
        if method == "integrated_gradients":
            _require_gradients(network, layout)
            num_steps = options.num_passes or _GRADIENT_STEPS
            weights = _integrate_gradients(rows, embedding, num_steps)
            baseline_BK = _baseline_outputs(rows, embedding)
        else:
            groups = options.groups or group_features(layout)
            split_rows = _split_rows(rows, groups, options.num_passes)
            weights = torch.cat([_explain_row(row, method, layout) for row in split_rows])
            baseline_BK = _in_batches(outputs, baseline, batch_size)
    change_B = (outputs_BK - baseline_BK).gather(1, target_B[:, None])[:, 0]
    return Explanation(weights.cpu().numpy(), target_B.cpu().numpy(), change_B.cpu().numpy())


def explain_session(
    session: onnxruntime.InferenceSession,
    x: np.ndarray,
    layout: Layout,
    baseline: np.ndarray,
    options: AttributionOptions | None = None,
    *,
    is_row_by_row: bool = False,
) -> Explanation:
    """`explain` for an ONNX session, which has no gradients: x and baseline float32 (B, ...)."""

    def compute(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(compute_outputs(session, x.numpy(), is_row_by_row=is_row_by_row))

    return explain(compute, torch.from_numpy(x), layout, torch.from_numpy(baseline), options)


def default_method(network: nn.Module | OutputFunction, layout: Layout) -> AttributionMethod:
    """Integrated gradients where every value of a row has a gradient, else Shapley values."""
    if not isinstance(network, nn.Module) or layout.categories:
        return "shapley"
    if isinstance(network, nn.Module) and any(isinstance(module, ImportedBranch) for module in network.modules()):
        return "shapley"
    if any(part.layout.categories or part.layout.kind == "tokens" for part in layout.parts):
        return "shapley"
    if layout.kind == "tokens" and _find_embedding(network, layout) is None:
        return "shapley"
    return "integrated_gradients"


def _require_gradients(network: nn.Module | OutputFunction, layout: Layout) -> None:
    if default_method(network, layout) == "integrated_gradients":
        return
    reason = "tokens without an embedding" if layout.kind == "tokens" else "category indices"
    if layout.parts:
        reason = "the tokens and category indices of mixed rows"
    raise RecipeInvalid(
        f"there are no integrated gradients for {reason if isinstance(network, nn.Module) else 'an ONNX file'}",
        required="a method without gradients: occlusion, lime, kernel_shap or shapley",
        where="the recipe's training.explain.method",
        remedy="leave the method out, or choose another one",
    )


def _centre_outputs(network: nn.Module | OutputFunction) -> OutputFunction:
    def compute(x: torch.Tensor) -> torch.Tensor:
        outputs_BK = network(x)
        return outputs_BK - outputs_BK.mean(1, keepdim=True) if outputs_BK.shape[1] > 1 else outputs_BK

    return compute


def _find_embedding(network: nn.Module | OutputFunction, layout: Layout) -> nn.Embedding | None:
    """The embedding that `network` declares, or its first one that has a row for each token."""
    if not isinstance(network, nn.Module) or layout.kind != "tokens":
        return None
    declared = getattr(network, "token_embedding", None)
    if declared is not None:
        return declared()
    tables = (module for module in network.modules() if isinstance(module, nn.Embedding))
    return next((table for table in tables if table.num_embeddings >= (layout.num_tokens or 0)), None)


def _batch_size(layout: Layout, embedding: nn.Embedding | None) -> int:
    width = embedding.embedding_dim if embedding else _TOKEN_WIDTH if layout.kind == "tokens" else 1
    return max(min(_MAX_ROWS, _MAX_VALUES // (layout.num_values * width)), 1)


@contextmanager
def _isolated(network: nn.Module | OutputFunction, seed: int, device: torch.device) -> Iterator[None]:
    """Within, random numbers start from `seed` and the network is in evaluation mode; afterwards both are as before.

    cuDNN is off, since it differentiates recurrent layers in training mode only.
    """
    modes = {module: module.training for module in network.modules()} if isinstance(network, nn.Module) else {}
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.backends.cudnn.flags(enabled=False):
        torch.manual_seed(seed)
        for module in modes:
            module.training = False
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


@contextmanager
def _padded_embedding(outputs: OutputFunction, embedding: nn.Embedding, padding_1T: torch.Tensor) -> Iterator[None]:
    """Within, every token has the embedding of padding, though masks still count it as valid."""
    vectors: list[torch.Tensor] = []
    hook = embedding.register_forward_hook(lambda table, _, out_BTW: vectors.append(out_BTW[:, :1]))
    with torch.no_grad():
        outputs(padding_1T)
    hook.remove()
    hook = embedding.register_forward_hook(lambda table, _, out_BTW: vectors[0].expand_as(out_BTW))
    try:
        yield
    finally:
        hook.remove()


def _baseline_outputs(rows: _Rows, embedding: nn.Embedding | None) -> torch.Tensor:
    """Outputs for the baseline of integrated gradients; for tokens, with embeddings of padding in place of theirs."""
    if embedding is None:
        return _in_batches(rows.outputs, rows.baseline, rows.batch_size)
    with _padded_embedding(rows.outputs, embedding, rows.baseline[:1]):
        return _in_batches(rows.outputs, rows.x, rows.batch_size)


def _in_batches(outputs: OutputFunction, x: torch.Tensor, batch_size: int) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([outputs(rows) for rows in x.split(batch_size)])


def _integrate_gradients(rows: _Rows, embedding: nn.Embedding | None, num_steps: int) -> torch.Tensor:
    """The mean gradient between baseline and row, times their difference; for tokens, of their embeddings."""
    from captum.attr import IntegratedGradients, LayerIntegratedGradients

    outputs = rows.outputs
    explainer = IntegratedGradients(outputs) if embedding is None else LayerIntegratedGradients(outputs, embedding)
    weights = []
    num_rows = max(rows.batch_size // num_steps, 1)
    batches = zip(rows.x.split(num_rows), rows.baseline.split(num_rows), rows.target.split(num_rows), strict=True)
    for x, baseline, target in batches:
        # A copy, since Captum sets requires_grad on its input.
        inputs = x.clone().requires_grad_(embedding is None)
        attributions = explainer.attribute(
            inputs, baseline, target=target, n_steps=num_steps, internal_batch_size=max(rows.batch_size, len(x))
        )
        weights.append((attributions if embedding is None else attributions.sum(-1)).detach().float())
    return torch.cat(weights)


def _split_rows(rows: _Rows, groups: FeatureGroups, num_passes: int | None) -> Iterator[_Row]:
    """One by one, since each row has its own groups: those that differ from its baseline."""
    group_of = torch.from_numpy(groups.group_of).to(rows.x.device)
    for x, baseline, target in zip(rows.x.split(1), rows.baseline.split(1), rows.target.tolist(), strict=True):
        differs = (x != baseline)[0]
        present_groups, numbers = torch.unique(group_of[differs], return_inverse=True)
        # Positions that equal the baseline have no effect, so they may belong to any group: the first.
        row_groups = torch.zeros_like(group_of).masked_scatter(differs, numbers)[None]
        passes = num_passes or _PASSES_PER_GROUP * len(present_groups)
        yield _Row(rows.outputs, x, baseline, target, row_groups, len(present_groups), passes, rows.batch_size)


def _explain_row(row: _Row, method: AttributionMethod, layout: Layout) -> torch.Tensor:
    """The weights of one row, (1, ...)."""
    if row.num_groups == 0:
        return torch.zeros_like(row.x)
    if method == "occlusion" and layout.kind == "image":
        return _occlude_windows(row)
    weights_G = _explain_groups(row, method)
    differs = row.x != row.baseline
    sizes_G = torch.bincount(row.groups[differs], minlength=row.num_groups).to(weights_G.dtype)
    return torch.where(differs, (weights_G / sizes_G)[row.groups], 0.0)


def _occlude_windows(row: _Row) -> torch.Tensor:
    """The mean drop of the output over all windows that hide a pixel, (1, C, H, W) with equal channels."""
    from captum.attr import Occlusion

    channels, height, width = row.x.shape[1:]
    window = (channels, math.ceil(height / 4), math.ceil(width / 4))
    strides = (channels, math.ceil(height / 16), math.ceil(width / 16))
    return (
        Occlusion(row.outputs)
        .attribute(
            row.x, window, strides, baselines=row.baseline, target=row.target, perturbations_per_eval=row.batch_size
        )
        .float()
    )


def _explain_groups(row: _Row, method: AttributionMethod) -> torch.Tensor:
    """The weight of each group, float32 (G,)."""
    from captum._utils.models.linear_model import SkLearnRidge
    from captum.attr import FeatureAblation, KernelShap, Lime

    if method == "shapley":
        return _sample_shapley_values(row)
    arguments = {
        "baselines": row.baseline,
        "target": row.target,
        "feature_mask": row.groups,
        "perturbations_per_eval": row.batch_size,
    }
    if method == "occlusion" or row.num_groups == 1:
        weights = FeatureAblation(row.outputs).attribute(row.x, **arguments).flatten().float()
        _, first = np.unique(row.groups.cpu().numpy().ravel(), return_index=True)
        return weights[torch.from_numpy(first).to(weights.device)]
    if method == "kernel_shap":
        explainer: Lime = KernelShap(row.outputs)
        num_samples = row.num_passes + 2
    else:
        explainer = Lime(
            row.outputs, interpretable_model=SkLearnRidge(alpha=_LIME_RIDGE), similarity_func=_lime_similarity
        )
        num_samples = row.num_passes + 1
    return explainer.attribute(row.x, n_samples=num_samples, return_input_shape=False, **arguments).flatten().float()


def _sample_shapley_values(row: _Row) -> torch.Tensor:
    """The mean gain of the output by each group, float32 (G,), over sampled permutations of the groups.

    Each permutation is also used in reverse, which reduces the variance. Captum's `ShapleyValueSampling` computes the
    same, about four times slower for small networks (docs/decisions/0015-explanations.md).

    Source: Mitchell, Cooper, Frank & Holmes 2022, "Sampling Permutations for Shapley Value Estimation", section 3.
    """
    num_groups, device, groups = row.num_groups, row.x.device, row.groups[0]
    num_pairs = max(row.num_passes // (2 * num_groups), 1)
    num_kept = torch.arange(num_groups + 1, device=device).view(-1, *[1] * groups.dim())
    gains_G = torch.zeros(num_groups, device=device)
    for _ in range(num_pairs):
        permutation = torch.randperm(num_groups).to(device)
        for order in (permutation, permutation.flip(0)):
            # The rank of each group in the order; row k keeps the groups with a rank below k.
            rank = torch.empty_like(order).scatter_(0, order, torch.arange(num_groups, device=device))
            rows = torch.where(rank[groups] < num_kept, row.x, row.baseline)
            gains_G[order] += _in_batches(row.outputs, rows, row.batch_size)[:, row.target].diff()
    return gains_G / (2 * num_pairs)


def _lime_similarity(row: torch.Tensor, perturbed: torch.Tensor, kept_1G: torch.Tensor, **_: object) -> float:
    """The weight of a sample that keeps only some groups, by the cosine distance of its mask to the full mask."""
    distance = 1 - math.sqrt(float(kept_1G.float().mean()))
    return math.exp(-((distance / _LIME_WIDTH) ** 2))
