"""The attention of networks of `transformers`: PyTorch's in training, one operator in an ONNX file.

Shapes: B rows, T steps, N heads, D width of a head, I width of all heads.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

NAME = "bloomery"  # under which `transformers` finds the functions
# Options that queries, keys and masks contain already.
_CONTAINED = ("input_ids", "position_ids", "cache_position")


def register_attention() -> str:
    """Makes the functions of this module known to `transformers`, and returns the name of the implementation."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attend_heads)
    AttentionMaskInterface.register(NAME, make_mask)
    return NAME


def make_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Any = None,
    attention_mask: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor | None:
    """The mask that `attend_heads` gets: of padding (B, T), or of every pair of steps (B, 1, T, T) for a local window.

    A causal network needs no mask of padding, because padding is at the end.
    """
    from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

    if mask_function is bidirectional_mask_function:
        return attention_mask
    if mask_function is causal_mask_function:
        return None
    options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(
        batch_size, q_length, kv_length, mask_function=mask_function, attention_mask=attention_mask, **options
    )


def attend_heads(
    module: nn.Module,
    query_BNTD: torch.Tensor,
    key_BNTD: torch.Tensor,
    value_BNTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention (B, T, N, D), with the signature that `transformers` calls.

    A mask of every pair of steps contains the causal order already. `position_bias` (B or 1, N or 1, T, T) is added to
    the scores.

    Raises:
        ValueError: the network has a further option that changes the scores.
    """
    _refuse_options(options)
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", False))
    is_causal = is_causal and attention_mask is None
    if position_bias is not None:
        attention_mask, is_causal = _add_mask(position_bias, attention_mask, is_causal=is_causal), False
    if key_BNTD.shape[1] != query_BNTD.shape[1]:  # several heads of queries share one of keys and values
        num_shared = query_BNTD.shape[1] // key_BNTD.shape[1]
        key_BNTD, value_BNTD = (x.repeat_interleave(num_shared, dim=1) for x in (key_BNTD, value_BNTD))
    if torch.onnx.is_in_onnx_export():
        return _export_attention(query_BNTD, key_BNTD, value_BNTD, attention_mask, scaling, is_causal), None
    mask = attention_mask
    if mask is not None and mask.dim() == 2:
        mask = mask[:, None, None, :]
    a_BNTD = F.scaled_dot_product_attention(
        query_BNTD, key_BNTD, value_BNTD, attn_mask=mask, dropout_p=dropout, is_causal=is_causal, scale=scaling
    )
    return a_BNTD.transpose(1, 2), None


def _refuse_options(options: dict[str, Any]) -> None:
    """Raises ValueError for options that change the scores, such as a soft cap, sinks or chosen keys."""
    for name, value in options.items():
        changes_scores = name == "softcap" or isinstance(value, torch.Tensor)
        if changes_scores and value is not None and name not in _CONTAINED:
            raise ValueError(f"its attention has the option {name}, which is not supported")


def _add_mask(bias: torch.Tensor, mask: torch.Tensor | None, *, is_causal: bool) -> torch.Tensor:
    """The values that are added to the scores (B or 1, N or 1, T, T)."""
    if is_causal:
        mask = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).tril()
    elif mask is not None and mask.dim() == 2:
        mask = mask[:, None, None, :]
    if mask is None:
        return bias
    return bias.masked_fill(~mask, torch.finfo(bias.dtype).min) if mask.dtype == torch.bool else bias + mask


def _export_attention(
    query_BNTD: torch.Tensor,
    key_BNTD: torch.Tensor,
    value_BNTD: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    is_causal: bool,
) -> torch.Tensor:
    """One operator of ONNX Runtime, as for our own networks (`attend` in `layers/attention.py`)."""
    num_heads, head_width = query_BNTD.shape[1], query_BNTD.shape[3]
    q_BTI, k_BTI, v_BTI = (x.transpose(1, 2).flatten(2) for x in (query_BNTD, key_BNTD, value_BNTD))
    lowest = torch.finfo(torch.float32).min
    padding, bias = None, None
    if mask is not None and mask.dim() == 2:
        padding = mask.to(torch.int32)
    elif mask is not None:
        # A float mask is added to the scores already.
        bias = (
            torch.zeros_like(mask, dtype=q_BTI.dtype).masked_fill(~mask, lowest) if mask.dtype == torch.bool else mask
        )
    options: dict[str, Any] = {
        "num_heads": num_heads,
        "unidirectional": int(is_causal),
        "mask_filter_value": lowest,
    }
    if scaling is not None and not math.isclose(scaling, head_width**-0.5):
        options["scale"] = float(scaling)
    a_BTI = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        (q_BTI, k_BTI, v_BTI, None, padding, bias),
        options,
        dtype=q_BTI.dtype,
        shape=q_BTI.shape,
        version=1,
    )
    return a_BTI.unflatten(2, (num_heads, head_width))
