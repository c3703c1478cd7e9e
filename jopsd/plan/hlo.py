"""What a compiled program sends between devices, read from its HLO text.

XLA's own cost analysis counts the body of a loop once and knows nothing of networks. Here every collective is found,
multiplied by the trip counts of the loops around it, and its groups are listed, so that they can be held against the
axes of a mesh. Pure functions on text; what they read is stable between the CPU, GPU and TPU compilers of XLA.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_BITS = {"pred": 8, "c64": 64, "c128": 128}  # a bool takes a byte; others say their bits


class Collective(NamedTuple):
    """One collective operation of a program, as one device sees it.

    Attributes:
      kind: a name of `KINDS`. The TPU compiler's fused all-reduce and slice is the reduce-scatter that it stands for.
      bytes: of the whole tensors of one execution: what an all-gather makes, what the others read.
      times: executions per run of the program, as far as the text says; see `dynamic`.
      groups: partition numbers that take part together; of a permute, pairs (from, to).
      largest: dtype and shape of the largest tensor of those counted in `bytes`.
      dynamic: it stands in a loop whose trip count is only known at run time, which `times` counts as one.
      where: the name that the traced program gave the operation.
    """

    kind: str
    bytes: int
    times: int
    groups: tuple[tuple[int, ...], ...]
    largest: tuple[str, tuple[int, ...]]
    dynamic: bool
    where: str


class _Line(NamedTuple):
    name: str
    shapes: str  # the result, as text
    op: str
    rest: str  # operands and attributes


def collectives(text: str) -> list[Collective]:
    """Every collective that a run of the compiled program executes, in the order of the text.

    text: `compiled.as_text()`. Asynchronous pairs count once, at their start; both arms of a conditional count.
    """
    computations, entry = _computations(text)
    found: list[Collective] = []
    _walk(computations, entry, 1, False, found)
    partitions = re.search(r"^HloModule .*\bnum_partitions=(\d+)", text, re.MULTILINE)
    everyone = (tuple(range(int(partitions[1]))),) if partitions else ()
    return [one if one.groups else one._replace(groups=everyone) for one in found]


def largest_tensor(found: Sequence[Collective]) -> tuple[str, tuple[int, ...]]:
    """dtype and shape of the largest tensor that any of these collectives moves; ("", ()) of none."""
    return max((c.largest for c in found), key=lambda s: tensor_bytes(*s), default=("", ()))


def tensor_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor, without a layout's padding. dtype as in HLO: bf16, f32, s8, pred."""
    if not dtype:
        return 0
    bits = _BITS.get(dtype) or int(re.search(r"\d+", dtype)[0]) if dtype != "token" else 0
    return math.prod(shape) * bits // 8


def wire_bytes(c: Collective) -> float:
    """Bytes that one device sends in one execution, by the algorithms that move least (rings)."""
    n = len(c.groups[0]) if c.groups else 1
    if c.kind == "collective-permute":
        return c.bytes
    if n == 1:
        return 0
    return c.bytes * (n - 1) / n * (2 if c.kind == "all-reduce" else 1)


def axes_of(groups: Sequence[Sequence[int]], mesh_shape: dict[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the members of a group differ.

    mesh_shape: sizes by axis, outermost first; partition numbers count through the mesh in that order.
    """
    sizes = tuple(mesh_shape.values())
    groups = [g for g in groups if len(g) > 1] or ([] if groups else [range(math.prod(sizes))])
    differs = np.zeros(len(sizes), bool)
    for group in groups:
        places = np.array(np.unravel_index(np.array(group), sizes))
        differs |= (places != places[:, :1]).any(axis=1)
    return tuple(axis for axis, moves in zip(mesh_shape, differs, strict=True) if moves)


# ------------------------------------------------------------------------------------------------------------ parsing

_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)$")
_SHAPE = re.compile(r"\b(pred|token|[a-z]+\d+\w*)\[([\d,<=]*)\]")


def _computations(text: str) -> tuple[dict[str, list[_Line]], str]:
    computations: dict[str, list[_Line]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if header := _HEADER.match(line):
            lines = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif instruction := _INSTRUCTION.match(line):
            lines.append(_Line(*instruction.groups()))
    if not entry:
        raise ValueError("this is not the text of a compiled program: it has no ENTRY computation")
    return computations, entry


def _walk(computations, name: str, times: int, dynamic: bool, found: list[Collective]) -> None:
    """Adds the collectives of one computation and of those it calls."""
    for line in computations.get(name, ()):
        kind = line.op.removesuffix("-start")
        if kind in KINDS:
            found.append(_collective(line, kind, name, times, dynamic))
        elif line.op == "send" and (transfer := re.search(r'_xla_megascale_transfer_type="(\w+)"', line.rest)):
            found.append(_between_slices(line, transfer[1].lower().replace("_", "-"), times, dynamic))
        elif line.op == "while":
            count = _trip_count(computations, line)
            inner = times * (1 if count is None else count), dynamic or count is None
            _walk(computations, _attribute(line, "body"), *inner, found)
        else:
            for callee in _callees(line):
                _walk(computations, callee, times, dynamic, found)


def _callees(line: _Line) -> Iterator[str]:
    if line.op in ("async-update", "async-done", "call-done"):
        return  # these name again what their start has run
    if line.op == "conditional":
        if branches := re.search(r"branch_computations=\{([^}]*)\}", line.rest):
            yield from (name.strip().lstrip("%") for name in branches[1].split(","))
        yield from re.findall(r"(?:true|false)_computation=%?([\w.-]+)", line.rest)
    elif line.op in ("fusion", "call", "async-start", "call-start"):
        yield from re.findall(r"(?:calls|to_apply|called_computation)=%?([\w.-]+)", line.rest)


def _collective(line: _Line, kind: str, computation: str, times: int, dynamic: bool) -> Collective:
    shapes = _shapes(line.shapes)
    if line.op.endswith("-start") and kind != "all-reduce":
        # (operands, results, contexts): operands and results are as many, and the whole tensors are the larger ones.
        shapes = [shape for shape in shapes if shape[1] or shape[0] != "u32"]
        halves = shapes[: len(shapes) // 2], shapes[len(shapes) // 2 :]
        shapes = max(halves, key=lambda half: sum(tensor_bytes(*s) for s in half))
    groups = _permuted(line.rest) if kind == "collective-permute" else _groups(line.rest)
    if kind == "reduce-scatter" and not line.op.endswith("-start"):
        size = len(groups[0]) if groups else 1
        axis = int((re.search(r"dimensions=\{(\d+)", line.rest) or [0, 0])[1])
        shapes = [(d, tuple(n * size if i == axis else n for i, n in enumerate(shape))) for d, shape in shapes]
    if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
    where = re.search(r'op_name="([^"]*)"', line.rest)
    return Collective(
        kind,
        sum(tensor_bytes(*shape) for shape in shapes),
        times,
        groups,
        max(shapes, key=lambda shape: tensor_bytes(*shape), default=("", ())),
        dynamic,
        where[1] if where else "",
    )


def _between_slices(line: _Line, kind: str, times: int, dynamic: bool) -> Collective:
    """A collective of TPU slices, which goes through the hosts: `target="{1,2}x{0:3}"` is slices x devices of each."""
    shape = next(s for s in _shapes(line.shapes) if s[0] not in ("u32", "token"))
    target = re.search(r'_xla_megascale_target="\{([^}]*)\}x\{([^}]*)\}"', line.rest)
    slices, devices = (_ranges(target[1]), _ranges(target[2])) if target else ([0, 1], [0])
    size = len(slices)
    if kind == "all-gather":  # what is sent is a part
        shape = (shape[0], (size * shape[1][0], *shape[1][1:]) if shape[1] else (size,))
    run = max(devices) + 1
    groups = tuple(tuple(place * run + device for place in range(size)) for device in devices)
    where = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', line.rest)
    kind = kind if kind in KINDS else "collective-permute"
    return Collective(kind, tensor_bytes(*shape), times, groups, shape, dynamic, where[1] if where else "")


def _ranges(text: str) -> list[int]:
    """`1,3:5` is 1, 3, 4, 5."""
    spans = (part.partition(":") for part in text.split(","))
    return [n for first, _, last in spans for n in range(int(first), int(last or first) + 1)]


def _shapes(text: str) -> list[tuple[str, tuple[int, ...]]]:
    return [(dtype, tuple(int(n.strip("<=")) for n in dims.split(",") if n)) for dtype, dims in _SHAPE.findall(text)]


def _attribute(line: _Line, name: str) -> str:
    return re.search(rf"\b{name}=%?([\w.-]+)", line.rest)[1]


def _trip_count(computations, line: _Line) -> int | None:
    """How often a while loop runs: as the compiler noted it, else read from a condition `counter < constant`."""
    if noted := re.search(r'known_trip_count":\{"n":"(\d+)"', line.rest):
        return int(noted[1])
    condition = computations.get(_attribute(line, "condition"), [])
    constants = {one.name: int(value[1]) for one in condition if (value := _INTEGER.match(f"{one.op}({one.rest}"))}
    known = [constants[name] for one in condition[-1:] for name in re.findall(r"%([\w.-]+)", one.rest)
             if name in constants]  # fmt: skip
    less = condition and (condition[-1].op == "fusion" or "direction=LT" in condition[-1].rest)
    return known[0] if less and len(known) == 1 else None


_INTEGER = re.compile(r"constant\((\d+)\)")


def _permuted(rest: str) -> tuple[tuple[int, ...], ...]:
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", rest)
    return tuple((int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs[1])) if pairs else ()


def _groups(rest: str) -> tuple[tuple[int, ...], ...]:
    """Replica groups in any of XLA's three notations: a list, an iota that is reshaped, or axes of a mesh."""
    if listed := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", rest):
        return tuple(tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", listed[1]))
    if iota := re.search(r"replica_groups=(\[[\d,]+\]<=\S+?)(?:, |$)", rest):
        sizes, _, source = iota[1].partition("<=")
        return tuple(map(tuple, _iota(source).reshape(_numbers(sizes)).tolist()))
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S+)\))? \{([^}]*)\}", rest):
        return _mesh_groups(*axes.groups())
    return ()


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def _iota(source: str) -> np.ndarray:
    """`[2,4]T(1,0)`: the numbers from 0 in that shape, transposed."""
    dims, _, order = source.partition("T")
    numbers = np.arange(math.prod(_numbers(dims))).reshape(_numbers(dims))
    return numbers.transpose(_numbers(order)) if order else numbers


def _mesh_groups(mesh: str, devices: str | None, axes: str) -> tuple[tuple[int, ...], ...]:
    """`mesh['a'=2,'b'=4] {'b'}`, where `'b':(2)2` is the part of size 2 of b that has 2 before it."""
    sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", mesh)}
    ids = _iota(devices) if devices else np.arange(math.prod(sizes.values()))
    parts = {name: (int(before), int(n)) for name, before, n in re.findall(r"'([^']+)':\((\d+)\)(\d+)", axes)}
    kept, grouped, shape = [], [], []
    for name, size in sizes.items():
        whole = name in re.findall(r"'([^']+)'", axes)
        before, part = parts.get(name, (1, size if whole else 1))
        for length, inside in ((before, False), (part, whole), (size // (before * part), False)):
            (grouped if inside else kept).append(len(shape))
            shape.append(length)
    members = math.prod(shape[axis] for axis in grouped)
    return tuple(map(tuple, ids.reshape(shape).transpose(kept + grouped).reshape(-1, members).tolist()))
