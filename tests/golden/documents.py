"""Checkers of the golden files that are not losses: each takes the parsed JSON or the arrays and returns its faults.

An empty list means that the document holds. A checker raises NotImplementedError for a key that it cannot read.
"""

import re
from collections.abc import Callable
from functools import partial
from importlib import import_module

import jax
import numpy as np

from jopsd.batch import TrainBatch
from jopsd.losses import group_advantages, log_softmax, loss_from_logits, rollout_mask, rollout_weights, token_logprobs
from jopsd.methods import Opd, Rlcsd

TRL_EPS = 1e-4
TABLE = re.compile(
    r"(?P<kind>w|rsmask)_(?P<level>token|sequence|geometric)_(?P<threshold>[0-9p_]+?)(?:_(?P<form>raw|bn))?"
)


def grpo_advantages(document: dict) -> list[str]:
    """TRL's advantages, which it stores in float32 and divides by a deviation plus 1e-4."""
    faults = []
    for case in document["cases"]:
        rewards = np.asarray(case["rewards"], np.float64)
        group = np.arange(len(rewards)) // case.get("num_generations", len(rewards))
        ours = group_advantages(rewards, group, eps=TRL_EPS)
        if not np.allclose(ours, case["advantages"], atol=2e-6):
            faults.append(f"rewards {case['rewards']}: {np.asarray(ours)}, published {case['advantages']}")
    return faults


def importance_tables(arrays: dict) -> list[str]:
    """Weights and rejection masks of one table of log ratios; the array's name says at which settings."""
    gap, mask = arrays["log_ratio"], arrays["response_mask"]
    zero, faults = np.zeros_like(gap), []
    for name, published in arrays.items():
        if name in ("log_ratio", "response_mask"):
            continue
        setting = TABLE.fullmatch(name)
        if not setting:
            raise NotImplementedError(f"array {name}")
        bounds = tuple(float(bound.replace("p", ".")) for bound in setting["threshold"].split("_"))
        threshold = bounds if len(bounds) > 1 else bounds[0]
        if setting["kind"] == "w":
            ours = rollout_weights(gap, zero, mask, setting["level"], threshold, setting["form"] == "bn")
        else:
            ours = rollout_mask(gap, zero, mask, setting["level"], threshold)
        error = np.abs(np.asarray(ours) - published).max()
        if not error <= 1e-9:
            faults.append(f"{name}: error {error:.1e}")
    return faults


def rlcsd_padding_nan(document: dict) -> list[str]:
    """The published KL of an all-masked micro-batch is 0 / 0; here loss and gradient are 0."""
    batch = TrainBatch(
        targets=np.zeros((2, 3), np.int32),
        mask=np.zeros((2, 3)),
        present={"negative": np.ones((2, 4))},
        reward=np.array([1.0, 0.0]),
        group=np.zeros(2, np.int32),
    )
    rng = np.random.default_rng(0)
    views = {"teacher": rng.normal(size=(2, 3, 5)), "negative": rng.normal(size=(2, 4, 3, 5))}
    views["reference"] = rng.normal(size=(2, 3, 5))
    faults = [] if np.isnan(document["kl_loss_all_masked"]) else ["the document does not say what its name does"]
    for coefficient in (0.0, 0.1):
        loss = lambda x: loss_from_logits(Rlcsd(kl_coef=coefficient), x, views, batch)[0]  # noqa: B023, E731
        value, gradient = jax.value_and_grad(loss)(rng.normal(size=(2, 3, 5)))
        if float(value) != 0 or np.abs(gradient).max() != 0:
            faults.append(f"kl_coef {coefficient}: loss {value}, largest gradient {np.abs(gradient).max()}")
    return faults


def gopd_multi_microbatch2(document: dict) -> list[str]:
    """The published routing between teachers breaks on micro-batches of two rows; here their size changes nothing."""
    if "Error" not in document["result"]:
        return ["the document does not say what its name does"]
    rng = np.random.default_rng(0)
    targets, mask = rng.integers(0, 5, (6, 3)), rng.integers(0, 2, (6, 3))
    first, second, reference = rng.normal(size=(3, 6, 3, 5))
    teacher = np.where((np.arange(6) % 2)[:, None, None], second, first)  # routed by row
    method, student, batch = Opd(lam=1.25), rng.normal(size=(6, 3, 5)), TrainBatch(targets, mask.astype(float))
    logprob = lambda logits: token_logprobs(log_softmax(logits), targets)  # noqa: E731
    views = {"teacher": teacher, "reference": reference, "student": student}
    constants = method.weigh({f"{view}.logprob": logprob(x) for view, x in views.items()}, batch, 0)
    whole, _ = loss_from_logits(method, student, {"teacher": teacher, "reference": reference}, batch)
    faults = []
    for size in (1, 2, 3):
        total = 0.0
        for start in range(0, 6, size):
            rows = slice(start, start + size)
            part = {name: x[rows] for name, x in constants.items()}
            total += method.value(log_softmax(student[rows]), {}, targets[rows], part).sum()
        if not abs(float(total - whole)) < 1e-12:
            faults.append(f"micro-batches of {size}: {total}, whole {whole}")
    return faults


def _elsewhere(module: str, name: str, document: dict) -> list[str]:
    """A checker in a sibling module, imported when called because it needs much more of jopsd than a loss does."""
    return getattr(import_module(f"tests.golden.{module}"), name)(document)


_ELSEWHERE = {
    "copsd_language_facts": "languages",
    "ema_teacher": "teachers",
    "eval_aggregation": "scores",
    "grading": "verifiers",
    "kk_solver": "verifiers",
    "mopd_prompts": "prompts",
    "passk_table": "scores",
    "rlcsd_hint_pools": "prompts",
    "teacher_update_rlcsd": "teachers",
    "think_patch": "prompts",
    "validation_metrics_mopd": "scores",
    "validation_metrics_rlcsd": "scores",
    "verifier_gopd": "verifiers",
    "verifier_mopd": "verifiers",
    "verifier_rlcsd": "verifiers",
}

# By file stem.
DOCUMENTS: dict[str, Callable[[dict], list[str]]] = {
    "gopd_multi_microbatch2": gopd_multi_microbatch2,
    "grpo_advantages": grpo_advantages,
    "rlcsd_padding_nan": rlcsd_padding_nan,
    "rollout_correction_gopd": importance_tables,
    "rollout_is_weights_rlcsd": importance_tables,
    **{name: partial(_elsewhere, module, name) for name, module in _ELSEWHERE.items()},
}
