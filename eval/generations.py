"""Generations that were made elsewhere, read from a file and graded as if they had been drawn here.

A line (or an element of a JSON list, or of `results` in a published result file) is one problem with a list of
generations, or one generation. Its problem is found by id or by text in the data that are asked for; without any, the
file must hold problem and answer itself.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from eval.options import Options, reward_of
from eval.problems import Task, find_tasks, own_task
from eval.records import Record
from jopsd.data.datasets import load_rows
from jopsd.data.problem import Problem, RowError, problem_from_row
from jopsd.prompts import Item
from jopsd.rewards.grader import Grader, fault_of_row

LISTS = ("generations", "responses", "completions", "outputs", "samples")
TEXTS = ("full_generation", "completion", "response", "generation", "output", "text", "generated_text", "solution_str")
FINISHES = ("finish", "finish_reason")
IDS = ("problem_id", "id", "unique_id", "task_id", "question_id", "problem_idx", "idx", "row")
GOLDS = ("ground_truth", "gt_answer", "gts")  # beyond those that rows of problems have
WORDS_OF_FINISH = {"stop": "eos", "eos": "eos", "length": "length"}
AHEAD = 256  # generations that are graded at a time


Numbered = Sequence[tuple[int, Mapping[str, Any]]]  # rows with their number in the file


class Sample(NamedTuple):
    """One generation. finish: "eos", "length", or None where the file does not say."""

    text: str
    finish: str | None


class Samples(NamedTuple):
    """Generations by problem, each problem with the same number, and a hash of the file."""

    by_row: tuple[tuple[Sample, ...], ...]
    sha256: str

    @property
    def of_each(self) -> int:
        return len(self.by_row[0])


def read_generations(options: Options) -> tuple[Task, Samples, str]:
    """The problems, their generations, and the name of the model that made them as far as the file says.

    Raises:
      FileNotFoundError, ValueError: no such file, a broken line, a generation without text, one of an unknown problem,
        a problem without one, or problems with different numbers of them.
    """
    path = options.generations
    if not path.is_file():
        raise FileNotFoundError(f"--generations {path} does not exist")
    rows, name = _rows(path)
    numbered = sorted(enumerate(rows), key=lambda entry: entry[1].get("sample") or 0)  # ours stand as they finished
    if options.data is not None or options.benchmarks:
        tasks = find_tasks(options)
        if len(tasks) > 1:
            names = ", ".join(str(task.name) for task in tasks[:4])
            raise ValueError(f"--generations answers one benchmark part, but {len(tasks)} are asked for: {names}")
        task = tasks[0]
        drawn = _matched(numbered, task, path, options.limit is not None)
    else:
        task, drawn = _own(numbered, options, path)
    count = options.samples or max(map(len, drawn))
    for problem, own in sorted(zip(task.problems, drawn, strict=True), key=lambda pair: len(pair[1])):
        if not own:
            without = sum(not each for each in drawn)
            raise ValueError(
                f"{path}: {without} of {len(drawn)} problems have no generation, such as {problem.id!r} (row "
                f"{problem.row} of {task.source}); add theirs, or evaluate on rows that have some"
            )
        if len(own) < count:
            raise ValueError(
                f"{path}: problem {problem.id!r} has {len(own)} generations, not {count}; complete the file, or give "
                f"--samples {len(own)} to use so many of each"
            )
    by_row = tuple(tuple(own[:count]) for own in drawn)
    return task, Samples(by_row, hashlib.sha256(path.read_bytes()).hexdigest()), name or path.stem


def graded(
    samples: Samples, missing: Mapping[int, Sequence[int]], items: Sequence[Item], grader: Grader, tokenizer
) -> Iterator[Record]:
    """Records of the missing samples, in order. tokenizer: counts tokens; None leaves their number open."""
    wanted = [(row, index) for row, indices in missing.items() for index in indices]
    for first in range(0, len(wanted), AHEAD):
        submitted = [
            (row, index, samples.by_row[row][index], grader.submit(samples.by_row[row][index].text, items[row].problem))
            for row, index in wanted[first : first + AHEAD]
        ]
        for row, index, sample, future in submitted:
            score = future.result()
            tokens = None if tokenizer is None else len(tokenizer.encode(sample.text, add_special_tokens=False))
            yield Record(
                row,
                index,
                items[row].problem.id,
                score.correct,
                score.formatted,
                score.prediction,
                sample.finish,
                tokens,
                sample.text,
            )


def _rows(path: Path) -> tuple[Sequence[Mapping[str, Any]], str | None]:
    """The rows of a file, and the model that a published result file names."""
    if path.suffix == ".json":
        try:
            tree = json.loads(path.read_text(encoding="utf-8-sig"))
        except json.JSONDecodeError:
            tree = None  # lines, or broken: load_rows says which
        if isinstance(tree, dict) and isinstance(tree.get("results"), list):
            return tree["results"], tree.get("base_model")
    return load_rows(str(path)), None


def _own(rows: Numbered, options: Options, path: Path) -> tuple[Task, list[list[Sample]]]:
    """Problems and generations of a file that holds both; rows with the same id, or without ids the same text, are one
    problem.

    Raises:
      ValueError: a row without problem or answer, or one id or text for problems that differ; by row.
    """
    reward = reward_of(options, None)
    problems: list[Problem] = []
    drawn: list[list[Sample]] = []
    places: dict[tuple[str, str], int] = {}  # by ("id", id) and ("text", problem)
    for number, row in rows:
        samples, given_id = _samples(row, path, number), _key(row)
        try:
            problem = _problem(row, number, options, path)
        except ValueError:
            if ("id", given_id) not in places:  # otherwise a generation of a problem that stands in an earlier row
                raise
            drawn[places["id", given_id]] += samples
            continue
        text = problem.problem.strip()
        place = places.get(("text", text) if given_id is None else ("id", given_id))
        if place is None:
            if options.limit is not None and len(problems) >= options.limit:
                continue
            if fault := fault_of_row(reward, problem):
                raise ValueError(f"{path}, row {number} (counted from 0), field {fault[0]!r}: {fault[1]}")
            place = len(problems)
            problems.append(problem)
            drawn.append([])
            places.setdefault(("text", text), place)
            if given_id is not None:
                places["id", given_id] = place
        _require_same(problems[place], problem, f"{path}, row {number} (counted from 0)", given_id)
        drawn[place] += samples
    if not problems:
        raise ValueError(f"{path} has no rows")
    task = own_task(str(path), reward, problems)
    twice = len(problems) - len({problem.problem.strip() for problem in problems})
    note = f"{path}: {twice} problems repeat the text of another under an id of their own, and count apart"
    return (replace(task, notes=(*task.notes, note)) if twice else task), drawn


def _problem(row: Mapping[str, Any], number: int, options: Options, path: Path) -> Problem:
    """The problem that a row of generations holds. Raises ValueError where it holds none."""
    columns = dict(options.columns)
    if "answer" not in columns and (gold := next((name for name in GOLDS if name in row), None)):
        columns["answer"] = gold
    bare = {name: cell for name, cell in row.items() if name not in (*LISTS, *TEXTS)}
    try:
        return problem_from_row(bare, number, columns, str(path))
    except RowError as error:
        raise ValueError(
            f"{path}, row {number} (counted from 0), field {error.field!r}: {error.fault}; columns present: "
            f"{', '.join(row)}; fix: give the --benchmark or --data that the generations answer, or --column "
            f"{error.field}=NAME"
        ) from None


def _require_same(known: Problem, problem: Problem, where: str, given_id: str | None) -> None:
    """Raises ValueError unless two rows that are taken for one problem ask the same and have the same answer."""
    what = "text" if given_id is None else f"id {given_id!r}"
    if problem.problem.strip() != known.problem.strip():
        raise ValueError(
            f"{where}: its {what} is that of row {known.row}, which holds another problem; give every problem an id of "
            "its own, or leave ids out"
        )
    if problem.answer is not None and problem.answer != known.answer:
        raise ValueError(
            f"{where}: its {what} is that of row {known.row}, with another answer: {problem.answer!r} here, "
            f"{known.answer!r} there; correct the file, or give problems that differ different ids"
        )


def _matched(rows: Numbered, task: Task, path: Path, limited: bool) -> list[list[Sample]]:
    """Generations by problem, found by text where a row has one, else by id. limited: other problems are passed by."""
    texts: dict[str, list[int]] = {}
    for number, problem in enumerate(task.problems):
        texts.setdefault(problem.problem.strip(), []).append(number)
    ids = {problem.id: number for number, problem in enumerate(task.problems)}
    drawn: list[list[Sample]] = [[] for _ in task.problems]
    for number, row in rows:
        text = next((row[name].strip() for name in ("problem", "question") if isinstance(row.get(name), str)), None)
        place = _place(texts, ids, text, _key(row), task, f"{path}, row {number} (counted from 0)")
        if place is not None:
            drawn[place] += _samples(row, path, number)
        elif not limited:
            what = "text" if text is not None else f"id {_key(row)!r}"
            raise ValueError(
                f"{path}, row {number} (counted from 0): no problem of {task.name or task.source} has its {what}"
            )
    return drawn


def _place(
    texts: Mapping[str, Sequence[int]],
    ids: Mapping[str, int],
    text: str | None,
    given_id: str | None,
    task: Task,
    where: str,
) -> int | None:
    """The number of the problem that a row of generations answers; None where there is none.

    Raises:
      ValueError: several have its text, and its id does not say which; or several have its id.
    """
    source = task.name or task.source
    if text is None:
        if f"{given_id}#2" in ids:  # how a repeated id is told apart
            raise ValueError(f"{where}: several problems of {source} have its id {given_id!r}; give the text as well")
        return ids.get(given_id)
    same = texts.get(text, ())
    if len(same) > 1 and ids.get(given_id) not in same:
        rows = " and ".join(str(task.problems[place].row) for place in same)
        raise ValueError(
            f"{where}: its problem is there {len(same)} times in {source}, in rows {rows} (counted from 0); remove "
            "the repeated rows, or give generations the id of theirs"
        )
    return ids[given_id] if len(same) > 1 else next(iter(same), None)


def _samples(row: Mapping[str, Any], path: Path, number: int) -> list[Sample]:
    for name in LISTS:
        if isinstance(row.get(name), list) and row[name]:
            return [_sample(each, path, number) for each in row[name]]
    return [_sample(row, path, number)]


def _sample(given: Any, path: Path, number: int) -> Sample:
    if isinstance(given, str):
        return Sample(given, None)
    if isinstance(given, Mapping):
        text = next((given[name] for name in TEXTS if isinstance(given.get(name), str)), None)
        finish = next((given[name] for name in FINISHES if isinstance(given.get(name), str)), None)
        if text is not None:
            return Sample(text, WORDS_OF_FINISH.get(finish))
    raise ValueError(
        f"{path}, row {number} (counted from 0) has no generation: give a list under one of {', '.join(LISTS)}, or a "
        f"text under one of {', '.join(TEXTS)}"
    )


def _key(row: Mapping[str, Any]) -> str | None:
    return next((str(row[name]) for name in IDS if row.get(name) is not None), None)
