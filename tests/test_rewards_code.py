"""Grading programs: verdicts in the real sandbox, the order of running, and what feedback tells and does not."""

import builtins
import json
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from jopsd.rewards import code
from jopsd.rewards.code import Options, run_tests, verify
from jopsd.rewards.reports import HEADINGS, MAX_CHARS, NO_PROGRAM, TOO_LONG
from jopsd.rewards.sandbox import Outcome, Sandbox
from jopsd.rewards.tests import Arguments, Case, Tests, write_tests

GOLDEN = json.loads((Path(__file__).parent / "golden" / "b" / "verifier_mopd.json").read_text())
# Published verdicts that ours changes on purpose.
ON_PURPOSE = {"import of non-allow-listed module": "an import harms nobody in a box, and honest programs import os"}
DENSE = Options(reward="dense")


def fenced(source: str) -> str:
    return f"Thus:\n\n```python\n{source}\n```\n"


def stdin_gold(*pairs: tuple[str, str], **fields) -> str:
    return write_tests(Tests("stdin", tuple(Case(*pair) for pair in pairs), **fields))


def function_gold(*cases: tuple[list, object], **fields) -> str:
    return write_tests(Tests("function", tuple(Case(Arguments(a), wanted) for a, wanted in cases), "f", **fields))


def assert_gold(*sources: str, **fields) -> str:
    return write_tests(Tests("assert", tuple(map(Case, sources)), "f", **fields))


def reference_gold(reference: str, *inputs: list, **fields) -> str:
    cases = tuple(Case(Arguments(given)) for given in inputs)
    return write_tests(Tests("reference", cases, "f", reference=reference, **fields))


# ------------------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize("entry", [c for c in GOLDEN if c["kind"] == "livecodebench"], ids=lambda e: e["label"])
def test_published_verdicts_are_ours_but_where_ours_differ_on_purpose(sandbox, entry):
    options = Options("sparse" if entry["sparse"] else "dense", reveal="all")
    score = verify(entry["response"], entry["gt"], sandbox, options)
    result = entry["result"]
    theirs = (result["score"], result["acc"] == 1, not result["incorrect_format"], entry["has_feedback"])
    ours = (score.reward, score.correct, score.formatted, score.feedback is not None)
    assert (ours == theirs) != (entry["label"] in ON_PURPOSE)
    if entry["label"] in ON_PURPOSE:
        assert ours == (1.0, True, True, False)


SUM = (("3\n1 2 3\n", "6"), ("1\n-5\n", "-5\n"), ("2\n500000000000 7\n", "500000000007"))


@pytest.mark.parametrize(
    ("program", "right"),
    [
        ("n = int(input())\nprint(sum(map(int, input().split())))", True),
        ("import sys\ndata = sys.stdin.buffer.read().split()\nsys.stdout.write(str(sum(map(int, data[1:]))))", True),
        (
            "def main():\n    input()\n    print(sum(map(int, input().split())))\nif __name__ == '__main__': main()",
            True,
        ),
        ("data = open(0).read().split()\nprint(' ', sum(map(int, data[1:])), '\\n')\nraise SystemExit(0)", True),
        ("import numpy as np\ninput()\nprint(np.array(input().split(), dtype=np.int64).sum())", True),
        ("from __future__ import annotations\ninput()\nprint(sum(map(int, input().split())))", True),
        ("n = int(input())\nprint(max(map(int, input().split())))", False),
        ("print('6 -5 500000000007')", False),
        ("input()\nprint(sum(map(int, input().split())))\nprint()\nprint(0)", False),
        ("input()\nprint(float(sum(map(int, input().split()))) + 0.5)", False),
        ("input()\nprint(sum(map(int, input().split())))\nraise SystemExit(1)", False),
        ("input()\nprint(sum(map(int, input().split()))", False),
        ("", False),
    ],
)
def test_whole_programs_are_right_if_they_print_what_they_should(sandbox, program, right):
    for fields in ({}, {"setup": "import math\n"}):
        score = verify(fenced(program), stdin_gold(*SUM, **fields), sandbox)
        assert (score.correct, score.reward, score.formatted, score.prediction) == (right, right, True, program)
        assert (score.feedback is None) == right


@pytest.mark.parametrize(
    ("program", "right"),
    [
        ("def f(values: List[int], n=0):\n    return [sum(values), n]", True),
        ("class Solution:\n    def f(self, values, n):\n        return sum(values), n", True),
        (
            "import numpy as np\ndef f(values, n):\n    print('noise')\n    return list(np.array([sum(values), n]))",
            True,
        ),
        ("def f(values, n):\n    return [float(sum(values)), n]", True),
        ("def f(values, n):\n    return [sum(values), bool(n)]", False),  # 1 is not True
        ("def f(values, n):\n    return [str(sum(values)), n]", False),
        ("def f(values):\n    return [sum(values), 0]", False),
        ("def g(values, n):\n    return [sum(values), n]", False),
        ("class Any(list):\n    def __eq__(self, other): return True\ndef f(values, n): return Any()", False),
        ("class Any:\n    def __eq__(self, other): return True\ndef f(values, n): return Any()", False),
        ("import json, os\njson.dumps = lambda *a, **k: '[\"ok\"]'\ndef f(values, n): os._exit(0)", False),
        ("import sys\ndef f(values, n):\n    return sys._getframe(1).f_locals.get('expected')", False),
        ("def f(values, n):\n    return 10 ** 30000", False),
        ("def f(values, n):\n    deep = []\n    for _ in range(10000): deep = [deep]\n    return deep", False),
        ("def f(:", False),
    ],
)
def test_functions_are_right_if_they_return_what_they_should(sandbox, program, right):
    gold = function_gold(([[1, 2], 1], [3, 1]), ([[], 0], [0, 0]), public=1)
    score = verify(fenced(program), gold, sandbox)
    assert (score.correct, score.feedback is None) == (right, right)
    assert len(score.feedback or "") <= MAX_CHARS


def test_a_wrapped_result_and_one_compared_as_a_set(sandbox):
    program = fenced("def f(n):\n    return [n, 1]")
    for wanted, right in [([2, 1], True), ([[2, 1]], True), ([[[2, 1]]], False)]:
        assert verify(program, function_gold(([2], wanted), equality="wrapped"), sandbox).correct == right
    for wanted, right in [([1, 2], True), ((1, 1, 2), True), ([1], False)]:
        assert verify(program, function_gold(([2], wanted), equality="set"), sandbox).correct == right


def test_how_a_program_fails_is_told_apart(sandbox):
    ends = {
        "error": "raise ValueError('x')",
        "timeout": "while True: pass",
        "memory": "x = bytearray(2 << 30)",
        "crash": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    }
    options = Options(memory_mb=256)
    for kind, line in ends.items():
        program = f"def f():\n  {line}\nif __name__ == '__main__' and STDIN: f()"
        for gold, stdin in ((function_gold(([], 1), time_limit=0.5), 0), (stdin_gold(("", "1"), time_limit=0.5), 1)):
            report = run_tests(program.replace("STDIN", str(stdin)), gold, sandbox, options)
            assert [failure.kind for failure in report.failures] == [kind]
    flood = run_tests("while True: print('x' * 1000)", stdin_gold(("", "1"), time_limit=5.0), sandbox)
    assert flood.failures[0].kind == "output"
    assert run_tests("def f(): return iter([])", function_gold(([], 1)), sandbox).failures[0].kind == "unreadable"


def test_assertions_hold_fail_or_cannot_be_decided(sandbox):
    gold = assert_gold(
        "assert candidate(1) == 2", "def check(f):\n    assert f(2) == 3 and g() == 0\ncheck(f)", helpers=("g",)
    )
    helper = "\ndef g(): return 0"
    for program, kinds in [
        ("def f(n): return n + 1" + helper, []),
        ("def f(n): return 2" + helper, ["wrong"]),
        ("def f(n): return n / 0" + helper, ["error"]),
        ("def f(n): return iter([])" + helper, ["unreadable"]),
        ("def f(n): return n + 1", ["error"]),
        ("class E:\n    def __eq__(self, o): return True\ndef f(n): return E()" + helper, ["unreadable"]),
        ("def f(n):\n    import sys\n    sys.exit(0)" + helper, ["error"]),
    ]:
        report = run_tests(program, gold, sandbox)
        assert [failure.kind for failure in report.failures] == kinds, program
    hung = run_tests("def f(n):\n    while True: pass", assert_gold("assert f(1)", time_limit=0.5), sandbox)
    assert [failure.kind for failure in hung.failures] == ["timeout"]


REFERENCE = "def f(n):\n    assert n >= 0\n    return (n, n * 0.1)"


def test_a_reference_says_what_is_right_where_it_says_anything(sandbox):
    gold = reference_gold(REFERENCE, [1], [-1], [3])
    for program, passed in [
        ("def f(n): return n, n / 10", 2),
        ("def f(n): return [n, n / 10]", 0),  # the types of a reference are known
        ("def f(n): return (n, 0.1)", 1),
        ("def f(n): return (n, n / 10) if n > 1 else None", 1),
    ]:
        report = run_tests(program, gold, sandbox, DENSE)
        assert (report.passed, report.total) == (passed, 2)
    for broken in ("def f(n): return iter([])", "def f(n): return 1 / 0", "def g(n): return 1"):
        for _ in range(2):
            with pytest.raises(ValueError, match="the reference of f gives no result"):
                run_tests("def f(n): return 1", reference_gold(broken, [1]), sandbox)


def test_a_reference_is_run_once_for_all_threads_and_few_are_kept(monkeypatch):
    known = code._References(kept=2)
    ran, gate = Counter(), threading.Barrier(4)

    def results_of(name: str) -> code.Reference:
        def compute() -> code.Reference:
            ran[name] += 1
            if name == "broken":
                raise ValueError("broken")
            return code.Reference({0: name}, 0.0)

        return known.get(name, compute)

    def four_times(_: int) -> dict:
        gate.wait()
        return results_of("a").results

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(four_times, range(4))) == [{0: "a"}] * 4
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            results_of("broken")
    results_of("b"), results_of("a"), results_of("c"), results_of("a"), results_of("b")
    assert ran == {"a": 1, "b": 2, "c": 1, "broken": 2}


def test_threads_grade_at_once_each_with_its_own_sandbox(sandbox):
    gold = reference_gold(REFERENCE, *([n] for n in range(20)))
    programs = ["def f(n): return n, n / 10", "def f(n): return n, 0.0"] * 3

    def grade(slot: int) -> list[bool]:
        with Sandbox(slot) as own:
            return [verify(fenced(program), gold, own).correct for program in programs]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(grade, (1, 2))) == [[True, False] * 3] * 2


def test_no_program_and_one_of_a_megabyte_are_not_formatted():
    gold = stdin_gold(("", "1"))
    for text, words in (("print(1)", NO_PROGRAM), (fenced("#" * (1 << 20) + "#"), TOO_LONG)):
        score = verify(text, gold, Scripted([]))
        assert (score.reward, score.correct, score.formatted, score.prediction) == (0.0, False, False, None)
        assert score.feedback == words
    with pytest.raises(ValueError, match="no tests of a program"):
        verify("print(1)", "gold", Scripted([]))


def test_imports_from_the_future_stay_in_front_of_a_setup(sandbox):
    gold = function_gold(([4], 2.0), setup="from math import sqrt\n", after="\ng = f\ndef f(n): return g(n)\n")
    program = '"""Text."""\nfrom __future__ import annotations\n\ndef f(n: NoSuchName):\n    return sqrt(n)'
    assert verify(fenced(program), gold, sandbox).correct


# ---------------------------------------------------------------------------------------------------- order and budget


class Scripted:
    """A sandbox that runs nothing and answers as it is told: texts are printed, everything else is a status."""

    def __init__(self, answers: list[str], seconds: float = 0.0):
        self.answers, self.seconds, self.now, self.asked, self.limits = list(answers), seconds, 0.0, 0, []

    @contextmanager
    def script(self, source: str):
        yield self

    def run(self, stdin: str, limits) -> Outcome:
        self.asked += 1
        self.limits.append(limits.seconds)
        self.now += self.seconds
        answer = self.answers.pop(0)
        return Outcome("ok", answer) if answer not in HEADINGS else Outcome(answer, message=f"{answer} {stdin}")


def scripted(answers: list[str], options: Options, tests: int, monkeypatch, seconds: float = 0.0, **fields):
    """What becomes of a program that answers so, where 1 is right; and the sandbox that it did not run in."""
    sandbox = Scripted(answers, seconds)
    monkeypatch.setattr(code, "time", SimpleNamespace(monotonic=lambda: sandbox.now))
    gold = stdin_gold(*((f"input{n}", "1") for n in range(tests)), **fields)
    return run_tests("", gold, sandbox, options), verify(fenced(""), gold, Scripted(answers), options), sandbox


@pytest.mark.parametrize(
    ("answers", "options", "public", "asked"),
    [
        ("1111111", Options(), 0, 7),
        ("1011111", Options(), 0, 2),  # the first failure decides
        ("1011111", Options(feedback=False), 7, 2),
        ("1011111", Options(), 4, 4),  # shorter wrong answers are looked for among those that may be shown
        ("1011111", Options(reveal="all"), 0, 7),
        ("1011111", DENSE, 0, 7),
        ("10E1111", Options(reveal="all"), 0, 3),  # an error is what the feedback is about
        ("T111111", Options(reveal="all"), 0, 1),
        ("E101111", DENSE, 0, 7),
        ("0" * 30, Options(reveal="all"), 0, 11),
        ("0" * 30, DENSE, 0, 30),
    ],
)
def test_how_many_tests_run(answers, options, public, asked, monkeypatch):
    told = [{"E": "error", "T": "timeout"}.get(answer, answer) for answer in answers]
    report, score, sandbox = scripted(told, options, len(told), monkeypatch, public=public)
    assert sandbox.asked == asked and report.total == len(told)
    assert score.correct == (set(answers) == {"1"}) and report.passed == answers[:asked].count("1")
    assert score.reward == (answers.count("1") / len(answers) if options.reward == "dense" else score.correct)


def test_tests_beyond_the_budget_are_timeouts_and_limits_shrink_towards_it(monkeypatch):
    dense = DENSE._replace(budget=10.0)
    report, _, sandbox = scripted(["1"] * 5, dense, 5, monkeypatch, seconds=4.0, time_limit=6.0)
    assert sandbox.limits == [6.0, 6.0, 2.0] and report.passed == 3
    assert [(failure.kind, failure.case) for failure in report.failures] == [("timeout", 3), ("timeout", 4)]
    report, _, sandbox = scripted(["1"] * 5, dense, 5, monkeypatch, seconds=1.5, time_limit=1.0)
    assert sandbox.asked == 4 and report.passed == 4  # five tests have five limits together


def test_a_program_that_never_ends_is_given_up_in_time(sandbox):
    gold = function_gold(*(([n], n) for n in range(50)), time_limit=0.4)
    program = "import time\ndef f(n):\n    while True:\n        try: time.sleep(9)\n        except BaseException: pass"
    report = run_tests(program, gold, sandbox, DENSE._replace(budget=1.0))
    assert report.passed == 0 and {failure.kind for failure in report.failures} == {"timeout"}
    assert len(report.failures) == 50


def test_a_slow_reference_gives_programs_four_times_its_time(monkeypatch):
    monkeypatch.setattr(code, "_REFERENCES", SimpleNamespace(get=lambda *_: code.Reference({0: 1, 1: 2}, 40.0)))
    seen = []
    monkeypatch.setattr(code, "_verdicts", lambda p, t, e, s, budget, m: seen.append(budget) or (None for _ in e))
    for budget, used in ((60.0, 160.0), (200.0, 200.0)):
        run_tests("", reference_gold("def f(): 0", [1], [2]), None, Options(budget=budget))
        assert seen.pop() == used


# ------------------------------------------------------------------------------------------------------------- feedback


@pytest.mark.parametrize(
    ("answers", "public", "first", "told"),
    [
        (["0", "error", "timeout"], 3, "Runtime error\nerror input1", ["Input\ninput1"]),
        (["0", "timeout", "timeout"], 3, "Time limit exceeded\ntimeout input1", ["Input\ninput1"]),
        (["0", "memory", "1"], 3, "Memory limit exceeded", ["Input\ninput1"]),
        (["a" * 9, "bb", "c", "1"], 4, "Wrong answer\n\nInput\ninput2\n\nOutput\nc", ["Output\nbb\n\nExpected\n1"]),
        (["1", "0", "error"], 1, "Runtime error on a hidden test.", []),
        (["1", "0", "timeout"], 1, "Time limit exceeded on a hidden test.", []),
        (
            ["0", "error"],
            1,
            "Wrong answer\n\nInput\ninput0\n\nOutput\n0\n\nExpected\n1",
            [],
        ),  # what may be shown goes first
    ],
)
def test_feedback_is_on_the_first_error_else_time_else_the_shortest_wrong_answers(
    answers, public, first, told, monkeypatch
):
    _, score, _ = scripted(answers, DENSE, len(answers), monkeypatch, public=public)
    assert score.feedback.startswith(first) and all(part in score.feedback for part in told)
    assert "a" * 9 not in score.feedback and score.feedback.count("Wrong answer") <= 2
    _, score, _ = scripted(answers, DENSE._replace(feedback=False), len(answers), monkeypatch, public=public)
    assert score.feedback is None


def test_feedback_shows_arguments_and_assertions_and_cuts_what_is_long(sandbox):
    gold = function_gold(([[1, 2], "a b"], 3), public=1)
    assert verify(fenced("def f(x, y): return 'no'"), gold, sandbox).feedback == (
        "Wrong answer\n\nArguments\n[1, 2]\n'a b'\n\nOutput\n'no'\n\nExpected\n3"
    )
    gold = assert_gold("assert f(1) == 2", public=1)
    words = verify(fenced("def f(x): return 1"), gold, sandbox).feedback
    assert words.startswith("Wrong answer\n\nTest\nassert f(1) == 2") and "AssertionError" in words
    words = verify(fenced("def f(x):\n    return x / 0"), gold, sandbox).feedback
    assert words.startswith("Runtime error\n") and "ZeroDivisionError" in words and "line 2" in words
    many = [("7 " * 5000 + "\n" * 50, "8 " * 5000), ("9\n" * 5000, "9 " * 4999)]
    words = verify(fenced("print('x' * 100000, '\\ud800' * 9)"), stdin_gold(*many, public=2), sandbox, DENSE).feedback
    assert len(words) <= MAX_CHARS and words.count("Expected") == 2 and words.encode()


LEAKS = [
    "raise ValueError(seen)",
    "raise type(seen, (Exception,), {})(seen)",
    "raise type('ValueError', (Exception,), {})('\\nKeyError: ' + seen + '\\n' + seen)",
    "raise SystemExit(seen)",
    "import sys; sys.stderr.write(seen); raise KeyError",
    "assert False, seen",
    "x = bytearray(2 << 30) + seen.encode()",
    "import time; time.sleep(9)",
    "return seen",
    "return iter(seen)",
    "print(seen); return seen",
    "import os; os.write(2, seen.encode()); os._exit(3)",
]


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("kind", ["stdin", "function", "assert", "reference"])
def test_feedback_holds_nothing_of_a_hidden_test(kind, leak, sandbox):
    draw = random.Random(f"{kind} {leak}")
    asked, wanted = ("".join(draw.choices("abcXYZ", k=20)) for _ in "ab")
    makers = {
        "stdin": lambda **f: stdin_gold(("open", "fine"), (asked, wanted), **f),
        "function": lambda **f: function_gold((["open"], "fine"), ([asked], wanted), **f),
        "assert": lambda **f: assert_gold("assert f('open') == 'fine'", f"assert f('{asked}') == '{wanted}'", **f),
        "reference": lambda **f: reference_gold(
            f"def f(x): return 'fine' if x == 'open' else '{wanted}'", ["open"], [asked], **f
        ),
    }
    program = f"def f(seen):\n    if seen == 'open': return 'fine'\n    {leak}\n"
    if kind == "stdin":
        program += "answer = f(input())\nprint(answer)\n"
    gold = makers[kind](public=1, time_limit=0.5)
    for options in (Options(memory_mb=256), DENSE._replace(memory_mb=256)):
        score = verify(fenced(program), gold, sandbox, options)
        assert not score.correct and score.reward == (0.5 if options.reward == "dense" else 0.0)
        assert asked not in score.feedback and wanted not in score.feedback
        heading, _, rest = score.feedback.removesuffix(" on a hidden test.").partition(" (")
        assert heading in HEADINGS.values() and score.feedback.endswith(" on a hidden test.")
        assert not rest or issubclass(getattr(builtins, rest.removesuffix(")")), BaseException)
    revealed = verify(fenced(program), gold, sandbox, Options("dense", "all", memory_mb=256)).feedback
    assert asked in revealed  # or the test above would prove nothing


# ------------------------------------------------------------------------------------------------------------ real rows


def test_programs_for_real_rows_of_a_contest_pass_and_wrong_ones_fail(sandbox, shared):
    import pyarrow.parquet as pq

    rows = pq.read_table(shared / "data" / "standin_eurus_code_validation.parquet").to_pylist()
    golds = {row["prompt"][0]["content"]: row["reward_model"]["ground_truth"] for row in rows}
    assert len(rows) == 60 and all(code.read_tests(gold).kind == "stdin" for gold in golds.values())
    gold = next(gold for text, gold in golds.items() if text.startswith("Among the 81 integers"))
    right = "x = int(input())\nprint(sum(i * j for i in range(1, 10) for j in range(1, 10) if i * j != x))"
    for program, expected in [
        (right, True),
        (right.replace("!= x", "== x"), False),
        (right.replace("range(1, 10) if", "range(1, 9) if"), False),
        ("print(2024)", False),
    ]:
        assert verify(fenced(program), gold, sandbox).correct == expected
