"""Fake and misbehaving workers, and a check that no test leaves a process behind."""

import sys
from pathlib import Path

import psutil
import pytest

TESTS = Path(__file__).parents[1]


@pytest.fixture
def fake():
    """The command of a fake worker: `fake("flood", 1000)`. See `fakeworker.py` for the ways."""
    return lambda way, argument="": [sys.executable, "-I", str(TESTS / "fakeworker.py"), way, str(argument)]


@pytest.fixture
def misbehave():
    """The command of the real worker with a job that misbehaves. See `worker/misbehaving_job.py` for the ways."""
    return lambda way: [sys.executable, "-P", str(TESTS / "worker" / "misbehaving_job.py"), way]


@pytest.fixture
def new_children():
    """The processes that this test has started and that still run: `new_children()`."""
    before = set(psutil.Process().children(recursive=True))
    return lambda: [child for child in psutil.Process().children(recursive=True) if child not in before]


@pytest.fixture(autouse=True)
def _no_process_is_left(new_children):
    yield
    _, alive = psutil.wait_procs(new_children(), timeout=5)
    for child in alive:
        child.kill()
    assert not alive
