"""Plans that were made before, found again without importing jax.

The key is everything that a plan depends on: the text of the config and of what it extends, the overrides and options,
the source of jopsd, and the versions of the compilers. What a plan read beside that (a model's config.json) is written
into the entry, and the entry is void once it differs.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

import yaml

PACKAGE = Path(__file__).resolve().parent.parent
_COMPILERS = ("jax", "jaxlib", "libtpu", "flax", "optax")
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "HOME")


def folder() -> Path:
    """Where plans are kept: ~/.cache/jopsd/plan, or under XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jopsd" / "plan"


def key_of(config: Path, overrides: Sequence[str], options: Sequence) -> str:
    """The name of a plan's entry. options: what else was asked for, as plain values."""
    digest = hashlib.sha256()
    said = [str(config.resolve()), *map(os.path.expandvars, overrides), repr(list(options)), str(Path.cwd())]
    said += [f"{name} {_version(name)}" for name in _COMPILERS]
    said += [f"{name} {os.environ.get(name, '')}" for name in _FLAGS]
    for part in said:
        digest.update(part.encode() + b"\0")
    for path in [*_with_parents(config), *_sources()]:
        digest.update(str(path).encode() + b"\0" + os.path.expandvars(path.read_bytes()))
    return digest.hexdigest()[:32]


def find(key: str) -> dict | None:
    """The record of an entry; None where there is none that still holds."""
    try:
        entry = json.loads((folder() / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if any(_digest(path) != seen for path, seen in entry["read"].items()):
        return None
    return entry["record"]


def keep(key: str, record: dict, read: Iterable[Path]) -> None:
    """Writes an entry; a folder that cannot be written is no reason to fail. read: files the plan depends on."""
    entry = {"read": {str(path.resolve()): _digest(path) for path in read}, "record": record}
    part = folder() / f"{key}.{os.getpid()}.part"
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(entry), encoding="utf-8")
        part.replace(folder() / f"{key}.json")
    except OSError:
        part.unlink(missing_ok=True)


def _digest(path: str | Path) -> str | None:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return None


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def _sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".yaml"))


def _with_parents(config: Path, seen: tuple[Path, ...] = ()) -> list[Path]:
    """A config and all that it extends, as far as they can be read: `load_config` says what is wrong with the rest."""
    if config in seen or not config.is_file():
        return []
    try:
        tree = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return [config]
    parents = tree.get("extends") if isinstance(tree, dict) else None
    parents = [parents] if isinstance(parents, str) else parents or []
    found = [config]
    for parent in parents:
        found += _with_parents(config.parent / str(parent), (*seen, config))
    return found
