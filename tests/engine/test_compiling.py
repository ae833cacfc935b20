"""Where compiled programs are kept, and what is said of them."""

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch.utils.checkpoint import CheckpointError

from quantstudio.core.errors import Cancelled
from quantstudio.engine import compiling


@pytest.fixture(autouse=True)
def _home(monkeypatch, tmp_path):
    monkeypatch.setenv("QUANTSTUDIO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # set here, so that it is as it was afterwards
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")


def test_programs_are_kept_where_only_the_person_can_write():
    compiling.keep_programs()
    folder = Path(cache_dir())
    assert folder == Path(os.environ["QUANTSTUDIO_HOME"]) / "compiled"
    assert os.name == "nt" or folder.stat().st_mode & 0o077 == 0


def test_a_folder_that_the_person_has_named_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "own"))
    compiling.keep_programs()
    assert cache_dir() == str(tmp_path / "own")
    assert not (tmp_path / "home").exists()


def test_programs_from_the_disk_are_told_from_new_ones(monkeypatch):
    counts = Counter()
    monkeypatch.setattr(compiling, "_counts", lambda: counts)
    assert compiling.words_if_kept() == ""
    counts["fxgraph_cache_hit"] = 2
    assert "on the disk" in compiling.words_if_kept()
    counts["fxgraph_cache_miss"] = 1
    assert compiling.words_if_kept() == ""


def test_a_reason_is_one_short_line_without_secrets():
    token = "hf_" + "a" * 30
    assert compiling.reason(ValueError(f"\n no, {token}\nmore")) == "ValueError: no, hf_…"
    assert len(compiling.reason(ValueError("long " * 100))) == 300


def test_nothing_is_compiled_for_a_cpu():
    assert "NVIDIA" in compiling.why_not("cpu")


def test_leaving_a_block_early_is_no_failure():
    assert not compiling.is_failure(CheckpointError("the block has computed what was asked for"))
    assert not compiling.is_failure(Cancelled())
    assert not compiling.is_failure(torch.OutOfMemoryError("out of memory"))
    assert compiling.is_failure(RuntimeError("no compiler was found"))
