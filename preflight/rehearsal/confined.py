"""What a throwaway server may do: work in its own directory, and nothing beside that.

Whoever may create tables in the live database has code in its dump, and this server's superuser
runs it while rows are loaded. So the kernel (Landlock) keeps the server in, with all that it
starts: it writes below its own directories alone, reads these and the system's programs and
libraries, connects to nobody by TCP, and neither looks into nor signals processes that are not
its own. Where the kernel has no Landlock nothing is taken away.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

from preflight.base import landlock

FILES_ABI = 2  # Linux 5.19: before it nothing can be moved from one directory into another
# where systems keep programs, libraries, locales, zones: read by everybody, secrets of nobody
SYSTEM = (
    "/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin", "/nix/store", "/gnu/store",
    "/home/linuxbrew/.linuxbrew", "/snap", "/proc", "/sys", "/var/cache/postgresql",
    "/etc/R", "/etc/alternatives", "/etc/crypto-policies", "/etc/fonts", "/etc/group", "/etc/hosts",
    "/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/localtime", "/etc/nsswitch.conf", "/etc/passwd",
    "/etc/perl", "/etc/pki/tls/fips_local.cnf", "/etc/pki/tls/openssl.cnf",
    "/etc/pki/tls/openssl.d", "/etc/proj", "/etc/resolv.conf", "/etc/ssl/certs",
    "/etc/ssl/engdef.d", "/etc/ssl/engines.d", "/etc/ssl/fipsmodule.cnf", "/etc/ssl/openssl.cnf",
    "/etc/timezone", "/etc/zoneinfo", "/dev/random", "/dev/urandom", "/dev/zero",
)  # fmt: skip
DISCARD = Path("/dev/null")
_LIBRARY = re.compile(r"(?:=> |^\s+)(/.+?) \(0x", re.MULTILINE)  # of ld.so(8)
# as the server, Python, and what looks for a place for temporary files say it
FORBIDDEN = (
    r'could not [^:]*: Permission denied|program ".*" failed|\[Errno 13\]'
    "|No usable temporary directory"
)


def available() -> bool:
    """Tell whether the kernel has rules for files that a server can live with."""
    return landlock.version() >= FILES_ABI


def rules(
    postgres: Path,
    ask: Callable[[Mapping[str, str]], str],
    own: Collection[Path],
    ports: Collection[int],
) -> int | None:
    """Return the descriptor of the rules that a server is started with; None without Landlock.

    `ask` returns what the program says of its version in an environment; `own` are its directories,
    `ports` where it listens by TCP.
    """
    if not available():
        return None
    musl = Path("/etc").glob("ld-musl-*.path")
    readable = (*map(Path, SYSTEM), *musl, *_installed(postgres, ask))
    allowed = dict.fromkeys(readable, landlock.READ | landlock.EXECUTE)
    allowed[DISCARD] = landlock.READ | landlock.WRITE_FILE | landlock.TRUNCATE
    allowed |= dict.fromkeys(own, landlock.every_file_right())
    with suppress(OSError):
        return landlock.rules(
            allowed,
            connect=(),
            listen=ports,
            scoped=landlock.ABSTRACT_UNIX_SOCKET | landlock.SIGNAL,
        )
    return None


def forbade(text: str) -> bool:
    """Tell whether an error may be of these rules: it is no fault of who ran into it."""
    return re.search(FORBIDDEN, text) is not None


def _installed(postgres: Path, ask: Callable[[Mapping[str, str]], str]) -> list[Path]:
    """Return where a server lies that is none of the system's, and where its libraries do."""
    program = Path(os.path.realpath(postgres))
    if any(program.is_relative_to(each) for each in SYSTEM):
        return []
    said = ask({"LD_TRACE_LOADED_OBJECTS": "1"})  # ld.so(8): what it would load, and no more
    around = [folder for each in (postgres, program) for folder in _around(each)]
    libraries = {Path(os.path.realpath(each)).parent for each in _LIBRARY.findall(said)}
    return [*around, *libraries]


def _around(program: Path) -> list[Path]:
    """Return its prefix, and the share/ beside a lib/ that this is in; no home, and not all."""
    prefix = program.parent.parent
    if str(prefix) in {prefix.anchor, os.path.expanduser("~")}:  # noqa: PTH111 -- never raises
        return [program.parent, prefix / "lib", prefix / "share"]
    return [prefix, *(each.parent / "share" for each in prefix.parents if each.name == "lib")]
