"""Throughput of the verifiers: completions graded per second, in one process or slot and on all cores.

    python -m bench.verifiers [--count 400 --only math,code]

Every row is one kind of completion, made here, half of them right. Mathematics is asked twice: once with answers that
all differ, and once more with the same, which the pool remembers. Workers and sandboxes are started before the clock.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from jopsd.data.knights import problems as puzzles
from jopsd.data.problem import Problem
from jopsd.rewards.grader import make_grader
from jopsd.rewards.pool import usable_cores
from jopsd.schema import Reward


class Question(NamedTuple):
    """A completion, its row, and whether it is right."""

    text: str
    row: Problem
    right: bool


def number(i: int) -> Question:
    return Question(f"So \\boxed{{{i + i % 2}}}.", _row("math", str(i)), i % 2 == 0)


def expression(i: int) -> Question:
    right = i % 2 == 0
    answer = f"x^2 + {2 * i + 2} x + {(i + 1) ** 2 + (not right)}"
    return Question(f"So \\boxed{{{answer}}}.", _row("math", f"(x+{i + 1})^2"), right)


def endless(i: int) -> Question:
    """Half a megabyte of reasoning before the answer."""
    return Question("Let me think again. " * 25_000 + f"\\boxed{{{i + i % 2}}}", _row("math", str(i)), i % 2 == 0)


def choice(i: int) -> Question:
    return Question(f"Because of that, <answer>{'AB'[i % 2]}</answer>", _row("choice", "A"), i % 2 == 0)


def tools(i: int) -> Question:
    gold = json.dumps([{"Action": "search", "Action_Input": json.dumps({"q": "x", "n": i})}])
    return Question(f'Action: search\nAction Input: {{"n": {i + i % 2}, "q": "x"}}', _row("tools", gold), i % 2 == 0)


def knights(i: int) -> Question:
    puzzle = _PUZZLES[i % len(_PUZZLES)]
    answer = puzzle.answer if i % 2 == 0 else puzzle.answer.replace("knight", "knave", 1)
    right = answer == puzzle.answer
    return Question(f"So \\boxed{{{answer}}}.", puzzle, right)


def script(i: int) -> Question:
    """Ten inputs on standard input."""
    tests = {"inputs": [f"{n} {i}" for n in range(10)], "outputs": [str(n + i) for n in range(10)], "testtype": "stdin"}
    program = f"a, b = map(int, input().split())\nprint(a + b + {i % 2})"
    return Question(f"```python\n{program}\n```", _row("code", None, json.dumps(tests)), i % 2 == 0)


def function(i: int) -> Question:
    """A hundred calls."""
    cases = {"inputs": [f"{n}\n{i}" for n in range(100)], "outputs": [str(n + i) for n in range(100)]}
    tests = {**cases, "testtype": "functional", "fn_name": "add"}
    program = f"def add(a, b):\n    return a + b + {i % 2}"
    return Question(f"```python\n{program}\n```", _row("code", None, json.dumps(tests)), i % 2 == 0)


_PUZZLES = puzzles("train", 64, 0, people=(4, 8))
KINDS: dict[str, Callable[[int], Question]] = {
    "math: numbers": number,
    "math: expressions": expression,
    "math: numbers after 500 kB": endless,
    "knights": knights,
    "choice": choice,
    "tools": tools,
    "code: 10 inputs": script,
    "code: 100 calls": function,
}


def _row(verifier: str, answer: str | None, tests: str | None = None) -> Problem:
    return Problem(id="0", problem="?", answer=answer, tests=tests, verifier=verifier)


def measure(make: Callable[[int], Question], count: int, workers: int) -> tuple[float, float]:
    """Completions per second, first asked and asked again. Raises ValueError for a verdict that is wrong."""
    warm, questions = [make(i) for i in range(-8 * workers, 0)], [make(i) for i in range(count)]
    with ExitStack() as stack:
        grader = stack.enter_context(make_grader(Reward(name="auto", workers=workers), [questions[0].row]))
        _ask(grader.submit, warm)
        return tuple(count / _ask(grader.submit, questions) for _ in range(2))


def _ask(submit: Callable, questions: Sequence[Question]) -> float:
    """Seconds until all are answered."""
    start = time.perf_counter()
    futures = [submit(question.text, question.row) for question in questions]
    scores = [future.result() for future in futures]
    seconds = time.perf_counter() - start
    for question, score in zip(questions, scores, strict=True):
        if score.correct != question.right:
            raise ValueError(f"{question.text[-80:]!r} is graded {score.correct}")
    return seconds


def rows(count: int, only: Sequence[str]) -> Iterator[str]:
    """A Markdown table, line by line."""
    cores = usable_cores()
    yield f"| completions | one at a time, per second | asked again | {cores} at a time, per second |"
    yield "|---|---:|---:|---:|"
    for name, make in KINDS.items():
        if only and name.split(":")[0] not in only:
            continue
        asked = count if not name.startswith("code") else max(count // 8, 8)
        alone, again = measure(make, asked, 1)
        many, _ = measure(make, asked, cores)
        yield f"| {name} | {alone:,.0f} | {again:,.0f} | {many:,.0f} |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.verifiers", description=__doc__)
    parser.add_argument("--count", type=int, default=400, help="completions of each kind; programs an eighth of it")
    parser.add_argument("--only", default="", help="verifiers, such as math,code")
    args = parser.parse_args(argv)
    for line in rows(args.count, [name for name in args.only.split(",") if name]):
        print(line, flush=True)


if __name__ == "__main__":
    main()
