"""Weights from and to safetensors files in pieces, with plain reads and writes.

Mapping files into memory would be shorter, but mapped pages count as the process's memory, and a job that promises a
small peak must not depend on when the system drops them. Plain reads of a few megabytes are as fast.

Shapes and dtypes of the output are known before the first weight is read, so the headers are written first and every
tensor goes, row by row if need be, straight to its place: nothing waits in memory for a file to be complete. Headers
hold no dates and no machine, so the same tensors give the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from quantstudio.core.disk import disk_problem
from quantstudio.core.errors import ModelDamaged
from quantstudio.core.model_files import INDEX, SINGLE_FILE, StoredTensor, read_header, weight_files
from quantstudio.engine.scratch import Scratch

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""Dtypes that occur in language models. A tensor of another dtype is an error that names it."""

ALIGNMENT = 8
_HEADER_ENTRY = 160
"""Bytes that a tensor's entry takes in a header at most, without its name."""


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor to be written: its dtype as safetensors says it ("BF16") and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def rows(self) -> int:
        """Rows, when the last dimension is a row."""
        return math.prod(self.shape[:-1])


class CheckpointReader:
    """Reads tensors, or some rows of them, from the safetensors files of a model folder. For one thread at a time.

    Raises ModelDamaged when a file is missing, cut, or changes under our hands.
    """

    def __init__(self, folder: Path) -> None:
        self.tensors: dict[str, StoredTensor] = {}
        """Every tensor by name, in the order of the files: reading in this order is fastest."""
        self.file_of: dict[str, Path] = {}
        self._begin: dict[str, int] = {}
        for path in weight_files(folder):
            with path.open("rb") as file:
                position = 8 + int.from_bytes(file.read(8), "little")
            # A valid header leaves no gaps, so a tensor begins where the one before it ends.
            for tensor in read_header(path):
                self.tensors[tensor.name] = tensor
                self.file_of[tensor.name] = path
                self._begin[tensor.name] = position
                position += tensor.nbytes
        self._open: FileIO | None = None
        self._open_path: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
        self._open, self._open_path = None, None

    def read(self, name: str, scratch: Scratch | None = None) -> torch.Tensor:
        """A whole tensor, which with `scratch` is valid only until the next is read there."""
        stored = self.tensors[name]
        buffer = scratch.empty("file", (stored.nbytes,), torch.uint8) if scratch else None
        return self._read(name, 0, stored.nbytes, buffer).view(stored.shape)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` (not included) as a matrix. A row is the last dimension, whatever comes before it."""
        stored = self.tensors[name]
        columns = stored.shape[-1] if stored.shape else 1
        row_bytes = columns * torch_dtype(stored.dtype, name).itemsize
        return self._read(name, start * row_bytes, (stop - start) * row_bytes).view(stop - start, columns)

    def _read(self, name: str, offset: int, nbytes: int, buffer: torch.Tensor | None = None) -> torch.Tensor:
        dtype = torch_dtype(self.tensors[name].dtype, name)
        buffer = torch.empty(nbytes, dtype=torch.uint8) if buffer is None else buffer
        view = buffer.numpy().data
        path = self.file_of[name]
        try:
            file = self._file(path)
            file.seek(self._begin[name] + offset)
            done = 0
            while done < nbytes and (count := file.readinto(view[done:])):
                done += count
        except OSError as error:
            raise disk_problem(error) or _changed(path) from error
        if done < nbytes:
            raise _changed(path)
        return buffer.view(dtype)

    def _file(self, path: Path) -> FileIO:
        if self._open is None or self._open_path != path:
            self.close()
            self._open, self._open_path = path.open("rb", buffering=0), path
        return self._open


@dataclass(slots=True)
class _Place:
    """Where a tensor goes, and how much of it is there already."""

    tensor: NewTensor
    shard: int
    begin: int
    written: int = 0


@dataclass(slots=True)
class _Shard:
    tensors: list[NewTensor] = field(default_factory=list)
    nbytes: int = 0
    file: FileIO | None = None


class CheckpointWriter:
    """Writes tensors to safetensors files of at most `shard_bytes` each (a larger tensor gets a file of its own).

    One file is called `model.safetensors`; several are numbered and get an index. Raises DiskProblem when the disk is
    full or not writable.
    """

    def __init__(self, folder: Path, tensors: Sequence[NewTensor], shard_bytes: int) -> None:
        self._folder = folder
        self._shards = _shards(tensors, shard_bytes)
        self._places: dict[str, _Place] = {}
        with self._disk_errors():
            for number, shard in enumerate(self._shards):
                self._begin_shard(number, shard)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for shard in self._shards:
            if shard.file is not None:
                shard.file.close()

    @property
    def files(self) -> list[Path]:
        """The weight files, in order."""
        count = len(self._shards)
        if count == 1:
            return [self._folder / SINGLE_FILE]
        return [self._folder / f"model-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]

    def write(self, name: str, data: torch.Tensor, row: int = 0) -> None:
        """Write a tensor, or, from `row` on, some rows of it. A row is the last dimension."""
        place = self._places[name]
        columns = place.tensor.shape[-1] if place.tensor.shape else 1
        room = (place.tensor.rows - row) * columns
        width = data.shape[-1] if data.shape else 1
        if data.dtype != DTYPES[place.tensor.dtype] or data.numel() > room or width not in (columns, 0):
            raise ValueError(f"{name}: {data.dtype} {list(data.shape)} at row {row} does not fit {place.tensor}")
        view = data.contiguous().reshape(-1).view(torch.uint8).numpy().data
        file = self._shards[place.shard].file
        assert file is not None  # noqa: S101 - opened in the constructor
        with self._disk_errors():
            file.seek(place.begin + row * columns * data.element_size())
            done = 0
            while done < len(view):
                done += file.write(view[done:])
        place.written += done

    def finish(self) -> None:
        """Check that every tensor is there and write the index. Raises ValueError if one is not."""
        for place in self._places.values():
            if place.written != place.tensor.nbytes:
                raise ValueError(f"{place.tensor.name}: {place.written} of {place.tensor.nbytes} bytes were written")
        if len(self._shards) > 1:
            files = self.files
            weight_map = {name: files[place.shard].name for name, place in sorted(self._places.items())}
            total = sum(place.tensor.nbytes for place in self._places.values())
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            with self._disk_errors():
                (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _begin_shard(self, number: int, shard: _Shard) -> None:
        header, begins = _header(shard.tensors)
        for tensor in shard.tensors:
            self._places[tensor.name] = _Place(tensor, number, len(header) + begins[tensor.name])
        shard.file = self.files[number].open("xb", buffering=0)
        shard.file.write(header)
        shard.file.truncate(len(header) + sum(tensor.nbytes for tensor in shard.tensors))

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if problem := disk_problem(error):
                raise problem from error
            raise


def torch_dtype(dtype: str, name: str) -> torch.dtype:
    """Torch's dtype for safetensors' name of it. Raises ModelDamaged, naming the tensor, when there is none."""
    if dtype not in DTYPES:
        raise ModelDamaged(
            f"{name} is stored as {dtype}, which is not a dtype of language models.",
            hint="Use another version of the model, in bf16, fp16 or fp32.",
        )
    return DTYPES[dtype]


def _shards(tensors: Iterable[NewTensor], limit: int) -> list[_Shard]:
    shards = [_Shard()]
    for tensor in tensors:
        cost = tensor.nbytes + len(tensor.name.encode()) + _HEADER_ENTRY
        if shards[-1].tensors and shards[-1].nbytes + cost > limit:
            shards.append(_Shard())
        shards[-1].tensors.append(tensor)
        shards[-1].nbytes += cost
    return shards


def _header(tensors: Iterable[NewTensor]) -> tuple[bytes, dict[str, int]]:
    """The file's first bytes, and where each tensor begins after them. Wide dtypes go first: all stay aligned."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins: dict[str, int] = {}
    position = 0
    for tensor in sorted(tensors, key=lambda tensor: -DTYPES[tensor.dtype].itemsize):
        begins[tensor.name] = position
        position += tensor.nbytes
        offsets = [begins[tensor.name], position]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, begins


def _changed(path: Path) -> ModelDamaged:
    return ModelDamaged(
        f"The weight file {path.name} ended early.",
        why="It was changed or cut while it was read.",
        hint="Download or copy the model again.",
    )
