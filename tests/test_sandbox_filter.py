"""The sandbox's system call filter, run on a small BPF machine, against a table made from the kernel's headers."""

import random
import re
import struct
from pathlib import Path

import pytest

from jopsd.rewards.sandbox import kernel, seccomp

PID = 4242
KILLED, ALLOWED, EPERM, ENOSYS = "killed", "allowed", "EPERM", "ENOSYS"
ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Written down by number from the kernel's headers, as a check on the filter's own list by name.
ALWAYS_ALLOWED = {
    "x86_64": "0-15 17-28 32-40 44-48 51-52 55 60-61 63 73-75 77 79-85 87 89 95-100 102 104 107-108 110-111 115 118 "
    "120-121 124 127-128 130-131 143 145-147 158 186 201-202 204 213 217-219 221 228-233 257-258 262-264 267 269-271 "
    "273 281 284-285 290-293 295-296 309 316 318 324 326-328 332 334 436 439",
    "aarch64": "17 19-24 32 34-35 38 46-50 56-57 59 61-73 78-80 82-83 93-94 96 98-99 101-103 113-115 120-121 123-126 "
    "128 132-137 139 148 150 153 155-156 158 160 163 165-166 168-169 172-179 204-207 209-212 214-216 222-223 226-227 "
    "232-233 260 276 278 283 285-287 291 293 436 439",
}
BY_ARGUMENT = {  # x86_64, aarch64
    "ioctl": (16, 29), "socketpair": (53, 199), "clone": (56, 220), "kill": (62, 129), "fcntl": (72, 25),
    "prctl": (157, 167), "tgkill": (234, 131), "prlimit64": (302, 261), "clone3": (435, 435),
}  # fmt: skip
NEVER = {
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117),
    "setuid": (105, 146), "setrlimit": (160, 164), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "socket": (41, 198),
    "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242),
    "sendmmsg": (307, 269), "mount": (165, 40), "umount2": (166, 39), "move_mount": (429, 429), "open_tree": (428, 428),
    "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280),
    "perf_event_open": (298, 241), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "userfaultfd": (323, 282), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "personality": (135, 92), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "fchownat": (260, 54), "lchown": (94, None), "utimensat": (280, 88),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "setxattr": (188, 5), "fsetxattr": (190, 7),
    "lsetxattr": (189, 6), "removexattr": (197, 14), "link": (86, None), "linkat": (265, 37), "symlink": (88, None),
    "symlinkat": (266, 36), "mknod": (133, None), "mknodat": (259, 33), "memfd_create": (319, 279),
    "shmget": (29, 194), "shmat": (30, 196), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "kexec_load": (246, 104),
    "init_module": (175, 105), "reboot": (169, 142), "sethostname": (170, 161), "clock_settime": (227, 112),
    "setpriority": (141, 140), "sched_setaffinity": (203, 122), "setsid": (112, 157), "setpgid": (109, 154),
    "capset": (126, 91), "seccomp": (317, 277), "splice": (275, 76), "vmsplice": (278, 75), "timer_create": (222, 107),
    "inotify_init1": (294, 26), "process_madvise": (440, 440), "move_pages": (279, 239), "syslog": (103, 116),
    "setsockopt": (54, 208),  # would take a socket filter
    # Landlock below its third version does not see it.
    "truncate": (76, 45),
}  # fmt: skip


def evaluate(program: bytes, number: int, arch: int, arguments: tuple[int, ...] = ()) -> str:
    """What the kernel would do with a call: its BPF machine, as far as filters use it."""
    padded = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<IIQ6Q", number % 2**32, arch, 0, *(argument % 2**64 for argument in padded))
    code = list(struct.iter_unpack("HBBI", program))
    place, accumulator = 0, 0
    while True:
        operation, if_true, if_false, constant = code[place]
        place += 1
        if operation == 0x20:
            accumulator = struct.unpack_from("<I", data, constant)[0]
        elif operation == 0x54:
            accumulator &= constant
        elif operation == 0x06:
            kind, error = constant & 0xFFFF0000, constant & 0xFFFF
            return {0x7FFF0000: ALLOWED, 0x80000000: KILLED, 0x00050000: {1: EPERM, 38: ENOSYS}.get(error)}[kind]
        else:
            holds = {0x15: accumulator == constant, 0x35: accumulator >= constant, 0x45: bool(accumulator & constant)}
            place += if_true if holds[operation] else if_false


@pytest.fixture(params=ARCHES)
def machine(request, monkeypatch):
    """decide(name or number, *arguments) for one kind of machine; `machine.numbers` of it."""
    monkeypatch.setattr(seccomp.platform, "machine", lambda: request.param)
    program = seccomp._program(PID)
    assert len(program) // 8 <= 4096  # the kernel's limit
    column = list(ARCHES).index(request.param)

    def decide(call: int | str, *arguments: int) -> str:
        number = {**BY_ARGUMENT, **NEVER}[call][column] if isinstance(call, str) else call
        return evaluate(program, number, ARCHES[request.param], arguments)

    decide.always = {
        number
        for part in ALWAYS_ALLOWED[request.param].split()
        for first, _, last in [part.partition("-")]
        for number in range(int(first), int(last or first) + 1)
    }
    decide.sometimes = {pair[column] for pair in BY_ARGUMENT.values()}
    decide.never = {pair[column] for pair in NEVER.values() if pair[column] is not None}
    decide.program, decide.arch = program, ARCHES[request.param]
    return decide


def test_the_filter_allows_the_calls_of_the_table_and_refuses_all_others(machine):
    draw = random.Random(0)
    wrong = {}
    for number in sorted(set(range(700)) - machine.sometimes):
        arguments = [draw.getrandbits(64) for _ in range(6)]
        wanted = ALLOWED if number in machine.always else EPERM
        if machine(number, *arguments) != wanted:
            wrong[number] = machine(number, *arguments)
    assert wrong == {}
    assert machine.never.isdisjoint(machine.always)


def test_no_dangerous_call_is_allowed_whatever_its_arguments(machine):
    draw = random.Random(1)
    allowed = {
        name
        for name, pair in NEVER.items()
        if pair[0 if machine.arch == ARCHES["x86_64"] else 1] is not None
        for _ in range(20)
        if machine(name, *(draw.choice((0, 1, PID, draw.getrandbits(64))) for _ in range(6))) != EPERM
    }
    assert allowed == set()


def test_calls_by_the_numbers_of_another_machine_end_the_process(machine):
    for arch in (*ARCHES.values(), 0x40000003, 0x40000028, 0):
        for number in (0, 39, 172, 20):
            if arch != machine.arch:
                assert evaluate(machine.program, number, arch) == KILLED
    for number in (0x40000000, 0x40000000 + 41, 0x7FFFFFFF, 0xFFFFFFFF):
        assert machine(number) == KILLED


def test_threads_may_be_started_and_nothing_else_that_clone_can(machine):
    thread = 0x3D0F00
    assert machine("clone", thread) == ALLOWED
    assert machine("clone", thread | 1 << 40) == ALLOWED  # the kernel reads the lower half
    for flags in (0x11, 0x4111, 0x1200011, 0, 1 << 16 << 32):
        assert machine("clone", flags) == EPERM
    for namespace in (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert machine("clone", thread | namespace) == EPERM
    assert machine("clone3", thread, thread) == ENOSYS


def test_signals_reach_only_the_process_itself(machine):
    for call in ("kill", "tgkill"):
        assert machine(call, PID, 9) == ALLOWED
        for other in (0, 1, -1, -PID, PID + 1, PID - 1, 2**32 - 1):
            assert machine(call, other, 9) == EPERM


def test_descriptors_may_be_copied_and_locked_but_have_no_owner_signal_lease_or_notice(machine):
    allowed = {command for command in range(2048) if machine("fcntl", 3, command, 5) == ALLOWED}
    assert allowed == {0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032, 1034}
    owner, signal, lease, notify, seals, owner_ex = 8, 10, 1024, 1026, 1033, 15
    assert allowed.isdisjoint({owner, signal, lease, notify, seals, owner_ex})


def test_terminals_take_no_input_and_no_device_takes_commands(machine):
    allowed = {
        request for request in [*range(0x5000, 0x6000), *range(0x8000)[::97]] if machine("ioctl", 0, request) == ALLOWED
    }
    assert allowed == {0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451}


def test_prctl_reads_and_names_only(machine):
    allowed = {option for option in [*range(200), 0x53564D41, 0x59616D61] if machine("prctl", option, 1) == ALLOWED}
    assert allowed == {3, 15, 16, 0x53564D41}


def test_limits_are_read_and_never_set(machine):
    assert machine("prlimit64", 0, 7, 0, 0x7FFF00001000) == ALLOWED
    for pointer in (0x1000, 0x7FFF00001000, 1 << 32, 0xFFFFFFFF):
        assert machine("prlimit64", 0, 7, pointer, 0) == EPERM


def test_pairs_of_sockets_are_streams_without_an_address(machine):
    unix, stream, more = 1, 1, (0, 0o2000000, 0o4000, 0o2004000)
    for flags in more:
        assert machine("socketpair", unix, stream | flags, 0) == ALLOWED
        for family, kind in ((2, 1), (16, 1), (1, 2), (1, 3), (1, 5), (40, 1), (10, 2)):
            assert machine("socketpair", family, kind | flags, 0) == EPERM


HEADERS = {  # of the C library's package
    0: [Path(f"/usr/include/{place}asm/unistd_64.h") for place in ("x86_64-linux-gnu/", "")],
    1: [Path("/usr/include/asm-generic/unistd.h")],
}


@pytest.mark.parametrize("column", HEADERS, ids=list(ARCHES))
def test_numbers_are_those_of_the_kernel_headers(column):
    header = next((path for path in HEADERS[column] if path.exists()), None)
    if header is None:
        pytest.skip("no kernel headers installed")
    text = header.read_text()
    numbers = {name: int(n) for name, n in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    for name, other in re.findall(r"#define __NR_(\w+)\s+__NR3264_(\w+)", text):
        numbers.setdefault(name, numbers.get(other))
    numbers["newfstatat"] = {0: 262, 1: 79}[column]  # `fstatat` in one of them
    tables = {**seccomp._ALLOWED, **BY_ARGUMENT, **NEVER, **kernel._NUMBERS}
    for name, pair in tables.items():
        if pair[column] is not None and name in numbers:
            assert numbers[name] == pair[column], name
