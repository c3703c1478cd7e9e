"""The sandbox under attack: hostile programs do nothing outside and never pass, honest ones pass, nothing is left.

The programs and what stands outside are in `tests/sandbox/`.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from itertools import combinations
from pathlib import Path

import pytest

from jopsd.rewards.sandbox import LAYERS, Limits, Sandbox, SandboxError, describe, unguarded

from .sandbox.cases import load_cases, run_case
from .sandbox.check import SLOT, UIDS, check, launchers, left_after
from .sandbox.outside import Outside, control_groups, processes

REPO = Path(__file__).resolve().parent.parent
ALL = frozenset(LAYERS)
CASES = load_cases()


def layer_sets() -> dict[str, frozenset[str]]:
    """All layers; all but one where that is enough; and the smallest sets that are enough."""
    sets = {"all": ALL} | {f"without-{name}": ALL - {name} for name in LAYERS if not unguarded(ALL - {name})}
    enough = [set(c) for n in range(len(ALL)) for c in combinations(LAYERS, n) if not unguarded(frozenset(c))]
    smallest = [wanted for wanted in enough if not any(other < wanted for other in enough)]
    return sets | {f"only-{'-'.join(sorted(wanted))}": frozenset(wanted) for wanted in smallest}


SAFE_SETS = layer_sets()
LAYER_SETS = SAFE_SETS | {"bare": frozenset({"rlimits"})}


def programs_by_layers() -> list:
    """Every program with every set of layers; by default all with all layers, and a core of them without one."""
    return [
        pytest.param(layers, case, id=f"{layers}-{'attack' if case.attack else 'honest'}-{case.name}", marks=marks)
        for layers in SAFE_SETS
        for case in CASES
        for quick in [layers == "all" or (layers.startswith("without") and "core" in case.head)]
        for marks in [() if quick and "slow" not in case.head else pytest.mark.slow]
    ]


class Boxes:
    """One sandbox at a time, for the set of layers that was asked for last."""

    def __init__(self) -> None:
        self._before, self._layers, self._sandbox, self._why_not = processes(UIDS), "", None, ""

    def get(self, layers: str) -> Sandbox:
        if layers != self._layers:
            self.close()
            self._layers, self._why_not = layers, ""
            try:
                self._sandbox = Sandbox(SLOT, LAYER_SETS[layers], unsafe=layers == "bare")
            except SandboxError as error:
                self._why_not = str(error)
        if self._sandbox is None:
            pytest.skip(self._why_not)
        lacking = LAYER_SETS[layers] - self._sandbox.active
        if lacking and layers.startswith("only"):
            pytest.skip(f"not this set of layers: {describe(self._sandbox.active, self._sandbox.missing)}")
        return self._sandbox

    def close(self) -> None:
        if self._sandbox is not None:
            sandbox, self._sandbox = self._sandbox, None
            assert left_after(sandbox, self._before) == []


@pytest.fixture(scope="module")
def outside():
    with Outside() as outside:
        yield outside


@pytest.fixture(scope="module")
def boxes(outside):
    boxes = Boxes()
    yield boxes
    boxes.close()


@pytest.fixture
def sandbox(boxes) -> Sandbox:
    return boxes.get("all")


# ---------------------------------------------------------------------------------------------------------- programs


def test_every_family_of_attacks_has_an_honest_program_that_does_the_like():
    attacks, honest = [c for c in CASES if c.attack], [c for c in CASES if not c.attack]
    assert len(attacks) >= 50
    assert {c.head["family"] for c in attacks} <= {c.head["family"] for c in honest}


@pytest.mark.parametrize(("layers", "case"), programs_by_layers())
def test_an_attack_fails_without_a_trace_and_an_honest_program_passes(layers, case, boxes, outside):
    box = boxes.get(layers)
    if reason := case.unfit(box.active):
        pytest.skip(reason)
    assert check(case, box, outside) == []


@pytest.mark.parametrize("case", [case for case in CASES if "alone" in case.head], ids=lambda case: case.name)
def test_an_attack_is_one_where_nothing_but_limits_holds_it(case, boxes, outside):
    box, passed = boxes.get("bare"), False
    with contextlib.suppress(SandboxError):  # some end the box
        passed = run_case(case, box, outside.words).passed
    changes = outside.changes()
    assert changes if case.head["alone"] == "acts" else passed


# ------------------------------------------------------------------------------------------------------------ layers


def test_no_program_runs_where_the_layers_are_not_enough_unless_that_is_asked_for():
    with pytest.raises(SandboxError, match="files of the host, the network, other processes"):
        Sandbox(SLOT, frozenset({"rlimits"}))
    with pytest.raises(SandboxError, match="time and memory"):
        Sandbox(SLOT, ALL - {"rlimits"})
    with Sandbox(SLOT, frozenset({"rlimits"}), unsafe=True) as box:
        assert box.run("print(7)").value == "7\n"


def user_commands() -> dict[str, list[str]]:
    """Ways to start a Python that is root in name only."""
    return {
        "root without capabilities": ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"],
        "root of one user id": ["unshare", "--user", "--map-root-user"],
    }


@pytest.mark.parametrize("kind", user_commands())
def test_where_root_has_no_rights_honest_programs_run_or_all_are_refused(kind):
    command = user_commands()[kind]
    if shutil.which(command[0]) is None or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip(f"{command[0]} cannot do this here")
    code = (
        "from jopsd.rewards.sandbox import *\n"
        "try: box = Sandbox()\n"
        "except SandboxError as error: print('refused', error)\n"
        "else: print(box.run('print(7)')); box.close()\n"
    )
    done = subprocess.run([*command, sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=100)
    assert "value='7\\n'" in done.stdout or done.stdout.startswith("refused"), done.stdout + done.stderr


def test_an_ordinary_user_is_guarded_too():
    if os.geteuid() != 0:
        pytest.skip("the other tests already run as an ordinary user")
    root = Path(tempfile.mkdtemp(prefix="jopsd-"))
    as_user = {"user": 65534, "group": 65534, "extra_groups": [], "cwd": root, "capture_output": True, "text": True}
    try:
        for name in ("jopsd/__init__.py", "jopsd/rewards/__init__.py", "tests/__init__.py"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPO / name, root / name)
        for name in ("jopsd/rewards/sandbox", "tests/sandbox"):
            shutil.copytree(REPO / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        subprocess.run(["chmod", "-R", "a+rX", root], check=True)
        python = usable_python(as_user)
        core = [case.name for case in CASES if "core" in case.head]
        done = subprocess.run([python, "-B", "-m", "tests.sandbox.check", *core], env={}, timeout=200, **as_user)
    finally:
        shutil.rmtree(root)
    if "this host cannot keep programs away" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    report = json.loads(done.stdout or "{}")
    assert report, done.stderr
    assert len(report["wrong"]) > 20
    assert {name: wrong for name, wrong in report["wrong"].items() if wrong} == {}, report["layers"]


def usable_python(as_user: dict) -> str:
    for python in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            new_enough = "import sys; sys.exit(sys.version_info < (3, 11))"
            if subprocess.run([python, "-c", new_enough], env={}, **as_user).returncode == 0:
                return python
    pytest.skip("no Python 3.11 that an ordinary user can run")


# --------------------------------------------------------------------------------------------------- from run to run

LEAVE = """
import ctypes, os, platform
for path in ("/tmp/left", "/w/left", "/dev/shm/left", "/var/tmp/left", "left"):
    try:
        open(path, "w").write("left")
    except OSError:
        pass
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
segment = libc.shmget(0x6A6F, 4096, 0o1600)
if segment >= 0:
    ctypes.memmove(libc.shmat(segment, None, 0), b"left", 4)
queue = libc.msgget(0x6A6F, 0o1600)
libc.msgsnd(queue, b"\\1\\0\\0\\0\\0\\0\\0\\0left", 4, 0o4000)
add_key = {"x86_64": 248, "aarch64": 217}[platform.machine()]
libc.syscall(add_key, b"user", b"jopsd-left", b"left", 4, -3)
os.environ["LEFT"] = "left"
"""
FIND = """
import ctypes, os, platform
found = [path for path in ("/tmp/left", "/w/left", "/dev/shm/left", "/var/tmp/left", "left") if os.path.exists(path)]
libc = ctypes.CDLL(None)
if libc.shmget(0x6A6F, 4096, 0o600) >= 0:
    found.append("shared memory")
if libc.msgget(0x6A6F, 0o600) >= 0:
    found.append("message queue")
keyctl = {"x86_64": 250, "aarch64": 219}[platform.machine()]
if libc.syscall(keyctl, 10, -3, b"user", b"jopsd-left", 0) >= 0:
    found.append("session keyring")
print(found, os.environ.get("LEFT"))
"""


@pytest.mark.parametrize("layers", [name for name in SAFE_SETS if not name.startswith("only")])
def test_a_program_finds_nothing_that_another_one_left(layers, boxes):
    box = boxes.get(layers)
    box.run(LEAVE)
    assert box.run(FIND).value == "[] None\n"


def test_children_of_one_run_do_not_count_against_the_next(boxes):
    fork = (
        "import os, time\nmade = 0\ntry:\n    for _ in range(40):\n        if os.fork() == 0:\n"
        "            time.sleep(60)\n        made += 1\nexcept OSError:\n    pass\nprint(made)"
    )
    with boxes.get("without-seccomp").script(fork) as script:
        assert [script.run().value for _ in range(4)] == ["40\n"] * 4


def test_inputs_of_one_program_are_run_apart_and_a_bad_run_does_not_spoil_the_next(sandbox):
    program = "import os\nn = int(input())\nif n == 1:\n    os._exit(3)\nif n == 2:\n    while True: pass\nprint(n * n)"
    with sandbox.script(program) as script:
        outcomes = [script.run(f"{n}\n", Limits(seconds=0.3)) for n in (3, 1, 4, 2, 5)]
    assert [outcome.status for outcome in outcomes] == ["ok", "error", "ok", "timeout", "ok"]
    assert [outcome.value for outcome in outcomes] == ["9\n", None, "16\n", None, "25\n"]


def test_a_module_keeps_its_state_until_a_call_ends_its_process(sandbox):
    source = "import os\nseen = []\ndef f(x):\n    seen.append(x)\n    if x < 0: os._exit(0)\n    return seen"
    with sandbox.module(source) as module:
        outcomes = [module.call("f", [x]) for x in (1, 2, -1, 3)]
    assert [outcome.value for outcome in outcomes] == [[1], [1, 2], None, [3]]
    assert outcomes[2].status == "crash"


def test_no_verdict_of_tests_is_lost_however_soon_they_end(sandbox):
    statuses = []
    for _ in range(60):
        with sandbox.module("def f(x):\n    return x + 1") as module:
            statuses.append(sandbox.judge("assert f(1) == 2\nassert candidate(2) == 3", module, ["f"]).status)
    assert set(statuses) == {"ok"}


def test_two_programs_at_once_do_not_see_each_other(boxes):
    boxes.close()
    program = (
        "import os, sys, time\nme = input()\n"
        "try:\n    open('/tmp/' + me, 'w').close()\nexcept OSError:\n    pass\n"
        "time.sleep(0.7)\nother = {'a': 'b', 'b': 'a'}[me]\n"
        "try:\n    pids = [p for p in os.listdir('/proc') if p.isdigit() and int(p) != os.getpid()]\n"
        "except OSError:\n    pids = []\n"
        "print(os.path.exists('/tmp/' + other), pids)"
    )
    outcomes = {}
    with Sandbox(SLOT) as one, Sandbox(SLOT + 1) as two:

        def run(name, box):
            outcomes[name] = box.run(program, name).value

        threads = [threading.Thread(target=run, args=pair) for pair in (("a", one), ("b", two))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert outcomes == {"a": "False []\n", "b": "False []\n"}


# ------------------------------------------------------------------------------------------------------- sudden ends


@pytest.fixture
def fresh(boxes):
    boxes.close()
    before = processes(UIDS)
    with Sandbox(SLOT) as sandbox:
        yield sandbox
    assert left_after(sandbox, before) == []


def kill_launcher(sandbox: Sandbox) -> None:
    """And waits until the kernel has killed what ran below it."""
    killed = below(sandbox._launcher.pid)
    sandbox._launcher.kill()
    wait_until(lambda: not any(map(alive, killed)))


def test_a_launcher_that_was_killed_between_runs_is_replaced(fresh):
    old = launchers(fresh)
    kill_launcher(fresh)
    assert fresh.run("print(7)").value == "7\n"
    assert launchers(fresh) != old
    if fresh._group is not None:
        assert int(fresh._group.memory.read_text()) < 2 << 30


def test_a_launcher_that_is_killed_during_a_run_leaves_no_verdict_and_the_next_run_is_well(fresh):
    threading.Timer(0.3, lambda: os.kill(fresh._launcher.pid, signal.SIGKILL)).start()
    with pytest.raises(SandboxError):
        fresh.run("import time\ntime.sleep(5)")
    assert fresh.run("print(7)").value == "7\n"


def test_a_launcher_that_is_killed_between_calls_is_an_error_of_the_sandbox_once(fresh):
    with fresh.module("def f():\n    return 7") as module, fresh.script("print(7)") as script:
        assert script.run().value == "7\n"
        kill_launcher(fresh)
        with pytest.raises(SandboxError):
            script.run()
        assert script.run().value == "7\n"
        script.close()
        assert module.call("f", []).value == 7
        kill_launcher(fresh)
        with pytest.raises(SandboxError):
            module.call("f", [])
        assert module.call("f", []).value == 7


def test_a_sandbox_outlives_the_thread_that_made_it(boxes):
    boxes.close()
    made = []
    thread = threading.Thread(target=lambda: made.append(Sandbox(SLOT)))
    thread.start()
    thread.join()
    with made[0] as sandbox:
        pids = launchers(sandbox)
        time.sleep(0.1)
        assert sandbox.run("print(7)").value == "7\n"
        assert launchers(sandbox) == pids


@pytest.mark.parametrize(
    "holder", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["alone", "with-a-child-that-keeps-its-sockets"]
)
def test_a_parent_that_is_killed_leaves_no_process(holder, boxes):
    boxes.close()
    code = (
        "import os, sys, time\nfrom jopsd.rewards.sandbox import Sandbox, Limits\n"
        f"box = Sandbox({SLOT})\nprint(box._launcher.pid, flush=True)\n"
        f"if {holder} and os.fork() == 0:\n    time.sleep(30)\n    os._exit(0)\n"
        "box.run('while True: pass', '', Limits(seconds=60))"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=REPO, stdout=subprocess.PIPE, text=True) as parent:
        launcher = int(parent.stdout.readline())
        wait_until(lambda: len(below(launcher)) >= 4)  # launcher, outer and first process, program
        boxed = below(launcher)
        holding = below(parent.pid) - boxed - {parent.pid}
        os.kill(parent.pid, signal.SIGKILL)
        parent.stdout.close()
    try:
        wait_until(lambda: not any(alive(pid) for pid in boxed))
    finally:
        for pid in holding:
            os.kill(pid, signal.SIGKILL)


def below(process: int) -> set[int]:
    """A process and all that it started."""
    found = {process}
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
            found |= below(int(child))
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not come to that"
        time.sleep(0.05)


def test_a_closed_sandbox_leaves_neither_processes_nor_control_groups(boxes):
    boxes.close()
    before = processes(UIDS)
    sandbox = Sandbox(SLOT)
    with sandbox.module("def f():\n    while True: pass", Limits(seconds=0.3)) as module:
        sandbox.judge("f()", module, ["f"], Limits(seconds=0.3))
        assert processes(UIDS) != before
    sandbox.close()
    sandbox.close()
    assert processes(UIDS) == before
    assert control_groups() == []
