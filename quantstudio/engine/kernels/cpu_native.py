"""int4 and int8 on x86-64 CPUs through this program's own C++ (`engine.native`).

Weights lie as torch's operators want them (`cpu_int4`, `cpu_int8_bags`). Two Zen 5 cores, weights from memory, in ms:

- One token: 9728×896 in int4 0.10, by torch's operator 0.30; 151,936×896 1.9 against 3.9. Codes become bf16 by a table,
  32 at once, and products of pairs are summed in fp32 by the processor's bf16 instruction. Without that instruction
  (AVX-512 alone, or AVX2) codes become fp32.
- 512 tokens: 4864×896 in int4 11.6, by tiles that torch expands and multiplies 14.9, in bf16 12.0; 64 tokens 1.8, 4.8,
  2.1; 16 tokens 0.6, 0.9, 0.7. In int8 11.8, 15.2; 2.0, 3.3; 0.7, 1.5.
"""

from __future__ import annotations

from ctypes import addressof
from typing import ClassVar

import torch
from torch import nn

from quantstudio.core.schemes import WeightSpec
from quantstudio.engine.kernels.activations import quantize_per_token
from quantstudio.engine.kernels.cpu_int4 import CpuInt4, packing_block
from quantstudio.engine.kernels.cpu_int8_bags import CpuInt8Bags
from quantstudio.engine.native import build, structs

_ONE_BY_ONE = 8
"""So many rows at most go through one at a time."""
_EXACT_ROWS = 128
"""From here on oneDNN's int8 product wins where activations are int8 (4864×896, 64 rows: 2.2 against 2.9 ms; 512: 12.8,
10.8)."""
_BF16_BLOCK = 16


class _Native(nn.Module):
    """A weight that is described to the library."""

    operator: ClassVar[str] = "quantstudio_product"
    matrix_unit_rows: ClassVar[int]
    """From here on tiles that torch multiplies win on processors with AMX, which this C++ does not use."""
    _rows: int
    _columns: int
    _rounds_input: bool

    def describe(self) -> structs.Matrix:
        """What the library needs to know."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self._columns)
        count = rows.shape[0]
        if self._is_torchs(count):
            y: torch.Tensor = super().forward(x)
            return y
        y = self._one_by_one(rows) if count <= _ONE_BY_ONE else self._together(rows)
        return y.view(*x.shape[:-1], self._rows)

    def _is_torchs(self, count: int) -> bool:
        """Whether so many rows go faster by torch's operators, which the other base of the class calls."""
        return count >= self.matrix_unit_rows and build.has_matrix_unit()

    def _one_by_one(self, rows: torch.Tensor) -> torch.Tensor:
        """bf16 `[few, columns]` → `[few, rows]`, bias and all."""
        product, matrix, threads = (
            build.native().require().quantstudio_product,
            self.describe(),
            torch.get_num_threads(),
        )
        rows, y = rows.contiguous(), rows.new_empty(rows.shape[0], self._rows)
        for row, out in zip(rows.unbind(), y.unbind(), strict=True):
            product(addressof(matrix), row.data_ptr(), out.data_ptr(), threads)
        return y

    def _together(self, rows: torch.Tensor) -> torch.Tensor:
        """bf16 `[many, columns]` → `[many, rows]`, bias and all."""
        matrix, scales = self.describe(), None
        if self._rounds_input:
            rows, scales = quantize_per_token(rows)
        rows, y = rows.contiguous(), rows.new_empty(rows.shape[0], self._rows)
        build.native().require().quantstudio_prompt(
            addressof(matrix), rows.data_ptr(), _pointer(scales), len(rows), y.data_ptr(), torch.get_num_threads()
        )
        return y


class NativeInt4(_Native, CpuInt4):
    """2 to 4 bits, symmetric or not, groups (or rows) that are multiples of 32; activations in bf16 or int8."""

    name: ClassVar[str] = "native_int4"
    matrix_unit_rows: ClassVar[int] = 128

    @staticmethod
    def supports(spec: WeightSpec, rows: int, columns: int, device: torch.device) -> bool:
        library = build.native().library
        fits = library is not None and packing_block() == library.quantstudio_int4_rows()
        return fits and CpuInt4.supports(spec, rows, columns, device)

    def describe(self) -> structs.Matrix:
        """What the library needs to know."""
        return structs.Matrix(
            weights=self.packed.data_ptr(),
            scales=self.scales_and_zeros.data_ptr(),
            bias=_pointer(self.bias),
            rows=self._rows,
            columns=self._columns,
            padded=self.scales_and_zeros.shape[1],
            group=self._group,
            block=packing_block(),
            bits=4,
            rounds_input=self._rounds_input,
        )


class NativeInt8(_Native, CpuInt8Bags):
    """8 bits per channel, activations in bf16 or int8."""

    name: ClassVar[str] = "native_int8"
    matrix_unit_rows: ClassVar[int] = 64

    @staticmethod
    def supports(spec: WeightSpec, rows: int, columns: int, device: torch.device) -> bool:
        return CpuInt8Bags.supports(spec, rows, columns, device) and build.native().library is not None

    def _is_torchs(self, count: int) -> bool:
        return (self._rounds_input and count >= _EXACT_ROWS) or super()._is_torchs(count)

    def describe(self) -> structs.Matrix:
        """What the library needs to know."""
        return structs.Matrix(
            weights=self.table.data_ptr(),
            scales=self.scales.data_ptr(),
            bias=_pointer(self.bias),
            rows=self._rows,
            columns=self._columns,
            block=self._block,
            bits=8,
            rounds_input=self._rounds_input,
        )


NATIVE = (NativeInt4, NativeInt8)


def matrix_of(module: nn.Module) -> structs.Matrix:
    """A module of these kinds, or a plain `nn.Linear` in bf16, described to the library. Points into its weights."""
    if isinstance(module, NATIVE):
        return module.describe()
    if not isinstance(module, nn.Linear):
        raise TypeError(f"the library knows no {type(module).__name__}")
    return structs.Matrix(
        weights=module.weight.data_ptr(),
        bias=_pointer(module.bias),
        rows=module.weight.shape[0],
        columns=module.weight.shape[1],
        block=_BF16_BLOCK,
        bits=16,
    )


def _pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
