"""`python -m eval recompute DIR`: makes results.json again from what the folders keep, without drawing or grading."""

from collections.abc import Callable, Sequence
from pathlib import Path

from eval.records import GENERATIONS, SETTINGS, read_folder
from eval.report import write_results
from jopsd.data.problem import Problem
from jopsd.rewards.grader import make_grader
from jopsd.schema import Reward


def find_folders(root: Path) -> list[Path]:
    """Folders of evaluations at and under `root`. Raises FileNotFoundError where there is none."""
    found = sorted(path.parent for path in root.rglob(SETTINGS) if (path.parent / GENERATIONS).is_file())
    if not found:
        raise FileNotFoundError(f"{root} holds no evaluation (a folder with {SETTINGS} and {GENERATIONS})")
    return found


def recompute(root: Path, say: Callable[[str], None]) -> list[Path]:
    """Writes results.json of every complete evaluation under `root` again, and returns their folders.

    Grades are taken as they were saved; majorities are voted on again. An unfinished evaluation is named and left.
    """
    done = []
    for folder in find_folders(root):
        settings, problems, records = read_folder(folder)
        expected = len(problems) * settings["samples"]
        if len(records) < expected:
            say(f"{folder} has {len(records)} of {expected} samples: start its evaluation again to complete it")
            continue
        own = _problems(problems)
        with make_grader(Reward(name=settings["reward"]), own, runs_programs=False) as grader:
            write_results(folder, settings, problems, records, grader, own)
        done.append(folder)
    return done


def _problems(rows: Sequence[dict]) -> list[Problem]:
    return [
        Problem(
            row["problem_id"],
            row["problem"],
            answer=row["ground_truth"],
            verifier=row["verifier"],
            source=row["source"],
        )
        for row in rows
    ]
