"""Two models tensor by tensor, in the layout of the disk."""

import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from convert.opened import Opened
from jopsd.models.safetensors_files import slots_by_leaf


class Compared(NamedTuple):
    """One tensor in A and in B.

    Attributes:
      dtypes: of A, of B, and what both were cast to; None where it is missing.
      largest: the largest |A-B|, NaN where it cannot be said. where: its index.
      differing: how many numbers do not have the same bits.
      fault: why the two cannot be compared number by number, or None.
    """

    name: str
    shape: tuple[int, ...]
    dtypes: tuple[str | None, str | None, str | None]
    largest: float
    where: tuple[int, ...] = ()
    differing: int = 0
    fault: str | None = None

    @property
    def kind(self) -> str:
        """The name with `*` for the layer."""
        return re.sub(r"\.\d+\.", ".*.", self.name)

    @property
    def same_bits(self) -> bool:
        return self.fault is None and self.differing == 0

    def within(self, tolerance: float) -> bool:
        """tolerance: on the largest |A-B|; 0 asks for the same bits, which tell 0 from -0 too."""
        return self.same_bits or (self.fault is None and 0 < tolerance and self.largest <= tolerance)


def compare_tensors(a: Opened, b: Opened, progress: Callable[[int], object]) -> Iterator[Compared]:
    """Every tensor of A, leaf after leaf, then those that only B has. One of each side is in memory, with its leaf."""
    others = {slot.name: slot for slot in b.slots}
    for slots in slots_by_leaf(a.slots).values():
        for slot in slots:
            other = others.pop(slot.name, None)
            if other is None:
                yield _only(slot, "A")
            elif slot.shape != other.shape:
                fault = f"shape {list(slot.shape)} in A, {list(other.shape)} in B"
                yield Compared(slot.name, slot.shape, (None, None, None), math.nan, fault=fault)
            else:
                ours, theirs = a.tensor(slot), b.tensor(other)
                progress(ours.nbytes + theirs.nbytes)
                yield compare_arrays(slot.name, ours, theirs)
    for other in others.values():
        yield _only(other, "B")


def _only(slot, side: str) -> Compared:
    return Compared(slot.name, slot.shape, (None, None, None), math.nan, fault=f"only in {side}")


def compare_arrays(name: str, a: np.ndarray, b: np.ndarray) -> Compared:
    """Two tensors of one shape, both cast to the narrower dtype, as a conversion to it does.

    Neither of bfloat16 and float16 is the narrower: they are the same if either, cast to the other, has its bits.
    """
    stored = str(a.dtype), str(b.dtype)
    for side, x in (("A", a), ("B", b)):
        if not np.isfinite(x).all():
            return Compared(name, a.shape, (*stored, None), math.nan, fault=f"NaN or infinite values in {side}")
    smallest = min(a.dtype.itemsize, b.dtype.itemsize)
    for dtype in dict.fromkeys(x.dtype for x in (b, a) if x.dtype.itemsize == smallest):
        ours, theirs = cast(a, dtype), cast(b, dtype)
        differs = _bits(ours) != _bits(theirs)
        if not differs.any():
            return Compared(name, a.shape, (*stored, str(dtype)), 0.0)
    with np.errstate(over="ignore", invalid="ignore"):  # a cast may overflow
        distance = np.abs(ours.astype(np.float32) - theirs.astype(np.float32))
    where = tuple(int(i) for i in np.unravel_index(np.argmax(distance), distance.shape))
    count = int(np.count_nonzero(differs))
    return Compared(name, a.shape, (*stored, str(dtype)), float(distance[where]), where, count)


def cast(x: np.ndarray, dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        return x.astype(dtype, copy=False)


def _bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}")
