"""How much each value of a row has to do with its answer, through Captum.

What is explained is an answer of the network less the mean of all its answers to the row: the softmax does not see what
all logits have in common. A single output, as of a regression, is explained as it is.

Shapes: B rows, K outputs, U units of a row, T steps, W width of an embedding; a row has the shape of its layout.
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
from bloomery.models.training.config import AttributionMethod

OutputFunction = Callable[[torch.Tensor], torch.Tensor]  # x float32 (B, ...) -> float32 (B, K)

_GRADIENT_STEPS = 32
_PASSES = 16  # of one row through the network, for each unit
_MOST_ROWS = 256
_MOST_VALUES = 1_000_000
_TOKEN_WIDTH = 128  # what is reckoned for a token where no embedding says it
_LIME_WIDTH = 0.25
_LIME_RIDGE = 0.01


class Explanation(NamedTuple):
    """Why each row is answered as it is.

    Attributes:
        weights: float32 (B, ...) of the rows' shape; positive ones speak for the answer. Those of a unit are equal
            shares of its weight, over the positions that differ from the baseline.
        target: int64 (B,), the output that is explained.
        rise: float32 (B,), how much more that output is for the row than for its baseline. The weights of integrated
            gradients (nearly), KernelSHAP and Shapley values add up to it; those of occlusion and LIME need not.
    """

    weights: np.ndarray
    target: np.ndarray
    rise: np.ndarray


def explain(
    network: nn.Module | OutputFunction,
    x: torch.Tensor,
    layout: Layout,
    baseline: torch.Tensor,
    *,
    method: AttributionMethod | None = None,
    target: np.ndarray | None = None,
    units: FeatureGroups | None = None,
    passes: int | None = None,
    seed: int = 0,
) -> Explanation:
    """What in each row of x speaks for its answer, against `baseline` (both float32 (B, ...), on one device).

    The same arguments give the same weights; the state of torch's random numbers, the network's mode and its gradients
    are afterwards what they were. Memory does not grow with the number of rows.

    Args:
        network: a module, or a function that answers; only a module has gradients.
        method: left out, integrated gradients; Shapley values where there are none.
        target: the output to explain for each row, int64 (B,); left out, the one that is largest.
        units: what is weighed as one thing by all methods but integrated gradients; left out, as the layout has it.
        passes: how often one row may go through the network: steps of integrated gradients, rows of a local linear
            model, or permutations times units. Occlusion needs as many as there are places.

    Raises:
        RecipeInvalid: integrated gradients are asked of what has none.

    Source: Sundararajan, Taly & Yan 2017, "Axiomatic Attribution for Deep Networks" (integrated gradients); Zeiler &
    Fergus 2014, "Visualizing and Understanding Convolutional Networks", section 4.2 (occlusion); Ribeiro, Singh &
    Guestrin 2016, "Why Should I Trust You?" (LIME); Lundberg & Lee 2017, "A Unified Approach to Interpreting Model
    Predictions" (KernelSHAP); Castro, Gomez & Tejada 2009, "Polynomial calculation of the Shapley value based on
    sampling" (Shapley values).
    """
    chosen = method or default_method(network, layout)
    grid = units or group_features(layout)
    answers = _centred(network)
    embedding = _embedding(network, layout)
    at_once = _rows_at_once(layout, embedding)
    with _undisturbed(network, seed, x.device):
        outputs_BK = _in_batches(answers, x, at_once)
        target_B = outputs_BK.argmax(1) if target is None else torch.as_tensor(target, device=x.device)
        if chosen == "integrated_gradients":
            _require_gradients(network, layout, embedding)
            weights = _by_gradients(answers, x, baseline, target_B, embedding, passes or _GRADIENT_STEPS, at_once)
            if embedding is None:
                still_BK = _in_batches(answers, baseline, at_once)
            else:
                with _blank(answers, embedding, baseline[:1]):
                    still_BK = _in_batches(answers, x, at_once)
        else:
            weights = _by_units(answers, x, baseline, target_B, layout, grid, chosen, passes, at_once)
            still_BK = _in_batches(answers, baseline, at_once)
    rise_B = (outputs_BK - still_BK).gather(1, target_B[:, None])[:, 0]
    return Explanation(weights.cpu().numpy(), target_B.cpu().numpy(), rise_B.cpu().numpy())


def explain_session(
    session: onnxruntime.InferenceSession,
    x: np.ndarray,
    layout: Layout,
    baseline: np.ndarray,
    *,
    method: AttributionMethod = "shapley",
    target: np.ndarray | None = None,
    units: FeatureGroups | None = None,
    passes: int | None = None,
    seed: int = 0,
    is_row_by_row: bool = False,
) -> Explanation:
    """`explain` for an ONNX file as it is served, which has no gradients: x and baseline float32 (B, ...)."""

    def answers(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(compute_outputs(session, x.numpy(), is_row_by_row=is_row_by_row))

    x_rows, still = torch.from_numpy(x), torch.from_numpy(baseline)
    return explain(answers, x_rows, layout, still, method=method, target=target, units=units, passes=passes, seed=seed)


def default_method(network: nn.Module | OutputFunction, layout: Layout) -> AttributionMethod:
    """Integrated gradients where every value of a row has a gradient, else Shapley values."""
    if not isinstance(network, nn.Module) or layout.categories:
        return "shapley"
    if layout.kind == "tokens" and _embedding(network, layout) is None:
        return "shapley"
    return "integrated_gradients"


def _require_gradients(network: nn.Module | OutputFunction, layout: Layout, embedding: nn.Embedding | None) -> None:
    if default_method(network, layout) == "integrated_gradients":
        return
    lack = "tokens without an embedding" if layout.kind == "tokens" else "numbers of categories"
    raise RecipeInvalid(
        f"integrated gradients are asked of {lack if isinstance(network, nn.Module) else 'an ONNX file'}",
        required="a method that needs no gradients: occlusion, lime, kernel_shap or shapley",
        where="the recipe's training.explain.method",
        remedy="leave the method out, or name another one",
    )


def _centred(network: nn.Module | OutputFunction) -> OutputFunction:
    def answers(x: torch.Tensor) -> torch.Tensor:
        outputs_BK = network(x)
        return outputs_BK - outputs_BK.mean(1, keepdim=True) if outputs_BK.shape[1] > 1 else outputs_BK

    return answers


def _embedding(network: nn.Module | OutputFunction, layout: Layout) -> nn.Embedding | None:
    """The table that tokens are looked up in: the first that has a row for each of them."""
    if not isinstance(network, nn.Module) or layout.kind != "tokens":
        return None
    tables = (module for module in network.modules() if isinstance(module, nn.Embedding))
    return next((table for table in tables if table.num_embeddings >= (layout.num_tokens or 0)), None)


def _rows_at_once(layout: Layout, embedding: nn.Embedding | None) -> int:
    width = embedding.embedding_dim if embedding else _TOKEN_WIDTH if layout.kind == "tokens" else 1
    return max(min(_MOST_ROWS, _MOST_VALUES // (layout.num_values * width)), 1)


@contextmanager
def _undisturbed(network: nn.Module | OutputFunction, seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers from `seed`, and the network in evaluation mode; afterwards both are as before.

    cuDNN differentiates recurrent layers in training mode alone, so it is left aside.
    """
    modes = {one: one.training for one in network.modules()} if isinstance(network, nn.Module) else {}
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.backends.cudnn.flags(enabled=False):
        torch.manual_seed(seed)
        for one in modes:
            one.training = False
        try:
            yield
        finally:
            for one, mode in modes.items():
                one.training = mode


@contextmanager
def _blank(answers: OutputFunction, embedding: nn.Embedding, padding_1T: torch.Tensor) -> Iterator[None]:
    """Meanwhile every token is looked up as padding, though it still counts as being there."""
    seen: list[torch.Tensor] = []
    hook = embedding.register_forward_hook(lambda table, _, out_BTW: seen.append(out_BTW[:, :1]))
    with torch.no_grad():
        answers(padding_1T)
    hook.remove()
    hook = embedding.register_forward_hook(lambda table, _, out_BTW: seen[0].expand_as(out_BTW))
    try:
        yield
    finally:
        hook.remove()


def _in_batches(answers: OutputFunction, x: torch.Tensor, at_once: int) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([answers(rows) for rows in x.split(at_once)])


def _by_gradients(
    answers: OutputFunction,
    x: torch.Tensor,
    baseline: torch.Tensor,
    target_B: torch.Tensor,
    embedding: nn.Embedding | None,
    num_steps: int,
    at_once: int,
) -> torch.Tensor:
    """The gradient's mean on the way from the baseline to the row, times the way. Of tokens, that of their vectors."""
    from captum.attr import IntegratedGradients, LayerIntegratedGradients

    explainer = IntegratedGradients(answers) if embedding is None else LayerIntegratedGradients(answers, embedding)
    found = []
    num_rows = max(at_once // num_steps, 1)
    for rows, still, target in zip(x.split(num_rows), baseline.split(num_rows), target_B.split(num_rows), strict=True):
        # A copy, since Captum asks for gradients of what it is given.
        start = rows.clone().requires_grad_(embedding is None)
        weights = explainer.attribute(
            start, still, target=target, n_steps=num_steps, internal_batch_size=max(at_once, len(rows))
        )
        found.append((weights if embedding is None else weights.sum(-1)).detach().float())
    return torch.cat(found)


def _by_units(
    answers: OutputFunction,
    x: torch.Tensor,
    baseline: torch.Tensor,
    target_B: torch.Tensor,
    layout: Layout,
    units: FeatureGroups,
    method: AttributionMethod,
    passes: int | None,
    at_once: int,
) -> torch.Tensor:
    """Row by row, since each has units of its own: those that differ from the baseline."""
    of = torch.from_numpy(units.of).to(x.device)
    found = []
    for row, still, target in zip(x.split(1), baseline.split(1), target_B.tolist(), strict=True):
        differs = row != still
        present, places = torch.unique(of[differs[0]], return_inverse=True)
        if len(present) == 0:
            found.append(torch.zeros_like(row))
            continue
        if method == "occlusion" and layout.kind == "image":
            found.append(_by_window(answers, row, still, target, at_once))
            continue
        # What is as in the baseline may belong to any unit, so it is given to the first.
        mask = torch.zeros_like(of).masked_scatter(differs[0], places)[None]
        num_passes = passes or _PASSES * len(present)
        weights = _weights_of_units(answers, row, still, target, mask, len(present), method, num_passes, at_once)
        sizes = torch.bincount(places, minlength=len(present)).to(weights.dtype)
        found.append(torch.where(differs, (weights / sizes)[mask], 0.0))
    return torch.cat(found)


def _by_window(
    answers: OutputFunction, row: torch.Tensor, still: torch.Tensor, target: int, at_once: int
) -> torch.Tensor:
    """The mean loss of the answer over all windows that hide a pixel, (1, C, H, W) with equal channels."""
    from captum.attr import Occlusion

    channels, height, width = row.shape[1:]
    window = (channels, math.ceil(height / 4), math.ceil(width / 4))
    strides = (channels, math.ceil(height / 16), math.ceil(width / 16))
    return (
        Occlusion(answers)
        .attribute(row, window, strides, baselines=still, target=target, perturbations_per_eval=at_once)
        .float()
    )


def _weights_of_units(
    answers: OutputFunction,
    row: torch.Tensor,
    still: torch.Tensor,
    target: int,
    mask: torch.Tensor,
    num_units: int,
    method: AttributionMethod,
    num_passes: int,
    at_once: int,
) -> torch.Tensor:
    """The weight of each unit of one row, float32 (U,); `mask` int64 (1, ...) has the unit of each position."""
    from captum._utils.models.linear_model import SkLearnRidge
    from captum.attr import FeatureAblation, KernelShap, Lime

    if method == "shapley":
        return _by_permutations(answers, row, still, target, mask[0], num_units, num_passes, at_once)
    asked = {"baselines": still, "target": target, "feature_mask": mask, "perturbations_per_eval": at_once}
    if method == "occlusion" or num_units == 1:
        weights = FeatureAblation(answers).attribute(row, **asked).flatten().float()
        _, first = np.unique(mask.cpu().numpy().ravel(), return_index=True)
        return weights[torch.from_numpy(first).to(weights.device)]
    if method == "kernel_shap":
        explainer = KernelShap(answers)
        return explainer.attribute(row, n_samples=num_passes + 2, return_input_shape=False, **asked).flatten().float()
    local = Lime(answers, interpretable_model=SkLearnRidge(alpha=_LIME_RIDGE), similarity_func=_likeness)
    return local.attribute(row, n_samples=num_passes + 1, return_input_shape=False, **asked).flatten().float()


def _by_permutations(
    answers: OutputFunction,
    row: torch.Tensor,
    still: torch.Tensor,
    target: int,
    unit: torch.Tensor,
    num_units: int,
    num_passes: int,
    at_once: int,
) -> torch.Tensor:
    """What the answer gains by each unit, float32 (U,), over orders in which units come; `unit` is that of each place.

    Each order is walked backwards too, which takes out much of the chance. Captum's `ShapleyValueSampling` gives the
    same figures, at about four times the cost where the network is small (docs/explanations.md).

    Source: Mitchell, Cooper, Frank & Holmes 2022, "Sampling Permutations for Shapley Value Estimation", section 3.
    """
    num_pairs = max(num_passes // (2 * num_units), 1)
    num_kept = torch.arange(num_units + 1, device=row.device).view(-1, *[1] * unit.dim())
    gains_U = torch.zeros(num_units, device=row.device)
    for _ in range(num_pairs):
        drawn = torch.randperm(num_units).to(row.device)
        for order in (drawn, drawn.flip(0)):
            # The place of each unit in the order; row k has the units whose place is below k.
            place = torch.empty_like(order).scatter_(0, order, torch.arange(num_units, device=row.device))
            rows = torch.where(place[unit] < num_kept, row, still)
            gains_U[order] += _in_batches(answers, rows, at_once)[:, target].diff()
    return gains_U / (2 * num_pairs)


def _likeness(row: torch.Tensor, changed: torch.Tensor, kept_1U: torch.Tensor, **_: object) -> float:
    """How much a row counts in which only some units are kept: by the cosine to one in which all are."""
    distance = 1 - math.sqrt(float(kept_1U.float().mean()))
    return math.exp(-((distance / _LIME_WIDTH) ** 2))
