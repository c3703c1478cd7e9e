"""Everything a run holds, as shapes with their places on a mesh: no weights, no tokenizer, no rows.

The functions that make the real arrays are asked for their shapes (`jax.eval_shape`), so that a plan cannot drift from
what is trained.
"""

import json
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jopsd.batch import TrainBatch
from jopsd.config import Config, ConfigError
from jopsd.drawing import narrows
from jopsd.mesh import make_mesh, narrowed, sampling_mesh, sampling_shardings, token_shards
from jopsd.models.attention import NEEDS, suited
from jopsd.models.decoder import Decoder, ModelConfig
from jopsd.models.hf import CONFIG, abstract_decoder
from jopsd.models.quantize import int8_projections
from jopsd.models.sharding import ACTIVATIONS, BATCH, divisible, sharded_shapes
from jopsd.optimizer import make_optimizer
from jopsd.packing import pack
from jopsd.plan.topology import PlanError, Topology, devices, host_of
from jopsd.rollouts import Rollout, batch_of
from jopsd.sampling.capacity import PoolShape, piece_widths, pool_shape
from jopsd.sampling.engine import State, init_state
from jopsd.sampling.seats import PIECES
from jopsd.setup import Weights, adapter_maker, model_config, packing_of, source_dir, teacher_rule
from jopsd.step import init_state as init_train_state
from jopsd.teachers import Models, student_policy

STEPS = 1000  # of a schedule whose length only the data would tell; it changes no shape


class Lengths(NamedTuple):
    """Tokens of the longest prompt, teacher's prompt and completion, and where each number comes from."""

    prompt: int
    teacher_prompt: int
    completion: int
    source: str


class Shapes(NamedTuple):
    """One training step as shapes. weights.state, weights.models and batches carry their shardings.

    mesh: of the update. sampling_mesh: of the sampler, which in a process of several has its own devices.
    batch: of one update. step_batch: the same before its log-probabilities are known, where they are scored first.
    policy, pool: what the sampler reads, and its slots and pages; None where nothing is sampled here.
    pool_shape: the sizes of the pool.
    copies: bytes per device of the weights that only the sampler has.
    """

    mesh: Mesh
    sampling_mesh: Mesh
    lengths: Lengths
    weights: Weights
    batch: TrainBatch
    step_batch: TrainBatch | None
    policy: object | None
    pool: State | None
    pool_shape: PoolShape | None
    copies: int

    @property
    def micro_batches(self) -> int:
        """Backward passes of an update."""
        return self.batch.micro_batches

    @property
    def micro_rows(self) -> int:
        """Rollouts of one of them, on all devices."""
        return max(len(self.batch.mask) // self.micro_batches, 1)


def lengths_of(config: Config, prompt=None, teacher_prompt=None, completion=None) -> Lengths:
    """The lengths to plan for: given ones, else the limits of the config."""
    limits = {
        "prompt": (prompt, config.data.max_prompt_tokens, "data.max_prompt_tokens"),
        "teacher prompt": (
            teacher_prompt,
            config.teacher.max_prompt_tokens or config.data.max_prompt_tokens,
            "teacher.max_prompt_tokens" if config.teacher.max_prompt_tokens else "data.max_prompt_tokens",
        ),
        "completion": (completion, config.sampling.max_new_tokens, "sampling.max_new_tokens"),
    }
    values = [limit if given is None else given for given, limit, _ in limits.values()]
    said = [
        f"{name} {value} ({key if given is None else 'given'})"
        for value, (name, (given, _, key)) in zip(values, limits.items(), strict=True)
    ]
    return Lengths(*values, ", ".join(said))


@cache
def published_models() -> dict[str, dict]:
    """config.json by the name of each published model that can be planned for without its files."""
    return yaml.safe_load((Path(__file__).parent / "models.yaml").read_text(encoding="utf-8"))["models"]


@contextmanager
def model_directory(path: str, key: str):
    """A directory with the config.json of a model: (directory, where its facts come from).

    Its own if it is here; else the facts that ship with jopsd, by the last part of the name; else the hub's.

    Raises:
      ConfigError: no such model.
    """
    by_name = {name.rpartition("/")[2]: (name, facts) for name, facts in published_models().items()}
    found = by_name.get(path.rstrip("/").rpartition("/")[2])
    if found is None or (Path(path) / CONFIG).is_file():
        yield source_dir(path, key, weights=False), path
        return
    with TemporaryDirectory(prefix="jopsd-plan-") as folder:
        (Path(folder) / CONFIG).write_text(json.dumps(found[1]), encoding="utf-8")
        yield Path(folder), f"the published shape of {found[0]}"


def plan_config(config: Config, path: str, key: str, kind: str, param_dtype=None) -> tuple[ModelConfig, str]:
    """The `ModelConfig` of a model on a kind of chip ("tpu", "gpu", "cpu"), and where its shape comes from."""
    with model_directory(path, key) as (directory, source):
        cfg = model_config(config, directory, param_dtype)
    return replace(cfg, attention=attention_on(kind, cfg)), source


def attention_on(kind: str, cfg: ModelConfig) -> str:
    """The backend that `cfg.attention` means on a kind of chip, which is not the one that this process runs on.

    Raises:
      ConfigError: a kernel of another kind of chip.
    """
    if cfg.attention == "auto":
        return suited(kind, cfg.dtype, cfg.head_dim)
    needs = NEEDS.get(cfg.attention, kind)
    if needs != kind:
        raise ConfigError(f"model.attention {cfg.attention} runs on a {needs.upper()}, not on this topology; use auto")
    return cfg.attention


def plan_mesh(config: Config, topology: Topology) -> Mesh:
    """The mesh of a config on a topology, checked against the batch it must split.

    Raises:
      ConfigError: sizes that fit neither the chips nor the micro-batch, by key.
    """
    found = devices(topology)
    try:
        mesh = make_mesh(**config.mesh.model_dump(), devices=found)
    except ValueError as error:
        raise ConfigError(f"mesh on {topology.name} ({topology.chips} chips): {error}") from None
    if config.micro_rows % token_shards(mesh):
        raise ConfigError(
            f"{config.micro_rows} rollouts per micro-batch do not split over {token_shards(mesh)} devices (mesh.data x "
            f"mesh.fsdp); set train.micro_batch_size to a multiple of {token_shards(mesh)}, or put chips on "
            "mesh.context or mesh.tensor"
        )
    context = mesh.shape.get("context", 1)
    if config.train.pad_to % context:
        raise ConfigError(f"train.pad_to {config.train.pad_to} is not a multiple of mesh.context {context}")
    return mesh


def sampler_mesh(config: Config, topology: Topology, mesh: Mesh, heads: int) -> Mesh:
    """The mesh that samples: with backend jetstream each process samples on its own devices, else all of them do.

    heads: key-value heads of the model.
    """
    host = host_of(topology)
    own = config.sampling.backend == "jetstream" and host != topology
    # The compiler takes whole slices only, so a host is one of its own.
    found = devices(host) if own else list(mesh.devices.flat)
    try:
        return sampling_mesh(mesh, found, config.sampling.tensor, heads)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def abstract_weights(config: Config, kind: str) -> tuple[Weights, str]:
    """`setup.load_weights` without weights or mesh: the same trees of shapes, and where the model's come from."""
    cfg, source = plan_config(config, config.model.path, "model.path", kind)
    model, dtype, method = abstract_decoder(cfg), config.model.dtype, config.method
    optimizer, schedule = make_optimizer(config.optimizer, config.train.steps or STEPS, config.updates_per_step)
    others = _abstract_others(config, cfg, kind)
    if config.lora is not None:
        trainable, base = jax.eval_shape(adapter_maker(config, cfg)), model
    else:
        trainable, base = model, None
        reads_base = method.reads_reference and others.reference is None
        if reads_base or (method.teacher_views and teacher_rule(config).reads_base):
            base = jax.eval_shape(partial(narrowed, dtype), model)
    rule, anywhere = teacher_rule(config), make_mesh(1, 1, 1, devices=jax.devices("cpu")[:1])
    state = jax.eval_shape(lambda t: init_train_state(t, optimizer, anywhere, rule), trainable)
    return Weights(cfg, replace(others, base=base), state, optimizer, schedule), source


def _abstract_others(config: Config, cfg: ModelConfig, kind: str) -> Models:
    """External teachers and the reference, without the rows that their vocabulary has beyond the student's."""

    def load(path: str, key: str) -> Decoder:
        other, _ = plan_config(config, path, key, kind, config.model.dtype)
        return abstract_decoder(replace(other, vocab_size=cfg.vocab_size))

    method, path = config.method, config.reference.path
    external = config.teacher.external if method.teacher_views else {}
    return Models(
        reference=load(path, "reference.path") if path is not None and method.reads_reference else None,
        external={label: load(given, f"teacher.models.{label}") for label, given in external.items()},
    )


def abstract_batch(
    config: Config, cfg: ModelConfig, lengths: Lengths, mesh: Mesh
) -> tuple[TrainBatch, TrainBatch | None]:
    """(batch of an update, the same before it is scored if that is done), every row at full length."""
    method, prompt, completion = config.method, lengths.prompt, lengths.completion
    if method.trains_on == "solution" and method.tokens == "all":  # all but the first token of the prompt train too
        prompt, completion = 1, lengths.prompt - 1 + lengths.completion
    prompts: dict = {"student": [0] * prompt}
    for view in method.teacher_views:
        reading = [0] * lengths.teacher_prompt
        prompts[view] = (
            [reading] * config.context.negatives if view == "negative" and method.negatives == "all" else reading
        )
    label = next(iter(config.teacher.models or ()), None)
    item = SimpleNamespace(problem=SimpleNamespace(teacher=label))
    zeros = np.zeros(completion, np.int32)
    rollout = Rollout(item, zeros, np.zeros(completion, np.float32), "length", "", None, 0, 0, prompts)
    tokenizer = SimpleNamespace(encode=lambda text, **_: [0])
    step, packing = batch_of([rollout] * config.rows_per_update, config, tokenizer), packing_of(config, cfg, mesh)
    if packing is not None:
        (step,) = pack([step], packing)
    else:
        step = replace(step, micro_batches=config.rows_per_update // config.micro_rows)
    split = NamedSharding(mesh, P(BATCH))
    plain = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), step)
    if config.updates_per_step == 1:
        return plain, None
    return replace(plain, old_logprobs=jax.ShapeDtypeStruct(plain.mask.shape, jnp.float32, sharding=split)), plain


def pool_sizes(cfg: ModelConfig, config: Config, lengths: Lengths, mesh: Mesh, stop_ids: int = 2) -> PoolShape:
    """The sampler's slots and pages at the longest prompt and completion, evaluation included.

    Raises:
      ConfigError: a cache that does not hold one row.
    """
    longest = max(lengths.completion, config.eval.max_new_tokens if config.eval is not None else 0)
    sampling, kind = config.sampling, mesh.devices.flat[0].platform
    try:
        return pool_shape(
            cfg,
            sampling.slots,
            lengths.prompt + longest,
            stop_ids,
            chunk=sampling.chunk,
            mesh=mesh if mesh.size > 1 else None,
            cache_bytes=sampling.cache_bytes,
            platform=kind,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None


def abstract_pool(cfg: ModelConfig, sizes: PoolShape, mesh: Mesh) -> State:
    """The sampler's slots and pages as `engine._pin` places them."""
    state = jax.eval_shape(lambda: init_state(cfg, sizes))

    def placed(path, leaf):
        kind = "pages" if getattr(path[-1], "name", "") in ("k", "v") else "rows"
        sharding = NamedSharding(mesh, divisible(ACTIVATIONS[kind], leaf.shape, mesh))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(placed, state)


def table_shapes(sizes: PoolShape, *rows: int) -> dict:
    """The tables [*rows,M] of the pages of rows, by kind of layer."""
    return {kind: jax.ShapeDtypeStruct((*rows, sizes.table_width), jnp.int32) for kind, _ in sizes.pages}


def prefill_shapes(lengths: Lengths, sizes: PoolShape, mesh: Mesh) -> tuple:
    """What `engine.prefill` takes beside policy and state, for the widest pieces that a prompt has."""
    widths = piece_widths(mesh.devices.flat[0].platform)
    width = next((width for width in widths if width >= lengths.prompt - 1), widths[-1])
    number = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)  # noqa: E731
    rows = (PIECES, sizes.shards)
    return number(*rows, width), number(*rows), number(*rows), table_shapes(sizes, *rows), number()


def make_shapes(config: Config, topology: Topology, lengths: Lengths, weights: Weights) -> Shapes:
    """All shapes of a config on a topology. weights: of `abstract_weights`.

    Raises:
      ConfigError, PlanError: sizes that do not fit together, by key.
    """
    mesh, vocabulary = plan_mesh(config, topology), weights.model_config.vocab_size
    if vocabulary % mesh.shape["tensor"]:
        raise ConfigError(f"mesh.tensor {mesh.shape['tensor']} does not divide the vocabulary of {vocabulary}")
    weights = weights._replace(models=sharded_shapes(weights.models, mesh), state=sharded_shapes(weights.state, mesh))
    batch, step_batch = abstract_batch(config, weights.model_config, lengths, mesh)
    samples = not config.sampling.served and (config.method.trains_on == "rollouts" or config.eval is not None)
    home, policy, sizes, pool, copies = mesh, None, None, None, 0
    if samples:
        cfg = weights.model_config
        home = sampler_mesh(config, topology, mesh, cfg.num_kv_heads)
        moved = home is not mesh or narrows(config, cfg)
        place = partial(_moved, home, cfg.dtype) if moved else lambda tree: sharded_shapes(tree, mesh)
        exact = policy = place(student_policy(weights.state.trainable, weights.models.base))
        copies = bytes_per_device(exact) if moved else 0
        if config.sampling.weights == "int8" and config.method.trains_on == "rollouts":
            policy = place(replace(exact, model=jax.eval_shape(int8_projections, exact.model)))
            copies += bytes_per_device(policy.model)
        sizes = pool_sizes(cfg, config, lengths, home)
        pool = abstract_pool(cfg, sizes, home)
    return Shapes(mesh, home, lengths, weights, batch, step_batch, policy, pool, sizes, copies)


def _moved(home: Mesh, dtype: str, policy):
    """The shapes of `mesh.relaid`."""
    shapes = jax.eval_shape(partial(narrowed, dtype), policy)
    put = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(put, shapes, sampling_shardings(shapes, home))


def bytes_per_device(tree) -> int:
    """Bytes of one device's shards of a tree of shapes with shardings."""
    size = 0
    for leaf in jax.tree.leaves(tree):
        dtype = leaf.dtype if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else jnp.dtype("uint64")
        size += int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64)) * dtype.itemsize
    return size


__all__ = [
    "Lengths",
    "PlanError",
    "Shapes",
    "bytes_per_device",
    "lengths_of",
    "abstract_weights",
    "make_shapes",
    "published_models",
]
