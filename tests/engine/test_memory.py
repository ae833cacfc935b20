import gc
import os
import subprocess
import sys

import pytest

from quantstudio.engine.load import load_model
from quantstudio.engine.load_tokenizer import load_tokenizer
from quantstudio.engine.memory import garbage_kept, importing
from quantstudio.engine.reporter import silent


@pytest.fixture
def collections():
    """How often circles of references were looked for."""
    seen: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            seen.append(info["generation"])

    thresholds = gc.get_threshold()
    gc.collect()
    gc.set_threshold(50)  # a tiny vocabulary sets it off, too
    gc.callbacks.append(note)
    yield seen
    gc.callbacks.remove(note)
    gc.set_threshold(*thresholds)


@garbage_kept()
def _fail() -> None:
    with garbage_kept():  # as a model is loaded, and its tokenizer within
        assert not gc.isenabled()
    assert not gc.isenabled()
    raise ValueError("broken")


def test_garbage_is_kept_meanwhile_and_looked_for_again_afterwards():
    with pytest.raises(ValueError, match="broken"):
        _fail()
    assert gc.isenabled()


def test_who_has_turned_it_off_finds_it_off():
    gc.disable()
    try:
        with garbage_kept():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_nothing_is_looked_through_while_a_tokenizer_is_read(tiny_folder, collections):
    assert load_tokenizer(tiny_folder) is not None
    assert len(collections) <= 1  # the count that had grown meanwhile is looked at when it is over
    assert gc.isenabled()


def test_nothing_is_looked_through_while_a_model_is_loaded(tiny_folder, collections):
    load_model(tiny_folder, "cpu", silent())
    assert len(collections) <= 3  # one before and one after; without, sixty
    assert gc.isenabled()


def test_libraries_are_looked_through_neither_while_they_are_imported_nor_later(tmp_path):
    (tmp_path / "torch.py").write_text("import gc\nassert not gc.isenabled()\nkept = [[] for _ in range(1000)]\n")
    program = """
import gc
from quantstudio.engine.memory import importing
with importing():
    import torch
frozen = gc.get_freeze_count()
models = [[] for _ in range(1000)]
with importing():
    import torch
print(gc.isenabled(), frozen > 1000, gc.get_freeze_count() == frozen)
"""
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "True"]


def test_where_torch_is_already_there_nothing_is_kept_for_good():
    before = gc.get_freeze_count()
    with importing():
        assert not gc.isenabled()
    assert gc.get_freeze_count() == before
