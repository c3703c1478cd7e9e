"""What rollouts are drawn with: the sampler that a config asks for, and the form in which it gets the weights."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jopsd.config import Config, ConfigError
from jopsd.mesh import relaid, sampling_mesh
from jopsd.models.decoder import Decoder, ModelConfig
from jopsd.models.quantize import int8_projections
from jopsd.models.sharding import tree_shardings
from jopsd.sampling import Policy, Sampler, make_sampler
from jopsd.sampling.pool import open_pool
from jopsd.setup import Task, Weights, model_dir
from jopsd.step import TrainState
from jopsd.teachers import student_policy


@dataclass(frozen=True)
class Drawing:
    """A sampler, and how a policy becomes what it draws from.

    exact: for evaluation. rounded: for rollouts, with int8 projections where the config says so.
    reads: whether it draws from the very arrays, which must then not be donated meanwhile; servers have their own.
    """

    sampler: Sampler
    exact: Callable[[Policy], Policy]
    rounded: Callable[[Policy], Policy]
    reads: bool

    def load(self, policy: Policy, version: int, exact: bool = False, keep: bool = False) -> None:
        """The sampler draws from `policy` from now on. keep: the policy may be donated while it still draws."""
        if keep and self.reads:
            copied = lambda tree: jax.tree.map(jnp.copy, tree)  # noqa: E731
            policy = Policy(policy.model, copied(policy.adapter)) if policy.adapter else copied(policy)
        self.sampler.update((self.exact if exact else self.rounded)(policy), version)


@contextmanager
def open_drawing(
    config: Config, task: Task, weights: Weights, state: TrainState, mesh: Mesh, run_dir: Path
) -> Iterator[Drawing]:
    """The `Drawing` of a run, closed on the way out.

    Raises:
      ConfigError: drawing ahead where that cannot be done.
    """
    sampling, base = config.sampling, weights.models.base
    if sampling.ahead and not sampling.served and mesh.size > 1:
        raise ConfigError(
            f"sampling.ahead 1 with sampling.backend {sampling.backend} needs a single device, not {mesh.size}: two "
            "programs over several devices may wait for each other; sample from servers (backend remote)"
        )
    policy, dtype = student_policy(state.trainable, base), weights.model_config.dtype
    home = mesh if sampling.served else _home(config, weights, mesh)
    copies = home is not mesh or (not sampling.served and narrows(config, weights.model_config))
    moved = (lambda tree: relaid(tree, mesh, home, dtype)) if copies else (lambda tree: tree)
    exact = rounded = _with_base(config, base, moved, lambda model: model)
    if sampling.weights == "int8" and config.method.trains_on == "rollouts":
        rounded = _with_base(config, base, moved, lambda model: _rounded(model, mesh))
    with closing(_make_sampler(config, task, weights, policy, exact, home, run_dir)) as sampler:
        yield Drawing(sampler, exact, rounded, reads=not sampling.served)


def narrows(config: Config, cfg: ModelConfig) -> bool:
    """Whether a sampler in this process reads a copy in the dtype that computes: half the bytes for every token."""
    return config.lora is None and cfg.param_dtype != cfg.dtype


def _home(config: Config, weights: Weights, mesh: Mesh) -> Mesh:
    """The mesh that draws: with backend jetstream each process has its own devices, else they are all one."""
    own = config.sampling.backend == "jetstream"
    devices = [d for d in mesh.devices.flat if not own or d.process_index == jax.process_index()]
    try:
        return sampling_mesh(mesh, devices, config.sampling.tensor, weights.model_config.num_kv_heads)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _with_base(config: Config, base: Decoder | None, place: Callable, form: Callable) -> Callable[[Policy], Policy]:
    """Puts a policy into a form and a place; the frozen model under an adapter once, a model that trains each time."""
    if config.lora is None:
        return lambda policy: Policy(place(form(policy.model)), None)
    once = place(form(base))
    return lambda policy: Policy(once, place(policy.adapter))


def _rounded(model: Decoder, mesh: Mesh) -> Decoder:
    shapes = jax.eval_shape(int8_projections, model)
    return jax.jit(int8_projections, out_shardings=tree_shardings(shapes, mesh))(model)


def _make_sampler(config: Config, task: Task, weights: Weights, policy: Policy, exact, mesh, run_dir: Path) -> Sampler:
    longest = lambda items: max((len(item.prompts["student"]) for item in items), default=0)  # noqa: E731
    sampling = config.sampling
    limits = [longest(task.train) + sampling.max_new_tokens]
    if config.eval is not None:
        limits.append(longest(task.held_out) + config.eval.max_new_tokens)
    max_stop_ids = max(len(task.stop_ids), 1)
    if sampling.served:
        return open_pool(
            sampling,
            run_dir,
            weights.model_config,
            policy,
            max_length=max(limits),
            max_stop_ids=max_stop_ids,
            model_dir=model_dir(config.model),
            rslora=config.lora is not None and config.lora.rslora,
        )
    return make_sampler(
        sampling.backend,
        weights.model_config,
        exact(policy),
        slots=sampling.slots,
        max_length=max(limits),
        chunk=sampling.chunk,
        mesh=mesh,
        max_stop_ids=max_stop_ids,
        cache_gb=sampling.cache_gb,
    )
