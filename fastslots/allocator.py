"""The memory allocator of the C library."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE = 1 << 30


def keep_freed_memory() -> None:
    """Makes the GNU C library keep the memory that this process frees, for what it allocates next.

    It would give large blocks back to the system, which clears every page of them when it hands them out
    anew: in each training step on a CPU, thousands. Other libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGE)
    mallopt(_M_TRIM_THRESHOLD, _LARGE)
