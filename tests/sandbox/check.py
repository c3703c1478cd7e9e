"""Runs a program and says all that is wrong with what it did, inside and outside; as a script, many programs."""

import json
import os
import sys

from jopsd.rewards.sandbox import Sandbox, describe
from jopsd.rewards.sandbox.box import FIRST_UID
from tests.sandbox.cases import Case, complaints, load_cases, run_case
from tests.sandbox.outside import Outside, control_groups, processes

SLOT = 3000 + os.getpid() % 900  # with its user id another test's programs are unlikely to run
UIDS = frozenset(FIRST_UID + slot % 4096 for slot in (SLOT, SLOT + 10_000))


def check(case: Case, sandbox: Sandbox, outside: Outside) -> list[str]:
    """Complaints in words, none if all is well."""
    before = processes(UIDS).keys() | launchers(sandbox)
    try:
        wrong = complaints(case, run_case(case, sandbox, outside.words), sandbox.active)
    except Exception as error:
        wrong = [f"no verdict: {error!r}"]
    left = {number: name for number, name in processes(UIDS).items() if number not in before | launchers(sandbox)}
    wrong += [f"process {number} was left: {name}" for number, name in left.items()]
    return wrong + outside.changes()


def launchers(sandbox: Sandbox) -> set[int]:
    """Processes that stay while a sandbox is open."""
    both = [sandbox._launcher, sandbox._tester and sandbox._tester._launcher]
    return {launcher.pid for launcher in both if launcher is not None}


def left_after(sandbox: Sandbox, before: dict[int, str]) -> list[str]:
    """What is left of a sandbox once it is closed: processes that were not there before, and control groups."""
    sandbox.close()
    left = [f"process {number}: {name}" for number, name in processes(UIDS).items() if number not in before]
    return left + control_groups()


def main(names: list[str]) -> None:
    """Prints, as JSON, complaints by program and which layers were active."""
    before, wrong, skipped = processes(UIDS), {}, {}
    with Sandbox(SLOT) as sandbox, Outside() as outside:
        for case in load_cases():
            if case.name in names or not names:
                if reason := case.unfit(sandbox.active):
                    skipped[case.name] = reason
                else:
                    wrong[case.name] = check(case, sandbox, outside)
        layers = describe(sandbox.active, sandbox.missing)
    wrong["afterwards"] = left_after(sandbox, before)
    print(json.dumps({"layers": layers, "wrong": wrong, "skipped": skipped}))


if __name__ == "__main__":
    main(sys.argv[1:])
