"""What a run reads besides its config: rows, templates, weights. Told apart by short fingerprints.

They are kept in every checkpoint, so that a run does not go on with other content under the same names.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from jopsd.config import Config, ConfigError
from jopsd.data.problem import Problem
from jopsd.prompts import Item
from jopsd.sampling.fingerprint import model_fingerprint
from jopsd.setup import Task, Weights

# Where rows are and how they are numbered there may change; other columns are read by nothing.
_FIELDS = [field.name for field in fields(Problem) if field.name not in ("source", "extra", "row")]
# Texts that tell tokenizers of one vocabulary apart: digits, spaces, apostrophes, accents, scripts, lines.
_PROBES = ("12+345=6.70", "  Don't   stop: x_1\\frac{1}{2}\n\n\ty", "na\u00efve e\u0301", "\u6570\u5b66 \u0928\u092e")
Content = dict[str, str]


def content_of(config: Config, task: Task, weights: Weights) -> Content:
    """Fingerprints by what they are of, such as "rows of data". On several processes all must call it."""
    found, first = {}, 0
    for (key, _, _), part in zip(config.data.parts("data"), task.parts, strict=True):
        found[f"rows of {key}"] = _rows(task.train[first : first + part.rows])
        first += part.rows
    if task.held_out:
        found["rows of eval.data"] = _rows(task.held_out)
    teachers = {f"teacher {label}".strip(): tokenizer for label, tokenizer in task.tokenizers.teachers.items()}
    for who, tokenizer in {"the student": task.tokenizers.student, **teachers}.items():
        found[f"template of {who}"] = _hash(tokenizer.chat_template)
        found[f"tokenizer of {who}"] = _hash(
            [sorted(tokenizer.get_vocab().items()), [_encoded(tokenizer, text) for text in _PROBES], task.stop_ids]
        )
    models = weights.models
    read = {"model.path": models.base, "reference.path": models.reference}
    read |= {f"teacher.models.{label}" if label else "teacher.path": model for label, model in models.external.items()}
    return found | {f"weights of {key}": model_fingerprint(model) for key, model in read.items() if model is not None}


def changed_content(saved: Mapping[str, Any], config: Config, now: Content) -> list[str]:
    """What differs from what a checkpoint was trained on, in words, where the config accepts that.

    Args:
      saved: the checkpoint's metadata. now: what is there.

    Raises:
      ConfigError: something differs that `checkpoint.accept` does not name.
    """
    then: Content = saved.get("content") or {}
    other_eval = (saved.get("config") or {}).get("eval") != config.model_dump(mode="json")["eval"]
    differing = [
        key
        for key in then.keys() & now.keys()
        if then[key] != now[key] and not (other_eval and key == "rows of eval.data")
    ]
    told = [f"{key} ({then[key]} then, {now[key]} now)" for key in sorted(differing)]
    refused = sorted({_group(key) for key in differing} - set(config.checkpoint.accept))
    if refused:
        accept = ", ".join(sorted({*refused, *config.checkpoint.accept}))
        raise ConfigError(
            f"{config.output_dir} was trained with other content than is there now: {'; '.join(told)}; put back what "
            f"was there, set another output_dir, or go on with checkpoint.accept=[{accept}]"
        )
    return told


def _group(key: str) -> str:
    kind = key.partition(" ")[0]
    return "template" if kind == "tokenizer" else kind


def _encoded(tokenizer, text: str) -> list[int] | None:
    try:
        return tokenizer.encode(text, add_special_tokens=False)
    except Exception:  # of the tokenizers library, for a character that a small vocabulary does not have
        return None


def _rows(items: Iterable[Item]) -> str:
    rows = [[getattr(item.problem, name) for name in _FIELDS] for item in items]
    return f"{len(rows)} rows {_hash(rows)}"


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, default=str).encode()).hexdigest()[:12]
