"""Activations on int8, one scale per token, computed as the model runs.

The arithmetic is compressed-tensors' (bf16 throughout, absmax / 127.5), so that a saved model means the same here as
in transformers. https://github.com/vllm-project/compressed-tensors, `compute_dynamic_scales_and_zp`.
"""

from __future__ import annotations

import torch

_HALF_RANGE = 127.5


def quantize_per_token(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`x` `[…, features]` → (codes, scales `[…, 1]`), both in the dtype of `x`; codes are whole, -128…127.

    bf16 holds every whole number up to 256, so codes may go through bf16 operators as they are.
    """
    # Two passes, yet 13 times faster than vector_norm or aminmax, which do not use vector instructions along rows.
    limit = x.abs().amax(-1, keepdim=True)
    # A row of zeros: any scale gives codes of zero.
    scales = (limit / _HALF_RANGE).clamp_min_(torch.finfo(x.dtype).tiny)
    return (x / scales).clamp_(-128, 127).round_(), scales


def fake_quantize_per_token(x: torch.Tensor) -> torch.Tensor:
    """What is left of `x` after rounding it to int8 per token, in its own dtype."""
    codes, scales = quantize_per_token(x)
    return codes.mul_(scales)
