"""The programs in `attacks/` and `controls/`, and what each is run with.

A program's file starts with comments `# key: value`; a value may go on in lines that start with `#   `. The program
does not see them. Keys, all but the first two optional:

  family, tries  what it is about, in words
  mode           script (the default), module or judge
  stdin, prints  a script's input, and the output that counts as a pass: for an attack, "won" unless it says otherwise
  calls          of a module, JSON: [name, arguments, result that counts as a pass]; for an attack [["f", [], "won"]]
  tests, names   of a judge: the trusted tests, and what they call
  *_from         the same, as an expression of Python
  source         an expression whose value is the program, where no file could hold it
  seconds, memory_mb
  status         the only statuses that a run or call may end with
  alone          on a host with no layer but limits on each process the attack "wins" or "acts" (something happens
                 outside): shows that it is one. Only for attacks that harm nothing but what the tests put there
  guard          a win counts only where one of these layers is active: it is no way out of a box
  held_by        not run where none of these layers is active: it would slow the whole machine
  needs          layers that a control's feature needs
  imports        packages that may not be installed
  core           also run with each layer switched off
  slow           over a few seconds

@NAME@ in a program or a head is replaced by what the tests put outside: see `outside.Outside`.
"""

import json
import re
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from jopsd.rewards.sandbox import Limits, Outcome, Sandbox

FOLDER = Path(__file__).resolve().parent
SPARE_SECONDS = 4.0  # beyond its limits, for a program's start and for reading its answer on a loaded machine
KEYS = (
    "family tries mode stdin prints calls tests names source seconds memory_mb status alone guard held_by needs "
    "imports core slow"
).split()


class Case(NamedTuple):
    name: str
    attack: bool
    source: str
    head: dict[str, Any]

    def words(self, key: str) -> frozenset[str]:
        return frozenset(self.head.get(key, "").split())

    def unfit(self, active: frozenset[str]) -> str | None:
        """Why the program is not run with these layers active, if so."""
        if "held_by" in self.head and not self.words("held_by") & active:
            return f"it would slow this machine without one of {', '.join(sorted(self.words('held_by')))}"
        if lacking := self.words("needs") - active:
            return f"it needs {', '.join(sorted(lacking))}"
        if lacking := {name for name in self.words("imports") if find_spec(name) is None}:
            return f"it imports {', '.join(sorted(lacking))}"
        return None


class Result(NamedTuple):
    """passed: every answer is the right one. outcomes: of the run, or of each call."""

    passed: bool
    outcomes: list[Outcome]
    seconds: float
    most_seconds: float


def load_cases() -> list[Case]:
    """All attacks, then all controls. Raises ValueError for a head that makes no sense."""
    return [_load(path) for folder in ("attacks", "controls") for path in sorted((FOLDER / folder).glob("*.py"))]


def _load(path: Path) -> Case:
    head, lines, last = {}, path.read_text().splitlines(), None
    while lines and (found := re.match(r"# (?:(\w+):(?: (.*))?|  (.*))$", lines[0])) and found[1] != "ruff":
        if found[1]:
            last = found[1]
            head[last] = found[2] or ""
        else:
            head[last] = (head[last] + "\n" + found[3]).lstrip("\n")
        lines.pop(0)
    source = "\n".join(lines) + "\n"
    for key in [key for key in head if key.endswith("_from") or key == "source"]:
        head[key.removesuffix("_from")] = eval(f"({head.pop(key)})")
    head |= {key: json.loads(head[key]) for key in ("calls",) if isinstance(head.get(key), str)}
    head["stdin"] = head.get("stdin", "").replace("\\n", "\n")
    if not {"family", "tries"} <= head.keys() <= set(KEYS):
        raise ValueError(f"{path}: unknown or missing keys in its head: {sorted(head)}")
    return Case(path.stem, path.parent.name == "attacks", head.pop("source", source), head)


def run_case(case: Case, sandbox: Sandbox, words: dict[str, str]) -> Result:
    """Runs a program; `words` replace @NAME@ in it and in what it is run with."""
    source, head = _replaced(case.source, words), _replaced(case.head, words)
    limits = Limits(float(head.get("seconds", 2)), int(head.get("memory_mb", 1024)), 4 << 20)
    start, most, mode = time.monotonic(), limits.seconds, head.get("mode", "script")
    if mode == "script":
        outcomes = [sandbox.run(source, head["stdin"], limits)]
        passed = outcomes[0].status == "ok" and outcomes[0].value.split() == head.get("prints", "won").split()
        most += 1  # that long a program may take to start
    elif mode == "module":
        calls = head.get("calls", [["f", [], "won"]])
        with sandbox.module(source, limits) as module:
            outcomes = [module.call(name, arguments) for name, arguments, _ in calls]
        results = [wanted for *_, wanted in calls]
        passed = all(o.status == "ok" and same(o.value, w) for o, w in zip(outcomes, results, strict=True))
        if case.attack:  # one call answered right is one too many
            passed = any(o.status == "ok" and same(o.value, w) for o, w in zip(outcomes, results, strict=True))
        most *= len(calls)
    else:
        with sandbox.module(source, limits) as module:
            outcomes = [sandbox.judge(head["tests"], module, head["names"].split(), limits)]
        passed, most = outcomes[0].status == "ok", 2 * most  # the tests' own time, and a call that is not over then
    return Result(passed, outcomes, time.monotonic() - start, most + SPARE_SECONDS)


def complaints(case: Case, result: Result, active: frozenset[str]) -> list[str]:
    """What is wrong with how a program ended, in words; nothing about what it did outside."""
    said = "; ".join(f"{o.status} {str(o.value)[:80]!r} {o.message[-300:]}" for o in result.outcomes)
    counts = "guard" not in case.head or case.words("guard") & active
    wrong = []
    if case.attack and result.passed and counts:
        wrong.append(f"the attack got through: {said}")
    if not case.attack and not result.passed:
        wrong.append(f"an honest program did not pass: {said}")
    if "status" in case.head and not {o.status for o in result.outcomes} <= case.words("status"):
        wrong.append(f"ended otherwise than {case.head['status']}: {said}")
    for outcome in result.outcomes:
        if len(outcome.message) > 2_000 or outcome.message != outcome.message.encode(errors="replace").decode():
            wrong.append(f"a message that a log or a tokenizer would stumble over: {outcome.message[-100:]!r}")
    if result.seconds > result.most_seconds:
        wrong.append(f"took {result.seconds:.1f} s, at most {result.most_seconds:.1f} s were due: {said}")
    return wrong


def same(one: Any, other: Any) -> bool:
    """Equality that takes no value's word for it: types must be the same, too."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return len(one) == len(other) and all(key in other and same(one[key], other[key]) for key in one)
    return one == other


def _replaced(value: Any, words: dict[str, str]) -> Any:
    if isinstance(value, str):
        return re.sub(r"@([A-Z]+)@", lambda found: words[found[1]], value)
    if isinstance(value, list):
        return [_replaced(entry, words) for entry in value]
    return {key: _replaced(entry, words) for key, entry in value.items()} if type(value) is dict else value
