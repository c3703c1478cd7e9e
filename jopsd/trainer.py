"""The loop: sample, grade, update, evaluate, log, save."""

import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import jax
import yaml

from jopsd import checkpoint
from jopsd.batch import TrainBatch
from jopsd.config import Config, ConfigError, flatten, to_yaml
from jopsd.data.chat import template_honours_thinking
from jopsd.data.loader import training_iterator
from jopsd.evaluate import Estimate, Evaluated, evaluate
from jopsd.mesh import put_rows
from jopsd.models.decoder import Decoder
from jopsd.models.quantize import int8_projections
from jopsd.models.sharding import tree_shardings
from jopsd.rewards.grader import make_grader
from jopsd.rollouts import batch_of, dump, rollout_metrics, sample_rollouts, solution_rollouts, with_teachers
from jopsd.sampling import Policy, Sampler, SamplingParams, make_sampler
from jopsd.schema import TEACHER_KEYS
from jopsd.setup import Task, Weights, load_weights, make_run_mesh, make_task, step_options
from jopsd.step import TrainState, make_old_logprobs, make_update
from jopsd.teachers import student_policy
from jopsd.tracking import Progress, curve, open_tracker, read_metrics, replace_text, sparkline

# Keys that may change between the start of a run and its continuation.
FREE_KEYS = (
    "train.steps",
    "train.epochs",
    "train.on_nonfinite",
    "optimizer.learning_rate",
    "eval",
    "checkpoint",
    "log",
    "mesh",
    "output_dir",
    "sampling.backend",
)


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says what happened, what was saved and what to change."""


def train(config: Config) -> dict:
    """Runs a config to its last step, resuming from the newest checkpoint in its output directory.

    Returns the summary, also written to `output_dir/summary.json`.

    Raises:
      ConfigError, ValueError, FileNotFoundError: bad input, before anything is compiled.
      TrainingError, CheckpointError: the run stopped; what was saved stays.
    """
    started = time.monotonic()
    run_dir = Path(config.output_dir)
    changed = _changes(config, run_dir)
    mesh = make_run_mesh(config)
    task = make_task(config)
    config = with_steps(config, len(task.train))
    run_dir.mkdir(parents=True, exist_ok=True)
    progress = Progress(config.train.steps, 0)
    progress.say(header(config, task))
    with ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        weights = load_weights(config, mesh)
        manager = stack.enter_context(checkpoint.open_checkpoints(run_dir, config.checkpoint.keep))
        state, meta = weights.state, {"data": None, "counts": {}}
        if (resume := manager.latest_step()) is not None:
            state, meta = checkpoint.restore(manager, resume, state)
            weights = weights._replace(state=state)  # the fresh one would stay in memory beside it
            progress = Progress(config.train.steps, resume)
            progress.say(_resuming(config, run_dir, resume, changed))
        replace_text(run_dir / "config.yaml", to_yaml(config))
        tracker = stack.enter_context(open_tracker(run_dir, config.log.tensorboard, resume))
        grader = None
        if config.reward is not None:
            problems = [item.problem for item in task.train + task.held_out]
            grader = stack.enter_context(make_grader(config.reward, problems))
        for note in grader.notes if grader is not None else ():
            progress.say(note)
        sampler = None
        if config.eval is not None or config.method.trains_on == "rollouts":
            sampler = stack.enter_context(closing(_make_sampler(config, task, weights, state, mesh)))
        loop = _Loop(config, task, weights, mesh, manager, tracker, grader, sampler, progress)
        if resume is None:
            loop.evaluate(0, state)
        loop.run(state, meta["data"], Counter(meta["counts"]))
    return _summarise(config, run_dir, resume or 0, time.monotonic() - started, progress)


def with_steps(config: Config, rows: int) -> Config:
    """The config with `train.epochs` through so many rows counted in steps."""
    if config.train.steps is not None:
        return config
    steps = max(config.train.epochs * rows // config.train.batch_size, 1)
    return config.model_copy(update={"train": config.train.model_copy(update={"steps": steps})})


class _Loop:
    """The parts of a running loop. Holds no training state: that is passed in and out of each method."""

    def __init__(self, config, task: Task, weights: Weights, mesh, manager, tracker, grader, sampler, progress):
        self.config, self.task, self.weights, self.mesh = config, task, weights, mesh
        self.manager, self.tracker, self.grader = manager, tracker, grader
        self.sampler, self.progress = sampler, progress
        options = step_options(config)
        self.update = make_update(options, weights.optimizer, mesh, weights.state)
        self.drawn = _drawn_weights(config, weights.models.base, mesh)
        parts = config.rows_per_step // config.micro_rows
        self.old_logprobs = make_old_logprobs(options, mesh, parts) if config.updates_per_step > 1 else None

    def run(self, state: TrainState, data_state: dict | None, earlier: Counter) -> None:
        """Steps up to the last one. earlier: counts of the processes that this one continues."""
        config = self.config
        batches = training_iterator(self.task.train, config.train.batch_size, config.seed, parts=self.task.parts)
        if data_state is not None:
            batches.set_state(data_state)
        skipped_updates = earlier["skipped_updates"]
        done = int(state.updates) // config.updates_per_step
        for step in range(done + 1, config.train.steps + 1):
            state, rollouts, metrics = self.step(step, next(batches), state)
            nonfinite = int(metrics.pop("nonfinite"))
            skipped_updates += nonfinite
            graded = self.grader.stats if self.grader is not None else Counter()
            counts = {
                "skipped_updates": skipped_updates,
                "grading_timeouts": earlier["grading_timeouts"] + graded["timeout"],
                "grading_failures": earlier["grading_failures"] + graded["crashed"] + graded["broken_row"],
            }
            metrics |= counts | {f"skipped_rows/{reason}": count for reason, count in self.task.skipped.items()}
            if nonfinite and config.train.on_nonfinite == "error":
                self.stop_on_nonfinite(step, state, metrics, batches, counts)
            if step % config.log.every == 0 or step == config.train.steps:
                self.tracker.write(step, metrics)
                self.progress.show(step, metrics)
            if step % config.log.samples_every == 0 or step == 1:
                self.tracker.dump_samples(step, [dump(r, self.task.tokenizer) for r in rollouts[: config.log.samples]])
            last = step == config.train.steps
            if config.eval is not None and (last or step % config.eval.every == 0):
                self.evaluate(step, state)
            if last or step % config.checkpoint.every == 0:
                self.save(step, state, batches, counts)

    def step(self, step: int, items, state: TrainState):
        """Samples, grades and updates once: (state, rollouts, metrics)."""
        config = self.config
        begin = time.monotonic()
        rollouts = self.rollouts(step, items, state)
        sampled = time.monotonic()
        state, metrics = self.updates(batch_of(rollouts, config, self.task.tokenizer), state)
        rate = self.weights.schedule(step * config.updates_per_step - 1)
        metrics |= rollout_metrics(rollouts) | {"learning_rate": float(rate)}
        return state, rollouts, metrics | _timing(begin, sampled, time.monotonic(), metrics["tokens"])

    def updates(self, batch: TrainBatch, state: TrainState):
        """All optimiser updates on one batch of rollouts: (state, metrics)."""
        config, models = self.config, self.weights.models
        if self.old_logprobs is not None:
            old = self.old_logprobs(state.trainable, models, put_rows(batch, self.mesh))
            batch = replace(batch, old_logprobs=jax.device_get(old))
        metrics = []
        for first in list(range(0, config.rows_per_step, config.rows_per_update)) * config.train.passes:
            rows = jax.tree.map(lambda x: x[first : first + config.rows_per_update], batch)  # noqa: B023
            state, measured = self.update(state, models, put_rows(rows, self.mesh))
            metrics.append({name: float(value) for name, value in jax.device_get(measured).items()})
        return state, _over_updates(metrics)

    def rollouts(self, step: int, items, state: TrainState):
        config, task = self.config, self.task
        if config.method.trains_on == "solution":
            eos, limit = task.stop_ids[0], config.sampling.max_new_tokens
            return list(solution_rollouts(items, task.tokenizer, eos, config.method.tokens, limit))
        version = step - 1
        self.sampler.update(self.drawn(student_policy(state.trainable, self.weights.models.base)), version)
        grade = self.grader.submit if self.grader is not None else None
        rollouts = sample_rollouts(
            self.sampler,
            items,
            _params(config.sampling, task),
            config.sampling.n,
            (config.seed, step),
            task.tokenizer,
            grade,
        )
        stale = {r.policy_version for r in rollouts} - {version}
        if stale:
            raise TrainingError(f"step {step} got rollouts of policy versions {sorted(stale)}, not {version}")
        return with_teachers(config, task.tokenizers, rollouts, (config.seed, step))

    def evaluate(self, step: int, state: TrainState) -> None:
        """Held-out accuracy of the current policy, logged and shown."""
        config = self.config.eval
        if config is None:
            return
        begin = time.monotonic()
        self.sampler.update(student_policy(state.trainable, self.weights.models.base), step)
        params = _params(config, self.task)
        found = evaluate(
            self.sampler,
            self.task.held_out,
            params,
            config.samples,
            config.seed,
            self.task.tokenizer,
            self.grader.submit,
        )
        flat = [rollout for group in found.rollouts for rollout in group]
        metrics = {f"eval/{name}": value for name, value in _eval_metrics(found, config.samples).items()}
        metrics |= {f"eval/{name}": value for name, value in rollout_metrics(flat).items() if name != "reward"}
        metrics["time/eval_seconds"] = time.monotonic() - begin
        self.tracker.write(step, metrics)
        self.progress.say(f"held-out accuracy after step {step}: {show(found.accuracy)}")
        for source, estimate in found.by_source.items():
            self.progress.say(f"  {source}: {show(estimate)}")

    def save(self, step: int, state: TrainState, batches, counts: dict) -> None:
        meta = {"data": batches.get_state(), "counts": counts}
        checkpoint.save(self.manager, step, state, meta | {"config": self.config.model_dump(mode="json")})

    def stop_on_nonfinite(self, step: int, state: TrainState, metrics: dict, batches, counts: dict) -> None:
        """The bad update was not applied, so the weights are worth keeping."""
        self.tracker.write(step, metrics)
        self.save(step, state, batches, counts)
        raise TrainingError(
            f"step {step}: the loss or its gradient is not finite (loss {metrics['loss']}, gradient norm "
            f"{metrics['grad_norm']}); that update was not applied and the weights are saved as step {step}; start "
            "again with a lower optimizer.learning_rate, or with train.on_nonfinite: skip to count such steps and go on"
        )


def _eval_metrics(found: Evaluated, samples: int) -> dict[str, float]:
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


def _params(section, task: Task) -> SamplingParams:
    return SamplingParams(section.max_new_tokens, section.temperature, section.top_p, section.top_k, task.stop_ids)


def _drawn_weights(config: Config, base: Decoder | None, mesh) -> Callable[[Policy], Policy]:
    """What rollouts are drawn from, given the policy: itself, or itself with int8 projections.

    base: the frozen model under an adapter, which is rounded once. A model that trains is rounded at each step.
    """
    if config.sampling.weights == "exact" or config.method.trains_on != "rollouts":
        return lambda policy: policy

    def rounded(model: Decoder) -> Decoder:
        shapes = jax.eval_shape(int8_projections, model)
        return jax.jit(int8_projections, out_shardings=tree_shardings(shapes, mesh))(model)

    if config.lora is None:
        return lambda policy: Policy(rounded(policy.model), None)
    once = rounded(base)
    return lambda policy: Policy(once, policy.adapter)


def _make_sampler(config: Config, task: Task, weights: Weights, state: TrainState, mesh) -> Sampler:
    longest = lambda items: max((len(item.prompts["student"]) for item in items), default=0)  # noqa: E731
    limits = [longest(task.train) + config.sampling.max_new_tokens]
    if config.eval is not None:
        limits.append(longest(task.held_out) + config.eval.max_new_tokens)
    policy = student_policy(state.trainable, weights.models.base)
    return make_sampler(
        config.sampling.backend,
        weights.model_config,
        policy,
        slots=config.sampling.slots,
        max_length=max(limits),
        chunk=config.sampling.chunk,
        mesh=mesh,
        max_stop_ids=max(len(task.stop_ids), 1),
    )


def header(config: Config, task: Task) -> str:
    """What a reader wants to check before a long run: sizes, thinking modes, one rendered prompt of each view."""
    example = task.train[0].prompts
    lines = [
        f"{config.method.name} on {config.data.named}: {len(task.train)} training and {len(task.held_out)} held-out "
        "problems",
        f"thinking: student {config.student.thinking}, teacher {config.teacher.thinking}, "
        f"eval {config.eval.thinking if config.eval else None}",
        f"temperatures: sampling {config.sampling.temperature}, loss {config.method.temperature}, "
        f"eval {config.eval.temperature if config.eval else None}",
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


def _teacher_in_words(config: Config) -> str:
    values = {key: getattr(config.teacher, key) for key in TEACHER_KEYS}
    keys = "".join(f", {key} {value}" for key, value in values.items() if value is not None)
    when = " of each rollout, made after sampling (see samples/)" if config.context.reads_attempts else ""
    return f"{config.teacher.kind}{keys}; reads context {config.context.name}{when}"


def show(estimate: Estimate) -> str:
    return f"{estimate.mean:.3f} (95 % interval {estimate.low:.3f} to {estimate.high:.3f})"


def _over_updates(metrics: list[dict[str, float]]) -> dict[str, float]:
    """One step's metrics from its updates': counts are summed, the rest averaged.

    The gap to the sampler is the first update's, where the policy is still the one that sampled.
    """
    if len(metrics) == 1:
        return metrics[0]
    summed = {name: sum(m[name] for m in metrics) for name in metrics[0]}
    mean = {name: total / len(metrics) for name, total in summed.items()}
    first = {name: value for name, value in metrics[0].items() if name.startswith("sampler_gap")}
    return {**mean, **first, "tokens": summed["tokens"], "nonfinite": summed["nonfinite"]}


def _timing(begin: float, sampled: float, end: float, tokens: float) -> dict[str, float]:
    return {
        "time/sample_seconds": sampled - begin,
        "time/update_seconds": end - sampled,
        "time/tokens_per_second": tokens / (end - begin),
    }


def _changes(config: Config, run_dir: Path) -> list[str]:
    """Keys that differ from those of the run in this directory, as "key: old -> new".

    Raises:
      ConfigError: a key outside `FREE_KEYS` differs, so that another run would be continued by accident.
    """
    saved = run_dir / "config.yaml"
    if not saved.is_file() or not checkpoint.checkpoint_dir(run_dir).is_dir():
        return []
    old, new = (flatten(tree) for tree in (yaml.safe_load(saved.read_text()), config.model_dump(mode="json")))
    if config.train.steps is None:
        new["train.steps"] = old["train.steps"]  # counted when the rows are
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


def _resuming(config: Config, run_dir: Path, resume: int, changed: list[str]) -> str:
    if resume >= config.train.steps:
        return f"{run_dir} is already trained to step {resume}; to go on, raise train.steps (now {config.train.steps})"
    return "\n".join([f"resuming {run_dir} after step {resume}", *(f"changed {change}" for change in changed)])


def _summarise(config: Config, run_dir: Path, resumed: int, seconds: float, progress: Progress) -> dict:
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
