"""What a recipe leaves open about training, decided from the model, the data and the preset.

Steps of about 8,192 tokens; AdamW at 5e-4 for 8 million weights, less for larger models (by the root of the number of
weights, as wide models want smaller steps); cosine with a warm-up of a fifth, at most 20 steps. Measured on the starter
model with `tests/benchmarks/qat_gpu.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from quantstudio.core.model_info import ModelInfo
from quantstudio.core.recipe_method import FineTune, Qat
from quantstudio.engine.train.loss import Objective

PRESET_STEPS = {"quick": 50, "better": 200, "best": 400}
STEP_TOKENS = 8192
_RATE, _RATE_WEIGHTS = 5e-4, 8.4e6
_LORA_FACTOR = 2.0
"""LoRA's matrices take larger steps than the weights themselves."""
_SMALLEST_RATE = 1e-5
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


def settle(method: Qat | FineTune, info: ModelInfo, sequence_length: int, seed: int) -> Settings:
    """Everything that the recipe's method leaves to us, decided."""
    steps = method.steps or PRESET_STEPS[method.preset]
    lora = method.lora_rank if method.train == "lora" else 0
    warmup = method.warmup_steps if method.warmup_steps >= 0 else min(_LONGEST_WARMUP, steps // 5)
    return Settings(
        steps=steps,
        batch=method.batch_sequences or max(1, STEP_TOKENS // sequence_length),
        rate=method.learning_rate or _automatic_rate(info.parameters, lora),
        warmup=min(warmup, steps - 1),
        evaluate_every=max(1, math.ceil(steps / method.evaluations)),
        patience=method.patience,
        objective=_objective(method),
        lora_rank=lora,
        seed=seed,
        rounds=isinstance(method, Qat),
    )


def _automatic_rate(weights: int, lora: int) -> float:
    rate = _RATE * math.sqrt(_RATE_WEIGHTS / max(weights, 1))
    rate = min(_RATE, max(rate, _SMALLEST_RATE))
    return rate * (_LORA_FACTOR if lora else 1.0)


def _objective(method: Qat | FineTune) -> Objective:
    distil, cross_entropy = {"distil": (1.0, 0.0), "cross_entropy": (0.0, 1.0), "mixed": (0.5, 0.5)}[method.loss]
    return Objective(distil, cross_entropy, method.temperature)
