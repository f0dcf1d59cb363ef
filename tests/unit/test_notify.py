"""The address that is told: what its threads may not do."""

import subprocess
import sys
import threading

from preflight.commands.fleet import apart
from tests import servers

# every module that is looked for by another thread than the first, and what came of the message
_LOADED = """
import sys, threading
from preflight.base import notify

class Looker:
    loaded = []

    def find_spec(self, name, *_):
        if threading.current_thread() is not threading.main_thread():
            self.loaded.append(name)

sys.meta_path.insert(0, Looker())
messages = notify.Messages(notify.Address(sys.argv[1]))
messages.send({"event": "run.started"})
print([*messages.wait()], Looker.loaded)
"""


def test_nothing_is_loaded_while_a_message_is_sent() -> None:
    """Targets are forked meanwhile: a child would have a module half loaded, and wait for ever."""
    for url in ("http://localhost:1/", "https://nobody.invalid/"):
        told = subprocess.run(
            [sys.executable, "-c", _LOADED, url],
            cwd=servers.REPOSITORY, capture_output=True, text=True, check=False,
        )  # fmt: skip

        assert "['run.started'] []\n" == told.stdout, told


def test_no_thread_is_at_work_when_the_first_target_is_forked() -> None:
    """What it holds in a library of C no child could let go; it comes to its end before."""
    sender = threading.Thread(target=lambda: sum(range(5_000_000)))
    sender.start()
    apart.settle()

    assert not sender.is_alive()
