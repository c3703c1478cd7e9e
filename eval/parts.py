"""Benchmarks by name: what is asked for becomes parts, and a part's rows become problems with prompts.

Rows come from the hub, from a generator of ours, or from a path: a file, or a directory laid out as the repository that
publishes the benchmark. `eval.benchmarks` lists the benchmarks.
"""

import csv
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from eval.benchmarks import BARE, BENCHMARKS, LEVELS, TITLES, Benchmark, Part
from eval.presets import Preset
from jopsd.contexts import ContextConfig, CrosslingualContext, SolutionContext
from jopsd.contexts.languages import shipped_records
from jopsd.data.datasets import GENERATORS, kept_columns, load_problems, load_rows
from jopsd.data.problem import Problem, RowError, problem_from_row
from jopsd.paths import expand
from jopsd.rewards.grader import fault_of_row

ENGLISH = "en"
Rows = Sequence[Mapping[str, Any]]
Read = tuple[list[Problem], list[tuple[str, ...]]]  # problems, and the columns of each one's row
# Codes of languages that have no record of their own in languages.yaml, which knows the codes of the others.
_OTHER_CODES = {
    "ar": ("ara",),
    "id": ("ind",),
    "it": ("ita",),
    "ko": ("kor",),
    "ms": ("msa", "may", "zsm"),
    "pt": ("por",),
    "vi": ("vie",),
}


def find_parts(wanted: Sequence[str], languages: Sequence[str] = (), levels: Sequence[str] = ()) -> list[Part]:
    """The parts of what is wanted, in the order given; none given of languages or levels are all.

    Args:
      wanted: NAME or NAME=PATH.
      languages, levels: of benchmarks that have some; codes of any kind, in any case.

    Raises:
      ValueError: an unknown benchmark, language or level, one that a benchmark wanted does not have, a benchmark that
        needs a path, or a part that is wanted twice.
    """
    found = [_asked(text) for text in wanted]
    _require_known("language", languages, {code for benchmark, _ in found for code in benchmark.languages})
    _require_known("level", levels, {level for benchmark, _ in found for level in benchmark.levels})
    made = []
    for benchmark, path in found:
        for language in _chosen(benchmark, "language", benchmark.languages, languages):
            for level in _chosen(benchmark, "level", benchmark.levels, levels):
                name = "-".join(filter(None, (benchmark.name, language, level)))
                made.append(Part(name, benchmark, language, level, path))
    names = [part.name for part in made]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"--benchmark asks for {twice[0]} twice; ask for each once, with one path")
    return made


def load(part: Part, limit: int | None = None, seed: int = 0) -> list[Problem]:
    """The part's problems in order, the first `limit` of those that count; `seed` is of generated ones.

    Raises:
      ValueError: a row without problem or without what its verifier needs (benchmark, row, field and columns are
        named), or a source without rows of this part.
      FileNotFoundError: no such path or data set.
    """
    benchmark = part.benchmark
    if limit is not None and limit < 1:
        raise ValueError(f"--limit must be at least 1, got {limit}")
    if part.path is None and benchmark.source.partition(":")[0] in GENERATORS:
        return load_problems(benchmark.source, limit=min(limit or benchmark.rows, benchmark.rows), seed=seed)[0]
    source, (problems, columns) = _rows(part)
    problems = _said(part, problems, source, "language", part.language, lambda p: _language(p.language or ""))
    problems = _said(part, problems, source, "level", part.level, _level)
    chosen = [benchmark.prepare(problem) for problem in benchmark.choose(problems)[:limit]]
    if not chosen:
        raise ValueError(f"{part.name}: none of the {len(problems)} rows of {source} belongs to it")
    for problem in chosen:
        if fault := fault_of_row(benchmark.reward, problem):
            raise _fault(part.name, source, problem.row, *fault, columns[problem.row])
    return chosen


def note(part: Part, problems: Sequence[Problem], limited: bool = False) -> str | None:
    """What a reader of the results should know of these problems; None for nothing. limited: fewer were asked for."""
    notes = []
    if len(problems) != part.benchmark.rows and not limited:
        notes.append(f"{part.name} has {len(problems)} problems here, {part.benchmark.rows} as published")
    if described := sum(problem.extra.get("answer_type") == "description" for problem in problems):
        notes.append(
            f"{described} answers of {part.name} are descriptions, which no verifier here can compare in other words"
        )
    if part.language is not None and not _has_record(part.language):
        notes.append(f"no prompt is written in {part.language}, so {part.name} is asked with the English instruction")
    return "; ".join(notes) or None


def header(part: Part) -> dict[str, str]:
    """What the published result files say of a part, after `base_model`, in their order."""
    said = {"dataset": part.benchmark.published}
    if part.benchmark.name == "afrimgsm":
        said |= {"dataset_name": part.benchmark.source, "dataset_config": part.language}
    if part.language is not None:
        said["language"] = part.language.upper()
    if part.benchmark.name == "afrimgsm":
        said["afrimgsm_split"] = part.benchmark.split
    if part.level is not None:
        said[f"{part.benchmark.name}_split"] = part.level
    return said


def row_fields(part: Part, problem: Problem) -> dict[str, Any]:
    """What the published result files say of each problem of this benchmark beyond the usual."""
    if part.benchmark.name != "afrimgsm":
        return {}
    columns = {"answer": problem.answer, "answer_number": problem.answer, "equation_solution": None}
    return {name: problem.extra.get(name, gold) or None for name, gold in columns.items()}


def context(part: Part, preset: Preset | None = None) -> ContextConfig:
    """What the student reads: COPSD's prompt under its presets and where there are languages, else the template."""
    benchmark = part.benchmark
    if benchmark.template == BARE:
        return SolutionContext(student_template=BARE)
    language = part.language or ENGLISH
    published = preset is not None and preset.name.startswith("copsd-")
    if (published or benchmark.languages) and _has_record(language):
        return CrosslingualContext(language=language, label_student=False)
    own = preset.template if preset is not None else None
    return SolutionContext(student_template=own or benchmark.template)


def listing() -> str:
    """A line per benchmark, for people."""
    lines = []
    for b in BENCHMARKS.values():
        where = f"NAME=PATH, {b.source}" if b.local else b.source
        lines.append(f"  {b.name:<22} {b.rows:>4} problems, {b.reward:<8} {where}")
        lines += [f"{'':<30}of each: {' '.join(kinds)}" for kinds in (b.languages, b.levels) if kinds]
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------- names and codes


def _asked(text: str) -> tuple[Benchmark, str | None]:
    given, equals, path = text.partition("=")
    name = given.strip().lower()
    name = TITLES.get(name, name).replace("-", "_")
    if name not in BENCHMARKS:
        raise ValueError(f"--benchmark {given!r} is not known{_near(name, BENCHMARKS)}; known: {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    if equals and not path:
        raise ValueError(f"--benchmark {text!r} has no path after the equals sign")
    if benchmark.local and not path:
        raise ValueError(f"{name} is not on the hub; give --benchmark {name}=PATH, with {benchmark.source}")
    return benchmark, path or None


def _chosen(benchmark: Benchmark, what: str, own: tuple[str, ...], wanted: Sequence[str]) -> tuple[str | None, ...]:
    """Of a benchmark's languages or levels those that are wanted; (None,) for a benchmark without."""
    if not own or not wanted:
        return own or (None,)
    codes = {_language(code) for code in wanted}
    chosen = tuple(code for code in own if _language(code) in codes)
    if not chosen:
        listed = ", ".join(own)
        raise ValueError(f"{benchmark.name} has no {what} {' or '.join(wanted)}; leave it out, or choose from {listed}")
    return chosen


def _require_known(what: str, wanted: Sequence[str], known: set[str]) -> None:
    if wanted and not known:
        raise ValueError(f"--{what} {wanted[0]}: no benchmark that is asked for has {what}s; leave it out")
    codes = {_language(code) for code in known}
    for code in wanted:
        if _language(code) not in codes:
            listed = ", ".join(level for level in LEVELS if level in known) or ", ".join(sorted(known))
            raise ValueError(f"--{what} {code!r} is not known{_near(code.lower(), known)}; known: {listed}")


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


@cache
def _language(code: str) -> str:
    """One code for all codes of a language; the code itself in lower case where it is none."""
    code = code.strip().lower()
    for key, language in shipped_records().languages.items():
        if code == key or code in language.codes:
            return key
    return next((key for key, codes in _OTHER_CODES.items() if code in codes), code)


def _has_record(language: str) -> bool:
    return _language(language) in shipped_records().languages


def _level(problem: Problem) -> str:
    """PolyMath's: the first word of its ids, or a column."""
    places = (problem.id.partition("-")[0], problem.extra.get("level"), problem.extra.get("split"))
    return next((place for place in places if place in LEVELS), "")


# ------------------------------------------------------------------------------------------------------------ rows


def _rows(part: Part) -> tuple[str, Read]:
    """Where the part's rows are, and what all rows there become."""
    benchmark = part.benchmark
    split = part.level or benchmark.split
    if part.path is None:
        try:
            rows = _hub_rows(benchmark, split, part.language or benchmark.config)
        except (OSError, ValueError, RuntimeError) as error:  # of several libraries, by what is wrong
            fix = f"give a local copy as {benchmark.name}=PATH"
            raise FileNotFoundError(f"{part.name}: cannot load {benchmark.source}: {error}; fix: {fix}") from error
        return benchmark.source, _read(benchmark.name, benchmark.source, rows)
    path = Path(expand(part.path))
    if path.is_dir() and benchmark.file:
        path = _in_directory(part, path)
    if path.is_file():
        return str(path), _of_file(benchmark.name, path, path.stat().st_mtime_ns)
    return str(path), _read(benchmark.name, str(path), load_rows(str(path), split))


def _hub_rows(benchmark: Benchmark, split: str, config: str | None) -> Rows:
    if not benchmark.lone:
        return load_rows(benchmark.source, split, config)
    from huggingface_hub import hf_hub_download  # slow to import

    return load_rows(hf_hub_download(benchmark.source, benchmark.file, repo_type="dataset"))


@lru_cache(maxsize=1)
def _of_file(name: str, path: Path, changed: int) -> Read:
    """A file, which may hold all parts of a benchmark, is read once for all of them, unless it has changed."""
    return _read(name, str(path), _tsv(path) if path.suffix == ".tsv" else load_rows(str(path)))


def _read(name: str, source: str, rows: Rows) -> Read:
    problems, columns = [], []
    for number, row in enumerate(kept_columns(rows, None)):
        try:
            problems.append(problem_from_row(row, number, None, source))
            columns.append(tuple(row))
        except RowError as error:
            raise _fault(name, source, number, error.field, error.fault, error.columns) from None
    return problems, columns


def _in_directory(part: Part, directory: Path) -> Path:
    """The part's file where the directory is laid out as the published repository; else the directory."""
    benchmark = part.benchmark
    file = lambda language, level: directory / benchmark.file.format(language=language, level=level)  # noqa: E731
    every = {(code, level): file(code, level) for code in benchmark.languages for level in benchmark.levels or (None,)}
    wanted = file(part.language, part.level)
    if wanted.exists() or not any(path.exists() for path in every.values()):
        return wanted if wanted.exists() else directory
    there = ", ".join("-".join(filter(None, key)) for key, path in every.items() if path.exists())
    raise FileNotFoundError(f"{part.name}: {wanted} does not exist; {directory} has {there}; choose of these")


def _tsv(path: Path) -> Rows:
    """Rows of AfriMGSM, whose columns are named and quoted, or of MGSM: question and answer as they are."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = list(file)
    if lines and lines[0].split("\t")[0].strip() == "question":
        rows = list(csv.DictReader(lines, delimiter="\t"))
        if long := [number for number, row in enumerate(rows) if None in row]:
            raise ValueError(f"{path}, row {long[0]} (counted from 0): more cells than columns")
        return rows
    cells = [(number, line.rstrip("\r\n").split("\t")) for number, line in enumerate(lines, start=1) if line.strip()]
    for number, row in cells:
        if len(row) != 2:
            raise ValueError(f"{path}, line {number}: {len(row)} cells, where question and answer are needed")
    return [{"question": question, "answer_number": answer, "answer": None} for _, (question, answer) in cells]


def _fault(name: str, source: str, number: int, field: str, fault: str, columns: tuple[str, ...]) -> ValueError:
    return ValueError(
        f"{name}: {source}, row {number} (counted from 0), field {field!r}: {fault}; columns present: "
        f"{', '.join(columns)}; fix: repair the row, or read the file as --data with --column {field}=NAME"
    )


def _said(
    part: Part, problems: list[Problem], source: str, what: str, wanted: str | None, told: Callable[[Problem], str]
) -> list[Problem]:
    """The problems of one language or level. Where rows do not say theirs, the name of file or folder must."""
    if wanted is None:
        return problems
    said = [told(problem) for problem in problems]
    if not any(said):
        words = {_language(word) for name in Path(source).parts[-2:] for word in re.split(r"\W|_", name)}
        if part.path is None or _language(wanted) in words:
            return problems
        raise ValueError(
            f"{part.name}: rows of {source} do not say their {what}, nor does its name; add a column {what!r}, or name "
            f"the file after it, as in {part.benchmark.file.format(language=part.language, level=part.level)}"
        )
    kept = [problem for problem, own in zip(problems, said, strict=True) if own == _language(wanted)]
    if not kept:
        there = ", ".join(sorted(set(filter(None, said))))
        raise ValueError(f"{part.name}: {source} has no row of {what} {wanted}; it has {there}; choose with --{what}")
    return kept
