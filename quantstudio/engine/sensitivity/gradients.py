"""What each layer's rounding will cost, predicted from gradients: one pass of the text instead of hundreds.

To second order the KL divergence from the original is half the squared change of log-probabilities along the Fisher
information: KL ≈ ½ E[(∂ log p(y) / ∂W · ΔW)²], with y drawn from the model's own predictions. The scores of successive
tokens are uncorrelated, so the square of a sequence's sum estimates the sum over its tokens, and one backward pass
gives it for all layers: the layer's output gradient times ΔW times its input, summed. n sequences leave a relative
error of sqrt(2 / n), so they are many and short. Amari, "Natural gradient works efficiently in learning", Neural
Comp. 10 (1998), for the metric. On the starter model the ranks of its 42 layers agree with those of layers measured
one by one to 0.96–0.98 (Spearman).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from quantstudio.core.schemes import WeightSpec
from quantstudio.engine.methods.rtn import quantize_rtn
from quantstudio.engine.reporter import Reporter

LENGTH = 128
TOKENS = 8192
LOGITS_BYTES = 256 << 20
"""Budget for one fp32 copy of a batch's logits; three are alive at once."""

Layers = Mapping[str, tuple[nn.Linear, Mapping[int, WeightSpec]]]
"""Layer name → its module and the grids to judge, by bits."""


def losses_by_gradients(
    model: PreTrainedModel, ids: torch.Tensor, layers: Layers, seed: int, reporter: Reporter
) -> dict[str, dict[int, float]]:
    """Predicted mean KL divergence in nats per token for each layer alone, by name and bits; rounded to nearest.

    `ids`: int64 `[sequences, length]` on the model's device. Raises Cancelled between batches.
    """
    sequences = ids.reshape(-1)[: ids.numel() // LENGTH * LENGTH].reshape(-1, LENGTH)[: TOKENS // LENGTH]
    batch = max(1, LOGITS_BYTES // (4 * LENGTH * model.config.get_text_config(decoder=True).vocab_size))
    squares = {name: dict.fromkeys(specs, 0.0) for name, (_, specs) in layers.items()}
    torch.manual_seed(seed)
    with _differentiable(model), _watched(layers, squares):
        for start in range(0, len(sequences), batch):
            reporter.progress(start, len(sequences), "sequences")
            _backward(model, sequences[start : start + batch])
    tokens = sequences.numel()
    return {name: {bits: value / 2 / tokens for bits, value in each.items()} for name, each in squares.items()}


def _backward(model: PreTrainedModel, ids: torch.Tensor) -> None:
    logits = model(input_ids=ids, use_cache=False).logits.float()
    chances = torch.log_softmax(logits, -1)
    with torch.no_grad():
        drawn = torch.multinomial(chances.exp().reshape(-1, chances.shape[-1]), 1).view(*ids.shape, 1)
    chances.gather(-1, drawn).sum().backward()


@contextmanager
def _differentiable(model: PreTrainedModel) -> Iterator[None]:
    """Gradients flow through activations only: none is kept for a weight."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    for parameter in before:
        parameter.requires_grad_(requires_grad=False)
    embedding = model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda _module, _inputs, output: output.requires_grad_())
    try:
        with torch.enable_grad():
            yield
    finally:
        hook.remove()
        for parameter, wanted in before.items():
            parameter.requires_grad_(requires_grad=wanted)


@contextmanager
def _watched(layers: Layers, squares: dict[str, dict[int, float]]) -> Iterator[None]:
    hooks = [
        module.register_forward_hook(_watcher(module, specs, squares[name])) for name, (module, specs) in layers.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _watcher(
    module: nn.Linear, specs: Mapping[int, WeightSpec], into: dict[int, float]
) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
    def watch(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen = inputs[0].detach()
        output.register_hook(lambda gradient: add(gradient, seen))

    def add(gradient: torch.Tensor, seen: torch.Tensor) -> None:
        with torch.no_grad():
            weight = module.weight.detach()
            for bits, spec in specs.items():
                change = quantize_rtn(weight.cpu(), spec).dequantize().to(weight) - weight
                score = (gradient * nn.functional.linear(seen, change)).float().sum(dim=(1, 2))
                into[bits] += float(score.square().sum())

    return watch
