"""Library exceptions in a person's words, and no secret among them."""

import errno
import os
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from quantstudio.core.errors import DiskProblem, ModelDamaged, OutOfMemory
from quantstudio.core.recipe import MachineSection, MeasureSection, Recipe
from quantstudio.engine.failures import as_message, details, memory_advice, translate, without_secrets


def caught(function):
    """The exception that a library really raises."""
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("it did not fail")


def test_torchs_own_refusal_of_an_impossible_tensor_is_out_of_memory():
    error = caught(lambda: torch.empty(1 << 60))
    assert isinstance(error, RuntimeError)
    found = translate(error, Recipe(measure=MeasureSection(window=512), machine=MachineSection(device="cpu")))
    assert isinstance(found, OutOfMemory)
    assert "shorter window than 512" in found.hint


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried"), caught(lambda: bytearray(1 << 62))]
)
def test_other_ways_to_run_out_of_memory(error):
    assert isinstance(translate(error), OutOfMemory)


def test_advice_leaves_out_what_the_recipe_already_does():
    modest = Recipe(measure=MeasureSection(window=64, prompt_tokens=64), machine=MachineSection(device="cpu"))
    assert memory_advice(modest) == "Try to close other programs, or take a smaller model."


def test_a_truncated_weight_file_is_a_damaged_model(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-10])
    found = translate(caught(lambda: safetensors.torch.load_file(path)))
    assert isinstance(found, ModelDamaged)


def test_a_full_disk_that_safetensors_meets_is_a_disk_problem():
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("this system has no /dev/full")
    error = safetensors.SafetensorError("I/O error: No space left on device (os error 28)")
    assert isinstance(translate(error), DiskProblem)
    with device.open("wb", buffering=0) as full:
        found = translate(caught(lambda: full.write(b"x")))
    assert isinstance(found, DiskProblem)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_errors_of_the_disk(code):
    message = as_message(OSError(code, os.strerror(code), "/some/folder"), 1.0)
    assert (message.kind, message.t) == ("disk", 1.0)
    assert "/some/folder" in f"{message.what} {message.why}"
    assert message.hint


def test_a_cause_that_is_known_explains_an_error_that_is_not():
    def wrapped():
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise ValueError("could not save") from error

    assert isinstance(translate(caught(wrapped)), DiskProblem)


def test_what_is_not_known_is_internal_and_says_so():
    message = as_message(ZeroDivisionError("division by zero"), 1.0)
    assert message.kind == "internal"
    assert "ZeroDivisionError: division by zero" in message.why
    assert "report" in message.hint


@pytest.mark.parametrize(
    "text",
    [
        "401 for hf_AbCdEfGhIjKlMnOpQrStUvWxYz",
        "Authorization: Bearer abcdef0123456789",
        "token=abcdef0123456789&x=1",
        '{"password": "abcdef0123456789"}',
        "https://anna:abcdef0123456789@example.com/model",
    ],
)
def test_secrets_are_struck_out(text):
    for shown in (without_secrets(text), as_message(ValueError(text), 0).why, details(ValueError(text))):
        assert "abcdef0123456789" not in shown
        assert "AbCdEfGh" not in shown


def test_ordinary_words_about_tokens_stay():
    text = "The text is 600 tokens long; a token stands for 4 bytes."
    assert without_secrets(text) == text
