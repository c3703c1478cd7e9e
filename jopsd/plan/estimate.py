"""The programs of a step by a model of them, where no compiler can be asked: GPUs, and the candidates of a sweep.

Arguments are exact (the same shapes and shardings); temporaries and collectives are what the programs are written to
need. docs/scaling.md says how far this is from what the TPU compiler finds.

Axes: D width, F feed-forward, V vocabulary, L layers; "tokens" are those of one device in one micro-batch.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jopsd.losses.fused import default_chunk
from jopsd.mesh import gathering_axes
from jopsd.models.pages import GROUP, PAGE
from jopsd.plan.compile import Program
from jopsd.plan.flops import adapter_products, columns_of, projections, readings
from jopsd.plan.hlo import Collective
from jopsd.plan.shapes import Shapes, bytes_per_device, prefill_shapes


def estimate_all(config, shapes: Shapes) -> dict[str, Program]:
    """The programs that `compile_all` would compile, without compiling."""
    state, models, batch = shapes.weights.state, shapes.weights.models, shapes.batch
    held, own = bytes_per_device((state, models, batch)), bytes_per_device(state)
    sends = tuple(_update_collectives(config, shapes))
    found = {"update": Program("update", held, own, own, _update_temporaries(config, shapes), 0, 0, sends)}
    if shapes.step_batch is not None:
        weights = bytes_per_device((state.trainable, models, shapes.step_batch))
        forward = tuple(_forward_collectives(config, shapes, shapes.mesh, 1, _tokens(config, shapes, "student")))
        temporary = _reading_temporaries(config, shapes)
        found["score"] = Program("score", weights, 0, 0, temporary, 0, 0, forward)
    if shapes.pool is not None:
        found |= _sampler(config, shapes)
    return found


def _width(shapes: Shapes) -> int:
    return jnp.dtype(shapes.weights.model_config.dtype).itemsize


def _tokens(config, shapes: Shapes, view: str) -> int:
    mesh = shapes.mesh.shape
    rows = max(shapes.micro_rows // (mesh["data"] * mesh["fsdp"]), 1)
    return -(-rows * columns_of(config, shapes.lengths)[view] // mesh.get("context", 1))


# ------------------------------------------------------------------------------------------------------------- memory


def _update_temporaries(config, shapes: Shapes) -> int:
    """Kept activations, one layer at work, gradients, and the vocabulary kernel, which comes on top of what is kept."""
    cfg, width, tokens = shapes.weights.model_config, _width(shapes), _tokens(config, shapes, "student")
    tensor = shapes.mesh.shape["tensor"]
    outputs = sum(out for _, out in cfg.projections.values()) / tensor
    inputs = sum(into for into, _ in cfg.projections.values()) / tensor
    kept = {"full": cfg.hidden_size, "dots": cfg.hidden_size + outputs, "none": 4 * cfg.hidden_size + inputs + outputs}
    saved = cfg.num_layers * tokens * kept[cfg.remat] * width
    # The gradient that is accumulated, and that of one micro-batch beside it.
    wide = sum(np.prod(x.sharding.shard_shape(x.shape)) * 4 for x in jax.tree.leaves(shapes.weights.state.trainable))
    gradients = 2 * wide
    return int(saved + gradients + max(_layer(config, shapes, tokens, True), _vocabulary(config, shapes)))


def _layer(config, shapes: Shapes, tokens: float, backward: bool) -> float:
    """One layer at work: its gathered weights, and what its products read and make."""
    cfg, width, mesh = shapes.weights.model_config, _width(shapes), shapes.mesh.shape
    tensor, context = mesh["tensor"], mesh.get("context", 1)
    weights = 2 * projections(cfg) * width / tensor if gathering_axes(shapes.mesh) else 0
    heads = (cfg.num_heads + 2 * cfg.num_kv_heads) * cfg.head_dim
    values = tokens * width * (4 * cfg.hidden_size + (2 * heads + 3 * cfg.intermediate_size) / tensor)
    rows = max(tokens * context // columns_of(config, shapes.lengths)["student"], 1)
    scores = rows * (tokens / rows) * (tokens / rows * context)
    # Plain attention forms float32 scores and their softmax; cuDNN takes segments as a bias without heads.
    attention = {"xla": 2 * 4 * scores * cfg.num_heads / tensor, "cudnn": width * scores}.get(cfg.attention, 0)
    return weights + (2 if backward else 1) * (values + attention)


def _vocabulary(config, shapes: Shapes) -> float:
    """The vocabulary kernel: chunks of logits in float32, gathered heads, hidden states and their gradients."""
    cfg, width, tensor = shapes.weights.model_config, _width(shapes), shapes.mesh.shape["tensor"]
    read = readings(config, cfg, shapes.weights.models, shapes.lengths, config.method.views)
    tokens = _tokens(config, shapes, "completion")
    chunk = min(config.train.token_chunk or default_chunk(shapes.mesh), tokens)
    logits = chunk * cfg.vocab_size * 4 * (3 + len(read)) / tensor
    table = cfg.vocab_size * cfg.hidden_size / tensor
    lookup = jnp.dtype(cfg.param_dtype).itemsize
    tables = table * (lookup + width * (1 + len(read))) if gathering_axes(shapes.mesh) else 0
    # The head's gradient, and what a chunk adds to it.
    gradient = 0 if config.lora else 2 * table * 4
    return logits + tables + gradient + tokens * cfg.hidden_size * (width * (1 + len(read)) + 4)


def _reading_temporaries(config, shapes: Shapes) -> int:
    tokens = _tokens(config, shapes, "student")
    return int(_layer(config, shapes, tokens, False) + _vocabulary(config, shapes))


def _sampler(config, shapes: Shapes) -> dict[str, Program]:
    """Decode and prefill. The pool is updated in place; embedding and head are gathered for a token."""
    cfg, width, mesh = shapes.weights.model_config, _width(shapes), shapes.sampling_mesh
    tensor = mesh.shape["tensor"]
    weights, pool = bytes_per_device(shapes.policy), bytes_per_device(shapes.pool)
    table = cfg.vocab_size * cfg.hidden_size / tensor
    lookup = jnp.dtype(cfg.param_dtype).itemsize
    gathered = table * (lookup + width) + 2 * projections(cfg) * width / tensor if gathering_axes(mesh) else 0
    rows = max(config.sampling.slots // max(mesh.size // tensor, 1), 1)
    # Attention reads a page of each row of a group at a time; the pool itself is written and read in place.
    heads = max(cfg.num_kv_heads // tensor, 1)
    pages = 2 * 2 * GROUP * heads * PAGE * cfg.head_dim * width
    logits = 3 * rows * cfg.vocab_size * 4
    decode = Program(
        "decode", weights + pool, pool, pool, int(gathered + pages + logits), 0, 0,
        tuple(_forward_collectives(config, shapes, mesh, 1, rows, dynamic=True)),
    )  # fmt: skip
    tokens = prefill_shapes(shapes.lengths, shapes.pool_shape, mesh)[0].shape[2]
    scores = 2 * 4 * tokens * PAGE * cfg.num_heads / tensor
    temporary = int(gathered + scores + pages / GROUP + 6 * tokens * cfg.intermediate_size * width / tensor)
    sends = tuple(_forward_collectives(config, shapes, mesh, 1, tokens))
    prefill = Program("prefill", weights + pool, pool, pool, temporary, 0, 0, sends)
    return {"decode": decode, "prefill": prefill}


# -------------------------------------------------------------------------------------------------------- collectives


def _update_collectives(config, shapes: Shapes) -> list[Collective]:
    """Of one update: weights gathered for each pass, gradients scattered, activations summed over tensor."""
    cfg, mesh, width = shapes.weights.model_config, shapes.mesh, _width(shapes)
    micro = shapes.micro_batches
    backward = 1 if cfg.remat == "none" else 2  # forward again, then back: both with the weights gathered once
    found = _forward_collectives(config, shapes, mesh, micro, _tokens(config, shapes, "student"))
    found += _layer_collectives(cfg, mesh, micro, _tokens(config, shapes, "student"), width, 1, backward)
    views = (*config.method.views, *config.method.score_views)
    for read in readings(config, cfg, shapes.weights.models, shapes.lengths, views):
        tokens = _tokens(config, shapes, "student" if read.view == "reference" else read.view)
        found += _forward_collectives(config, shapes, mesh, micro, tokens, read.cfg)
    if any(name.startswith("student.") for name in config.method.all_scores):
        found += _forward_collectives(config, shapes, mesh, micro, _tokens(config, shapes, "student"))
    return found + _gradient_collectives(config, shapes, micro)


def _gradient_collectives(config, shapes: Shapes, micro: int) -> list[Collective]:
    mesh = shapes.mesh
    tensor = mesh.shape["tensor"]
    count = sum(x.size for x in jax.tree.leaves(shapes.weights.state.trainable))
    width = 4 if config.lora else _width(shapes)
    scattered = gathering_axes(mesh)
    parts = int(np.prod([mesh.shape[axis] for axis in scattered]))
    found = [_one("reduce-scatter", count * width // tensor, micro, mesh, scattered)]
    return found + [_one("all-reduce", count * width // tensor // parts, micro, mesh, ["data"])]


def _forward_collectives(config, shapes: Shapes, mesh, micro: int, tokens: int, cfg=None, dynamic=False):
    """One pass over all layers, with embedding and head."""
    cfg, width = cfg or shapes.weights.model_config, _width(shapes)
    found = _layer_collectives(cfg, mesh, micro, tokens, width, 1, 1, adapter_products(cfg, config.lora))
    table = cfg.vocab_size * cfg.hidden_size * width // mesh.shape["tensor"]
    found.append(_one("all-gather", table, 2 * micro, mesh, gathering_axes(mesh)))
    return [one._replace(dynamic=dynamic) for one in found]


def _layer_collectives(cfg, mesh, micro, tokens, width, gathers, sums, adapter=0) -> list[Collective]:
    """gathers: times that a layer's weights are gathered. sums: pairs of sums of activations over tensor."""
    times, tensor = micro * cfg.num_layers, mesh.shape["tensor"]
    found = [
        _one("all-gather", (projections(cfg) + adapter) * width // tensor, gathers * times, mesh, gathering_axes(mesh)),
        _one("all-reduce", tokens * cfg.hidden_size * width, 2 * sums * times, mesh, ["tensor"]),
    ]
    context = mesh.shape.get("context", 1)
    keys = 2 * tokens * context * cfg.num_kv_heads * cfg.head_dim * width // tensor
    return [*found, _one("all-gather", keys, sums * times, mesh, ["context"])]


def _one(kind: str, size: float, times: int, mesh, axes) -> Collective:
    return Collective(kind, int(size), times, groups_along(axes, dict(mesh.shape)), ("u8", (int(size),)), False, "")


def groups_along(axes, mesh_shape: dict[str, int]) -> tuple[tuple[int, ...], ...]:
    """Partition numbers that differ along these axes of a mesh alone; groups of one where it has none of them."""
    numbers = np.arange(int(np.prod(list(mesh_shape.values())))).reshape(tuple(mesh_shape.values()))
    inside = [place for place, axis in enumerate(mesh_shape) if axis in axes]
    outside = [place for place in range(numbers.ndim) if place not in inside]
    members = int(np.prod([numbers.shape[place] for place in inside]))
    return tuple(map(tuple, numbers.transpose(outside + inside).reshape(-1, members).tolist()))
