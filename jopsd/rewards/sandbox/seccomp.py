"""The system calls that a tested program may make: a list of what is allowed, compiled to a BPF filter.

What is not listed fails with EPERM. So there is no fork, no exec, no socket, no signal to another process, no chmod, no
mount, no ptrace and no kernel interface that is newer than this list.
"""

import ctypes
import os
import platform
import struct
from collections.abc import Iterable

from jopsd.rewards.sandbox import kernel

# name: numbers on x86_64 and aarch64; 0 after the first where the other machine has no such call.
_ALLOWED: dict[str, tuple[int, int | None]] = {
    "read": (0, 63), "write": (1, 64), "open": (2, None), "close": (3, 57), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226),
    "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66),
    "access": (21, None), "pipe": (22, None), "select": (23, None), "sched_yield": (24, 124), "mremap": (25, 216),
    "msync": (26, 227), "mincore": (27, 232), "madvise": (28, 233), "dup": (32, 23), "dup2": (33, None),
    "pause": (34, None), "nanosleep": (35, 101), "getitimer": (36, 102), "alarm": (37, None), "setitimer": (38, 103),
    "getpid": (39, 172), "sendfile": (40, 71), "sendto": (44, 206), "recvfrom": (45, 207), "sendmsg": (46, 211),
    "recvmsg": (47, 212), "shutdown": (48, 210), "getsockname": (51, 204), "getpeername": (52, 205),
    "getsockopt": (55, 209), "exit": (60, 93), "wait4": (61, 260), "uname": (63, 160),
    "flock": (73, 32), "fsync": (74, 82), "fdatasync": (75, 83), "ftruncate": (77, 46),
    "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "rename": (82, None), "mkdir": (83, None),
    "rmdir": (84, None), "creat": (85, None), "unlink": (87, None), "readlink": (89, None), "umask": (95, 166),
    "gettimeofday": (96, 169), "getrlimit": (97, 163), "getrusage": (98, 165), "sysinfo": (99, 179),
    "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177),
    "getppid": (110, 173), "getpgrp": (111, None), "getgroups": (115, 158), "getresuid": (118, 148),
    "getresgid": (120, 150), "getpgid": (121, 155), "getsid": (124, 156), "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132),
    "sched_getparam": (143, 121), "sched_getscheduler": (145, 120), "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126), "arch_prctl": (158, None), "gettid": (186, 178), "time": (201, None),
    "futex": (202, 98), "sched_getaffinity": (204, 123), "epoll_create": (213, None), "getdents64": (217, 61),
    "set_tid_address": (218, 96), "restart_syscall": (219, 128), "fadvise64": (221, 223), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "exit_group": (231, 94), "epoll_wait": (232, None),
    "epoll_ctl": (233, 21), "openat": (257, 56), "mkdirat": (258, 34), "newfstatat": (262, 79), "unlinkat": (263, 35),
    "renameat": (264, 38), "readlinkat": (267, 78), "faccessat": (269, 48), "pselect6": (270, 72), "ppoll": (271, 73),
    "set_robust_list": (273, 99), "epoll_pwait": (281, 22), "eventfd": (284, None), "fallocate": (285, 47),
    "eventfd2": (290, 19), "epoll_create1": (291, 20), "dup3": (292, 24), "pipe2": (293, 59), "preadv": (295, 69),
    "pwritev": (296, 70), "getcpu": (309, 168), "renameat2": (316, 276), "getrandom": (318, 278),
    "membarrier": (324, 283), "copy_file_range": (326, 285), "preadv2": (327, 286), "pwritev2": (328, 287),
    "statx": (332, 291), "rseq": (334, 293), "close_range": (436, 436), "faccessat2": (439, 439),
}  # fmt: skip
_CLONE, _CLONE3 = (56, 220), (435, 435)
_KILL, _TGKILL = (62, 129), (234, 131)
_FCNTL, _IOCTL, _PRCTL, _PRLIMIT, _SOCKETPAIR = (72, 25), (16, 29), (157, 167), (302, 261), (53, 199)

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE_THREAD, _CLONE_NEW_ANY = 0x10000, 0x7E020080  # one bit for each kind of namespace, time included
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032, 1034)  # none that sets an owner, signal or lease
_IOCTL_REQUESTS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # terminal? its size, bytes waiting, blocking
_PRCTL_OPTIONS = (3, 15, 16, 0x53564D41)  # dumpable?, thread names, names of memory

_LOAD, _JEQ, _JGE, _JSET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_EPERM, _ENOSYS = 1, 38
_NR, _ARCH, _X32 = 0, 4, 0x40000000


def available() -> bool:
    return platform.machine() in _AUDIT_ARCH


def install() -> None:
    """Filters the calls of this process and of all its later threads, for good. Needs no privilege.

    Raises OSError where the kernel has no filters or the machine is none that the list knows.
    """
    if not available():
        raise OSError(_ENOSYS, f"no list of system calls for {platform.machine()}")
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    program = _program(os.getpid())
    code = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code)))
    kernel.prctl(kernel.PR_SET_SECCOMP, kernel.SECCOMP_MODE_FILTER, ctypes.addressof(header))


def _program(pid: int) -> bytes:
    """The filter's instructions; `pid` is the one process that may be sent signals."""
    column = list(_AUDIT_ARCH).index(platform.machine())
    blocks = [
        _when(_CLONE[column], _masked(0, _CLONE_NEW_ANY, _thread_only())),
        _when(_CLONE3[column], [(_RETURN, 0, 0, _ERRNO | _ENOSYS)]),  # its flags cannot be read; libc falls back
        _when(_KILL[column], _only(0, [pid])),
        _when(_TGKILL[column], _only(0, [pid])),
        _when(_FCNTL[column], _only(1, _FCNTL_COMMANDS)),
        _when(_IOCTL[column], _only(1, _IOCTL_REQUESTS)),
        _when(_PRCTL[column], _only(0, _PRCTL_OPTIONS)),
        _when(_PRLIMIT[column], _only(2, [0], both_halves=True)),  # a limit may be read, not set
        _when(_SOCKETPAIR[column], _stream_pair()),
    ]
    numbers = sorted(pair[column] for pair in _ALLOWED.values() if pair[column] is not None)
    code = [
        (_LOAD, 0, 0, _ARCH),
        (_JEQ, 1, 0, _AUDIT_ARCH[platform.machine()]),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NR),
        (_JGE, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL_PROCESS),
    ]
    for first, last in _ranges(numbers):
        # A jump reaches 255 instructions, so every range answers for itself.
        code += [(_JGE, 0, 2, first), (_JGE, 1, 0, last + 1), (_RETURN, 0, 0, _ALLOW)]
    for block in blocks:
        code += block
    code.append((_RETURN, 0, 0, _ERRNO | _EPERM))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def _ranges(numbers: list[int]) -> Iterable[tuple[int, int]]:
    first = last = numbers[0]
    for number in numbers[1:]:
        if number != last + 1:
            yield first, last
            first = number
        last = number
    yield first, last


def _argument(index: int, high: bool = False) -> tuple:
    return _LOAD, 0, 0, 16 + 8 * index + 4 * high


_DENY, _PASS = (_RETURN, 0, 0, _ERRNO | _EPERM), (_RETURN, 0, 0, _ALLOW)


def _when(number: int, then: list[tuple]) -> list[tuple]:
    """`then`, which must return, for one system call; whoever falls through still has its number loaded."""
    return [(_JEQ, 0, len(then), number), *then]


def _only(index: int, values: Iterable[int], both_halves: bool = False) -> list[tuple]:
    """Allows the call where an argument is one of `values`."""
    values = list(values)
    tests = [(_JEQ, len(values) - place, 0, value) for place, value in enumerate(values)]
    checked = [_argument(index), *tests, _DENY, _PASS]
    if both_halves:
        checked = [_argument(index, high=True), (_JEQ, 1, 0, 0), _DENY, *checked]
    return checked


def _masked(index: int, forbidden: int, then: list[tuple]) -> list[tuple]:
    return [_argument(index), (_JSET, 0, 1, forbidden), _DENY, *then]


def _thread_only() -> list[tuple]:
    return [(_JSET, 1, 0, _CLONE_THREAD), _DENY, _PASS]


def _stream_pair() -> list[tuple]:
    """AF_UNIX and SOCK_STREAM: a datagram socket could send to any address."""
    base_type = (0x54, 0, 0, 0xF)  # keep the low bits
    return [_argument(0), (_JEQ, 1, 0, 1), _DENY, _argument(1), base_type, (_JEQ, 1, 0, 1), _DENY, _PASS]
