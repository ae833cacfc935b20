"""What glibc does with memory that is freed: kept between layers, given back between phases.

glibc gives large blocks back at once; the next activation of the same size is then mapped and zeroed page by page. For
a prompt of 512 tokens on a 0.5B model that was 12 % of the time. Blocks up to 64 MB are now reused; larger ones, such
as weights, still go back when they are freed. Between the phases of a run the opposite is wanted: what reading text or
training has left behind would lie beside the models that are measured next (1.2 GB after training 45M weights).
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_REUSED = 64 << 20
_KEPT = 256 << 20


@contextmanager
def garbage_kept() -> Iterator[None]:
    """Look for no circles of references meanwhile, which may also be said of a function.

    Python looks for them each time that some hundreds of lists, tuples and dictionaries more exist than before, among
    everything that torch and transformers keep. Half a million entries of a vocabulary, none of which is in a circle,
    set that off again and again: it took more than half of the time in which a tokenizer is read.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def importing() -> Iterator[None]:
    """For the import of torch and what is built on it, which makes half a million objects that stay for good.

    Circles of references are not looked for meanwhile (0.7 s of 3.8), nor ever again among what there is afterwards
    (0.2 s each time). Where torch is there already there may be models, too, which must not stay: then only the first.
    """
    is_first = "torch" not in sys.modules
    with garbage_kept():
        yield
        if is_first:
            gc.freeze()


def trim_freed_memory() -> None:
    """Give the system back what is free between blocks that are in use. A few milliseconds; nothing without glibc."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> bool:
    """Tell glibc to reuse freed blocks in this process. Returns whether there is a glibc to tell."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_REUSED)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT))


def give_back_freed_memory() -> None:
    """Give back also what lies unused in circles of references, as models and their training do; between phases."""
    gc.collect()
    trim_freed_memory()
