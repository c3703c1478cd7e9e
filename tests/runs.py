"""Small training runs for the end-to-end tests: configs as dicts, runs as processes of their own."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import yaml

REPO = Path(__file__).resolve().parent.parent

TINY = {
    "model": {"path": "builtin:sums", "dtype": "float32", "remat": "none"},
    "lora": {"rank": 4, "alpha": 8},
    "method": {"name": "opsd", "alpha": 1.0, "temperature": 1.1},
    "context": {
        "student_template": "Problem: {problem}",
        "teacher_template": "Problem: {problem}\nReference Solution: {solution}",
        "instruction": "",
    },
    "data": {"source": "sums:train", "limit": 10},
    "sampling": {"max_new_tokens": 44, "slots": 4, "chunk": 8},
    "reward": {"workers": 1},
    "optimizer": {"learning_rate": 5e-3, "schedule": "constant"},
    "train": {"steps": 4, "batch_size": 4, "pad_to": 32, "token_chunk": 128},
    "eval": {"data": {"source": "sums:test", "limit": 4, "seed": 1}, "every": 2, "max_new_tokens": 44},
    "checkpoint": {"every": 1, "keep": None},
    "log": {"samples_every": 2},
}


def write_config(folder: Path, name: str = "run", base: dict = TINY, **changes) -> Path:
    """A config file whose output is folder/name. A dict in `changes` is merged into its section, else it replaces."""
    tree = {**base, "output_dir": str(folder / name)}
    for key, value in changes.items():
        merge = isinstance(value, dict) and isinstance(tree.get(key), dict) and "name" not in value
        tree[key] = {**tree[key], **value} if merge else value
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return path


def environment(devices: int = 1, **extra: str) -> dict[str, str]:
    """For a process of its own: one CPU device unless told otherwise, and cheap compilation."""
    cheap = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    flags = f"{cheap} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPO)} | extra


def start(config: Path, env: dict[str, str], *overrides: str, file_limit: int | None = None) -> subprocess.Popen:
    """Training in a process of its own, in the folder of its config. Output goes to <config>.log, appended.

    file_limit: writing more bytes than this to one file fails.
    """
    command = [sys.executable, "-m", "jopsd.train", "--config", str(config), *overrides]
    if file_limit:
        command = ["bash", "-c", f'ulimit -f {file_limit // 1024}; exec "$@"', "bash", *command]
    with config.with_suffix(".log").open("a") as log:
        return subprocess.Popen(command, cwd=config.parent, env=env, stdout=log, stderr=subprocess.STDOUT)


def start_together(config: Path, *overrides: str, processes: int = 2, devices: int = 4) -> list[subprocess.Popen]:
    """Training in several processes of so many CPU devices each. Output goes to <config>.<process>.log."""
    commands = [sys.executable, "-m", "jopsd.train", "--config", str(config), *overrides]
    joined = ["--coordinator", f"localhost:{free_port()}", "--processes", str(processes)]
    started = []
    for index in range(processes):
        with config.with_suffix(f".{index}.log").open("w") as log:
            command = [*commands, *joined, "--process", str(index)]
            env = environment(devices)
            started.append(subprocess.Popen(command, cwd=config.parent, env=env, stdout=log, stderr=subprocess.STDOUT))
    return started


def end_together(config: Path, processes: list[subprocess.Popen], timeout: float = 400) -> list[int]:
    """Exit codes. A process still there after `timeout` seconds is killed."""
    deadline = time.monotonic() + timeout
    try:
        return [process.wait(timeout=max(deadline - time.monotonic(), 0.1)) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def run(config: Path, env: dict[str, str], *overrides: str, fails: bool = False, file_limit: int | None = None) -> str:
    """Trains to the end and returns what it printed. fails: it must exit with 1 instead of 0."""
    log = config.with_suffix(".log")
    skip = log.stat().st_size if log.exists() else 0
    code = start(config, env, *overrides, file_limit=file_limit).wait(timeout=500)
    text = log.read_bytes()[skip:].decode()
    assert code == int(fails), text
    return text


def kill_when(config: Path, env: dict[str, str], moment: Callable[[], bool], *overrides: str) -> bool:
    """Starts training and kills it with SIGKILL once `moment()` holds. False: it ended before that."""
    process = start(config, env, *overrides)
    try:
        deadline = time.monotonic() + 300
        while process.poll() is None:
            assert time.monotonic() < deadline, "the moment never came"
            if moment():
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.0005)
        return process.wait(timeout=60) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()


def rows(run_dir: Path) -> list[dict]:
    """metrics.jsonl, every line strict JSON, without the clock."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    parsed = [json.loads(line, parse_constant=refuse) for line in lines]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in parsed]


def series(run_dir: Path, key: str) -> list[float]:
    return [row[key] for row in rows(run_dir) if key in row]


def checkpoint_arrays(run_dir: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """Every array of a checkpoint (the newest) by its path, read by orbax alone."""
    import jax
    import orbax.checkpoint as ocp

    folders = {int(p.name): p for p in (run_dir / "checkpoints").iterdir() if p.name.isdigit()}
    folder = folders[step or max(folders)] / "state"
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as reader:
        stored = reader.metadata(folder).item_metadata.tree
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), stored)
        state = reader.restore(folder, like)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_flatten_with_path(state)[0]}


def assert_same_run(one: Path, other: Path) -> None:
    """Metrics and the newest checkpoint agree in every bit."""
    assert rows(one) == rows(other)
    a, b = checkpoint_arrays(one), checkpoint_arrays(other)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


_IN_TWO = """
import sys
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
rank, port, *arguments = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", 2, int(rank))
mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(1, 4, 2), ("data", "fsdp", "tensor"))
"""


def in_two_processes(code: str, *arguments) -> None:
    """Runs code in two processes of four devices each, joined by jax.distributed; it finds `arguments` and `mesh`."""
    port = str(free_port())
    script = [sys.executable, "-c", _IN_TWO + textwrap.dedent(code)]
    both = [
        subprocess.Popen(
            [*script, str(rank), port, *map(str, arguments)],
            env=environment(XLA_FLAGS=""),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], "\n".join(outputs)


def write_rows(path: Path, table: Sequence[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    return path
