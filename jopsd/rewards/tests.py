"""Tests of a program, read from the JSON text that a row carries: every published format, and one of our own.

Published: SDPO and MOPD ({"inputs", "outputs", "testtype": "stdin", "functional" or "code", "fn_name", "time_limit",
optionally "context"}), and Eurus, APPS and PRIME ({"inputs", "outputs", optionally "fn_name"}).

Our own, one object:

  kind        "stdin": cases are [text on standard input, text on standard output]
              "function": cases are [arguments, result]
              "reference": cases are arguments, and the results are what `reference` gives for them
              "assert": cases are Python sources of assertions about `entry_point`, also called `candidate`
  entry_point name of the function, or of the method of a class Solution; of every kind but stdin
  public      how many of the first cases the solver may see (0)
  time_limit  seconds of one case (6); at most 60
  setup       source put before the program; after: source put behind it
  reference   source of a right program, where the kind is that
  equality    "exact"; "set": results are compared as sets; "wrapped": the only entry of an expected list stands for it
  atol        absolute tolerance of floats in results (0; a relative 1e-6 always holds)

Arguments are a list, or {"dict": ...} of keyword arguments. Values are JSON, and where JSON has no such type an object
with one key: {"tuple": [...]}, {"set": [...]}, {"frozenset": [...]}, {"dict": [[key, value], ...]}, {"bytes": "hex"},
{"complex": [real, imaginary]}, {"float": "nan", "inf" or "-inf"}.
"""

import builtins
import json
import keyword
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

from jopsd.rewards.compare import MAX_DEPTH

MAX_CHARS = 256 << 20
MAX_CASES = 10_000
MAX_SECONDS = 60.0
DEFAULT_SECONDS = 6.0

Kind = Literal["stdin", "function", "reference", "assert"]
Equality = Literal["exact", "set", "wrapped"]


class Arguments(NamedTuple):
    """What a function is called with."""

    args: list[Any]
    kwargs: dict[str, Any] = {}  # never changed


class Case(NamedTuple):
    """One test: given is text (standard input, or the source of assertions) or arguments; expected is text or a result.

    expected is None where it is not written down, but follows from a reference or from assertions.
    """

    given: str | Arguments
    expected: Any = None


@dataclass(frozen=True)
class Tests:
    """The tests of one problem; the module's text says what the fields are.

    helpers: of assertions, further names of the program that they use.
    """

    __test__ = False  # no tests of ours, whatever pytest thinks

    kind: Kind
    cases: tuple[Case, ...]
    entry_point: str = ""
    public: int = 0
    time_limit: float = DEFAULT_SECONDS
    setup: str = ""
    after: str = ""
    reference: str = ""
    equality: Equality = "exact"
    atol: float = 0.0
    helpers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.cases) <= MAX_CASES:
            raise ValueError(f"there are {len(self.cases)} tests; 1 to {MAX_CASES} are possible")
        if not 0 <= self.public <= len(self.cases):
            raise ValueError(f"public is {self.public}, of {len(self.cases)} tests")
        if not 0 < self.time_limit <= MAX_SECONDS:
            raise ValueError(f"time_limit is {self.time_limit}; it must be over 0 and at most {MAX_SECONDS} seconds")
        if not (math.isfinite(self.atol) and self.atol >= 0):
            raise ValueError(f"atol is {self.atol}; it must be a finite number of at least 0")
        if self.kind != "stdin" and not self.entry_point.isidentifier():
            raise ValueError(f"{self.entry_point!r} is no name of a function to test")
        if (self.kind == "reference") != bool(self.reference.strip()):
            raise ValueError("a reference goes with tests of the kind reference, and with no others")


@lru_cache(32)  # completions of one problem come together, and tests can be megabytes
def read_tests(gold: str) -> Tests:
    """The tests of a row.

    Raises ValueError for text that is none of the formats, is over 256 MB, or has over 10,000 cases or values nested
    over 60 levels.
    """
    try:
        if len(gold) > MAX_CHARS:
            raise ValueError(f"they are over {MAX_CHARS} characters long")
        raw = json.loads(gold)
        if not isinstance(raw, dict):
            raise ValueError("they are no JSON object")
        if "kind" in raw:
            return _read_own(raw)
        inputs, outputs = raw.get("inputs"), raw.get("outputs")
        if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
            raise ValueError("they have neither a kind, nor inputs and outputs that are lists of one length")
        return _read_sdpo(raw) if "testtype" in raw else _read_eurus(raw)
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        fault = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ValueError(f"these are no tests of a program ({fault[:300]}): {gold[:100]!r}") from None


def write_tests(tests: Tests) -> str:
    """The JSON text, in our own format, that `read_tests` reads as these tests. Raises ValueError for other values."""
    cases = [_written_case(tests.kind, case) for case in tests.cases]
    fields: dict[str, Any] = {"kind": tests.kind, "cases": cases}
    for name, default in _OPTIONAL.items():
        if getattr(tests, name) != default:
            fields[name] = getattr(tests, name)
    return json.dumps(fields, ensure_ascii=False, allow_nan=False)


# ---------------------------------------------------------------------------------------------------- published formats


def _read_sdpo(raw: dict[str, Any]) -> Tests:
    kind, name = raw["testtype"], raw.get("fn_name") or ""
    seconds, context = raw.get("time_limit"), _text(raw.get("context") or "")
    common: dict[str, Any] = {"setup": context, "time_limit": _seconds(seconds)}
    pairs = list(zip(raw["inputs"], raw["outputs"], strict=True))
    if kind == "stdin":
        # Their harness drops a final "-" of an expected output; here it counts, as any token does.
        return Tests("stdin", tuple(Case(_lines(given), _lines(wanted)) for given, wanted in pairs), **common)
    if kind == "functional":
        # Theirs falls back on the first function that a program defines; here the name decides.
        cases = tuple(Case(_arguments(given), _json_values(wanted)[0]) for given, wanted in pairs)
        return Tests("function", cases, name, **common)
    if kind == "code":
        names = tested_names("\n".join(map(_text, raw["inputs"])), name)
        cases = tuple(Case(_text(source)) for source in raw["inputs"])
        return Tests("assert", cases, names[0], helpers=tuple(names[1:]), **common)
    raise ValueError(f"testtype is {kind!r}; stdin, functional and code are known")


def _read_eurus(raw: dict[str, Any]) -> Tests:
    pairs, name = list(zip(raw["inputs"], raw["outputs"], strict=True)), raw.get("fn_name")
    if not name:
        return Tests("stdin", tuple(Case(_lines(given), _lines(wanted)) for given, wanted in pairs))
    results = (_json_values(wanted)[0] if isinstance(given, str) else wanted for given, wanted in pairs)
    cases = tuple(Case(_arguments(given), result) for (given, _), result in zip(pairs, results, strict=True))
    _check_depth([case.expected for case in cases])
    return Tests("function", cases, name, equality="wrapped")


def _lines(value: Any) -> str:
    """Text of standard input or output: as it is, or a list of lines."""
    if isinstance(value, list):
        return "\n".join(map(_lines, value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return _text(value)


def _arguments(value: Any) -> Arguments:
    """Arguments of a call: one JSON value a line, a list of them, or an object of keyword arguments."""
    if isinstance(value, str):
        return Arguments(_json_values(value))
    _check_depth(value)
    if isinstance(value, dict):
        return Arguments([], value)
    if not isinstance(value, list):
        raise ValueError(f"arguments are a {type(value).__name__}: {value!r:.80}")
    return Arguments(value)


def _json_values(text: Any) -> list[Any]:
    """The JSON values of a text, parted by white space; strings may hold any."""
    values, position, text = [], 0, _text(text).strip()
    while position < len(text):
        value, position = _DECODER.raw_decode(text, position)
        values.append(value)
        position = _SPACE.match(text, position).end()
    if not values:
        raise ValueError("a text that should hold JSON values is empty")
    _check_depth(values)
    return values


_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"\s*")
_CALLED = re.compile(r"(?<![\w.])([A-Za-z_]\w*)\s*\(")
_BOUND = re.compile(r"\b(?:def|class|import|as)\s+([A-Za-z_]\w*)|^[ \t]*([A-Za-z_]\w*)[ \t]*=(?!=)", re.MULTILINE)
_CHECKED = re.compile(r"^check\(\s*([A-Za-z_]\w*)\s*\)", re.MULTILINE)


def tested_names(source: str, name: str = "") -> list[str]:
    """Names of the program that assertions use, the function under test first: what they call and nothing defines.

    name: of the function, where it is known. Raises ValueError if no name is found.
    """
    bound = {word for pair in _BOUND.findall(source) for word in pair} | set(dir(builtins)) | {"candidate"}
    called = dict.fromkeys([*([name] if name else _CHECKED.findall(source)), *_CALLED.findall(source)])
    names = [word for word in called if word not in bound and not keyword.iskeyword(word)]
    if not names:
        raise ValueError("the assertions call no function that they do not define")
    return names[:100]


# ------------------------------------------------------------------------------------------------------- our own format


def _read_own(raw: dict[str, Any]) -> Tests:
    if unknown := sorted(raw.keys() - {"kind", "cases", *_OPTIONAL}):
        raise ValueError(f"no field is called {unknown[0]!r}; known: kind, cases, {', '.join(_OPTIONAL)}")
    if raw["kind"] not in get_args(Kind):
        raise ValueError(f"kind is {raw['kind']!r}; known: {', '.join(get_args(Kind))}")
    if raw.get("equality", "exact") not in get_args(Equality):
        raise ValueError(f"equality is {raw['equality']!r}; known: {', '.join(get_args(Equality))}")
    if not isinstance(raw["cases"], list):
        raise ValueError("cases are no list")
    fields = {name: _CHECKS[type(default)](raw.get(name, default)) for name, default in _OPTIONAL.items()}
    return Tests(raw["kind"], tuple(_read_case(raw["kind"], case) for case in raw["cases"]), **fields)


def _read_case(kind: str, raw: Any) -> Case:
    if kind == "assert":
        return Case(_text(raw))
    if kind in ("stdin", "function") and not (isinstance(raw, list) and len(raw) == 2):
        raise ValueError(f"a case of kind {kind} is a list of two, not {raw!r:.80}")
    if kind == "stdin":
        return Case(*map(_text, raw))
    given, wanted = (_value(raw), None) if kind == "reference" else map(_value, raw)
    if isinstance(given, dict):
        return Case(Arguments([], given), wanted)
    if not isinstance(given, list):
        raise ValueError(f"arguments are a {type(given).__name__}, neither a list nor keyword arguments")
    return Case(Arguments(given), wanted)


def _written_case(kind: str, case: Case) -> Any:
    if kind == "assert":
        return case.given
    if kind == "stdin":
        return [case.given, case.expected]
    if case.given.args and case.given.kwargs:
        raise ValueError("arguments are either positional or keyword arguments")
    given = _plain(case.given.kwargs or case.given.args)
    return given if kind == "reference" else [given, _plain(case.expected)]


def _plain(value: Any, depth: int = 0) -> Any:
    """A value as JSON with tags."""
    kind = type(value)
    if depth > MAX_DEPTH:
        raise ValueError(f"a value is nested over {MAX_DEPTH} levels")
    if value is None or kind in (bool, int, str) or (kind is float and math.isfinite(value)):
        return value
    if kind is float:
        return {"float": repr(value)}
    if kind is complex:
        return {"complex": [_plain(value.real), _plain(value.imag)]}
    if kind is bytes:
        return {"bytes": value.hex()}
    if kind is dict:
        return {"dict": [[_plain(key, depth + 1), _plain(entry, depth + 1)] for key, entry in value.items()]}
    if kind not in (list, tuple, set, frozenset):
        raise ValueError(f"a value is a {kind.__name__}, which is no plain data")
    entries = [_plain(entry, depth + 1) for entry in value]
    return entries if kind is list else {kind.__name__: entries}


def _value(plain: Any, depth: int = 0) -> Any:
    """The value that JSON with tags stands for."""
    if depth > MAX_DEPTH:
        raise ValueError(f"a value is nested over {MAX_DEPTH} levels")
    if isinstance(plain, list):
        return [_value(entry, depth + 1) for entry in plain]
    if not isinstance(plain, dict):
        return plain
    if len(plain) != 1 or next(iter(plain)) not in _TAGS:
        raise ValueError(f"an object in a value has other keys than one of {', '.join(_TAGS)}")
    ((tag, content),) = plain.items()
    if isinstance(content, str) != (tag in ("bytes", "float")):
        raise ValueError(f"a {tag} is made of a {type(content).__name__}")
    return _TAGS[tag](content if isinstance(content, str) else [_value(entry, depth + 1) for entry in content])


_TAGS: dict[str, Callable[[Any], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
    "bytes": bytes.fromhex,
    "complex": lambda parts: complex(*parts),
    "float": float,
}


def _check_depth(value: Any) -> None:
    """Raises ValueError for lists and objects nested over 60 levels."""
    level, depth = [value], 0
    while level:
        groups = [entry.values() if isinstance(entry, dict) else entry for entry in level if _holds(entry)]
        level, depth = [entry for group in groups for entry in group], depth + 1
        if depth > MAX_DEPTH:
            raise ValueError(f"a value is nested over {MAX_DEPTH} levels")


def _holds(value: Any) -> bool:
    return isinstance(value, list | dict)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__} stands where text should be: {value!r:.80}")
    value.encode()  # half of a surrogate pair could enter no program
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"a {type(value).__name__} stands where a number should be: {value!r:.80}")
    return float(value)


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"a {type(value).__name__} stands where a whole number should be: {value!r:.80}")
    return value


def _seconds(value: Any) -> float:
    """A published time limit, which may be missing; one of over a minute is cut."""
    return DEFAULT_SECONDS if value is None else min(_number(value), MAX_SECONDS)


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"helpers are a {type(value).__name__}, not a list of names")
    return tuple(map(_text, value))


_CHECKS: dict[type, Callable[[Any], Any]] = {str: _text, float: _number, int: _whole, tuple: _names}
_OPTIONAL: dict[str, Any] = {
    name: field.default for name, field in Tests.__dataclass_fields__.items() if name not in ("kind", "cases")
}
