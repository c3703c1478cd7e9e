"""Meshes, micro-batches and remat policies for a config on a topology: all modelled, the best few compiled, ranked."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from jopsd.config import Config, ConfigError
from jopsd.plan.estimate import estimate_all
from jopsd.plan.make import compiled_or_estimated
from jopsd.plan.report import make_record
from jopsd.plan.shapes import Lengths, abstract_weights, make_shapes
from jopsd.plan.topology import PlanError, Topology
from jopsd.setup import Weights

REMAT = ("full", "dots", "none")
_SIZES = (1, 2, 4, 8, 16)  # of tensor and context


class Candidate(NamedTuple):
    """What a sweep varies. micro: train.micro_batch_size."""

    data: int
    fsdp: int
    context: int
    tensor: int
    micro: int
    remat: str

    @property
    def overrides(self) -> list[str]:
        """As they stand on a command line."""
        return [
            *(f"mesh.{axis}={getattr(self, axis)}" for axis in ("data", "fsdp", "context", "tensor")),
            f"train.micro_batch_size={self.micro}",
            f"model.remat={self.remat}",
        ]


def candidates(config: Config, chips: int) -> Iterator[Candidate]:
    """Every way to split the chips and the rows that the config's own numbers allow."""
    rows, slices = config.rows_per_update, config.mesh.slices
    for tensor in _SIZES:
        for context in _SIZES:
            if chips % (tensor * context) or config.train.pad_to % context:
                continue
            shards = chips // (tensor * context)
            for data in range(slices, shards + 1, slices):
                if shards % data or rows % shards:
                    continue
                # One row at a time on a device, or several.
                for micro in (shards * each for each in (1, 2, 4, 8) if rows % (shards * each) == 0):
                    for remat in REMAT:
                        yield Candidate(data, shards // data, context, tensor, micro, remat)


def applied(config: Config, candidate: Candidate) -> Config:
    """The config with a candidate's keys."""
    mesh = {axis: getattr(candidate, axis) for axis in ("data", "fsdp", "context", "tensor")}
    return config.model_copy(
        update={
            "mesh": config.mesh.model_copy(update=mesh),
            "train": config.train.model_copy(update={"micro_batch_size": candidate.micro}),
            "model": config.model.model_copy(update={"remat": candidate.remat}),
        }
    )


def sweep(
    config: Config,
    topology: Topology,
    lengths: Lengths,
    price: float | None,
    count: int,
    say: Callable[[str], None] = lambda text: None,
) -> dict:
    """The record of a sweep: plans by seconds per step, those that fit first.

    count: how many are compiled, of those that the model of the programs says fit.

    Raises:
      ConfigError: the rows of an update split over the chips in no way.
    """
    weights = {remat: _weights(config, remat, topology) for remat in REMAT}
    modelled, refused = {}, ""
    for candidate in candidates(config, topology.chips):
        try:
            modelled[candidate] = _plan(config, candidate, topology, lengths, price, weights, estimate_all)
        except (ConfigError, PlanError) as error:
            refused = str(error)
    if not modelled:
        raise ConfigError(
            f"the {config.rows_per_update} rollouts of an update split over {topology.chips} chips in no way"
            + (f" ({refused})" if refused else "; change train.batch_size or train.pad_to")
        )
    say(f"{len(modelled)} candidates modelled")
    # Where none fits, the ones that need least are worth a look.
    likely = [c for c, plan in modelled.items() if _need(plan) <= 1] or sorted(
        modelled, key=lambda c: _need(modelled[c])
    )
    best = sorted(likely[: None if _need(modelled[likely[0]]) <= 1 else count], key=lambda c: _seconds(modelled[c]))
    plans = []
    for candidate in best[:count]:
        record = modelled[candidate]
        if not topology.estimated:
            say(" ".join(["compiling", *candidate.overrides]))
            record = _plan(config, candidate, topology, lengths, price, weights, compiled_or_estimated)
        plans.append({"overrides": candidate.overrides, "record": record, "compiled": not topology.estimated})
    plans.sort(key=lambda plan: (not plan["record"]["memory"]["fits"], _seconds(plan["record"])))
    return {"sweep": True, "topology": topology.name, "tried": len(modelled), "plans": plans}


def _need(record: dict) -> float:
    """The larger of the two peaks, over what a chip has."""
    return max(record["memory"]["train"], record["memory"]["sample"]) / record["memory"]["limit"]


def _seconds(record: dict) -> float:
    return record["seconds"]["step"]


def _weights(config: Config, remat: str, topology: Topology) -> tuple[Weights, str]:
    """They are the same for all meshes, and take longest to trace."""
    model = config.model.model_copy(update={"remat": remat})
    return abstract_weights(config.model_copy(update={"model": model}), topology.chip.kind)


def _plan(config: Config, candidate: Candidate, topology, lengths, price, weights: dict, programs_of: Callable) -> dict:
    config, (shaped, source) = applied(config, candidate), weights[candidate.remat]
    shapes = make_shapes(config, topology, lengths, shaped)
    return make_record(config, shapes, topology, programs_of(config, shapes), source, price)
