"""Reads results.json files, ours and those of the published evaluators, as far as a comparison needs them."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from eval import metrics
from eval.parts import find_parts
from eval.records import GENERATIONS, PROBLEMS, RESULTS, SETTINGS
from eval.report import NO_ANSWER
from jopsd.paths import expand

# Keys of the published files that say how samples were drawn, and of our settings what else may differ.
SAMPLING = ("val_n", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "max_new_tokens", "enable_thinking")
FURTHER = ("max_length", "reward", "template", "limit")
NO_ANSWERS = (None, "", NO_ANSWER)
STRING, CLUSTERS = "string", "clusters_with_invalid"
LEVELS = tuple(metrics.LEVEL_WEIGHTS)
PART = re.compile(rf"(?P<benchmark>\w+)-(?P<language>[a-z]{{2,3}})(-(?P<level>{'|'.join(LEVELS)}))?")


class Evaluation(NamedTuple):
    """One results.json without its texts.

    label: given on the command line, or None. column: the benchmark part. checkpoint, step, seed: None where the file
    does not say. settings: what two evaluations should share; a key that the file lacks is left out.
    ids, golds, majority: one per problem; correct, formatted, predictions, finish, tokens: per problem, its N samples.
    Of finish and tokens None is "not known".
    """

    path: Path
    label: str | None
    model: str
    checkpoint: str | None
    step: int | None
    column: str
    seed: int | None
    settings: Mapping[str, object]
    majority_rule: str
    ids: tuple[str, ...]
    golds: tuple[str, ...]
    majority: tuple[bool, ...]
    correct: tuple[tuple[bool, ...], ...]
    formatted: tuple[tuple[bool, ...], ...]
    predictions: tuple[tuple[str | None, ...], ...]
    finish: tuple[tuple[str | None, ...], ...]
    tokens: tuple[tuple[int | None, ...], ...]

    @property
    def samples(self) -> int:
        return len(self.correct[0])


class Found(NamedTuple):
    """What the arguments lead to. unfinished: one line for each folder with samples but no results."""

    evaluations: list[Evaluation]
    unfinished: list[str]


def find(runs: Iterable[str]) -> Found:
    """All evaluations under the arguments of `compare`, each PATH or NAME=PATH.

    Raises:
      ValueError: a path does not exist or holds no evaluation, or a file is damaged; the message names it.
    """
    evaluations, unfinished = [], []
    for run in runs:
        label, path = split_label(run)
        if path.is_file():
            evaluations.append(read(path, label))
            continue
        if not path.is_dir():
            raise ValueError(f"{path} does not exist: give the --output of an evaluation, or a results.json")
        complete = sorted(path.rglob(RESULTS))
        stopped = [file.parent for file in sorted(path.rglob(GENERATIONS)) if not (file.parent / RESULTS).exists()]
        if not complete and not stopped:
            raise ValueError(f"{path} holds no {RESULTS}: give the --output of an evaluation, or a file by name")
        evaluations += [read(file, label) for file in complete]
        unfinished += [f"{folder}: {_progress(folder)}" for folder in stopped]
    if not evaluations:
        raise ValueError(f"no evaluation is finished: {'; '.join(unfinished)}")
    return Found(evaluations, unfinished)


def split_label(run: str) -> tuple[str | None, Path]:
    """(NAME or None, PATH); a path that exists may have a '=' in it."""
    name, equals, path = run.partition("=")
    if not equals or Path(run).exists():
        return None, Path(expand(run))
    if not name or not path:
        raise ValueError(f"{run!r} must look like PATH or NAME=PATH")
    return name, Path(expand(path))


def read(path: Path, label: str | None = None) -> Evaluation:
    """One results.json.

    Raises:
      ValueError: no JSON, a key is missing, samples are missing, or a total is not that of the samples; names the file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): evaluate again, or leave it out") from None
    if not isinstance(data, dict) or not isinstance(data.get("results"), list) or not data["results"]:
        raise ValueError(f"{path} has no per-problem `results`: give the file that an evaluation wrote")
    try:
        evaluation = _parse(data, path, label)
    except KeyError as error:
        raise ValueError(f"{path} lacks the key {error.args[0]!r}: give the file that an evaluation wrote") from None
    for total, counted in _totals(evaluation).items():
        if total in data and data[total] != counted:
            raise ValueError(
                f"{path} says {total} {data[total]}, but its samples give {counted}: "
                "make it again with `python -m eval recompute`, or evaluate again"
            )
    return evaluation


def split_column(column: str) -> tuple[str, str | None, str | None]:
    """(benchmark, language, level) of a part's name, such as polymath-sw-low; a name of another form stays whole."""
    found = PART.fullmatch(column)
    return (found["benchmark"], found["language"], found["level"]) if found else (column, None, None)


def _totals(evaluation: Evaluation) -> dict[str, int]:
    """Published keys of counts, as the samples give them."""
    return {
        "average_at_n": sum(map(sum, evaluation.correct)),
        "pass_at_n": sum(map(any, evaluation.correct)),
        "majority_vote_at_n": sum(evaluation.majority),
    }


def _parse(data: Mapping, path: Path, label: str | None) -> Evaluation:
    settings, results = data.get("settings") or {}, data["results"]
    problems = [_generations(result, row, data["val_n"], path) for row, result in enumerate(results)]

    def samples(key: str) -> tuple[tuple, ...]:
        return tuple(tuple(sample.get(key) for sample in own) for own in problems)

    predictions = tuple(tuple(map(_prediction, own)) for own in problems)
    correct = tuple(tuple(bool(sample["correct"]) for sample in own) for own in problems)
    majority = tuple(bool(result["majority_vote_correct"]) for result in results)
    return Evaluation(
        path=path,
        label=label,
        model=settings.get("model") or data["base_model"],
        checkpoint=settings.get("checkpoint"),
        step=settings.get("step"),
        column=_column(data, settings),
        seed=data.get("seed"),
        settings=_compared(data, settings),
        majority_rule=data.get("majority_vote_at_n_method") or _rule(predictions, correct, majority),
        ids=tuple(str(result["problem_id"]) for result in results),
        golds=tuple(str(result["ground_truth"]).strip() for result in results),
        majority=majority,
        correct=correct,
        formatted=tuple(tuple(map(_formatted, own)) for own in problems),
        predictions=predictions,
        finish=samples("finish"),
        tokens=samples("tokens"),
    )


def _generations(result: Mapping, row: int, n: int, path: Path) -> list[Mapping]:
    """The samples of one problem. Raises ValueError where there are not N of them."""
    generations = result["generations"]
    if len(generations) != n or not n:
        raise ValueError(
            f"{path}, results[{row}] (problem {result.get('problem_id')!r}) has {len(generations)} generations where "
            f"val_n is {n}: evaluate it again"
        )
    return generations


def _prediction(sample: Mapping) -> str | None:
    """The answer; None without one. An empty box is an answer, though its text reads as if there were none."""
    text = sample["predicted_answer"]
    if text in NO_ANSWERS:
        return "" if _formatted(sample) else None
    return str(text)


def _formatted(sample: Mapping) -> bool:
    """Files from before there was a flag have it in the text."""
    return bool(sample.get("formatted", sample["predicted_answer"] not in NO_ANSWERS))


def _rule(predictions: Sequence, correct: Sequence, majority: Sequence[bool]) -> str:
    """The majority rule of a file that does not name it: by strings (OPSD, COPSD) if that gives its own flags."""
    by_string = (metrics.majority_correct(*row, rule="string") for row in zip(predictions, correct, strict=True))
    return STRING if all(one == other for one, other in zip(by_string, majority, strict=True)) else CLUSTERS


def _column(data: Mapping, settings: Mapping) -> str:
    """The part's name. Published files have the benchmark's, and language and level in keys of their own."""
    if settings.get("benchmark"):
        return settings["benchmark"]
    if settings:
        return Path(str(settings["data"])).name
    name, language, level = str(data["dataset"]), data.get("language"), data.get("polymath_split")
    try:
        (part,) = find_parts([name], [language] if language else [], [level] if level else [])
    except ValueError:  # no benchmark of ours, or not one part of it
        return "-".join(str(each).lower() for each in (name, language, level) if each)
    return part.name


def _compared(data: Mapping, settings: Mapping) -> dict[str, object]:
    """The settings that two evaluations should share. top_k 0 and -1 are both "off"; null is not known."""
    found = {key: data[key] for key in SAMPLING if data.get(key) is not None}
    found |= {key: settings[key] for key in FURTHER if key in settings}
    if found.get("top_k") == 0:
        found["top_k"] = -1
    return found | {"num_problems": len(data["results"])}


def _progress(folder: Path) -> str:
    """How many of its samples an unfinished evaluation has."""
    done = (folder / GENERATIONS).read_bytes().count(b"\n")
    try:
        problems = (folder / PROBLEMS).read_bytes().count(b"\n")
        total = problems * json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["samples"]
    except (OSError, ValueError, KeyError):
        return f"{done} samples"
    return f"{done} of {total} samples"
