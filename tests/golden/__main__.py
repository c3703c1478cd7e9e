"""Compares every case of a directory of golden vectors with our loss and gradient, in float64.

A directory holds `manifest.json` and one .npz per case. Two manifest layouts are read: `files[name.npz] = {method,
hyperparameters}` and `cases[name] = {file, method, hyperparameters}`.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jopsd.batch import TrainBatch
from jopsd.losses import loss_from_logits
from tests.golden.cases import ADAPTERS, Case


class Outcome(NamedTuple):
    name: str
    method: str
    status: str  # "ok", "FAIL", "info" (reported, not judged) or "skip"
    detail: str


def read_cases(directory: Path) -> Iterator[tuple[str, str, dict, dict]]:
    """(name, method, hyperparameters, arrays) of each numeric case."""
    path = directory / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: a golden directory holds manifest.json and .npz files")
    manifest = json.loads(path.read_text())
    entries = manifest.get("files") or manifest.get("cases")
    if not entries:
        raise ValueError(f"{path} has neither 'files' nor 'cases'")
    for name, entry in entries.items():
        file = directory / entry.get("file", name)
        if file.suffix != ".npz":
            continue
        with np.load(file) as arrays:
            yield file.stem, entry["method"], entry.get("hyperparameters", {}), dict(arrays)


def loss_and_gradient(case: Case) -> tuple[float, np.ndarray]:
    batch = TrainBatch(targets=np.maximum(case.targets, 0), mask=case.mask.astype(np.float64), **(case.batch or {}))

    def loss(student_logits):
        return loss_from_logits(case.method, student_logits, case.teachers, batch, case.step)[0] * case.scale

    value, gradient = jax.value_and_grad(loss)(case.student_logits)
    return float(value), np.asarray(gradient)


def check(name: str, method: str, hyperparameters: dict, arrays: dict) -> Outcome:
    """One case's verdict, with the largest absolute errors of loss and gradient."""
    if method not in ADAPTERS:
        return Outcome(name, method, "skip", "jopsd has no such method")
    try:
        case = ADAPTERS[method](hyperparameters, arrays)
    except (KeyError, NotImplementedError) as error:
        return Outcome(name, method, "skip", f"not a case this runner reads: {error!r}")
    with jax.enable_x64(True):
        loss, gradient = loss_and_gradient(case)
    # 0/0 in the published code; an empty batch is 0 with zero gradient here.
    want_loss = np.where(np.isnan(case.loss), 0, case.loss)
    want_gradient = np.where(np.isnan(case.loss), 0, case.gradient)
    errors = abs(loss - want_loss), np.abs(gradient - want_gradient).max(initial=0)
    within = max(errors) <= case.tolerance  # False for NaN
    status = "info" if case.informational else ("ok" if within else "FAIL")
    return Outcome(
        name, method, status, f"loss {errors[0]:.1e}  gradient {errors[1]:.1e}  tolerance {case.tolerance:.0e}"
    )


def run(directory: Path, method: str | None = None) -> list[Outcome]:
    return [check(*case) for case in read_cases(directory) if method in (None, case[1])]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--method", help="only the cases of this method")
    args = parser.parse_args(argv)
    try:
        outcomes = run(args.directory, args.method)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    for outcome in outcomes:
        print(f"{outcome.status:4}  {outcome.method:10} {outcome.name:45} {outcome.detail}")
    count = {s: sum(o.status == s for o in outcomes) for s in ("ok", "FAIL", "info", "skip")}
    print(f"{count['ok']} equal, {count['FAIL']} different, {count['info']} informational, {count['skip']} skipped")
    if not count["ok"] + count["FAIL"]:
        print(f"no case was compared: methods known here are {sorted(ADAPTERS)}", file=sys.stderr)
        return 1
    return 1 if count["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main())
