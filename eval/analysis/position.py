"""How far the teacher can be trusted at each place of a rollout, and what PW-OPSD's weight makes of that place.

PW-OPSD (arXiv 2605.21606) weighs tokens by their relative position because a teacher that has read the solution is
more reliable late in a completion. Here every token has a relative position (t + 1/2) / T, t counted from 0, and an
absolute one, t + 1; bins of the one are equally wide, bins of the other are powers of two. Of each bin, over its tokens
unless said otherwise:

    tokens, rollouts   how many
    gap, abs_gap       mean of log teacher - log student, and of its size, nats
    divergence         mean divergence of student and teacher over the vocabulary, nats
    teacher_entropy    mean entropy of the teacher, nats
    reliability        probability that a right rollout has a higher mean gap in the bin than a wrong one, ties counting
                       half: 1/2 is a teacher that cannot tell. None where the bin has only right or only wrong rollouts
    weight             mean of PW-OPSD's weight, see `jopsd.losses.position_weights`
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from eval.analysis import gaps
from eval.analysis.gaps import Gaps, joined
from eval.analysis.output import figure, write_tables
from eval.analysis.signal_metrics import success_auc
from eval.progress import Say, say_to_stderr
from jopsd.losses import position_weights
from jopsd.methods.pwopsd import PwOpsd

FIELDS = ("gap", "divergence", "teacher_entropy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    gaps.add_arguments(parser)
    add = parser.add_argument
    defaults = {name: PwOpsd.model_fields[name].default for name in ("w_min", "tau", "s")}
    add("--bins", type=int, default=20, help="of relative position")
    add("--alpha", type=float, default=0.5, help="of the divergence: 0 is KL(teacher || student), 1 the reverse")
    add("--success", type=float, default=1.0, metavar="REWARD", help="a rollout with this or more is right")
    add("--w-min", type=float, default=defaults["w_min"], help="PW-OPSD's weight of the first tokens")
    add("--tau", type=float, default=defaults["tau"], help="the middle of its ramp, as a relative position")
    add("--s", type=float, default=defaults["s"], help="the width of its ramp")


def run(args: argparse.Namespace, say: Say = say_to_stderr) -> None:
    """Writes the tables and the figure. Raises ValueError: an argument out of range, or nothing to read."""
    if args.bins < 1:
        raise ValueError(f"--bins must be at least 1, got {args.bins}")
    if not 0 <= args.alpha <= 1:
        raise ValueError(f"--alpha must be in [0, 1], got {args.alpha}")
    ramp = {name: getattr(args, name) for name in ("w_min", "tau", "s")}
    weights_of([1], **ramp)  # says what is out of range
    found, about, _ = gaps.load_gaps(args, alpha=args.alpha)
    rows = by_position(found, args.bins, args.success, **ramp)
    about["settings"] |= {"bins": args.bins, "alpha": args.alpha, "success": args.success, **ramp}
    right = [own.saved.reward >= args.success for own in found if own.saved.reward is not None]
    counts = {"right": sum(right), "wrong": len(right) - sum(right), "not_graded": len(found) - len(right)}
    output = Path(args.output)
    say(write_tables(output, rows, {**about, **counts, "bins": rows}))
    _draw(rows, output / "figure.png")


def by_position(found: Sequence[Gaps], bins: int, success: float, w_min: float, tau: float, s: float) -> list[dict]:
    """A row per bin that has tokens: first relative positions (in [0, 1]), then absolute ones (tokens, from 1).

    Args:
      found: with divergences. success: the reward of a right rollout; those without a reward have no part in
        `reliability`.
    """
    lengths = [len(own.ids) for own in found]
    weights = np.concatenate(weights_of(lengths, w_min, tau, s))
    values = {name: joined(found, name) for name in FIELDS} | {"weight": weights}
    owner = np.repeat(np.arange(len(found)), lengths)
    right = [None if own.saved.reward is None else own.saved.reward >= success for own in found]
    relative = np.concatenate([relative_bins(length, bins) for length in lengths])
    absolute = np.concatenate([absolute_bins(length) for length in lengths])
    rows = []
    for number, row in _rows(values, owner, relative, right):
        rows.append({"scale": "relative", "low": number / bins, "high": (number + 1) / bins, **row})
    for number, row in _rows(values, owner, absolute, right):
        rows.append({"scale": "absolute", "low": 2**number, "high": 2 ** (number + 1) - 1, **row})
    return rows


def relative_bins(length: int, bins: int) -> np.ndarray:
    """Of each of `length` tokens the bin, from 0, that holds (t + 1/2) / length: int [T]. Exact, in whole numbers."""
    return (2 * np.arange(length) + 1) * bins // (2 * length)


def absolute_bins(length: int) -> np.ndarray:
    """Of each token t + 1 the largest b with 2^b <= t + 1: int [T]."""
    return np.frexp(np.arange(1, length + 1))[1] - 1


def weights_of(lengths: Sequence[int], w_min: float, tau: float, s: float) -> list[np.ndarray]:
    """PW-OPSD's weights of completions of these lengths, float64 [T] each. Raises ValueError as `position_weights`."""
    table: dict[int, np.ndarray] = {}
    different = np.unique(lengths)
    powers = 1 << np.ceil(np.log2(np.maximum(different, 64))).astype(int)  # few widths, for each is compiled
    for width in np.unique(powers):
        own = different[powers == width]
        weights = np.asarray(position_weights(np.arange(width) < own[:, None], w_min, tau, s), float)
        table |= {int(length): row[:length] for length, row in zip(own, weights, strict=True)}
    return [table[length] for length in lengths]


def _rows(values: Mapping[str, np.ndarray], owner: np.ndarray, place: np.ndarray, right: Sequence[bool | None]):
    """(bin, its figures) of every bin with tokens. owner: the rollout of each token."""
    for number in np.unique(place):
        here = place == number
        gap, owners = values["gap"][here], owner[here]
        mean = {name: float(own[here].mean()) for name, own in values.items()}
        members, counts = np.unique(owners, return_counts=True)
        each = np.bincount(owners, gap)[members] / counts
        graded = [(own, right[member]) for own, member in zip(each, members, strict=True) if right[member] is not None]
        yield (
            int(number),
            {
                "tokens": int(here.sum()),
                "rollouts": len(members),
                "gap": mean["gap"],
                "abs_gap": float(np.abs(gap).mean()),
                "divergence": mean["divergence"],
                "teacher_entropy": mean["teacher_entropy"],
                "reliability": success_auc(*zip(*graded, strict=True)) if graded else None,
                "weight": mean["weight"],
            },
        )


def _draw(rows: Sequence[Mapping], path: Path) -> None:
    """A line of axes per scale: sizes of the gap, entropy, and reliability beside the weight."""
    panels = (("gap", "abs_gap", "divergence"), ("teacher_entropy",), ("reliability", "weight"))
    labels = ("nats per token", "teacher entropy, nats", "")
    with figure(path, columns=len(panels), rows=2) as axes:
        for line, scale in zip(axes, ("relative", "absolute"), strict=True):
            own = [row for row in rows if row["scale"] == scale]
            x = [row["low"] if scale == "absolute" else (row["low"] + row["high"]) / 2 for row in own]
            for axis, names, label in zip(line, panels, labels, strict=True):
                for name in names:
                    y = [float("nan") if row[name] is None else row[name] for row in own]
                    axis.plot(x, y, marker="o", markersize=3, label=name)
                axis.set(xlabel=f"{scale} position", ylabel=label)
                axis.legend(fontsize=8)
                if scale == "absolute":
                    axis.set_xscale("log", base=2)
                if "reliability" in names:
                    axis.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
