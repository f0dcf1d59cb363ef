"""Real servers of buckets, and the library that reaches them: from PyPI, by hash, beside .venv.

`PREFLIGHT_TEST_S3_URL` (`s3://bucket/prefix`, with `PREFLIGHT_TEST_S3_ENDPOINT` and the usual AWS
variables) runs the same tests against a bucket of one's own.
"""

import base64
import contextlib
import email.utils
import fcntl
import hashlib
import hmac
import http.client
import http.server
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from tests import faults, servers, tools

LOCK = servers.REPOSITORY / "requirements-buckets.lock"
REGION = "us-east-1"
SECRET = "hunter2/of+the/bucket"  # noqa: S105 - of a server that lives for a minute, and looks at none


def libraries() -> Path:
    """Return where obstore and the servers are, installed once for each lock and interpreter."""
    tag = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()[:12]
    place = servers.REPOSITORY / ".cache" / f"buckets-{tag}"
    place.parent.mkdir(exist_ok=True)
    with (place.parent / "buckets.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one worker installs for all
        _install(place)
    return place


def _install(place: Path) -> None:
    if not place.is_dir():
        new = place.with_name(f"{place.name}.{os.getpid()}")
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-compile"]
        install += ["--disable-pip-version-check", "--require-hashes", "--only-binary", ":all:"]
        subprocess.run([*install, "--target", str(new), "--requirement", str(LOCK)], check=True)
        new.rename(place)


def importable() -> None:
    """Let this process import obstore."""
    if str(libraries()) not in sys.path:
        sys.path.append(str(libraries()))


class Bucket:
    """A place for backups in a bucket, and the variables that lead there."""

    def __init__(self, url: str, endpoint: str | None, keys: dict[str, str]) -> None:
        """Keep what a run needs to know."""
        self.url, self.endpoint, self.keys = url, endpoint, keys

    def env(self) -> dict[str, str]:
        """Return the environment of a run."""
        there = {"PREFLIGHT_BACKUP_DIR": self.url, "PYTHONPATH": str(libraries()), **self.keys}
        return there | ({"PREFLIGHT_BACKUP_ENDPOINT": self.endpoint} if self.endpoint else {})


@contextlib.contextmanager
def s3() -> Iterator[Bucket]:
    """Run moto's S3 server, or lead to the bucket of PREFLIGHT_TEST_S3_URL."""
    if url := os.environ.get("PREFLIGHT_TEST_S3_URL"):
        keys = {name: each for name, each in os.environ.items() if name.startswith("AWS_")}
        yield Bucket(url, os.environ.get("PREFLIGHT_TEST_S3_ENDPOINT"), keys)
        return
    moto = Moto()
    try:
        moto.start()
        yield moto.bucket
    finally:
        moto.kill()


class Moto:
    """A server that speaks S3 and forgets all when it is killed."""

    def __init__(self) -> None:
        """Choose a port."""
        self.port = _free_port()
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": REGION}
        self.bucket = Bucket("s3://backups", f"http://{servers.HOST}:{self.port}", keys)
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and make the bucket."""
        main = "import sys; from moto.server import main; main(sys.argv[1:])"
        command = [sys.executable, "-c", main, "-H", servers.HOST, "-p", str(self.port)]
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(libraries())}
        quiet = subprocess.DEVNULL
        self._child = subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet)
        made = f"{self.bucket.endpoint}/backups"
        faults.until(lambda: _made(made), "moto's server answers", 60)

    def kill(self) -> None:
        """End it at once."""
        if self._child:
            self._child.kill()
            self._child.wait()


@contextlib.contextmanager
def gofakes3(scheme: str) -> Iterator[Bucket]:
    """Run another maker's server of S3; Google's XML interface is the same but for conditions."""
    port = _free_port()
    command = [str(tools.go("gofakes3")), "-host", f"{servers.HOST}:{port}"]
    command += ["-backend", "mem", "-initialbucket", "backups"]
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": REGION}
    found = Bucket(f"{scheme}://backups/p", f"http://{servers.HOST}:{port}", keys)
    with _running(command, port):
        yield found


# Azurite's only account; everybody knows its key
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)


@contextlib.contextmanager
def azurite(place: Path) -> Iterator[Bucket]:
    """Run Azure's emulator."""
    port = _free_port()
    main = tools.npm("azurite@3.35.0") / "azurite/dist/src/blob/main.js"
    command = [tools.found("node"), str(main), "--blobHost", servers.HOST, "--blobPort", str(port)]
    command += ["--location", str(place), "--silent", "--skipApiVersionCheck"]
    keys = {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY}
    endpoint = f"http://{servers.HOST}:{port}/{ACCOUNT}"
    with _running(command, port):
        _make_container(endpoint)
        yield Bucket("az://backups/p", endpoint, keys)


def _make_container(endpoint: str) -> None:
    now = email.utils.formatdate(usegmt=True)
    headers = {"x-ms-date": now, "x-ms-version": "2021-08-06"}
    named = "\n".join(f"{name}:{value}" for name, value in headers.items())
    said = f"PUT{12 * chr(10)}{named}\n/{ACCOUNT}/{ACCOUNT}/backups\nrestype:container"
    digest = hmac.digest(base64.b64decode(ACCOUNT_KEY), said.encode(), "sha256")
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
    url = f"{endpoint}/backups?restype=container"
    request = urllib.request.Request(url, b"", headers, method="PUT")  # noqa: S310 -- ours
    request.add_unredirected_header("Content-Type", "")
    with urllib.request.urlopen(request, timeout=30):  # noqa: S310 -- likewise
        pass


def _free_port() -> int:
    with socket.create_server((servers.HOST, 0)) as free:
        return int(free.getsockname()[1])


@contextlib.contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as child:
        try:
            faults.until(lambda: _listens(port), f"{command[0]} answers", 60)
            yield
        finally:
            child.kill()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((servers.HOST, port), 5):
        return True
    return False


class Front:
    """A server that passes on what it is asked, or answers in its own way; it counts."""

    def __init__(
        self, endpoint: str, answer: Callable[[str, str], int | tuple[int, str] | None]
    ) -> None:
        """Keep where it leads, and what a method and a path get instead (None: nothing).

        It is a status, with the code of its error or without.
        """
        self.endpoint, self.answer = endpoint.removeprefix("http://"), answer
        self.asked: list[str] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """Yield its address."""
        front = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                """Pass it on, or refuse."""
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                front.asked.append(self.command)
                if said := front.answer(self.command, self.path):
                    usual = "AccessDenied" if said == 403 else "InternalError"
                    status, code = said if isinstance(said, tuple) else (said, usual)
                    self.tell(status, {}, f"<Error><Code>{code}</Code></Error>".encode())
                    return
                behind = http.client.HTTPConnection(front.endpoint, timeout=60)
                try:
                    behind.request(self.command, self.path, body, dict(self.headers))
                    found = behind.getresponse()
                    self.tell(found.status, dict(found.getheaders()), found.read())
                except (OSError, http.client.HTTPException):
                    self.close_connection = True  # as the server behind did
                finally:
                    behind.close()

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_one  # noqa: N815 -- the library's names

            def tell(self, status: int, headers: dict[str, str], body: bytes) -> None:
                """Answer."""
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                        self.send_header(name, value)
                length = headers.get("Content-Length", "0") if self.command == "HEAD" else len(body)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        server = http.server.ThreadingHTTPServer((servers.HOST, 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://{servers.HOST}:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()


def put(url: str, data: str = "") -> None:
    """Put a bucket, or a rule of one, where nobody looks at signatures; raises OSError."""
    body, kind = data.encode() or None, {"Content-Type": "application/xml"}
    request = urllib.request.Request(url, body, kind, method="PUT")  # noqa: S310 -- ours
    with urllib.request.urlopen(request, timeout=5):  # noqa: S310 -- likewise
        pass


def _made(url: str) -> bool:
    """Make a bucket; tell whether there is one now."""
    with contextlib.suppress(OSError):
        put(url)
        return True
    return False
