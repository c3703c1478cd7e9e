"""Keeps compiled programs for the next start: JAX's persistent cache, in the user's cache folder.

JAX_COMPILATION_CACHE_DIR names another folder, which is left as it is. JOPSD_COMPILE_CACHE=off keeps nothing.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

from jopsd.errors import one_line

SWITCH, FOLDER = "JOPSD_COMPILE_CACHE", "JAX_COMPILATION_CACHE_DIR"
SECONDS = 0.1  # what compiles faster is not worth a file: all such programs of a run together take half a second
BYTES = 4 << 30
ENTRIES = 1000  # JAX looks at each of them before it writes another, which takes it 35 ms then
_LOCK, _PROGRAM, _USED = ".lockfile", "-cache", "-atime"  # JAX's names: lock, program, when it was last read
_WAIT = 10.0  # seconds for the lock, as in JAX


def enable(several: bool = False) -> None:
    """Lets this process keep what it compiles, and read what others have kept. For commands, before they compile.

    A folder that cannot be used is no error: one line says so, and nothing is kept.

    Args:
      several: this is one of the processes of a run. Of these JAX has the first alone write, so a folder is kept only
        where one is named (the launchers name one that all hosts share).

    Raises:
      ValueError: JOPSD_COMPILE_CACHE is neither on nor off.
    """
    import jax

    switch = os.environ.get(SWITCH, "on")
    if switch not in ("on", "off"):
        raise ValueError(f"{SWITCH} is {switch!r}: give off, or on; a folder is named by {FOLDER}")
    if switch == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    _default("jax_persistent_cache_min_compile_time_secs", SECONDS)
    if several or jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return
    try:
        folder = user_folder(os.environ, sys.platform)
        tidy(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home, or a file system without locks
        print(
            f"note: compiled programs are not kept for the next start: {one_line(error)}; name a folder that can be "
            f"written in {FOLDER}, or set {SWITCH}=off",
            file=sys.stderr,
        )
        return
    _default("jax_persistent_cache_min_entry_size_bytes", -1)
    _default("jax_compilation_cache_max_size", BYTES)
    jax.config.update("jax_compilation_cache_dir", str(folder))


def user_folder(environment: Mapping[str, str], platform: str) -> Path:
    """The folder for this user's compiled programs.

    Raises:
      RuntimeError: the user has no home.
    """
    named = Path(environment.get("XDG_CACHE_HOME", ""))
    if named.is_absolute():
        return named / "jopsd/xla"
    return Path.home() / ("Library/Caches" if platform == "darwin" else ".cache") / "jopsd/xla"


def tidy(folder: Path, entries: int = ENTRIES) -> None:
    """Makes the folder, and removes from it what a killed process left unfinished and what was not used for longest.

    JAX writes a program first and then when it was used; with one that lacks the second it can write no other.

    Raises:
      OSError: it cannot be made, written or locked. NotImplementedError: its file system has no locks.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock(folder / _LOCK, timeout=_WAIT):
        files = {entry.name: entry.stat() for entry in os.scandir(folder) if entry.name.endswith((_PROGRAM, _USED))}
        names = {name.removesuffix(_PROGRAM) for name in files if name.endswith(_PROGRAM)}
        used = {name: files[name + _USED] for name in names if name + _USED in files}
        whole = [name for name, stat in used.items() if stat.st_size == 8]
        kept = set(sorted(whole, key=lambda name: used[name].st_mtime)[-entries:])
        for name in files:
            if name.removesuffix(_PROGRAM).removesuffix(_USED) not in kept:
                (folder / name).unlink()


def _default(name: str, value: float) -> None:
    """Sets an option of JAX unless the environment does."""
    import jax

    if name.upper() not in os.environ:
        jax.config.update(name, value)
