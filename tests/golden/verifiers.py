"""What the published verifiers gave, against ours. Where ours differs on purpose, `jopsd.rewards.published` says why.

The documents are read as `python -m jopsd.rewards check` reads them; here mathematics is graded in this process, and
programs are not run.
"""

from collections.abc import Callable, Iterable

from eval.metrics import majority_correct
from jopsd.rewards import cases, choice, knights, math, tools
from jopsd.rewards.boxed import last_boxed
from jopsd.rewards.cases import Case
from jopsd.rewards.check import Verdict, outcome
from jopsd.rewards.published import absent, reason_for
from jopsd.rewards.score import Score

VERIFY: dict[str, Callable[[str, str], Score]] = {
    "math": math.verify,
    "knights": knights.verify,
    "choice": choice.verify,
    "tools": tools.verify,
}
NO_ANSWER = "[No boxed answer found]"


def verifier_rlcsd(document: list[dict]) -> list[str]:
    """Knights and Knaves, what is read of them too; and mathematics."""
    puzzles = [entry for entry in document if entry["data_source"].startswith("kk_")]
    parsed = [fault for entry in puzzles for fault in _faults_of_parsing(entry["response"], entry["parsed"])]
    return parsed + _faults(cases.verifier_rlcsd(document))


def verifier_mopd(document: list[dict]) -> list[str]:
    """Choices, tool calls and mathematics."""
    return _faults(cases.verifier_mopd(document))


def verifier_gopd(document: list[dict]) -> list[str]:
    """Mathematics."""
    return _faults(cases.verifier_gopd(document))


def grading(document: dict) -> list[str]:
    """Extraction, verdicts, rewards and majority votes of the OPSD family."""
    return _faults(cases.grading(document)) + _faults_of_votes(document["majority_vote_pw_rule"])


def kk_solver(document: list[dict]) -> list[str]:
    """All solutions of puzzles."""
    return _faults(cases.kk_solver(document))


def _faults(read: Iterable[Case]) -> list[str]:
    graded, faults = [case for case in read if case.verifier != "code"], []
    for case in graded:
        verdict = _verdict(case)
        if not outcome(case, verdict).agreed:
            faults.append(f"{case.id[:80]!r}: ours {verdict.ours!r}, published {case.expected!r}; {verdict.score}")
        if verdict.score is not None and float(verdict.score.correct) != verdict.score.reward:
            faults.append(f"{case.id[:80]!r}: reward {verdict.score.reward}")
    return faults + [f"{key} is listed, but is no case" for key in absent({case.key for case in graded if case.key})]


def _verdict(case: Case) -> Verdict:
    if case.verifier == "box":
        return Verdict(last_boxed(case.text), "", 0.0)
    if case.verifier == "solver":
        from jopsd.data.knights import solutions

        return Verdict(sorted(map(list, solutions(case.gold))), "", 0.0)
    try:
        score = VERIFY[case.verifier](case.text, case.gold)
    except ValueError:  # no gold answer
        return Verdict(False, "", 0.0)
    return Verdict(score.correct, "", 0.0, score)


def _faults_of_parsing(response: str, parsed: dict) -> list[str]:
    """An assignment that both read is the same; one that is read on purpose differently is left out."""
    try:
        ours = knights.read_assignment(last_boxed(response) or "")
    except ValueError:
        return []
    same = {name: "knight" if is_knight else "knave" for name, is_knight in ours.items()} == parsed
    return [] if same or reason_for("kk", response) else [f"{response!r}: read as {ours}, published {parsed}"]


def _faults_of_votes(votes: list[dict]) -> list[str]:
    same = lambda one, other: math.grade(one, other).correct  # noqa: E731
    faults = []
    for vote in votes:
        formatted = vote["formatted_flags"] or [True] * len(vote["predictions"])
        answers = [
            prediction if told and prediction and prediction.strip() and prediction != NO_ANSWER else None
            for prediction, told in zip(vote["predictions"], formatted, strict=True)
        ]
        right = [answer is not None and same(answer, str(vote["gold"])) for answer in answers]
        if bool(answers and majority_correct(answers, right, same)) != vote["majority_correct"]:
            faults.append(f"majority vote {vote['name']}: published {vote['majority_correct']}")
    return faults
