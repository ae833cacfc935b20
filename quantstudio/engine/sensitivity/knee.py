"""Before a run that gives all layers of a small model 2 or 3 bits: does the model bear it, and what would be better?

The whole model is rounded as asked and compared with itself on a little of the built-in books: two runs of 2,048
tokens. Only when more is lost than at the knee, other ways to the same size are measured as well: other groups with
other bits, and GPTQ on the same grid. So nothing is offered that was not measured on this model. Larger models are not
asked: loading one only to warn would cost more than rounding it does.
"""

from __future__ import annotations

import torch
from torch import nn

from quantstudio.core.model_info import ModelInfo
from quantstudio.core.recipe import Recipe
from quantstudio.core.schemes import WeightSpec
from quantstudio.core.sensitivity import KNEE_KL, UniformLoss, below_knee
from quantstudio.engine.data.builtin import read_books
from quantstudio.engine.data.document import Budget
from quantstudio.engine.load import LoadedModel, load_model
from quantstudio.engine.methods.gptq import GptqOptions
from quantstudio.engine.methods.hqq import quantize_hqq
from quantstudio.engine.reporter import Reporter
from quantstudio.engine.sensitivity.rounding import Rounded, RoundedByGptq, rounded_to_nearest
from quantstudio.engine.sensitivity.wholes import (
    OTHER_GROUPS,
    Judge,
    Whole,
    settable_layers,
    with_other_groups,
)


def _rounded_by_hqq(_name: str, module: nn.Linear, spec: WeightSpec) -> torch.Tensor:
    weight = module.weight.data
    return quantize_hqq(weight.cpu(), spec).dequantize().to(weight)


METHODS: dict[str, Rounded] = {"rtn": rounded_to_nearest, "hqq": _rounded_by_hqq}
JUDGED, FITTED, LENGTH = 2048, 16384, 256
"""Tokens to compare on, tokens for GPTQ, tokens in a sequence."""
LOGITS_BYTES = 128 << 20
"""Budget for one copy of the logits in fp32."""


def knee_warnings(info: ModelInfo, recipe: Recipe, reporter: Reporter) -> list[str]:
    """Sentences for a person; none when the model bears the bits. Raises what loading raises, and Cancelled.

    For recipes that `core.sensitivity.may_lie_below_knee`.
    """
    loaded = load_model(info.path, recipe.machine.device, reporter)
    ids = _some_books(loaded)
    if ids is None:
        return []
    with torch.no_grad():
        return _Asked(info, recipe, loaded, ids, reporter).warnings()


class _Asked:
    def __init__(
        self, info: ModelInfo, recipe: Recipe, loaded: LoadedModel, ids: torch.Tensor, reporter: Reporter
    ) -> None:
        self._info, self._recipe, self._reporter = info, recipe, reporter
        self._model = loaded.model
        self._layers, self._others = settable_layers(info, recipe, loaded.model)
        vocabulary = loaded.model.config.get_text_config(decoder=True).vocab_size
        judged = max(1, min(JUDGED, LOGITS_BYTES // (4 * vocabulary)) // LENGTH)
        self._ids, self._fitted = ids[:judged], ids[judged:]
        self._judge = Judge(self._logits())

    def warnings(self) -> list[str]:
        bits, rounded = self._recipe.scheme.weight_spec().bits, METHODS[self._recipe.method.kind]
        asked = self._measured(self._recipe, bits, rounded)
        if asked is None or asked.kl <= KNEE_KL:
            return []
        fitting = []
        for recipe in with_other_groups(self._recipe, OTHER_GROUPS)[1:]:
            for more in range(bits, 5):
                self._reporter.check_cancel()
                found = self._measured(recipe, more, rounded)
                fitting += [found] if found and found.nbytes <= asked.nbytes else []
        better = min(fitting, key=lambda each: each.kl, default=None)
        return below_knee(asked, better, self._with_gptq(bits))

    def _with_gptq(self, bits: int) -> float | None:
        """Loss of the very same grid chosen by GPTQ; None where there is too little text to fit it on."""
        if not len(self._fitted):
            return None
        modules: list[nn.Linear] = [layer.module for layer in self._layers]
        rounded = RoundedByGptq(self._model, modules, self._fitted, GptqOptions(), self._reporter)
        found = self._measured(self._recipe, bits, rounded)
        return found.kl if found else None

    def _measured(self, recipe: Recipe, bits: int, rounded: Rounded) -> UniformLoss | None:
        whole = Whole(self._info, self._recipe, self._layers, self._others, rounded)
        return whole.measured(recipe, bits, lambda: self._judge(self._logits()))

    def _logits(self) -> torch.Tensor:
        return self._model(input_ids=self._ids, use_cache=False).logits


def _some_books(loaded: LoadedModel) -> torch.Tensor | None:
    """Int64 `[sequences, LENGTH]` on the model's device; None for a model that cannot read."""
    if loaded.tokenizer is None:
        return None
    tokens: list[int] = []
    for document in read_books(Budget(1 << 30), lambda _warning: None):
        tokens += loaded.tokenizer(document.text, add_special_tokens=False)["input_ids"]
        if len(tokens) >= JUDGED + FITTED:
            break
    whole = len(tokens) // LENGTH * LENGTH
    return torch.tensor(tokens[:whole]).view(-1, LENGTH).to(loaded.model.device) if whole else None
