from __future__ import annotations

import pytest
import torch
from torch import nn

from quantstudio.engine import attention


def attend(query, key, value, mask=None, **kwargs):
    return attention._attend(nn.Module(), query, key, value, mask, scaling=0.2, **kwargs)[0]


def expected(query, key, value, mask=None, *, causal=False):
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    return nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=0.2
    ).transpose(1, 2)


def tensors(heads, shared, rows, positions):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, rows, heads, 16, generator=generator).transpose(1, 2)
    # Keys and values are views of a longer buffer, as the cache gives them.
    key, value = (torch.randn(1, shared, positions + 9, 16, generator=generator)[:, :, :positions] for _ in "kv")
    return query, key, value


@pytest.mark.parametrize(("heads", "shared"), [(14, 2), (4, 4), (6, 1)])
def test_one_token_equals_plain_attention(heads, shared):
    query, key, value = tensors(heads, shared, 1, 77)
    torch.testing.assert_close(attend(query, key, value), expected(query, key, value))
    window = torch.arange(77)[None, None, None] > 50
    torch.testing.assert_close(attend(query, key, value, window), expected(query, key, value, window))


@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("length", [2, 63, 64, 65, 128, 300, 600])
def test_prompt_equals_causal_attention(length, heads):
    query, key, value = tensors(heads, 2, length, length)
    torch.testing.assert_close(attend(query, key, value), expected(query, key, value, causal=True))


@pytest.mark.parametrize(("before", "length", "window"), [(1, 2, 999), (40, 130, 999), (300, 65, 999), (99, 150, 70)])
def test_prompt_that_continues_a_sequence_equals_masked_attention(before, length, window):
    query, key, value = tensors(6, 2, length, before + length)
    at, seen = before + torch.arange(length)[:, None], torch.arange(before + length)[None]
    mask = ((seen <= at) & (seen > at - window))[None, None]
    torch.testing.assert_close(attend(query, key, value, mask), expected(query, key, value, mask))


def test_several_prompts_are_each_as_if_alone():
    pieces = [tensors(6, 2, 130, 130), [each.flip(2) for each in tensors(6, 2, 130, 130)]]
    query, key, value = (torch.cat(each) for each in zip(*pieces, strict=True))
    mask = torch.ones(2, 1, 130, 130, dtype=torch.bool).tril()
    mask[1, :, 5:, :3] = False
    for seen in (None, mask[:1], mask):
        alone = [
            attend(*piece, None if seen is None else seen[place % len(seen)][None])
            for place, piece in enumerate(pieces)
        ]
        assert torch.equal(attend(query, key, value, seen), torch.cat(alone))


def test_prompt_goes_through_blocks_only_when_it_may(monkeypatch):
    calls = []
    monkeypatch.setattr(attention, "_prompt", lambda query, *rest: calls.append(1) or query.transpose(1, 2))
    query, key, value = tensors(6, 2, 80, 80)
    mask = torch.ones(80, 80, dtype=torch.bool).tril()[None, None]
    attend(query, key, value)
    attend(query, key, value, mask)
    assert len(calls) == 2
    module = nn.Module()
    module.num_key_value_groups = 3
    bias = torch.zeros(1, 1, 80, 80).masked_fill(~mask, -5.0)
    found = attention._attend(module, query, key, value, bias, scaling=0.2)[0]
    torch.testing.assert_close(found, expected(query, key, value, bias))
    found = attention._attend(module, query, key, value, None, scaling=0.2, is_causal=False)[0]
    torch.testing.assert_close(found, expected(query, key, value))
    assert len(calls) == 2
