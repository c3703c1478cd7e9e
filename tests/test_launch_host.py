"""launch/host.sh as a host of a TPU runs it: what launch/tpu.sh sends over ssh, in a home folder of its own."""

import os
import shlex
import time

import pytest

from tests.launching import REPO, Bench, option

TPU = REPO / "launch/tpu.sh"
WHERE = ("--name=pod", "--zone=us-east5-a", "--project=proj")
TRAINING = ("--", "--config", "configs/opsd.yaml", "output_dir=/mnt/jopsd/runs/one")


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path, "gcloud")


@pytest.fixture
def host(bench):
    """A home folder with the checkout in it, as on a host; commands from gcloud's --command run there."""
    (bench.folder / "jopsd").symlink_to(REPO)
    return bench


def on_host(bench, command: str, **more: str):
    return bench.run("bash", "-c", command, cwd=bench.folder, JOPSD_LOOK="1", **more)


AWKWARD = ['context.instruction=it\'s "so" $HOME `id` \\n; rm -rf x &&', "a.b=[1, 2]", "c= tab\tand\nline", "d=*"]


def test_arguments_with_spaces_quotes_and_dollars_reach_the_trainer_as_they_are(host):
    done = host.run(TPU, "run", *WHERE, "--env=JOPSD_TOKEN=a 'b' $c", *TRAINING, *AWKWARD)
    assert done.returncode == 0, done.stderr
    (argv,) = host.calls()
    done = on_host(host, option(argv, "--command"))
    assert done.returncode == 0, done.stderr
    (training,) = host.trainings()
    assert training["argv"] == ["-m", "jopsd.train", *TRAINING[1:], *AWKWARD]
    assert training["env"]["JOPSD_PLATFORM"] == "tpu" and training["env"]["JOPSD_SHARED"] == "/mnt/jopsd"
    assert training["env"]["JAX_COMPILATION_CACHE_DIR"] == "/mnt/jopsd/compiled"
    assert training["env"]["JOPSD_TOKEN"] == "a 'b' $c"


def test_a_run_is_started_once_however_often_the_connection_breaks_and_stops_at_one_sigterm(host):
    line = f"bash jopsd/launch/host.sh run -- {shlex.join(TRAINING[1:])}"
    assert "started" in on_host(host, line, TRAINER_SECONDS="60").stderr
    assert "already running" in on_host(host, line, TRAINER_SECONDS="60").stderr
    other = on_host(host, f"{line} seed=1")
    assert other.returncode == 1 and "another run is going on" in other.stderr
    assert "running as process" in on_host(host, "bash jopsd/launch/host.sh status").stdout
    (training,) = host.trainings()
    assert os.getsid(training["pid"]) != os.getsid(0)  # or it would end with the connection
    impatient = on_host(host, "bash jopsd/launch/host.sh stop", JOPSD_STOP_SECONDS="0")
    assert impatient.returncode == 1 and "still runs after 0 s" in impatient.stderr
    assert on_host(host, "bash jopsd/launch/host.sh stop").returncode == 0
    assert "ended with exit code 0" in on_host(host, "bash jopsd/launch/host.sh status").stdout
    assert "saved, told 1 times" in (host.folder / ".jopsd/log").read_text()


def test_a_run_that_ends_at_once_is_an_error_with_its_last_lines(host):
    done = on_host(host, f"bash jopsd/launch/host.sh run -- {shlex.join(TRAINING[1:])}", TRAINER_RC="1")
    assert done.returncode == 1 and "it ended at once" in done.stderr and "of a log" in done.stderr


def test_a_number_of_a_process_from_before_a_restart_is_not_taken_for_the_run(host):
    sleeper = host.start("sleep", "30")
    try:
        (host.folder / ".jopsd").mkdir()
        (host.folder / ".jopsd/pid").write_text(str(sleeper.pid))
        (host.folder / ".jopsd/words").write_text("x")
        assert "gone without an exit code" in on_host(host, "bash jopsd/launch/host.sh status").stdout
        on_host(host, "bash jopsd/launch/host.sh stop")
        time.sleep(0.1)
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_what_is_installed_is_the_committed_tree_under_its_commit(host):
    done = host.run(TPU, "install", *WHERE)
    assert done.returncode == 0, done.stderr
    commit = host.run("git", "rev-parse", "HEAD").stdout.strip()
    copy, install = host.calls()
    assert commit in copy[5] and copy[6] == "pod:" and option(copy, "--worker") == "all"
    assert option(install, "--command").endswith(f"bash jopsd/launch/host.sh install tpu {commit}")


def test_an_installation_replaces_the_old_tree_keeps_the_environment_and_is_done_once(bench):
    assert bench.run(TPU, "install", *WHERE).returncode == 0
    command = option(bench.calls()[-1], "--command")
    commit = command.split()[-1]
    tree = bench.folder / "jopsd"
    (tree / ".venv/bin").mkdir(parents=True)
    (tree / ".venv/bin/python").symlink_to(bench.trainer)
    (tree / "gone.py").touch()
    bench.run("tar", "-czf", bench.folder / f"jopsd-{commit}.tar.gz", "launch", "constraints.txt")
    done = on_host(bench, command)
    assert done.returncode == 0, done.stderr
    assert not (tree / "gone.py").exists() and (tree / "launch/host.sh").exists()
    first, second = (" ".join(call["argv"]) for call in bench.trainings())
    assert "--editable .[tpu] --constraint constraints.txt" in first
    makefile = (REPO / "Makefile").read_text()
    assert f"JETSTREAM = {second.split()[-1]}\n" in makefile and "--no-deps" in second
    assert on_host(bench, command).returncode == 0 and len(bench.trainings()) == 2


def test_an_installation_does_not_replace_the_tree_under_a_run(host):
    on_host(host, f"bash jopsd/launch/host.sh run -- {shlex.join(TRAINING[1:])}", TRAINER_SECONDS="60")
    host.run(TPU, "install", *WHERE)
    command = option(host.calls()[-1], "--command")
    done = on_host(host, command)
    on_host(host, "bash jopsd/launch/host.sh stop")
    assert done.returncode == 1 and "stop it first" in done.stderr
