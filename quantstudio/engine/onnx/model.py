"""A quantized model on ONNX Runtime: from our folder to a session.

Codes are repacked when the model is loaded, a second for 0.5B, so no second copy of it has to be kept in step with the
first. Activations are rounded to int8 inside the products, which the scheme may not say; what that costs is measured
by whoever chooses this engine.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quantstudio.core.disk import disk_problem
from quantstudio.core.engines import ONNX_RUNTIME
from quantstudio.core.errors import ModelDamaged, ModelUnsupported
from quantstudio.core.paths import data_home
from quantstudio.core.result import KernelUse
from quantstudio.engine.formats.compressed_tensors import read_weights
from quantstudio.engine.kernels.embedding import Int8Embedding
from quantstudio.engine.load import end_tokens
from quantstudio.engine.load_tokenizer import load_tokenizer
from quantstudio.engine.memory import give_back_freed_memory
from quantstudio.engine.onnx.blocks import Blocks, to_blocks
from quantstudio.engine.onnx.graph import Graph, GraphWriter, Layer, Shape
from quantstudio.engine.onnx.support import empty_if_fit
from quantstudio.engine.quantized_weight import QuantizedWeight
from quantstudio.engine.reporter import Reporter

Weight = tuple[Blocks, torch.Tensor | None]
"""A product's weight and bias."""


@dataclass(slots=True)
class OnnxModel:
    """A model in ONNX Runtime, ready to run; stands where a `LoadedModel` does for writing text."""

    session: Any
    """`onnxruntime.InferenceSession`."""
    embedding: nn.Module
    rotary: nn.Module
    """transformers' own: positions → cosines and sines."""
    shape: Shape
    context_length: int
    tokenizer: PreTrainedTokenizerBase | None
    folder: Path
    kernels: dict[str, int]
    end_tokens: frozenset[int]
    bytes_per_token: int
    """Bytes of weights that one token reads."""
    kernel_uses: tuple[KernelUse, ...] = ()
    device: str = "cpu"


def load_onnx(folder: Path, reporter: Reporter) -> OnnxModel:
    """Load a quantized folder into ONNX Runtime, on the CPU, with as many threads as torch has.

    Raises ModelUnsupported with the reason when `why_not` has one, and what reading weights raises; `Cancelled`.
    """
    folder = folder.resolve()
    model = empty_if_fit(folder)
    if isinstance(model, str):
        raise ModelUnsupported(
            "ONNX Runtime cannot run this model.", why=model, hint="Choose the engine torch.", field="machine.engine"
        )
    weights = _Weights(folder, model, reporter)
    shape = _shape(model)
    count, embedding, rotary = weights.products, weights.embedding, model.model.rotary_emb
    with _workspace() as workspace:
        graph = _graph(shape, model, weights, workspace)
        del weights
        give_back_freed_memory()
        session = _session(graph.path, torch.get_num_threads())
    tokenizer = load_tokenizer(folder)
    context = int(model.config.max_position_embeddings)
    ends = end_tokens(model, tokenizer)
    kernels = {ONNX_RUNTIME: count}
    return OnnxModel(
        session, embedding, rotary, shape, context, tokenizer, folder, kernels, ends, bytes_per_token=graph.nbytes
    )


class _Weights:
    """Everything that a folder holds, repacked on the way."""

    def __init__(self, folder: Path, model: PreTrainedModel, reporter: Reporter) -> None:
        self._blocks: dict[str, Blocks] = {}
        self._vectors: dict[str, torch.Tensor] = {}
        self.embedding: nn.Module = nn.Identity()
        table = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
        for name, value in read_weights(folder):
            reporter.check_cancel()
            if name in (table, f"{table}.weight"):
                _require_fit(model, table, value)
                self.embedding = _embedding(value)
            elif isinstance(value, QuantizedWeight):
                _require_fit(model, name, value)
                self._blocks[name] = to_blocks(value)
            else:
                self._vectors[name] = value.float()
        if isinstance(self.embedding, nn.Identity):
            raise _missing(table)
        self.products = len(self._blocks)

    def product(self, name: str) -> Weight:
        """A layer's weight and bias, forgotten here."""
        return self._pop(self._blocks, name), self._vectors.pop(f"{name}.bias", None)

    def vector(self, name: str) -> torch.Tensor:
        return self._pop(self._vectors, f"{name}.weight")

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self._vectors

    @staticmethod
    def _pop(found: dict[str, Any], name: str) -> Any:
        if name not in found:
            raise _missing(name)
        return found.pop(name)


def _missing(name: str) -> ModelDamaged:
    return ModelDamaged(
        f"The model lacks some of its weights, such as {name}.",
        hint="Download or copy the model again, or quantize the original again.",
    )


def _require_fit(model: PreTrainedModel, name: str, value: QuantizedWeight | torch.Tensor) -> None:
    """Raise ModelDamaged unless the weight has the shape that config.json gives this layer."""
    try:
        expected = model.get_submodule(name).weight.shape
    except AttributeError as error:
        raise ModelDamaged(f"config.json describes a model without the layer {name}.") from error
    if tuple(value.shape) != tuple(expected):
        raise ModelDamaged(f"The weights of {name} do not fit the model that config.json describes.")


def _embedding(value: QuantizedWeight | torch.Tensor) -> nn.Module:
    if isinstance(value, torch.Tensor):
        return nn.Embedding.from_pretrained(value.to(torch.bfloat16), freeze=True)
    if value.spec.bits == 8:
        return Int8Embedding(value)
    return nn.Embedding.from_pretrained(value.dequantize(), freeze=True)


def _shape(model: PreTrainedModel) -> Shape:
    config, attention = model.config, model.model.layers[0].self_attn
    return Shape(
        layers=len(model.model.layers),
        features=config.hidden_size,
        heads=config.num_attention_heads,
        shared_heads=config.num_key_value_heads,
        head_size=attention.head_dim,
        vocabulary=model.get_output_embeddings().out_features,
        epsilon=config.rms_norm_eps,
        scale=attention.scaling,
    )


def _graph(shape: Shape, model: PreTrainedModel, weights: _Weights, folder: Path) -> Graph:
    writer = GraphWriter(shape, folder)
    for index in range(shape.layers):
        at = f"model.layers.{index}"
        attention, mlp = f"{at}.self_attn", f"{at}.mlp"
        has_norms = weights.has(f"{attention}.q_norm")
        writer.layer(
            Layer(
                qkv=[weights.product(f"{attention}.{part}_proj") for part in "qkv"],
                output=weights.product(f"{attention}.o_proj"),
                gate=weights.product(f"{mlp}.gate_proj"),
                up=weights.product(f"{mlp}.up_proj"),
                down=weights.product(f"{mlp}.down_proj"),
                input_norm=weights.vector(f"{at}.input_layernorm"),
                inner_norm=weights.vector(f"{at}.post_attention_layernorm"),
                query_norm=weights.vector(f"{attention}.q_norm") if has_norms else None,
                key_norm=weights.vector(f"{attention}.k_norm") if has_norms else None,
            )
        )
    head = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
    return writer.finish(weights.vector("model.norm"), weights.product(head))


@contextmanager
def _workspace() -> Iterator[Path]:
    """A folder for the graph and its weights, which the library needs only while it loads them.

    Where a mapped file cannot be removed (Windows), the next model that is loaded removes what ended processes left.
    """
    home = data_home() / "onnx"
    for old in home.glob("*-*"):
        pid = old.name.partition("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(old, ignore_errors=True)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=home, prefix=f"{os.getpid()}-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as error:
        if problem := disk_problem(error):
            raise problem from error
        raise


def _session(graph: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
