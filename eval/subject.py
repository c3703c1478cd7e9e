"""Who answers: a model on disk or a run's checkpoint, how it reads a problem, and the sampler that draws from it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax

from eval.options import SERVERS, Options
from jopsd.checkpoint import all_steps, find_step, parse_run
from jopsd.contexts import ContextConfig, SolutionContext
from jopsd.models.decoder import Decoder
from jopsd.models.hf import CONFIG, read_config
from jopsd.models.safetensors_files import read_json
from jopsd.policies import load_policy
from jopsd.prompts import with_template
from jopsd.sampling import Sampler, connect, make_sampler
from jopsd.schema import Reading
from jopsd.setup import BUILTIN, source_dir

KEY = "OPENAI_API_KEY"  # environment variable that a server's key is read from
WIDTH = 64  # cache widths are multiples of this, so that near lengths share a compiled program


@dataclass(frozen=True)
class Subject:
    """Whose answers are graded, and how it reads a problem.

    run_dir, step: of a checkpoint; None for a model as it is on disk. Step 0 is the model that a run started from.
    """

    name: str
    directory: Path
    run_dir: Path | None
    step: int | None
    context: ContextConfig
    reading: Reading

    @property
    def words(self) -> str:
        return self.name if self.run_dir is None else f"step {self.step} of {self.run_dir} (from {self.name})"


def find_subjects(options: Options) -> list[Subject]:
    """The model or checkpoint asked for; for a sweep the base, then the checkpoints in order.

    Raises:
      ValueError: neither is given, the run's config or the template is not usable, or there is no such model.
      CheckpointError: there is no such checkpoint.
    """
    if options.run_dir is None:
        if options.model is None:
            raise ValueError("give --model, or the --checkpoint of a run")
        subject = Subject("", Path(), None, None, SolutionContext(), Reading())
        path, weights, steps = options.model, options.backend not in SERVERS, [None]
    else:
        config = options.run_config
        reading = config.eval or config.student
        reading = Reading(thinking=reading.thinking, close_think=reading.close_think)
        context = with_template(config.context, config.eval.template if config.eval else None)
        subject = Subject("", Path(), options.run_dir, None, context, reading)
        path, weights = options.model or config.model.path, True
        if options.checkpoints is not None:
            steps = [0, *_swept(all_steps(options.run_dir), options.every, options.run_dir)]
        else:
            steps = [find_step(*parse_run(options.checkpoint))]
    directory = source_dir(path, "--model" if options.model else "model.path", weights)
    read_config(directory)  # an architecture we cannot run is the cheapest error of all
    name = path if path in BUILTIN else str(directory.resolve())
    thinking = subject.reading.thinking if options.thinking is None else options.thinking
    subject = replace(
        subject, name=name, directory=directory, reading=subject.reading.model_copy(update={"thinking": thinking})
    )
    return [replace(subject, step=step) for step in steps]


def window_of(subject: Subject, options: Options) -> int | None:
    """Tokens that prompt and completion may have together; None where neither the model nor the options say."""
    stated = read_json(subject.directory / CONFIG, "").get("max_position_embeddings")
    return options.max_length or (int(stated) if stated else None)


class Samplers:
    """One sampler at a time, made when it is first asked for and kept while the next subject's weights fit it.

    Args:
      samples, longest: of one evaluation: how many, and the tokens of the longest with its prompt. Sizes follow from
        all samples, drawn or not: they may decide the last bits of a sum.
    """

    def __init__(self, options: Options, samples: int, longest: int, stop_ids: int):
        self._options, self._stop_ids = options, max(stop_ids, 1)
        self._slots = min(options.slots, samples)
        self._max_length = -(-longest // WIDTH) * WIDTH
        self._sampler: Sampler | None = None
        self._shape = self._subject = None
        self._base: Decoder | None = None

    def of(self, subject: Subject) -> Sampler:
        """The sampler that draws from the subject's weights."""
        if self._sampler is not None and self._subject == subject:
            return self._sampler
        options = self._options
        if options.backend in SERVERS:
            more = {"api_key": os.environ.get(KEY), "concurrency": options.slots} if options.backend == "openai" else {}
            self._sampler = connect(options.backend, options.server, model=options.served_model, **more)
        else:
            self._set_weights(subject)
        self._subject = subject
        return self._sampler

    def _set_weights(self, subject: Subject) -> None:
        loaded = load_policy(str(subject.directory), subject.run_dir, subject.step, base=self._base)
        cfg, policy = loaded.model_config, loaded.policy
        if loaded.config is not None and loaded.config.lora is not None:
            self._base = policy.model  # of a sweep, read once
        shape = cfg, jax.tree.structure(policy), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(policy)]
        if self._sampler is not None and self._shape == shape:
            self._sampler.update(policy, subject.step)
            return
        self.close()
        self._sampler = make_sampler(
            self._options.backend,
            cfg,
            policy,
            slots=self._slots,
            max_length=self._max_length,
            mesh=loaded.mesh,
            max_stop_ids=self._stop_ids,
        )
        self._shape = shape

    def close(self) -> None:
        if self._sampler is not None:
            self._sampler.close()
        self._sampler = self._subject = None


def _swept(steps: Sequence[int], every: int, run_dir: Path) -> list[int]:
    """Every n-th step, and the last."""
    chosen = [step for step in steps if step % every == 0 or step == steps[-1]]
    if not chosen:
        raise ValueError(f"{run_dir} has no complete checkpoint to evaluate")
    return chosen
