"""Which kernel runs a layer: of those that support it and agree with the reference, the fastest on this machine.

Where nothing was tried (small layers), the order of `KERNELS` decides; a trial overrules it only when another kernel
takes less than `CLEARLY` of the time, so that what else the machine did that second decides nothing. The order always
decides where this program's own kernels run: on GPUs, and on CPUs for which they could be built. The short way for one
token (`gpu_step`, `native_step`) wants all layers on them; what the trial says of them is told.
Agreement is measured: each kernel multiplies a small weight of the layer's kind once and is compared with the
dequantized product in fp32. One that disagrees is dropped for that kind, and the log says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import nn

from quantstudio.core.errors import ModelUnsupported
from quantstudio.core.result import KernelUse
from quantstudio.core.schemes import ActivationKind, WeightSpec
from quantstudio.engine.kernels.activations import quantize_per_token
from quantstudio.engine.kernels.cpu_int4 import CpuInt4
from quantstudio.engine.kernels.cpu_int8 import CpuInt8, CpuInt8Dynamic
from quantstudio.engine.kernels.cpu_int8_bags import CpuInt8Bags
from quantstudio.engine.kernels.cpu_native import NATIVE, NativeInt4, NativeInt8
from quantstudio.engine.kernels.cuda import CudaInt4, CudaInt8
from quantstudio.engine.kernels.dequantized import Dequantized
from quantstudio.engine.kernels.gpu_int4 import GpuInt4
from quantstudio.engine.kernels.probe import random_input, random_weight
from quantstudio.engine.kernels.trial import MOST_ROWS, NO_TIME, PROMPT_ROWS, Timing, Trials, sum_timings
from quantstudio.engine.quantized_weight import QuantizedWeight

AUTO = "auto"
REFERENCE = "reference"
TOLERANCE = 0.01
"""Largest ‖kernel - reference‖ / ‖reference‖. bf16 results are 0.002 to 0.003 away, a wrong zero point over 0.1."""
CLEARLY = 0.67
_CHECKED_ROWS = (1, 5, 80)
"""Rows of activations tried: one token, a few, and enough for the prompt's path."""
_OUTPUTS = 72
"""Rows of the weight tried: not a multiple of any operator's block."""


class Kernel(Protocol):
    """The class of an `nn.Module` that multiplies by a quantized weight."""

    name: ClassVar[str]
    operator: ClassVar[str]
    """What torch calls the operator behind it."""

    @staticmethod
    def supports(spec: WeightSpec, rows: int, columns: int, device: torch.device) -> bool:
        """Whether it can run such a weight of `[rows, columns]` there."""
        ...

    def __call__(self, weight: QuantizedWeight, bias: nn.Parameter | None = None) -> nn.Module: ...


KernelClass = type[
    NativeInt4
    | NativeInt8
    | CpuInt4
    | CpuInt8Bags
    | CpuInt8
    | CpuInt8Dynamic
    | GpuInt4
    | CudaInt4
    | CudaInt8
    | Dequantized
]

KERNELS: tuple[KernelClass, ...] = (
    NativeInt4,
    NativeInt8,
    CpuInt4,
    CpuInt8Bags,
    CpuInt8,
    CpuInt8Dynamic,
    GpuInt4,
    CudaInt4,
    CudaInt8,
    Dequantized,
)
"""Fastest first; the last takes everything."""


class Chooser:
    """Chooses kernels for the layers of one model and remembers what was checked."""

    def __init__(
        self, device: torch.device, wanted: str, log: Callable[[str], None], trials: Trials | None = None
    ) -> None:
        """`wanted`: "auto", "reference" or the name of a kernel (layers that it cannot run go to the others).

        `trials`: timings to choose by, and to tell of. Raises ModelUnsupported for an unknown name.
        """
        self.device = device
        self.wants_reference = wanted == REFERENCE
        self._log = log
        self._candidates = _candidates(wanted)
        self._may_race = wanted == AUTO and device.type == "cpu"
        self._trials = None if self.wants_reference else trials
        self._uses: dict[tuple[str, str], _Use] = {}
        self._verdicts: dict[tuple[str, WeightSpec, int], bool] = {}

    def choose(self, spec: WeightSpec, rows: int, columns: int) -> KernelClass:
        """The kernel for a weight of `[rows, columns]` on this grid."""
        fitting = [
            kernel
            for kernel in self._candidates
            if kernel.supports(spec, rows, columns, self.device) and self._agrees(kernel, spec, columns)
        ]
        kernel = fitting[0]
        may_race = self._may_race and kernel not in NATIVE
        tried = fitting if may_race else list(dict.fromkeys((kernel, Dequantized)))
        timings = self._trials.timings(spec, rows, columns, tried) if self._trials else {}
        if timings and may_race:
            fastest = min(fitting, key=lambda each: timings[each.name].typical)
            if timings[fastest.name].typical < CLEARLY * timings[kernel.name].typical:
                kernel = fastest
        use = self._uses.setdefault((spec.label, kernel.name), _Use(kernel.operator))
        use.add(rows / MOST_ROWS[self.device.type], timings.get(kernel.name), timings.get(Dequantized.name))
        return kernel

    def uses(self) -> tuple[KernelUse, ...]:
        """The kernels chosen so far, with how they compare with bf16 where that was tried."""
        return tuple(
            KernelUse(
                scheme=scheme,
                kernel=name,
                operator=use.operator,
                layers=use.layers,
                decode_ratio=use.reference.one / use.own.one if use.own.one else None,
                prompt_ratio=use.reference.prompt / use.own.prompt if use.own.prompt else None,
                prompt_tokens=PROMPT_ROWS,
            )
            for (scheme, name), use in self._uses.items()
        )

    def totals(self) -> tuple[Timing, Timing]:
        """Seconds that all layers chosen for so far take together, and in bf16; only those that were tried count."""
        uses = self._uses.values()
        return sum_timings(use.own for use in uses), sum_timings(use.reference for use in uses)

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


@dataclass(slots=True)
class _Use:
    """How often a kernel was chosen, and the time that it and bf16 take for all those layers together."""

    operator: str
    layers: int = 0
    own: Timing = NO_TIME
    reference: Timing = NO_TIME

    def add(self, part: float, own: Timing | None, reference: Timing | None) -> None:
        """One more layer, which is as tall as `part` of what was tried, or was tried whole."""
        self.layers += 1
        if own and reference:
            scale = max(1.0, part)
            self.own = sum_timings((self.own, own.times(scale)))
            self.reference = sum_timings((self.reference, reference.times(scale)))


def relative_error(kernel: KernelClass, spec: WeightSpec, columns: int, device: torch.device) -> float:
    """How far a kernel is from the dequantized product, computed in fp32, on a random weight of `[72, columns]`.

    An operator that this machine lacks counts as infinitely wrong.
    """
    weight = random_weight(spec, _OUTPUTS, columns, device)
    expected_weight = weight.dequantize().float()
    worst = 0.0
    try:
        module = kernel(weight, None)
        for rows in _CHECKED_ROWS:
            x = random_input((rows, columns), seed=rows).to(device)
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
    return found + tuple(kernel for kernel in KERNELS if kernel not in found)
