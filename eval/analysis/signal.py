"""MOPD's teacher-signal study: does a teacher that reads more tell right rollouts from wrong ones?

Saved rollouts of each prompt are scored by a model that reads, under each condition, other rollouts, feedback or
nothing, and the eight measures of `signal_metrics` say how well scores follow rewards. The score of a rollout is
the mean log-probability of its tokens, its stop token included where it ended with one. The folder holds

    dataset.jsonl    the rollouts, with bucket and success
    variants.jsonl   what the teacher read of each under each condition, and whom it showed
    scores.jsonl     one line per variant, appended as they are made: an interrupted study goes on from there
    table.csv        every measure by sample set, condition and bucket; table.md, those of the chosen set
    summary.json     all of it, with settings and counts
    figure.png, by_bucket.png

A score depends on the scorer and on the tokens read and scored. So conditions, prompts and seed may change between two
starts in one folder: what has been scored with the same tokens is not scored again.
"""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eval.analysis.rollouts import Saved, read_rollouts
from eval.analysis.scoring import Scorer, load_scorer, score
from eval.analysis.signal_contexts import FORMS, Condition, Variant, make_variants, parse_condition
from eval.analysis.signal_data import Group, dataset_rows, dataset_summary, make_groups
from eval.analysis.signal_metrics import SAMPLE_SETS, Scored, study
from eval.analysis.signal_report import csv_text, draw, draw_buckets, markdown
from eval.progress import Say, say_to_stderr
from eval.records import claim, read_json, write_json
from jopsd.checkpoint import find_step, parse_run
from jopsd.config import Config, load_config
from jopsd.data.chat import render
from jopsd.paths import path_argument
from jopsd.schema import Reading
from jopsd.tracking import replace_text

DATASET, VARIANTS, SCORES = "dataset.jsonl", "variants.jsonl", "scores.jsonl"
CONDITIONS = "base,solution,solution+failure_solution"
KEYS = ("condition", "prompt_id", "rollout_id", "digest")
NUMBERS = ("score", "sum", "tokens", "prompt_tokens", "truncated")
AT_ONCE = 64  # variants scored between two writes


class Job(NamedTuple):
    """A variant with the tokens that are read and scored, and their digest."""

    variant: Variant
    prompt_ids: list[int]
    completion_ids: list[int]
    digest: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--conditions", default=CONDITIONS, metavar="A,B", help=f"what the teacher reads; default {CONDITIONS}")
    add(
        "--config",
        type=path_argument,
        metavar="FILE",
        help="whose templates and thinking; default the run's, if there is one",
    )
    add("--format", choices=FORMS, default="training", help="prompts as in training, or as MOPD's study builds them")
    add(
        "--teacher-weights",
        choices=("student", "base"),
        default="student",
        help="of --checkpoint: those it has learnt (default), or the model before training (the fixed teacher)",
    )
    add("--success", type=float, default=1.0, metavar="REWARD", help="a rollout with this or more is a success")
    add("--keep", type=int, default=8, metavar="N", help="rollouts per prompt, drawn at random")
    add("--max-prompts", type=int, metavar="N", help="shared equally between easy, medium and hard; default all")
    add("--seed", type=int, default=42, help="of every draw")
    add("--temperature", type=float, default=1.0, help="of the log-probabilities")
    add(
        "--max-length",
        type=int,
        metavar="TOKENS",
        help="prompt and rollout together; the prompt's beginning is cut off",
    )
    add("--batch", type=int, default=8, metavar="ROWS", help="rollouts scored at once")
    add("--sample-set", choices=tuple(SAMPLE_SETS), default="all", help="rollouts of table.md and of the figures")
    add(
        "--one-class",
        choices=("left_out", "zero"),
        default="left_out",
        help="prompts whose rewards are all the same: not ranked, or counted as 0, as published",
    )


def run(args: argparse.Namespace, say: Say = say_to_stderr) -> None:
    """The whole study, or what is left of it.

    Raises:
      ValueError, OSError, CheckpointError: bad input, named, before the model is loaded where that can be known.
    """
    conditions = _conditions(args)
    config = find_config(args.config, args.checkpoint, args.rollouts)
    groups, left_out = make_groups(read_rollouts(args.rollouts), args.success, args.keep, args.max_prompts, args.seed)
    words = config.context if config else None
    variants = make_variants(groups, conditions, words, args.success, args.seed, args.format)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    settings = _scorer_settings(args)
    claim(output, settings)
    _write_lines(output / DATASET, dataset_rows(groups, args.success))
    _write_lines(output / VARIANTS, [_variant_row(variant) for variant in variants])
    scorer = load_scorer(args.model, args.checkpoint, args.batch)
    reading = Reading(thinking=config.teacher.thinking, close_think=config.teacher.close_think) if config else Reading()
    jobs = make_jobs(scorer.tokenizer, scorer.stop_id, groups, variants, reading)
    _check_room(jobs, args.max_length)
    if unlike := unlike_saved(scorer.tokenizer, groups, jobs):
        say(f"{unlike} rollouts were drawn from another prompt than condition base reads; --config FILE sets templates")
    scores = score_jobs(scorer, jobs, output / SCORES, args, say)
    result = study(scored_rows(groups, jobs, scores, args.success), args.one_class)
    chosen = {key: getattr(args, key) for key in ("format", "seed", "keep", "max_prompts", "sample_set", "one_class")}
    summary = {
        "settings": {**settings, "conditions": [c.name for c in conditions], "rollouts": str(args.rollouts), **chosen},
        "dataset": dataset_summary(groups, left_out, args.success),
        "base_unlike_saved_prompt": unlike,
        "effective": {c.name: _effective(variants, c.name) for c in conditions},
        **result,
    }
    _write_report(output, summary, result, args.sample_set)
    say(markdown(result, args.sample_set))


def find_config(path: Path | None, checkpoint: str | None, rollouts: str | Path) -> Config | None:
    """The config asked for, that of the checkpoint's run, that of the run whose rollouts are read, or None."""
    if path is not None:
        return load_config(path)
    own = [parse_run(checkpoint)[0]] if checkpoint else []
    found = [folder / "config.yaml" for folder in (*own, Path(rollouts)) if (folder / "config.yaml").is_file()]
    return load_config(found[0]) if found else None


def make_jobs(
    tokenizer, stop_id: int, groups: Sequence[Group], variants: Sequence[Variant], reading: Reading
) -> list[Job]:
    """Token ids of what is read and scored, prompt and rollout tokenised apart."""
    completions = {
        (group.prompt_id, rollout.rollout_id): _completion(tokenizer, stop_id, rollout)
        for group in groups
        for rollout in group.rollouts
    }
    jobs = []
    for variant in variants:
        if isinstance(variant.prompt, str):
            prompt = list(tokenizer.encode(variant.prompt, add_special_tokens=False))
        else:
            prompt = render(tokenizer, variant.prompt.messages, reading.thinking, close_think=reading.close_think)
        completion = completions[variant.prompt_id, variant.rollout_id]
        digest = hashlib.sha1(json.dumps([prompt, completion]).encode()).hexdigest()
        jobs.append(Job(variant, prompt, completion, digest))
    return jobs


def unlike_saved(tokenizer, groups: Sequence[Group], jobs: Sequence[Job]) -> int:
    """How many rollouts have a saved prompt that is not what condition base reads; 0 where that cannot be known."""
    rendered = [(g.prompt_id, r) for g in groups if not g.turn for r in g.rollouts]
    saved = {(prompt_id, r.rollout_id): text for prompt_id, r in rendered if (text := r.prompts.get("student"))}
    base = [job for job in jobs if job.variant.condition == "base" and not isinstance(job.variant.prompt, str)]
    read = {(job.variant.prompt_id, job.variant.rollout_id): tokenizer.decode(job.prompt_ids) for job in base}
    return sum(text != saved.get(key, text) for key, text in read.items())


def score_jobs(scorer: Scorer, jobs: Sequence[Job], path: Path, args: argparse.Namespace, say: Say) -> dict[str, dict]:
    """Scores by digest of the tokens: those in the file, and the missing ones, which are added to it."""
    known, written = read_scores(path)
    queue = list({job.digest: job for job in jobs if job.digest not in known}.values())
    queue.sort(key=lambda job: len(job.prompt_ids) + len(job.completion_ids))  # near lengths share a compiled program
    say(f"{len(jobs)} variants, {len(queue)} to be scored")
    for start in range(0, len(queue), AT_ONCE):
        part = queue[start : start + AT_ONCE]
        pairs = [(job.prompt_ids, job.completion_ids) for job in part]
        made = score(scorer, pairs, args.teacher_weights, args.temperature, args.max_length)
        known |= {job.digest: _numbers(job, own.logprobs, own.truncated) for job, own in zip(part, made, strict=True)}
        _append(path, jobs, known, written)
        say(f"{start + len(part)}/{len(queue)} scored")
    _append(path, jobs, known, written)  # of variants whose tokens were scored for another one
    return known


def read_scores(path: Path) -> tuple[dict[str, dict], set[tuple]]:
    """Scores by digest, and which variants have a line. A line that a killed process left unfinished is cut off.

    Raises:
      ValueError: a line that is damaged.
    """
    known, written = {}, set()
    if not path.exists():
        return known, written
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
    for line in whole.decode().splitlines():
        row = read_json(path, line)
        known[row["digest"]] = {key: row[key] for key in NUMBERS}
        written.add(tuple(row[key] for key in KEYS))
    return known, written


def scored_rows(groups: Sequence[Group], jobs: Sequence[Job], scores: Mapping[str, Mapping], success: float) -> list:
    """The `Scored` of each job, in their order."""
    members = {(g.prompt_id, r.rollout_id): (g.bucket, r.reward) for g in groups for r in g.rollouts}
    rows = []
    for variant, _, _, digest in jobs:
        bucket, reward = members[variant.prompt_id, variant.rollout_id]
        own = scores[digest]
        rows.append(
            Scored(
                condition=variant.condition,
                prompt_id=variant.prompt_id,
                rollout_id=variant.rollout_id,
                score=own["score"],
                reward=reward,
                success=reward >= success,
                bucket=bucket,
                prompt_tokens=own["prompt_tokens"],
                truncated=own["truncated"],
                effective=variant.effective,
            )
        )
    return rows


def _conditions(args: argparse.Namespace) -> list[Condition]:
    names = [name.strip() for name in args.conditions.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"--conditions {args.conditions!r} is empty, or has one twice")
    for name, value, least in (
        ("keep", args.keep, 2),
        ("max-prompts", args.max_prompts, 1),
        ("seed", args.seed, 0),
        ("batch", args.batch, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")
    return [parse_condition(name) for name in names]


def _scorer_settings(args: argparse.Namespace) -> dict:
    """What decides the score of given tokens. Resolves the checkpoint, so that a newer one is not taken for this."""
    run_dir, step = parse_run(args.checkpoint) if args.checkpoint else (None, None)
    return {
        "model": args.model,
        "checkpoint": None if run_dir is None else str(run_dir.resolve()),
        "step": None if run_dir is None else find_step(run_dir, step),
        "teacher_weights": args.teacher_weights,
        "temperature": args.temperature,
        "max_length": args.max_length,
    }


def _completion(tokenizer, stop_id: int, rollout: Saved) -> list[int]:
    """Saved text has lost its stop token."""
    ids = list(tokenizer.encode(rollout.text, add_special_tokens=False))
    return [*ids, stop_id] if rollout.finish == "eos" else ids


def _check_room(jobs: Sequence[Job], max_length: int | None) -> None:
    longest = max(jobs, key=lambda job: len(job.completion_ids))
    if max_length is not None and len(longest.completion_ids) >= max_length:
        raise ValueError(
            f"--max-length {max_length} leaves no room for a prompt beside rollout {longest.variant.rollout_id} of "
            f"{len(longest.completion_ids)} tokens"
        )


def _numbers(job: Job, logprobs: np.ndarray, truncated: bool) -> dict:
    total = float(np.sum(logprobs, dtype=np.float64))
    return {
        "score": total / len(logprobs),
        "sum": total,
        "tokens": len(logprobs),
        "prompt_tokens": len(job.prompt_ids),
        "truncated": bool(truncated),
    }


def _append(path: Path, jobs: Sequence[Job], known: Mapping[str, Mapping], written: set[tuple]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        for variant, _, _, digest in jobs:
            key = (variant.condition, variant.prompt_id, variant.rollout_id, digest)
            if digest in known and key not in written:
                file.write(json.dumps(dict(zip(KEYS, key, strict=True)) | known[digest]) + "\n")
                written.add(key)


def _variant_row(variant: Variant) -> dict:
    raw = isinstance(variant.prompt, str)
    return {
        "condition": variant.condition,
        "prompt_id": variant.prompt_id,
        "rollout_id": variant.rollout_id,
        "effective": variant.effective,
        "sections_used": variant.sections_used,
        "evidence": dict(variant.evidence),
        **({"text": variant.prompt} if raw else {"messages": list(variant.prompt.messages)}),
    }


def _effective(variants: Sequence[Variant], condition: str) -> dict[str, int]:
    own = [variant.effective for variant in variants if variant.condition == condition]
    return {"variants": len(own), "effective": sum(own)}


def _write_lines(path: Path, rows: Sequence[Mapping]) -> None:
    replace_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write_report(output: Path, summary: Mapping, result: Mapping, sample_set: str) -> None:
    write_json(output / "summary.json", summary)
    replace_text(output / "table.csv", csv_text(result))
    replace_text(output / "table.md", markdown(result, sample_set))
    draw(result[sample_set]["conditions"], output / "figure.png")
    draw_buckets(result[sample_set]["conditions"], output / "by_bucket.png")
