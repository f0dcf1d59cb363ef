"""What the process itself takes of memory."""

import ctypes
from contextlib import suppress

M_ARENA_MAX = -8  # glibc's malloc.h


def one_heap() -> None:
    """Have all threads allocate from one heap; a libc that knows no other way is left alone.

    glibc gives each thread one of its own, which keeps what it had at most: some megabytes for the
    few threads that watch, read back and wait. Python runs one of them at a time anyway. Call
    before the first thread. mallopt(3).
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
