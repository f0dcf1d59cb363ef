"""What the process itself takes of memory."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from preflight.base import memory
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


def test_memory_that_a_cgroup_leaves_counts(tmp_path: Path) -> None:
    """Version 2 and version 1, nested, with the pages that give way; no limit is none."""
    groups = {
        "two": ("0::/pod/job\n", "pod", "memory.max", "memory.current", "inactive_file"),
        "one": (
            "4:memory:/pod/job\n",
            "memory/pod",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    }
    left, limits = {}, {}
    for name, (said, path, limit, used, cached) in groups.items():
        mounted = tmp_path / name
        inside = mounted / path / "job"
        inside.mkdir(parents=True)
        (tmp_path / "cgroup").write_text(said)
        (inside / limit).write_text("max\n")
        (inside / used).write_text("5\n")
        (inside.parent / limit).write_text("1000\n")
        (inside.parent / used).write_text("400\n")
        (inside.parent / "memory.stat").write_text(f"anon 1\n{cached} 50\n")
        read = (tmp_path / "cgroup", mounted, tmp_path / "nothing")
        left[name], limits[name] = memory.left(*read), memory.limit(*read)

    assert {"two": [(650, "the cgroup's")], "one": [(650, "the cgroup's")]} == left
    assert {"two": 1000, "one": 1000} == limits


@pytest.mark.parametrize(("said", "limit"), [(None, 1000 + 4096), ("100", 1100), ("max", 5096)])
def test_what_may_be_swapped_out_is_added_to_the_limit(
    tmp_path: Path, said: str | None, limit: int
) -> None:
    """A cgroup may say how much of the machine's swap it has; else it may have all of it."""
    (tmp_path / "cgroup").write_text("0::/\n")
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "meminfo").write_text("MemTotal: 8 kB\nSwapTotal:       4 kB\n")
    if said:
        (tmp_path / "memory.swap.max").write_text(f"{said}\n")

    assert limit == memory.limit(tmp_path / "cgroup", tmp_path, tmp_path / "meminfo")
