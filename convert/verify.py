"""Whether two models are the same: configs, every tensor, logits on a prompt."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from convert.compare import Compared, compare_tensors
from convert.logits import Prompt, logits, read_prompt, require_torch, transformers_logits
from convert.opened import Opened, open_run, open_source, open_weights
from convert.output import progress_bar
from convert.sources import Source
from convert.tables import table
from jopsd.mesh import make_mesh

LOGIT_TOLERANCE = 1e-4
COMPUTED = "bfloat16"  # what runs round a wider base to, see model.dtype
_RUNTIME = {"dtype", "param_dtype", "remat", "attention"}  # fields of a config that say nothing about the model


class Report(NamedTuple):
    text: str
    equal: bool


class Line(NamedTuple):
    """A finding. fault: what to say of it in the verdict, or None."""

    name: str
    text: str
    fault: str | None = None

    def __str__(self) -> str:
        return f"{self.name:<13}{self.text}"


def verify(a: Source, b: Source, text: str | None, tolerance: float, transformers: bool = False) -> Report:
    """Compares A and B.

    Args:
      text: what logits are compared on; None is a fixed one.
      tolerance: largest |A-B| of tensors; 0 asks for the same bits.
      transformers: also run A, a Hugging Face directory, in transformers.

    Raises:
      ValueError, OSError, RuntimeError: a side that cannot be read, or an argument that does not fit; one line.
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"--tolerance {tolerance:g} must be a number of at least 0")
    if transformers and (a.kind != "hf" or a.adapter is not None):
        raise ValueError("--transformers needs A to be a Hugging Face directory: export it with to-hf or merge first")
    if transformers:
        require_torch()  # an error that is found early
    mesh = make_mesh()
    sides = one, other = open_source(a, mesh), open_source(b, mesh)
    with progress_bar("comparing", one.nbytes + other.nbytes) as progress:
        tensors = list(compare_tensors(one, other, progress))
    config = _compare_configs(one, other)
    lines = [config, _compared_tensors(tensors, tolerance)]
    if config.fault is None and any(not x.within(tolerance) for x in tensors):
        lines += [Line("reason", reason, reason) for reason in _reasons((a, b), sides)]
    if any(x.fault is not None for x in tensors):
        lines.append(Line("logits", "not compared: the tensors have to be sound and of the same shapes first"))
    else:
        prompt = read_prompt(one, other, text)
        identical = config.fault is None and all(x.same_bits for x in tensors)
        lines.append(Line("prompt", prompt.fault or prompt.label, prompt.fault))
        lines += _compared_logits(sides, tensors, identical, prompt, transformers)
    faults = [line.fault for line in lines if line.fault is not None]
    heads = [Line(name, side.label) for name, side in zip("AB", sides, strict=True)]
    verdict = Line("verdict", "DIFFERENT: " + "; ".join(faults) if faults else _praise(tensors))
    blocks = [[*heads, config], [_tensor_table(tensors)], _mismatches(tensors, tolerance), [*lines[1:], verdict]]
    return Report("\n\n".join("\n".join(map(str, block)) for block in blocks if block), not faults)


def _reasons(sources: tuple[Source, Source], sides: tuple[Opened, Opened]) -> list[str]:
    """Why tensors differ, where it is only that one side has the base of the other rounded, as a run computes."""
    mesh = make_mesh()
    for i, source in enumerate(sources):
        other, name = sides[1 - i], "AB"[i]
        if source.adapter is not None and source.kind == "hf":
            told = f"the base of {name} is rounded to {COMPUTED} in {'BA'[i]}"
            again = open_source(source, mesh, COMPUTED)
        elif source.kind == "run" and sides[i].adapter is not None:
            dtype = sides[i].config.param_dtype
            told = f"the run {name} computes with its base rounded to {dtype}, and {'BA'[i]} has it exact"
            again = open_weights(open_run(source.path, source.step), mesh, exact_base=True)
        else:
            continue
        if all(x.same_bits for x in compare_tensors(again, other, lambda _: None)):
            return [f"the same adapter on the same base, but {told}"]
    return []


def _praise(tensors: Sequence[Compared]) -> str:
    if not all(x.same_bits for x in tensors):
        return "equal within the tolerance"
    narrowed = any(x.dtypes[0] != x.dtypes[1] for x in tensors)
    return "equal, in the narrower of the two dtypes" if narrowed else "equal, bit for bit"


def _compare_configs(a: Opened, b: Opened) -> Line:
    ours, theirs = vars(a.config), vars(b.config)
    differing = [key for key in ours if key not in _RUNTIME and ours[key] != theirs[key]]
    told = ", ".join(f"{key} {ours[key]!r} in A and {theirs[key]!r} in B" for key in differing)
    return Line("config", told or "equal", f"the configs differ in {', '.join(differing)}" if differing else None)


# ---------------------------------------------------------------------------------------------------------- tensors


def _compared_tensors(tensors: Sequence[Compared], tolerance: float) -> Line:
    bad = [x for x in tensors if not x.within(tolerance)]
    asked = f"largest |A-B| at most {tolerance:g}" if tolerance else "the same bits"
    fault = f"{len(bad)} of {len(tensors)} tensors ({bad[0].name}{', ...' if len(bad) > 1 else ''})" if bad else None
    return Line("tensors", f"{len(tensors) - len(bad)} of {len(tensors)} are equal ({asked})", fault)


def _tensor_table(tensors: Sequence[Compared]) -> str:
    kinds: dict[str, list[Compared]] = {}
    for x in tensors:
        kinds.setdefault(x.kind, []).append(x)
    rows = [_row(kind, group) for kind, group in kinds.items()]
    return table(["tensor", "count", "shape", "A", "B", "compared as", "max |A-B|", "equal bits"], rows, "lrllllrl")


def _row(kind: str, group: Sequence[Compared]) -> list[str]:
    only = lambda values: "/".join(dict.fromkeys(value or "-" for value in values))  # noqa: E731
    distances = [x.largest for x in group]
    largest = math.nan if any(map(math.isnan, distances)) else max(distances)
    equal = sum(x.same_bits for x in group)
    told = "yes" if equal == len(group) else "no" if len(group) == 1 else f"no ({len(group) - equal} of {len(group)})"
    dtypes = [only(x.dtypes[i] for x in group) for i in range(3)]
    shape = only(str(list(x.shape)) for x in group)
    return [kind, str(len(group)), shape, *dtypes, "-" if math.isnan(largest) else f"{largest:.3g}", told]


def _mismatches(tensors: Sequence[Compared], tolerance: float) -> list[str]:
    bad = [x for x in tensors if not x.within(tolerance)]
    lines = [f"  {x.name}: {x.fault or _distance(x)}" for x in bad]
    return ["mismatching tensors:", *lines] if bad else []


def _distance(x: Compared) -> str:
    count = f"{x.differing:,} of {math.prod(x.shape):,} numbers differ"
    return f"{count}, max |A-B| {x.largest:.3g} at {list(x.where)}"


# ----------------------------------------------------------------------------------------------------------- logits


def _compared_logits(
    sides: tuple[Opened, Opened], tensors: Sequence[Compared], identical: bool, prompt: Prompt, transformers: bool
) -> list[Line]:
    """Both as far as they are compared, that is in the narrower dtypes; A alone, beside transformers, in its own."""
    mesh, narrowed = make_mesh(), {x.name: x.dtypes[2] for x in tensors}
    ours, theirs = (logits(side, prompt.ids, narrowed, mesh, name) for name, side in zip("AB", sides, strict=True))
    lines = [_logits_line("logits", ours, theirs, 0.0 if identical else LOGIT_TOLERANCE)]
    if transformers:
        if any(x.dtypes[0] != x.dtypes[2] for x in tensors):
            ours = logits(sides[0], prompt.ids, {}, mesh, "A")
        known = transformers_logits(sides[0].directory, prompt.ids)
        lines.append(_logits_line("transformers", ours, known, LOGIT_TOLERANCE * float(np.abs(known).max())))
    return lines


def _logits_line(name: str, ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> Line:
    largest = float(np.abs(ours - theirs).max())
    fault = None if largest <= tolerance else f"{name} differ by {largest:.3g}"  # NaN differs
    return Line(name, f"max |difference| {largest:.3g} (at most {tolerance:.3g})", fault)
