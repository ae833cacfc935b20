"""Memory as it is: allocations show, children count, the peak stays."""

import errno
import subprocess
import sys
import time

from quantstudio.core import protocol
from quantstudio.engine.measure.memory import MemorySampler, peak_rss

HUNGRY = "x = bytearray(b'1' * 80_000_000); print('ready', flush=True); input()"


def test_a_childs_memory_counts_and_leaves_with_it():
    sampler = MemorySampler(lambda message: None, interval_s=0.02)
    before = sampler.sample().rss
    child = subprocess.Popen([sys.executable, "-c", HUNGRY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    sent = []
    with MemorySampler(sent.append, interval_s=0.02):
        time.sleep(0.1)
    assert max(message.rss for message in sent) > before + 80_000_000
    child.communicate(b"\n")
    assert MemorySampler(lambda message: None).sample().rss < before + 40_000_000


def test_samples_come_at_the_interval_and_stop_at_the_end():
    sent = []
    with MemorySampler(sent.append, interval_s=0.05):
        time.sleep(0.5)
    assert 5 <= len(sent) <= 12
    assert all(isinstance(message, protocol.Memory) and message.available > 0 for message in sent)
    count = len(sent)
    time.sleep(0.12)
    assert len(sent) == count


def test_a_full_disk_ends_the_sampling_and_not_the_program():
    def full(message):
        raise OSError(errno.ENOSPC, "No space left on device")

    with MemorySampler(full, interval_s=0.01) as sampler:
        time.sleep(0.05)
        assert not sampler._thread.is_alive()


def test_the_peak_of_a_process_is_its_own_and_stays():
    """Not its parent's: getrusage would report that after fork and exec."""
    ballast = bytearray(b"1" * 150_000_000)
    code = (
        "from quantstudio.engine.measure.memory import peak_rss\n"
        "a = peak_rss(); x = bytearray(b'1' * 60_000_000); del x; print(a, peak_rss())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    start, peak = map(int, done.stdout.split())
    assert peak - start > 50_000_000
    assert start < 120_000_000 < len(ballast) < peak_rss()
