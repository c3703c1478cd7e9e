"""What a run says of itself: its header, what changed since it was started, its summary."""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from jopsd import checkpoint
from jopsd.config import Config, ConfigError, flatten, load_config
from jopsd.data.chat import template_honours_thinking
from jopsd.evaluate import Estimate, Evaluated
from jopsd.rollouts import Rollout
from jopsd.schema import TEACHER_KEYS
from jopsd.setup import Task
from jopsd.tracking import Progress, curve, read_metrics, replace_text, sparkline

# Keys that may change between the start of a run and its continuation.
FREE_KEYS = (
    "train.steps",
    "train.epochs",
    "train.on_nonfinite",
    "train.profile",
    # These change rounding alone.
    "train.packing",
    "train.micro_batch_size",
    "train.micro_batch_tokens",
    "train.token_chunk",
    "optimizer.learning_rate",
    "eval",
    "checkpoint",
    "log",
    "mesh",
    "output_dir",
    "sampling.backend",
    "sampling.tensor",
    "sampling.servers",
    "sampling.access",
)


def header(config: Config, task: Task) -> str:
    """What a reader wants to check before a long run: sizes, thinking modes, one rendered prompt of each view."""
    example = task.train[0].prompts
    lines = [
        f"{config.method.name} on {config.data.named}: {len(task.train)} training and {len(task.held_out)} held-out "
        "problems",
        f"thinking: {_thinking(config)}",
        f"temperatures: {_temperatures(config)}",
        *task.notes,
        *(f"left out: {count} rows, {reason}" for reason, count in task.skipped.items()),
    ]
    if config.method.teacher_views:
        lines.append(f"teacher: {_teacher_in_words(config)}")
    asked = [reading.thinking for reading in (config.student, config.teacher, config.eval) if reading is not None]
    if any(thinking is not None for thinking in asked) and not template_honours_thinking(task.tokenizer):
        lines.append("this model's chat template ignores the thinking flag: thinking keys change nothing")
    if config.sampling.top_p < 1 or config.sampling.top_k:
        lines.append("rollouts are drawn from a truncated distribution (top_p, top_k); log-probabilities are not")
    if config.sampling.weights == "int8":
        lines.append("rollouts are drawn with int8 projections; sampler_gap is what that does to log-probabilities")
    for view, ids in example.items():
        lines += [f"--- first {view} prompt ({len(ids)} tokens)", task.tokenizer.decode(ids)]
    return "\n".join([*lines, "---"])


def _thinking(config: Config) -> str:
    """Each view's thinking flag; what all leave to the template is said once."""
    views = {"student": config.student}
    views |= {"teacher": config.teacher} if config.method.teacher_views else {}
    views |= {"eval": config.eval} if config.eval is not None else {}
    if all(reading.thinking is None for reading in views.values()):
        return f"the template's default ({', '.join(views)})"
    words = {None: "the template's default", True: "on", False: "off"}
    return ", ".join(f"{view} {words[reading.thinking]}" for view, reading in views.items())


def _temperatures(config: Config) -> str:
    drawn = {"sampling": config.sampling.temperature} if config.method.trains_on == "rollouts" else {}
    told = drawn | {"loss": config.method.temperature}
    told |= {"eval": config.eval.temperature} if config.eval is not None else {}
    return ", ".join(f"{name} {value}" for name, value in told.items())


def _teacher_in_words(config: Config) -> str:
    values = {key: getattr(config.teacher, key) for key in TEACHER_KEYS}
    keys = "".join(f", {key} {value}" for key, value in values.items() if value is not None)
    when = " of each rollout, made after sampling (see samples/)" if config.context.reads_attempts else ""
    return f"{config.teacher.kind}{keys}; reads context {config.context.name}{when}"


def warnings(config: Config, rollouts: Sequence[Rollout]) -> dict[str, str]:
    """What a reader should know of a step's rollouts, by the kind of trouble; each kind is said once a run."""
    found, graded = {}, [r.score for r in rollouts if r.score is not None]
    limit = config.sampling.max_new_tokens
    if config.method.trains_on == "rollouts" and all(r.finish == "length" for r in rollouts):
        found["cut"] = (
            f"all {len(rollouts)} rollouts were cut at sampling.max_new_tokens {limit}; see samples/, and raise it if "
            "they had more to say"
        )
    if graded and not any(score.formatted for score in graded):
        found["form"] = (
            f"in none of {len(graded)} rollouts an answer could be found (reward.name {config.reward.name}); look at "
            "samples/ and at the instruction that the prompt gives"
        )
    groups: dict[int, set[float]] = {}
    for rollout in rollouts if graded else ():
        groups.setdefault(rollout.group, set()).add(rollout.score.reward)
    if config.method.uses_reward and graded and all(len(rewards) == 1 for rewards in groups.values()):
        found["constant"] = (
            f"in every group all {config.sampling.n} rollouts have one reward, so method {config.method.name} learns "
            "nothing from this step; choose problems that are sometimes solved, or raise sampling.n"
        )
    reads_more = config.method.teacher_views and config.teacher.kind != "external"
    if reads_more and all(r.prompts.get("teacher") == r.prompts["student"] for r in rollouts):
        found["same"] = "the teacher reads what the student reads in every rollout of this step"
    return found


def show(estimate: Estimate) -> str:
    return f"{estimate.mean:.3f} (95 % interval {estimate.low:.3f} to {estimate.high:.3f})"


def eval_metrics(found: Evaluated, samples: int) -> dict[str, float]:
    """Accuracy; problems solved by any of several samples; each source by itself, and the plain mean over sources."""
    accuracy = found.accuracy
    metrics = {"accuracy": accuracy.mean, "accuracy_low": accuracy.low, "accuracy_high": accuracy.high}
    if samples > 1:
        metrics[f"pass_at_{samples}"] = found.solved.mean
    if found.by_source:
        means = {source: estimate.mean for source, estimate in found.by_source.items()}
        metrics |= {f"accuracy/{source.replace('/', '_')}": mean for source, mean in means.items()}
        metrics["accuracy_mean_over_sources"] = sum(means.values()) / len(means)
    return metrics


def changes(config: Config, run_dir: Path) -> list[str]:
    """Keys that differ from those of the run in this directory, as "key: old -> new".

    Raises:
      ConfigError: a key outside `FREE_KEYS` differs, so that another run would be continued by accident.
    """
    saved = run_dir / "config.yaml"
    if not saved.is_file() or not checkpoint.checkpoint_dir(run_dir).is_dir():
        return []
    # Read as a config, so that keys which are younger than the run have their defaults.
    try:
        was = load_config(saved).model_dump(mode="json")
    except ConfigError:
        was = yaml.safe_load(saved.read_text())  # of another version, or of no run; what differs is named below
    old, new = flatten(was), flatten(config.model_dump(mode="json"))
    if config.train.steps is None:  # epochs are counted in steps when the rows are
        new |= {key: old.get(key) for key in ("train.steps", "train.epochs")}
    differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    fixed = [key for key in differing if not any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)]
    if fixed:
        fixed.sort(key=lambda key: not key.endswith(".name"))  # another method explains the keys that follow from it
        key, more = fixed[0], f" (and {len(fixed) - 1} more keys)" if fixed[1:] else ""
        raise ConfigError(
            f"{run_dir} holds a run with another config: {key} was {old.get(key)!r}, now {new.get(key)!r}{more}; set "
            f"another output_dir, or delete {run_dir}"
        )
    return [f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in differing]


def resuming(config: Config, run_dir: Path, resume: int, changed: list[str]) -> str:
    if resume >= config.train.steps:
        return f"{run_dir} is already trained to step {resume}; to go on, raise train.steps (now {config.train.steps})"
    return "\n".join([f"resuming {run_dir} after step {resume}", *(f"changed {change}" for change in changed)])


def summarise(config: Config, run_dir: Path, resumed: int, seconds: float, progress: Progress) -> dict:
    """Writes summary.json and curve.png from the run's own metrics."""
    rows = read_metrics(run_dir)
    evaluations = [row for row in rows if "eval/accuracy" in row]
    summary = {
        "method": config.method.name,
        "steps": config.train.steps,
        "seconds": round(seconds, 1),
        "resumed_after_step": resumed,
        "seed": config.seed,
    }
    path = run_dir / "summary.json"
    if resumed >= config.train.steps and path.is_file():
        # Nothing was trained this time, so the times of the process that did stay.
        earlier = json.loads(path.read_text(encoding="utf-8"))
        summary |= {key: earlier[key] for key in ("seconds", "resumed_after_step") if key in earlier}
    if evaluations:
        for name, row in (("base", evaluations[0]), ("final", evaluations[-1])):
            summary[f"{name}_accuracy"] = row["eval/accuracy"]
            summary[f"{name}_interval"] = [row["eval/accuracy_low"], row["eval/accuracy_high"]]
            progress.say(f"{name:5} accuracy {show(Estimate(row['eval/accuracy'], *summary[f'{name}_interval']))}")
        progress.say(f"accuracy by evaluation {sparkline([row['eval/accuracy'] for row in evaluations])}")
        curve(rows, run_dir / "curve.png")
        progress.say(f"curve: {run_dir / 'curve.png'}")
    replace_text(path, json.dumps(summary, indent=2) + "\n")
    progress.say(f"summary: {path} ({summary['seconds']:.0f} s)")
    return summary
