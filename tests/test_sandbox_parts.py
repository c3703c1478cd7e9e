"""Parts of the sandbox on their own: plain values, messages, layers, Landlock, control groups."""

import itertools
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jopsd.rewards.sandbox import LAYERS, cgroups, landlock, seccomp, unguarded, values, wire

from .sandbox.cases import same

REPO = Path(__file__).resolve().parent.parent

# ------------------------------------------------------------------------------------------------------------- values


def draw_value(draw: random.Random, depth: int, hashable: bool = False):
    kinds = ["none", "bool", "int", "float", "complex", "str", "bytes", "tuple", "frozenset"]
    kinds += [] if hashable else ["list", "dict", "set"]
    kind = draw.choice(kinds[: 7 if depth == 0 else None])
    size = draw.randrange(4)
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(draw_value(draw, depth - 1, hashable) for _ in range(size))
    if kind in ("set", "frozenset"):
        return (set if kind == "set" else frozenset)(draw_value(draw, depth - 1, True) for _ in range(size))
    if kind == "dict":
        return {draw_value(draw, depth - 1, True): draw_value(draw, depth - 1) for _ in range(size)}
    simple = {
        "none": None,
        "bool": draw.random() < 0.5,
        "int": draw.choice((0, -1, 2**70, -(2**300), draw.randrange(-1000, 1000))),
        "float": draw.choice((0.0, -0.0, 1e-320, 1e308, float("inf"), -float("inf"), draw.random())),
        "complex": complex(draw.random(), -0.0),
        "str": "".join(draw.choice('a"\\\n\0é\ud800😀') for _ in range(size)),
        "bytes": draw.randbytes(size),
    }
    return simple[kind]


def test_values_come_back_equal_and_of_the_same_types():
    draw = random.Random(2)
    for _ in range(2000):
        value = draw_value(draw, 4)
        text = values.encode(value)
        back = values.decode(text)
        assert same(back, value), value
        assert values.encode(back) == text or isinstance(value, set | frozenset | dict | list | tuple)


def test_numbers_keep_their_sign_and_their_kind():
    for value in (True, 1, 1.0, -0.0, complex(0.0, -0.0)):
        back = values.decode(values.encode(value))
        assert type(back) is type(value)
        assert repr(back) == repr(value)
    assert repr(values.decode(values.encode(float("nan")))) == "nan"


def test_subclasses_become_what_they_derive_from_and_cannot_lie():
    class Liar(int):
        def __eq__(self, other):
            return True

        def __format__(self, form):
            return "ff"

        def bit_length(self):
            return 0

        __hash__ = int.__hash__

    class Words(str):
        def __str__(self):
            return "other"

    class Entries(list):
        def __iter__(self):
            return iter([1, 2, 3])

    assert same(values.decode(values.encode([Liar(7), Words("said"), Entries([4])])), [7, "said", [4]])


@pytest.mark.parametrize("value", [object(), len, iter([]), range(3), {1: open}, [[object()]], type, NotImplemented])
def test_what_is_no_plain_data_is_refused(value):
    with pytest.raises(values.NotPlainError, match="no plain data"):
        values.encode(value)


def nested(levels: int) -> list:
    value = []
    for _ in range(levels):
        value = [value]
    return value


def test_limits_on_depth_length_and_bits_hold_both_ways():
    assert values.decode(values.encode(nested(values.MAX_DEPTH - 1))) == nested(values.MAX_DEPTH - 1)
    for value in (nested(values.MAX_DEPTH + 1), nested(100_000), 1 << values.MAX_INT_BITS, "x" * values.MAX_CHARS):
        with pytest.raises(values.NotPlainError):
            values.encode(value)
    largest = (1 << values.MAX_INT_BITS) - 1
    assert values.decode(values.encode(-largest)) == -largest
    digits = "f" * (values.MAX_INT_BITS // 2)
    for text in (
        json.dumps(["i", digits]),
        "[" * 200_000,
        '["l",' * 5_000 + "[]" + "]" * 5_000,
        " " * values.MAX_CHARS,
    ):
        with pytest.raises(values.NotPlainError):
            values.decode(text)


PLAIN = (type(None), bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset)


def all_plain(value) -> bool:
    if type(value) is dict:
        return all(map(all_plain, value)) and all(map(all_plain, value.values()))
    return type(value) in PLAIN and (
        not isinstance(value, list | tuple | set | frozenset) or all(map(all_plain, value))
    )


def test_hostile_texts_give_a_plain_value_or_one_kind_of_error():
    draw = random.Random(3)
    texts = ["", "null", "7", "NaN", '["i"]', '["", []]', '["sz", []]', '["d", "ab"]', '["d", {"ab": 1}]', '["l", 5]']
    texts += ['["i", ["1"]]', '["i", "0x_1"]', '["f", "nan"]', '["c", "1"]', '["b", "zz"]', '[["l"], 1]', '{"l": []}']
    texts += ['["s", [["l", []]]]', '["d", [[["d", []], 1]]]', '["f", "' + "9" * 100_000 + '"]', "[1e999, 1]", "\ud800"]
    texts += ['["f", "0x1p99999"]', '["c", "0x0p0", "-0x1p99999"]']
    for _ in range(3000):
        text = list(values.encode(draw_value(draw, 3)))
        for _ in range(draw.randrange(1, 5)):
            place = draw.randrange(len(text))
            text[place : place + draw.randrange(2)] = draw.choice('[]{}",:ilstzdbfc0-.e \\u')
        texts.append("".join(text))
    given = 0
    for text in texts:
        try:
            value = values.decode(text)
        except values.NotPlainError:
            continue
        given += 1
        assert all_plain(value), text
    assert given > 100


def colliding_texts() -> dict[str, str]:
    """Keys that all hash alike, as many as the limits let through."""
    many, prime = values.MAX_HARD_KEYS - 10, (1 << 61) - 1
    ends = list(itertools.islice(itertools.product(('["i","-1"]', '["i","-2"]'), repeat=13), many))
    integers = ",".join(f'["i","{k * prime:x}"]' for k in range(1, many))
    tuples = ",".join('["t",[' + "null," * 100 + ",".join(end) + "]]" for end in ends)
    pairs = ",".join(f'[["t",[{",".join(end)}]],null]' for end in ends)
    return {
        "integers, in many sets": '["l",[' + ",".join([f'["s",[{integers}]]'] * 15) + "]]",
        "long tuples": f'["z",[{tuples}]]',
        "a dict of tuples": f'["d",[{pairs}]]',
    }


@pytest.mark.parametrize("name", colliding_texts())
def test_keys_that_hash_alike_cost_little_time(name):
    text = colliding_texts()[name]
    assert len(text) < values.MAX_CHARS
    start = time.process_time()
    try:
        values.decode(text)
    except values.NotPlainError:
        pass
    assert time.process_time() - start < 1.5


# ----------------------------------------------------------------------------------------------------------- messages


@pytest.fixture
def pair():
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def test_messages_and_descriptors_arrive(pair):
    one, other = pair
    large = {"text": "x" * 3_000_000}
    sender = threading.Thread(target=lambda: [wire.send(one, {"a": [1]}, (0,)), wire.send(one, large)])
    sender.start()
    message, descriptors = wire.receive_with_descriptors(other)
    assert message == {"a": [1]} and len(descriptors) == 1
    os.close(descriptors[0])
    assert wire.receive(other, time.monotonic() + 10) == large
    sender.join()
    one.close()
    with pytest.raises(EOFError):
        wire.receive(other)


def test_a_message_counts_as_sent_even_if_its_reader_is_gone_by_then(pair):
    one, other = pair

    class Hasty:
        """Ends the other side as soon as it has the whole message."""

        def __getattr__(self, name):
            return getattr(one, name)

        def sendmsg(self, *arguments):
            sent = one.sendmsg(*arguments)
            other.close()
            return sent

    wire.send(Hasty(), {"a": 1})


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\2[]",
        b"\0\0\0\4null",
        b"\0\0\0\3\xff\xfe\0",
        b"\0\0\0\0",
        struct.pack("!I", 50_000),
    ],
)
def test_what_is_no_message_is_told_apart_from_silence(pair, data):
    one, other = pair
    one.sendall(data + b"[" * 50_000)
    with pytest.raises(wire.BadMessageError):
        wire.receive(other, time.monotonic() + 5)


@pytest.mark.parametrize("data", [b"", b"\0", b"\0\0\0\5{", b"\0\0\1\0{}"])
def test_half_a_message_does_not_hold_the_reader_beyond_its_time(pair, data):
    one, other = pair
    one.sendall(data)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        wire.receive(other, start + 0.1)
    assert time.monotonic() - start < 1


def test_numbers_of_a_hundred_thousand_digits_are_no_message_even_where_python_would_read_them(pair):
    one, other = pair
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        data = b'{"value": ' + b"9" * 100_000 + b"}"
        one.sendall(struct.pack("!I", len(data)) + data)
        with pytest.raises(wire.BadMessageError):
            wire.receive(other, time.monotonic() + 10)
    finally:
        sys.set_int_max_str_digits(limit)


# ------------------------------------------------------------------------------------------------------------- layers


def test_a_set_of_layers_is_enough_only_if_each_danger_has_one():
    """By the words of the documentation, for every subset."""
    for count in range(len(LAYERS) + 1):
        for active in map(frozenset, itertools.combinations(LAYERS, count)):
            wanted = []
            if not ("namespaces" in active or "landlock" in active):
                wanted.append("files of the host")
            if not ("namespaces" in active or "seccomp" in active):
                wanted += ["the network", "other processes"]
            if not active & {"seccomp", "cgroups", "user"}:
                wanted.append("an endless number of processes")
            if "rlimits" not in active:
                wanted.append("time and memory")
            assert unguarded(active) == wanted


LANDLOCKED = """
import os, sys
from jopsd.rewards.sandbox import landlock, seccomp
version, inside, outside = int(sys.argv[1]), *sys.argv[2:]
landlock.version = lambda: version
landlock.restrict([inside], [])
seccomp.install()
print(open(inside + "/file").read(), end=" ")
def refused(action):
    try:
        action()
    except OSError:
        return True
actions = {
    "read": lambda: open(outside + "/file").read(), "list": lambda: os.listdir(outside),
    "write": lambda: open(outside + "/file", "a"), "cut": lambda: os.truncate(outside + "/file", 1),
    "cut open": lambda: os.close(os.open(outside + "/file", os.O_WRONLY | os.O_TRUNC)),
    "make": lambda: open(outside + "/new", "x"), "delete": lambda: os.unlink(outside + "/file"),
    "rename": lambda: os.rename(outside + "/file", outside + "/other"), "mode": lambda: os.chmod(outside + "/file", 0),
    "overwrite": lambda: open(inside + "/file", "w"), "directory": lambda: os.mkdir(outside + "/made"),
}
print([name for name, action in actions.items() if not refused(action)])
"""


@pytest.mark.parametrize("version", range(1, 8))
def test_landlock_of_every_version_keeps_files_as_they_are(version, tmp_path):
    found = landlock.version()
    if found < version:
        pytest.skip(f"this kernel has version {found} of Landlock")
    if not seccomp.available():
        pytest.skip("no list of system calls for this machine")
    for name in ("inside", "outside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("content")
    command = [sys.executable, "-c", LANDLOCKED, str(version), str(tmp_path / "inside"), str(tmp_path / "outside")]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert done.stdout == "content []\n", done.stderr
    assert (tmp_path / "outside" / "file").read_text() == "content"


@pytest.fixture
def group():
    try:
        made = cgroups.make_group(77)
    except OSError as error:
        pytest.skip(f"no control groups here: {error}")
    yield made
    made.close()


def test_a_control_group_holds_processes_to_its_limits_and_goes_when_closed(group):
    group.limit(64)
    assert int(group.memory.read_text()) == (64 + cgroups.OVERHEAD_MB) << 20
    code = "import sys\nsys.stdin.read()\nblock = bytearray(1 << 30)\nblock[::4096] = bytes(1 << 18)\nprint('held')"
    with subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        for procs in group.procs:
            Path(procs).write_text(str(child.pid))
        printed, _ = child.communicate(b"go")
    assert (child.returncode, printed) == (-9, b"")
    group.close()
    assert not any(directory.exists() for directory in group.directories)


def test_groups_that_a_dead_process_left_are_removed_and_those_of_live_ones_stay(group):
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    child.wait()
    parent = group.directories[0].parent
    left, kept = parent / f"jopsd-{child.pid}-3", parent / f"jopsd-{os.getpid()}-78"
    left.mkdir()
    kept.mkdir()
    try:
        cgroups.make_group(77)
        assert not left.exists()
        assert kept.exists()
    finally:
        kept.rmdir()
