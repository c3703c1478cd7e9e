"""Reading a config: `extends:`, dotted overrides, and errors that name the key and the fix.

    config = load_config("configs/quickstart.yaml", ["optimizer.learning_rate=1e-3", "seed=2"])

`extends: other.yaml` (one path or a list, relative to the file) is read first and merged key by key; a mapping whose
`name` differs from the one it overrides replaces it whole. An override of a name (`method.name=pwopsd`) keeps the keys
that the new method has, and says which it keeps and drops. Every config resolves to one explicit YAML:

    python -m jopsd.config show FILE [key=value ...]
    python -m jopsd.config diff FILE FILE
"""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from jopsd.config_errors import describe, known_keys
from jopsd.paths import expand
from jopsd.schema import Config

__all__ = [
    "Config",
    "ConfigError",
    "difference",
    "flatten",
    "load_config",
    "load_run_config",
    "to_yaml",
    "validate_config",
]


RUN_CONFIG = "config.yaml"  # in the output_dir of a run
# How to write a value that is none.
_EMPTY = "`{key}{sep}null` for none, or `{key}{sep}''` for an empty text"

Say = Callable[[str], None]


class ConfigError(ValueError):
    """A config that cannot be used; the message names the key, the value and the fix."""


def say_to_stderr(text: str) -> None:
    """Prints a note where it does not mix with what a command prints."""
    print(f"note: {text}", file=sys.stderr)


def load_config(path: str | Path, overrides: Sequence[str] = (), say: Say = say_to_stderr) -> Config:
    """Reads a YAML config, applies `a.b=value` overrides, validates.

    Args:
      say: told what of the file an override puts out of use.

    Raises:
      ConfigError: a missing or malformed file, a cycle of `extends`, an override that is not `key=value`, an unknown
        key (with the nearest real one), a value of the wrong type or out of range.
    """
    try:
        tree = _read(Path(expand(str(path))), (), say)
    except ConfigError:
        raise
    except ValueError as error:  # of `expand`
        raise ConfigError(str(error)) from None
    for override in overrides:
        over = _without_other_length(tree, _parse_override(override), say)
        tree = _merge(tree, over, lambda key, old, new: _renamed(key, old, new, say))
    return validate_config(tree, str(path))


def load_run_config(run_dir: Path, key: str) -> Config:
    """The config that a run was started with; `key` says in the error what named the run.

    Raises:
      ConfigError: `run_dir` is not the folder of a run, or its config cannot be used.
    """
    if not (run_dir / RUN_CONFIG).is_file():
        what = "is a folder without config.yaml" if run_dir.is_dir() else "does not exist"
        raise ConfigError(f"{key} {run_dir} {what}; give the output_dir of a training run")
    return load_config(run_dir / RUN_CONFIG)


def validate_config(tree: dict, where: str) -> Config:
    """A `Config` from a nested dict; `where` names its origin in errors."""
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise _refusal(where, [describe(problem) for problem in error.errors()]) from None
    if flags := _flags_read_as_numbers(tree, config.model_dump()):
        raise _refusal(where, [f"`{key}` = {value}: a number is wanted, not true or false" for key, value in flags])
    return config


def to_yaml(config: Config) -> str:
    """The fully explicit YAML of a config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _refusal(where: str, faults: Sequence[str]) -> ConfigError:
    return ConfigError("\n  ".join([f"{where} is not a usable config:", *faults]))


def _flags_read_as_numbers(given, resolved, key: str = "") -> list[tuple[str, bool]]:
    """Keys given as true or false that pydantic took for 1 or 0."""
    if isinstance(given, dict) and isinstance(resolved, dict):
        inside = [(f"{key}.{name}".lstrip("."), value, resolved.get(name)) for name, value in given.items()]
        return [flag for name, value, read in inside for flag in _flags_read_as_numbers(value, read, name)]
    if isinstance(given, list | tuple) and isinstance(resolved, list | tuple):
        entries = enumerate(zip(given, resolved, strict=False))
        return [flag for i, pair in entries for flag in _flags_read_as_numbers(*pair, f"{key}[{i}]")]
    return [(key, given)] if isinstance(given, bool) and not isinstance(resolved, bool) else []


def _read(path: Path, seen: tuple[Path, ...], say: Say = say_to_stderr) -> dict:
    resolved = path.resolve()
    if resolved in seen:
        raise ConfigError("`extends` runs in a circle: " + " -> ".join(p.name for p in (*seen, resolved)))
    if path.is_dir():
        raise ConfigError(f"config {path} is a directory; give one of the YAML files in it")
    if not path.is_file():
        origin = f" (named by `extends` in {seen[-1]})" if seen else ""
        raise ConfigError(f"config file {path} does not exist{origin}{_near_file(path)}")
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        loader.name = str(path)
        tree = loader.get_single_data() or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold keys and values, not a {type(tree).__name__}")
    parents = tree.pop("extends", None) or []
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"{path}: `extends` must be a path or a list of paths, not {parents!r}")
    merged: dict = {}
    layers = [_read(path.parent / expand(parent), (*seen, resolved), say) for parent in parents]
    for layer in (*layers, tree):
        merged = _merge(merged, _without_other_length(merged, layer, say))
    return merged


def _near_file(path: Path) -> str:
    """The config that a missing one was probably meant to be, as the end of an error."""
    folders = [path.parent, Path("configs")]
    files = {f.stem: f for folder in reversed(folders) if folder.is_dir() for f in sorted(folder.glob("*.yaml"))}
    near = difflib.get_close_matches(path.stem, files, n=1, cutoff=0.5)
    return f"; did you mean {files[near[0]]}?" if near else ""


def _merge(base: dict, over: dict, renamed: Callable[[str, dict, dict], dict] = lambda key, old, new: new) -> dict:
    """`over` on `base`, key by key. renamed: what becomes of a mapping that gets another name."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if not (isinstance(old, dict) and isinstance(value, dict)):
            merged[key] = value
        elif "name" in value and old.get("name") not in (None, value["name"]):
            merged[key] = renamed(key, old, value)
        else:
            merged[key] = _merge(old, value, renamed)
    return merged


def _renamed(section: str, old: dict, new: dict, say: Say) -> dict:
    """A section under another name, with those of its keys that this name has too."""
    has = known_keys([section, str(new["name"])])
    earlier = {key: value for key, value in old.items() if key not in new}
    kept = {key: value for key, value in earlier.items() if key in has}
    told = [
        f"{word} {', '.join(f'{section}.{key}={value}' for key, value in keys.items())}"
        for word, keys in (("keeps", kept), ("drops", {k: v for k, v in earlier.items() if k not in kept}))
        if keys
    ]
    if told:
        say(f"{section}.name={new['name']} in place of {old['name']} {' and '.join(told)}")
    return kept | new


def _without_other_length(base: dict, over: dict, say: Say) -> dict:
    """`over`, in which steps put earlier epochs out of use, and epochs steps."""
    given, earlier = (tree["train"] if isinstance(tree.get("train"), dict) else {} for tree in (over, base))
    for key, other in (("steps", "epochs"), ("epochs", "steps")):
        if given.get(key) is not None and other not in given and earlier.get(other) is not None:
            say(f"train.{key}={given[key]} counts; train.{other}={earlier[other]} of the config is dropped")
            return {**over, "train": {**given, other: None}}
    return over


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as text, where people mean a number; of a key given twice it keeps the last; a key with
    nothing after it is null, which is often a section whose keys are commented out."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, value in node.value:
            fault = None
            if key.value in seen and isinstance(key.value, str):
                fault = f"key {key.value!r} is given twice"
            elif isinstance(value, yaml.ScalarNode) and value.value == "" and value.style is None:
                fault = f"key {key.value!r} has no value; write {_EMPTY.format(key=key.value, sep=': ')}"
            if fault:
                raise yaml.constructor.ConstructorError(None, None, fault, key.start_mark)
            seen.add(key.value if isinstance(key.value, str) else None)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _parse_override(text: str) -> dict:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {text!r} must look like section.key=value")
    if not value.strip():
        raise ConfigError(f"override {text!r} has no value; write {_EMPTY.format(key=key.strip(), sep='=')}")
    try:
        tree: Any = yaml.load(value, _Loader)
    except yaml.YAMLError:
        tree = value
    for part in reversed(key.strip().split(".")):
        tree = {part: tree}
    return tree


def flatten(tree, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of a nested dict."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    return {
        k: v for key, sub in tree.items() for k, v in flatten(sub, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def difference(one: Config, other: Config) -> list[tuple[str, Any, Any]]:
    """(dotted key, value in one, value in the other) where two resolved configs differ; `ABSENT` where one has none."""
    a, b = (flatten(config.model_dump(mode="json")) for config in (one, other))
    pairs = [(key, a.get(key, ABSENT), b.get(key, ABSENT)) for key in dict.fromkeys((*a, *b))]
    return [pair for pair in pairs if pair[1] != pair[2]]


ABSENT = "-"


def _shown(value: Any) -> str:
    return value if value is ABSENT else repr(value)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jopsd.config", description="Shows and compares resolved configs.")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="the explicit YAML of a config")
    show.add_argument("config")
    show.add_argument("overrides", nargs="*", metavar="key=value")
    diff = commands.add_parser("diff", help="the keys in which two configs differ")
    diff.add_argument("one")
    diff.add_argument("other")
    args = parser.parse_args(argv)
    try:
        if args.command == "show":
            print(to_yaml(load_config(args.config, args.overrides)), end="")
            return 0
        differing = difference(load_config(args.one), load_config(args.other))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    for key, a, b in differing:
        print(f"{key}: {_shown(a)} -> {_shown(b)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
