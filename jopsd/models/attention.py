"""Attention backends by name. All take the same arguments and agree to round-off.

A query sees the keys of its own segment that stand in its own or an earlier column, and with a window only the last
`window` of these columns. Padding is segment 0 and sees padding, so that no query is without a key.

Axes: B batch, T queries, S keys, N query heads, K key-value heads, H head size.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jopsd.models.blocks import block_attention
from jopsd.models.sharding import BATCH


class Sight(NamedTuple):
    """What each query may see.

    Attributes:
      segments: [B,T] int32 of the queries. key_segments: [B,S] int32 of the keys.
      column: [B,T] or [1,T] int32, the key column that a query stands in.
      window: how many columns back, its own included; None is all.
    """

    segments: jax.Array
    key_segments: jax.Array
    column: jax.Array
    window: int | None = None

    def mask(self) -> jax.Array:
        """[B,T,S] bool, True where a query may look."""
        distance = self.column[:, :, None] - jnp.arange(self.key_segments.shape[1])
        seen = (self.segments[:, :, None] == self.key_segments[:, None, :]) & (distance >= 0)
        return seen if self.window is None else seen & (distance < self.window)


def xla_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Grouped-query attention in plain XLA, for any mask and any device.

    Args:
      q: [B,T,N,H]; k, v: [B,K,S,H] with N a multiple of K; mask: [B,T,S] bool, True where a query may look.

    Returns:
      [B,T,N,H] in q's dtype. Scores and softmax are float32. A query that may look nowhere gets a finite average, never
      NaN.
    """
    batch, length, heads, size = q.shape
    grouped = q.reshape(batch, length, k.shape[1], heads // k.shape[1], size)
    scores = jnp.einsum("btkgh,bksh->bkgts", grouped, k, preferred_element_type=jnp.float32) * size**-0.5
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bksh->btkgh", weights, v).reshape(q.shape).astype(q.dtype)


def cudnn_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array,
    window: int | None,
    offset: int = 0,
    implementation: str = "cudnn",
) -> jax.Array:
    """cuDNN's flash attention, on one GPU. Causality and window skip work; segments are a bias of [B,1,T,S].

    Args:
      q: [B,T,N,H] in bfloat16 or float16; k, v: [B,K,S,H]; segments: [B,S]; window: as in `Sight`.
      offset: the column of the first query. S is offset + T: what stands behind the last query is not given.

    Returns:
      [B,T,N,H].
    """
    length = q.shape[1]
    if offset == 0:
        q, k, v, segments = _lengthen(2, q, k, v, segments)  # its gradient with a bias wants an even length
        mask = segments[:, :, None] == segments[:, None, :]
        causal = {"is_causal": True, "local_window_size": None if window is None else (window - 1, 0)}
    else:
        column = offset + jnp.arange(length)[None]
        mask, causal = Sight(segments[:, offset:], segments, column, window).mask(), {}
    out = jax.nn.dot_product_attention(
        q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask=mask[:, None], **causal, implementation=implementation
    )
    return out[:, :length]


def splash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array,
    window: int | None,
    offset: int = 0,
    interpret: bool = False,
) -> jax.Array:
    """Pallas splash attention, on one TPU core. Blocks that nothing sees are skipped.

    Args:
      q, k, v, segments, window, offset: as in `cudnn_attention`; an offset is a multiple of 128, and so is T then.
      interpret: run the kernel in plain XLA, on any device and slowly.

    Returns:
      [B,T,N,H].
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, heads, size = q.shape[1:]
    q = (q.astype(jnp.float32) * size**-0.5).astype(q.dtype)
    if offset == 0:
        q, k, v, segments = _lengthen(128, q, k, v, segments)  # blocks are multiples of 128 tokens
    shape = (q.shape[1], k.shape[2])
    block = next(block for block in (512, 256, 128) if all(width % block == 0 for width in shape))
    seen = masks.CausalMask(shape, offset) if window is None else masks.LocalMask(shape, (window - 1, 0), offset)
    kernel = kernels.make_splash_mha_single_device(
        masks.MultiHeadMask([seen] * heads),
        block_sizes=kernels.BlockSizes(
            **dict.fromkeys(("block_q", "block_kv", "block_kv_compute"), block),
            **dict.fromkeys(
                ("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq", "block_kv_dq"), block
            ),
        ),
        interpret=interpret,
    )
    ids = kernels.SegmentIds(segments[:, offset:], segments)
    return jax.vmap(kernel)(q.swapaxes(1, 2), k, v, ids).swapaxes(1, 2)[:, :length].astype(q.dtype)


def _lengthen(multiple: int, q, k, v, segments) -> list[jax.Array]:
    """The same with T rounded up; what is added is segment 0, as all padding."""
    added = -q.shape[1] % multiple
    pad = lambda x, axis: jnp.pad(x, [(0, added if i == axis else 0) for i in range(x.ndim)])  # noqa: E731
    return [pad(x, axis) for x, axis in ((q, 1), (k, 2), (v, 2), (segments, 1))]


# Kernels for whole sequences, which do not form [T,S]; "xla" takes any mask.
FLASH: dict[str, Callable] = {"cudnn": cudnn_attention, "splash": splash_attention, "blocks": block_attention}
ATTENTION = ("auto", "xla", *FLASH)


NEEDS = {"cudnn": "gpu", "splash": "tpu"}  # the platform of each kernel


def suited(platform: str, dtype: str, head_dim: int) -> str:
    """The backend that suits a platform, "tpu", "gpu" (Ampere or later) or "cpu".

    cuDNN wants 16-bit numbers, splash a head size that fills the lanes of a TPU.
    """
    if platform == "cpu":
        return "blocks"
    if platform == "tpu" and head_dim % 128 == 0:
        return "splash"
    fits = dtype == "bfloat16" and head_dim % 8 == 0 and head_dim <= 128
    return "cudnn" if platform == "gpu" and fits else "xla"


def choose(name: str, dtype: str, head_dim: int) -> str:
    """The backend that "auto" means on the default device, see `suited`; any other name is itself."""
    if name != "auto":
        return name
    platform = jax.default_backend()
    if platform == "gpu":
        # AMD reports a name such as "gfx942" here.
        capability = str(getattr(jax.devices()[0], "compute_capability", None))
        if not (capability.replace(".", "", 1).isdecimal() and float(capability) >= 8):
            return "xla"
    return suited(platform, dtype, head_dim)


def unavailable(name: str, dtype: str) -> str | None:
    """Why an explicitly named backend cannot run on the default device, or None."""
    needs = NEEDS.get(name)
    platform = jax.default_backend()
    if needs and platform != needs:
        return f"{name} attention runs on a {needs.upper()}, and this process computes on {platform}"
    if name == "cudnn" and dtype != "bfloat16":
        return f"cudnn attention computes in bfloat16, not in {dtype}"
    return None


def flash_attention(name: str, q, k, v, segments: jax.Array, window: int | None) -> jax.Array:
    """A kernel of `FLASH` on whole sequences, each device on its own rows, columns and heads of the mesh in scope.

    Args:
      q: [B,T,N,H]; k, v: [B,K,T,H]; segments: [B,T] int32.

    Returns:
      [B,T,N,H].
    """
    kernel = partial(FLASH[name], window=window)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return kernel(q, k, v, segments)
    length, context = q.shape[1], mesh.shape.get("context", 1)
    if context > 1:
        q, k, v, segments = _lengthen(128 * context, q, k, v, segments)
    rows = math.prod(mesh.shape[axis] for axis in BATCH)
    batch = BATCH if q.shape[0] % rows == 0 else None
    parts = mesh.shape["tensor"]
    # Fewer key-value heads than devices: each is repeated until the heads split as the queries do.
    repeats = math.lcm(k.shape[1], parts) // k.shape[1]
    heads = "tensor" if q.shape[2] % (k.shape[1] * repeats) == 0 else None
    if heads and repeats > 1:
        k, v = (jnp.repeat(x, repeats, axis=1) for x in (k, v))
    wide, narrow = P(batch, "context" if context > 1 else None, heads, None), P(batch, heads, None, None)
    # Kernels do not say over which axes their outputs vary, so that is not checked.
    run = jax.shard_map(
        partial(_own_columns, kernel, context),
        in_specs=(wide, narrow, narrow, P(batch, None)),
        out_specs=wide,
        check_vma=False,
    )
    return run(q, k, v, segments)[:, :length]


def _own_columns(kernel: Callable, context: int, q, k, v, segments):
    """This device's run of query columns against all keys up to its last: one compiled branch for each place."""
    if context == 1:
        return kernel(q, k, v, segments)

    def at(place):
        begin, end = place * q.shape[1], (place + 1) * q.shape[1]
        return lambda: kernel(q, k[:, :, :end], v[:, :, :end], segments[:, :end], offset=begin)

    return jax.lax.switch(jax.lax.axis_index("context"), [at(place) for place in range(context)])
