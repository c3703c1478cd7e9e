"""One plan, from a config to its record."""

from pathlib import Path

from jopsd.config import Config
from jopsd.models.hf import CONFIG
from jopsd.plan.compile import Program, compile_all
from jopsd.plan.estimate import estimate_all
from jopsd.plan.report import make_record
from jopsd.plan.shapes import Lengths, Shapes, abstract_weights, make_shapes
from jopsd.plan.topology import Topology


def make_plan(config: Config, topology: Topology, lengths: Lengths, price: float | None, say=lambda text: None) -> dict:
    """Compiles (or, for GPUs, estimates) every program of a step and accounts for it.

    Raises:
      ConfigError, PlanError: a model, mesh or topology that does not exist or does not fit together.
    """
    weights, source = abstract_weights(config, topology.chip.kind)
    shapes = make_shapes(config, topology, lengths, weights)
    programs = estimate_all(config, shapes) if topology.estimated else compiled_or_estimated(config, shapes, say)
    return make_record(config, shapes, topology, programs, source, price)


def compiled_or_estimated(config: Config, shapes: Shapes, say=lambda text: None) -> dict[str, Program]:
    """All programs compiled; one that the compiler refused as the model has it, with the compiler's words."""
    compiled = compile_all(config, shapes, say)
    if not any(program.refused for program in compiled.values()):
        return compiled
    modelled = estimate_all(config, shapes)
    return {
        name: modelled[name]._replace(
            refused=program.refused, seconds=program.seconds, temporary=program.temporary or modelled[name].temporary
        )
        if program.refused
        else program
        for name, program in compiled.items()
    }


def files_read(config: Config) -> list[Path]:
    """What a plan reads beside the config: the config.json of each model, whether it is here or not."""
    paths = [config.model.path, config.reference.path, *config.teacher.external.values()]
    return [Path(path) / CONFIG for path in paths if path and not path.startswith("builtin:")]
