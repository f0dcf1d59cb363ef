"""Landlock: what a process and all that it starts may do from now on, whoever they are.

It takes rights away and gives none, needs none, and cannot be undone. landlock(7); the bits and
numbers are those of linux/landlock.h, the same on every processor.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
ASK_VERSION = 1
BELOW_PATH, NET_PORT = 1, 2  # kinds of rules
SET_NO_NEW_PRIVS = 38

EXECUTE, READ_FILE, READ_DIR = 1 << 0, 1 << 2, 1 << 3
WRITE_FILE, TRUNCATE, DEVICE = 1 << 1, 1 << 14, 1 << 15
READ = READ_FILE | READ_DIR
OF_FILES = EXECUTE | READ_FILE | WRITE_FILE | TRUNCATE | DEVICE  # what a rule for a file may name
FILES_SINCE = {1: (1 << 13) - 1, 2: 1 << 13, 3: TRUNCATE, 5: DEVICE}  # by ABI: Linux 5.13 to 6.10
LISTEN_TCP, CONNECT_TCP = 1 << 0, 1 << 1
TCP_ABI, SCOPES_ABI = 4, 6  # Linux 6.7 and 6.12
ABSTRACT_UNIX_SOCKET, SIGNAL = 1 << 0, 1 << 1


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _Path(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


class _Port(ctypes.Structure):
    _fields_ = (("allowed_access", ctypes.c_uint64), ("port", ctypes.c_uint64))


def version() -> int:
    """Return the ABI of the kernel's Landlock; 0 where there is none, or we may not use it."""
    if sys.platform == "linux":
        with suppress(OSError):
            return _call(CREATE_RULESET, None, ctypes.c_size_t(0), ASK_VERSION)
    return 0


def every_file_right() -> int:
    """Return all that this kernel can allow or deny with files."""
    ours = version()
    return sum(rights for since, rights in FILES_SINCE.items() if since <= ours)


def rules(
    files: Mapping[Path, int] | None = None,
    *,
    connect: Collection[int] | None = None,
    listen: Collection[int] | None = None,
    scoped: int = 0,
) -> int:
    """Return the descriptor of a set of rules for `entering`; raises OSError.

    `files` are rights below paths; `connect` and `listen` are TCP ports: of each of these nothing
    else is allowed, and None takes nothing away. `scoped` is kept inside. What this kernel does not
    know is left out; a path that is not there, or that it takes no rule for, stays forbidden.
    """
    ours = version()
    ports = {CONNECT_TCP: connect, LISTEN_TCP: listen} if ours >= TCP_ABI else {}
    asked = {right: those for right, those in ports.items() if those is not None}
    handled = _Ruleset(
        0 if files is None else every_file_right(),
        sum(asked),
        scoped if ours >= SCOPES_ABI else 0,
    )
    size = ctypes.sizeof(handled)  # zeros behind what an older kernel knows are nothing to it
    ruleset = _call(CREATE_RULESET, ctypes.byref(handled), ctypes.c_size_t(size), 0)
    try:
        for path, rights in (files or {}).items():
            _allow_below(ruleset, path, rights & handled.handled_access_fs)
        for right, those in asked.items():
            for port in those:
                _call(ADD_RULE, ruleset, NET_PORT, ctypes.byref(_Port(right, port)), 0)
    except OSError:
        os.close(ruleset)
        raise
    return ruleset


def _allow_below(ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        rule = _Path(rights if folder else rights & OF_FILES, descriptor)
        with suppress(OSError):
            _call(ADD_RULE, ruleset, BELOW_PATH, ctypes.byref(rule), 0)
    finally:
        os.close(descriptor)


def entering(ruleset: int) -> Callable[[], None]:
    """Return what holds the process that calls it to a set of rules, for ever; raises OSError.

    It may be called between fork and exec. It and what it starts can no longer gain rights either:
    a set-user-ID program runs without them.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    prctl, syscall, restrict = libc.prctl, libc.syscall, ctypes.c_long(RESTRICT_SELF)

    def enter() -> None:
        _done(prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _done(syscall(restrict, ruleset, 0))

    return enter


def _call(number: int, *arguments: object) -> int:
    return _done(ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *arguments))


def _done(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
