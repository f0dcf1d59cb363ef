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
import subprocess
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from preflight.base import landlock

FILES_ABI = 2  # Linux 5.19: before it nothing can be moved from one directory into another
ASKED_S = 60.0
# where systems keep programs, libraries, locales, zones: read by everybody, secrets of nobody
SYSTEM = (
    "/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin", "/opt", "/nix/store",
    "/gnu/store", "/home/linuxbrew", "/snap", "/proc", "/sys", "/var/cache/postgresql",
    "/etc/alternatives", "/etc/crypto-policies", "/etc/fonts", "/etc/group", "/etc/hosts",
    "/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/localtime", "/etc/nsswitch.conf", "/etc/passwd",
    "/etc/perl", "/etc/pki/tls/openssl.cnf", "/etc/proj", "/etc/resolv.conf",
    "/etc/ssl/openssl.cnf", "/etc/timezone", "/dev/random", "/dev/urandom", "/dev/zero",
)  # fmt: skip
DISCARD = Path("/dev/null")
_LIBRARY = re.compile(r" => (/\S+) \(0x")


def rules(postgres: Path, own: Collection[Path], ports: Collection[int]) -> int | None:
    """Return the descriptor of the rules that a server is started with; None without Landlock.

    `own` are its directories, `ports` where it listens by TCP.
    """
    if landlock.version() < FILES_ABI:
        return None
    readable = (*map(Path, SYSTEM), *_installed(postgres))
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


def _installed(postgres: Path) -> list[Path]:
    """Return where a server lies that is none of the system's, and where its libraries do."""
    program = Path(os.path.realpath(postgres))
    if any(program.is_relative_to(each) for each in SYSTEM):
        return []
    said = ""
    with suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(  # noqa: S603 -- a program that was looked for by its name
            [program, "--version"],
            env={"LD_TRACE_LOADED_OBJECTS": "1"},  # ld.so(8): what it would load, and no more
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=ASKED_S,
        ).stdout
    # its prefix, as it is called and as it is; what bin/ holds may be links
    prefixes = [postgres.parent.parent, program.parent.parent]
    return [*prefixes, *(Path(os.path.realpath(each)).parent for each in _LIBRARY.findall(said))]
