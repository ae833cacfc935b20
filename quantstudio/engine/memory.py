"""Keep the memory that torch frees between layers, instead of fetching it from the kernel again and again.

glibc gives large blocks back at once; the next activation of the same size is then mapped and zeroed page by page. For
a prompt of 512 tokens on a 0.5B model that was 12 % of the time. Blocks up to 64 MB are now reused; larger ones, such
as weights, still go back when they are freed.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_REUSED = 64 << 20
_KEPT = 256 << 20


def keep_freed_memory() -> bool:
    """Tell glibc to reuse freed blocks in this process. Returns whether there is a glibc to tell."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_REUSED)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT))
