"""What stands outside a box during the tests: things to harm, read or reach, and whether any program did."""

import contextlib
import ctypes
import os
import platform
import secrets
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from jopsd.rewards.sandbox import cgroups

# Without root's rights, or a program without them could not even try.
_BYSTANDER = """
import ctypes, os, signal, time
ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, lambda number, frame: os.write(1, b"signal %d\\n" % number))
os.write(1, b"ready\\n")
while os.getppid() == PARENT:
    time.sleep(0.2)
"""


_bystanders: set[int] = set()


class Outside:
    """A directory open to all, sockets, a process, and a secret in its environment, its memory and a keyring.

    A context manager. `words` are what programs are told of it: that is more than a real attacker would know.
    """

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()
        secret, expected = f"planted-{secrets.token_hex(16)}", f"expected-{secrets.token_hex(16)}"
        self._canary = self._open.enter_context(
            tempfile.TemporaryDirectory(prefix="jopsd-", ignore_cleanup_errors=True)
        )
        abstract = f"jopsd-{secrets.token_hex(8)}"
        self._tcp = self._listener(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))
        self._udp = self._listener(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0))
        self._named = self._listener(socket.AF_UNIX, socket.SOCK_DGRAM, "\0" + abstract)
        self._named_stream = self._listener(socket.AF_UNIX, socket.SOCK_STREAM, f"\0{abstract}-stream")
        os.environ["JOPSD_PLANTED"] = secret
        self._open.callback(os.environ.pop, "JOPSD_PLANTED", None)
        _plant_key(secret)
        self._bystander: subprocess.Popen | None = None
        self._open.callback(self._end_bystander)
        self.words = {
            "CANARY": self._canary,
            "TCP": str(self._tcp.getsockname()[1]),
            "UDP": str(self._udp.getsockname()[1]),
            "ABSTRACT": abstract,
            "PARENT": str(os.getpid()),
            "SECRET": secret,
            "EXPECTED": expected,
        }
        self.restore()

    def __enter__(self) -> "Outside":
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def restore(self) -> None:
        """Puts back what a program has harmed, and forgets what arrived."""
        self._end_bystander()
        code = _BYSTANDER.replace("PARENT", str(os.getpid()))
        self._bystander = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        _bystanders.add(self._bystander.pid)
        self._bystander.stdout.readline()
        os.set_blocking(self._bystander.stdout.fileno(), False)
        self.words["BYSTANDER"] = str(self._bystander.pid)
        self._furnish()
        self._arrived()
        self._before = self._seen()

    def changes(self) -> list[str]:
        """What has happened since the last time, in words."""
        now = self._seen()
        wrong = [
            f"{name}: {self._before.get(name)} became {now.get(name)}"
            for name in now.keys() | self._before.keys()
            if now.get(name) != self._before.get(name)
        ]
        wrong += self._arrived()
        if wrong:
            self.restore()
        return wrong

    def _furnish(self) -> None:
        """Files and directories that every user of the machine may read, write and delete."""
        root = Path(self._canary)
        subprocess.run(["rm", "-rf", *map(str, root.glob("*"))], check=True)
        root.mkdir(exist_ok=True)
        root.chmod(0o777)
        (root / "directory").mkdir()
        (root / "link").symlink_to("notes")
        for name, mode in (("notes", 0o666), ("secret", 0o644), ("tool", 0o777), ("directory/inner", 0o666)):
            (root / name).write_text(f"{name} of {self.words['SECRET']}\n")
            (root / name).chmod(mode)
        (root / "directory").chmod(0o777)
        self._path_socket = self._listener(socket.AF_UNIX, socket.SOCK_DGRAM, str(root / "socket"))
        (root / "socket").chmod(0o777)

    def _seen(self) -> dict[str, tuple]:
        """State of files, devices and processes by name."""
        seen = {}
        for path in [Path(self._canary), *sorted(Path(self._canary).rglob("*"))]:
            with contextlib.suppress(OSError):
                seen[f"file {path.name}"] = _state(path)
        for name in ("null", "zero", "full", "random", "urandom"):
            with contextlib.suppress(OSError):
                found = os.stat(f"/dev/{name}")
                seen[f"device {name}"] = (oct(found.st_mode), found.st_uid, found.st_ctime_ns)
        seen["bystander"] = _condition(self._bystander.pid)
        seen["name of this machine"] = (socket.gethostname(),)
        return seen

    def _arrived(self) -> list[str]:
        """What came in on sockets, and the signals that the bystander got."""
        wrong = []
        for name in ("_udp", "_named", "_path_socket"):
            with contextlib.suppress(OSError):
                wrong.append(f"socket {name} got {getattr(self, name).recv(100)}")
        for name in ("_tcp", "_named_stream"):
            with contextlib.suppress(OSError):
                getattr(self, name).accept()[0].close()
                wrong.append(f"socket {name} was connected to")
        got = self._bystander.stdout.read()
        return wrong + ([f"the bystander got {got}"] if got else [])

    def _listener(self, family: int, kind: int, address: tuple | str) -> socket.socket:
        listener = self._open.enter_context(socket.socket(family, kind))
        listener.setblocking(False)
        listener.bind(address)
        if kind == socket.SOCK_STREAM:
            listener.listen()
        return listener

    def _end_bystander(self) -> None:
        if self._bystander is not None:
            self._bystander.kill()
            self._bystander.send_signal(signal.SIGCONT)
            self._bystander.wait()
            _bystanders.discard(self._bystander.pid)
            self._bystander.stdout.close()


def _state(path: Path) -> tuple:
    found = path.lstat()
    content = path.read_bytes() if stat.S_ISREG(found.st_mode) else b""
    own = (oct(found.st_mode), found.st_uid, found.st_gid, found.st_nlink, found.st_mtime_ns, found.st_ctime_ns)
    return (*own, content, os.listxattr(path, follow_symlinks=False))


def _condition(process: int) -> tuple:
    """Of a child that nobody has waited for: whether it runs, its priority, processors and limits."""
    state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    if state[0] in "ZX":
        return ("dead",)
    traced = [line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("TracerPid")]
    limits = Path(f"/proc/{process}/limits").read_text()
    return ("stopped" if state[0] in "tT" else "alive", traced, state[15:17], os.sched_getaffinity(process), limits)


def _plant_key(secret: str) -> None:
    """A secret in this process's session keyring, which children inherit; where the kernel has none, nothing."""
    libc, machine = ctypes.CDLL(None), platform.machine()
    if machine in ("x86_64", "aarch64"):
        add_key, keyctl = (248, 250) if machine == "x86_64" else (217, 219)
        libc.syscall(keyctl, 1, None)  # a new session keyring
        libc.syscall(add_key, b"user", b"jopsd-canary", secret.encode(), len(secret), -3)


def processes(uids: frozenset[int] = frozenset()) -> dict[int, str]:
    """Live processes that this one made, however far away they are by now: children of children, members of our control
    groups, owners of our user ids. The value is their command line or name."""
    parents, ours = {}, {os.getpid()}
    for number in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(OSError):
            name, _, fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")
            if fields.split()[0] in "ZX":
                continue
            parents[number] = int(fields.split()[1])
            group = f"/jopsd-{os.getpid()}-" in Path(f"/proc/{number}/cgroup").read_text()
            if group or os.stat(f"/proc/{number}").st_uid in uids:
                ours.add(number)
    before = 0
    while len(ours) > before:
        before = len(ours)
        ours |= {child for child, parent in parents.items() if parent in ours}
    return {number: _command(number) for number in ours - _bystanders - {os.getpid()}}


def _command(number: int) -> str:
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
    except OSError:
        return "?"


def control_groups() -> list[str]:
    """Directories of control groups that this process has made and not removed."""
    return [str(path) for path in cgroups.ROOT.glob(f"**/jopsd-{os.getpid()}-*")]
