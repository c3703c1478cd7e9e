"""`python -m jopsd.rewards check`: labelled cases in every format, and what a disagreement does to the exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jopsd.rewards.__main__ import main
from tests.sandboxed import needs_sandbox
from tests.test_graders import descendants

REPO = Path(__file__).resolve().parent.parent
PUBLIC = REPO.parent / "shared" / "data"
GOLDEN = REPO / "tests" / "golden"
PWNED = Path("/tmp/jopsd_pwned")
TESTS = {"inputs": ["1 2"], "outputs": ["3"], "testtype": "stdin"}
ADD = "```python\nprint(sum(map(int, input().split())))\n```"

RIGHT = [
    {"gold": "1/2", "output": "\\boxed{0.5}", "expected": True},
    {"gold": "7", "output_segments": [["\\boxed{", 300_000], ["so \\boxed{7}", 1]], "expected": True, "max_seconds": 5},
    {"gold": "1000", "output": "\\boxed{10,00}", "expected": False, "tier": "should"},
    {"verifier": "knights", "gold": "Ann is a knight", "output": "\\boxed{Ann is a knave}", "expected": False},
    {"verifier": "choice", "gold": "B", "output": "<answer>b</answer>", "expected": True},
    {"verifier": "code", "tests": TESTS, "output": ADD, "expected": True},
    {"verifier": "code", "tests": TESTS, "output": "```python\nimport os\nos._exit(0)\n```", "expected": False},
]


def write(folder: Path, rows, name: str = "cases.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@needs_sandbox
def test_cases_of_every_verifier_that_come_out_as_labelled_pass(tmp_path, capsys):
    assert main(["check", write(tmp_path, RIGHT), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "must 6 of 6" in printed and "should 1 of 1" in printed
    assert [line for line in descendants(os.getpid()) if "jopsd.rewards" in line] == []


@pytest.mark.parametrize(
    ("row", "status"),
    [
        ({"gold": "1/2", "output": "\\boxed{2}", "expected": True}, 1),
        ({"gold": "1/2", "output": "\\boxed{2}", "expected": True, "tier": "should"}, 0),
        ({"gold": "1/2", "output": "\\boxed{2}", "expected": True, "tier": "policy"}, 0),
        ({"gold": "x+1", "output": "\\boxed{1+x}", "expected": True, "max_seconds": 1e-9}, 1),
        ({"gold": "1/2", "output": "it is 1/2", "expected": True, "mode": "freetext"}, 0),
        ({"statements": [["lying", 1], ["lying", 0]], "solution": [True, False]}, 1),
        ({"statements": [["telling-truth", 1], ["lying", 1]], "solution": [True, True]}, 1),
    ],
)
def test_only_what_must_hold_and_does_not_is_a_failure(tmp_path, capsys, row, status):
    assert main(["check", write(tmp_path, [row]), "--workers", "1"]) == status
    if status:
        assert "disagreements:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"gold": "1", "output": "\\\\boxed{1}"}\n', "expected"),
        ('{"gold": "1", "output": \n', "line 1"),
        ('{"gold": "1", "output": "1", "expected": true, "verifier": "speech"}\n', "speech"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_row(tmp_path, capsys, content, named):
    path = tmp_path / "cases.jsonl"
    path.write_text(content)
    assert main(["check", str(path)]) == 2
    told = capsys.readouterr().err
    assert str(path) in told and named in told and "Traceback" not in told


def test_a_missing_file_is_named(tmp_path, capsys):
    assert main(["check", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err


def check_files(*files: Path) -> dict:
    command = [sys.executable, "-m", "jopsd.rewards", "check", "--json", *map(str, files)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert not PWNED.exists()
    return json.loads(done.stdout)


@needs_sandbox
def test_published_verdicts_come_out_but_for_those_contradicted_on_purpose():
    names = ["a/grading", "b/kk_solver", "b/verifier_gopd", "b/verifier_mopd", "b/verifier_rlcsd"]
    found = check_files(*(GOLDEN / f"{name}.json" for name in names))
    assert len(found["files"]) == len(names)


@pytest.mark.skipif(not PUBLIC.is_dir(), reason="needs shared/data")
def test_the_public_cases_come_out_as_labelled():
    files = [PUBLIC / f"{name}.jsonl" for name in ("verifier_public", "kk_public", "kk_verifier_public")]
    found = check_files(*files)
    for file in found["files"].values():
        for tier, (agreed, of) in file["tiers"].items():
            assert agreed >= {"must": 1.0, "solver": 1.0, "should": 0.97}.get(tier, 0.0) * of, tier


def test_answers_as_people_write_them_come_out_as_labelled():
    """Letters, plain functions, decorations, tails, inequalities, choices, stored decimals; right and wrong."""
    found = check_files(REPO / "tests" / "labelled" / "written.jsonl")
    (file,) = found["files"].values()
    assert len(file["categories"]) == 8


@pytest.mark.slow
def test_our_own_cases_of_mathematics_come_out_as_labelled():
    check_files(REPO / "tests" / "labelled" / "math.jsonl")
