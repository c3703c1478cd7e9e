"""What is asked: the problems of a benchmark part or of a source, with prompts, and what a folder keeps of them."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from eval import parts
from eval.benchmarks import Part
from eval.options import Options, reward_of
from eval.presets import Preset
from eval.subject import Subject
from jopsd.contexts import ContextConfig
from jopsd.data.datasets import load_problems
from jopsd.data.problem import Problem, RowError
from jopsd.prompts import Item, student_prompt, with_template
from jopsd.rewards.grader import fault_of_row, gold_field

LABELS = ("difficulty", "level", "subject")  # columns by which results are shown apart


@dataclass(frozen=True)
class Task:
    """The problems of one evaluation.

    name: of the benchmark part; None for a source of one's own. header: what the published JSON says of it.
    fields: per problem, what the published JSON has beyond the usual. notes: what a reader should know.
    """

    name: str | None
    source: str
    reward: str
    problems: tuple[Problem, ...]
    header: Mapping[str, object]
    fields: tuple[Mapping[str, object], ...]
    language: str | None = None
    part: Part | None = None
    notes: tuple[str, ...] = ()

    def context(self, subject: Subject, options: Options, preset: Preset | None) -> ContextConfig:
        """What the student reads: the benchmark's turn, or for a source of one's own that of the run."""
        context = subject.context if self.part is None else parts.context(self.part, preset)
        try:
            return with_template(context, options.template)
        except ValueError as error:
            raise ValueError(f"--template {options.template!r}: {error}") from None


def find_tasks(options: Options) -> list[Task]:
    """The benchmark parts or the source that are asked for, every row checked.

    Raises:
      ValueError: an unknown benchmark or language, or a row without problem or usable answer, by number.
    """
    if options.data is not None:
        return [_source_task(options)]
    return [
        _part_task(part, options) for part in parts.find_parts(options.benchmarks, options.languages, options.levels)
    ]


def items_of(task: Task, context: ContextConfig, subject: Subject, tokenizer) -> list[Item]:
    """The problems with the ids of their prompts."""
    items = []
    for problem in task.problems:
        try:
            items.append(Item(problem, student_prompt(context, tokenizer, problem, subject.reading)))
        except ValueError as error:
            raise ValueError(f"{task.name or task.source}, problem {problem.id!r}: {error}") from None
    return items


def kept(task: Task, items: Sequence[Item], tokenizer) -> list[dict]:
    """What the folder of an evaluation keeps of its problems, JSON-ready: enough to make its report again."""
    return [
        {
            "problem_id": item.problem.id,
            "problem": item.problem.problem,
            "prompt": tokenizer.decode(item.prompts["student"]) if tokenizer is not None else None,
            "prompt_tokens": len(item.prompts["student"]) if tokenizer is not None else None,
            "ground_truth": item.problem.answer,
            "verifier": item.problem.verifier,
            "source": item.problem.source,
            "labels": _labels(item.problem),
            "fields": dict(fields),
        }
        for item, fields in zip(items, task.fields, strict=True)
    ]


def digest(items: Sequence[Item]) -> str:
    """A hash of all prompts and answers, by which a folder knows its problems again."""
    content = [(item.problem.id, item.problem.answer, item.prompts.get("student")) for item in items]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _part_task(part: Part, options: Options) -> Task:
    problems = parts.load(part, options.limit, options.data_seed)
    if options.reward is not None:
        _require_usable(options, problems, options.reward, part.name)
    note = parts.note(part, problems, options.limit is not None)
    return Task(
        part.name,
        part.path or part.benchmark.source,
        reward_of(options, part.benchmark.reward),
        _distinct(problems),
        parts.header(part),
        tuple(parts.row_fields(part, problem) for problem in problems),
        part.language,
        part,
        () if note is None else (note,),
    )


def _source_task(options: Options) -> Task:
    reward = reward_of(options, None)
    try:
        problems, _ = load_problems(
            options.data,
            options.split,
            options.columns,
            tuple(filter(None, ("problem", gold_field(reward)))),
            config=options.subset,
            limit=options.limit,
            seed=options.data_seed,
        )
    except RowError as error:
        raise ValueError(
            f"{options.data}, row {error.row_number} (counted from 0), field {error.field!r}: {error.fault}; columns "
            f"present: {', '.join(error.columns)}; fix: --column {error.field}=NAME for the column that holds it, or "
            "repair the row"
        ) from None
    _require_usable(options, problems, reward, options.data)
    return own_task(options.data, reward, problems)


def _distinct(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """With an id of its own for each: those that come again are numbered, as in `83#2`."""
    seen: Counter[str] = Counter()
    made = []
    for problem in problems:
        seen[problem.id] += 1
        again = seen[problem.id]
        made.append(problem if again == 1 else replace(problem, id=f"{problem.id}#{again}"))
    return tuple(made)


def own_task(source: str, reward: str, problems: Sequence[Problem]) -> Task:
    """The task of problems that are no benchmark's."""
    languages = {problem.language for problem in problems}
    return Task(
        None,
        source,
        reward,
        _distinct(problems),
        {"dataset": source},
        ({},) * len(problems),
        language=languages.pop() if len(languages) == 1 else None,
    )


def _require_usable(options: Options, problems: Sequence[Problem], reward: str, source: str) -> None:
    for row, problem in enumerate(problems):
        if found := fault_of_row(reward, problem):
            field, fault = found
            raise ValueError(
                f"{source}, row {row} (counted from 0), field {field!r}: {fault}; fix: --reward NAME for the "
                f"verifier of these rows, --column {field}=NAME for the column that holds it, or repair the row"
            )


def _labels(problem: Problem) -> dict[str, str]:
    found = {name: problem.extra.get(name) for name in LABELS}
    return {name: str(value) for name, value in found.items() if isinstance(value, str | int | float)}
