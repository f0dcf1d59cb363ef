"""Where no password may stand: what is seen of processes, files and tables, in each spelling."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, quote_plus

from psycopg import sql

from tests import servers

CLIENTS = ("pg_dump", "pg_restore")
DUMPS = ("database.dump", "database.dir")  # the rows of those who made them: not our words

Seen = dict[str, bytes]


def spellings(secret: str) -> set[bytes]:
    """Return how its longer pieces are written: as they are, in an address, in a passfile.

    JSON, a row and a keyword string change quotes, backslashes and what is not ASCII alone, so the
    pieces are what stands between these: part of a password is a leak, too.
    """
    pieces = [each for each in re.split(r"""['"\\]|[^ -~]""", secret) if len(each) > 4]
    assert pieces, "a secret that could be found by chance"
    ways = (str, lambda each: quote(each, safe=""), quote_plus, lambda s: s.replace(":", "\\:"))
    return {way(each).encode() for each in pieces for way in ways}


def leaks(seen: Mapping[str, bytes], secret: str = servers.PASSWORD) -> list[str]:
    """Return the names of what has it, in its contents or in the name itself."""
    ways = spellings(secret)
    texts = {name: name.encode("utf-8", "surrogateescape") + b"\n" + seen[name] for name in seen}
    return [name for name, text in texts.items() if any(each in text for each in ways)]


def of_files(place: Path) -> Seen:
    """Return the names of all that is in a directory, and what is in the files but the dumps."""
    found = {}
    for each in place.rglob("*"):
        dump = any(part in DUMPS for part in each.relative_to(place).parts)
        with contextlib.suppress(OSError):
            found[str(each)] = each.read_bytes() if each.is_file() and not dump else b""
    return found


def of_tables(database: servers.Database, schema: str = "preflight") -> Seen:
    """Return every row of all tables and views of a schema."""
    with database.server.connect(database.name) as connection:
        names = connection.execute(
            "SELECT relname::text FROM pg_class WHERE relkind = ANY ('{r,p,v,m,f}')"
            " AND relnamespace = to_regnamespace(%s)",
            [schema],
        ).fetchall()
        rows = sql.SQL("SELECT coalesce(string_agg(t::text, chr(10)), '') FROM {} t")
        found = {}
        for (name,) in names:
            (text,) = connection.execute(rows.format(sql.Identifier(schema, name))).fetchone() or ()
            found[f"{schema}.{name}"] = str(text).encode()
        return found


def of_processes(pid: int) -> Seen:
    """Return the arguments of a process and all below it, and the environment of our clients.

    Those have a passfile; a job's own environment is what it was given, and a wrapped command's
    names the database because it has to.
    """
    found = {}
    for each in (pid, *_below(pid)):
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{each}/comm").read_text("utf-8").strip()
            found[f"arguments of {name} {each}"] = Path(f"/proc/{each}/cmdline").read_bytes()
            if name in CLIENTS:
                environment = Path(f"/proc/{each}/environ").read_bytes()
                found[f"environment of {name} {each}"] = environment
    return found


def children() -> dict[int, list[int]]:
    """Return the processes that each process has below it."""
    found: dict[int, list[int]] = {}
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            status = (each / "stat").read_text("utf-8", "replace")
            found.setdefault(int(status.rpartition(")")[2].split()[1]), []).append(int(each.name))
    return found


def _below(pid: int) -> Iterator[int]:
    below, open_ = children(), [pid]
    while open_:
        found = below.get(open_.pop(), [])
        open_ += found
        yield from found
