"""Where in a block input channels can be scaled for free: what comes before takes up the inverse.

A norm's weight, or the rows of the layer before (values before the output projection, "up" before "down"), can be
divided by what the columns of the layers after are multiplied by, and the result is the same plain model. Which norm
or layer comes before is not told from names: every candidate of the right size is tried with factors of 1/2, 1 and 2,
which bf16 carries out exactly, and counts only if the block's output stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from quantstudio.engine.calibration.blocks import BlockModel
from quantstudio.engine.calibration.streams import stages

TOLERANCE = 0.02
"""Relative change of the output that still is bf16 noise; a wrong place changes it by 0.3 and more."""


@dataclass(frozen=True, slots=True)
class Fold:
    """`stage`: layers with the same input. `source`: the module before. `offset`: 1 where a norm's factor is 1 + w.
    `head`, `repeat`: each run of `head` rows of the source feeds `repeat` runs of columns (grouped-query attention)."""

    stage: tuple[str, ...]
    source: str
    offset: float = 0.0
    head: int = 1
    repeat: int = 1

    def shared(self, values: torch.Tensor) -> torch.Tensor:
        """Values for each column → for each row of the source: the mean over columns that it feeds."""
        return values.view(-1, self.repeat, self.head).mean(1).flatten()

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Values for each row of the source → for each column."""
        return values.view(-1, 1, self.head).expand(-1, self.repeat, -1).flatten()


@torch.inference_mode()
def find_folds(model: BlockModel, number: int, hidden: torch.Tensor, head_size: int) -> list[Fold]:
    """The folds of block `number`, loaded, in the order in which its layers run; `hidden`: a batch of its inputs."""
    block = model.names[number]
    named = {f"{block}.{name}": module for name, module in model.model.get_submodule(block).named_modules()}
    linears = [name for name, module in named.items() if isinstance(module, nn.Linear)]
    norms = [
        name
        for name, module in named.items()
        if not isinstance(module, nn.Linear) and isinstance(weight := getattr(module, "weight", None), nn.Parameter)
        if weight.dim() == 1
    ]
    expected = model.run(number, hidden).float()
    folds: list[Fold] = []
    before: list[str] = []
    for stage in stages(model, number, hidden, linears):
        columns = _weight(named[stage[0]]).shape[1]
        for fold in _candidates(named, stage, columns, norms, before, head_size):
            touched = (fold.source, *fold.stage)
            stored = all(model.is_stored(f"{name}.weight") for name in touched)
            if stored and _holds(model, number, hidden, expected, fold):
                folds.append(fold)
                break
        before += stage
    return folds


def _candidates(
    named: dict[str, nn.Module],
    stage: Sequence[str],
    columns: int,
    norms: Sequence[str],
    before: Sequence[str],
    head_size: int,
) -> Iterator[Fold]:
    for name in norms:
        if _weight(named[name]).shape[0] == columns:
            yield Fold(tuple(stage), name)
            yield Fold(tuple(stage), name, offset=1.0)
    for name in reversed(before):
        rows = _weight(named[name]).shape[0]
        if rows == columns:
            yield Fold(tuple(stage), name)
        elif columns % rows == 0 and rows % head_size == 0:
            yield Fold(tuple(stage), name, head=head_size, repeat=columns // rows)


def _holds(model: BlockModel, number: int, hidden: torch.Tensor, expected: torch.Tensor, fold: Fold) -> bool:
    """Whether factors on the layers alone change the output, and do not when the source takes up their inverse."""
    source = model.model.get_submodule(fold.source)
    powers = torch.randint(-1, 2, (len(_weight(source)),), generator=torch.Generator().manual_seed(0))
    factors = torch.pow(2.0, powers.float()).to(model.device)

    def moved() -> float:
        return float((model.run(number, hidden).float() - expected).norm() / expected.norm())

    with _kept(model, (fold.source, *fold.stage)):
        for name in fold.stage:
            _change(model, f"{name}.weight", lambda weight: weight * fold.spread(factors))
        alone = moved()
        divide = factors if _weight(source).dim() == 1 else factors.unsqueeze(1)
        _change(model, f"{fold.source}.weight", lambda weight: (weight + fold.offset) / divide - fold.offset)
        if getattr(source, "bias", None) is not None:
            _change(model, f"{fold.source}.bias", lambda bias: bias / factors)
        together = moved()
    return together < TOLERANCE and alone > 4 * TOLERANCE


def _change(model: BlockModel, key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    module, _, leaf = key.rpartition(".")
    old = getattr(model.model.get_submodule(module), leaf)
    model.put(key, change(old.float()))


@contextmanager
def _kept(model: BlockModel, modules: Sequence[str]) -> Iterator[None]:
    """Put the parameters of these modules back afterwards."""
    kept = {
        f"{name}.{leaf}": parameter.data
        for name in modules
        for leaf, parameter in model.model.get_submodule(name).named_parameters(recurse=False)
    }
    try:
        yield
    finally:
        for key, value in kept.items():
            model.put(key, value)


def _weight(module: nn.Module) -> torch.Tensor:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)  # noqa: S101 - chosen for having one
    return weight
