"""How long a step takes at least: the slowest of computing, reading memory and sending, by the chip's peak rates.

A floor, not a forecast: nothing overlaps perfectly and no kernel reaches the peak. `EFFICIENCY` of it is what plans are
priced with.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from jopsd.losses.fused import default_chunk
from jopsd.plan.compile import Program
from jopsd.plan.flops import Work, adapter_products, columns_of, projections, readings, step_flops
from jopsd.plan.hlo import Collective, axes_of, wire_bytes
from jopsd.plan.shapes import Shapes, bytes_per_device
from jopsd.plan.topology import Topology

EFFICIENCY = 0.5


class Seconds(NamedTuple):
    """Seconds of one part of a step by what it waits for. ici and dcn: networks within and between slices (nodes)."""

    compute: float = 0.0
    hbm: float = 0.0
    ici: float = 0.0
    dcn: float = 0.0

    @property
    def total(self) -> float:
        return max(self)

    @property
    def bound(self) -> str:
        return max(zip(self, self._fields, strict=True))[1] if any(self) else "nothing"


class Sent(NamedTuple):
    """One line of the table of collectives: bytes that a device sends per run of the program."""

    kind: str
    axes: tuple[str, ...]
    link: str  # "ici", or "dcn" for groups that span slices or nodes
    bytes: float


def trips(config, shapes: Shapes) -> int:
    """Runs of the vocabulary kernel's loop per micro-batch, the one loop whose length the program does not say."""
    mesh = shapes.mesh.shape
    rows = shapes.micro_rows // (mesh["data"] * mesh["fsdp"])
    tokens = rows * columns_of(config, shapes.lengths)["completion"] // mesh.get("context", 1)
    return -(-tokens // (config.train.token_chunk or default_chunk(shapes.mesh)))


def sent(program: Program, mesh, per_slice: int, loops: float = 1, outside: float = 1) -> list[Sent]:
    """What a device sends in one run of a program, by kind, axes and link.

    per_slice: devices of a slice or node; partitions count through them. loops: runs of loops of unknown length.
    outside: share of a run that what stands outside such loops counts for.
    """
    table: Counter = Counter()
    for one in program.collectives:
        times = one.times * (loops if one.dynamic else outside)
        axes = axes_of(one.groups, dict(mesh.shape))
        for link, size in _by_link(one, per_slice):
            table[one.kind, axes, link] += size * times
    return [Sent(*key, size) for key, size in sorted(table.items(), key=lambda x: -x[1]) if size]


def _by_link(one: Collective, per_slice: int) -> list[tuple[str, float]]:
    groups = one.groups
    if one.kind == "collective-permute":
        crosses = any(a // per_slice != b // per_slice for a, b in groups)
        return [("dcn" if crosses else "ici", one.bytes)]
    group = groups[0] if groups else ()
    slices = len({member // per_slice for member in group})
    if slices <= 1:
        return [("ici", wire_bytes(one))]
    # Within each slice first, so that a slice's members share what goes between slices.
    inside = max(len(group) // slices, 1)
    between = one._replace(bytes=one.bytes // inside, groups=(tuple(range(slices)),))
    within = one._replace(groups=(tuple(range(inside)),))
    return [("dcn", wire_bytes(between)), ("ici", wire_bytes(within))]


def seconds_sent(table: Sequence[Sent], topology: Topology) -> tuple[float, float]:
    """(seconds on ICI or NVLink, seconds between slices or nodes)."""
    by = lambda link: sum(line.bytes for line in table if line.link == link)  # noqa: E731
    return by("ici") / topology.chip.ici, by("dcn") / topology.chip.dcn


def train_seconds(config, shapes: Shapes, topology: Topology, work: Work, programs: dict[str, Program]) -> Seconds:
    """All updates of one training step, and the scoring before them."""
    updates, loops = config.updates_per_step, trips(config, shapes)
    ici = dcn = 0.0
    for name, runs in (("update", updates), ("score", updates // config.train.passes)):
        if name in programs:
            table = sent(programs[name], shapes.mesh, topology.per_slice, loops)
            more = seconds_sent(table, topology)
            ici, dcn = ici + runs * more[0], dcn + runs * more[1]
    compute = work.training / topology.chips / topology.chip.flops
    return Seconds(compute, updates * update_traffic(config, shapes) / topology.chip.bandwidth, ici, dcn)


def update_traffic(config, shapes: Shapes) -> float:
    """Bytes of HBM that one update reads and writes on a device, roughly: weights, activations, heads, optimiser."""
    cfg, state, models = shapes.weights.model_config, shapes.weights.state, shapes.weights.models
    mesh, width = shapes.mesh.shape, jnp.dtype(shapes.weights.model_config.dtype).itemsize
    micro, shards = shapes.micro_batches, mesh["data"] * mesh["fsdp"] * mesh.get("context", 1)
    columns, method = columns_of(config, shapes.lengths), config.method
    read = readings(config, cfg, models, shapes.lengths, (*method.views, *method.score_views))
    again = 0 if cfg.remat == "none" else 1
    passes = 2 + again + (0 if config.lora else 1)

    def layers(model) -> float:
        return model.num_layers * (projections(model) + adapter_products(model, config.lora)) * width / mesh["tensor"]

    weights = micro * (passes * layers(cfg) + sum(layers(r.cfg) for r in read))
    row = lambda model: model.num_layers * width * (8 * model.hidden_size + sum(map(sum, model.projections.values())))  # noqa: E731
    tokens = config.rows_per_update / shards
    activations = tokens * (columns["student"] * row(cfg) * passes + sum(r.columns * row(r.cfg) for r in read))
    head = cfg.vocab_size * cfg.hidden_size * width / mesh["tensor"]
    logits = tokens * columns["completion"] * cfg.vocab_size * 4 / mesh["tensor"]
    unembed = (2 + len(read)) * (micro * trips(config, shapes) * head + 2 * logits)
    moments = 2 * bytes_per_device((state.trainable, state.optimizer)) + 2 * bytes_per_device(state.trainable)
    return weights + activations / mesh["tensor"] + unembed + moments


def sampling_runs(config, shapes: Shapes, topology: Topology) -> tuple[int, int]:
    """(decode steps, prompts prefilled) of one training step in each sampler, with every row at full length."""
    samplers = max(topology.chips // shapes.sampling_mesh.size, 1)
    rows, prompts = (-(-count // samplers) for count in (config.rows_per_step, config.train.batch_size))
    return math.ceil(rows / config.sampling.slots) * shapes.lengths.completion, prompts


def sample_seconds(config, shapes: Shapes, topology: Topology, work: Work, programs: dict[str, Program]) -> Seconds:
    """Drawing the rollouts of one training step, which mostly waits for weights and cache, read for every token."""
    if shapes.pool is None or config.method.trains_on != "rollouts":
        return Seconds()
    chip, mesh = topology.chip, shapes.sampling_mesh
    steps, prompts = sampling_runs(config, shapes, topology)
    samplers = max(topology.chips // mesh.size, 1)
    weights, cache = bytes_per_device(shapes.policy), bytes_per_device(shapes.pool.pages)
    total = Seconds()
    for name, runs, flops, read in (
        # A prompt is one row: only tensor splits it.
        ("decode", steps, work.decode / steps / samplers / mesh.size, weights + cache),
        ("prefill", prompts, work.prefill / config.train.batch_size / mesh.shape["tensor"], weights),
    ):
        # What a decode gathers outside its loop it gathers once in a chunk of tokens, and reads for each.
        outside = 1 / config.sampling.chunk if name == "decode" else 1
        gathers = [c for c in programs[name].collectives if c.kind == "all-gather"]
        read += sum(c.bytes * c.times * (2 if c.dynamic else 1 + outside) for c in gathers)
        network = seconds_sent(sent(programs[name], mesh, topology.per_slice, 1, outside), topology)
        each = (flops / chip.flops, read / chip.bandwidth, *network)
        total = Seconds(*(a + runs * b for a, b in zip(total, each, strict=True)))
    return total


def work_of(config, shapes: Shapes) -> Work:
    """FLOPs of a step on these shapes."""
    columns = 0 if shapes.pool is None else shapes.pool_shape.max_length
    return step_flops(
        config,
        shapes.weights.model_config,
        shapes.weights.models,
        shapes.lengths,
        columns if config.method.trains_on == "rollouts" else 0,
        shapes.mesh.shape.get("context", 1),
    )
