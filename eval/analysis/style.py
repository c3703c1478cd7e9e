r"""How much of what a teacher knows more is about the task, and how much about style: the gap by class of token.

A hint changes a teacher's wording as well as its results. RLCSD (arXiv 2606.11709) therefore subtracts what wrong hints
do: its evidence is log T(y | right hint) - log mean_k T(y | wrong hint k). Beside one another, per class of token:

    tokens                      how many
    right, wrong, contrast      mean size, nats, of: the gap between student and teacher with the right hint;
                                the same with the mean over the wrong hints; RLCSD's evidence
    share_right, share_wrong, share_contrast
                                the class's share of the sum of these sizes over all tokens

`style_classes.classes_of` tells the classes by rules. `task` is number, mathematics and answer; `style` is connective,
formatting and punctuation; other words are neither. The share of `task` under each of the three is the headline.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from eval.analysis import gaps
from eval.analysis.gaps import Gaps, joined
from eval.analysis.output import figure, write_tables
from eval.analysis.style_classes import CLASSES, STYLE, TASK, classes_of
from eval.progress import Say, say_to_stderr
from jopsd.losses import k_marginal

GROUPS = {"task": TASK, "style": STYLE, "all": CLASSES}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    gaps.add_arguments(parser)


def run(args: argparse.Namespace, say: Say = say_to_stderr) -> None:
    """Writes the table and the figure. Raises ValueError: an argument out of range, or nothing to read."""
    found, about, tokenizer = gaps.load_gaps(args, hints=True)
    classes = np.concatenate([token_classes(tokenizer, own) for own in found])
    sizes = sizes_of(found)
    rows = by_class(sizes, classes)
    headline = {name: next(row for row in rows if row["class"] == "task")[f"share_{name}"] for name in sizes}
    note = None
    if "contrast" not in sizes:
        note = "No rollout has the view negative, so there is no contrast: only the right hint is shown."
    output = Path(args.output)
    summary = {**about, "hints": [len(own.negative) for own in found], "note": note, "task_share": headline}
    table = write_tables(output, rows, {**summary, "classes": rows}, note)
    _draw(rows, list(sizes), output / "figure.png")
    shares = ", ".join(f"{name} {'–' if share is None else format(share, '.3f')}" for name, share in headline.items())
    say(f"{table}\n\nshare of the task: {shares}")


def sizes_of(found: Sequence[Gaps]) -> dict[str, np.ndarray]:
    """Nats by hint, float64 [N] over the tokens of all rollouts: `right`, and where all have wrong hints the others."""
    sizes = {"right": np.abs(joined(found, "gap"))}
    if all(len(own.negative) for own in found):
        wrong = wrong_logprobs([own.negative for own in found])
        sizes["wrong"] = np.abs(wrong - joined(found, "student"))
        sizes["contrast"] = np.abs(joined(found, "teacher") - wrong)
    return sizes


def wrong_logprobs(negatives: Sequence[np.ndarray]) -> np.ndarray:
    """RLCSD's K-marginal of each token: float64 [N] of arrays [K,T], where K may differ."""
    most = max(len(own) for own in negatives)
    tokens = sum(own.shape[1] for own in negatives)
    filled, valid = np.zeros((tokens, most, 1), np.float32), np.zeros((tokens, most), bool)
    start = 0
    for own in negatives:  # tokens stand where rows of a batch do, so that there is one shape
        end = start + own.shape[1]
        filled[start:end, : len(own), 0], valid[start:end, : len(own)] = own.T, True
        start = end
    return np.asarray(k_marginal(filled, valid), float)[:, 0]


def token_classes(tokenizer, own: Gaps) -> np.ndarray:
    """The class of each token of a rollout, [T] of str; a stop token, of which the text has nothing, is formatting.

    Raises:
      ValueError: the tokenizer does not say where in the text its tokens stand.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError("the model's tokenizer does not tell where its tokens stand; it needs a tokenizer.json")
    spans = tokenizer(own.saved.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    end = len(own.saved.text)
    return np.array(classes_of(own.saved.text, [*spans, *[(end, end)] * (len(own.ids) - len(spans))]))


def by_class(sizes: Mapping[str, np.ndarray], classes: np.ndarray) -> list[dict]:
    """A row per class that has tokens, then `task`, `style` and `all`.

    Args:
      sizes: nats [N] by hint. classes: [N] names.
    """
    own = {name: classes == name for name in CLASSES if (classes == name).any()}
    own |= {name: np.isin(classes, members) for name, members in GROUPS.items()}
    rows = []
    for name, here in own.items():
        row = {"class": name, "tokens": int(here.sum())}
        for hint, values in sizes.items():
            total = values.sum()
            row[hint] = float(values[here].mean()) if here.any() else None
            row[f"share_{hint}"] = float(values[here].sum() / total) if total > 0 else None
        rows.append(row)
    return rows


def _draw(rows: Sequence[Mapping], hints: Sequence[str], path: Path) -> None:
    """Bars per class: mean size and share, for each hint."""
    width = 0.8 / len(hints)
    names = [row["class"] for row in rows]
    with figure(path, columns=2, size=(5.5, 3.6)) as (axes,):
        for axis, (prefix, label) in zip(axes, (("", "mean size, nats"), ("share_", "share")), strict=True):
            for number, hint in enumerate(hints):
                heights = [row[prefix + hint] or 0.0 for row in rows]
                axis.bar([x + number * width for x in range(len(rows))], heights, width, label=hint)
            middle = width * (len(hints) - 1) / 2
            axis.set_xticks([x + middle for x in range(len(rows))], names, rotation=90, fontsize=8)
            axis.set_ylabel(label)
            axis.legend(fontsize=8)
