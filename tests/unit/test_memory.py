"""What the process itself takes of memory."""

import ctypes
import subprocess
import sys

import pytest

from tests import servers

HEAPS = """
import ctypes, sys, threading
from preflight.base import memory
if "one" in sys.argv:
    memory.one_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fdopen.restype = ctypes.c_void_p
together = threading.Barrier(3)
def take():
    together.wait()  # all at work: a heap of a thread that has ended is taken over
    libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=take) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
out = libc.fdopen(1, b"w")
libc.malloc_info(0, ctypes.c_void_p(out))
libc.fflush(ctypes.c_void_p(out))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="a libc with one heap")
def test_threads_share_one_heap() -> None:
    """Several threads at work have one heap, where each would have had its own."""

    def heaps(*words: str) -> int:
        command = [sys.executable, "-c", HEAPS, *words]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=servers.REPOSITORY
        )
        return done.stdout.count("<heap ")

    assert heaps("one") == 1
    assert heaps() > 1
