"""One evaluation: read the problems, draw what is not there yet, grade, report."""

import hashlib
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from eval.records import Record, open_records, write_json
from eval.report import results
from jopsd.checkpoint import find_step, parse_run
from jopsd.config import load_config
from jopsd.contexts import ContextConfig, SolutionContext
from jopsd.data.chat import require_chat_template, template_honours_thinking
from jopsd.data.datasets import load_problems
from jopsd.data.problem import RowError
from jopsd.mesh import make_mesh
from jopsd.models.hf import load_pretrained, read_config
from jopsd.models.tokenizer import eos_ids, load_tokenizer
from jopsd.prompts import Item, student_prompt
from jopsd.rewards.grader import Grader, fault_of_row, gold_field, make_grader
from jopsd.rollouts import request_seed
from jopsd.sampling import Completion, Policy, Request, Sampler, SamplingParams, make_sampler
from jopsd.schema import Reading, Reward
from jopsd.setup import BUILTIN, restore_policy, source_dir

RESULTS = "results.json"
PROGRESS_SECONDS = 5.0
DEFAULTS = {"temperature": 1.0, "top_p": 0.95, "top_k": 0, "max_new_tokens": 1024}


@dataclass(frozen=True)
class Options:
    """What `python -m eval` was asked for; see its --help.

    None leaves a choice open: for `thinking` to the run or the chat template, for the sampling parameters to the run's
    own evaluation or, without one, to `DEFAULTS`, for `reward` (the verifier's name) to the run, or to math.
    """

    data: str
    output: Path
    samples: int
    model: str | None = None
    checkpoint: str | None = None
    split: str = "test"
    subset: str | None = None
    limit: int | None = None
    data_seed: int = 0
    columns: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    reward: str | None = None
    unsafe: bool = False
    thinking: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_new_tokens: int | None = None
    seed: int = 0
    slots: int = 32
    backend: str = "jetstream"


@dataclass(frozen=True)
class Subject:
    """Whose answers are graded, and how it reads a problem. run_dir and step are None for a model as it is on disk."""

    name: str
    directory: Path
    run_dir: Path | None
    step: int | None
    context: ContextConfig
    reading: Reading


def run(options: Options, say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)) -> dict:
    """Evaluates, or continues an interrupted evaluation, and returns what results.json holds.

    Every draw is decided by (seed, row of the problem, number of the sample), so an evaluation that was interrupted
    ends with the samples that an undisturbed one has, and other seeds share none.

    Raises:
      ValueError, OSError: bad input, named, before any weight is read.
      CheckpointError, SamplerError, RuntimeError: no such checkpoint; sampling or grading broke down.
    """
    for name in ("samples", "slots"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(options, name)}")
    if not 0 <= options.seed < 2**32 or not 0 <= options.data_seed < 2**32:
        raise ValueError("--seed and --data-seed must be in [0, 2**32)")
    subject, options = find_subject(options), with_defaults(options)
    read_config(subject.directory)  # an architecture we cannot run is the cheapest error of all
    tokenizer = load_tokenizer(subject.directory)
    require_chat_template(tokenizer)
    params = SamplingParams(
        options.max_new_tokens,
        options.temperature,
        options.top_p,
        options.top_k,
        eos_ids(subject.directory, tokenizer),
    )
    items = load_items(options, subject, tokenizer)
    settings = describe(options, subject, items)
    say(header(settings, items, tokenizer))
    with (
        make_grader(Reward(name=options.reward, unsafe=options.unsafe), [item.problem for item in items]) as grader,
        open_records(options.output, settings) as (records, add),
    ):
        for note in grader.notes:
            say(note)
        missing = _missing(records, len(items), options.samples)
        if missing:
            if records:
                say(f"{options.output} has {len(records)} samples; the others are drawn now")
            progress = _progress(records, len(items) * options.samples, say)
            with closing(_load_sampler(options, subject, items, params)) as sampler:
                for record in draw(sampler, items, params, options, missing, tokenizer, grader):
                    add(record)
                    progress(record)
        grouped = [[records[row, i] for i in range(options.samples)] for row in range(len(items))]
        summary = results(settings, items, grouped, grader.same)
    write_json(options.output / RESULTS, summary)
    return summary


def find_subject(options: Options) -> Subject:
    """The model or checkpoint asked for, with the template and thinking mode its run had unless told otherwise.

    Raises:
      ValueError: neither is given, the run's config or the template is not usable, or there is no such model.
      CheckpointError: there is no such checkpoint.
    """
    if options.checkpoint is None:
        if options.model is None:
            raise ValueError("give --model, or the --checkpoint of a run")
        path, run_dir, step, context, reading = options.model, None, None, SolutionContext(), Reading()
    else:
        run_dir, step = parse_run(options.checkpoint)
        config = load_config(run_dir / "config.yaml")
        step, context = find_step(run_dir, step), config.context
        reading = config.eval or config.student
        path = options.model or config.model.path
    directory = source_dir(path, "--model" if options.model else "model.path")
    if options.template is not None:
        try:
            context = type(context).model_validate(context.model_dump() | {"student_template": options.template})
        except ValueError as error:  # pydantic's has one line for each fault, and a header
            fault = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(f"--template {options.template!r}: {fault}") from None
    thinking = reading.thinking if options.thinking is None else options.thinking
    name = path if path in BUILTIN else str(directory.resolve())
    return Subject(name, directory, run_dir, step, context, Reading(thinking=thinking, close_think=reading.close_think))


def with_defaults(options: Options) -> Options:
    """The options with sampling parameters and reward filled in: a checkpoint is drawn and graded as its run."""
    defaults = DEFAULTS | {"reward": Reward().name}
    if options.checkpoint is not None:
        config = load_config(parse_run(options.checkpoint)[0] / "config.yaml")
        defaults |= {} if config.eval is None else {name: getattr(config.eval, name) for name in DEFAULTS}
        defaults |= {} if config.reward is None else {"reward": config.reward.name}
    left_open = {name: value for name, value in defaults.items() if getattr(options, name) is None}
    return replace(options, **left_open)


def load_items(options: Options, subject: Subject, tokenizer) -> list[Item]:
    """The problems, each with its prompt. Raises ValueError for a row without problem or usable answer, by number."""
    try:
        problems, _ = load_problems(
            options.data,
            options.split,
            options.columns,
            tuple(filter(None, ("problem", gold_field(options.reward)))),
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
    for row, problem in enumerate(problems):
        if found := fault_of_row(options.reward, problem):
            field, fault = found
            raise ValueError(
                f"{options.data}, row {row} (counted from 0), field {field!r}: {fault}; fix: --reward NAME for the "
                f"verifier of these rows, --column {field}=NAME for the column that holds it, or repair the row"
            )
    return [Item(p, student_prompt(subject.context, tokenizer, p, subject.reading)) for p in problems]


def describe(options: Options, subject: Subject, items: Sequence[Item]) -> dict:
    """Everything that decides the samples and their grades, JSON-ready."""
    content = [(item.problem.id, item.problem.answer, item.prompts["student"]) for item in items]
    return {
        "model": subject.name,
        "checkpoint": None if subject.run_dir is None else str(subject.run_dir.resolve()),
        "step": subject.step,
        "data": options.data,
        "split": options.split,
        "subset": options.subset,
        "limit": options.limit,
        "data_seed": options.data_seed,
        "template": getattr(subject.context, "student_template", None),
        "reward": options.reward,
        "thinking": subject.reading.thinking,
        "samples": options.samples,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "max_new_tokens": options.max_new_tokens,
        "seed": options.seed,
        "slots": options.slots,
        "prompts_and_answers_sha256": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
    }


def header(settings: Mapping, items: Sequence[Item], tokenizer) -> str:
    """What a reader wants to check before a long evaluation: the settings and one rendered prompt."""
    who = settings["model"]
    if settings["checkpoint"]:
        who = f"step {settings['step']} of {settings['checkpoint']} (from {who})"
    shown = ("thinking", "samples", "temperature", "top_p", "top_k", "max_new_tokens", "seed")
    ids = items[0].prompts["student"]
    mute = settings["thinking"] is not None and not template_honours_thinking(tokenizer)
    warning = ["the chat template has no thinking switch, so thinking on or off changes nothing"] if mute else []
    return "\n".join(
        [
            f"{who} on {settings['data']}: {len(items)} problems",
            ", ".join(f"{name} {settings[name]}" for name in shown),
            *warning,
            f"--- first prompt ({len(ids)} tokens)",
            tokenizer.decode(ids),
            "---",
        ]
    )


def draw(
    sampler: Sampler,
    items: Sequence[Item],
    params: SamplingParams,
    options: Options,
    missing: Mapping[int, tuple[int, ...]],
    tokenizer,
    grader: Grader,
) -> Iterator[Record]:
    """Draws and grades the missing samples of each row, and yields each once it is graded."""
    requests = [
        Request(
            tuple(items[row].prompts["student"]),
            options.samples,
            request_seed(options.seed, row),
            params,
            id=row,
            indices=indices,
        )
        for row, indices in missing.items()
    ]
    pending: deque = deque()
    for completion in sampler.sample(requests):
        item = items[completion.request_id]
        text = tokenizer.decode(completion.completion_ids.tolist(), skip_special_tokens=True)
        pending.append((item, completion, text, grader.submit(text, item.problem)))
        while pending and pending[0][-1].done():
            yield _record(*pending.popleft())
    for entry in pending:
        yield _record(*entry)


def _record(item: Item, completion: Completion, text: str, graded) -> Record:
    score = graded.result()
    return Record(
        row=completion.request_id,
        sample=completion.index,
        problem_id=item.problem.id,
        correct=score.correct,
        formatted=score.formatted,
        prediction=score.prediction,
        finish=completion.finish,
        tokens=len(completion.completion_ids),
        completion=text,
    )


def _missing(records: Mapping, rows: int, samples: int) -> dict[int, tuple[int, ...]]:
    absent = {row: tuple(i for i in range(samples) if (row, i) not in records) for row in range(rows)}
    return {row: indices for row, indices in absent.items() if indices}


def _load_sampler(options: Options, subject: Subject, items: Sequence[Item], params: SamplingParams) -> Sampler:
    mesh = make_mesh()
    if subject.run_dir is None:
        model_config = read_config(subject.directory)
        policy = Policy(load_pretrained(subject.directory, model_config, mesh), None)
    else:
        restored = restore_policy(subject.run_dir, subject.step, str(subject.directory), mesh)
        model_config, policy = restored.model_config, restored.policy
    # Sizes follow from all samples, drawn or not: they may decide the last bits of a sum.
    return make_sampler(
        options.backend,
        model_config,
        policy,
        slots=min(options.slots, len(items) * options.samples),
        max_length=max(len(item.prompts["student"]) for item in items) + params.max_new_tokens,
        chunk=16,
        mesh=mesh if mesh.size > 1 else None,
        max_stop_ids=max(len(params.stop_ids), 1),
    )


def _progress(records: Mapping, total: int, say: Callable[[str], None]) -> Callable[[Record], None]:
    """A function to call after each new record: says now and then how far it is and what the score is so far."""
    start = shown = None
    before = tokens = 0

    def advance(record: Record) -> None:
        nonlocal start, shown, before, tokens
        now, done = time.monotonic(), len(records)
        if start is None:  # compilation is over
            start, shown, before = now, now, done
            return
        tokens += record.tokens
        if now - shown < PROGRESS_SECONDS and done < total:
            return
        shown, seconds = now, max(now - start, 1e-9)
        score = 100 * sum(r.correct for r in records.values()) / done
        left = (total - done) * seconds / (done - before)
        say(f"{done}/{total} samples  correct {score:.1f} %  {tokens / seconds:.0f} tok/s  {left:.0f} s left")

    return advance
