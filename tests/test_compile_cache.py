"""Compiled programs between starts: where they are kept, for how long, and that a folder in trouble stops nothing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jopsd import compile_cache
from jopsd.compile_cache import tidy, user_folder
from tests.runs import REPO

# Compiles a few programs and says what became of them.
COMPILES = """
import json, sys
import jax, jax.numpy as jnp
from jopsd import compile_cache
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
compile_cache.enable(several="several" in sys.argv)
values = [float(jax.jit(lambda x, n=n: jnp.sin(x + n).sum())(jnp.ones(8))) for n in range(4)]
hits = events.count("/jax/compilation_cache/cache_hits")
print(json.dumps({"hits": hits, "values": values, "folder": jax.config.jax_compilation_cache_dir}))
"""


def environment(cache: Path, **extra: str) -> dict[str, str]:
    """A user whose cache folder is `cache`, and who has named no other; programs of any size are kept."""
    own = {key: value for key, value in os.environ.items() if "CACHE" not in key}
    small = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": str(REPO), "XDG_CACHE_HOME": str(cache)}
    return own | small | extra


def begin(env: dict[str, str], *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-c", COMPILES, *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out) | {"said": err.splitlines()}


def compiles(env: dict[str, str], *arguments: str) -> dict:
    return end(begin(env, *arguments))


def programs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-cache"))


def test_the_second_start_finds_what_the_first_has_compiled(tmp_path):
    first, second = compiles(environment(tmp_path)), compiles(environment(tmp_path))
    assert first["folder"] == second["folder"] == str(tmp_path / "jopsd/xla")
    assert (first["hits"], second["hits"]) == (0, len(programs(tmp_path / "jopsd/xla")))
    assert second["hits"] >= 4 and first["values"] == second["values"]
    assert first["said"] == second["said"] == []
    assert (tmp_path / "jopsd/xla").stat().st_mode & 0o777 == 0o700, "what is in there is run"


def test_off_keeps_nothing_and_reads_nothing_even_where_a_folder_is_named(tmp_path):
    off = {"JOPSD_COMPILE_CACHE": "off", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "named")}
    for _ in range(2):
        assert compiles(environment(tmp_path, **off))["hits"] == 0
    assert list(tmp_path.iterdir()) == []


def test_a_named_folder_is_used_instead(tmp_path):
    env = environment(tmp_path / "user", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "named"))
    assert (compiles(env)["hits"], compiles(env, "several")["hits"]) == (0, len(programs(tmp_path / "named")))
    assert not (tmp_path / "user").exists()


def test_several_processes_of_one_run_keep_nothing_where_no_folder_is_named(tmp_path):
    assert compiles(environment(tmp_path), "several")["folder"] is None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line_and_no_failure(tmp_path):
    (tmp_path / "file").touch()
    found = compiles(environment(tmp_path / "file"))
    assert found["folder"] is None and len(found["values"]) == 4
    [line] = found["said"]
    assert line.startswith("note: compiled programs are not kept") and str(tmp_path / "file") in line
    assert "JAX_COMPILATION_CACHE_DIR" in line and "JOPSD_COMPILE_CACHE=off" in line


def test_a_full_folder_loses_the_programs_that_were_not_used_for_longest(tmp_path):
    folder = tmp_path / "jopsd/xla"
    compiles(environment(tmp_path))
    before = {path.name: path.stat().st_size for path in programs(folder)}
    limit = sum(before.values()) - 1
    folder.joinpath("jit_old-0-cache").write_bytes(bytes(100))
    folder.joinpath("jit_old-0-atime").write_bytes((1).to_bytes(8, "little"))
    flags = f"{os.environ['XLA_FLAGS']} --xla_cpu_enable_fast_math=true"  # other programs
    compiles(environment(tmp_path, JAX_COMPILATION_CACHE_MAX_SIZE=str(limit), XLA_FLAGS=flags))
    after = {path.name: path.stat().st_size for path in programs(folder)}
    assert sum(after.values()) <= limit and "jit_old-0-cache" not in after
    assert set(after) - set(before), "the new ones are there"


def test_processes_that_start_together_share_a_folder(tmp_path):
    both = [begin(environment(tmp_path)) for _ in range(2)]
    found = [end(process) for process in both]
    assert found[0]["values"] == found[1]["values"] and not found[0]["said"] + found[1]["said"]
    assert compiles(environment(tmp_path))["hits"] == len(programs(tmp_path / "jopsd/xla"))


# -------------------------------------------------------------------------------------------------- without compiling


def test_the_user_s_folder_is_where_the_system_keeps_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert user_folder({}, "linux") == Path("/home/me/.cache/jopsd/xla")
    assert user_folder({}, "darwin") == Path("/home/me/Library/Caches/jopsd/xla")
    assert user_folder({"XDG_CACHE_HOME": "/scratch/me"}, "linux") == Path("/scratch/me/jopsd/xla")
    assert user_folder({"XDG_CACHE_HOME": "not/absolute"}, "linux") == Path("/home/me/.cache/jopsd/xla")


def kept(folder: Path, name: str, used: float) -> None:
    folder.joinpath(f"{name}-cache").write_bytes(b"program")
    folder.joinpath(f"{name}-atime").write_bytes(bytes(8))
    os.utime(folder / f"{name}-atime", (used, used))


def test_tidying_removes_what_was_left_unfinished_and_jax_can_write_again(tmp_path):
    from jax._src.lru_cache import LRUCache

    kept(tmp_path, "jit_whole", time.time())
    (tmp_path / "jit_cut-cache").write_bytes(b"prog")  # killed before it wrote when this was used
    (tmp_path / "jit_cut_later-cache").write_bytes(b"program")
    (tmp_path / "jit_cut_later-atime").write_bytes(b"")
    (tmp_path / "jit_evicted-atime").write_bytes(bytes(8))
    (tmp_path / "xla_gpu_per_fusion_autotune_cache_dir").mkdir()
    cache = LRUCache(str(tmp_path), max_size=1000)
    with pytest.raises(FileNotFoundError):
        cache.put("jit_new", b"program")
    tidy(tmp_path)
    cache.put("jit_new", b"program")
    assert [path.name for path in programs(tmp_path)] == ["jit_new-cache", "jit_whole-cache"]
    assert len(list(tmp_path.glob("*-atime"))) == 2
    assert (tmp_path / "xla_gpu_per_fusion_autotune_cache_dir").is_dir()
    assert Path(cache.lock_path) == tmp_path / compile_cache._LOCK, "one lock for JAX and for us"


def test_tidying_keeps_so_many_of_the_programs_used_last(tmp_path):
    for number in range(5):
        kept(tmp_path, f"jit_{number}", 1000.0 + (number * 2) % 5)
    tidy(tmp_path, entries=2)
    assert [path.name for path in programs(tmp_path)] == ["jit_2-cache", "jit_4-cache"]
    assert len(list(tmp_path.iterdir())) == 5, "with the lock"


def test_a_switch_that_is_neither_on_nor_off_is_refused(monkeypatch):
    monkeypatch.setenv("JOPSD_COMPILE_CACHE", "/data/compiled")
    with pytest.raises(ValueError, match="'/data/compiled': give off, or on; a folder is named by JAX_COMPILATION"):
        compile_cache.enable()


COMMANDS = {
    "jopsd.train": ["--config", "configs/quickstart.yaml"],
    "jopsd.serve": ["--model", "builtin:sums", "--max-length", "64", "--port", "0"],
    "eval.__main__": ["--model", "builtin:sums", "--data", "sums:test", "--output", "evals"],
    "eval.analysis.__main__": ["entropy", "--rollouts", "runs", "--output", "analysis"],
    "convert.__main__": ["verify", "builtin:sums", "builtin:sums"],
}


@pytest.mark.parametrize("module", COMMANDS)
def test_every_command_that_compiles_keeps_its_programs(module, monkeypatch, capsys):
    def reached(**_):
        raise ValueError("kept")

    monkeypatch.chdir(REPO)
    monkeypatch.setattr(compile_cache, "enable", reached)
    command = __import__(module, fromlist=["main"])
    assert command.main(COMMANDS[module]) == 1
    assert capsys.readouterr().err.strip().endswith("error: kept")
