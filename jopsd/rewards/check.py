"""Runs verifiers over labelled cases and reports where they agree: `python -m jopsd.rewards check`.

Mathematics goes through the pool, all cases at a time; what is cheap is graded in the calling thread.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

from jopsd.data.knights import solutions
from jopsd.rewards import choice, knights, tools
from jopsd.rewards.boxed import last_boxed
from jopsd.rewards.cases import PUBLISHED, SOLVER, Case
from jopsd.rewards.math import score
from jopsd.rewards.pool import Judgement, MathPool
from jopsd.rewards.published import absent, reason_for
from jopsd.rewards.score import Score

JUDGED = ("must", PUBLISHED, SOLVER)  # tiers in which a disagreement is a failure
SHOWN_CHARS = 100
SLOWEST = 5


class Verdict(NamedTuple):
    """What we say of a case: a boolean, or of an extraction its text, of a puzzle its solutions."""

    ours: Any
    stage: str
    seconds: float
    score: Score | None = None


class Outcome(NamedTuple):
    """A case and our verdict. agreed: as labelled, or contradicted as listed. late: over the case's max_seconds."""

    case: Case
    verdict: Verdict
    agreed: bool
    late: bool

    @property
    def failed(self) -> bool:
        return self.case.tier in JUDGED and (not self.agreed or self.late)


Judge = Callable[[Case], "Future[Verdict]"]


def run(cases: Sequence[Case], workers: int | None = None) -> list[Outcome]:
    """Outcomes in the order of the cases. workers: None for as many as there are usable cores.

    Raises what a verifier that cannot start raises (RuntimeError, ImportError).
    """
    with ExitStack() as stack:
        judges: dict[str, Judge] = {}
        for name in {case.verifier for case in cases}:
            judges[name] = _judge_of(name, workers, stack)
        futures = [judges[case.verifier](case) for case in cases]
        return [outcome(case, future.result()) for case, future in zip(cases, futures, strict=True)]


def _judge_of(verifier: str, workers: int | None, stack: ExitStack) -> Judge:
    """How cases of a verifier are judged. What it starts is ended with the stack."""
    if verifier == "math":
        return partial(_by_pool, stack.enter_context(MathPool(workers)))
    if verifier == "code":
        from jopsd.rewards.code_pool import CodePool

        return partial(_by_programs, stack.enter_context(CodePool(workers)))
    direct = {"knights": knights.verify, "choice": choice.verify, "tools": tools.verify}
    return partial(_directly, direct.get(verifier))


def _by_pool(pool: MathPool, case: Case) -> "Future[Verdict]":
    def verdict(judged: Judgement) -> Verdict:
        found = score(judged.prediction, judged.verdict.correct)
        return Verdict(found.correct, judged.verdict.stage, judged.verdict.seconds, found)

    try:
        return _then(pool.judge(case.text, case.gold), verdict)
    except ValueError:
        return _finished(Verdict(False, "unusable_gold", 0.0))


def _by_programs(pool: Any, case: Case) -> "Future[Verdict]":
    start = time.perf_counter()  # the programs before it are waited for too

    def verdict(found: Score) -> Verdict:
        stage = "program" if found.formatted else "unformatted"
        return Verdict(found.correct, stage, time.perf_counter() - start, found)

    try:
        return _then(pool.submit(case.text, case.gold), verdict)
    except ValueError:
        return _finished(Verdict(False, "unusable_gold", 0.0))


def _directly(verify: Callable[[str, str], Score] | None, case: Case) -> "Future[Verdict]":
    start = time.perf_counter()
    taken = lambda: time.perf_counter() - start  # noqa: E731
    if case.verifier == "box":
        return _finished(Verdict(last_boxed(case.text), "box", taken()))
    try:
        if verify is None:
            found = sorted(map(list, solutions(case.gold)))
            return _finished(Verdict(found, "solver", taken()))
        graded = verify(case.text, case.gold)
    except ValueError:
        return _finished(Verdict(False, "unusable_gold", taken()))
    return _finished(Verdict(graded.correct, "read" if graded.formatted else "unformatted", taken(), graded))


def _finished(verdict: Verdict) -> "Future[Verdict]":
    future: Future[Verdict] = Future()
    future.set_result(verdict)
    return future


def _then(source: Future, change: Callable[[Any], Verdict]) -> "Future[Verdict]":
    result: Future[Verdict] = Future()

    def finish(done: Future) -> None:
        if error := done.exception():
            result.set_exception(error)
        else:
            result.set_result(change(done.result()))

    source.add_done_callback(finish)
    return result


def outcome(case: Case, verdict: Verdict) -> Outcome:
    """Whether a verdict is as labelled, or contradicts its label as listed."""
    expected = sorted(map(list, case.expected)) if case.verifier == "solver" else case.expected
    right = verdict.ours == expected
    alike = right
    if verdict.score is not None:
        pairs = [(verdict.score.formatted, case.formatted), (verdict.score.feedback is not None, case.feedback)]
        alike = right and all(theirs in (None, ours) for ours, theirs in pairs)
    on_purpose = case.key is not None and reason_for(*case.key) is not None
    late = case.max_seconds is not None and verdict.seconds > case.max_seconds
    return Outcome(case, verdict, not right if on_purpose else alike, late)


# ------------------------------------------------------------------------------------------------------------ report


def report(outcomes: Sequence[Outcome], freetext: Sequence[Case] = ()) -> dict[str, Any]:
    """What the command prints, as JSON. freetext: cases that were not run, because no verifier here reads free text."""
    files: dict[str, Any] = {}
    for file in dict.fromkeys([o.case.file for o in outcomes] + [case.file for case in freetext]):
        mine = [o for o in outcomes if o.case.file == file]
        by_category = defaultdict(list)
        for outcome in mine:
            by_category[outcome.case.category].append(outcome)
        files[file] = {
            "tiers": _agreement(mine),
            "categories": {name: _agreement(group) for name, group in sorted(by_category.items())},
            "freetext_not_judged": sum(case.file == file for case in freetext),
        }
    slowest = sorted(outcomes, key=lambda o: -o.verdict.seconds)[:SLOWEST]
    purposes = Counter(reason_for(*o.case.key) for o in outcomes if o.case.key and reason_for(*o.case.key))
    lost = absent({o.case.key for o in outcomes if o.case.key})
    order = (*JUDGED, "should", "policy")
    differing = sorted((o for o in outcomes if not o.agreed or o.late), key=lambda o: order.index(o.case.tier))
    return {
        "ok": not lost and not any(o.failed for o in outcomes),
        "files": files,
        "stages": dict(Counter(o.verdict.stage for o in outcomes).most_common()),
        "slowest": [_shown(o) for o in slowest],
        "disagreements": [_shown(o) for o in differing],
        "contradicted_on_purpose": dict(purposes.most_common()),
        "listed_but_absent": [list(key) for key in lost],
    }


def _agreement(outcomes: Sequence[Outcome]) -> dict[str, list[int]]:
    """{tier: [agreed, of]}."""
    tiers = Counter(o.case.tier for o in outcomes)
    return {tier: [sum(o.agreed for o in outcomes if o.case.tier == tier), tiers[tier]] for tier in sorted(tiers)}


def _shown(outcome: Outcome) -> dict[str, Any]:
    case, verdict = outcome.case, outcome.verdict
    text = verdict.score.prediction if verdict.score and verdict.score.prediction is not None else case.text
    purpose = reason_for(*case.key) if case.key else None
    return {
        "file": case.file,
        "tier": case.tier,
        "id": case.id[:SHOWN_CHARS],
        "category": case.category,
        "gold": _short(case.gold),
        "output": _short(text),
        "ours": verdict.ours,
        "expected": case.expected,
        "stage": verdict.stage,
        "seconds": round(verdict.seconds, 3),
        "max_seconds": case.max_seconds,
        **({"listed": purpose} if purpose else {}),
    }


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS // 2]} ... {text[-SHOWN_CHARS // 2 :]}"


def as_text(found: dict[str, Any]) -> str:
    lines = []
    for file, parts in found["files"].items():
        tiers = ", ".join(f"{tier} {agreed} of {count}" for tier, (agreed, count) in parts["tiers"].items())
        lines.append(f"{file}: {tiers or 'nothing judged'}")
        if parts["freetext_not_judged"]:
            lines.append(
                f"  {parts['freetext_not_judged']} free-text cases not judged: answers are read from boxes only"
            )
        for name, of in parts["categories"].items():
            counts = "  ".join(f"{tier} {agreed}/{count}" for tier, (agreed, count) in of.items())
            lines.append(f"  {name or '-':32.70} {counts}")
    lines.append("stages: " + ", ".join(f"{name} {count}" for name, count in found["stages"].items()))
    lines.append("slowest:")
    for one in found["slowest"]:
        limit = "no limit" if one["max_seconds"] is None else f"of {one['max_seconds']:g} s"
        lines.append(f"  {one['seconds']:.2f} s ({limit})  {one['id']!r} {one['category']} [{one['stage']}]")
    for reason, count in found["contradicted_on_purpose"].items():
        lines.append(f"contradicted on purpose, {count}: {reason}")
    for kind, response in found["listed_but_absent"]:
        lines.append(f"FAIL {kind}: {response!r} is listed as contradicted on purpose, but is no case")
    if found["disagreements"]:
        lines.append("disagreements:")
    for one in found["disagreements"]:
        mark = "FAIL" if one["tier"] in JUDGED else one["tier"]
        purpose = f"; listed as contradicted ({one['listed']}), and is not" if "listed" in one else ""
        late = one["max_seconds"] is not None and one["seconds"] > one["max_seconds"]
        slow = f"; {one['seconds']:.1f} s, over {one['max_seconds']:g}" if late else ""
        lines.append(
            f"  {mark} {one['id']!r} {one['category']}: gold {one['gold']!r}, answer {one['output']!r}, "
            f"ours {one['ours']} [{one['stage']}], expected {one['expected']}{slow}{purpose}"
        )
    lines.append("all that must hold does" if found["ok"] else "NOT all that must hold does")
    return "\n".join(lines)
