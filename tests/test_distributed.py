"""Runs of several processes: two real ones of four CPU devices each, against one of eight."""

import os
import signal
import time

import jax
import numpy as np
import pytest

from jopsd import distributed
from jopsd.distributed import Layout, exchange, find_layout, share_of, together
from tests.runs import (
    checkpoint_arrays,
    end_together,
    environment,
    in_two_processes,
    rows,
    run,
    start_together,
    write_config,
)

STEPS = 6  # enough for a signal after the first to come before the last
MESH = {"data": 1, "fsdp": 4, "tensor": 2}
SMALL = {
    "mesh": MESH,
    "eval": None,
    "sampling": {"n": 2, "max_new_tokens": 24, "slots": 8, "chunk": 24},
    "checkpoint": {"every": 100},
    "log": {"tensorboard": False},
}


def close_runs(one, other):
    """Equal but for the order in which devices add."""
    ours, theirs = rows(one), rows(other)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-5), key
    a, b = checkpoint_arrays(one), checkpoint_arrays(other)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=2e-4, err_msg=name)


def wait_for_step(config, processes, step):
    metrics = config.with_suffix("") / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
        assert time.monotonic() < deadline and all(p.poll() is None for p in processes), logs(config)
        time.sleep(0.05)


def logs(config, processes=2):
    return "\n".join(config.with_suffix(f".{i}.log").read_text() for i in range(processes))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process that the others must equal."""
    config = write_config(tmp_path_factory.mktemp("alone"), **SMALL, train={"steps": STEPS})
    run(config, environment(8))
    return config.with_suffix("")


def test_two_processes_told_to_end_save_and_one_goes_on_as_if_nothing_had_been(alone, tmp_path):
    config = write_config(tmp_path, **SMALL, train={"steps": STEPS})
    processes = start_together(config)
    wait_for_step(config, processes, 1)
    processes[1].send_signal(signal.SIGTERM)
    assert end_together(config, processes) == [0, 0], logs(config)
    first, second = (config.with_suffix(f".{i}.log").read_text() for i in (0, 1))
    assert "told to end (SIGTERM): saved as step" in first
    assert f"step 1/{STEPS}" in first and f"step 1/{STEPS}" not in second, "one process logs"
    (saved,) = [int(p.name) for p in (config.with_suffix("") / "checkpoints").iterdir() if p.name.isdigit()]
    assert saved < STEPS
    assert f"after step {saved}" in run(config, environment(8))
    close_runs(config.with_suffix(""), alone)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jetstream", "loop"])
def test_two_processes_go_on_where_one_stopped(alone, tmp_path, backend):
    config = write_config(tmp_path, **SMALL, train={"steps": 1})
    run(config, environment(8))
    processes = start_together(config, f"train.steps={STEPS}", f"sampling.backend={backend}")
    assert end_together(config, processes) == [0, 0], logs(config)
    close_runs(config.with_suffix(""), alone)


@pytest.mark.slow
def test_all_weights_in_mini_batches_with_hints_by_peers_train_alike_in_two_processes(tmp_path):
    hints = {"name": "hints", "negatives": 2, "student_template": "Problem: {problem}", "instruction": ""}
    changes = SMALL | {
        "lora": None,
        "method": {"name": "rlcsd"},
        "context": hints | {"teacher_template": "Problem: {problem}\nReference Solution: {solution}"},
        # Long enough for some rollouts to be right, so that there are peers to show.
        "sampling": SMALL["sampling"] | {"n": 4, "max_new_tokens": 44},
        "train": {"steps": 2, "batch_size": 8, "mini_batch_size": 4},
        "optimizer": {"learning_rate": 1e-4},
        "eval": {"data": {"source": "sums:test", "limit": 3, "seed": 1}, "every": 2, "max_new_tokens": 44},
    }
    one, two = (write_config(tmp_path, name, **changes) for name in ("one", "two"))
    run(one, environment(8))
    processes = start_together(two)
    assert end_together(two, processes) == [0, 0], logs(two)
    close_runs(two.with_suffix(""), one.with_suffix(""))


@pytest.mark.slow
@pytest.mark.parametrize("lost", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_lost_process_ends_the_others_within_a_minute(tmp_path, lost):
    config = write_config(tmp_path, **SMALL, train={"steps": 500})
    processes = start_together(config)
    wait_for_step(config, processes, 1)
    processes[1].send_signal(lost)
    begin = time.monotonic()
    try:
        assert processes[0].wait(timeout=60) != 0
    finally:
        processes[1].kill()
        end_together(config, processes)
    assert time.monotonic() - begin < 60
    told = config.with_suffix(".0.log").read_text()
    assert "goes on from the newest checkpoint" in told or "tasks are unhealthy" in told


def test_rows_and_weights_find_their_places_where_devices_are_not_in_order_of_processes():
    in_two_processes(
        """
        import jax.numpy as jnp
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from jopsd.mesh import put_rows, relaid, sampling_mesh

        order = np.array(jax.devices())[[0, 4, 1, 5, 2, 6, 3, 7]]
        mesh = jax.sharding.Mesh(order.reshape(2, 4, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
        whole = np.arange(16 * 3).reshape(16, 3)
        rows = put_rows(whole, mesh)
        mine = sorted({row for shard in rows.addressable_shards for row in range(*shard.index[0].indices(16))})
        assert mine == [row for row in range(16) if row // 2 % 2 == jax.process_index()], mine
        with jax.set_mesh(mesh):
            weighed = jax.jit(lambda x: (x * jnp.arange(16)[:, None]).sum())(rows)
        assert int(weighed) == (whole * np.arange(16)[:, None]).sum()

        kernel = np.arange(2 * 8 * 8, dtype=np.float32).reshape(2, 8, 8)
        placed = jax.make_array_from_callback(
            kernel.shape, NamedSharding(mesh, P(None, "fsdp")), lambda index: kernel[index]
        )
        here = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
        home = sampling_mesh(mesh, here, None, 2)
        assert dict(home.shape) == {"data": 2, "fsdp": 1, "tensor": 2}
        moved = relaid({"q": placed}, mesh, home, "bfloat16")["q"]
        assert moved.sharding.mesh == home and moved.is_fully_addressable and moved.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.asarray(moved, np.float32), kernel.astype(jnp.bfloat16).astype(np.float32))
        """
    )


def test_an_error_in_one_process_is_an_error_in_all(tmp_path):
    config = write_config(tmp_path, **SMALL, train={"steps": STEPS})
    processes = start_together(config, devices=1)  # the mesh wants eight
    assert end_together(config, processes, timeout=120) == [1, 1], logs(config)
    for index in (0, 1):
        assert "does not fit 2 devices" in config.with_suffix(f".{index}.log").read_text()


SLURM = {"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "n[1-4]", "SLURM_STEP_NUM_NODES": "4"}


@pytest.mark.parametrize(
    ("flags", "environment", "layout"),
    [
        ((None, None, None), {}, None),
        (("h:1", 2, 0), {}, Layout("h:1", 2, 0)),
        (
            (None, None, None),
            {"JOPSD_COORDINATOR": "h:1", "JOPSD_PROCESSES": "2", "JOPSD_PROCESS": "1"},
            Layout("h:1", 2, 1),
        ),
        ((None, None, 0), {"JOPSD_COORDINATOR": "h:1", "JOPSD_PROCESSES": "2"}, Layout("h:1", 2, 0)),
        ((None, None, None), SLURM | {"SLURM_GPUS_ON_NODE": "8"}, Layout(local_devices=tuple(range(8)))),
        ((None, None, None), SLURM | {"SLURM_STEP_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8"}, Layout()),
        ((None, None, None), SLURM, Layout()),
        ((None, None, None), SLURM | {"SLURM_NTASKS": "1"}, None),
        ((None, None, None), {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),
    ],
)  # fmt: skip
def test_processes_are_found_by_flags_then_environment_then_cluster(flags, environment, layout):
    assert find_layout(*flags, {"JAX_PLATFORMS": "cpu", **environment}) == layout


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("h:1", 2, None), "--process is missing"),
        ((None, 2, 0), "--coordinator is missing"),
        (("h", 2, 0), "must look like host:port"),
        (("h:1", 2, 2), r"must be in 0..1"),
        (("h:1", "two", 0), "whole numbers"),
    ],
)
def test_flags_that_do_not_belong_together_are_refused(flags, told):
    with pytest.raises(ValueError, match=told):
        find_layout(*flags, {})


@pytest.mark.parametrize("count", [0, 1, 5, 8, 17])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_shares_are_disjoint_complete_and_even(monkeypatch, count, processes):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    shares = []
    for index in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        shares.append(list(share_of(count)))
    assert sum(shares, []) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_a_process_exchanges_with_itself():
    assert exchange({"a": 1}) == [{"a": 1}]
    assert together(lambda: 3) == 3
    with pytest.raises(KeyError):
        together(lambda: {}["x"])


def test_what_one_process_fails_at_is_told_by_all(monkeypatch):
    monkeypatch.setattr(distributed, "exchange", lambda value: [value, "ConfigError: no such file"])
    with pytest.raises(distributed.DistributedError, match="process 1 .* ConfigError: no such file"):
        together(lambda: 3)
    with pytest.raises(distributed.DistributedError, match="do not have the same config"):
        monkeypatch.setattr(distributed, "exchange", lambda value: [value, "other"])
        distributed.require_agreement("config", "this")


def test_a_folder_that_another_process_does_not_see_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "exchange", lambda value: [value, value])
    distributed.require_shared_folder(tmp_path / "run")
    monkeypatch.setattr(distributed, "exchange", lambda value: [value, False])
    with pytest.raises(distributed.DistributedError, match="process 1 does not see the files .* set output_dir"):
        distributed.require_shared_folder(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_process_without_the_others_says_what_to_check():
    code = (
        "from jopsd import distributed; distributed.START_WITHIN = 2\n"
        f"distributed.join(distributed.Layout('localhost:{os.getpid() % 1000 + 20000}', 2, 1))"
    )
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode and ("did not find each other" in done.stderr or "Deadline" in done.stderr), done.stderr
