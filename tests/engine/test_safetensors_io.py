"""Pieces read and written by row are those that the safetensors library sees; full disks and cut files are named."""

import errno
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from quantstudio.core.errors import DiskProblem, ModelDamaged
from quantstudio.engine.safetensors_io import CheckpointReader, CheckpointWriter, NewTensor

LARGE = 1 << 30
TENSORS = {
    "codes": torch.arange(-60, 60, dtype=torch.int8).view(12, 10),
    "shape": torch.tensor([12, 10]),
    "matrix": torch.arange(120, dtype=torch.bfloat16).view(12, 10),
    "cube": torch.arange(24, dtype=torch.float32).view(2, 3, 4),
    "norm": torch.ones(7, dtype=torch.bfloat16),
    "scalar": torch.tensor(3.0),
    "empty": torch.empty(0, 5),
    "flags": torch.tensor([True, False, True]),
}
DTYPES = {torch.int8: "I8", torch.int64: "I64", torch.bfloat16: "BF16", torch.float32: "F32", torch.bool: "BOOL"}
NEW = [NewTensor(name, DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in TENSORS.items()]


def write(folder, shard_bytes=LARGE, tensors=TENSORS):
    new = [NewTensor(name, DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()]
    with CheckpointWriter(folder, new, shard_bytes) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
        writer.finish()
    return writer


def test_the_library_reads_what_we_write(tmp_path):
    write(tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_we_read_what_the_library_writes(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    with CheckpointReader(tmp_path) as reader:
        assert reader.tensors.keys() == TENSORS.keys()
        assert all(torch.equal(reader.read(name), tensor) for name, tensor in TENSORS.items())
        assert torch.equal(reader.read_rows("matrix", 3, 5), TENSORS["matrix"][3:5])
        assert torch.equal(reader.read_rows("cube", 2, 5), TENSORS["cube"].view(6, 4)[2:5])
        assert torch.equal(reader.read_rows("norm", 0, 1), TENSORS["norm"].view(1, 7))


def test_rows_in_any_order_make_the_same_file(tmp_path):
    for name in ("whole", "pieces"):
        (tmp_path / name).mkdir()
    write(tmp_path / "whole")
    with CheckpointWriter(tmp_path / "pieces", NEW, LARGE) as writer:
        for name, tensor in reversed(TENSORS.items()):
            rows = tensor.view(-1, tensor.shape[-1]) if tensor.dim() and tensor.numel() else tensor.view(-1, 1)
            for row in range(len(rows) - 1, -1, -1):
                writer.write(name, rows[row : row + 1], row)
        writer.finish()
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "pieces/model.safetensors").read_bytes()


def test_shards_stay_below_their_limit_and_have_an_index(tmp_path):
    tensors = {f"layer.{number}": torch.full((10, 100), float(number)) for number in range(10)}
    writer = write(tmp_path, shard_bytes=10_000, tensors=tensors)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [path.name for path in files] == [f"model-{number:05d}-of-00005.safetensors" for number in range(1, 6)]
    assert files == writer.files
    assert max(path.stat().st_size for path in files) <= 10_000
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 40_000
    assert all(name in load_file(tmp_path / file) for name, file in index["weight_map"].items())
    with CheckpointReader(tmp_path) as reader:
        assert all(torch.equal(reader.read(name), tensor) for name, tensor in tensors.items())


def test_a_tensor_larger_than_a_shard_gets_a_file_of_its_own(tmp_path):
    tensors = {"small": torch.ones(10), "large": torch.ones(1000), "small too": torch.ones(10)}
    assert len(write(tmp_path, shard_bytes=1000, tensors=tensors).files) == 3


def test_tensors_are_aligned(tmp_path):
    write(tmp_path)
    raw = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    sizes = {"I64": 8, "F32": 4, "BF16": 2, "I8": 1, "BOOL": 1}
    assert length % 8 == 0
    for name in TENSORS:
        assert header[name]["data_offsets"][0] % sizes[header[name]["dtype"]] == 0


def test_what_was_not_written_is_noticed(tmp_path):
    with CheckpointWriter(tmp_path, NEW, LARGE) as writer:
        writer.write("codes", TENSORS["codes"][:6])
        with pytest.raises(ValueError, match="codes: 60 of 120 bytes"):
            writer.finish()


@pytest.mark.parametrize("data", [torch.zeros(12, 10), torch.zeros(13, 10, dtype=torch.int8), torch.zeros(2, 5).char()])
def test_what_does_not_fit_is_refused(tmp_path, data):
    with CheckpointWriter(tmp_path, NEW, LARGE) as writer, pytest.raises(ValueError, match="does not fit"):
        writer.write("codes", data)


def test_a_full_disk_is_said_in_words(tmp_path):
    with CheckpointWriter(tmp_path, NEW, LARGE) as writer:
        writer._shards[0].file.close()
        writer._shards[0].file = FullDisk()
        with pytest.raises(DiskProblem, match="The disk is full"):
            writer.write("codes", TENSORS["codes"])


class FullDisk:
    def seek(self, position):
        pass

    def write(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self):
        pass


def test_a_file_that_shrinks_while_it_is_read_is_damage(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    with CheckpointReader(tmp_path) as reader:
        size = (tmp_path / "model.safetensors").stat().st_size
        with (tmp_path / "model.safetensors").open("rb+") as file:
            file.truncate(size - 100)
        with pytest.raises(ModelDamaged, match="ended early"):
            [reader.read(name) for name in TENSORS]


def test_an_odd_dtype_is_named(tmp_path):
    save_file({"a": torch.zeros(2, dtype=torch.uint16)}, tmp_path / "model.safetensors")
    with CheckpointReader(tmp_path) as reader, pytest.raises(ModelDamaged, match="a is stored as U16"):
        reader.read("a")
