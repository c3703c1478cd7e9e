r"""Layouts of the known data sets: which column of a row holds which field of a Problem.

A layout is one line of `LAYOUTS` and, where a column is not simply a field, one small function. A row is read by the
first layout that fits it; what that leaves open is looked for under the usual names (`ALIASES`), then inside the
structs of verl (`extra_info`, `reward_model`).
"""

import importlib
import json
import math
import numbers
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jopsd.data.conversation import ConversationError, is_conversation, read_conversation
from jopsd.data.digits import number_text
from jopsd.rewards.grader import VERIFIERS

Row = Mapping[str, Any]

# `answer_number` comes before `answer`: where a set has both (AfriMGSM, MGSM), `answer` is a worked text or null.
ALIASES: dict[str, tuple[str, ...]] = {
    "id": ("id", "problem_idx", "question_id", "unique_id", "task_id", "idx"),
    "problem": ("problem", "question", "prompt", "Question", "messages", "conversations"),
    "solution": ("solution", "r1_solution_1", "ref_solution", "privileged_context", "completion"),
    "answer": ("answer_number", "answer", "Answer", "final_answer", "gt", "target"),
    "problem_en": ("problem_en",),
    "language": ("target_lang", "lang", "language", "lang_code"),
    "system": ("system",),
    "teacher": ("opd_teacher",),
    "attempt": ("attempt",),
    "critique": ("critique",),
    "tests": ("tests",),
    "verifier": ("verifier",),
}
TRANSLATED = re.compile(r"problem_(?!en$|idx$)([a-z]{2,3})")

_CODE_SOURCES = "apps codecontests codeforces taco code livecodebench humanevalplus mbppplus".split()
_KINDS = {"code": "code", "mcq": "choice", "sciknoweval": "choice", "tooluse": "tools", "math": "math"}
_MATHEMATICS = re.compile(r"math|gsm|aime|amc|hmmt|minerva|olympiad|numina")
_POLYMATH_ID = re.compile(r"(?:low|medium|high|top)-([a-z]{2})-\d+")
# Around the problems of DAPO-Math-17k; the answer is asked for in another form than the contexts ask for.
_DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer:",
    'Remember to put your answer on its own line after "Answer:"',
)
# Ours, after the form that SDPO's rows of SciKnowEval ask for: reasoning and the letter between tags.
CHOOSE = (
    "You are asked a question with {count} options, one of which is right. Answer in this form:\n<reasoning>\n...\n"
    "</reasoning>\n<answer>\n...\n</answer>\n\nBetween the answer tags put the letter of the right option "
    "({letters}) and nothing else. If that were {first}, you would write:\n<answer>\n{first}\n</answer>"
)


class Layout(NamedTuple):
    """One layout.

    columns: the columns that hold fields, which a row must have; they do not enter `Problem.extra`.
    read: what else a row says, by field; a value of None means that the row has no such field, and "extra" is what
      `Problem.extra` holds in place of the other columns. Raises ValueError or KeyError for a row that it cannot read.
    when: what else marks a row of this layout.
    """

    name: str
    columns: Mapping[str, str]
    read: Callable[[Row], dict[str, Any]]
    when: Callable[[Row], bool] = lambda row: True


def detect(row: Row) -> Layout:
    """The layout of a row; `PLAIN` where no other fits."""
    return next((a for a in LAYOUTS if all(c in row for c in a.columns.values()) and a.when(row)), PLAIN)


# ------------------------------------------------------------------------------------------------------------- layouts


def mathematics(row: Row) -> dict[str, Any]:
    return {"verifier": "math"}


def openthoughts(row: Row) -> dict[str, Any]:
    """Its system text tells another model how to think; no published run reads it."""
    return {"verifier": "math", "system": None}


def translations(row: Row) -> list[str]:
    """Columns with the problem in other languages (COPSD)."""
    return [c for c, cell in row.items() if TRANSLATED.fullmatch(c) and (cell is None or isinstance(cell, str))]


def polymath(row: Row) -> dict[str, Any]:
    language = usual(row, "language")[0] or _POLYMATH_ID.fullmatch(row["id"])[1]
    return {"verifier": "math", "language": language}


def plain(row: Row) -> dict[str, Any]:
    named = row.get("verifier")
    return {"verifier": named if named in VERIFIERS else verifier_of(row.get("data_source"))}


def alpaca(row: Row) -> dict[str, Any]:
    """An instruction, and under it the input that it is about where there is one."""
    given = row.get("input")
    if not (isinstance(given, str) and given.strip()):
        return plain(row)
    return plain(row) | {"problem": f"{row['instruction']}\n\n{given}"}


def verl(row: Row) -> dict[str, Any]:
    verifier = verifier_of(row.get("data_source"), row.get("ability"))
    return {"verifier": verifier} if verifier != "code" else program(_struct(row, "reward_model").get("ground_truth"))


def dapo(row: Row) -> dict[str, Any]:
    return verl(row) | {"problem": _unwrapped(row)}


def sdpo(row: Row) -> dict[str, Any]:
    """Rows of SDPO and MOPD; `tests` is "-" or null unless the kind is code."""
    verifier = verifier_of(row["dataset"], row["kind"])
    return program(row.get("tests")) if verifier == "code" else {"verifier": verifier, "tests": None}


def sciknoweval(row: Row) -> dict[str, Any]:
    """A row of SciKnowEval as its authors publish it. No verifier here grades the kinds without choices.

    Raises ValueError for choices that are not as many letters as texts, or a key that is none of the letters.
    """
    details = row["details"]
    extra = {"type": row["type"], "domain": row["domain"]}
    extra |= {name: details.get(name) for name in ("level", "task", "subtask")}
    if not str(row["type"]).startswith("mcq"):
        return {"verifier": None, "answer": row.get("answer"), "extra": extra}
    letters, texts = list(row["choices"]["label"]), list(row["choices"]["text"])
    if len(letters) != len(texts) or row["answerKey"] not in letters:
        raise ValueError(f"{len(texts)} choices with the letters {letters}, and the key {row['answerKey']!r}")
    options = "\n".join(f"{letter}: {text}" for letter, text in zip(letters, texts, strict=True))
    listed = f"{', '.join(letters[:-1])} or {letters[-1]}"
    return {
        "verifier": "choice",
        "system": CHOOSE.format(count=len(letters), letters=listed, first=letters[0]),
        "problem": f"{row['question']}\n\n{options}\nPlease reason step by step.",
        "extra": extra,
    }


def program(tests: Any) -> dict[str, Any]:
    """A row whose completions are programs: its tests, as text, stand in place of an answer."""
    return {"verifier": "code", "answer": None, "tests": json.dumps(tests) if isinstance(tests, Mapping) else tests}


def logic_rl(row: Row) -> dict[str, Any]:
    """A puzzle, in words of its own that ask for the answer where it has them; its chat prompt holds a template."""
    steps = [row.get("cot_head"), *(row.get("cot_repeat_steps") or ()), row.get("cot_foot")]
    worked = "\n".join(step.strip() for step in steps if isinstance(step, str) and step.strip())
    given = {name: row.get(name) for name in ("problem", "solution", "answer")}
    given["solution"] = given["solution"] if isinstance(given["solution"], str) else worked or None
    asked = {name: text for name, text in given.items() if isinstance(text, str) and text.strip()}
    return {"verifier": "knights", "solution": None} | asked


def made(row: Row) -> dict[str, Any]:
    """Rows of `python -m jopsd.data make`; what they hold beyond fields is JSON, which suits both kinds of file."""
    extra = json.loads(row["extra_json"])
    if not isinstance(extra, dict):
        raise ValueError(f"extra_json holds a {type(extra).__name__}, not an object")
    named = {"extra_json", *(alias for aliases in ALIASES.values() for alias in aliases)}
    return plain(row) | {"extra": {key: cell for key, cell in row.items() if key not in named} | extra}


def _program_of(layout: str) -> Callable[[Row], dict[str, Any]]:
    """Benchmarks of programs are converted elsewhere: more than a look at columns."""
    return lambda row: {**program(None), **getattr(importlib.import_module("jopsd.data.code_rows"), layout)(row)}


def _task(start: str) -> Callable[[Row], bool]:
    return lambda row: str(row["task_id"]).startswith(start)


LAYOUTS = (
    Layout("jopsd", {"problem": "problem", "extra": "extra_json"}, made),
    Layout(
        "livecodebench", {"problem": "question_content", "tests": "public_test_cases"}, _program_of("livecodebench")
    ),
    Layout(
        "humaneval_plus", {"id": "task_id", "problem": "prompt"}, _program_of("humaneval_plus"), _task("HumanEval/")
    ),
    Layout("mbpp_plus", {"id": "task_id", "problem": "prompt"}, _program_of("mbpp_plus"), _task("Mbpp/")),
    Layout(
        "mbpp_plus",
        {"id": "task_id", "problem": "prompt", "solution": "code", "tests": "test"},
        _program_of("mbpp_plus"),
        lambda row: "test_list" in row,
    ),
    Layout("sdpo", {"problem": "prompt", "answer": "answer"}, sdpo, lambda row: "kind" in row and "dataset" in row),
    Layout(
        "sciknoweval",
        {"problem": "question", "answer": "answerKey"},
        sciknoweval,
        lambda row: "domain" in row and "choices" in row and isinstance(row.get("details"), Mapping),
    ),
    Layout("logic_rl", {"problem": "quiz", "answer": "solution_text"}, logic_rl),
    Layout("dapo", {"problem": "prompt"}, dapo, lambda row: "reward_model" in row and _unwrapped(row) is not None),
    Layout("verl", {}, verl, lambda row: "reward_model" in row),
    Layout("deepmath", {"problem": "question", "answer": "final_answer", "solution": "r1_solution_1"}, mathematics),
    Layout(
        "copsd_hub",
        {"problem": "problem_translated", "problem_en": "problem", "solution": "solution", "language": "language"},
        mathematics,
    ),
    Layout("copsd", {"problem": "problem", "solution": "solution"}, mathematics, lambda row: bool(translations(row))),
    Layout("openthoughts", {"problem": "problem", "solution": "solution", "answer": "Answer"}, openthoughts),
    Layout(
        "polymath",
        {"id": "id", "problem": "question", "answer": "answer"},
        polymath,
        lambda row: isinstance(row["id"], str) and bool(_POLYMATH_ID.fullmatch(row["id"])),
    ),
    Layout("mgsm", {"problem": "question"}, mathematics, lambda row: "answer_number" in row),
    Layout("alpaca", {"problem": "instruction", "solution": "output"}, alpaca),
    Layout("gsm8k", {"problem": "question"}, mathematics, lambda row: "\n#### " in str(row.get("answer"))),
)
PLAIN = Layout("plain", {}, plain)


def verifier_of(data_source: Any, kind: Any = None) -> str | None:
    """The verifier of a row by the name of its data set, else by its kind or ability; None where neither tells."""
    names = [str(name or "").lower() for name in (data_source, kind)]
    source = names[0].rpartition("/")[2]
    if source.startswith("kk_"):
        return "knights"
    if source in _CODE_SOURCES:
        return "code"
    told = _KINDS.get(source) or _KINDS.get(names[1])
    return told or ("math" if _MATHEMATICS.search(names[0]) else None)


# --------------------------------------------------------------------------------------------------------------- cells


def usual(row: Row, name: str) -> tuple[str | None, str]:
    """Text of a field by the first of its usual names that holds something, and that name ("" for none).

    A name that holds something else than text ends the search: another would be a guess.
    """
    nested = _nested(row, name)
    if name == "problem" and cell_text(nested) is not None and not _has_history(row.get("prompt")):
        return cell_text(nested), ""  # verl keeps it bare beside the chat prompt, which may carry an instruction
    for alias in ALIASES[name]:
        if not is_empty(row.get(alias)):
            return cell_text(row[alias], name), alias
    if name == "system":
        return (cell_text(row["prompt"], name) if is_conversation(row.get("prompt")) else None), ""
    return cell_text(nested, name), "" if is_empty(nested) else NESTED


NESTED = "reward_model or extra_info"  # the name under which `usual` tells of what is inside them
# What a field is of a conversation that stands in its column.
_PARTS = {"system": "system", "solution": "reply", "answer": "reply", "attempt": "reply"}


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: null, blank text, not-a-number, or a list or struct without entries."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, list | tuple | Mapping):
        return not value
    return value is None or (isinstance(value, numbers.Real) and math.isnan(value))


def cell_text(value: Any, name: str = "problem") -> str | None:
    """A cell as the text of a field, or None if it is empty or no text. Numbers as `number_text` writes them.

    Of a conversation it is the user's last turn; for a solution, an answer or an attempt, the assistant's after it. A
    list of one answer is that answer.

    Raises:
      ConversationError: a conversation that cannot be read whole.
    """
    if is_conversation(value):
        part = getattr(read_conversation(value), _PARTS.get(name, "problem"))
        return part if part and part.strip() else None
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, numbers.Real):
        return number_text(value)
    alone = isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], str | int | float)
    if name == "answer" and alone:
        return cell_text(value[0])
    return None


def _has_history(value: Any) -> bool:
    try:
        return is_conversation(value) and bool(read_conversation(value).history)
    except ConversationError:
        return True


def cell_at(row: Row, column: str) -> Any:
    """The cell of a column, or of a struct's entry (``extra_info.level``). Raises KeyError where there is none."""
    value: Any = row
    for part in [column] if column in row else column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise KeyError(column)
        value = value[part]
    return value


def _nested(row: Row, name: str) -> Any:
    """A field inside the structs of a verl row; the ground truth may be text, a number or a struct of its own."""
    info, truth = _struct(row, "extra_info"), _struct(row, "reward_model").get("ground_truth")
    told = next((info[a] for a in ALIASES[name] if not is_empty(info.get(a))), None)
    if name == "id":
        return told if told is not None else info.get("index")
    if name == "answer" and isinstance(truth, Mapping):
        return truth.get("target", truth)
    if name == "answer" and truth is not None:
        return truth
    if name == "solution" and isinstance(truth, Mapping):
        return told or truth.get("solution")
    return told


def _struct(row: Row, column: str) -> Mapping[str, Any]:
    value = row.get(column)
    return value if isinstance(value, Mapping) else {}


def _unwrapped(row: Row) -> str | None:
    """The problem of DAPO's prompt: what stands between its first line and its last; None for other prompts."""
    first, _, rest = (cell_text(row.get("prompt")) or "").strip().partition("\n")
    problem, reminder, end = rest.rpartition(_DAPO[1])
    return problem.strip() if first.startswith(_DAPO[0]) and reminder and "\n" not in end else None
