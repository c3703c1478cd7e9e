"""A plan as a record of plain numbers, for machines and for `pages`."""

import math

from jopsd.plan.advice import advice
from jopsd.plan.memory import memory_of
from jopsd.plan.roofline import (
    EFFICIENCY,
    sample_seconds,
    sampling_runs,
    sent,
    train_seconds,
    trips,
    work_of,
)
from jopsd.plan.shapes import Shapes
from jopsd.plan.topology import Topology, prices


def make_record(config, shapes: Shapes, topology: Topology, programs: dict, source: str, price: float | None) -> dict:
    """Everything a plan says, as plain numbers: bytes and FLOPs per device, seconds and dollars per step."""
    memory, work = memory_of(config, shapes, programs), work_of(config, shapes)
    training = train_seconds(config, shapes, topology, work, programs)
    sampling = sample_seconds(config, shapes, topology, work, programs)
    floor = training.total + sampling.total
    date, table = prices()
    cfg, chip = shapes.weights.model_config, topology.chip
    hourly = table[topology.chip_name] if price is None else price
    loops = {"update": trips(config, shapes), "score": trips(config, shapes)}
    tokens = config.rows_per_step * shapes.lengths.completion
    return {
        "topology": topology.name,
        "slices": topology.slices,
        "chips": topology.chips,
        "estimate": topology.estimated,
        "mesh": dict(shapes.mesh.shape),
        "sampling_mesh": dict(shapes.sampling_mesh.shape) if shapes.pool is not None else None,
        "model": {"source": source, "parameters": _count(shapes), "attention": cfg.attention, "remat": cfg.remat},
        "method": config.method.name,
        "lora": config.lora.rank if config.lora else None,
        "lengths": shapes.lengths._asdict(),
        "rows": {
            "step": config.rows_per_step,
            "micro_batch": shapes.micro_rows,
            "updates": config.updates_per_step,
            "slots": config.sampling.slots,
        },
        "memory": {
            "limit": chip.hbm,
            "parts": memory.parts,
            "train": memory.train,
            "train_peak": memory.train_peak,
            "sample": memory.sample,
            "refused": memory.refused,
            "fits": memory.fits(chip.hbm),
        },
        "programs": {name: _program(program) for name, program in programs.items()},
        "flops_per_device": {name: value / topology.chips for name, value in work._asdict().items()},
        "sent_per_device": {
            name: [line._asdict() for line in _sent(config, shapes, topology, name, program, loops.get(name, 1))]
            for name, program in programs.items()
        },
        "sampling_runs": sampling_runs(config, shapes, topology) if sampling.total else (0, 0),
        "seconds": {
            "training": training._asdict() | {"bound": training.bound, "floor": training.total},
            "sampling": sampling._asdict() | {"bound": sampling.bound, "floor": sampling.total},
            "floor": floor,
            "efficiency": EFFICIENCY,
            "step": floor / EFFICIENCY,
        },
        "tokens_per_second": tokens * EFFICIENCY / floor if floor else math.inf,
        "price": {
            "dollars_per_chip_hour": hourly,
            "table": date if price is None else "given",
            "dollars_per_1000_steps": floor / EFFICIENCY * 1000 / 3600 * topology.chips * hourly,
        },
        "advice": advice(config, shapes, topology, memory, sampling),
    }


def _sent(config, shapes: Shapes, topology: Topology, name: str, program, loops: int):
    sampler = name in ("decode", "prefill")
    outside = 1 / config.sampling.chunk if name == "decode" else 1
    return sent(program, shapes.sampling_mesh if sampler else shapes.mesh, topology.per_slice, loops, outside)


def _count(shapes: Shapes) -> int:
    import jax

    model = (
        shapes.weights.models.base if hasattr(shapes.weights.state.trainable, "a") else shapes.weights.state.trainable
    )
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model))


def _program(program) -> dict:
    fields = ("arguments", "outputs", "aliased", "temporary", "code", "peak", "seconds", "refused")
    return {name: getattr(program, name) for name in fields}
