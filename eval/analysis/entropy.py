"""The privileged gap by how uncertain the student is: is it in the few tokens where a rollout can turn?

Tokens are put into bins of the student's entropy that have equally many tokens. A minority of tokens with high entropy
is where rollouts fork (arXiv 2506.01939); the table shows whether what the teacher knows more goes there. Of each bin:

    low, high          the student's entropy there, nats
    tokens             how many; tokens of equal entropy stay together, so bins may differ
    gap, abs_gap       mean of log teacher - log student, and of its size, nats
    share_abs_gap      the bin's share of the sum of |gap| over all tokens
    raised             share of its tokens that the teacher finds likelier than the student does
    teacher_entropy    mean entropy of the teacher, nats
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from eval.analysis import gaps
from eval.analysis.gaps import joined
from eval.analysis.output import figure, write_tables
from eval.analysis.signal_metrics import pearson, spearman
from eval.progress import Say, say_to_stderr

TOP = 0.2  # share of tokens that counts as the minority


def add_arguments(parser: argparse.ArgumentParser) -> None:
    gaps.add_arguments(parser)
    parser.add_argument("--bins", type=int, default=10, help="of the student's entropy")


def run(args: argparse.Namespace, say: Say = say_to_stderr) -> None:
    """Writes the table and the figure. Raises ValueError: an argument out of range, or nothing to read."""
    if args.bins < 1:
        raise ValueError(f"--bins must be at least 1, got {args.bins}")
    found, about, _ = gaps.load_gaps(args)
    gap, student, teacher = (joined(found, name) for name in ("gap", "student_entropy", "teacher_entropy"))
    rows = by_entropy(gap, student, teacher, args.bins)
    about["settings"] |= {"bins": args.bins}
    overall = correlations(gap, student)
    output = Path(args.output)
    table = write_tables(output, rows, {**about, **overall, "bins": rows})
    _draw(rows, output / "figure.png")
    said = ", ".join(f"{name} {'–' if value is None else format(value, '.3f')}" for name, value in overall.items())
    say(f"{table}\n\n{said}")


def by_entropy(gap: np.ndarray, student: np.ndarray, teacher: np.ndarray, bins: int) -> list[dict]:
    """One row per bin of student entropy that has tokens, lowest first.

    Args:
      gap, student, teacher: [N] gap and entropies of both, nats.
    """
    sizes = np.abs(gap)
    total = sizes.sum()
    place = quantile_bins(student, bins)
    rows = []
    for number in np.unique(place):
        own = place == number
        rows.append(
            {
                "low": float(student[own].min()),
                "high": float(student[own].max()),
                "tokens": int(own.sum()),
                "gap": float(gap[own].mean()),
                "abs_gap": float(sizes[own].mean()),
                "share_abs_gap": float(sizes[own].sum() / total) if total > 0 else None,
                "raised": float((gap[own] > 0).mean()),
                "teacher_entropy": float(teacher[own].mean()),
            }
        )
    return rows


def quantile_bins(values: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each value, from 0: int [N]. Equal values share the one where the middle of their ranks falls."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    middle = (2 * last - counts)[inverse]  # twice the mean of the ranks from 1/2 to N - 1/2
    return middle * bins // (2 * len(values))


def correlations(gap: np.ndarray, student: np.ndarray) -> dict[str, float | None]:
    """Over all tokens: correlation of student entropy and |gap|, None where either is constant, and `top_share`."""
    sizes = np.abs(gap)
    known = np.ptp(sizes) > 0 and np.ptp(student) > 0
    return {
        "pearson": pearson(student, sizes) if known else None,
        "spearman": spearman(student, sizes) if known else None,
        "top_share": top_share(sizes, student),
    }


def top_share(sizes: np.ndarray, entropies: np.ndarray, top: float = TOP) -> float | None:
    """Share of the sum of `sizes` [N] in the `top` tokens of highest entropy; None where the sum is 0.

    The number of tokens is rounded up. Tokens tied at the border count by their mean, so that order has no say.
    """
    total = sizes.sum()
    if not total > 0:
        return None
    count = int(np.ceil(round(top * len(sizes), 9)))
    border = np.sort(entropies)[-count]
    above, tied = entropies > border, entropies == border
    return float((sizes[above].sum() + (count - above.sum()) * sizes[tied].mean()) / total)


def _draw(rows: Sequence[Mapping], path: Path) -> None:
    """Gap, shares and teacher entropy over the bins, which are named by their highest entropy."""
    panels = {"nats per token": ("gap", "abs_gap"), "share": ("share_abs_gap", "raised"), "nats": ("teacher_entropy",)}
    x = range(len(rows))
    with figure(path, columns=len(panels)) as (axes,):
        for axis, (label, names) in zip(axes, panels.items(), strict=True):
            for name in names:
                y = [float("nan") if row[name] is None else row[name] for row in rows]
                axis.plot(x, y, marker="o", markersize=3, label=name)
            axis.set(xlabel="student entropy up to, nats", ylabel=label)
            axis.set_xticks(x, [f"{row['high']:.2g}" for row in rows], rotation=90, fontsize=7)
            axis.legend(fontsize=8)
