"""The loop: sample, grade, update, evaluate, log, save."""

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jopsd import checkpoint
from jopsd.batch import TrainBatch
from jopsd.config import Config, to_yaml
from jopsd.content import Content, changed_content, content_of
from jopsd.data.loader import training_iterator
from jopsd.distributed import exchange, is_first, require_agreement, require_shared_folder, together
from jopsd.drawing import Drawing, open_drawing
from jopsd.evaluate import evaluate
from jopsd.lengths import Lengths
from jopsd.mesh import put_rows
from jopsd.packing import pack, shapes
from jopsd.preemption import Notice, Preempted, listening
from jopsd.prompts import Item
from jopsd.report import changes, eval_metrics, header, resuming, show, summarise, warnings
from jopsd.rewards.grader import Grader, make_grader
from jopsd.rollouts import (
    Rollout,
    batch_of,
    dump,
    gather_rollouts,
    rollout_metrics,
    sample_rollouts,
    solution_rollouts,
    with_teachers,
)
from jopsd.sampling import SamplingParams
from jopsd.setup import Task, Weights, load_weights, make_run_mesh, make_task, packing_of, step_options
from jopsd.step import TrainState, make_old_logprobs, make_update
from jopsd.teachers import student_policy
from jopsd.tracking import Progress, Tracker, open_tracker, read_metrics, replace_text


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says what happened, what was saved and what to change."""


def train(config: Config) -> dict | None:
    """Runs a config to its last step, resuming from the newest checkpoint in its output directory.

    Every process of a run calls it with the same config. Returns the summary, also written to
    `output_dir/summary.json`, or None for a run that was told to end (Ctrl-C, SIGTERM) and has saved.

    Raises:
      ConfigError, ValueError, FileNotFoundError: bad input, before anything is compiled.
      TrainingError, CheckpointError, DistributedError: the run stopped; what was saved stays.
    """
    started, run_dir = time.monotonic(), Path(config.output_dir)
    with ExitStack() as stack:
        notice = stack.enter_context(listening())
        require_agreement("config", to_yaml(config))
        require_shared_folder(run_dir)
        changed, mesh, task = together(lambda: (changes(config, run_dir), make_run_mesh(config), make_task(config)))
        config = with_steps(config, len(task.train))
        run_dir.mkdir(parents=True, exist_ok=True)
        progress = Progress(config.train.steps, 0, quiet=not is_first())
        progress.say(header(config, task))
        stack.enter_context(jax.set_mesh(mesh))
        weights = together(lambda: load_weights(config, mesh))
        content = content_of(config, task, weights)
        manager = stack.enter_context(checkpoint.open_checkpoints(run_dir, config.checkpoint.keep))
        state, meta = weights.state, {"data": None, "counts": {}}
        if (resume := manager.latest_step()) is not None:
            state, meta = checkpoint.restore(manager, resume, state)
            changed = changed + changed_content(meta, config, content)
            weights = weights._replace(state=state)  # the fresh one would stay in memory beside it
            progress = Progress(config.train.steps, resume, quiet=not is_first())
            progress.say(resuming(config, run_dir, resume, changed))
        if is_first():
            replace_text(run_dir / "config.yaml", to_yaml(config))
        tracker = stack.enter_context(open_tracker(run_dir, config.log.tensorboard, resume, write=is_first()))
        grader = None
        if config.reward is not None:
            problems = [item.problem for item in task.train + task.held_out]
            grader = stack.enter_context(make_grader(config.reward, problems))
        for note in grader.notes if grader is not None else ():
            progress.say(note)
        drawing = None
        if config.eval is not None or config.method.trains_on == "rollouts":
            drawing = stack.enter_context(open_drawing(config, task, weights, state, mesh, run_dir))
        loop = _Loop(config, task, weights, content, mesh, manager, tracker, grader, drawing, progress, notice)
        loop.shapes = list(meta.get("shapes", []))
        notice.hear(signal.SIGINT)  # until here Ctrl-C ends the process: there was nothing to save
        if not loop.run(state, meta["data"], Counter(meta["counts"])):
            return None
    return summarise(config, run_dir, resume or 0, time.monotonic() - started, progress)


def with_steps(config: Config, rows: int) -> Config:
    """The config with `train.epochs` through so many rows counted in steps."""
    if config.train.steps is not None:
        return config
    steps = max(config.train.epochs * rows // config.train.batch_size, 1)
    return config.model_copy(update={"train": config.train.model_copy(update={"steps": steps, "epochs": None})})


class _Draw(NamedTuple):
    """Rollouts on their way.

    position: where the data stood before their rows. version: of the weights that draw. own: waits for this process's.
    """

    position: dict
    items: list[Item]
    version: int
    own: Callable[[], list[Rollout]]


class _Loop:
    """The parts of a running loop. Holds no training state: that is passed in and out of each method."""

    def __init__(
        self,
        config: Config,
        task: Task,
        weights: Weights,
        content: Content,
        mesh,
        manager,
        tracker: Tracker,
        grader: Grader | None,
        drawing: Drawing | None,
        progress: Progress,
        notice: Notice,
    ):
        self.config, self.task, self.weights, self.content, self.mesh = config, task, weights, content, mesh
        self.manager, self.tracker, self.grader = manager, tracker, grader
        self.drawing, self.progress, self.notice = drawing, progress, notice
        self.lengths, self.held_out_lengths = Lengths(), Lengths()
        self.warned: set[str] = set()
        self.shapes: dict[str, list[int]] | None = (
            None  # of the last step's packed rows, so that the next may share them
        )
        options, self.packing = step_options(config), packing_of(config, weights.model_config, mesh)
        self.update = make_update(options, weights.optimizer, mesh, weights.state)
        self.old_logprobs = None
        if config.updates_per_step > 1:
            self.old_logprobs = make_old_logprobs(options, mesh)

    def run(self, state: TrainState, data_state: dict | None, earlier: Counter) -> bool:
        """Steps up to the last one; False if it was told to end before. earlier: counts of the processes before it."""
        config, counts, draw = self.config, dict(earlier), None
        batches = training_iterator(self.task.train, config.train.batch_size, config.seed, parts=self.task.parts)
        if data_state is not None:
            batches.set_state(data_state)
        done = int(state.updates) // config.updates_per_step
        position = batches.get_state()
        try:
            if self.evaluates(done) and not self.evaluated(done):
                self.evaluate(done, state)
            for step in profiled(range(done + 1, config.train.steps + 1), config):
                begin = time.monotonic()
                draw = draw or self.start(step, batches, state)
                position = draw.position
                rollouts = self.finish(step, draw)
                sampled = time.monotonic()
                draw = self.start(step + 1, batches, state, ahead=True) if self.draws_ahead(step) else None
                state, measured = self.updates(rollouts, state)
                more = rollout_metrics(rollouts) | self.rate(step)  # while the devices are at work
                self.dump(step, rollouts)
                metrics = _over_updates(jax.device_get(measured)) | more
                done, position = step, batches.get_state() if draw is None else draw.position
                metrics |= _timing(begin, sampled, time.monotonic(), metrics["tokens"])
                nonfinite = int(metrics.pop("nonfinite"))
                counts = self.counts(earlier, counts, nonfinite)
                metrics |= counts | {f"skipped_rows/{reason}": count for reason, count in self.task.skipped.items()}
                if nonfinite and config.train.on_nonfinite == "error":
                    self.stop_on_nonfinite(step, state, metrics, position, counts)
                self.log(step, metrics)
                self.warn(rollouts)
                if self.evaluates(step):
                    self.evaluate(step, state)
                if step == config.train.steps or step % config.checkpoint.every == 0:
                    self.save(step, state, position, counts)
        except Preempted:
            self.stop(done, state, position, counts)
            return False
        return True

    def counts(self, earlier: Counter, counts: dict, nonfinite: int) -> dict:
        graded = self.grader.stats if self.grader is not None else Counter()
        return {
            "skipped_updates": counts.get("skipped_updates", 0) + nonfinite,
            "grading_timeouts": earlier["grading_timeouts"] + graded["timeout"],
            "grading_failures": earlier["grading_failures"] + graded["crashed"] + graded["broken_row"],
        }

    def rate(self, step: int) -> dict[str, float]:
        return {"learning_rate": float(self.weights.schedule(step * self.config.updates_per_step - 1))}

    def log(self, step: int, metrics: dict) -> None:
        if step % self.config.log.every == 0 or step == self.config.train.steps:
            self.tracker.write(step, metrics)
            self.progress.show(step, metrics)

    def warn(self, rollouts: list[Rollout]) -> None:
        """Says what is wrong with a step's rollouts, each kind of trouble once."""
        for kind, text in warnings(self.config, rollouts).items():
            if kind not in self.warned:
                self.warned.add(kind)
                self.progress.say(f"warning: {text}")

    def dump(self, step: int, rollouts: list[Rollout]) -> None:
        log = self.config.log
        if step % log.samples_every == 0 or step == 1:
            self.tracker.dump_samples(step, [dump(r, self.task.tokenizer) for r in rollouts[: log.samples]])

    def updates(self, rollouts: Sequence[Rollout], state: TrainState) -> tuple[TrainState, list[dict[str, jax.Array]]]:
        """Starts all optimiser updates on the rollouts of a step: (state, metrics of each), none of it awaited."""
        config, models = self.config, self.weights.models
        batches = self.batches(rollouts)
        if self.old_logprobs is not None:
            old = [self.old_logprobs(state.trainable, models, batch) for batch in batches]
            batches = [replace(batch, old_logprobs=x) for batch, x in zip(batches, old, strict=True)]
        measured = []
        for batch in batches * config.train.passes:
            state, metrics = self.update(state, models, batch)
            measured.append(metrics)
        return state, measured

    def batches(self, rollouts: Sequence[Rollout]) -> list[TrainBatch]:
        """The batch of each update of a step, each process putting its rows onto its devices."""
        rows, tokenizer = self.config.rows_per_update, self.task.tokenizer
        parts = [rollouts[first : first + rows] for first in range(0, len(rollouts), rows)]
        batches = [batch_of(part, self.config, tokenizer, like=rollouts) for part in parts]
        if self.packing is not None:
            batches = pack(batches, self.packing, self.shapes)
            self.shapes += [new for new in [shapes(batches[0])] if new not in self.shapes]
        return put_rows(batches, self.mesh)

    def start(self, step: int, batches, state: TrainState, ahead: bool = False) -> _Draw:
        """Draws the rollouts of a step; ahead: in a thread of its own, from the weights before this step's update."""
        config, position, items = self.config, batches.get_state(), next(batches)
        if config.method.trains_on == "solution":
            eos, limit = self.task.stop_ids[0], config.sampling.max_new_tokens
            made = list(solution_rollouts(items, self.task.tokenizer, eos, config.method.tokens, limit))
            return _Draw(position, items, -1, lambda: made)
        version = step - 2 if ahead else step - 1
        policy = student_policy(state.trainable, self.weights.models.base)
        self.drawing.load(policy, version, keep=ahead)
        own = partial(self.draw, step, items)
        if ahead:
            thread = ThreadPoolExecutor(1, thread_name_prefix="jopsd.ahead")
            own = thread.submit(own).result
            thread.shutdown(wait=False)
        return _Draw(position, items, version, own)

    def draw(self, step: int, items: list[Item]) -> list[Rollout]:
        """This process's rollouts of a step, graded, with their teachers' prompts."""
        config, task, seed = self.config, self.task, (self.config.seed, step)
        rollouts = sample_rollouts(
            self.drawing.sampler,
            items,
            _params(config.sampling, task),
            config.sampling.n,
            seed,
            task.tokenizer,
            self.grader.submit if self.grader is not None else None,
            self.notice,
            self.lengths,
        )
        return with_teachers(config, task.tokenizers, rollouts, seed)

    def finish(self, step: int, draw: _Draw) -> list[Rollout]:
        """All processes' rollouts of a step. Raises Preempted where the run was told to end."""
        if draw.version == -1:
            self.notice.meet()
            return draw.own()
        rollouts = gather_rollouts(draw.own, draw.items, self.notice)
        stale = {r.policy_version for r in rollouts} - {draw.version}
        if stale:
            raise TrainingError(f"step {step} got rollouts of policy versions {sorted(stale)}, not {draw.version}")
        self.lengths.learn((r.item.problem, len(r.completion_ids)) for r in rollouts)
        return rollouts

    def draws_ahead(self, step: int) -> bool:
        """Whether the next step's rollouts are drawn during this step's update; not across what needs these weights."""
        config = self.config
        waits = step == config.train.steps or step % config.checkpoint.every == 0 or self.evaluates(step)
        return bool(config.sampling.ahead) and not waits

    def evaluates(self, step: int) -> bool:
        cfg = self.config.eval
        return cfg is not None and (step == 0 or step == self.config.train.steps or step % cfg.every == 0)

    def evaluated(self, step: int) -> bool:
        """Whether the metrics hold this step's evaluation; a run told to end during it has saved without."""
        found = any(row["step"] == step and "eval/accuracy" in row for row in read_metrics(self.config.output_dir))
        return exchange(found)[0]  # the first process may be at work on that file

    def evaluate(self, step: int, state: TrainState) -> None:
        """Held-out accuracy of the current policy, logged and shown."""
        config, begin = self.config.eval, time.monotonic()
        self.drawing.load(student_policy(state.trainable, self.weights.models.base), step, exact=True)
        found = evaluate(
            self.drawing.sampler,
            self.task.held_out,
            _params(config, self.task),
            config.samples,
            config.seed,
            self.task.tokenizer,
            self.grader.submit,
            self.notice,
            self.held_out_lengths,
        )
        flat = [rollout for group in found.rollouts for rollout in group]
        metrics = {f"eval/{name}": value for name, value in eval_metrics(found, config.samples).items()}
        metrics |= {f"eval/{name}": value for name, value in rollout_metrics(flat).items() if name != "reward"}
        metrics["time/eval_seconds"] = time.monotonic() - begin
        self.tracker.write(step, metrics)
        self.progress.say(f"held-out accuracy after step {step}: {show(found.accuracy)}")
        for source, estimate in found.by_source.items():
            self.progress.say(f"  {source}: {show(estimate)}")

    def save(self, step: int, state: TrainState, position: dict, counts: dict) -> None:
        meta = {"data": position, "counts": counts, "content": self.content, "shapes": self.shapes}
        checkpoint.save(self.manager, step, state, meta | {"config": self.config.model_dump(mode="json")})

    def stop(self, step: int, state: TrainState, position: dict, counts: dict) -> None:
        """Saves what a run that was told to end has learnt."""
        if step and step not in self.manager.all_steps():
            self.save(step, state, position, counts)
        saved = f"saved as step {step}" if step else "no step was finished, so nothing is saved"
        self.progress.say(f"told to end ({self.notice.by}): {saved}; run the same command again to resume")

    def stop_on_nonfinite(self, step: int, state: TrainState, metrics: dict, position: dict, counts: dict) -> None:
        """The bad update was not applied, so the weights are worth keeping."""
        self.tracker.write(step, metrics)
        self.save(step, state, position, counts)
        raise TrainingError(
            f"step {step}: the loss or its gradient is not finite (loss {metrics['loss']}, gradient norm "
            f"{metrics['grad_norm']}); that update was not applied and the weights are saved as step {step}; start "
            "again with a lower optimizer.learning_rate, or with train.on_nonfinite: skip to count such steps and go on"
        )


def profiled(steps: Iterable[int], config: Config) -> Iterator[int]:
    """The steps, those of `train.profile` traced, also where the loop ends before the last of them."""
    profile, folder = config.train.profile, Path(config.output_dir) / "profile"
    with ExitStack() as trace:
        for step in steps:
            if profile is not None and step == profile.start:
                trace.enter_context(jax.profiler.trace(folder))
            yield step
            if profile is not None and step == profile.start + profile.steps - 1:
                trace.close()


def _params(section, task: Task) -> SamplingParams:
    return SamplingParams(section.max_new_tokens, section.temperature, section.top_p, section.top_k, task.stop_ids)


def _over_updates(measured: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """One step's metrics from its updates': counts are summed, the rest averaged.

    The gap to the sampler is the first update's, where the policy is still the one that sampled.
    """
    metrics = [{name: float(value) for name, value in one.items()} for one in measured]
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
