"""Which verifier grades a row, and the object that grades: completions in, futures of scores out."""

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple, Protocol

from jopsd.rewards import choice, knights, tools
from jopsd.rewards.answer import MAX_CHARS
from jopsd.rewards.code import Options
from jopsd.rewards.code_pool import CodePool
from jopsd.rewards.math import quick_grade
from jopsd.rewards.pool import MathPool
from jopsd.rewards.score import Score
from jopsd.rewards.tests import read_tests

if TYPE_CHECKING:
    from jopsd.data.problem import Problem  # which imports the names of verifiers from here
    from jopsd.schema import Reward

AUTO = "auto"  # the verifier that each row's data set says


class Verifier(NamedTuple):
    """A verifier cheap enough for the calling thread.

    verify: (completion, gold answer) to a score, in linear time. read_gold: what a gold answer says, equal for equal
    answers; both raise ValueError for a gold answer that this verifier cannot use.
    """

    verify: Callable[[str, str], Score]
    read_gold: Callable[[str], Hashable | dict]


DIRECT = {
    "knights": Verifier(knights.verify, knights.read_gold),
    "choice": Verifier(choice.verify, choice.read_gold),
    "tools": Verifier(tools.verify, tools.read_gold),
}
VERIFIERS = ("math", *DIRECT, "code")


class Marker(Protocol):
    """What one verifier's completions are given to; `close` cancels what is unanswered.

    submit raises ValueError for a gold answer that it cannot use and RuntimeError once closed. stats counts verdicts
    since the start, under names of its own; "timeout" is among them where there are limits.
    """

    @property
    def stats(self) -> Counter[str]: ...
    def submit(self, text: str, gold: str) -> "Future[Score]": ...
    def close(self) -> None: ...


class Direct:
    """Marks in the calling thread, so the futures are finished. Usable from any thread."""

    def __init__(self, verifier: Verifier):
        self._verifier = verifier
        self._lock = threading.Lock()
        self._stats: Counter[str] = Counter()
        self._closed = False

    @property
    def stats(self) -> Counter[str]:
        """Counts of correct, wrong and unformatted completions so far."""
        with self._lock:
            return Counter(self._stats)

    def submit(self, text: str, gold: str) -> "Future[Score]":
        if self._closed:
            raise RuntimeError("this grader is closed")
        score = self._verifier.verify(text, gold)
        with self._lock:
            self._stats["correct" if score.correct else "wrong" if score.formatted else "unformatted"] += 1
        result: Future[Score] = Future()
        result.set_result(score)
        return result

    def close(self) -> None:
        self._closed = True


class Grader:
    """Grades each completion by its row's verifier. A context manager; usable from any thread.

    notes: what a run's header should say, such as the layers of the sandbox.
    """

    def __init__(self, reward: str, markers: dict[str, Marker], notes: Iterable[str] = ()):
        self._reward, self._markers, self.notes = reward, markers, tuple(notes)

    @property
    def stats(self) -> Counter[str]:
        """Counts of all verifiers together."""
        return sum((marker.stats for marker in self._markers.values()), Counter())

    def submit(self, text: str, problem: "Problem") -> "Future[Score]":
        """Future of a completion's score. Raises ValueError for a row that `fault_of_row` finds fault with."""
        if fault := _lacks(self._reward, problem):
            raise ValueError(f"problem {problem.id}, field {fault[0]!r}: {fault[1]}")
        name = verifier_of(self._reward, problem)
        return self._markers[name].submit(text, gold_of(name, problem))

    def same(self, problem: "Problem", one: str, other: str) -> bool:
        """Whether two predictions are the same answer; one that cannot be read equals none, not even itself.

        Programs are the same where they are equal as text.
        """
        name = verifier_of(self._reward, problem)
        try:
            if name == "math":
                return self._markers[name].submit(f"\\boxed{{{one}}}", other).result().correct
            if name == "code":
                return one == other
            read = DIRECT[name].read_gold
            return read(one) == read(other)
        except ValueError:
            return False

    def close(self) -> None:
        for marker in self._markers.values():
            marker.close()

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def make_grader(reward: "Reward", problems: "Iterable[Problem]" = (), runs_programs: bool = True) -> Grader:
    """The grader of a `reward` section; for `auto`, with the verifiers that `problems` name.

    runs_programs: False for one that only compares predictions (`same`), which needs no sandbox.

    Raises SandboxError where programs are to be run and this host cannot keep them in.
    """
    names = {problem.verifier for problem in problems} & set(VERIFIERS) if reward.name == AUTO else {reward.name}
    markers: dict[str, Marker] = {}
    notes = []
    if "code" in names and runs_programs:
        options = Options(reward.code.score, reward.code.feedback, True, reward.code.budget, reward.code.memory_mb)
        markers["code"] = pool = CodePool(reward.workers, options, reward.unsafe)
        notes.append(pool.note)
    if "math" in names:
        markers["math"] = MathPool(reward.workers, reward.seconds)
    return Grader(reward.name, markers | {name: Direct(DIRECT[name]) for name in names & DIRECT.keys()}, notes)


def require_sandbox(reward: "Reward") -> None:
    """Raises SandboxError where programs are to be run and cannot be kept in, so that a run is refused early."""
    CodePool(1, unsafe=reward.unsafe).close()


def verifier_of(reward: str, problem: "Problem") -> str | None:
    """The name of the verifier that grades a row under `reward.name`."""
    return problem.verifier if reward == AUTO else reward


def gold_of(name: str, problem: "Problem") -> str | None:
    """What a verifier compares with: a program's tests, or the answer."""
    return problem.tests if name == "code" else problem.answer


def gold_field(reward: str) -> str | None:
    """The field that every row must have under `reward.name`; None where that depends on the row."""
    return None if reward == AUTO else "tests" if reward == "code" else "answer"


def fault_of_row(reward: str, problem: "Problem") -> tuple[str, str] | None:
    """Field, and why the verifier of a row cannot grade by what is in it; None if it can."""
    if fault := _lacks(reward, problem):
        return fault
    name = verifier_of(reward, problem)
    fault = fault_of_gold(name, gold_of(name, problem))
    return None if fault is None else ("tests" if name == "code" else "answer", fault)


def fault_of_gold(name: str, gold: str) -> str | None:
    """Why the verifier of this name cannot use a gold answer; None if it can."""
    try:
        if name == "math":
            quick_grade(None, gold[:MAX_CHARS])  # the tests of a program that math is to grade may be megabytes
        elif name == "code":
            read_tests(gold)
        else:
            DIRECT[name].read_gold(gold)
    except ValueError as error:
        return str(error)
    return None


def _lacks(reward: str, problem: "Problem") -> tuple[str, str] | None:
    name = verifier_of(reward, problem)
    if name is None:
        return "verifier", "its data set does not say which verifier grades it, which reward.name auto needs"
    if name not in VERIFIERS:
        return "verifier", f"no verifier is called {name!r}; known: {', '.join(VERIFIERS)}"
    if gold_of(name, problem) is None:
        return ("tests", "it has no tests") if name == "code" else ("answer", "it has no answer")
    return None
