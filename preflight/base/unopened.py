"""What libpq opens by itself, where no file stands: at a pipe it would wait for ever, deaf to all.

It waits inside one call that lets nothing else of Python run: no deadline and no stop request.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping

from preflight.base import plain

NOWHERE = f"{os.devnull}/none"  # a passfile that is not there: libpq says nothing of it
HINT = (
    "libpq would wait there for ever: copy what it holds into a file, that of a `<(…)` too, and "
    "name the file."
)
SERVICES = ("servicefile", "PGSERVICEFILE", ".pg_service.conf")
FILES = (*plain.OPENED, ("sslkeylogfile", "", ""))  # the last one only where somebody says it
_WORDS = {"sslrootcert": "system"}  # no path
_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISSOCK, "a socket"),
    (lambda _: True, "a device"),
)


def standing(path: str) -> str | None:
    """Return what stands in the place of a file; None where it is one, or nothing, or /dev/null."""
    try:
        facts = os.stat(path)  # noqa: PTH116 -- any bytes, also those of no path
        if stat.S_ISREG(facts.st_mode) or os.path.samestat(facts, os.stat(os.devnull)):  # noqa: PTH116
            return None
    except (OSError, ValueError):
        return None
    return next(words for is_one, words in _KINDS if is_one(facts.st_mode))


def services(url: Mapping[str, str], environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield, as `others` does, what is wrong where libpq looks for a service."""
    yield from _wrong(SERVICES, url, {}, environ)
    if folder := environ.get("PGSYSCONFDIR"):
        path = f"{folder}/pg_service.conf"
        if what := standing(path):
            yield SERVICES[0], f"{path} is {what} and no file"


def others(
    url: Mapping[str, str], service: Mapping[str, str], environ: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield the parameters that lead to no file, and a sentence of each.

    What a URL says comes first for libpq, then a service's, the environment's, and HOME. Of a URL
    no path is shown: it may be a piece of the password.
    """
    for each in FILES:
        yield from _wrong(each, url, service, environ)


def _wrong(
    names: tuple[str, str, str],
    url: Mapping[str, str],
    service: Mapping[str, str],
    environ: Mapping[str, str],
) -> Iterator[tuple[str, str]]:
    key, variable, default = names
    said = url.get(key) or service.get(key) or environ.get(variable) or ""
    path = said or (f"{environ.get('HOME', '')}/{default}" if default else "")
    what = None if not path or path == _WORDS.get(key) else standing(path)
    if what is None:
        return
    if not said:
        where = path
    elif key not in url and environ.get(variable) == said:
        where = f"{variable} names {path}, which"
    else:
        where = f"{'the URL' if key in url else 'the service'} says as {key} what"
    yield key, f"{where} is {what} and no file"
