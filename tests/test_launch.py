"""The shell scripts as such, Slurm, the image, processes on one machine, the environment, and the page on all of it."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from jopsd.config import load_config
from tests.launching import AWKWARD, REPO, Bench, alive, option

LAUNCH = REPO / "launch"
SLURM, LOCAL = LAUNCH / "slurm.sbatch", LAUNCH / "local.sh"
SCRIPTS = sorted(path.relative_to(REPO).as_posix() for path in [*LAUNCH.glob("*.sh"), SLURM])
TRAINING = ("--config", "configs/opsd.yaml", "output_dir=/mnt/jopsd/runs/one")


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path, "gcloud", "kubectl", "xpk", "srun", "scontrol")


# ---------------------------------------------------------------------------------------------------------------- shell


def test_scripts_pass_shellcheck():
    program = shutil.which("shellcheck") or shutil.which("shellcheck", path=Path(sys.executable).parent)
    if program is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([program, "-x", *SCRIPTS], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_short_and_those_that_run_stop_at_the_first_error(name):
    text = (REPO / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 250 and max(map(len, text.splitlines())) <= 120
    if text.startswith("#!"):
        assert "\nset -euo pipefail\n" in text and (REPO / name).stat().st_mode & 0o111
    else:
        assert text.startswith("# shellcheck shell=bash\n")


@pytest.mark.parametrize("words", [("a b", "it's", 'say "so"', "$HOME `id` \\", "", "*", "tab\tline\nend", "-x", "é")])
def test_quoted_words_are_read_back_by_a_shell_and_by_yaml(bench, words):
    library = f"source {LAUNCH}/lib.sh"
    quoted = bench.run("bash", "-c", f'{library}; quoted "$@"', "-", *words).stdout
    assert tuple(shlex.split(quoted)) == words
    echoed = bench.run("bash", "-c", f"for word in {quoted}; do printf '%s\\0' \"$word\"; done").stdout
    assert tuple(echoed.split("\0")[:-1]) == words
    assert tuple(yaml.safe_load(bench.run("bash", "-c", f'{library}; yaml_list "$@"', "-", *words).stdout)) == words


# ---------------------------------------------------------------------------------------------------------------- Slurm


def slurm(bench, rc: int, **more: str):
    bench.play(["srun", [{"rc": rc}]], ["hostnames", [{"out": "n1\nn2\n"}]])
    job = {
        "SLURM_SUBMIT_DIR": str(REPO),
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_CPUS_ON_NODE": "96",
    }
    return bench.run(SLURM, *TRAINING, **job, **more)


def requeued(bench) -> bool:
    return ["scontrol", "requeue", "77"] in bench.calls()


def test_a_job_asks_for_one_task_a_node_a_signal_before_its_end_and_to_be_requeued():
    text = SLURM.read_text(encoding="utf-8")
    directives = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", text, re.MULTILINE))
    assert directives["signal"] == "TERM@300" and "requeue" in directives and directives["open-mode"] == "append"
    assert directives["ntasks-per-node"] == "1" and directives["gpus-per-node"] == "8"
    assert text.index("set -euo") > text.rindex("#SBATCH")  # Slurm reads none after the first command


def test_a_job_runs_the_trainer_on_every_node_and_ends_as_it_does(bench):
    assert slurm(bench, 0).returncode == 0 and not requeued(bench)
    (argv,) = [argv for argv in bench.calls() if argv[0] == "srun"]
    assert argv[-5:] == ["-m", "jopsd.train", *TRAINING]
    assert option(argv, "--cpus-per-task") == "96"
    assert slurm(bench, 1).returncode == 1 and not requeued(bench)


def test_a_job_that_was_told_to_end_goes_back_into_the_queue(bench):
    assert slurm(bench, 143).returncode == 0 and requeued(bench)


def test_a_job_without_a_shared_output_is_refused_before_it_takes_the_nodes(bench):
    done = bench.run(SLURM, *TRAINING[:2], SLURM_SUBMIT_DIR=str(REPO))
    assert done.returncode == 1 and "not an absolute path" in done.stderr and bench.calls() == []


# ------------------------------------------------------------------------------------------------ image and one machine


def dockerfile() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (LAUNCH / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [tuple(line.split(None, 1)) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def test_the_image_is_pinned_runs_as_a_user_and_starts_without_a_shell():
    lines = dockerfile()
    bases = [rest.split()[0] for word, rest in lines if word == "FROM"]
    assert len(bases) == 2 and all(re.fullmatch(r"python:3\.\d+-slim-\w+", base) for base in bases)
    last = len(lines) - 1 - [word for word, _ in lines][::-1].index("FROM")
    final = lines[last:]
    ((user,),) = [[rest for word, rest in final if word == "USER"]]
    assert user.split(":")[0] not in ("0", "root")
    (entry,) = [rest for word, rest in lines if word == "ENTRYPOINT"]
    assert json.loads(entry) == ["/app/launch/container.sh"]  # a list, which no shell reads
    installs = [part for word, rest in lines if word == "RUN" for part in rest.split("&&") if "pip install" in part]
    assert all("--constraint constraints.txt" in i or re.search(r"--no-deps \S+==[\d.]+", i) for i in installs)
    assert all("--no-cache-dir" in install for install in installs)
    assert re.search(r"JETSTREAM = (\S+)", (REPO / "Makefile").read_text())[1] in installs[-1]


def test_what_the_image_copies_is_there_and_is_not_ignored():
    kept = {line[1:] for line in (REPO / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        path for word, rest in dockerfile() if word == "COPY" and "--from" not in rest for path in rest.split()[:-1]
    }
    assert copied == kept and all((REPO / path).exists() for path in kept)


def started(bench, count: int = 1) -> list[dict]:
    deadline = time.time() + 10
    while len(bench.trainings()) < count and time.time() < deadline:
        time.sleep(0.02)
    return bench.trainings()


def test_the_container_passes_sigterm_on_and_does_not_end_as_a_job_that_is_done(bench):
    process = bench.start(LAUNCH / "container.sh", *TRAINING, TRAINER_SECONDS="60")
    (training,) = started(bench)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=10)
    assert process.returncode == 143 and "saved, told 1 times" in out and not alive(training["pid"])


@pytest.mark.parametrize("rc", [0, 1, 7])
def test_the_container_ends_as_the_training_did(bench, rc):
    done = bench.run(LAUNCH / "container.sh", *TRAINING, TRAINER_RC=str(rc))
    assert done.returncode == rc
    assert bench.trainings()[0]["argv"] == ["-m", "jopsd.train", *TRAINING]


def test_local_processes_share_a_coordinator_and_have_a_number_each(bench):
    done = bench.run(LOCAL, "3", *TRAINING, *AWKWARD, JOPSD_PORT="4321", JOPSD_DEVICES="2")
    assert done.returncode == 0, done.stderr
    trainings = sorted(bench.trainings(), key=lambda t: t["argv"])
    for index, training in enumerate(trainings):
        joined = ["--coordinator", "127.0.0.1:4321", "--processes", "3", "--process", str(index)]
        assert training["argv"] == ["-m", "jopsd.train", *joined, *TRAINING, *AWKWARD]
        assert training["env"]["JAX_PLATFORMS"] == "cpu" and training["env"]["JAX_NUM_CPU_DEVICES"] == "2"
    assert len(trainings) == 3


def test_local_processes_are_all_told_to_end(bench):
    process = bench.start(LOCAL, "2", *TRAINING, JOPSD_PORT="4321", TRAINER_SECONDS="60")
    trainings = started(bench, 2)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=10)
    assert process.returncode == 0 and out.count("saved, told 1 times") == 2
    assert not any(alive(training["pid"]) for training in trainings)


def test_a_local_process_that_dies_ends_the_others_and_the_run_fails(bench):
    process = bench.start(LOCAL, "2", *TRAINING, JOPSD_PORT="4321", TRAINER_SECONDS="60")
    first, second = started(bench, 2)
    os.kill(first["pid"], signal.SIGKILL)
    process.communicate(timeout=10)
    assert process.returncode == 137 and not alive(second["pid"])


@pytest.mark.parametrize("platform", ["tpu", "gpu", "cpu"])
def test_the_environment_keeps_what_is_set_and_adds_what_a_platform_wants(bench, platform):
    given = {"JOPSD_PLATFORM": platform, "JOPSD_SHARED": "/s", "XLA_FLAGS": "--mine=1", "JAX_PLATFORMS": ""}
    done = bench.run(LAUNCH / "one_host.sh", *TRAINING, **given)
    assert done.returncode == 0, done.stderr
    environment = bench.trainings()[0]["env"]
    assert environment["JAX_COMPILATION_CACHE_DIR"] == "/s/compiled"
    assert environment["XLA_FLAGS"].split()[-1] == "--mine=1"
    assert ("--xla_gpu" in environment["XLA_FLAGS"]) == (platform == "gpu")
    assert environment["JAX_PLATFORMS"] == ("tpu,cpu" if platform == "tpu" else "")
    assert ("XLA_PYTHON_CLIENT_MEM_FRACTION" in environment) == (platform == "gpu")


@pytest.mark.slow
def test_this_jax_knows_the_xla_flags(bench):
    done = bench.run("bash", "-c", f'source {LAUNCH}/env.sh && printf %s "$XLA_FLAGS"', JOPSD_PLATFORM="gpu")
    code = "import jax; jax.numpy.ones(1).sum()"
    environment = {**os.environ, "XLA_FLAGS": done.stdout, "JAX_PLATFORMS": "cpu"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=120).returncode == 0


# ------------------------------------------------------------------------------------------------- configs and the page


@pytest.mark.parametrize("name", ["qwen3_8b_lora_16k", "qwen3_8b_full_16k"])
def test_configs_of_several_hosts_split_over_their_mesh(name):
    path = REPO / f"configs/scale/{name}.yaml"
    config = load_config(path)
    assert config.sampling.max_new_tokens == 16384 and config.model.path == "Qwen/Qwen3-8B"
    text = path.read_text(encoding="utf-8")
    assert "TPU" in text and "GPU" in text and f"--config configs/scale/{name}.yaml" in text
    fsdp = int(re.search(r"mesh below is fsdp (\d+), context (\d+)", text)[1])
    assert config.micro_rows % fsdp == 0 and config.train.pad_to % config.mesh.context == 0


def test_the_page_shows_every_launcher_and_its_commands_can_be_run_dry(bench):
    page = (REPO / "docs/launching.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"launch/[\w.]+\.(?:sh|sbatch)", page))
    internal = {"launch/lib.sh", "launch/tpu_lib.sh"}
    assert shown >= set(SCRIPTS) - internal
    blocks = "".join(re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    lines = [line for line in blocks.splitlines() if re.match(r"launch/(tpu|gke|xpk)\.sh", line)]
    assert len(lines) >= 8
    prelude = "\n".join(line for line in blocks.splitlines() if re.match(r"(export|\w+=\()", line))
    for line in lines:
        line = line.split("  #")[0].replace(".sh ", ".sh --dry-run ", 1)
        line = re.sub(r"^(\S+) --dry-run (\w+)", r"\1 \2 --dry-run", line)
        done = bench.run("bash", "-c", f"{prelude}\n{line}")
        assert done.returncode == 0, (line, done.stderr)
    assert bench.calls() == []
