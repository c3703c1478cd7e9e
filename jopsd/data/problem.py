"""One training or evaluation problem, and how a row of any known data set becomes one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jopsd.data.conversation import Conversation, ConversationError, is_conversation, read_conversation
from jopsd.data.digits import rounding_noise
from jopsd.data.remarks import Remark
from jopsd.data.schemas import ALIASES, Layout, cell_at, cell_text, detect, is_empty, usual
from jopsd.rewards.boxed import last_boxed

# Fields whose column `data.columns` may name: those of a Problem, and the level that `data.difficulty` selects by.
COLUMN_KEYS = (*ALIASES, "difficulty")
# Transcripts and vectors of public sets: tens of kilobytes a row, so they never enter `extra`.
NOT_KEPT = ("messages", "conversations", "COT_Reason", "r1_solution_2", "r1_solution_3", "embedding")

_LANGUAGE_COLUMN = re.compile(r"problem_(?!idx$)([a-z]{2,3})")
_GSM_ANSWER = re.compile(r"(?:^|\n)#### *(.+?)\s*$")
_LEVEL = re.compile(r"\s*(?:level\s*)?([+-]?\d+(?:\.\d+)?)\s*", re.IGNORECASE)
_LIFTED = ("topic", "difficulty")  # from extra_info to `extra`


@dataclass(frozen=True)
class Problem:
    """One problem. Text fields are None where the row has none; ``extra`` holds the row's other columns.

    teacher: label of the external teacher that the row is for. attempt, critique: a solution and what is wrong in it.
    tests: JSON text of the tests of a program (`jopsd.rewards.tests` reads it). verifier: name of the verifier of this
    row, where the data set says it. row: its number in the source, counted from 0; it does not tell two problems apart.
    history: (role, text) of the turns of a conversation before the problem, its system text apart. remarks: how the row
    was read where that is not just what stands in it.
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
    row: int | None = field(default=None, compare=False)
    history: tuple[tuple[str, str], ...] = ()
    remarks: tuple[Remark, ...] = field(default=(), compare=False)


class RowError(ValueError):
    """A row that cannot become a Problem: names the source, the row (counted from 0), the field and the columns.

    detail: what is true of this row alone, so that it stands in the message and not in `reason`.
    """

    def __init__(
        self,
        source: str,
        row_number: int,
        field: str,
        fault: str,
        columns: tuple[str, ...],
        fix: str = "",
        detail: str = "",
    ):
        self.row_number, self.field, self.fault, self.columns = row_number, field, fault, columns
        fix = fix or f"set data.columns.{field} to the column that holds it, or data.on_bad_row: skip"
        super().__init__(
            f"{source or 'data'}, row {row_number} (counted from 0), field {field!r}: {fault}"
            f"{f' ({detail})' if detail else ''}; columns present: {', '.join(columns) or 'none'}; fix: {fix}"
        )

    @property
    def reason(self) -> str:
        """Short text under which a skipped row is counted."""
        return f"{self.field}: {self.fault}"


def problem_from_row(
    row: Mapping[str, Any], row_number: int, columns: Mapping[str, str] | None = None, source: str = ""
) -> Problem:
    r"""Build a Problem from one row, by its layout (`jopsd.data.schemas`) and then by the usual names.

    ``columns`` maps Problem fields to column names (``extra_info.ref_solution`` reaches into a struct) and overrides
    both; its key ``difficulty`` fills ``extra``. Without an answer column the answer is ``reward_model.ground_truth``,
    then what follows ``####`` in the solution's last line, then its last ``\boxed{}``; a row whose completions are
    programs has tests instead. A problem that is a conversation keeps its system text and earlier turns, and its last
    reply is the solution where no column holds one. Naming a column
    ``problem_<code>`` as the problem (COPSD) sets ``language`` and takes the English text from ``problem``; a companion
    column ``<name>_ok`` that is not true rejects the row.

    Raises RowError for a row without a problem text, one that its layout cannot read, or where a column named in
    ``columns`` is missing, empty or no text; ValueError for a key of ``columns`` that is no field.
    """
    columns = dict(columns or {})
    unknown = sorted(set(columns) - set(COLUMN_KEYS))
    if unknown:
        raise ValueError(f"data.columns has no field {unknown[0]!r}; known fields: {', '.join(COLUMN_KEYS)}")
    present, layout = tuple(row), detect(row)
    told = _told(layout, row, row_number, source, present)
    used = {column if column in row else column.split(".")[0] for column in columns.values()}
    used |= {*layout.columns.values(), *(name for name in told if isinstance(row.get(name), str | None))}
    texts: dict[str, str | None] = {}
    places: dict[str, str] = {}  # the column that holds each field, "" where none does
    for name in ALIASES:
        try:
            if name in columns:
                places[name] = columns[name]
                texts[name] = _named_text(row, row_number, name, columns[name], source, present)
            elif name in told:
                texts[name] = cell_text(told[name], name)
            elif name in layout.columns:
                places[name] = "" if is_empty(row[layout.columns[name]]) else layout.columns[name]
                texts[name] = cell_text(row[layout.columns[name]], name)
            else:
                texts[name], places[name] = usual(row, name)
                used.add(places[name])
        except ConversationError as error:
            fix = "repair or drop the row, name another column, or set data.on_bad_row: skip"
            fault = "a conversation that cannot be read"
            raise RowError(source, row_number, name, fault, present, fix, str(error)) from None
    chat = _conversation(row, places.get("problem")) if "problem" not in told else None
    if chat is not None:
        texts = _with_conversation(texts, chat, fixed={*columns, *told})
    if "problem" in columns:
        _check_translation(row, row_number, columns["problem"], source, present)
        texts = _with_translation(texts, row, columns["problem"])
    if texts["problem"] is None:
        raise RowError(source, row_number, "problem", _why_missing(row, "problem"), present)
    unread = texts["answer"] is None and bool(places.get("answer"))  # it is there: none may be taken in its place
    texts = _with_derived_answer(texts, fixed={*told, *(["answer"] if unread else [])})
    if texts["id"] is None:
        texts["id"] = str(row_number)
    others = {key: value for key, value in row.items() if key not in used and key not in NOT_KEPT}
    extra = told.get("extra", others)
    extra = {**extra, **_lifted(row, columns, extra)}
    return Problem(
        **texts,
        source=source,
        extra=extra,
        row=row_number,
        history=chat.history if chat is not None else (),
        remarks=_remarks(row, places.get("answer"), texts["answer"]),
    )


def require_fields(problem: Problem, required: tuple[str, ...], row: Mapping[str, Any], row_number: int) -> None:
    """Raise RowError for the first of ``required`` that ``problem`` (made from ``row``) lacks."""
    for name in required:
        if getattr(problem, name) is None:
            raise RowError(problem.source, row_number, name, _why_missing(row, name), tuple(row), _FIXES.get(name, ""))


_FIXES = {
    "answer": "set data.columns.answer to the column that holds it, or data.on_bad_row: skip; a solution that ends in "
    "\\boxed{answer} or '#### answer' would do too"
}


def level_of(
    row: Mapping[str, Any], row_number: int, columns: Mapping[str, str] | None = None, source: str = ""
) -> float:
    """How difficult a row is: a number, or text such as "5.5" or "Level 5", in `difficulty` or the column named.

    Raises RowError for a row without, or with something else.
    """
    named = (columns or {}).get("difficulty")
    places = (named,) if named else ("difficulty", "extra_info.difficulty")
    for place in places:
        try:
            value = cell_at(row, place)
        except KeyError:
            continue
        if match := _LEVEL.fullmatch(cell_text(value) or ""):
            return float(match[1])
        detail = f"it is {value!r:.80}"
        raise RowError(source, row_number, "difficulty", f"column {place!r} is no number", tuple(row), detail=detail)
    fault = f"column {named!r} is missing" if named else f"none of the columns {', '.join(places)} is there"
    raise RowError(source, row_number, "difficulty", fault, tuple(row))


def _told(layout: Layout, row: Mapping[str, Any], row_number: int, source: str, present: tuple[str, ...]) -> dict:
    try:
        return layout.read(row)
    except (ValueError, KeyError, TypeError) as error:
        name = "extra" if "extra" in layout.columns else "tests"
        fault, detail = f"not as the layout {layout.name} has it", f"{type(error).__name__}: {error}"
        fix = "repair or drop the row, or set data.on_bad_row: skip"
        raise RowError(source, row_number, name, fault, present, fix, detail) from error


def _lifted(row: Mapping[str, Any], columns: Mapping[str, str], extra: Mapping[str, Any]) -> dict[str, Any]:
    """What selects or sorts rows, where it is not a column of its own."""
    info = row.get("extra_info")
    lifted = (
        {key: info[key] for key in _LIFTED if key in info and key not in extra} if isinstance(info, Mapping) else {}
    )
    if "difficulty" in columns:
        try:
            lifted["difficulty"] = cell_at(row, columns["difficulty"])
        except KeyError:
            pass  # an error only where rows are selected by it
    return lifted


def _named_text(
    row: Mapping[str, Any], row_number: int, name: str, column: str, source: str, present: tuple[str, ...]
) -> str:
    try:
        value = cell_at(row, column)
    except KeyError:
        raise RowError(source, row_number, name, f"column {column!r} is missing", present) from None
    text = cell_text(value, name)
    if text is None:
        raise RowError(source, row_number, name, f"column {column!r} is {_in_words(value)}", present)
    return text


def _in_words(value: Any) -> str:
    """What a cell is that gives no text."""
    if is_empty(value):
        return "empty"
    if is_conversation(value):
        return "a conversation without such a turn"
    return f"a {type(value).__name__}, not text"


def _conversation(row: Mapping[str, Any], column: str | None) -> Conversation | None:
    """The conversation that the problem is the last turn of, where it is one."""
    try:
        cell = cell_at(row, column) if column else None
    except KeyError:
        return None
    return read_conversation(cell) if is_conversation(cell) else None


def _with_conversation(texts: dict[str, str | None], chat: Conversation, fixed: set[str]) -> dict[str, str | None]:
    """The texts with what a conversation says of fields that nothing else does."""
    more = {"system": chat.system, "solution": chat.reply}
    return texts | {name: text for name, text in more.items() if texts[name] is None and name not in fixed}


def _remarks(row: Mapping[str, Any], column: str | None, answer: str | None) -> tuple[Remark, ...]:
    try:
        cell = cell_at(row, column) if column and answer is not None else None
    except KeyError:
        return ()
    if not rounding_noise(cell):
        return ()
    read = f", read as {answer}" if answer != str(cell).strip() else ""
    return (Remark("answers with the rounding noise of a float", f"{cell}{read}"),)


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
    return {**texts, "language": match.group(1), "problem_en": texts["problem_en"] or cell_text(row.get("problem"))}


def _with_derived_answer(texts: dict[str, str | None], fixed: set[str]) -> dict[str, str | None]:
    answer, solution = texts["answer"], texts["solution"]
    worked = _GSM_ANSWER.search(answer) if answer and "answer" not in fixed else None
    if worked:  # GSM8K: the answer column holds the worked solution, then "#### 72"
        shown = answer if answer[: worked.start()].strip() else None
        return {**texts, "answer": worked.group(1), "solution": solution or shown}
    if answer is None and solution is not None and "answer" not in fixed:
        final = _GSM_ANSWER.search(solution)
        answer = final.group(1) if final else last_boxed(solution) or None
    return {**texts, "answer": answer.strip() if answer else None}


def _why_missing(row: Mapping[str, Any], name: str) -> str:
    layout = detect(row)
    aliases = (layout.columns[name],) if name in layout.columns else ALIASES.get(name, (name,))
    for alias in aliases:
        if not is_empty(row.get(alias)) and not isinstance(row[alias], str):
            return f"column {alias!r} is {_in_words(row[alias])}"
    truth = row.get("reward_model")
    if name == "answer" and isinstance(truth, Mapping) and not is_empty(truth.get("ground_truth")):
        return f"column 'reward_model.ground_truth' is {_in_words(truth['ground_truth'])}"
    empty = [alias for alias in aliases if alias in row]
    if empty:
        return f"column {empty[0]!r} is empty"
    return f"none of the columns {', '.join(aliases)} is there"
