"""Landlock: which files a tested program may read or write, and no TCP, no signal, no abstract socket beyond itself."""

import ctypes
import os
from collections.abc import Iterable

from jopsd.rewards.sandbox import kernel

_EXECUTE, _WRITE, _READ, _READ_DIR = 1, 2, 4, 8
_REMOVE, _MAKE = 0x10 | 0x20, 0x80 | 0x100  # files and directories; no devices, sockets, pipes, links
_TRUNCATE = 1 << 14
_FILE_RIGHTS = _EXECUTE | _WRITE | _READ | _TRUNCATE
# Rights by the first version that has them: files, then linking, truncating, device calls.
_RIGHTS = ((1, (1 << 13) - 1), (2, 1 << 13), (3, 1 << 14), (5, 1 << 15))
_NET_VERSION, _NET_RIGHTS = 4, 0b11
_SCOPE_VERSION, _SCOPES = 6, 0b11
_RULE_PATH = 1


class _Ruleset(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("files", "net", "scoped")]


class _PathRule(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def version() -> int:
    """The kernel's Landlock version, 0 where there is none."""
    try:
        return kernel.syscall("landlock_create_ruleset", None, 0, 1)
    except OSError:
        return 0


def restrict(readable: Iterable[str], writable: Iterable[str]) -> None:
    """Denies this process, for good, every file outside two lists of paths; paths that are missing are left out.

    From version 4 on also TCP, from 6 on signals to and abstract sockets of processes outside. Raises OSError.
    """
    found = version()
    if not found:
        raise OSError(38, "this kernel has no Landlock")
    handled = sum(right for since, right in _RIGHTS if found >= since)
    ruleset = _Ruleset(handled, _NET_RIGHTS if found >= _NET_VERSION else 0, _SCOPES if found >= _SCOPE_VERSION else 0)
    size = 24 if found >= _SCOPE_VERSION else 16 if found >= _NET_VERSION else 8
    descriptor = kernel.syscall("landlock_create_ruleset", ctypes.byref(ruleset), size, 0)
    try:
        for path in readable:
            _allow(descriptor, path, (_READ | _READ_DIR) & handled)
        for path in writable:
            _allow(descriptor, path, (_READ | _READ_DIR | _WRITE | _REMOVE | _MAKE | _TRUNCATE) & handled)
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.syscall("landlock_restrict_self", descriptor, 0)
    finally:
        os.close(descriptor)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):
            rights &= _FILE_RIGHTS
        rule = _PathRule(rights, parent)
        kernel.syscall("landlock_add_rule", ruleset, _RULE_PATH, ctypes.byref(rule), 0)
    finally:
        os.close(parent)
