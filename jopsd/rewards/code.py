"""Grade a program by running it: extraction from a completion, all tests in the sandbox, a score and words on failures.

What tests expect never enters a box with the program; results come out as plain data and are compared here. A program
is text to this process: it is neither parsed nor compiled.
"""

import hashlib
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from jopsd.rewards.boxed import MAX_ANSWER_CHARS
from jopsd.rewards.compare import same_members, same_output, same_result
from jopsd.rewards.reports import NO_PROGRAM, TOO_LONG, Failure, feedback
from jopsd.rewards.sandbox import Limits, Outcome
from jopsd.rewards.score import Score
from jopsd.rewards.tests import Case, Tests, read_tests

if TYPE_CHECKING:
    from jopsd.rewards.sandbox import Sandbox

MAX_PROGRAM_CHARS = 1 << 20
LOOKED_AT = 10  # tests run after a first wrong answer, to find shorter ones for the feedback
REFERENCE_SECONDS = 300.0  # for all results of one reference, which are then kept
KEPT_REFERENCES = 256
PATIENCE = 4.0  # a program may take this many times as long as the reference, in one test and in all

# Quantifiers that never give back: a megabyte of backticks is read once.
_FENCE = re.compile(r"[ \t]*+(?P<marks>`{3,}+|~{3,}+)[ \t]*+(?P<label>[^\s`]*+)[^`]*+$")
_FENCE_AFTER_WORDS = re.compile(r"(?<!`)(?P<marks>`{3,}+)[ \t]*+(?P<label>python[0-9]?|py)[ \t]*+$", re.IGNORECASE)
_PYTHON = re.compile(r"python[0-9.]*|py[0-9]?|pypy[0-9]?", re.IGNORECASE)
_FUTURE = re.compile(r"^from __future__ import [\w, ]+$", re.MULTILINE)


class Options(NamedTuple):
    """How programs are graded.

    reward: "sparse", 1 if all tests pass, or "dense", the share that does. reveal: whose input, output and expected
    output the feedback may show: "public" tests' or "all" tests'. feedback: whether to write any. budget: seconds for
    all tests of one program together (four times what a reference takes, if that is more); tests that it does not
    reach count as timed out. memory_mb: of one program.
    """

    reward: Literal["sparse", "dense"] = "sparse"
    reveal: Literal["public", "all"] = "public"
    feedback: bool = True
    budget: float = 60.0
    memory_mb: int = 1024


class Report(NamedTuple):
    """How a program did: tests passed, of how many, and what failed, in order. Not all were run if sparse ones fail."""

    passed: int
    total: int
    failures: list[Failure]


def verify(text: str, gold: str, sandbox: "Sandbox", options: Options = Options()) -> Score:  # noqa: B008
    """Score a completion by the tests of its row (`jopsd.rewards.tests`); correct if all pass.

    Safe from any thread that has the sandbox to itself. Returns within the budget and one time limit, and longer only
    where a reference must be run first.

    Raises:
      ValueError: a gold that is no tests, with arguments too large for the sandbox, or whose reference gives no result.
      SandboxError: no verdict, because the sandbox failed.
    """
    tests = read_tests(gold)
    program = extract_program(text, tests.entry_point)
    if program is None or len(program) > MAX_PROGRAM_CHARS:
        return Score(0.0, False, False, None, NO_PROGRAM if program is None else TOO_LONG)
    report = run_tests(program, gold, sandbox, options)
    correct = report.passed == report.total
    reward = report.passed / report.total if options.reward == "dense" else float(correct)
    words = None
    if options.feedback and not correct:
        words = feedback(tests, report.failures, shown=len(tests.cases) if options.reveal == "all" else tests.public)
    return Score(reward, correct, True, program[:MAX_ANSWER_CHARS], words)


# ----------------------------------------------------------------------------------------------------------- extraction


def extract_program(text: str, entry_point: str = "") -> str | None:
    """The fenced block to grade, of those after the last ``</think>``; None if there is none.

    It is the last one labelled as Python, or else without a label, or else any; and where a function is asked for, the
    last of them that defines it. SDPO takes the longest: then a discarded draft counts, and a solution is lost to a
    longer quotation. (PRIME takes the last, LiveCodeBench what stands between the last two fences.) A fence that is
    not closed ends with the text. Time is linear in the text.
    """
    blocks = list(_blocks(text.rpartition("</think>")[2]))
    for wanted in (_PYTHON.fullmatch, lambda label: not label, lambda label: True):
        candidates = [source for label, source in blocks if wanted(label)]
        if candidates:
            defines = re.compile(rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{re.escape(entry_point)}\b", re.MULTILINE)
            defining = [source for source in candidates if entry_point and defines.search(source)]
            return (defining or candidates)[-1].encode("utf-8", "replace").decode()
    return None


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """Label and content of each fenced block, in order.

    As Markdown has it, and as models write it: a Python block may begin behind words, and end behind code.
    """
    lines, marks, label, indent = [], "", "", 0
    for line in text.split("\n"):
        line = line.rstrip("\r")
        if marks:
            body = line.rstrip(" \t")
            ended = body.endswith(marks)
            if not ended or body.strip(marks[0]).strip(" \t"):
                lines.append(_dedented(body.rstrip(marks[0]) if ended else line, indent))
            if ended:
                yield label, "\n".join(lines)
                lines, marks = [], ""
        elif "```" in line or "~~~" in line:
            if opening := _FENCE.match(line) or _FENCE_AFTER_WORDS.search(line):
                marks, label = opening["marks"], opening["label"]
                indent = len(line) - len(line.lstrip(" \t"))
    if marks:
        yield label, "\n".join(lines)


def _dedented(line: str, indent: int) -> str:
    """A line without the white space that its whole block is indented by, as in an item of a list."""
    return line[indent:] if not line[:indent].strip(" \t") else line


# -------------------------------------------------------------------------------------------------------------- running


def run_tests(program: str, gold: str, sandbox: "Sandbox", options: Options = Options()) -> Report:  # noqa: B008
    """Run a program's tests: all for a dense reward; for a sparse one up to the first that fails.

    With feedback, up to 10 more that it may show are run after a first wrong answer. Raises as `verify`.
    """
    tests = read_tests(gold)
    expected = {number: case.expected for number, case in enumerate(tests.cases)}
    budget = options.budget
    if tests.kind == "reference":
        reference = _REFERENCES.get(gold, partial(_run_reference, tests, sandbox, options.memory_mb))
        expected, budget = reference.results, max(budget, PATIENCE * reference.seconds)
    shown = len(tests.cases) if options.reveal == "all" else tests.public
    passed, failures = 0, []
    with closing(_verdicts(program, tests, expected, sandbox, budget, options.memory_mb)) as verdicts:
        for number, verdict in zip(expected, verdicts, strict=True):
            if verdict is None:
                passed += 1
            else:
                failures.append(verdict)
            if not failures or options.reward == "dense":
                continue
            looks_on = options.feedback and failures[-1].kind == "wrong" and number - failures[0].case < LOOKED_AT
            if not looks_on or number + 1 >= shown:
                break
    return Report(passed, len(expected), failures)


def _verdicts(
    program: str, tests: Tests, expected: dict[int, Any], sandbox: "Sandbox", budget: float, memory_mb: int
) -> Iterator[Failure | None]:
    """One verdict for each expected result, in order: None, or what failed. Past the budget, all are timeouts."""
    limits = Limits(seconds=tests.time_limit, memory_mb=memory_mb)
    end = time.monotonic() + min(len(expected) * tests.time_limit, budget)
    with _runner(_assembled(program, tests), tests, sandbox, limits) as run:
        for number, wanted in expected.items():
            left = end - time.monotonic()
            if left <= 0:
                yield Failure("timeout", number)
            else:
                outcome = run(tests.cases[number], limits._replace(seconds=min(limits.seconds, left)))
                yield _failure(tests, number, outcome, wanted)


@contextmanager
def _runner(
    source: str, tests: Tests, sandbox: "Sandbox", limits: Limits
) -> Iterator[Callable[[Case, Limits], Outcome]]:
    """What runs a program on one test. Calls have the limits given here, whole runs those of each time."""
    if tests.kind == "stdin":
        with sandbox.script(source) as script:
            yield lambda case, limits: script.run(case.given, limits)
        return
    names = [tests.entry_point, *tests.helpers]
    with sandbox.module(source, limits) as module:
        if tests.kind == "assert":
            yield lambda case, limits: sandbox.judge(case.given, module, names, limits)
        else:
            yield lambda case, limits: module.call(tests.entry_point, case.given.args, case.given.kwargs)


def _failure(tests: Tests, number: int, outcome: Outcome, expected: Any) -> Failure | None:
    if outcome.status == "ok":
        right = tests.kind == "assert" or _is_right(tests, outcome.value, expected)
        return None if right else Failure("wrong", number, output=outcome.value, expected=expected)
    kind = outcome.status
    if tests.kind == "assert" and kind == "error":
        if of_call := _FAILED_CALL.search(outcome.message):
            kind = of_call[1]
        elif _FAILED_ASSERTION.search(outcome.message):
            kind = "wrong"
    return Failure(kind, number, message=outcome.message)


# In the words of the sandbox: why a call that assertions made has no result, and that an assertion does not hold.
_FAILED_CALL = re.compile(r"^RuntimeError: \w+: (timeout|memory|output|crash|unreadable): ", re.MULTILINE)
_FAILED_ASSERTION = re.compile(r"^AssertionError\b", re.MULTILINE)


def _is_right(tests: Tests, given: Any, expected: Any) -> bool:
    if tests.kind == "stdin":
        return same_output(given, expected)
    # Tests in JSON cannot tell a tuple from a list; what a reference returns is exact.
    same = partial(same_result, sequences_alike=tests.kind == "function", atol=tests.atol)
    if tests.equality == "set" and same_members(given, expected, tests.kind == "function", tests.atol):
        return True
    unwraps = tests.equality == "wrapped" and isinstance(expected, list) and len(expected) == 1
    return same(given, expected) or (unwraps and same(given, expected[0]))


def _assembled(program: str, tests: Tests) -> str:
    """A program between its setup and what comes after; imports from `__future__` must remain in front."""
    if not tests.setup.strip() and not tests.after:
        return program
    future = "; ".join(line.strip() for line in _FUTURE.findall(program))
    rest = _FUTURE.sub("", program) if future else program
    return "\n".join(part for part in (future, tests.setup, rest, tests.after) if part)


# ----------------------------------------------------------------------------------------------------------- references


class Reference(NamedTuple):
    """What a reference returns, by number of the test, and how long it took over all of them."""

    results: dict[int, Any]
    seconds: float


def _run_reference(tests: Tests, sandbox: "Sandbox", memory_mb: int) -> Reference:
    """Results of all tests but those for which the reference gives nothing to compare with.

    That is: an input that it refuses, a result that is no plain data, or one that takes over a quarter of the time
    limit, so that a program as fast as the reference has time to spare. Raises ValueError if no test is left.
    """
    results, outcome = {}, None
    start = time.monotonic()
    limits = Limits(seconds=tests.time_limit / PATIENCE, memory_mb=memory_mb)
    with sandbox.module("\n".join((tests.reference, tests.after)), limits) as module:
        for number, case in enumerate(tests.cases):
            if time.monotonic() - start > REFERENCE_SECONDS:
                break
            outcome = module.call(tests.entry_point, case.given.args, case.given.kwargs)
            if outcome.status == "ok":
                results[number] = outcome.value
    if not results:
        raise ValueError(f"the reference of {tests.entry_point} gives no result: {outcome.status}, {outcome.message}")
    return Reference(results, time.monotonic() - start)


class _References:
    """References' results by gold, each computed once, the least recently used forgotten. For all threads."""

    def __init__(self, kept: int):
        self._kept = kept
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, Future[Reference]] = OrderedDict()

    def get(self, gold: str, compute: Callable[[], Reference]) -> Reference:
        key = hashlib.sha256(gold.encode("utf-8", "surrogatepass")).digest()
        with self._lock:
            is_known = key in self._known
            future = self._known.setdefault(key, Future())
            self._known.move_to_end(key)
            if len(self._known) > self._kept:
                self._known.popitem(last=False)
        if is_known:
            return future.result()
        try:
            future.set_result(compute())
        except BaseException as error:
            with self._lock:
                self._known.pop(key, None)
            future.set_exception(error)
        return future.result()


_REFERENCES = _References(KEPT_REFERENCES)
