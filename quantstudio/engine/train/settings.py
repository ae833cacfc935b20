"""What a recipe leaves open about training, decided from the model, its plan, the data and the preset.

Steps of about 8,192 tokens; AdamW, cosine, a warm-up of a fifth, at most 20 steps. The rate depends most on the bits:
coarse grids want large steps that move weights from one code to the next, and to a fine grid the same steps are noise.
Starter model, 800 steps from GPTQ's codes, KL divergence on books that neither model learnt from: W4 g128 at 3e-5
0.0108, at 6e-5 0.0107, at 1e-4 0.0112 (from rounding 0.0119); W4A8 g32 likewise 0.0090, 0.0092, 0.0095; W3 g32 at 8e-5
0.0280, at 1.6e-4 0.0289; W2 g32 at 1.2e-4 0.113, at 2e-4 0.109, at 3.5e-4 0.109 (from rounding 0.119). More text, or
text that the model itself wrote, made it no better; the text's own next words as a second goal made it much worse.
Larger models take smaller steps, by the root of the number of weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from quantstudio.core.errors import RecipeError
from quantstudio.core.model_info import ModelInfo
from quantstudio.core.model_parts import Part
from quantstudio.core.plan import QuantizationPlan
from quantstudio.core.recipe_method import STEP_TOKENS, FineTune, Qat, undivided
from quantstudio.engine.train.loss import Objective

_RATES = {2: 3.5e-4, 3: 1.6e-4, 4: 8e-5, 8: 5e-5}
"""By bits, for a model of `_RATE_WEIGHTS` weights; between them the logarithm is interpolated."""
_RATE_WEIGHTS = 8.4e6
_SHORTENED_FACTOR = 4.0
"""A model that has lost layers is far from where it should be. Starter model, half of the layers, W4 g128, 20 steps of
8 × 256 tokens: held-out perplexity 195 at the rate for its bits, 115 at four times that."""
_LORA_FACTOR = 2.0
"""LoRA's matrices take larger steps than the weights themselves."""
_SMALLEST_RATE = 5e-6
_LONGEST_WARMUP = 20


@dataclass(frozen=True)
class Settings:
    """A training, with nothing left open but what depends on memory."""

    steps: int
    batch: int
    """Sequences in a step."""
    rate: float
    warmup: int
    evaluate_every: int
    patience: int
    objective: Objective
    lora_rank: int
    seed: int
    rounds: bool
    """Whether weights are on their grids while they train."""
    shortened: bool = False
    """Whether layers were removed: what has learnt nothing yet is then more than rounded."""


def settle(
    method: Qat | FineTune, info: ModelInfo, plan: QuantizationPlan, sequence_length: int, seed: int, gpus: int = 1
) -> Settings:
    """Everything that the recipe's method leaves to us, decided.

    A step has as many sequences for each of `gpus`. Raises RecipeError when those of the recipe do not divide.
    """
    steps = method.all_steps
    lora = method.lora_rank if method.train == "lora" else 0
    warmup = method.warmup_steps if method.warmup_steps >= 0 else min(_LONGEST_WARMUP, steps // 5)
    factor = _SHORTENED_FACTOR if info.removed_layers else 1.0
    return Settings(
        steps=steps,
        batch=_batch(method.batch_sequences, sequence_length, gpus),
        rate=method.learning_rate or factor * automatic_rate(info.parameters, _mean_bits(method, plan), lora),
        warmup=min(warmup, steps - 1),
        evaluate_every=max(1, math.ceil(steps / method.evaluations)),
        patience=method.patience,
        objective=_objective(method),
        lora_rank=lora,
        seed=seed,
        rounds=isinstance(method, Qat),
        shortened=info.removed_layers > 0,
    )


def _batch(wanted: int, sequence_length: int, gpus: int) -> int:
    if wanted % gpus:
        what, hint = undivided(wanted, gpus)
        raise RecipeError(what, hint=hint, field="method.batch_sequences")
    return wanted or math.ceil(max(1, STEP_TOKENS // sequence_length) / gpus) * gpus


def automatic_rate(weights: int, bits: float, lora: int) -> float:
    """Learning rate for a model of this many weights whose layers have these bits on average. `lora`: rank or 0."""
    known = sorted(_RATES)
    logarithm = np.interp(bits, known, [math.log(_RATES[point]) for point in known])
    rate = math.exp(float(logarithm)) * min(1.0, math.sqrt(_RATE_WEIGHTS / max(weights, 1)))
    return max(rate, _SMALLEST_RATE) * (_LORA_FACTOR if lora else 1.0)


def _mean_bits(method: Qat | FineTune, plan: QuantizationPlan) -> float:
    """Bits of the layers, weighted by their size; a plain fine-tune takes the smallest steps."""
    layers = [layer for layer in plan.quantized if layer.slot.part is Part.LAYER] or list(plan.quantized)
    sizes = [layer.slot.rows * layer.slot.columns for layer in layers]
    if isinstance(method, FineTune) or not sizes:
        return max(_RATES)
    return float(np.average([layer.spec.bits for layer in layers if layer.spec], weights=sizes))


def _objective(method: Qat | FineTune) -> Objective:
    distil, cross_entropy = {"distil": (1.0, 0.0), "cross_entropy": (0.0, 1.0), "mixed": (0.5, 0.5)}[method.loss]
    return Objective(distil, cross_entropy, method.temperature)
