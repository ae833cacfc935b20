import gc

import pytest

from quantstudio.engine.load import load_model
from quantstudio.engine.load_tokenizer import load_tokenizer
from quantstudio.engine.memory import garbage_kept
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
