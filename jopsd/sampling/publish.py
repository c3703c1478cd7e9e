"""What trains, written where sampling servers can read it: `<output_dir>/weights/<version>`, the newest two kept.

A version appears under its name only when it is complete.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import traverse_util
from jax.sharding import Mesh

from jopsd.checkpoint import first_line
from jopsd.distributed import is_first, wait_for_all
from jopsd.models.hf import abstract_decoder
from jopsd.models.lora import Adapter
from jopsd.models.orbax_model import nested, restore_of, tree_keys
from jopsd.models.sharding import sharded_shapes
from jopsd.sampling.fingerprint import fingerprint
from jopsd.sampling.sampler import Policy, SamplerError

KEEP = 2
_WEIGHTS, _META = "weights", "meta"


class Published(NamedTuple):
    """Weights on disk. fingerprint: of the whole policy, with the base that it was made on."""

    version: int
    path: Path
    fingerprint: str


class Publisher:
    """Writes one version after another into a folder of a run's own. On several processes all must make each call.

    Args:
      folder: emptied first of what an earlier process of the run left.
      base: fingerprint of the frozen model under an adapter; None where the whole model trains.
      write: (policy, directory) -> None, atomic; the default is what `read_published` reads.
    """

    def __init__(self, folder: Path, base: str | None, write: Callable[[Policy, Path], None] | None = None):
        self._folder, self._base, self._kept = folder.resolve(), base, []
        self._write = write
        if is_first():
            self._folder.mkdir(parents=True, exist_ok=True)
            for left in self._folder.iterdir():
                if re.match(r"\.?\d+(\.|$)", left.name):  # a version, or one that was not finished
                    shutil.rmtree(left, ignore_errors=True)
        wait_for_all("weights emptied")

    def publish(self, policy: Policy, version: int) -> Published:
        """Raises SamplerError where it cannot be written."""
        path = self._folder / str(version)
        if is_first():
            shutil.rmtree(path, ignore_errors=True)  # of a try that failed
        name = fingerprint(policy, self._base)
        wait_for_all("weights cleared")
        try:
            if self._write is None:
                write_policy(policy, path, version, self._base, name)
            else:
                self._write(policy, path)
        except OSError as error:
            raise SamplerError(f"cannot write weights for the sampling servers to {path}: {error}") from error
        self._kept.append(path)
        return Published(version, path, name)

    def forget(self) -> None:
        """Removes all but the newest versions, once no server reads them any more."""
        old, self._kept = self._kept[:-KEEP], self._kept[-KEEP:]
        for path in old if is_first() else ():
            shutil.rmtree(path, ignore_errors=True)


def write_policy(policy: Policy, path: Path, version: int, base: str | None, name: str) -> None:
    """Writes the adapter, or without one the whole model. On several processes all must call it.

    Args:
      base, name: fingerprints of the model under the adapter, and of the policy.
    """
    adapter = policy.adapter
    trained = policy.model if adapter is None else adapter
    tree = nested(jax.tree_util.tree_flatten_with_path(trained)[0])
    meta = {"version": version, "fingerprint": name, "base": base, "adapter": None, "leaves": _leaves(trained)}
    if adapter is not None:
        ranks = {target: factor.shape[-1] for target, factor in adapter.a.items()}
        meta["adapter"] = {"scale": adapter.scale, "ranks": ranks}
    args = ocp.args.Composite(**{_WEIGHTS: ocp.args.PyTreeSave(tree), _META: ocp.args.JsonSave(meta)})
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(path, args=args, force=True)


def read_published(path: Path, served: Policy, mesh: Mesh) -> Policy:
    """What `write_policy` wrote, on the model that is served, or instead of it.

    Args:
      served: gives the model under an adapter, and the config of a whole model.

    Raises:
      FileNotFoundError: nothing was published there.
      ValueError: it was made for another model, or cannot be read.
    """
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        restore = lambda **args: checkpointer.restore(path, args=ocp.args.Composite(**args))  # noqa: E731
        if not (path / _META).is_dir():
            raise FileNotFoundError(f"{path} holds no published weights")
        try:
            described = restore(**{_META: ocp.args.JsonRestore()})[_META]
            shapes = _shapes(described["adapter"], served)
            for leaf, here in _leaves(shapes).items():
                if here != (there := described["leaves"].get(leaf)):
                    raise ValueError(f"{leaf} is {there} there, and {here} in the server")
            paths, tree = jax.tree_util.tree_flatten_with_path(sharded_shapes(shapes, mesh))
            loaded = restore(**{_WEIGHTS: restore_of(nested(paths))})[_WEIGHTS]
            flat = traverse_util.flatten_dict(loaded)
            trained = tree.unflatten(flat[tree_keys(leaf)] for leaf, _ in paths)
        except (KeyError, TypeError, ValueError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} does not fit the model that is served: {first_line(error)}") from error
    return Policy(served.model, trained) if isinstance(trained, Adapter) else Policy(trained, None)


def _leaves(tree) -> dict[str, list]:
    """Shape and dtype of each leaf, by name, as JSON has them."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {".".join(tree_keys(path)): [list(leaf.shape), str(leaf.dtype)] for path, leaf in paths}


def _shapes(adapter: dict | None, served: Policy):
    cfg = served.model.cfg
    if adapter is None:
        return abstract_decoder(cfg)
    ranks, kernels = adapter["ranks"], cfg.projections
    shape = lambda *sizes: jax.ShapeDtypeStruct((cfg.num_layers, *sizes), jnp.float32)  # noqa: E731
    a = {name: shape(kernels[name][0], rank) for name, rank in ranks.items()}
    return Adapter(a, {name: shape(rank, kernels[name][1]) for name, rank in ranks.items()}, float(adapter["scale"]))
