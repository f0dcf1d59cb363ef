#!/usr/bin/env python3
"""Assemble the image's root file system: what the job needs, and a list of what that is.

usage: assemble.py ROOT LIBRARIES APP PG_MAJOR [FULL] (in the build stage, as root; see Dockerfile)

Everything of ours comes to lie below /opt/pg-preflight, which runs wherever it is copied to:
launcher.c starts it. The usual paths are links into it.

Copied are the files that CPython, psycopg, pg_dump and pg_restore need, with every shared library
that they need in turn. No shell, no package manager: `/var/lib/dpkg/status.d` (as distroless images
have it) and an SPDX document tell scanners what is there. Nothing here knows a version of Python,
of Debian or a processor: the build stage is asked.
"""

from __future__ import annotations

import filecmp
import hashlib
import importlib.metadata
import json
import os
import platform
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

HOME = "opt/pg-preflight"
DIST_PACKAGES = "usr/lib/python3/dist-packages"
USER = 65532  # the number that distroless images gave to "nonroot"

# Parts of the standard library that no migration job imports. A name that is not there is no error.
LEFT_OUT = frozenset(
    """asyncio.__main__ asyncio.proactor_events asyncio.windows_events asyncio.windows_utils
    ctypes._aix ctypes.wintypes http.server logging.config logging.handlers __hello__ __phello__
    _aix_support _android_support _apple_support _ios_support _osx_support _pydatetime
    _pydecimal _pyio _pyrepl antigravity bdb cmd code codeop colorsys compileall cProfile curses
    dbm distutils doctest ensurepip fileinput ftplib getopt html idlelib imaplib lib2to3 mailbox
    modulefinder msilib multiprocessing netrc nntplib nturl2path optparse pdb pickletools
    plistlib poplib profile pstats pty py_compile pyclbr pydoc pydoc_data rlcompleter sched
    shelve sitecustomize smtplib socketserver sqlite3 statistics symtable tabnanny tarfile test
    this timeit tkinter trace tracemalloc tty turtle turtledemo unittest venv wave webbrowser
    wsgiref xml xmlrpc zipapp
    """.split()  # noqa: SIM905 -- ninety names in ten lines
)
# Compiled modules that are needed; the others belong to what is left out.
MODULES = frozenset(
    """_asyncio _bz2 _contextvars _ctypes _datetime _decimal _hashlib _heapq _json _lzma _pickle
    _posixsubprocess _queue _random _socket _ssl _struct _uuid _zoneinfo array binascii fcntl
    math mmap resource select termios unicodedata zlib""".split()  # noqa: SIM905 -- see above
)
# Codecs of East Asian texts, whose compiled modules are left out.
CODECS = re.compile("big5|cp9[345]|euc_|gb|hz|iso2022|johab|shift_jis")


def main(root: Path, libraries: Path, app: Path, pg_major: str, *, full: bool) -> None:
    """Assemble everything and say how large it is; the full image has a server."""
    layout(root)
    python = Path(sys.executable).resolve()
    clients = Path(f"/usr/lib/postgresql/{pg_major}/bin")
    sources = {python}
    place(python, root / python.relative_to("/"))
    (root / "usr/bin/python3").symlink_to(python.name)
    for name in ("pg_dump", "pg_restore"):
        place(clients / name, root / "usr/bin" / name)
        sources.add(clients / name)
    sources |= set(standard_library(root))
    packages(libraries, root / DIST_PACKAGES)
    if full:
        sources |= set(server(root, clients.parent, libraries, app))
    sources |= set(shared_libraries(root))
    sources |= set(data(root))
    application(app, root / "app")
    debian = owners(sources)
    record(root, debian, libraries)
    below_one_directory(root, python, f"lib/postgresql/{pg_major}" if full else "")
    every_import = EVERY_IMPORT + ("import obstore.store, pyrage\n" if full else "")
    for each in ("/usr/bin/python3", f"/{HOME}/bin/python3"):
        subprocess.run(["chroot", root, each, "-c", every_import], check=True)
    size = sum(path.lstat().st_size for path in root.rglob("*") if path.is_file())
    print(f"image: {size / 1e6:.1f} MB in files, {len(debian)} Debian packages in part")


# the program lies beside Python's directory, whatever link led there: bin/python3, libexec/python3
FIND_APP = (
    "import os, sys; sys.path.append(os.path.join(os.path.dirname(os.path.dirname("
    "os.path.realpath(sys.executable))), 'app'))\n"
)
EVERY_IMPORT = """
import pkgutil, sys, importlib
sys.dont_write_bytecode = True
for name in ("entrypoint", "preflight", "postgast", "psycopg", "structlog", "tenacity", "zoneinfo"):
    importlib.import_module(name)
rooms = list(pkgutil.walk_packages(sys.modules["preflight"].__path__, "preflight."))
assert len(rooms) >= 50, rooms
for found in rooms:
    importlib.import_module(found.name)
assert sys.modules["psycopg"].pq.__impl__ == "c"
sys.modules["zoneinfo"].ZoneInfo("Europe/Berlin")
"localhost".encode("idna")
"""


def layout(root: Path) -> None:
    """Make the directories, and the two that may be written to."""
    for path in ("usr/bin", "usr/lib64", "etc", "proc", "sys", "dev", "app/migrations"):
        (root / path).mkdir(parents=True)
    for name in ("bin", "lib", "lib64"):
        target = "usr/bin" if name == "bin" else f"usr/{name}"
        (root / name).symlink_to(target)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    # a new named volume takes its owner and mode from here: any user of group 0 may write
    (root / "backups").mkdir()
    os.chown(root / "backups", USER, 0)
    (root / "backups").chmod(0o770)
    (root / ".pg-preflight-image").touch()  # preflight/backup/mounts.py: this root is a container's


def place(source: Path, target: Path, mode: int | None = None) -> None:
    """Copy one file with its times; make its directory."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)
    if mode is not None:
        target.chmod(mode)


def compiled(source: Path, target: Path, name: str) -> None:
    """Compile one module; the byte code never looks at its source's time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    py_compile.compile(
        str(source),
        str(target),
        name,
        doraise=True,
        optimize=0,  # docstrings are read: by config, by protobuf
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


def standard_library(root: Path) -> Iterator[Path]:
    """Put the byte code of the standard library in place; yield what it was made from."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    for source in sorted(stdlib.rglob("*.py")):
        inside = source.relative_to(stdlib)
        parts = inside.with_suffix("").parts
        left_out = not LEFT_OUT.isdisjoint((parts[0], ".".join(parts)))
        if (
            left_out
            or (inside.parts[0] == "encodings" and CODECS.match(inside.name))
            or any(part in ("test", "tests", "dist-packages", "_vendor") for part in inside.parts)
            or inside.parts[0].startswith("config-")
        ):
            continue
        compiled(source, root / source.relative_to("/").with_suffix(".pyc"), str(source))
        yield source.resolve()
    for module in sorted((stdlib / "lib-dynload").glob("*.so")):
        if module.name.partition(".")[0] in MODULES:
            place(module, root / module.relative_to("/"))
            yield module


LOCALE = "en_US"  # besides C: what the official image's databases have


def server(root: Path, home: Path, libraries: Path, app: Path) -> Iterator[Path]:
    """Put a server in place, with a cluster to copy; yield what is Debian's of it.

    Its extensions come with it, but neither its JIT nor what initdb alone reads.
    """
    share = Path("/usr/share/postgresql", home.name)
    files = [home / "bin/postgres", *(home / "lib").glob("*.so")]
    for part in ("extension", "timezonesets", "tsearch_data"):
        files += [path for path in (share / part).rglob("*") if path.is_file()]
    for source in sorted(files):
        if "llvmjit" not in source.name:
            place(source, root / source.relative_to("/"))
            yield source.resolve()
    localedef = ("localedef", "--no-archive", "-i", LOCALE, "-f", "UTF-8")
    subprocess.run([*localedef, f"/usr/lib/locale/{LOCALE}.utf8"], check=True)
    yield Path("/usr/share/i18n/locales", LOCALE)
    for source in Path("/usr/lib/locale").glob("*.utf8/LC_*"):
        if source.name in ("LC_COLLATE", "LC_CTYPE"):
            place(source, root / source.relative_to("/"))
    yield Path("/usr/lib/locale/C.utf8/LC_CTYPE").resolve()
    (root / "scratch").mkdir()  # a tmpfs or a new volume there takes its mode from here
    (root / "scratch").chmod(0o1777)
    cluster(home, libraries, app)
    target = root / home.relative_to("/") / "cluster"
    shutil.copytree(home / "cluster", target)
    for path in (target, *target.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.chown(path, 0, 0)
    for path in (target / "base/1").iterdir():  # its two databases are the same, 7 MB each
        other = target / "base/4" / path.name
        if other.exists() and filecmp.cmp(path, other, shallow=False):
            other.unlink()
            other.hardlink_to(path)


def cluster(home: Path, libraries: Path, app: Path) -> None:
    """Make the cluster that each throwaway server starts from, as the program would make it."""
    sys.path[:0] = [str(app.resolve()), str(libraries.resolve())]
    from preflight.rehearsal import local  # noqa: PLC0415 -- of the program that is being packed

    data, user = home / local.TEMPLATE, "postgres"
    data.mkdir()
    shutil.chown(data, user, user)
    command = local.initdb_command(home / "bin/initdb", data, int(home.name))
    subprocess.run(command, check=True, user=user, group=user, cwd="/", stdout=subprocess.DEVNULL)
    single = [str(home / "bin/postgres"), "--single", "-D", str(data), local.HOME]
    drop = b"DROP DATABASE postgres\n"  # 7 MB that each start would copy
    subprocess.run(single, check=True, user=user, group=user, cwd="/", input=drop)


def packages(libraries: Path, target: Path) -> None:
    """Put the Python packages in place: byte code, libraries without symbols, licences."""
    for source in sorted(libraries.rglob("*")):
        inside = source.relative_to(libraries)
        if not source.is_file() or inside.parts[0] in ("bin", "__pycache__"):
            continue
        if source.suffix == ".py":
            name = f"/{DIST_PACKAGES}/{inside}"
            compiled(source, target / inside.with_suffix(".pyc"), name)
        elif source.suffix == ".so":
            place(source, target / inside, 0o644)
            subprocess.run(["strip", "--strip-unneeded", target / inside], check=True)
            without_unused(target / inside)
        elif ".dist-info" in inside.parts[0]:
            if inside.name in ("METADATA", "WHEEL") or "licens" in str(inside).lower():
                place(source, target / inside, 0o644)
        elif source.suffix not in (".c", ".pyi", ".pyx", ".pxd", ".typed"):
            place(source, target / inside, 0o644)


def without_unused(library: Path) -> None:
    """Let a library ask for what it uses only: protobuf's asks for libstdc++, 2.5 MB, in vain.

    Not libc's own parts: where versions of their symbols are named, the loader insists on them.
    """
    unused = re.findall(r"^\t(/\S+)$", _ldd("-u", library), re.MULTILINE)
    for path in unused:
        if Path(path).name.startswith(("librt.", "libpthread.", "libdl.")):
            continue
        subprocess.run(["patchelf", "--remove-needed", Path(path).name, library], check=True)


def shared_libraries(root: Path) -> Iterator[Path]:
    """Copy every library that an executable or module in the root asks for; yield them."""
    servers = root.glob("usr/lib/postgresql/*/bin/*")
    objects = [*(root / "usr/bin").iterdir(), *servers, *root.rglob("*.so")]
    found = set(re.findall(r"(/\S+) \(0x", "\n".join(map(_ldd, objects))))
    # Python ends a daemon thread with pthread_exit(), which loads this one by name
    found |= set(re.findall(r"libgcc_s\.so\.1 .*=> (\S+)", _output("ldconfig", "-p")))
    for path in sorted(map(Path, found)):
        real = path.resolve()
        if root in real.parents:
            continue
        if not (target := root / real.relative_to("/")).exists():
            place(real, target)
        for link in (path, real.with_name(path.name)):
            at = root / os.path.realpath(link.parent)[1:] / link.name
            if not at.exists():
                at.symlink_to(os.path.relpath(target, at.parent))
        yield real


def _ldd(*arguments: str | Path) -> str:
    # not a dynamic executable, unused dependencies: its exit code means neither more nor less
    return subprocess.run(["ldd", *arguments], check=False, capture_output=True, text=True).stdout


def _output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def data(root: Path) -> Iterator[Path]:
    """Put the data files in place: time zones, certificates, and what names users and hosts."""
    zones = Path("/usr/share/zoneinfo")
    for zone in sorted(zones.rglob("*")):
        if zone.is_dir() or zone.relative_to(zones).parts[0] in ("posix", "right", "Etc/localtime"):
            continue
        target = root / zone.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not zone.is_symlink():
            place(zone, target)
            yield zone
        elif not zone.readlink().is_absolute():
            target.symlink_to(zone.readlink())
    certificates = Path("/etc/ssl/certs/ca-certificates.crt")
    place(certificates, root / "usr/share" / certificates.name)
    (root / "etc/ssl/certs").mkdir(parents=True)
    (root / certificates.relative_to("/")).symlink_to(f"/usr/share/{certificates.name}")
    (root / "usr/lib/ssl").mkdir(parents=True)  # where OpenSSL looks: PGSSLROOTCERT=system
    (root / "usr/lib/ssl/cert.pem").symlink_to(f"../../share/{certificates.name}")
    for name in ("os-release", "debian_version"):
        place(Path("/etc", name).resolve(), root / "etc" / name)
    (root / "etc/passwd").write_text(
        "root:x:0:0:root:/nonexistent:/nonexistent\n"
        f"preflight:x:{USER}:{USER}:pg-preflight:/nonexistent:/nonexistent\n"
    )
    (root / "etc/group").write_text(f"root:x:0:\npreflight:x:{USER}:\n")
    (root / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    yield Path("/usr/share/doc/ca-certificates/copyright")


def application(source: Path, target: Path) -> None:
    """Put the program in place: sources, for tracebacks that say something, and byte code."""
    rooms = sorted((source / "preflight").rglob("*.py"))
    assert len(rooms) >= 50, rooms  # noqa: S101, PLR2004 -- a walk that finds fewer has gone blind
    for file in [source / "entrypoint.py", *rooms]:
        inside = file.relative_to(source)
        place(file, target / inside, 0o644)
        cache = target / inside.parent / "__pycache__"
        tag = sys.implementation.cache_tag
        compiled(file, cache / f"{inside.stem}.{tag}.pyc", f"/app/{inside}")
    (target / "run_migration.py").symlink_to("entrypoint.py")  # its old name
    # `python3 -I` does not look beside the program
    (target.parent / DIST_PACKAGES / "pg-preflight.pth").write_text(FIND_APP)


def below_one_directory(root: Path, python: Path, server: str) -> None:
    """Move all of ours below one directory, with a launcher; leave links where it was."""
    home = root / HOME
    home.mkdir(parents=True)
    for name, new in (("bin", "libexec"), ("lib", "lib"), ("lib64", "lib64"), ("share", "share")):
        (root / "usr" / name).rename(home / new)
        (root / "usr" / name).symlink_to(f"../{HOME}/{new}")
    (root / "app").rename(home / "app")
    (root / "app").mkdir()
    for path in (home / "app").iterdir():
        if path.name != "migrations":
            (root / "app" / path.name).symlink_to(f"../{HOME}/app/{path.name}")
    (home / "app/migrations").rename(root / "app/migrations")
    (home / "app/migrations").symlink_to("/app/migrations")
    launcher(home, python, server)
    (home / "build-id").write_text(build_id(home) + "\n")


def launcher(home: Path, python: Path, server: str) -> None:
    """Compile what starts the carried programs, and give it their names."""
    loader = Path(_output("patchelf", "--print-interpreter", python).strip()).resolve()
    inside = loader.relative_to("/usr")
    paths = {"LOADER": inside, "LIBRARIES": inside.parent, "SERVER": f"{server}/bin/postgres"}
    (home / "bin").mkdir()
    target = home / "bin/pg-preflight"
    defined = [f'-D{name}="{path}"' for name, path in paths.items()]
    command = ["musl-gcc", "-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror", *defined]
    subprocess.run([*command, "-o", target, "launcher.c"], check=True)
    names = ["python3", "pg_dump", "pg_restore", *(["postgres"] if server else [])]
    for name in names:
        (home / "bin" / name).symlink_to(target.name)
    if server:  # a server's cluster is looked for beside its programs
        (home / "cluster").symlink_to(f"{server}/cluster")


def build_id(home: Path) -> str:
    """Return what tells this directory from that of another build: a hash of all that is in it."""
    digest = hashlib.sha256()
    for path in sorted(home.rglob("*")):
        digest.update(f"{path.relative_to(home)}\0{path.lstat().st_mode:o}\0".encode())
        if path.is_symlink():
            digest.update(os.fsencode(path.readlink()))
        elif path.is_file():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


# what is there


def owners(sources: Iterable[Path]) -> list[str]:
    """Return the Debian packages that files come from; one that belongs to none is an error."""
    wanted = {str(source) for source in sources}
    owned: dict[str, str] = {}
    for listing in Path("/var/lib/dpkg/info").glob("*.list"):
        for line in listing.read_text().splitlines():
            path = Path(line)
            real = f"{os.path.realpath(path.parent)}/{path.name}"  # /lib is /usr/lib
            if real in wanted and not path.is_symlink():
                owned[real] = listing.stem
    if missing := sorted(wanted - owned.keys()):
        raise SystemExit(f"no Debian package owns {missing}")
    return sorted(set(owned.values()) | {"base-files"})


def record(root: Path, debian: Iterable[str], libraries: Path) -> None:
    """Write the dpkg entries, the licences and the SPDX document."""
    listed = []
    status = root / "var/lib/dpkg/status.d"
    status.mkdir(parents=True)
    for package in debian:
        text = _output("dpkg-query", "--status", package)
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", text, re.MULTILINE))
        name = fields["Package"]
        (status / name).write_text(text)
        (status / f"{name}.md5sums").write_text("".join(_sums(root, package)))
        licence = Path("/usr/share/doc", name, "copyright")
        if licence.exists():
            _licence(licence.resolve(), root / licence.relative_to("/"))
        listed.append(_debian(fields))
    listed += [_python(found) for found in importlib.metadata.distributions(path=[str(libraries)])]
    document = json.dumps(spdx(listed), indent=1) + "\n"
    target = root / "usr/share/sbom/pg-preflight.spdx.json"
    target.parent.mkdir(parents=True)
    target.write_text(document)


def _licence(source: Path, target: Path) -> None:
    """Put a licence in place; several packages of one source have the same, which is there once."""
    same = (
        each
        for each in sorted(target.parent.parent.glob("*/copyright"))
        if not each.is_symlink() and filecmp.cmp(source, each, shallow=False)
    )
    if (first := next(same, None)) is None:
        place(source, target)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(Path("..", first.parent.name, first.name))


def _sums(root: Path, package: str) -> Iterator[str]:
    sums = Path("/var/lib/dpkg/info", f"{package}.md5sums")
    for line in sums.read_text().splitlines(keepends=True) if sums.exists() else ():
        if os.path.lexists(root / line.split(maxsplit=1)[1].rstrip("\n")):
            yield line


def _debian(fields: dict[str, str]) -> dict[str, object]:
    name, version, arch = (fields[key] for key in ("Package", "Version", "Architecture"))
    release = platform.freedesktop_os_release()
    distro = release.get("VERSION_ID") or release.get("VERSION_CODENAME", "")
    source = fields.get("Source", name).split()[0]
    return _package(
        name,
        version,
        f"pkg:deb/debian/{name}@{version.replace('+', '%2B').replace(':', '%3A')}"
        f"?arch={arch}&distro=debian-{distro}&upstream={source}",
        supplier=f"Organization: Debian ({fields['Maintainer']})",
    )


def _python(found: importlib.metadata.Distribution) -> dict[str, object]:
    name, version = found.metadata["Name"].lower(), found.version
    licence = found.metadata["License-Expression"] or ""
    return _package(name, version, f"pkg:pypi/{name}@{version}", licence=licence)


def _package(
    name: str, version: str, purl: str, *, supplier: str = "", licence: str = ""
) -> dict[str, object]:
    reference = {
        "referenceCategory": "PACKAGE-MANAGER",
        "referenceType": "purl",
        "referenceLocator": purl,
    }
    return {
        "SPDXID": "SPDXRef-" + re.sub(r"[^A-Za-z0-9.-]+", "-", purl.partition("@")[0]),
        "name": name,
        "versionInfo": version,
        "supplier": supplier or "NOASSERTION",
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": licence or "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "externalRefs": [reference],
    }


def spdx(listed: list[dict[str, object]]) -> dict[str, object]:
    """Return the SPDX 2.3 document; the same packages give the same document."""
    sys.path.insert(0, "/build/app")
    from preflight import __version__  # noqa: PLC0415 -- of the program that is being packed

    ours = _package(
        "pg-preflight",
        __version__,
        f"pkg:generic/pg-preflight@{__version__}",
        licence="Apache-2.0",
    )
    digest = hashlib.sha256(json.dumps([ours, *listed]).encode()).hexdigest()
    built = int(os.environ.get("SOURCE_DATE_EPOCH") or 0)
    contains = [
        {
            "spdxElementId": ours["SPDXID"],
            "relationshipType": "CONTAINS",
            "relatedSpdxElement": package["SPDXID"],
        }
        for package in listed
    ]
    describes = {
        "spdxElementId": "SPDXRef-DOCUMENT",
        "relationshipType": "DESCRIBES",
        "relatedSpdxElement": ours["SPDXID"],
    }
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"pg-preflight-{__version__}",
        "documentNamespace": f"https://spdx.org/spdxdocs/pg-preflight-{__version__}-{digest[:32]}",
        "creationInfo": {
            "created": datetime.fromtimestamp(built, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "creators": ["Tool: pg-preflight-image/assemble.py"],
        },
        "packages": [ours, *listed],
        "relationships": [describes, *contains],
    }


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        Path(sys.argv[3]),
        sys.argv[4],
        full=bool("".join(sys.argv[5:])),
    )
