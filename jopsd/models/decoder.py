"""One decoder-only transformer, written once: forward pass, key-value cache, adapters as an argument.

Axes: B batch, T tokens, S cache columns, D model width, N query heads, K key-value heads, H head size, F feed-forward
width, V vocabulary, L layers, R adapter rank.

Layers are stacked along a leading L axis and walked by one `lax.scan`, so that compile time does not grow with depth.
Where layers of two kinds alternate, one step of the scan is one period of the pattern. Families differ in a handful of
fields of `ModelConfig`; what each is called on disk stands in `jopsd.models.families`.
Kernels are stored as [in, out], the transpose of the Hugging Face layout. Modules are plain pytrees: `jax.jit`,
`jax.grad`, `jax.eval_shape`, optax and orbax act on them directly.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jopsd.models.attention import ATTENTION, FLASH, Sight, choose, flash_attention, xla_attention
from jopsd.models.lora import Adapter
from jopsd.models.quantize import kernel_product
from jopsd.models.rope import Scaling, apply_rope, rope_angles
from jopsd.models.sharding import constrain

REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder. Hashable, so it can be a static argument.

    Attributes:
      rope_scaling: how rotary frequencies are stretched; None leaves them.
      qk_norm: norm of queries and keys over each "head" (Qwen3), over the whole "projection" (Olmo 3), or "none".
      norm: where the two norms of a layer stand: "pre", before attention and feed-forward, or "post", on what they add.
      biases: projections that have one, in the order of `projections`.
      pattern: kinds of one period of layers, "full" or "sliding"; its length divides num_layers.
      window: columns that a sliding layer sees, its own included.
      stretch_sliding: whether `rope_scaling` holds for sliding layers too.
      dtype: computation dtype of activations and cache ("bfloat16" or "float32"). Norms, rotary embeddings, attention
        softmax and output logits are float32 whatever it says.
      param_dtype: storage dtype of the parameters.
      remat: what the backward pass recomputes in each layer: "none" keeps all, "dots" keeps matrix products,
        "full" keeps layer inputs only.
      attention: backend by name, see `jopsd.models.attention`; "auto" is what suits the device.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rope_theta: float = 1e6
    rms_eps: float = 1e-6
    tie_embeddings: bool = False
    rope_scaling: Scaling | None = None
    qk_norm: Literal["head", "projection", "none"] = "head"
    norm: Literal["pre", "post"] = "pre"
    biases: tuple[str, ...] = ()
    pattern: tuple[Literal["full", "sliding"], ...] = ("full",)
    window: int | None = None
    stretch_sliding: bool = True
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.remat not in REMAT:
            raise ValueError(f"remat {self.remat!r} is not one of {sorted(REMAT)}")
        if self.attention not in ATTENTION:
            raise ValueError(f"attention {self.attention!r} is not one of {sorted(ATTENTION)}")
        if self.num_layers % len(self.pattern):
            raise ValueError(f"a pattern of {len(self.pattern)} layers does not divide num_layers {self.num_layers}")
        if "sliding" in self.pattern and (self.window is None or self.window < 1):
            raise ValueError(f"sliding layers need a window of at least 1, got {self.window}")

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """Kernel shapes [in, out] of one layer, by name."""
        width, heads, kv = self.hidden_size, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "q": (width, heads),
            "k": (width, kv),
            "v": (width, kv),
            "o": (heads, width),
            "gate": (width, self.intermediate_size),
            "up": (width, self.intermediate_size),
            "down": (self.intermediate_size, width),
        }


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values of every layer, carried through the layer scan and updated in place.

    Attributes:
      k, v: [L,B,K,S,H] in the computation dtype. This axis order is the one XLA writes in place on GPU and TPU.
      segments: [B,S] int32, 0 on columns that hold nothing or padding.
      length: [B] int32, the column each row writes next.
    """

    k: jax.Array
    v: jax.Array
    segments: jax.Array
    length: jax.Array


class _Context(NamedTuple):
    """What all layers of one kind share in one forward pass."""

    cos: jax.Array  # [B,T,1,H/2] float32
    sin: jax.Array
    sight: Sight
    mask: jax.Array | None  # [B,T,S] bool for the backend "xla"; kernels make their own
    backend: str
    start: jax.Array | None  # [B] first cache column to write, None without a cache


def init_cache(cfg: ModelConfig, batch: int, size: int) -> Cache:
    """An empty cache of `size` columns for `batch` rows."""
    shape = (cfg.num_layers, batch, cfg.num_kv_heads, size, cfg.head_dim)
    return Cache(
        k=jnp.zeros(shape, cfg.dtype),
        v=jnp.zeros(shape, cfg.dtype),
        segments=jnp.zeros((batch, size), jnp.int32),
        length=jnp.zeros((batch,), jnp.int32),
    )


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm over the last axis, in float32, returned in x's dtype."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return x32.astype(x.dtype) * scale.astype(x.dtype)


def write_cache(cache: jax.Array, new: jax.Array, layer: jax.Array, start: jax.Array) -> jax.Array:
    """Writes new [B,T,K,H] into cache [L,B,K,S,H] at `layer`, row b from column start[b]."""

    def write_row(row, fresh, column):  # [L,K,S,H], [T,K,H]
        return jax.lax.dynamic_update_slice(row, fresh.swapaxes(0, 1)[None], (layer, 0, column, 0))

    return jax.vmap(write_row, in_axes=(1, 0, 0), out_axes=1)(cache, new.astype(cache.dtype), start)


class Block(nnx.Module):
    """One layer: attention and feed-forward, each with its own norm and inside a residual."""

    def __init__(self, cfg: ModelConfig, key: jax.Array):
        ones = lambda size: nnx.Param(jnp.ones((size,), cfg.param_dtype))  # noqa: E731
        keys = jax.random.split(key, len(cfg.projections))
        for subkey, (name, shape) in zip(keys, cfg.projections.items(), strict=True):
            setattr(self, name, nnx.Param((0.02 * jax.random.normal(subkey, shape)).astype(cfg.param_dtype)))
            if name in cfg.biases:
                setattr(self, f"{name}_bias", nnx.Param(jnp.zeros(shape[1:], cfg.param_dtype)))
        self.attn_norm, self.mlp_norm = ones(cfg.hidden_size), ones(cfg.hidden_size)
        if cfg.qk_norm != "none":
            heads = (cfg.num_heads, cfg.num_kv_heads) if cfg.qk_norm == "projection" else (1, 1)
            self.q_norm, self.k_norm = (ones(n * cfg.head_dim) for n in heads)

    def __call__(self, cfg: ModelConfig, x, kv, layer, adapter, ctx: _Context):
        """x [B,T,D] and the cache pair kv -> the same, one layer further."""

        def project(h, name):
            y = kernel_product(h, getattr(self, name))
            if name in cfg.biases:
                y = y + getattr(self, f"{name}_bias")[...].astype(h.dtype)
            return y if adapter is None else y + adapter.delta(h, name)

        norm = lambda h, scale: rms_norm(h, scale[...], cfg.rms_eps)  # noqa: E731
        before, after = (norm, lambda h, _: h) if cfg.norm == "pre" else (lambda h, _: h, norm)
        attended, kv = self._attend(cfg, before(x, self.attn_norm), kv, layer, project, ctx)
        pin = partial(constrain, kind="activation" if kv is None else "reading")
        x = pin(x + after(project(attended, "o"), self.attn_norm))
        h = before(x, self.mlp_norm)
        h = project(jax.nn.silu(project(h, "gate")) * project(h, "up"), "down")
        return pin(x + after(h, self.mlp_norm)), kv

    def _attend(self, cfg: ModelConfig, h, kv, layer, project, ctx: _Context):
        """What the heads read [B,T,N*H] for h [B,T,D], and the cache pair with this layer's keys and values."""

        def heads_of(name, count):
            y, scale = project(h, name), getattr(self, f"{name}_norm", None)
            if scale is not None:  # over each head, or over all of them at once
                y = rms_norm(y.reshape(*h.shape[:2], -1, scale[...].shape[-1]), scale[...], cfg.rms_eps)
            return y.reshape(*h.shape[:2], count, cfg.head_dim)

        q = apply_rope(heads_of("q", cfg.num_heads), ctx.cos, ctx.sin)
        k = apply_rope(heads_of("k", cfg.num_kv_heads), ctx.cos, ctx.sin)
        v = heads_of("v", cfg.num_kv_heads)
        if kv is None:
            keys, values = k.swapaxes(1, 2), v.swapaxes(1, 2)
        else:
            kv = write_cache(kv[0], k, layer, ctx.start), write_cache(kv[1], v, layer, ctx.start)
            keys, values = kv[0][layer], kv[1][layer]
        if ctx.backend in FLASH:
            attended = flash_attention(ctx.backend, q, keys, values, ctx.sight.segments, ctx.sight.window)
        else:
            if kv is None:
                q, keys, values = constrain(q, "queries"), constrain(keys, "keys"), constrain(values, "keys")
            attended = xla_attention(q, keys, values, ctx.mask)
        return attended.reshape(*h.shape[:2], -1), kv


class Decoder(nnx.Module):
    """A decoder-only language model with an output head that may be the embedding table itself.

    `model.hidden(tokens)` is the base policy (and the fixed teacher); `model.hidden(tokens, adapter=a)` is the policy
    with a LoRA adapter, on the same arrays.
    """

    def __init__(self, cfg: ModelConfig, key: jax.Array):
        embed_key, layer_key, head_key = jax.random.split(key, 3)
        table = lambda k: (0.02 * jax.random.normal(k, (cfg.vocab_size, cfg.hidden_size))).astype(cfg.param_dtype)  # noqa: E731
        self.cfg = nnx.static(cfg)
        self.embed = nnx.Param(table(embed_key))
        self.layers = jax.vmap(partial(Block, cfg))(jax.random.split(layer_key, cfg.num_layers))
        self.final_norm = nnx.Param(jnp.ones((cfg.hidden_size,), cfg.param_dtype))
        self.lm_head = nnx.data(None) if cfg.tie_embeddings else nnx.Param(table(head_key))

    @property
    def head(self) -> jax.Array:
        """Output head [V,D]: the embedding table when tied."""
        return (self.embed if self.lm_head is None else self.lm_head)[...]

    def hidden(
        self,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        adapter: Adapter | None = None,
        cache: Cache | None = None,
    ):
        """Final normalised hidden states.

        Args:
          tokens: [B,T] int32.
          positions: [B,T] rotary positions. Default: counted from each row's first real token.
          segments: [B,T] int32, 0 on padding; a token sees earlier tokens (by column) of its own segment.
            Default: all 1.
          adapter: optional LoRA adapter; None is the base model.
          cache: optional cache. The T new tokens are written from column `cache.length[b]` on and `length` grows by
            the number of tokens that are not padding, so right-padded columns are overwritten by what comes next.

        Returns:
          h [B,T,D] in the computation dtype, or (h, cache) when a cache was given.
        """
        cfg = self.cfg
        segments = jnp.ones_like(tokens) if segments is None else segments
        real = (segments != 0).astype(jnp.int32)
        start = None if cache is None else cache.length
        if positions is None:
            positions = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0) + (0 if start is None else start[:, None])
        column = jnp.arange(tokens.shape[1])[None]
        if cache is None:
            key_segments = segments
        else:
            write = lambda row, fresh, at: jax.lax.dynamic_update_slice(row, fresh, (at,))  # noqa: E731
            key_segments = jax.vmap(write)(cache.segments, segments.astype(jnp.int32), start)
            column = column + start[:, None]
        contexts = {
            kind: _context(cfg, kind, positions, Sight(segments, key_segments, column), start)
            for kind in sorted(set(cfg.pattern))
        }
        table = constrain(self.embed[...], "lookup")
        x = constrain(table[tokens].astype(cfg.dtype), "activation" if cache is None else "reading")
        kv = None if cache is None else (cache.k, cache.v)
        x, kv = self._walk(x, kv, adapter, contexts)
        h = rms_norm(x, self.final_norm[...], cfg.rms_eps)
        if cache is None:
            return h
        return h, Cache(*kv, segments=key_segments, length=start + real.sum(axis=1))

    def _walk(self, x, kv, adapter, contexts: dict[str, _Context]):
        """x [B,T,D] and the cache pair through all layers: a scan whose steps are periods of the pattern."""
        cfg, period = self.cfg, len(self.cfg.pattern)

        def one_layer(context):
            def run(x, kv, index, block, adapter):
                return block(cfg, x, kv, index, adapter, context)

            if REMAT[cfg.remat] is None or kv is not None:
                return run
            return jax.checkpoint(run, policy=REMAT[cfg.remat], prevent_cse=False)

        layers = [one_layer(contexts[kind]) for kind in cfg.pattern]

        def one_period(carry, group):
            x, kv = carry
            for place, run in enumerate(layers):
                part = group if period == 1 else jax.tree.map(lambda leaf: leaf[place], group)  # noqa: B023
                x, kv = run(x, kv, *part)
            return (x, kv), None

        stacked = (jnp.arange(cfg.num_layers), self.layers, adapter)
        if period > 1:
            stacked = jax.tree.map(lambda leaf: leaf.reshape(-1, period, *leaf.shape[1:]), stacked)
        return jax.lax.scan(one_period, (x, kv), stacked)[0]

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Logits [...,V] in float32 from hidden states [...,D]."""
        return jnp.einsum("...d,vd->...v", hidden, self.head.astype(hidden.dtype), preferred_element_type=jnp.float32)


def _context(cfg: ModelConfig, kind: str, positions: jax.Array, sight: Sight, start) -> _Context:
    """What layers of a kind share: rotary angles for positions [B,T], and how they attend."""
    scaling = cfg.rope_scaling if kind == "full" or cfg.stretch_sliding else None
    cos, sin = rope_angles(positions, cfg.head_dim, cfg.rope_theta, scaling)
    sight = sight._replace(window=cfg.window if kind == "sliding" else None)
    # The kernels are for whole sequences; reading a cache is bound by memory, and XLA does that well.
    backend = "xla" if start is not None else choose(cfg.attention, cfg.dtype, cfg.head_dim)
    mask = None if backend in FLASH else sight.mask()
    if mask is not None and start is None:
        mask = constrain(mask, "sight")
    return _Context(cos, sin, sight, mask, backend, start)


def parameter_count(cfg: ModelConfig) -> int:
    """Number of parameters of a decoder of this shape, without allocating it."""
    shapes = jax.eval_shape(lambda: Decoder(cfg, jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
