"""The programs of a training step, lowered and compiled for devices that need not be here.

Nothing runs and no weight exists: XLA's own account of memory is the prediction, and its text says what is sent.
"""

import re
import time
from contextlib import nullcontext
from typing import NamedTuple

import jax

from jopsd.config import Config
from jopsd.plan.hlo import Collective, collectives
from jopsd.plan.shapes import Shapes, prefill_shapes, table_shapes
from jopsd.plan.topology import GIB
from jopsd.sampling.engine import decode, prefill
from jopsd.setup import step_options
from jopsd.step import make_old_logprobs, make_update


class Program(NamedTuple):
    """What the compiler says of one program, per device.

    Attributes:
      arguments, outputs, aliased, temporary, code: bytes. Outputs that alias an argument take no room of their own.
      peak: the most that XLA's own account has alive at once; 0 where it keeps none.
      collectives: what a run of the program sends. seconds: of compiling, on this machine.
      refused: the compiler's words where the program cannot be placed in memory at all. It then tells temporaries only.
    """

    name: str
    arguments: int = 0
    outputs: int = 0
    aliased: int = 0
    temporary: int = 0
    code: int = 0
    peak: int = 0
    collectives: tuple[Collective, ...] = ()
    seconds: float = 0.0
    refused: str = ""

    @property
    def beside_arguments(self) -> int:
        """Bytes that a run needs beside its arguments, at most."""
        return self.temporary + max(self.outputs - self.aliased, 0) + self.code


def _update(config: Config, shapes: Shapes):
    state, models = shapes.weights.state, shapes.weights.models
    update = make_update(step_options(config), shapes.weights.optimizer, shapes.mesh, state)
    return update.lower(state, models, shapes.batch)


def _score(config: Config, shapes: Shapes):
    score = make_old_logprobs(step_options(config), shapes.mesh)
    return score.lower(shapes.weights.state.trainable, shapes.weights.models, shapes.step_batch)


def _decode(config: Config, shapes: Shapes):
    tables = table_shapes(shapes.pool_shape, shapes.pool_shape.slots)
    return decode.lower(shapes.policy, shapes.pool, tables, config.sampling.chunk)


def _prefill(config: Config, shapes: Shapes):
    rest = prefill_shapes(shapes.lengths, shapes.pool_shape, shapes.sampling_mesh)
    return prefill.lower(shapes.policy, shapes.pool, *rest)


def programs_of(shapes: Shapes) -> dict:
    """What a step runs, by name: (lower it, its mesh)."""
    found = {"update": (_update, shapes.mesh)}
    if shapes.step_batch is not None:
        found["score"] = (_score, shapes.mesh)
    if shapes.pool is not None:
        found |= {"decode": (_decode, shapes.sampling_mesh), "prefill": (_prefill, shapes.sampling_mesh)}
    return found


def compile_program(name: str, config: Config, shapes: Shapes) -> Program:
    """Compiles one of `programs_of`. A program that is too large for a device comes back as refused."""
    lower, mesh = programs_of(shapes)[name]
    begin = time.monotonic()
    # The trainer is always inside its mesh, a sampler only if that has several devices.
    single = mesh.size == 1 and name in ("decode", "prefill")
    with nullcontext() if single else jax.set_mesh(mesh):
        lowered = lower(config, shapes)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            words = _refusal(str(error))
            wanted = re.search(r"temporaries \(([\d.]+)G\)", words)
            temporary = int(float(wanted[1]) * GIB) if wanted else 0
            return Program(name, temporary=temporary, seconds=time.monotonic() - begin, refused=words)
    seconds, memory = time.monotonic() - begin, compiled.memory_analysis()
    return Program(
        name,
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.generated_code_size_in_bytes,
        getattr(memory, "peak_memory_in_bytes", 0) or 0,
        tuple(collectives(compiled.as_text())),
        seconds,
    )


def _refusal(message: str) -> str:
    line = message.splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
    return re.sub(r"\s+", " ", line)[:300]


def compile_all(config: Config, shapes: Shapes, say=lambda text: None) -> dict[str, Program]:
    """All programs of a step, one after another. say: told what is being compiled."""
    compiled = {}
    for name in programs_of(shapes):
        say(f"compiling {name}")
        compiled[name] = compile_program(name, config, shapes)
    return compiled
