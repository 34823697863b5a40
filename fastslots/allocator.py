"""The memory allocator of the C library."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE, _LARGEST_ONCE = (
    1 << 30,
    32 << 20,
)  # which the first argument of earlier versions must not exceed


def keep_freed_memory() -> None:
    """Makes the GNU C library keep the memory that this process frees, for what it allocates next.

    It would give large blocks back to the system, which clears every page of them when it hands them out
    anew: in each training step on a CPU, thousands. Other libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    # The second alone would make it worse: it also ends the library's own raising of the first.
    if mallopt(_M_MMAP_THRESHOLD, _LARGE) or mallopt(_M_MMAP_THRESHOLD, _LARGEST_ONCE):
        mallopt(_M_TRIM_THRESHOLD, _LARGE)
