"""A stop request is heard wherever the main thread waits."""

import subprocess
import sys

import pytest

from tests import servers

# The signal is given to another thread while the main one sleeps: as when it comes just before.
SCRIPT = """
import os, signal, sys, threading
from concurrent.futures import Future
from pathlib import Path
from preflight.backup import beside
from preflight.base import stop

stop.listen(stop.remember)
main, state = threading.main_thread(), Path(f"/proc/self/task/{os.getpid()}/stat")

def asleep():
    frame = sys._current_frames()[main.ident]
    return frame.f_code.co_name == "wait" and state.read_text().rpartition(")")[2].split()[0] == "S"

def other():
    while not asleep():
        pass
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

threading.Thread(target=other, daemon=True).start()
try:
    WAIT
except stop.Stopped as stopped:
    sys.exit(stopped.signum)
"""


@pytest.mark.parametrize("waits", ["beside.answer(Future())", "stop.until(threading.Event().wait)"])
def test_signal_that_wakes_another_thread_ends_the_waiting(waits: str) -> None:
    """Nobody wakes the main thread: it looks by itself."""
    command = [sys.executable, "-c", SCRIPT.replace("WAIT", waits)]
    done = subprocess.run(command, cwd=servers.REPOSITORY, check=False, timeout=60)

    assert 15 == done.returncode
