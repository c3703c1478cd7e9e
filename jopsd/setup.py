"""Everything a run needs before its first step, in the order in which a mistake is cheapest to find."""

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from jopsd import checkpoint
from jopsd.batch import longest
from jopsd.config import Config, ConfigError
from jopsd.data.chat import check_chat_template
from jopsd.data.datasets import load_problems
from jopsd.data.loader import Part
from jopsd.data.problem import RowError
from jopsd.mesh import make_mesh, token_shards
from jopsd.models.attention import choose, unavailable
from jopsd.models.decoder import Decoder, ModelConfig
from jopsd.models.families import FAMILIES
from jopsd.models.hf import architecture, fetch_from_hub, load_pretrained, read_config
from jopsd.models.lora import Adapter, init_adapter
from jopsd.models.peft import load_adapter
from jopsd.models.sharding import tree_shardings
from jopsd.models.tokenizer import load_tokenizer, read_tokenizer, stop_tokens
from jopsd.optimizer import make_optimizer
from jopsd.packing import Packing
from jopsd.prompts import (
    Item,
    Tokenizers,
    make_items,
    needs_grades,
    required_fields,
    student_prompt,
    training_prompts,
    try_group_prompts,
    with_template,
)
from jopsd.rewards.grader import AUTO, gold_field
from jopsd.row_checks import (
    check_same_vocabulary,
    check_sandbox,
    check_teachers,
    check_vocabulary,
    check_weights,
    gradable,
    over_windows,
    remarks_of,
    spelled_control_tokens,
    ungraded,
    window_of,
)
from jopsd.schema import Model
from jopsd.step import StepOptions, TrainState, init_state
from jopsd.teachers import Models, TeacherRule

_DATA = Path(__file__).parent / "data"
# The embedded task's base model, and what 100 steps of GRPO (configs/tiny/grpo.yaml) made of it: a teacher.
BUILTIN = {"builtin:sums": _DATA / "sums_base", "builtin:sums_expert": _DATA / "sums_expert"}


class Task(NamedTuple):
    """The host side: tokenizers, training items, held-out items, and how many rows were left out and why.

    parts: which training items come from one source of a mixture, in their order. notes: what a reader should know of
    how model and rows were read, a line each.
    """

    tokenizers: Tokenizers
    stop_ids: tuple[int, ...]
    train: list[Item]
    held_out: list[Item]
    skipped: dict[str, int]
    parts: tuple[Part, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def tokenizer(self):
        return self.tokenizers.student


class Weights(NamedTuple):
    """The device side. models: everything beside the student that is read, and never trained."""

    model_config: ModelConfig
    models: Models
    state: TrainState
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule


def model_dir(model: Model, weights: bool = False) -> Path:
    """The directory of `model.path`; see `source_dir`."""
    return source_dir(model.path, "model.path", weights)


def source_dir(path: str, key: str = "--model", weights: bool = True) -> Path:
    """The model directory that a path, a hub id or a built-in name means.

    Args:
      key: says in the error what gave it.
      weights: False fetches all but the weights from the hub, for what is read before a run is known to be sound.

    Raises:
      ConfigError: there is none.
    """
    directory = BUILTIN.get(path, Path(path))
    if directory.is_dir():
        return directory
    failed = ""
    # In a folder that is here, a missing name is a slip, not a hub id.
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) and not directory.parent.is_dir():
        try:
            return fetch_from_hub(path, weights)
        except Exception as error:
            failed = f", nor could it be fetched from the hub ({checkpoint.first_line(error)})"
    raise ConfigError(
        f"{key} {path!r} is not a directory{failed}; give a Hugging Face model directory (download one with "
        f"`hf download owner/name --local-dir DIR`), a hub id owner/name, or one of {sorted(BUILTIN)}"
    )


def make_task(config: Config) -> Task:
    """Loads tokenizer and rows and renders every prompt, so that a bad row is an error before anything compiles."""
    if (why := unavailable(config.model.attention, config.model.dtype)) is not None:
        raise ConfigError(f"model.attention: {why}; use auto")
    if config.reward is not None and config.reward.name == "code":
        check_sandbox(config)
    if config.eval is not None:
        check_weights(config.eval.data)
    directory = model_dir(config.model)
    vocab_size = read_config(directory).vocab_size  # an architecture we cannot run is the cheapest error of all
    tokenizer, notes = read_tokenizer(directory)
    check_chat_template(tokenizer)
    stops = stop_tokens(directory, tokenizer)
    teachers, windows = _teacher_tokenizers(config, tokenizer, vocab_size)
    tokenizers = Tokenizers(tokenizer, teachers, window_of(directory), windows)
    notes = [*notes, *filter(None, [stops.note])]
    skipped: dict[str, int] = {}

    def items(data, label, required, prompts_of, grades):
        try:
            problems, bad = load_problems(
                data.source,
                data.split,
                data.columns,
                required,
                data.on_bad_row,
                data.subset,
                data.limit,
                data.seed,
                data.difficulty,
                say=notes.append,
            )
        except RowError as error:
            raise ConfigError(f"method {config.method.name}, context {config.context.name}: {error}") from None
        if data.verifier is not None:
            problems = [replace(p, verifier=p.verifier or data.verifier) for p in problems]
        reward = None if grades is None else config.reward.name
        without: set[int] = set()
        if grades == "logged":
            places, lines = ungraded(reward, label, problems)
            without = {id(problems[place]) for place in places}
            notes.extend(lines)
        if grades is not None:
            with_gold = [problem for problem in problems if id(problem) not in without]
            kept, ungradable = gradable(reward, data, label, with_gold) if with_gold else ([], Counter())
            used = without | {id(problem) for problem in kept}
            problems = [problem for problem in problems if id(problem) in used]
            bad += ungradable
        notes.extend(remarks_of(reward, label, problems) + spelled_control_tokens(tokenizer, label, problems))
        if not label.startswith("eval."):
            check_teachers(config, problems)
        made, long = make_items(problems, config, data, prompts_of)
        skipped.update({f"{label}: {reason}": count for reason, count in (bad + long).items()})
        return [item._replace(graded=id(item.problem) not in without) for item in made]

    def of_parts(data, label, *how):
        return [(items(part, key, *how), weight) for key, part, weight in data.parts(label)]

    prompts_of = lambda p: training_prompts(config, tokenizers, p)  # noqa: E731
    grades = None
    if config.reward is not None and config.method.trains_on == "rollouts":
        grades = "needed" if needs_grades(config) else "logged"
    made = of_parts(config.data, "data", required_fields(config), prompts_of, grades)
    train = [item for part, _ in made for item in part]
    held_out = []
    if config.eval is not None:
        try:
            context = with_template(config.context, config.eval.template)
        except ValueError as error:
            raise ConfigError(f"eval.template {config.eval.template!r}: {error}") from None
        prompts_of = lambda p: student_prompt(context, tokenizer, p, config.eval)  # noqa: E731
        gold = gold_field(config.reward.name)
        required = tuple({"problem", *filter(None, [gold]), *context.required_fields(teacher=False)})
        parts = of_parts(config.eval.data, "eval.data", required, prompts_of, "needed")
        held_out = [item for part, _ in parts for item in part]
    check_vocabulary(directory, vocab_size, tokenizer, stops.ids, train + held_out)
    notes += over_windows(config, tokenizers, train, held_out)
    try_group_prompts(config, tokenizers, train)
    _check_micro_batch(config, train)
    if config.reward is not None and config.reward.name == AUTO and _names(train + held_out, "code"):
        check_sandbox(config)
    parts = tuple(Part(len(part), weight) for part, weight in made)
    return Task(tokenizers, stops.ids, train, held_out, skipped, parts, tuple(notes))


def _check_micro_batch(config: Config, train: list[Item]) -> None:
    """Refuses `train.micro_batch_tokens` that a single rollout can exceed."""
    budget, new = config.train.micro_batch_tokens, config.sampling.max_new_tokens
    if budget is None:
        return
    prompt = max((longest([ids]) for item in train for ids in item.prompts.values() if ids), default=0)
    if config.method.teacher_views and config.context.reads_attempts:  # made after sampling
        prompt = max(prompt, config.teacher.max_prompt_tokens or config.data.max_prompt_tokens)
    if prompt + new > budget:
        raise ConfigError(
            f"train.micro_batch_tokens {budget} holds no rollout of {prompt} prompt tokens and sampling.max_new_tokens "
            f"{new}; set it to {prompt + new} or more"
        )


def _teacher_tokenizers(config: Config, student, vocab_size: int) -> tuple[dict[str, object], dict[str, int | None]]:
    """Tokenizers and windows of external teachers by label.

    Raises:
      ConfigError: no such model, or one that does not give every token the number the student's does.
    """
    tokenizers, windows = {}, {}
    for label, path in config.teacher.external.items():
        key = f"teacher.models.{label}" if label else "teacher.path"
        directory = source_dir(path, key, weights=False)
        tokenizers[label] = load_tokenizer(directory)
        check_chat_template(tokenizers[label])
        windows[label] = window_of(directory)
        check_same_vocabulary(key, directory, tokenizers[label], student, vocab_size)
    if config.reference.path is not None:
        directory = source_dir(config.reference.path, "reference.path", weights=False)
        check_same_vocabulary("reference.path", directory, load_tokenizer(directory), student, vocab_size)
    return tokenizers, windows


def _names(items: list[Item], verifier: str) -> bool:
    return any(item.problem.verifier == verifier for item in items)


def make_run_mesh(config: Config) -> Mesh:
    """The mesh of `config.mesh`, checked against the batch it must split.

    Raises:
      ConfigError: sizes that fit neither the devices nor the micro-batch.
    """
    try:
        mesh = make_mesh(**config.mesh.model_dump())
    except ValueError as error:
        raise ConfigError(f"mesh: {error}") from None
    if config.micro_rows % token_shards(mesh):
        raise ConfigError(
            f"{config.micro_rows} rollouts per micro-batch do not split over {token_shards(mesh)} devices "
            "(mesh.data x mesh.fsdp); change train.batch_size, sampling.n, train.micro_batch_size or the mesh"
        )
    return mesh


def load_weights(config: Config, mesh: Mesh) -> Weights:
    """Model, adapter, frozen teacher and optimiser state, each sharded by the table as it is made."""
    directory = model_dir(config.model, weights=True)
    cfg, dtype = model_config(config, directory), config.model.dtype
    if cfg.vocab_size % mesh.shape["tensor"]:
        raise ConfigError(f"mesh.tensor {mesh.shape['tensor']} does not divide the vocabulary of {cfg.vocab_size}")
    adapter = _given_adapter(config, cfg, directory, mesh)
    model = load_pretrained(directory, cfg, mesh)
    optimizer, schedule = make_optimizer(config.optimizer, config.train.steps, config.updates_per_step)
    rule = teacher_rule(config)
    others = _load_others(config, cfg.vocab_size, mesh)
    if config.lora is not None:
        if adapter is None:
            make = adapter_maker(config, cfg)
            adapter = jax.jit(make, out_shardings=tree_shardings(jax.eval_shape(make), mesh))()
        state = init_state(adapter, optimizer, mesh, rule)
        return Weights(cfg, replace(others, base=model), state, optimizer, schedule)
    reads_base = config.method.reads_reference and others.reference is None
    reads_base |= bool(config.method.teacher_views) and rule.reads_base
    # A frozen model is only read, so it is kept in the computation dtype.
    base = jax.tree.map(lambda x: jnp.copy(x.astype(dtype)), model) if reads_base else None
    return Weights(cfg, replace(others, base=base), init_state(model, optimizer, mesh, rule), optimizer, schedule)


def _load_others(config: Config, vocab_size: int, mesh: Mesh) -> Models:
    """External teachers and the reference, in the computation dtype, as far as the method reads them."""

    def load(path: str, key: str):
        directory = source_dir(path, key)
        cfg = model_config(config, directory, config.model.dtype)
        model = load_pretrained(directory, cfg, mesh)
        return model if cfg.vocab_size == vocab_size else _without_padding(model, vocab_size, mesh)

    method, path = config.method, config.reference.path
    external = config.teacher.external if method.teacher_views else {}
    return Models(
        reference=load(path, "reference.path") if path is not None and method.reads_reference else None,
        external={label: load(directory, "teacher.models") for label, directory in external.items()},
    )


def _without_padding(model: Decoder, vocab_size: int, mesh: Mesh) -> Decoder:
    """The model without the rows of its embedding and head that stand beyond the student's vocabulary.

    Sizes of one family differ in how many unused rows they keep (Qwen2.5: 151,936 up to 3B, 152,064 from 7B).
    """

    def cut(model):
        table = lambda x: None if x is None else nnx.Param(x[...][:vocab_size])  # noqa: E731
        model.embed, model.lm_head = table(model.embed), nnx.data(table(model.lm_head))
        model.cfg = nnx.static(replace(model.cfg, vocab_size=vocab_size))
        return model

    return jax.jit(cut, out_shardings=tree_shardings(jax.eval_shape(cut, model), mesh))(model)


def teacher_rule(config: Config) -> TeacherRule:
    """The static part of `config.teacher`; one that nothing reads is fixed, and costs nothing."""
    teacher, given = config.teacher, TeacherRule()
    if not config.method.teacher_views:
        return given
    return TeacherRule(
        kind=teacher.kind,
        decay=given.decay if teacher.decay is None else teacher.decay,
        every=teacher.every or given.every,
        start=teacher.start or given.start,
        mix=given.mix if teacher.mix is None else teacher.mix,
        labels=tuple(teacher.models or ()),
    )


def step_options(config: Config) -> StepOptions:
    sampled = config.method.trains_on == "rollouts"
    return StepOptions(
        method=config.method,
        teacher=teacher_rule(config),
        micro_batches=config.rows_per_update // config.micro_rows,
        # Without sampling there is nothing to compare with at another temperature.
        sampling_temperature=config.sampling.temperature if sampled else config.method.temperature,
        token_chunk=config.train.token_chunk,
        updates_per_step=config.updates_per_step,
        seed=config.seed,
    )


def packing_of(config: Config, cfg: ModelConfig, mesh: Mesh) -> Packing | None:
    """How the sequences of an update share rows; None where each rollout has its own."""
    if not config.train.packing:
        return None
    context, budget = mesh.shape.get("context", 1), config.train.micro_batch_tokens
    return Packing(
        shards=token_shards(mesh),
        micro_batches=None if budget else config.rows_per_update // config.micro_rows,
        tokens=budget and budget * context,
        one_row=choose(cfg.attention, cfg.dtype, cfg.head_dim) == "blocks",
        multiple=math.lcm(config.train.pad_to, context),
    )


def model_config(config: Config, directory: Path, param_dtype: str | None = None) -> ModelConfig:
    """The config of the model in `directory`; param_dtype: null is the student's."""
    model = config.model
    param_dtype = param_dtype or model.param_dtype or (model.dtype if config.lora else "float32")
    return read_config(
        directory, dtype=model.dtype, param_dtype=param_dtype, remat=model.remat, attention=model.attention
    )


def adapter_maker(config: Config, cfg: ModelConfig) -> Callable[[], Adapter]:
    """Makes the fresh adapter of a run; `jax.eval_shape` of it is the shape of its trained one."""
    lora = config.lora
    return lambda: init_adapter(
        cfg.projections, cfg.num_layers, lora.rank, lora.alpha, jax.random.key(config.seed), lora.targets, lora.rslora
    )


def _given_adapter(config: Config, cfg: ModelConfig, directory: Path, mesh: Mesh) -> Adapter | None:
    """The adapter at `lora.path`; None where a run starts from a fresh one or has none.

    Raises:
      ConfigError: it is not what the section lora describes.
    """
    if config.lora is None or config.lora.path is None:
        return None
    fresh = jax.eval_shape(adapter_maker(config, cfg))
    tensors = FAMILIES[architecture(directory)].tensors
    name, path = config.model.path, config.lora.path
    adapter = load_adapter(path, cfg.projections, cfg.num_layers, tensors, where_base=name, mesh=mesh)
    facts = lambda a: (sorted(a.a), {x.shape[-1] for x in a.a.values()}, a.scale)  # noqa: E731
    for key, ours, theirs in zip(("targets", "rank", "alpha / rank"), facts(fresh), facts(adapter), strict=True):
        if ours != theirs:
            raise ConfigError(f"lora.path {path}: {key} is {theirs} there, {ours} in the section lora; make them equal")
    return adapter
