"""Saved rollouts: a run's samples, an evaluation's generations, or what the code of MOPD and of verl dumps."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eval.records import GENERATIONS, PROBLEMS, SETTINGS, read_folder
from jopsd.rewards.boxed import last_boxed


class Saved(NamedTuple):
    """One rollout.

    prompt_id: equal for rollouts of one problem. rollout_id: unlike that of any other. text: the completion.
    prediction: its final answer, None without one. prompts: rendered text by view, of a view with several readings a
    list; empty where not known. step: of training. source: file and line. None is what the file does not say.
    """

    prompt_id: str
    rollout_id: str
    problem: str
    text: str
    reward: float | None
    prediction: str | None
    finish: str | None
    step: int | None
    prompts: Mapping[str, str | list[str]]
    solution: str | None = None
    answer: str | None = None
    feedback: str | None = None
    source: str = ""


def read_rollouts(path: str | Path) -> list[Saved]:
    """Rollouts of a run's directory (its samples), an evaluation's folder, a folder of .jsonl files, or such a file.

    Raises:
      FileNotFoundError: there is no such path, or nothing in it.
      ValueError: a line that is not one of the forms, by file and number.
    """
    path = Path(path)
    if path.name == GENERATIONS:
        path = path.parent
    folder = path / "samples"
    if not folder.is_dir():
        found = sorted(own.parent for own in path.rglob(SETTINGS) if (own.parent / GENERATIONS).is_file())
        if found:
            return [saved for own in found for saved in _evaluation(own, own.relative_to(path).as_posix())]
        folder = path
    files = [path] if path.is_file() else sorted(folder.glob("*.jsonl"))
    if not files:
        raise FileNotFoundError(
            f"{path} holds no rollouts: give a run (log.samples says how many it saves), an evaluation's folder, or a "
            ".jsonl file"
        )
    seen: Counter[str] = Counter()
    return [saved for file in files for saved in _file(file, seen)]


def prompt_id_of(text: str) -> str:
    """The id of a problem that has none: the first 16 digits of its SHA-1, as MOPD's code makes it."""
    return hashlib.sha1(text.encode()).hexdigest()[:16]


def _evaluation(folder: Path, name: str) -> list[Saved]:
    """name: of the folder within what is read, "." for itself; seeds share prompts and have rollouts of their own."""
    settings, problems, records = read_folder(folder)
    saved = []
    for (row, sample), record in sorted(records.items()):
        if record.finish == "prompt_too_long":  # nothing was drawn
            continue
        if row >= len(problems):
            raise ValueError(f"{folder / GENERATIONS} has a sample of row {row}, which {PROBLEMS} beside it has not")
        problem = problems[row]
        prompts = {"student": problem["prompt"]} if problem["prompt"] is not None else {}
        saved.append(
            Saved(
                prompt_id=prompt_id_of(f"{row}\n{problem['problem']}"),
                rollout_id=f"{row}_{sample}" if name == "." else f"{name}/{row}_{sample}",
                problem=problem["problem"],
                text=record.completion,
                reward=float(record.correct),
                prediction=record.prediction,
                finish=record.finish,
                step=settings.get("step"),
                prompts=prompts,
                answer=problem["ground_truth"],
                source=f"{folder / GENERATIONS}, row {row}, sample {sample}",
            )
        )
    return saved


def _file(path: Path, seen: Counter[str]) -> list[Saved]:
    saved = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: broken JSON: {error}") from None
        read = next((read for marks, read in FORMS if isinstance(row, dict) and marks <= row.keys()), None)
        if read is None:
            raise ValueError(
                f"{path}, line {number} is no rollout: it needs "
                + ", or ".join(" and ".join(sorted(marks)) for marks, _ in FORMS)
            )
        source = f"{path}, line {number}"
        _check_texts(row, source)
        saved.append(_named(_checked(read(row)._replace(source=source)), seen))
    return saved


def _check_texts(row: Mapping[str, Any], source: str) -> None:
    """Raises ValueError for a column of text that holds something else."""
    for name in TEXTS & row.keys():
        if not isinstance(row[name], str):
            raise ValueError(f"{source}: its {name} is {row[name]!r}; write the file again, or delete the line")


def _checked(rollout: Saved) -> Saved:
    """Raises ValueError for what is not a number or a mapping, before an analysis trips over it."""
    for name, kinds in (("reward", int | float | None), ("prompts", Mapping)):
        if not isinstance(value := getattr(rollout, name), kinds):
            raise ValueError(f"{rollout.source}: its {name} is {value!r}; write the file again, or delete the line")
    return rollout._replace(reward=None if rollout.reward is None else float(rollout.reward))


def _named(rollout: Saved, seen: Counter[str]) -> Saved:
    """With ids where it has none: rollouts of one prompt are numbered as they come."""
    prompt_id = rollout.prompt_id or prompt_id_of(rollout.problem)
    number = seen[prompt_id]
    seen[prompt_id] += 1
    return rollout._replace(prompt_id=prompt_id, rollout_id=rollout.rollout_id or f"{prompt_id}_r{number}")


def _ours(row: Mapping[str, Any]) -> Saved:
    """A line of samples/step_N.jsonl, see `jopsd.rollouts.dump`."""
    return Saved(
        prompt_id="",
        rollout_id="",
        problem=row["problem"],
        text=row["completion"],
        reward=row.get("reward"),
        prediction=row.get("prediction"),
        finish=row.get("finish"),
        step=None if row.get("policy_version") is None else row["policy_version"] + 1,
        prompts=row["prompts"],
        solution=row.get("solution"),
        answer=row.get("answer"),
        feedback=row.get("feedback"),
    )


def _mopd(row: Mapping[str, Any]) -> Saved:
    """A line of candidate_responses.jsonl."""
    return Saved(
        prompt_id=row["prompt_id"],
        rollout_id=row["response_id"],
        problem=row["prompt"],
        text=row["response_text"],
        reward=row.get("reward"),
        prediction=_text(row.get("pred")),
        finish=None,
        step=row.get("rollout_step"),
        prompts={"student": row["prompt"]},
        answer=row.get("ground_truth"),
        feedback=row.get("feedback_text") or None,
    )


def _verl(row: Mapping[str, Any]) -> Saved:
    """A line of verl's rollout dumps."""
    return Saved(
        prompt_id=prompt_id_of(row["input"]),
        rollout_id="",
        problem=row["input"],
        text=row["output"],
        reward=row.get("score"),
        prediction=_text(row["pred"]) if "pred" in row else last_boxed(row["output"]),
        finish=None,
        step=row.get("step"),
        prompts={"student": row["input"]},
        answer=_text(row.get("gts")),
        feedback=row.get("feedback") or None,
    )


def _text(value: Any) -> str | None:
    """An answer as text; an empty one is none."""
    return None if value is None or value == "" else str(value)


TEXTS = {"problem", "completion", "prompt", "response_text", "input", "output"}
FORMS = (
    ({"problem", "completion", "prompts"}, _ours),
    ({"prompt_id", "response_id", "prompt", "response_text"}, _mopd),
    ({"input", "output"}, _verl),
)


def by_problem(rollouts: Sequence[Saved]) -> dict[str, list[Saved]]:
    """Rollouts by prompt_id, in order of first appearance."""
    groups: dict[str, list[Saved]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.prompt_id, []).append(rollout)
    return groups
