"""`python -m eval`: problems, prompts, who answers; then each evaluation in a folder of its own, drawn and graded.

An evaluation is one subject (a model or a checkpoint) on one benchmark part with one seed.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from eval.generations import graded, read_generations
from eval.options import Options, complete
from eval.parts import find_parts
from eval.presets import Preset
from eval.problems import Task, digest, find_tasks, items_of, kept
from eval.progress import Say, say_to_stderr, show_progress
from eval.records import Record, claim_server, open_records, write_in_order
from eval.report import write_results
from eval.subject import Samplers, Subject, find_subjects, window_of
from jopsd.data.chat import check_chat_template, template_honours_thinking
from jopsd.models.tokenizer import load_tokenizer, read_tokenizer, stop_tokens
from jopsd.prompts import Item
from jopsd.rewards.grader import Grader, make_grader
from jopsd.rewards.sandbox import SandboxError
from jopsd.rollouts import Rollout, draw_rollouts, request_seed
from jopsd.sampling import Request, Sampler, SamplingParams
from jopsd.schema import Reward
from jopsd.setup import source_dir

NO_ROOM = "prompt_too_long"


@dataclass(frozen=True)
class Job:
    """One evaluation: whose answers to what, where they are kept, and everything that decides them.

    rows: what its folder keeps of the problems.
    """

    subject: Subject
    task: Task
    items: tuple[Item, ...]
    rows: Sequence[Mapping]
    folder: Path
    settings: Mapping


class Drawing(NamedTuple):
    """How answers are drawn. window: tokens that prompt and answer may have together; None is no limit."""

    params: SamplingParams
    window: int | None

    def room(self, item: Item) -> int:
        """Tokens that an answer may have: as asked for, or what the context leaves, which may be none."""
        most = self.params.max_new_tokens
        return most if self.window is None else min(most, self.window - len(item.prompts["student"]))

    def length(self, item: Item) -> int:
        """Tokens of prompt and longest answer; 0 of a prompt that leaves no room, which is not asked."""
        return len(item.prompts["student"]) + self.room(item) if self.room(item) > 0 else 0


def run(options: Options, say: Say = say_to_stderr) -> list[Path]:
    """Evaluates, or continues an interrupted evaluation. Returns the folders, each with its results.json.

    Every draw is decided by (seed, row of the problem, number of the sample), so an evaluation that was interrupted
    ends with the samples that an undisturbed one has, and other seeds share none.

    Raises:
      ValueError, OSError: bad input, named, before any weight is read.
      CheckpointError, SamplerError, RuntimeError: no such checkpoint; sampling or grading broke down.
    """
    options, preset = _checked(options)
    if options.generations is not None:
        return read_and_grade(options, say)
    subjects, tasks = find_subjects(options), find_tasks(options)
    tokenizer, notes = read_tokenizer(subjects[0].directory)
    check_chat_template(tokenizer)
    stop_ids, stop_note = stop_tokens(subjects[0].directory, tokenizer)
    for note in filter(None, (*notes, stop_note)):
        say(note)
    jobs = make_jobs(options, preset, subjects, tasks, tokenizer)
    drawing = Drawing(
        SamplingParams(options.max_new_tokens, options.temperature, options.top_p, options.top_k, stop_ids),
        window_of(subjects[0], options),
    )
    longest = max(1, *(drawing.length(item) for job in jobs for item in job.items))
    most = max(len(job.items) for job in jobs) * options.samples
    for task in tasks:
        say(header(subjects, task, next(job for job in jobs if job.task is task), tokenizer, drawing.window))
    with ExitStack() as stack:
        graders = make_graders(tasks, options, stack, say)
        samplers = stack.enter_context(closing(Samplers(options, most, longest, len(stop_ids))))
        for job in jobs:
            if len(jobs) > 1:
                say(f"{job.folder.relative_to(options.output)}:")
            sampler = lambda: samplers.of(job.subject)  # noqa: B023, E731 (called at once)
            evaluate(job, drawing, sampler, graders[job.task.reward], tokenizer, say)
    return [job.folder for job in jobs]


def _checked(options: Options) -> tuple[Options, Preset | None]:
    """`complete`, with what else is wrong with the names that were given in the same error."""
    found, faults = [], []
    looks = [lambda: complete(options), lambda: find_parts(options.benchmarks, options.languages, options.levels)]
    if options.model is not None and "/" not in options.model:  # others may have to be looked up on the hub
        looks.append(lambda: source_dir(options.model, weights=False))
    for look in looks:
        try:
            found.append(look())
        except (ValueError, OSError) as error:
            faults.append(str(error))
    if faults:
        raise ValueError("; ".join(faults))
    return found[0]


def make_jobs(
    options: Options, preset: Preset | None, subjects: Sequence[Subject], tasks: Sequence[Task], tokenizer
) -> list[Job]:
    """Every subject on every task with every seed, in this order of loops, so that weights are loaded once each."""
    jobs = []
    for task in tasks:
        context = task.context(subjects[0], options, preset)  # a run's checkpoints read a problem alike
        items = tuple(items_of(task, context, subjects[0], tokenizer))
        rows = kept(task, items, tokenizer)
        asked = {
            "template": getattr(context, "student_template", None),
            "prompts_and_answers_sha256": digest(items),
        }
        for subject in subjects:
            for seed in options.seeds:
                settings = describe(options, preset, subject, task, seed) | asked
                jobs.append(Job(subject, task, items, rows, folder_of(options, subject, task, seed), settings))
    return sorted(jobs, key=lambda job: subjects.index(job.subject))


def folder_of(options: Options, subject: Subject, task: Task, seed: int) -> Path:
    """OUTPUT for one source of one's own; else a folder by checkpoint of a sweep, benchmark part and seed."""
    folder = options.output
    if options.checkpoints is not None:
        folder /= f"step_{subject.step:06d}"
    if task.name is not None:
        folder /= task.name
    return folder / f"seed_{seed}" if task.name is not None or len(options.seeds) > 1 else folder


def describe(options: Options, preset: Preset | None, subject: Subject, task: Task, seed: int) -> dict:
    """Everything that decides the samples and their grades but for what is asked, JSON-ready."""
    return {
        "model": subject.name,
        "checkpoint": None if subject.run_dir is None else str(subject.run_dir.resolve()),
        "step": subject.step,
        "server": options.server,
        "served_model": options.served_model,
        "benchmark": task.name,
        "data": task.source,
        "split": options.split,
        "subset": options.subset,
        "limit": options.limit,
        "data_seed": options.data_seed,
        "columns": dict(options.columns),
        "language": task.language,
        "preset": None if preset is None else preset.name,
        "reward": task.reward,
        "thinking": subject.reading.thinking,
        "samples": options.samples,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "max_new_tokens": options.max_new_tokens,
        "max_length": options.max_length,
        "seed": seed,
        "slots": options.slots,
        "header": dict(task.header),
    }


def make_graders(tasks: Sequence[Task], options: Options, stack: ExitStack, say: Say) -> dict[str, Grader]:
    """One grader per verifier, entered into `stack`. Raises ValueError where programs cannot be run."""
    graders: dict[str, Grader] = {}
    for reward in dict.fromkeys(task.reward for task in tasks):
        problems = [problem for task in tasks if task.reward == reward for problem in task.problems]
        try:
            grader = make_grader(Reward(name=reward, unsafe=options.unsafe), problems)
        except SandboxError as error:
            names = ", ".join(task.name or task.source for task in tasks if task.reward == reward)
            raise ValueError(
                f"{names} runs programs that a model writes: {error}; run it where the kernel offers more "
                "(docs/rewards.md says what), or, on a machine that you can lose, with --unsafe"
            ) from None
        graders[reward] = stack.enter_context(grader)
        for note in grader.notes:
            say(note)
    return graders


def evaluate(job: Job, drawing: Drawing, sampler: Callable[[], Sampler], grader: Grader, tokenizer, say: Say) -> None:
    """Draws and grades what the job's folder lacks, and writes its results.json. sampler: made where it is needed."""
    samples = job.settings["samples"]
    with open_records(job.folder, job.settings, job.rows) as (records, add):
        missing = _missing(records, len(job.items), samples)
        if records and missing:
            say(f"{job.folder} has {len(records)} samples; the others are made now")
        unasked = {row: missing.pop(row) for row in list(missing) if drawing.room(job.items[row]) < 1}
        if missing:
            source = sampler()
            claim_server(job.folder, getattr(source, "description", None))
            requests = make_requests(job, drawing, missing)
            with show_progress(records, len(records) + sum(map(len, missing.values())), say) as advance:
                for index, rollout in draw_rollouts(source, requests, job.items, tokenizer, grader.submit):
                    record = record_of(rollout, index)
                    add(record)
                    advance(record)
        for row, indices in unasked.items():  # last: a folder in which nothing was drawn takes other settings
            for record in no_room(row, job.items[row], indices):
                add(record)
        write_in_order(job.folder, records)
        write_results(job.folder, job.settings, job.rows, records, grader, job.task.problems)


def make_requests(job: Job, drawing: Drawing, missing: Mapping[int, tuple[int, ...]]) -> list[Request]:
    """One request per problem, for the samples of it that are missing."""
    return [
        Request(
            tuple(job.items[row].prompts["student"]),
            job.settings["samples"],
            request_seed(job.settings["seed"], row),
            replace(drawing.params, max_new_tokens=drawing.room(job.items[row])),
            id=row,
            indices=indices,
        )
        for row, indices in missing.items()
    ]


def read_and_grade(options: Options, say: Say) -> list[Path]:
    """Grades generations that were made elsewhere. Returns the one folder."""
    task, samples, name = read_generations(options)
    for note in task.notes:
        say(note)
    tokenizer = None
    if options.model is not None:
        tokenizer = load_tokenizer(source_dir(options.model, weights=False))
    items = tuple(Item(problem, {"student": []}) for problem in task.problems)
    n = samples.of_each
    settings = {
        "model": options.model or name,
        "checkpoint": None,
        "step": None,
        "generations": str(options.generations.resolve()),
        "benchmark": task.name,
        "data": task.source,
        "limit": options.limit,
        "language": task.language,
        "reward": task.reward,
        "samples": n,
        "seed": options.seeds[0],
        "header": dict(task.header),
        "generations_sha256": samples.sha256,
        "prompts_and_answers_sha256": digest(items),
    }
    with ExitStack() as stack:
        grader = make_graders([task], options, stack, say)[task.reward]
        rows = kept(task, items, None)
        records, add = stack.enter_context(open_records(options.output, settings, rows))
        missing = _missing(records, len(items), n)
        with show_progress(records, len(items) * n, say, drawn=False) as advance:
            for record in graded(samples, missing, items, grader, tokenizer):
                add(record)
                advance(record)
        write_in_order(options.output, records)
        write_results(options.output, settings, rows, records, grader, task.problems)
    return [options.output]


def header(subjects: Sequence[Subject], task: Task, job: Job, tokenizer, window: int | None) -> str:
    """What a reader wants to check before a long evaluation: the settings and one rendered prompt."""
    shown = ("thinking", "samples", "temperature", "top_p", "top_k", "max_new_tokens")
    who = subjects[0].words
    if len(subjects) > 1:
        steps = ", ".join(str(subject.step) for subject in subjects)
        who = f"steps {steps} of {subjects[0].run_dir} (from {subjects[0].name})"
    lengths = [len(item.prompts["student"]) for item in job.items]
    ids, most = job.items[0].prompts["student"], job.settings["max_new_tokens"]
    notes = list(task.notes)
    if job.settings["thinking"] is not None and not template_honours_thinking(tokenizer):
        notes.append("the chat template has no thinking switch, so thinking on or off changes nothing")
    if window is not None and max(lengths) + most > window:
        cut = sum(length + most > window for length in lengths)
        notes.append(
            f"the context of {window} tokens leaves less than {most} new ones after {cut} prompts: answers end there"
        )
        notes += [
            f"problem {item.problem.id!r}: its prompt of {length} tokens leaves no room in the context; its samples "
            "count as wrong"
            for item, length in zip(job.items, lengths, strict=True)
            if length >= window
        ]
    return "\n".join(
        [
            f"{who} on {task.name or task.source}: {len(job.items)} problems",
            ", ".join(f"{name} {job.settings[name]}" for name in shown),
            *notes,
            f"--- first prompt ({len(ids)} tokens)",
            tokenizer.decode(ids),
            "---",
        ]
    )


def record_of(rollout: Rollout, index: int) -> Record:
    score = rollout.score
    return Record(
        row=rollout.group,
        sample=index,
        problem_id=rollout.item.problem.id,
        correct=score.correct,
        formatted=score.formatted,
        prediction=score.prediction,
        finish=rollout.finish,
        tokens=len(rollout.completion_ids),
        completion=rollout.text,
    )


def no_room(row: int, item: Item, indices: Sequence[int]) -> list[Record]:
    """Records of a prompt that fills the context by itself."""
    return [Record(row, i, item.problem.id, False, False, None, NO_ROOM, 0, "") for i in indices]


def _missing(records: Mapping, rows: int, samples: int) -> dict[int, tuple[int, ...]]:
    absent = {row: tuple(i for i in range(samples) if (row, i) not in records) for row in range(rows)}
    return {row: indices for row, indices in absent.items() if indices}
