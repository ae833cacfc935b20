"""Attention for one new token, several times faster than asking for it plainly.

On the CPU, torch's attention over one query row costs as much as over eight, and takes each query head by itself even
where several share one key-value head. So the heads of a group are passed as the rows of one head (grouped-query
attention), and a head without company is passed twice. One Zen 5 thread, 512 positions: 14 heads on 2, 569 → 45 µs; 16
heads on 16, 719 → 181 µs. The result is that of the same operator. Everything else goes to transformers' own function.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "grouped_sdpa"
"""The name under which transformers knows it (`attn_implementation`)."""


def register_attention() -> None:
    """Make `ATTENTION` known to transformers. May be called again."""
    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`query` `[batch, heads, length, size]`, `key` and `value` with fewer heads → `[batch, length, heads, size]`."""
    special = kwargs.get("softcap") is not None or kwargs.get("position_bias") is not None
    per_head = attention_mask is not None and attention_mask.shape[1] != 1
    if query.shape[2] != 1 or query.device.type != "cpu" or special or per_head:
        output, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output, weights
    batch, heads, _, _ = query.shape
    group = heads // key.shape[1]
    rows = query.reshape(batch, key.shape[1], group, -1)
    if group == 1:
        rows = rows.expand(-1, -1, 2, -1)
    scale = kwargs.get("scaling")
    result = nn.functional.scaled_dot_product_attention(rows, key, value, attn_mask=attention_mask, scale=scale)
    return result[:, :, :group].reshape(batch, 1, heads, -1), None
