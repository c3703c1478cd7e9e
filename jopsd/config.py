"""Reading a config: `extends:`, dotted overrides, and errors that name the key and the fix.

    config = load_config("configs/quickstart.yaml", ["optimizer.learning_rate=1e-3", "seed=2"])

`extends: other.yaml` (one path or a list, relative to the file) is read first and merged key by key; a mapping whose
`name` differs from the one it overrides replaces it whole. Every config resolves to one explicit YAML:

    python -m jopsd.config show FILE [key=value ...]
    python -m jopsd.config diff FILE FILE
"""

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from jopsd.schema import Config

__all__ = ["Config", "ConfigError", "difference", "flatten", "load_config", "to_yaml", "validate_config"]


class ConfigError(ValueError):
    """A config that cannot be used; the message names the key, the value and the fix."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML config, applies `a.b=value` overrides, validates.

    Raises:
      ConfigError: a missing or malformed file, a cycle of `extends`, an override that is not `key=value`, an unknown
        key (with the nearest real one), a value of the wrong type or out of range.
    """
    tree = _read(Path(path), ())
    for override in overrides:
        tree = _merge(tree, _parse_override(override))
    return validate_config(tree, str(path))


def validate_config(tree: dict, where: str) -> Config:
    """A `Config` from a nested dict; `where` names its origin in errors."""
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise _refusal(where, [_describe(problem) for problem in error.errors()]) from None
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


def _read(path: Path, seen: tuple[Path, ...]) -> dict:
    resolved = path.resolve()
    if resolved in seen:
        raise ConfigError("`extends` runs in a circle: " + " -> ".join(p.name for p in (*seen, resolved)))
    if path.is_dir():
        raise ConfigError(f"config {path} is a directory; give one of the YAML files in it")
    if not path.is_file():
        origin = f" (named by `extends` in {seen[-1]})" if seen else ""
        raise ConfigError(f"config file {path} does not exist{origin}")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold keys and values, not a {type(tree).__name__}")
    parents = tree.pop("extends", None) or []
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"{path}: `extends` must be a path or a list of paths, not {parents!r}")
    merged: dict = {}
    for parent in parents:
        merged = _merge(merged, _read(path.parent / parent, (*seen, resolved)))
    return _merge(merged, tree)


def _merge(base: dict, over: dict) -> dict:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        same_kind = isinstance(old, dict) and isinstance(value, dict)
        renamed = same_kind and "name" in value and old.get("name") not in (None, value["name"])
        merged[key] = _merge(old, value) if same_kind and not renamed else value
    return merged


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as text, where people mean a number; and of a key given twice it keeps the last."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if isinstance(key, str) and keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _parse_override(text: str) -> dict:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {text!r} must look like section.key=value")
    try:
        tree: Any = yaml.load(value, _Loader)
    except yaml.YAMLError:
        tree = value
    for part in reversed(key.strip().split(".")):
        tree = {part: tree}
    return tree


def _describe(problem: dict) -> str:
    """One line for one pydantic error: the dotted key, what is wrong, and the nearest real key."""
    location = [str(part) for part in problem["loc"]]
    known = _known_keys(location[:-1])
    # Tagged unions put the tag into the location; it is not a key of the file.
    shown = ".".join(part for i, part in enumerate(location) if not _is_tag(location, i))
    kind = problem["type"]
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        return f"unknown key `{shown}`" + (f"; did you mean `{near[0]}`?" if near else f"; known: {', '.join(known)}")
    if kind == "missing":
        return f"`{shown}` is required"
    message = problem["msg"].removeprefix("Value error, ")
    if kind == "union_tag_not_found":
        return f"`{shown}.name` is required; known: {', '.join(_names_of(location))}"
    if kind == "union_tag_invalid":
        given = problem.get("ctx", {}).get("tag")
        return f"`{shown}.name` = {given!r} is not known; known: {', '.join(_names_of(location))}"
    if not shown:
        return message
    return f"`{shown}` = {problem['input']!r}: {message}" if kind != "value_error" else f"`{shown}`: {message}"


def _is_tag(location: list[str], i: int) -> bool:
    return i == 1 and location[0] in ("method", "context") and location[1] in _names_of(location)


def _names_of(location: list[str]) -> list[str]:
    """The names a tagged union goes by."""
    union = [m for m in _models_in(Config.model_fields[location[0]].annotation) if "name" in m.model_fields]
    return sorted(m.model_fields["name"].default for m in union)


def _known_keys(location: list[str]) -> list[str]:
    """Keys allowed at a place in the schema, for hints."""
    models: list[type[BaseModel]] = [Config]
    for i, part in enumerate(location):
        if part.isdigit():  # a place in a list
            continue
        if _is_tag(location, i):
            models = [m for m in models if m.model_fields["name"].default == part] or models
            continue
        fields = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        models = [t for field in fields for t in _models_in(field)]
    return sorted({key for m in models for key in m.model_fields})


def _models_in(annotation) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in get_args(annotation) for m in _models_in(argument)]


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
