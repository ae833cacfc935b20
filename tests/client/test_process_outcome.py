"""Exit codes become words that say what to do."""

import signal

import pytest

from quantstudio.client.process_outcome import ProcessOutcome
from quantstudio.core.protocol import Memory

MEMORY = Memory(rss=3_200_000_000, available=100_000_000)


def outcome(code, *, crashed=False, **fields):
    return ProcessOutcome(code=code, crashed=crashed, **{"platform": "linux"} | fields).error()


def test_signal_9_on_linux_means_memory():
    error = outcome(9, crashed=True, memory=MEMORY)
    assert error.why == (
        "The system killed it (signal 9), which usually means that memory ran out. "
        "It last used 3.2 GB, with 100 MB free on the machine."
    )
    assert "smaller model" in error.hint


def test_signal_9_without_a_memory_figure():
    assert outcome(9, crashed=True).why.endswith("memory ran out.")


def test_signal_9_elsewhere_is_not_blamed_on_memory():
    error = outcome(9, crashed=True, platform="darwin", memory=MEMORY)
    assert "memory" not in error.why
    assert "smaller model" not in error.hint


def test_status_9_is_not_signal_9():
    assert outcome(9).why == "It ended with status 9."


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGSEGV, "memory that is not its own"),
        (signal.SIGILL, "lacks an instruction"),
        (signal.SIGTERM, "another program asked it to end"),
        (signal.SIGABRT, "gave up"),
        (250, "signal 250"),
    ],
)
def test_signals_have_words(number, words):
    error = outcome(int(number), crashed=True)
    assert words in error.why
    assert str(int(number)) in error.why


def test_cpp_out_of_memory_is_told_as_such():
    error = outcome(6, crashed=True, log_tail="terminate called after throwing an instance of 'std::bad_alloc'\n")
    assert error.why == "There was not enough memory."
    assert "smaller model" in error.hint


@pytest.mark.parametrize(
    ("code", "words"),
    [(0xC0000005, "access violation"), (0xC0000005 - (1 << 32), "access violation"), (0xC0001234, "0xC0001234")],
)
def test_windows_codes_have_words(code, words):
    assert words in outcome(code, crashed=True, platform="win32").why


def test_windows_out_of_memory():
    assert outcome(0xC0000017, crashed=True, platform="win32").why == "There was not enough memory."


def test_a_status_comes_with_the_last_words():
    assert outcome(1, log_tail="Traceback\nImportError: no torch\n\n").why == (
        "It ended with status 1. Its last words: ImportError: no torch"
    )


def test_status_0_without_a_word():
    error = outcome(0)
    assert (error.kind, error.why) == ("worker_lost", "It ended without saying how.")
