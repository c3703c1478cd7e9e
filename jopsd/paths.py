"""Paths as people write them: `~` is the home directory, `$NAME` and `${NAME}` are variables of the environment."""

import argparse
import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


def expand(path: str) -> str:
    """The path with `~`, `~user` and variables replaced.

    Raises:
      ValueError: a user or variable that does not exist, unless a file or folder of exactly this name does.
    """
    expanded = os.path.expanduser(_VARIABLE.sub(lambda m: os.environ.get(m[1] or m[2], m[0]), path))
    if expanded.startswith("~"):
        left = f"there is no home of {expanded.split('/')[0]}"
    elif unset := _VARIABLE.search(expanded):
        left = f"the environment variable {unset[0]} is not set"
    else:
        return expanded
    if Path(path).exists():
        return path
    raise ValueError(f"{path!r} cannot be expanded: {left}; give the path in full")


def argument(text: str) -> str:
    """`expand` as the `type` of a command-line option."""
    try:
        return expand(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def path_argument(text: str) -> Path:
    """`expand` as the `type` of an option that is a `Path`."""
    return Path(argument(text))


# A key of a config that names a file or folder, or something found by name where there is none (a hub id, a generator).
FilePath = Annotated[str, AfterValidator(expand)]
