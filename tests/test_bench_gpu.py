"""The benchmark for a GPU, on a toy and without one."""

import json
import subprocess
import sys

import pytest

from tests.runs import REPO, environment


@pytest.mark.slow
def test_a_quick_run_gives_every_number():
    command = [sys.executable, "-m", "bench.gpu", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    names = ["copy", "product", *["decode step", "prefill"] * 2, "update, LoRA", "update, all parameters"]
    assert [line["number"] for line in lines] == [*names, "attention, xla"]
    assert all(line["value"] > 0 for line in lines)
