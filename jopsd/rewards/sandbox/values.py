"""Plain data across the sandbox's border: Python values to JSON text and back, exact types kept, nothing executed.

What comes out of a box is hostile: reading it is bounded in size, depth and in what it can cost to hash.
"""

import json
from typing import Any

from jopsd.rewards.sandbox import wire

MAX_DEPTH = 60
MAX_CHARS = 7 << 20  # of one value as text; less than a message may hold
MAX_TRUSTED_CHARS = 64 << 20  # and of one that enters a box
MAX_INT_BITS = 1 << 17
MAX_TEXT = 2_000  # of a message in words
# Keys whose hashes a program can choose, so that they collide: of one value, in sum, how many and how long as text.
MAX_HARD_KEYS = 2_000
MAX_HARD_CHARS = 100_000
_EASY_INT = 1 << 60


class NotPlainError(ValueError):
    """A value that is no plain data, or too large or deep to cross; the message says what."""


def encode(value: Any, most: int = MAX_CHARS) -> str:
    """The text of a value made of None, bool, int, float, complex, str, bytes, list, tuple, dict, set and frozenset.

    Subclasses count as what they derive from; a value with `tolist` (a numpy array or number) as what that gives.

    Raises:
      NotPlainError: anything else in it, or over the limits.
    """
    text = json.dumps(_tagged(value, 0), separators=(",", ":"))
    if len(text) > most:
        raise NotPlainError(f"a value of over {most} characters")
    return text


def decode(text: str | bytes, most: int = MAX_CHARS) -> Any:
    """The value of a text that `encode` made. Raises NotPlainError for any other text, whatever it holds."""
    if len(text) > most:
        raise NotPlainError(f"a value of over {most} characters")
    try:
        return _value(json.loads(text, parse_int=wire.short_int), 0, [MAX_HARD_KEYS, MAX_HARD_CHARS])
    except NotPlainError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError) as error:
        raise NotPlainError(f"text that is no value ({type(error).__name__})") from None


def _tagged(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise NotPlainError(f"a value nested over {MAX_DEPTH} levels")
    if value is None or value is True or value is False:
        return value
    kind = next((kind for kind in _TAGS if isinstance(value, kind)), None)
    if kind is str:
        return str.__str__(value)
    if kind is int:
        if int.bit_length(value) > MAX_INT_BITS:
            raise NotPlainError(f"an integer of over {MAX_INT_BITS} bits")
        return int.__int__(value) if int.bit_length(value) < 60 else ["i", int.__format__(value, "x")]
    if kind is float:
        return ["f", float.hex(value)]
    if kind is complex:
        return ["c", float.hex(value.real), float.hex(value.imag)]
    if kind is bytes:
        return ["b", bytes.hex(value)]
    if kind is dict:
        pairs = [[_tagged(key, depth + 1), _tagged(entry, depth + 1)] for key, entry in dict.items(value)]
        return ["d", pairs]
    if kind is not None:
        return [_TAGS[kind], [_tagged(entry, depth + 1) for entry in kind.__iter__(value)]]
    if hasattr(value, "tolist"):
        return _tagged(value.tolist(), depth + 1)
    raise NotPlainError(f"a value of type {type(value).__name__}, which is no plain data")


_TAGS = {str: "", int: "i", float: "f", complex: "c", bytes: "b", dict: "d"}
_TAGS |= {list: "l", tuple: "t", set: "s", frozenset: "z"}
_SEQUENCES = {"l": list, "t": tuple, "s": set, "z": frozenset}


def _value(tagged: Any, depth: int, left: list[int]) -> Any:
    """left: hard keys and their characters that may still come."""
    if depth > MAX_DEPTH:
        raise NotPlainError(f"a value nested over {MAX_DEPTH} levels")
    if tagged is None or isinstance(tagged, bool | str | int):
        return tagged
    tag, content = tagged[0], tagged[1]
    if tag == "i" and len(content) <= MAX_INT_BITS // 4 + 2:
        return int(content, 16)
    if tag == "f":
        return float.fromhex(content)
    if tag == "c":
        return complex(float.fromhex(content), float.fromhex(tagged[2]))
    if tag == "b":
        return bytes.fromhex(content)
    if tag == "d":
        keys = [_value(key, depth + 1, left) for key, _ in content]
        _check_keys(keys, left)
        return dict(zip(keys, (_value(entry, depth + 1, left) for _, entry in content), strict=True))
    entries = [_value(entry, depth + 1, left) for entry in content]
    if tag in "sz":
        _check_keys(entries, left)
    return _SEQUENCES[tag](entries)


def _check_keys(keys: list, left: list[int]) -> None:
    for key in keys:
        if not _is_easy(key):
            left[0] -= 1
            left[1] -= _length(key)
    if min(left) < 0:
        raise NotPlainError(f"over {MAX_HARD_KEYS} keys other than text and short integers, or long ones")


def _length(key: Any) -> int:
    if isinstance(key, tuple | frozenset):
        return 4 + sum(map(_length, key))
    return 1 + (len(key) if isinstance(key, str | bytes) else key.bit_length() // 8 if isinstance(key, int) else 0)


def _is_easy(key: Any) -> bool:
    """Whether programs cannot choose its hash at will: text hashes are secret, those of small integers all differ."""
    return key is None or isinstance(key, str) or (isinstance(key, int) and -_EASY_INT < key < _EASY_INT)
