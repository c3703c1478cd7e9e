"""Everything a run needs before its first step, in the order in which a mistake is cheapest to find."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jopsd.config import Config, ConfigError, Model
from jopsd.data.chat import require_chat_template
from jopsd.data.datasets import load_problems
from jopsd.mesh import make_mesh, token_shards
from jopsd.models.decoder import Decoder, ModelConfig
from jopsd.models.hf import eos_ids, load_pretrained, load_tokenizer, read_config
from jopsd.models.lora import Adapter, init_adapter
from jopsd.models.sharding import tree_shardings
from jopsd.prompts import Item, evaluation_prompts, make_items, required_fields, training_prompts
from jopsd.step import StepOptions, TrainState, init_state, make_optimizer

BUILTIN = {"builtin:sums": Path(__file__).parent / "data" / "sums_base"}


class Task(NamedTuple):
    """The host side: tokenizer, training items, held-out items, and how many rows were left out and why."""

    tokenizer: object
    stop_ids: tuple[int, ...]
    train: list[Item]
    held_out: list[Item]
    skipped: dict[str, int]


class Weights(NamedTuple):
    """The device side. base is the frozen model (under the adapter, or the fixed teacher's copy), or None."""

    model_config: ModelConfig
    base: Decoder | None
    state: TrainState
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule


def model_dir(model: Model) -> Path:
    """The directory of `model.path`.

    Raises:
      ConfigError: it does not exist.
    """
    path = BUILTIN.get(model.path, Path(model.path))
    if not path.is_dir():
        raise ConfigError(
            f"model.path {model.path!r} is not a directory; give a Hugging Face model directory (download one with "
            f"`hf download owner/name --local-dir DIR`), or one of {sorted(BUILTIN)}"
        )
    return path


def make_task(config: Config) -> Task:
    """Loads tokenizer and rows and renders every prompt, so that a bad row is an error before anything compiles."""
    directory = model_dir(config.model)
    read_config(directory)  # an architecture we cannot run is the cheapest error of all
    tokenizer = load_tokenizer(directory)
    require_chat_template(tokenizer)
    stop_ids = eos_ids(directory, tokenizer)
    skipped: dict[str, int] = {}

    def items(data, label, required, prompts_of):
        problems, bad = load_problems(
            data.source, data.split, data.columns, required, data.on_bad_row, data.subset, data.limit, data.seed
        )
        made, long = make_items(problems, data, prompts_of)
        skipped.update({f"{label}: {reason}": count for reason, count in (bad + long).items()})
        return made

    train = items(config.data, "data", required_fields(config), lambda p: training_prompts(config, tokenizer, p))
    held_out = []
    if config.eval is not None:
        prompts_of = lambda p: evaluation_prompts(config, tokenizer, p, config.eval)  # noqa: E731
        held_out = items(config.eval.data, "eval.data", ("problem", "answer"), prompts_of)
    return Task(tokenizer, stop_ids, train, held_out, skipped)


def make_run_mesh(config: Config) -> Mesh:
    """The mesh of `config.mesh`, checked against the batch it must split.

    Raises:
      ConfigError: sizes that fit neither the devices nor the micro-batch.
    """
    if jax.process_count() > 1:
        raise ConfigError("this version trains in one process; run it on one host")
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
    directory = model_dir(config.model)
    dtype = config.model.dtype
    param_dtype = config.model.param_dtype or (dtype if config.lora else "float32")
    cfg = read_config(
        directory, dtype=dtype, param_dtype=param_dtype, remat=config.model.remat, attention=config.model.attention
    )
    if cfg.vocab_size % mesh.shape["tensor"]:
        raise ConfigError(f"mesh.tensor {mesh.shape['tensor']} does not divide the vocabulary of {cfg.vocab_size}")
    model = load_pretrained(directory, cfg, mesh)
    optimizer, schedule = make_optimizer(config.optimizer, config.train.steps)
    if config.lora is not None:
        state = init_state(_adapter(config, cfg, mesh), optimizer, mesh)
        return Weights(cfg, model, state, optimizer, schedule)
    needs_copy = config.method.views and config.teacher.kind == "fixed"
    # The frozen teacher is only read, so it is kept in the computation dtype.
    base = jax.tree.map(lambda x: jnp.copy(x.astype(dtype)), model) if needs_copy else None
    return Weights(cfg, base, init_state(model, optimizer, mesh), optimizer, schedule)


def step_options(config: Config) -> StepOptions:
    return StepOptions(
        method=config.method,
        teacher=config.teacher.kind,
        micro_batches=config.rows_per_step // config.micro_rows,
        sampling_temperature=config.sampling.temperature,
        token_chunk=config.train.token_chunk,
    )


def _adapter(config: Config, cfg: ModelConfig, mesh: Mesh) -> Adapter:
    lora = config.lora
    make = lambda: init_adapter(  # noqa: E731
        cfg.projections, cfg.num_layers, lora.rank, lora.alpha, jax.random.key(config.seed), lora.targets
    )
    return jax.jit(make, out_shardings=tree_shardings(jax.eval_shape(make), mesh))()
