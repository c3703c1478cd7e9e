"""Chips, and the names of groups of them: `v5p:4x4x4`, `h100:2x8`, `cpu:8`.

Importing this needs no jax; `devices` does.
"""

import math
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

GIB = 2**30
LIBTPU = "libtpu==0.0.42.1"  # the release that jax 0.10.2 asks for


class PlanError(ValueError):
    """A plan that cannot be made; the message says what to change."""


class Chip(NamedTuple):
    """One accelerator.

    Attributes:
      kind: "tpu", "gpu" or "cpu".
      hbm: bytes that a program may have. TPU: what its compiler allows (read off its refusals); GPU: 92 % of the
        card, as much as is best given to XLA.
      flops: peak bfloat16 FLOP/s, dense. bandwidth: of HBM, bytes/s.
      ici: bytes/s that a chip can send along one axis of its torus, both ways round (TPU), or over NVLink (GPU).
      dcn: bytes/s of one chip's share of the network between slices (TPU) or nodes (GPU).
      host: chips per host where the name of the group does not say.
    """

    kind: str
    hbm: float
    flops: float
    bandwidth: float
    ici: float
    dcn: float
    host: int


# Vendors' data sheets; links of 45 (v4, v5e) and 90 GB/s (v5p, v6e) each way. The CPU's speeds are round numbers.
CHIPS = {
    "v4": Chip("tpu", 30.75 * GIB, 275e12, 1.2e12, 90e9, 3.1e9, 4),
    "v5e": Chip("tpu", 15.75 * GIB, 197e12, 0.82e12, 90e9, 3.1e9, 4),
    "v5p": Chip("tpu", 95.74 * GIB, 459e12, 2.77e12, 180e9, 6.25e9, 4),
    "v6e": Chip("tpu", 31.25 * GIB, 918e12, 1.64e12, 180e9, 12.5e9, 4),
    "a100-80": Chip("gpu", 0.92 * 80 * GIB, 312e12, 2.04e12, 300e9, 25e9, 8),
    "h100": Chip("gpu", 0.92 * 80 * GIB, 989e12, 3.35e12, 450e9, 50e9, 8),
    "h200": Chip("gpu", 0.92 * 141e9, 989e12, 4.8e12, 450e9, 50e9, 8),
    "b200": Chip("gpu", 0.92 * 180e9, 2250e12, 7.7e12, 900e9, 50e9, 8),
    "cpu": Chip("cpu", 16 * GIB, 1e11, 20e9, 10e9, 1e9, 1),
}


# Eight chips of v5e or v6e that share a host.
_ONE_HOST: tuple[tuple[int, ...], ...] = ((2, 4),)


class Topology(NamedTuple):
    """A group of chips. sizes: of one slice, as named. slices: how many (TPU), or nodes (GPU)."""

    name: str
    chip_name: str
    sizes: tuple[int, ...]
    slices: int

    @property
    def chip(self) -> Chip:
        return CHIPS[self.chip_name]

    @property
    def chips(self) -> int:
        return math.prod(self.sizes) * self.slices

    @property
    def per_slice(self) -> int:
        return math.prod(self.sizes)

    @property
    def estimated(self) -> bool:
        """Whether its programs cannot be compiled here, so that all numbers come from a model of them."""
        return self.chip.kind == "gpu"


def parse_topology(name: str, slices: int = 1) -> Topology:
    """The group of chips that a name means.

    Args:
      name: a TPU slice `v5p:4x4x4`; GPUs `h100:8` or nodes x GPUs `h100:2x8`; `cpu:8`, virtual devices of this machine.
      slices: of a TPU; the name is then of one of them.

    Raises:
      PlanError: another form, an unknown chip, or a torus of another rank than the chip has.
    """
    known = f"known chips are {', '.join(CHIPS)}; e.g. v5e:4x8, v5p:4x4x4, h100:2x8, cpu:8"
    match = re.fullmatch(r"([\w-]+):(\d+(?:x\d+)*)", name)
    if match is None or match[1] not in CHIPS:
        raise PlanError(f"topology {name!r} is not chip:sizes of a known chip; {known}")
    sizes, kind = tuple(map(int, match[2].split("x"))), CHIPS[match[1]].kind
    if min(sizes) < 1 or slices < 1:
        raise PlanError(f"topology {name!r} of {slices} slices: sizes must be positive")
    if kind == "tpu":
        rank = 2 if match[1] in ("v5e", "v6e") else 3
        if len(sizes) != rank:
            raise PlanError(f"topology {name!r}: {match[1]} chips form a torus of {rank} sizes, e.g. "
                            f"{match[1]}:{'x'.join('4' * rank)}")  # fmt: skip
        return Topology(name, match[1], sizes, slices)
    if len(sizes) > (2 if kind == "gpu" else 1):
        raise PlanError(f"topology {name!r}: {'nodes x GPUs' if kind == 'gpu' else 'a number of devices'} is wanted")
    if kind == "cpu":
        if sizes[0] % slices:
            raise PlanError(f"topology {name!r}: {slices} slices do not divide {sizes[0]} devices")
        return Topology(name, match[1], (sizes[0] // slices,), slices)
    nodes, gpus = sizes if len(sizes) == 2 else (1, sizes[0])
    return Topology(name, match[1], (gpus,), nodes)


def host_of(topology: Topology) -> Topology:
    """The devices of one process: the whole group where that is one host, a node of GPUs, else a host of a TPU."""
    host = topology.chip.host
    if topology.chip.kind == "gpu":
        return topology._replace(name=f"{topology.chip_name}:{topology.per_slice}", slices=1)
    if topology.chip.kind == "cpu" or topology.chips <= host:
        return topology
    if topology.slices == 1 and topology.sizes in _ONE_HOST:
        return topology
    sizes = (2, 2) if len(topology.sizes) == 2 else (2, 2, 1)
    return Topology(f"{topology.chip_name}:{'x'.join(map(str, sizes))}", topology.chip_name, sizes, 1)


@cache
def prices() -> tuple[str, dict[str, float]]:
    """(the date of the table, dollars per chip and hour by chip)."""
    table = yaml.safe_load((Path(__file__).parent / "prices.yaml").read_text(encoding="utf-8"))
    return str(table["date"]), table["dollars_per_chip_hour"]


def prepare_environment() -> None:
    """What XLA reads when it starts: no accelerator is looked for. Call it before anything imports jax."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # Any type will do: without one the compiler complains that it finds no TPU.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")


def configure_jax(topology: Topology, fast: bool) -> None:
    """As many virtual devices as chips, where those stand for them; fast: the compiler tries less."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    if topology.chip.kind != "tpu" and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", topology.chips)
    effort = -1.0 if fast else 0.0
    jax.config.update("jax_exec_time_optimization_effort", effort)
    jax.config.update("jax_memory_fitting_effort", effort)


def devices(topology: Topology) -> Sequence:
    """The devices to compile for: of a TPU that is not here, or virtual ones (which only stand for GPUs).

    Raises:
      PlanError: the TPU compiler is missing, or does not know the shape.
    """
    import jax

    if topology.chip.kind != "tpu":
        found = jax.devices("cpu")
        if len(found) < topology.chips:
            raise PlanError(f"{topology.name}: jax was started with {len(found)} devices in this process already")
        return found[: topology.chips]
    import importlib.util

    if importlib.util.find_spec("libtpu") is None:
        raise PlanError(
            f"topology {topology.name} needs the TPU compiler, which runs on any Linux host: "
            f"pip install --no-deps {LIBTPU}"
        )
    from jax.experimental import topologies

    extra: dict = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.chip_name == "v4":
        extra["chip_config_name"] = "megacore"  # one device per chip
    if topology.sizes in _ONE_HOST:
        extra["chips_per_host_bounds"] = [*topology.sizes, 1]
    if topology.per_slice == 1:
        extra["chips_per_host_bounds"] = [1, 1, 1]
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **extra).devices
    except Exception as error:
        raise PlanError(f"the TPU compiler refuses topology {topology.name}: {str(error).splitlines()[0]}") from None
