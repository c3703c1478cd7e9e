"""LoRA (arXiv 2106.09685): low-rank additions to the projections, kept as a separate pytree.

The base arrays are never touched: the model without the adapter is the teacher, with it the student.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from jopsd.models.products import Turned, kernel_product
from jopsd.models.sharding import constrain_factor

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Adapter:
    """Low-rank factors of every layer.

    Attributes:
      a, b: by projection name, [L,in,R] and [L,R,out], float32. Inside the layer scan the L axis is gone.
        For a sampler on CPU they are `Turned`.
      scale: what the product is multiplied by, `lora_scale(R, alpha, rslora)`; static.
    """

    a: dict[str, jax.Array]
    b: dict[str, jax.Array]
    scale: float = field(metadata={"static": True})

    def lowered(self, h: jax.Array, names: Sequence[str], features: int = -1) -> dict[str, jax.Array]:
        """h times the factors A of those projections of h that are targets, by name: [...,in] -> [...,R].

        One product for all of them: each alone would take longer to read h than to multiply.

        Args:
          features: 0 where h is [in,...], which gives [R,...].
        """
        names = [name for name in names if name in self.a]
        factors = [self._factor("a", name, h.dtype) for name in names]
        if len(names) < 2 or isinstance(factors[0], Turned):
            return {name: kernel_product(h, a, features) for name, a in zip(names, factors, strict=True)}
        together = kernel_product(h, jnp.concatenate(factors, axis=1), features)
        return dict(zip(names, jnp.split(together, len(names), axis=features), strict=True))

    def raised(self, low: jax.Array, name: str, features: int = -1) -> jax.Array:
        """What the adapter adds to projection `name`, from what `lowered` gave: [...,R] -> [...,out]."""
        return kernel_product(low, self._factor("b", name, low.dtype), features) * self.scale

    def _factor(self, side: str, name: str, dtype):
        factor = getattr(self, side)[name]
        return factor if isinstance(factor, Turned) else constrain_factor(factor.astype(dtype), side, name)


def lora_scale(rank: int, alpha: float, rslora: bool = False) -> float:
    """alpha / rank; rank-stabilised (arXiv 2312.03732) alpha / sqrt(rank), so that high ranks do not learn less."""
    return alpha / (math.sqrt(rank) if rslora else rank)


def init_adapter(
    projections: dict[str, tuple[int, int]],
    num_layers: int,
    rank: int,
    alpha: float,
    key: jax.Array,
    targets: Sequence[str] = TARGETS,
    rslora: bool = False,
) -> Adapter:
    """A fresh adapter that changes nothing: A is uniform in +-1/sqrt(in), as PEFT draws it, and B is zero.

    Args:
      projections: kernel shapes by name, `ModelConfig.projections`.
      rslora: scale by alpha / sqrt(rank) instead of alpha / rank.

    Raises:
      ValueError: a target that the model does not have, or a rank below 1.
    """
    unknown = sorted(set(targets) - set(projections))
    if unknown:
        raise ValueError(f"LoRA targets {unknown} are not projections of this model: {sorted(projections)}")
    if rank < 1:
        raise ValueError(f"LoRA rank must be at least 1, got {rank}")
    a, b = {}, {}
    for name, subkey in zip(sorted(targets), jax.random.split(key, len(targets)), strict=True):
        width_in, width_out = projections[name]
        bound = width_in**-0.5
        a[name] = jax.random.uniform(subkey, (num_layers, width_in, rank), jnp.float32, -bound, bound)
        b[name] = jnp.zeros((num_layers, rank, width_out), jnp.float32)
    return Adapter(a, b, lora_scale(rank, alpha, rslora))


def merged_kernel(kernel: jax.Array, adapter: Adapter, name: str) -> jax.Array:
    """kernel [L,in,out] with the adapter folded in: product and sum in float32, returned in the kernel's dtype."""
    product = jnp.einsum("lir,lro->lio", adapter.a[name], adapter.b[name], precision="highest") * adapter.scale
    return (kernel.astype(jnp.float32) + product).astype(kernel.dtype)
