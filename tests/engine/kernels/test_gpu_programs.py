"""Our GPU programs against plain torch in fp32. They run on a GPU, or, with TRITON_INTERPRET=1, anywhere with triton.

Results are bf16: 0.004 off at most for each rounding, of which there are up to three; the interpreter cuts where a GPU
rounds, which is twice as far.
"""

import os

import pytest
import torch

pytest.importorskip("triton", reason="torch's CUDA builds for Linux bring it along")
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config, StaticCache

from quantstudio.engine.gpu_step import GpuStep
from quantstudio.engine.kernels import gpu_calls as calls
from quantstudio.engine.kv_cache import cache_argument

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not torch.cuda.is_available() and not INTERPRETED:
    pytest.skip("there is no GPU", allow_module_level=True)
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
ROUNDINGS = 0.008 if INTERPRETED else 0.004


def far(found, expected):
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def drawn(*shape, seed=0):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values.to(torch.bfloat16).to(DEVICE)


def four_bits(rows, columns, group, with_zeros):
    chance = torch.Generator().manual_seed(1)
    codes = torch.randint(-8, 8, (rows, columns), dtype=torch.int8, generator=chance)
    scales = ((torch.rand(rows, columns // group, generator=chance) - 0.3) * 0.02).to(torch.bfloat16)
    zeros = torch.randint(0, 16, scales.shape, dtype=torch.uint8, generator=chance) if with_zeros else None
    offsets = torch.full(scales.shape, 8.0) if zeros is None else zeros.float()
    weight = (codes.float() + 8 - offsets.repeat_interleave(group, 1)) * scales.float().repeat_interleave(group, 1)
    zeros = None if zeros is None else zeros.to(DEVICE)
    matrix = calls.Matrix(4, calls.pack_words(codes, group).to(DEVICE), scales.to(DEVICE), zeros, group)
    return matrix, weight.to(DEVICE)


def eight_bits(rows, columns):
    chance = torch.Generator().manual_seed(1)
    codes = torch.randint(-128, 128, (rows, columns), dtype=torch.int8, generator=chance).to(DEVICE)
    scales = ((torch.rand(rows, generator=chance) - 0.3) * 0.01).to(torch.bfloat16).to(DEVICE)
    return calls.Matrix(8, codes, scales), codes.float() * scales.float()[:, None]


def sixteen_bits(rows, columns):
    weight = drawn(rows, columns, seed=1)
    return calls.Matrix(16, weight), weight.float()


MATRICES = {
    "int4 g32": lambda: four_bits(40, 384, 32, with_zeros=False),
    "int4 g64 with zero points": lambda: four_bits(37, 448, 64, with_zeros=True),
    "int4 g128": lambda: four_bits(36, 896, 128, with_zeros=False),
    "int8": lambda: eight_bits(38, 390),
    "bf16": lambda: sixteen_bits(38, 390),
}


@pytest.mark.parametrize("kind", [name for name in MATRICES if name.startswith("int4")])
def test_unpacking_gives_the_weight(kind):
    matrix, weight = MATRICES[kind]()
    assert far(calls.unpacked(matrix), weight) < ROUNDINGS


@pytest.mark.parametrize("tiling", [None, calls.Tiling(4, 512, 4), calls.Tiling(16, 2048, 8)])
@pytest.mark.parametrize("kind", MATRICES)
def test_a_product(kind, tiling):
    matrix, weight = MATRICES[kind]()
    x = drawn(matrix.columns)
    out = x.new_empty(matrix.rows)
    assert far(calls.product(x, matrix, out, cut=tiling), weight @ x.float()) < ROUNDINGS


@pytest.mark.parametrize("kind", MATRICES)
def test_a_product_with_all_that_surrounds_it(kind):
    matrix, weight = MATRICES[kind]()
    x, norm = drawn(matrix.columns), drawn(matrix.columns, seed=2)
    bias, residual = drawn(matrix.rows, seed=3), drawn(matrix.rows, seed=4)
    normed = x.float() * torch.rsqrt(x.float().square().mean() + 1e-6) * norm.float()
    expected = weight @ normed + bias.float() + residual.float()
    found = calls.product(x, matrix, residual, bias=bias, norm=norm, epsilon=1e-6, residual=residual)
    assert found is residual
    assert far(found, expected) < 2 * ROUNDINGS


@pytest.mark.parametrize("kind", ["int4 g32", "int8", "bf16"])
def test_gate_and_up(kind):
    matrix, weight = MATRICES[kind]()
    x = drawn(matrix.columns)
    gate, up = (weight @ x.float()).view(2, -1)
    found = calls.product(x, matrix, x.new_empty(matrix.rows // 2), gated=True)
    assert far(found, torch.nn.functional.silu(gate) * up) < 3 * ROUNDINGS


@pytest.mark.parametrize("position", [0, 1, 63, 64, 200, 1000])
@pytest.mark.parametrize(
    ("queries", "shared", "size", "normed"), [(14, 2, 64, False), (8, 8, 64, True), (4, 2, 128, True)]
)
def test_attention_of_one_token(queries, shared, size, normed, position):
    heads = calls.Heads(queries, shared, size, size**-0.5, 1e-6)
    keys, values = drawn(1, shared, 1024, size), drawn(1, shared, 1024, size, seed=1)
    states = drawn((queries + 2 * shared) * size, seed=2)
    angles = drawn(size // 2, seed=3).float().repeat(2)
    turn = angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16)
    norms = (drawn(size, seed=4), drawn(size, seed=5)) if normed else None
    before = keys.clone()
    found = calls.Attention(heads, DEVICE)(states, turn, (keys, values), torch.tensor(position, device=DEVICE), norms)
    query, key, value = states.float().view(-1, size).split([queries, shared, shared])
    if norms is not None:
        query, key = (
            each * torch.rsqrt(each.square().mean(-1, keepdim=True) + 1e-6) * norm.float()
            for each, norm in zip((query, key), norms, strict=True)
        )
    query, key = (each * turn[0].float() + _halves_swapped(each) * turn[1].float() for each in (query, key))
    assert far(keys[0, :, position], key) < 2 * ROUNDINGS
    assert torch.equal(values[0, :, position].float(), value)
    keys[0, :, position] = before[0, :, position]
    assert torch.equal(keys, before), "another position of the cache was written"
    all_keys, all_values = keys[0, :, : position + 1].float(), values[0, :, : position + 1].float()
    all_keys[:, position] = key
    expected = torch.nn.functional.scaled_dot_product_attention(query.view(shared, -1, size), all_keys, all_values)
    assert far(found, expected.flatten()) < 3 * ROUNDINGS


@pytest.mark.parametrize(("kind", "more"), [(Qwen2Config, {}), (Qwen3Config, {"head_dim": 64})], ids=["Qwen2", "Qwen3"])
def test_a_whole_token(kind, more):
    """Layers, order of programs and the cache's length, by the short way and by transformers' own code."""
    torch.manual_seed(0)
    config = kind(
        vocab_size=64, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, **more,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(requires_grad=False)
    model, ids = model.to(DEVICE), torch.randint(0, 64, (1, 10)).to(DEVICE)
    with torch.inference_mode():
        expected = model(input_ids=ids).logits[0, -1]
        cache = StaticCache(config=config, max_cache_len=64)
        step = GpuStep(model)
        model(input_ids=ids[:, :-1], **cache_argument(model, cache))
        assert far(step(ids[:, -1:], cache), expected) < 5 * ROUNDINGS
    assert [int(layer.cumulative_length) for layer in cache.layers] == [10, 10]


def _halves_swapped(x):
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)
