"""Decode speed on an NVIDIA GPU, batch 1: bf16, int8 and int4, by transformers' own code under a recorded graph,
compiled by torch, and by this program's short way.

    python tests/benchmarks/decode_gpu.py [--shapes 0.5B 7B] [--trials 5] [--tokens 64] [--compile]
    python tests/benchmarks/decode_gpu.py --products        products alone, by tiling, against torch's operators
    python tests/benchmarks/decode_gpu.py --families phi3 gemma     other families, as machine.compile compiles them

Weights are random, which speed does not notice. All variants of a shape are in memory at once and take turns; ratios
are medians over trials of the ratio within one trial.
"""

from __future__ import annotations

import argparse
import copy
import gc
import os
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GemmaConfig, Phi3Config, PretrainedConfig, PreTrainedModel, Qwen2Config

from quantstudio.core import protocol
from quantstudio.core.schemes import W4A16, W8A16, WeightSpec
from quantstudio.engine.attention import ATTENTION, register_attention
from quantstudio.engine.compiled_step import CompiledStep, make_compiled_step
from quantstudio.engine.cuda_graph import GraphDecoder
from quantstudio.engine.gpu_step import make_gpu_step
from quantstudio.engine.kernels.cuda import CudaInt4, CudaInt8
from quantstudio.engine.kernels.gpu_int4 import GpuInt4
from quantstudio.engine.kv_cache import cache_argument
from quantstudio.engine.quantized_weight import QuantizedWeight
from quantstudio.engine.reporter import Reporter

SHAPES = {
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
             "num_key_value_heads": 2, "tie_word_embeddings": True},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4, "tie_word_embeddings": False},
}  # fmt: skip
FAMILIES = {
    "phi3": Phi3Config(
        hidden_size=3072, intermediate_size=8192, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, vocab_size=32_064, max_position_embeddings=4096, sliding_window=None,
    ),
    "gemma": GemmaConfig(
        hidden_size=2048, intermediate_size=16_384, num_hidden_layers=18, num_attention_heads=8,
        num_key_value_heads=1, head_dim=256, vocab_size=256_000, max_position_embeddings=4096,
    ),
}  # fmt: skip
CAPACITY = 1024
Way = Callable[[torch.Tensor, Any], torch.Tensor]


def main() -> None:
    options = _options()
    print(torch.cuda.get_device_name(), "torch", torch.__version__, flush=True)
    if options.products:
        _products(options)
        return
    if options.families:
        with tempfile.TemporaryDirectory() as home:
            os.environ["QUANTSTUDIO_HOME"] = home
            for family in options.families:
                _family(family, options)
                gc.collect()
                torch.cuda.empty_cache()
        return
    for shape in options.shapes:
        _shape(shape, options)
        gc.collect()
        torch.cuda.empty_cache()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--products", action="store_true")
    parser.add_argument("--families", nargs="+", choices=FAMILIES)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 8, 16], choices=[4, 8, 16], help="of products")
    return parser.parse_args()


def _original(shape: str) -> PreTrainedModel:
    return _random(Qwen2Config(vocab_size=152_064, max_position_embeddings=4096, **SHAPES[shape]))


def _random(config: PretrainedConfig) -> PreTrainedModel:
    register_attention()
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=ATTENTION)
    return model.eval().requires_grad_(requires_grad=False)


def _with(original: PreTrainedModel, spec: WeightSpec, kind: Any, head: Any) -> PreTrainedModel:
    """The same model with every linear layer on a kernel; norms and embedding are shared with the original."""
    shared = {id(value): value for value in original.parameters()}
    model = copy.deepcopy(original, shared)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name in names:
        old = model.get_submodule(name)
        on_head = name == "lm_head"
        own = W8A16().weight_spec() if on_head and head is CudaInt8 else spec
        weight = _drawn(own, *old.weight.shape)
        model.set_submodule(name, (head if on_head else kind)(weight, old.bias))
    return model


def _drawn(spec: WeightSpec, rows: int, columns: int) -> QuantizedWeight:
    """Random codes, and scales that make the weight as large as a fresh model's."""
    low, high = spec.code_range
    codes = torch.randint(low, high + 1, (rows, columns), dtype=torch.int8, device="cuda")
    groups = columns // spec.group_size if spec.group_size else 1
    scales = torch.full((rows, groups), 0.07 / (high - low), dtype=torch.bfloat16, device="cuda")
    return QuantizedWeight(codes, scales, None, spec)


def _variants(shape: str, options: argparse.Namespace) -> dict[str, tuple[PreTrainedModel, Way | None]]:
    original = _original(shape)
    four, eight = W4A16(group_size=128).weight_spec(), W8A16().weight_spec()
    models = {
        "bf16": original,
        "int4, torch's operator": _with(original, four, CudaInt4, CudaInt4),
        "int4": _with(original, four, GpuInt4, GpuInt4),
        "int4, int8 head": _with(original, four, GpuInt4, CudaInt8),
        "int8": _with(original, eight, CudaInt8, CudaInt8),
    }
    variants: dict[str, tuple[PreTrainedModel, Way | None]] = {}
    for name, model in models.items():
        if options.compile and name in ("bf16", "int4, torch's operator"):
            variants[f"{name}, compiled"] = model, _compiled(model)
        if name != "int4, int8 head":
            variants[f"{name}, transformers' code in a graph"] = model, None
    for name, model in models.items():
        if name != "int4, torch's operator":
            variants[f"{name}, short way"] = model, make_gpu_step(model)
    return variants


def _compiled(model: PreTrainedModel) -> Way:
    def step(token: torch.Tensor, cache: Any) -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=token, logits_to_keep=1, **cache_argument(model, cache)).logits[0, -1]
        return logits

    return torch.compile(step, dynamic=False)


def _family(family: str, options: argparse.Namespace) -> None:
    """As a run with and without machine.compile; what compiling took is printed, and what it takes once more."""
    original = _random(FAMILIES[family])
    variants: dict[str, tuple[PreTrainedModel, Way | None]] = {}
    for name, model in (
        ("bf16", original),
        ("int4", _with(original, W4A16(group_size=128).weight_spec(), GpuInt4, GpuInt4)),
    ):
        reporter = Reporter(lambda message, name=name: _say(f"{family} {name}", message))
        variants[f"{name}, transformers' code in a graph"] = model, None
        variants[f"{name}, compiled"] = model, make_compiled_step(model, "cuda", reporter)
        variants[f"{name}, compiled again"] = model, make_compiled_step(model, "cuda", reporter)
    _compare(family, variants, options)


def _say(label: str, message: protocol.Message) -> None:
    if isinstance(message, protocol.Notice):
        print(f"{label}: {message.text}", flush=True)


def _shape(shape: str, options: argparse.Namespace) -> None:
    _compare(shape, _variants(shape, options), options)


def _compare(shape: str, variants: dict[str, tuple[PreTrainedModel, Way | None]], options: argparse.Namespace) -> None:
    vocabulary = next(iter(variants.values()))[0].config.vocab_size
    prompt = torch.randint(0, vocabulary - 1000, (options.prompt,), generator=torch.Generator().manual_seed(0)).tolist()
    decoders: dict[str, GraphDecoder] = {}
    for name, (model, way) in variants.items():
        started = time.perf_counter()
        if isinstance(way, CompiledStep) and decoders.pop(name.removesuffix(" again"), None):
            torch._dynamo.reset()  # what is left of the first time is on the disk
        try:
            decoder = GraphDecoder(model, CAPACITY, way)
            with torch.inference_mode():
                decoder.read(prompt)
                decoder.step(1)
                torch.cuda.synchronize()
            decoders[name] = decoder
            print(f"{shape} {name}: ready after {time.perf_counter() - started:.1f} s", flush=True)
        except Exception:
            traceback.print_exc()
    trials: dict[str, list[float]] = {name: [] for name in decoders}
    prompts: dict[str, list[float]] = {name: [] for name in decoders}
    for number in range(options.trials + 1):
        for name, decoder in decoders.items():
            first, each = _trial(decoder, prompt, options.tokens)
            if number:
                trials[name].append(each)
                prompts[name].append(first)
    plain = "bf16, transformers' code in a graph"
    base = "bf16, compiled" if "bf16, compiled" in trials and not options.families else plain
    print(f"\n| {shape}, prompt {options.prompt} | tokens/s | x {base} | prompt, ms |\n| --- | --- | --- | --- |")
    for name, own in trials.items():
        ratio = statistics.median(b / o for b, o in zip(trials[base], own, strict=True))
        first = 1000 * statistics.median(prompts[name])
        print(f"| {name} | {1 / statistics.median(own):.0f} | {ratio:.2f} | {first:.1f} |", flush=True)
    print(f"peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB", flush=True)


@torch.inference_mode()
def _trial(decoder: GraphDecoder, prompt: list[int], tokens: int) -> tuple[float, float]:
    """Seconds of the prompt, and median seconds of a token, each chosen on the CPU as an answer's is."""
    decoder.restart()
    torch.cuda.synchronize()
    started = time.perf_counter()
    token = int(decoder.read(prompt).argmax())
    first = time.perf_counter() - started
    seconds = []
    for _ in range(tokens):
        started = time.perf_counter()
        token = int(decoder.step(token).argmax())
        seconds.append(time.perf_counter() - started)
    return first, statistics.median(seconds)


MATRICES = {
    "7B": [(4608, 3584), (3584, 3584), (37888, 3584), (3584, 18944), (152064, 3584)],
    "0.5B": [(1152, 896), (896, 896), (9728, 896), (896, 4864), (152064, 896)],
}
FRESH_BYTES = 160 << 20
"""So many bytes of copies take turns that no cache holds them."""


def _products(options: argparse.Namespace) -> None:
    from quantstudio.engine.kernels import gpu_calls

    tilings = [
        gpu_calls.Tiling(rows, weights, warps)
        for rows in (2, 4, 8, 16, 32)
        for weights in (512, 1024, 2048)
        for warps in (1, 2, 4, 8)
        if 32 <= rows * weights / (32 * warps) <= 128
    ]
    for shape in options.shapes:
        for rows, columns in MATRICES[shape]:
            x = torch.randn(columns, device="cuda").to(torch.bfloat16)
            for bits in options.bits:
                try:
                    _product_times(gpu_calls, tilings, x, bits, rows, columns)
                except Exception:
                    traceback.print_exc()


def _product_times(gpu_calls: Any, tilings: list[Any], x: torch.Tensor, bits: int, rows: int, columns: int) -> None:
    matrices = _copies(gpu_calls, bits, rows, columns)
    out = x.new_empty(rows)
    found = {}
    for tiling in tilings:
        try:
            found[tiling] = _microseconds([lambda m=m, t=tiling: gpu_calls.product(x, m, out, cut=t) for m in matrices])
        except Exception as error:
            print(tiling, type(error).__name__, str(error)[:100])
    best = sorted(found, key=found.__getitem__)[:4]
    data = matrices[0].data
    nbytes = data.nbytes + (matrices[0].scales.nbytes if matrices[0].scales is not None else 0)
    theirs = ""
    if bits == 16:
        calls = [lambda m=m: nn.functional.linear(x[None], m.data) for m in matrices]
        theirs = f"linear {_microseconds(calls):.1f}"
    if bits == 4:
        packed = [
            torch.ops.aten._convert_weight_to_int4pack(
                torch.randint(0, 255, (rows, columns // 2), device="cuda", dtype=torch.uint8), 8
            )
            for _ in matrices
        ]
        pairs = torch.ones(columns // 128, rows, 2, device="cuda", dtype=torch.bfloat16)
        calls = [lambda p=p: torch.ops.aten._weight_int4pack_mm(x[None], p, 128, pairs) for p in packed]
        theirs = f"tinygemm {_microseconds(calls):.1f}"
    default = found.get(gpu_calls.tiling(bits, rows, columns))
    kept = f"; chosen {default:.1f}" if default else ""
    print(
        f"{bits:2} bits {rows} x {columns}: "
        + ", ".join(f"{t.rows}/{t.weights}/{t.warps} {found[t]:.1f}" for t in best)
        + f" us{kept}; {nbytes / min(found.values()) / 1e6:.2f} TB/s; {theirs}",
        flush=True,
    )


def _copies(gpu_calls: Any, bits: int, rows: int, columns: int) -> list[Any]:
    width = {4: columns // 8 * 4, 8: columns, 16: 2 * columns}[bits]
    count = max(2, -(-FRESH_BYTES // (rows * width)))
    made = []
    for _ in range(min(count, 64)):
        if bits == 4:
            data = torch.randint(-(1 << 31), 1 << 31, (rows, columns // 8), device="cuda", dtype=torch.int64)
            scales = torch.ones(rows, columns // 128, device="cuda", dtype=torch.bfloat16)
            made.append(gpu_calls.Matrix(4, data.to(torch.int32), scales, None, 128))
        elif bits == 8:
            data = torch.randint(-128, 128, (rows, columns), device="cuda", dtype=torch.int8)
            made.append(gpu_calls.Matrix(8, data, torch.ones(rows, device="cuda", dtype=torch.bfloat16)))
        else:
            made.append(gpu_calls.Matrix(16, torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16)))
    return made


def _microseconds(calls: list[Callable[[], object]]) -> float:
    """Of one call, when all are replayed one after the other in a graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    seconds = []
    for _ in range(4):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return 1e6 * min(seconds) / len(calls)


if __name__ == "__main__":
    main()
