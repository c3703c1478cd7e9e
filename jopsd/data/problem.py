"""One training or evaluation problem, and how a row of any known data set becomes one."""

import math
import numbers
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jopsd.rewards.boxed import last_boxed

# `answer_number` comes before `answer`: where a set has both (AfriMGSM, MGSM), `answer` is a worked text or null.
ALIASES: dict[str, tuple[str, ...]] = {
    "id": ("id", "problem_idx", "question_id", "unique_id", "task_id", "idx"),
    "problem": ("problem", "question", "prompt", "Question"),
    "solution": ("solution", "r1_solution_1", "ref_solution"),
    "answer": ("answer_number", "answer", "Answer", "final_answer", "gt", "target"),
    "problem_en": ("problem_en",),
    "language": ("target_lang", "lang", "language", "lang_code"),
    "system": ("system",),
    "teacher": ("opd_teacher",),
    "attempt": ("attempt",),
    "critique": ("critique",),
}
# Transcripts and vectors of public sets that no method reads: tens of kilobytes a row, so they never enter `extra`.
NOT_KEPT = ("messages", "conversations", "COT_Reason", "r1_solution_2", "r1_solution_3", "embedding")

_LANGUAGE_COLUMN = re.compile(r"problem_([a-z]{2,3})")
_GSM_ANSWER = re.compile(r"\n#### *(.+?)\s*$")


@dataclass(frozen=True)
class Problem:
    """One problem. Text fields are None where the row has none; ``extra`` holds the row's other columns.

    teacher: label of the external teacher that the row is for. attempt, critique: a solution and what is wrong in it.
    tests: JSON text of the tests of a program (`jopsd.rewards.tests` reads it). verifier: name of the verifier of this
    row, where the data set says it.
    """

    id: str
    problem: str
    solution: str | None = None
    answer: str | None = None
    problem_en: str | None = None
    language: str | None = None
    system: str | None = None
    teacher: str | None = None
    attempt: str | None = None
    critique: str | None = None
    tests: str | None = None
    verifier: str | None = None
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)


class RowError(ValueError):
    """A row that cannot become a Problem: names the source, the row (counted from 0), the field and the columns."""

    def __init__(self, source: str, row_number: int, field: str, fault: str, columns: tuple[str, ...], fix: str = ""):
        self.row_number, self.field, self.fault, self.columns = row_number, field, fault, columns
        fix = fix or f"set data.columns.{field} to the column that holds it, or data.on_bad_row: skip"
        super().__init__(
            f"{source or 'data'}, row {row_number} (counted from 0), field {field!r}: {fault}; "
            f"columns present: {', '.join(columns) or 'none'}; fix: {fix}"
        )

    @property
    def reason(self) -> str:
        """Short text under which a skipped row is counted."""
        return f"{self.field}: {self.fault}"


def problem_from_row(
    row: Mapping[str, Any], row_number: int, columns: Mapping[str, str] | None = None, source: str = ""
) -> Problem:
    r"""Build a Problem from one row of a known layout (plain columns, verl, DeepMath, COPSD, MGSM, ...).

    ``columns`` maps Problem fields to column names (``extra_info.ref_solution`` reaches into a struct) and overrides
    the aliases. Without an answer column the answer is ``reward_model.ground_truth``, then the last ``\boxed{}`` of the
    solution. Naming a column ``problem_<code>`` as the problem (COPSD) sets ``language`` and takes the English text
    from ``problem``; a companion column ``<name>_ok`` that is not true rejects the row.

    Raises RowError for a row without a problem text, or where a column named in ``columns`` is missing, empty or no
    text; ValueError for a key of ``columns`` that is no field.
    """
    columns = dict(columns or {})
    unknown = sorted(set(columns) - set(ALIASES))
    if unknown:
        raise ValueError(f"data.columns has no field {unknown[0]!r}; known fields: {', '.join(ALIASES)}")
    present = tuple(row)
    texts: dict[str, str | None] = {}
    used = {column if column in row else column.split(".")[0] for column in columns.values()}
    for name in ALIASES:
        if name in columns:
            texts[name] = _named_text(row, row_number, name, columns[name], source, present)
        else:
            texts[name], column = _found_text(row, name)
            used.add(column)
    if "problem" in columns:
        _check_translation(row, row_number, columns["problem"], source, present)
        texts = _with_translation(texts, row, columns["problem"])
    if texts["problem"] is None:
        raise RowError(source, row_number, "problem", _why_missing(row, "problem"), present)
    texts = _with_derived_answer(texts, fixed=set(columns))
    if texts["id"] is None:
        texts["id"] = str(row_number)
    extra = {key: value for key, value in row.items() if key not in used and key not in NOT_KEPT}
    return Problem(**texts, source=source, extra=extra)


def require_fields(problem: Problem, required: tuple[str, ...], row: Mapping[str, Any], row_number: int) -> None:
    """Raise RowError for the first of ``required`` that ``problem`` (made from ``row``) lacks."""
    for name in required:
        if getattr(problem, name) is None:
            raise RowError(problem.source, row_number, name, _why_missing(row, name), tuple(row))


def _found_text(row: Mapping[str, Any], name: str) -> tuple[str | None, str]:
    """First usable text for a field by its aliases, and the column it came from ("" for none or a nested one)."""
    nested = _text(_verl_fields(row).get(name))
    if name == "problem" and nested is not None:
        return nested, ""  # verl keeps the bare problem beside the chat prompt, which may carry an instruction
    for alias in ALIASES[name]:
        text = _text(row.get(alias))
        if text is not None:
            return text, alias
    if name == "system":
        return _chat_text(row.get("prompt"), "system"), ""
    return nested, ""


def _text(value: Any) -> str | None:
    """A cell as text, or None if it is empty or no text. Whole floats become integer text (27.0 -> "27")."""
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real):
        number = float(value)
        if not math.isfinite(number):
            return None
        return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)
    return _chat_text(value, "user")


def _chat_text(value: Any, role: str) -> str | None:
    """Text of the last message of ``role`` in a chat list, else None."""
    if not isinstance(value, list | tuple) or not all(isinstance(m, Mapping) and "role" in m for m in value):
        return None
    for message in reversed(value):
        if message["role"] == role:
            content = message.get("content")
            if isinstance(content, list | tuple):  # multi-part content
                content = "".join(part.get("text") or "" for part in content if isinstance(part, Mapping))
            return content if isinstance(content, str) and content.strip() else None
    return None


def _verl_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a verl row: reward_model.ground_truth (text, number or struct) and extra_info."""
    fields: dict[str, Any] = {}
    info = row.get("extra_info")
    if isinstance(info, Mapping):
        for name, aliases in ALIASES.items():
            fields[name] = next((info[a] for a in aliases if _text(info.get(a)) is not None), None)
        fields["id"] = fields["id"] if fields["id"] is not None else info.get("index")
    reward_model = row.get("reward_model")
    truth = reward_model.get("ground_truth") if isinstance(reward_model, Mapping) else None
    if isinstance(truth, Mapping):
        target = truth.get("target")
        fields["answer"] = target[0] if isinstance(target, list | tuple) and len(target) == 1 else target
        fields["solution"] = fields.get("solution") or truth.get("solution")
    elif truth is not None:
        fields["answer"] = truth
    return fields


def _named_text(
    row: Mapping[str, Any], row_number: int, name: str, column: str, source: str, present: tuple[str, ...]
) -> str:
    value: Any = row
    for part in [column] if column in row else column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise RowError(source, row_number, name, f"column {column!r} is missing", present)
        value = value[part]
    text = _text(value)
    if text is None:
        what = "empty" if value is None or isinstance(value, str) else f"a {type(value).__name__}, not text"
        raise RowError(source, row_number, name, f"column {column!r} is {what}", present)
    return text


def _check_translation(
    row: Mapping[str, Any], row_number: int, column: str, source: str, present: tuple[str, ...]
) -> None:
    if f"{column}_ok" in row and row[f"{column}_ok"] is not True:
        fix = "repair or drop the row, or set data.on_bad_row: skip"
        raise RowError(source, row_number, "problem", f"column '{column}_ok' is not true", present, fix)


def _with_translation(texts: dict[str, str | None], row: Mapping[str, Any], column: str) -> dict[str, str | None]:
    match = _LANGUAGE_COLUMN.fullmatch(column)
    if not match:
        return texts
    return {**texts, "language": match.group(1), "problem_en": texts["problem_en"] or _text(row.get("problem"))}


def _with_derived_answer(texts: dict[str, str | None], fixed: set[str]) -> dict[str, str | None]:
    answer, solution = texts["answer"], texts["solution"]
    worked = _GSM_ANSWER.search(answer) if answer and "answer" not in fixed else None
    if worked:  # GSM8K: the answer column holds the worked solution, then "#### 72"
        return {**texts, "answer": worked.group(1), "solution": solution or answer}
    if answer is None and solution is not None:
        answer = last_boxed(solution) or None
    return {**texts, "answer": answer.strip() if answer else None}


def _why_missing(row: Mapping[str, Any], name: str) -> str:
    aliases = ALIASES.get(name, (name,))
    for alias in aliases:
        value = row.get(alias)
        if value is not None and not isinstance(value, str):
            return f"column {alias!r} is a {type(value).__name__}, not text"
    empty = [alias for alias in aliases if alias in row]
    if empty:
        return f"column {empty[0]!r} is empty"
    return f"none of the columns {', '.join(aliases)} is there"
