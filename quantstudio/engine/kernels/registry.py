"""Which kernel runs a layer: the first in order of measured speed that supports it and agrees with the reference.

The order is a rule, not a race at load time: a race would make results depend on what else the machine did that second.
Agreement is measured: each kernel multiplies a small weight of the layer's kind once and is compared with the
dequantized product in fp32. One that disagrees is dropped for that kind, and the log says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

import torch
from torch import nn

from quantstudio.core.errors import ModelUnsupported
from quantstudio.core.schemes import ActivationKind, WeightSpec
from quantstudio.engine.kernels.activations import quantize_per_token
from quantstudio.engine.kernels.cpu_int4 import CpuInt4
from quantstudio.engine.kernels.cpu_int8 import CpuInt8, CpuInt8Dynamic
from quantstudio.engine.kernels.cuda import CudaInt4, CudaInt8
from quantstudio.engine.kernels.dequantized import Dequantized
from quantstudio.engine.quantized_weight import QuantizedWeight

AUTO = "auto"
REFERENCE = "reference"
TOLERANCE = 0.01
"""Largest ‖kernel - reference‖ / ‖reference‖. bf16 results are 0.002 to 0.003 away, a wrong zero point over 0.1."""
_CHECKED_ROWS = (1, 5, 80)
"""Rows of activations tried: one token, a few, and enough for the prompt's path."""
_OUTPUTS = 72
"""Rows of the weight tried: not a multiple of any operator's block."""


class Kernel(Protocol):
    """The class of an `nn.Module` that multiplies by a quantized weight."""

    name: ClassVar[str]

    @staticmethod
    def supports(spec: WeightSpec, rows: int, columns: int, device: torch.device) -> bool:
        """Whether it can run such a weight of `[rows, columns]` there."""
        ...

    def __call__(self, weight: QuantizedWeight, bias: nn.Parameter | None = None) -> nn.Module: ...


KERNELS: tuple[type[CpuInt4 | CpuInt8 | CpuInt8Dynamic | CudaInt4 | CudaInt8 | Dequantized], ...] = (
    CpuInt4,
    CpuInt8,
    CpuInt8Dynamic,
    CudaInt4,
    CudaInt8,
    Dequantized,
)
"""Fastest first; the last takes everything."""

KernelClass = type[CpuInt4 | CpuInt8 | CpuInt8Dynamic | CudaInt4 | CudaInt8 | Dequantized]


class Chooser:
    """Chooses kernels for the layers of one model and remembers what was checked."""

    def __init__(self, device: torch.device, wanted: str, log: Callable[[str], None]) -> None:
        """`wanted`: "auto", "reference" or the name of a kernel (layers that it cannot run are dequantized).

        Raises ModelUnsupported for an unknown name.
        """
        self.device = device
        self.wants_reference = wanted == REFERENCE
        self._log = log
        self._candidates = _candidates(wanted)
        self._verdicts: dict[tuple[str, WeightSpec, int], bool] = {}

    def choose(self, spec: WeightSpec, rows: int, columns: int) -> KernelClass:
        """The kernel for a weight of `[rows, columns]` on this grid."""
        for kernel in self._candidates:
            if kernel.supports(spec, rows, columns, self.device) and self._agrees(kernel, spec, columns):
                return kernel
        return Dequantized

    def _agrees(self, kernel: KernelClass, spec: WeightSpec, columns: int) -> bool:
        if kernel is Dequantized:
            return True
        key = (kernel.name, spec, columns)
        if key not in self._verdicts:
            error = relative_error(kernel, spec, columns, self.device)
            self._verdicts[key] = error <= TOLERANCE
            if not self._verdicts[key]:
                self._log(f"Kernel {kernel.name} is {error:.1%} off for {spec.label}: not used.")
        return self._verdicts[key]


def relative_error(kernel: KernelClass, spec: WeightSpec, columns: int, device: torch.device) -> float:
    """How far a kernel is from the dequantized product, computed in fp32, on a random weight of `[72, columns]`.

    An operator that this machine lacks counts as infinitely wrong.
    """
    weight = _random_weight(spec, columns, device)
    expected_weight = weight.dequantize().float()
    worst = 0.0
    try:
        module = kernel(weight, None)
        for rows in _CHECKED_ROWS:
            x = _random((rows, columns), seed=rows).to(device)
            exact = x.float()
            if spec.activations is ActivationKind.INT8_TOKEN:
                codes, scales = quantize_per_token(x)
                exact = codes.float() * scales.float()
            expected = exact @ expected_weight.t()
            error = (module(x).float() - expected).norm() / expected.norm()
            worst = max(worst, float("inf") if torch.isnan(error) else float(error))
    except (RuntimeError, NotImplementedError, AttributeError):
        return float("inf")
    return worst


def _candidates(wanted: str) -> tuple[KernelClass, ...]:
    if wanted == AUTO:
        return KERNELS
    if wanted == REFERENCE:
        return (Dequantized,)
    found = tuple(kernel for kernel in KERNELS if kernel.name == wanted)
    if not found:
        names = ", ".join(kernel.name for kernel in KERNELS)
        raise ModelUnsupported(f"There is no kernel called {wanted!r}.", hint=f"There are: {names}.")
    return found


def _random(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def _random_weight(spec: WeightSpec, columns: int, device: torch.device) -> QuantizedWeight:
    groups = columns // spec.group_size if spec.group_size else 1
    generator = torch.Generator().manual_seed(columns)
    low, high = spec.code_range

    def codes(width: int) -> torch.Tensor:
        return torch.randint(low, high + 1, (_OUTPUTS, width), generator=generator, dtype=torch.int8).to(device)

    # Scales of either sign: rounding to nearest chooses negative ones too.
    scales = ((_random((_OUTPUTS, groups), seed=1) + 3) * 0.01).to(device)
    return QuantizedWeight(codes(columns), scales, None if spec.symmetric else codes(groups), spec)
