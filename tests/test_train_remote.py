"""Training whose rollouts come from servers in processes of their own, one of which is killed."""

import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from jopsd.config import load_config
from jopsd.setup import make_task
from tests import runs

REMOTE = ["--model", "builtin:sums", "--dtype", "float32", "--param-dtype", "float32", "--slots", "4", "--port", "0"]


@contextmanager
def servers(count, root, max_length, env):
    """`python -m jopsd.serve`, so many times, once all are ready: [(process, address)]."""
    command = [sys.executable, "-m", "jopsd.serve", *REMOTE, "--max-length", str(max_length), "--weights-root", root]
    started = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for _ in range(count)]
    try:
        yield [(process, _address(process)) for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()


def _address(process):
    for line in process.stderr:
        if "ready: " in line:
            return line.split(" on ")[1].split(",")[0]
    raise AssertionError(f"the server ended with {process.wait()}")


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit_when_one_of_its_servers_is_killed(tmp_path):
    env = runs.environment()
    local = runs.write_config(tmp_path, "local")
    runs.run(local, env)
    task = make_task(load_config(local))
    longest = max(len(item.prompts["student"]) for item in task.train + task.held_out) + 44
    with servers(2, tmp_path, longest, env) as (first, second):
        sampling = {"backend": "remote", "servers": [first[1], second[1]]}
        remote = runs.write_config(tmp_path, "remote", sampling=sampling)
        process = runs.start(remote, env)
        metrics = tmp_path / "remote" / "metrics.jsonl"
        while process.poll() is None and (not metrics.exists() or len(metrics.read_text().splitlines()) < 3):
            time.sleep(0.01)
        first[0].send_signal(signal.SIGKILL)
        log = remote.with_suffix(".log")
        assert process.wait(timeout=500) == 0, log.read_text()
        assert first[0].wait(timeout=60) == -signal.SIGKILL
        assert f"sampling: {first[1]} " in log.read_text()  # it was missed, so there was work left
        second[0].terminate()
        assert second[0].wait(timeout=60) == 0
    runs.assert_same_run(tmp_path / "local", tmp_path / "remote")
    dumps = [sorted((tmp_path / name / "samples").iterdir()) for name in ("local", "remote")]
    assert [path.name for path in dumps[0]] == [path.name for path in dumps[1]]
    for one, other in zip(*dumps, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert sorted(path.name for path in (tmp_path / "remote" / "weights").iterdir()) == ["3", "4"]
