"""One decoder-only transformer, written once: whole sequences, the next tokens of paged ones, adapters as an argument.

Axes: B batch, T tokens, R rows of a sampler, D model width, N query heads, K key-value heads, H head size,
F feed-forward width, V vocabulary, L layers, R adapter rank.

Layers are stacked along a leading L axis and walked by one `lax.scan`, so that compile time does not grow with depth.
Where layers of two kinds alternate, one step of the scan is one period of the pattern. Families differ in a handful of
fields of `ModelConfig`; what each is called on disk stands in `jopsd.models.families`.
Kernels are stored as [in, out], the transpose of the Hugging Face layout. Modules are plain pytrees: `jax.jit`,
`jax.grad`, `jax.eval_shape`, optax and orbax act on them directly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jopsd.models import blocks
from jopsd.models.attention import ATTENTION, FLASH, NEEDS, Sight, choose, flash_attention, xla_attention
from jopsd.models.lora import Adapter
from jopsd.models.pages import Pages, Span, write
from jopsd.models.pages import attend as read_pages
from jopsd.models.products import along, by_layer, kernel_product, look_up, stacked_part, with_turned
from jopsd.models.rope import Scaling, apply_rope, rope_angles
from jopsd.models.sharding import constrain

REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.save_only_these_names("projection", blocks.KEPT),
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


class _Context(NamedTuple):
    """What all layers of one kind share in one forward pass.

    Attributes:
      cos, sin: rotary angles, [B,T,1,H/2] or where features come first [1,H/2,R,T]; float32.
      attend: (q, k, v, layer within its kind, pages) -> (what the heads read, pages). pages is None in training.
      features: axis of an activation's features: -1 in training [B,T,D], 0 while sampling [D,R,T].
    """

    cos: jax.Array
    sin: jax.Array
    attend: Callable
    features: int


def rms_norm(x: jax.Array, scale: jax.Array, eps: float, axis: int = -1) -> jax.Array:
    """Root-mean-square norm over an axis, in float32, returned in x's dtype."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=axis, keepdims=True) + eps)
    return x32.astype(x.dtype) * along(scale, axis, x.ndim).astype(x.dtype)


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

    def __call__(self, cfg: ModelConfig, x, pages, layer, adapter, ctx: _Context):
        """x, [B,T,D] or [D,R,T], and the pages of this kind of layer -> the same, one layer further."""
        own = self, adapter
        with jax.named_scope("queries"):
            q, k, v = by_layer(lambda own, x: own[0]._queries(cfg, x, own[1], ctx), own, x)
        with jax.named_scope("attention"):
            attended, pages = ctx.attend(q, k, v, layer, pages)
        with jax.named_scope("feed_forward"):
            x = by_layer(lambda own, x, read: own[0]._close(cfg, x, read, own[1], ctx), own, x, attended)
        return x, pages

    def _project(self, cfg: ModelConfig, h, names: Sequence[str], adapter, axis: int) -> list[jax.Array]:
        """Several projections of h: [...,in] -> [...,out] each, or [in,...] -> [out,...]."""
        lowered, made = adapter.lowered(h, names, axis) if adapter is not None else {}, []
        for name in names:
            y = kernel_product(h, getattr(self, name), axis)
            if name in cfg.biases:
                y = y + along(getattr(self, f"{name}_bias")[...], axis, y.ndim).astype(h.dtype)
            if name in lowered:
                y = y + adapter.raised(lowered[name], name, axis)
            made.append(checkpoint_name(y, "projection"))
        return made

    def _queries(self, cfg: ModelConfig, x, adapter, ctx: _Context):
        """Queries, keys and values: [B,T,heads,H] or [heads,H,R,T]."""
        axis = ctx.features
        h = rms_norm(x, self.attn_norm[...], cfg.rms_eps, axis) if cfg.norm == "pre" else x
        projected = dict(zip("qkv", self._project(cfg, h, ("q", "k", "v"), adapter, axis), strict=True))

        def split(y, *sizes):  # features into several axes
            return y.reshape(*y.shape[:-1], *sizes) if axis == -1 else y.reshape(*sizes, *y.shape[1:])

        def heads_of(name, count):
            y, scale = projected[name], getattr(self, f"{name}_norm", None)
            if scale is not None:  # over each head, or over all of them at once
                y = rms_norm(split(y, -1, scale[...].shape[-1]), scale[...], cfg.rms_eps, -1 if axis == -1 else 1)
                y = y.reshape(*h.shape[:2], -1) if axis == -1 else y.reshape(-1, *h.shape[1:])
            return split(y, count, cfg.head_dim)

        turn = lambda y: apply_rope(y, ctx.cos, ctx.sin, -1 if axis == -1 else 1)  # noqa: E731
        q, k = turn(heads_of("q", cfg.num_heads)), turn(heads_of("k", cfg.num_kv_heads))
        return q, k, heads_of("v", cfg.num_kv_heads)

    def _close(self, cfg: ModelConfig, x, read, adapter, ctx: _Context):
        """x after this layer, from what its heads read: [B,T,N,H] or [N,H,R,T]."""
        axis = ctx.features
        project = partial(self._project, cfg, adapter=adapter, axis=axis)
        norm = lambda h, scale: rms_norm(h, scale[...], cfg.rms_eps, axis)  # noqa: E731
        before, after = (norm, lambda h, _: h) if cfg.norm == "pre" else (lambda h, _: h, norm)
        pin = partial(constrain, kind="activation" if axis == -1 else "reading")
        merged = read.reshape(*x.shape[:2], -1) if axis == -1 else read.reshape(-1, *x.shape[1:])
        (o,) = project(merged, ("o",))
        x = pin(x + after(o, self.attn_norm))
        gate, up = project(before(x, self.mlp_norm), ("gate", "up"))
        (h,) = project(jax.nn.silu(gate) * up, ("down",))
        return pin(x + after(h, self.mlp_norm))


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
    ) -> jax.Array:
        """Final normalised hidden states of whole sequences.

        Args:
          tokens: [B,T] int32.
          positions: [B,T] rotary positions. Default: counted from each row's first real token.
          segments: [B,T] int32, 0 on padding; a token sees earlier tokens (by column) of its own segment.
            Default: all 1.
          adapter: optional LoRA adapter; None is the base model.

        Returns:
          [B,T,D] in the computation dtype.
        """
        cfg = self.cfg
        segments = jnp.ones_like(tokens) if segments is None else segments
        if positions is None:
            positions = jnp.maximum(jnp.cumsum((segments != 0).astype(jnp.int32), axis=1) - 1, 0)
        contexts = {kind: _whole(cfg, kind, positions, segments) for kind in sorted(set(cfg.pattern))}
        table = constrain(self.embed[...], "lookup")
        x = constrain(table[tokens].astype(cfg.dtype), "activation")
        x, _ = self._walk(x, dict.fromkeys(contexts), adapter, contexts)
        return rms_norm(x, self.final_norm[...], cfg.rms_eps)

    def read(
        self, tokens: jax.Array, span: dict[str, Span], pages: dict[str, Pages], adapter: Adapter | None = None
    ) -> tuple[jax.Array, dict[str, Pages]]:
        """Final normalised hidden states of the next tokens of sequences whose earlier ones are in pages.

        Args:
          tokens: [R,T] int32, T new tokens of R rows.
          span: where they stand, by kind of layer; kinds differ in their tables only.
          pages: by kind of layer. Donate them: they are written in place.

        Returns:
          [D,R,T] in the computation dtype, and the pages with the new tokens in them. Features come first, so that a
          product with a kernel needs no transpose on CPU.
        """
        cfg = self.cfg
        positions = next(iter(span.values())).start[:, None] + jnp.arange(tokens.shape[1])
        contexts = {kind: _paged(cfg, kind, positions, span[kind]) for kind in pages}
        table = constrain(self.embed[...], "lookup")
        x = constrain(jnp.moveaxis(look_up(table, tokens).astype(cfg.dtype), -1, 0), "reading")
        x, pages = self._walk(x, pages, adapter, contexts)
        return rms_norm(x, self.final_norm[...], cfg.rms_eps, 0), pages

    def _walk(self, x, pages: dict, adapter, contexts: dict[str, _Context]):
        """x and the pages through all layers: a scan whose steps are periods of the pattern."""
        cfg, period = self.cfg, len(self.cfg.pattern)
        ranks = [cfg.pattern[:place].count(kind) for place, kind in enumerate(cfg.pattern)]  # within its kind

        def one_layer(x, pages, number, place, block, adapter):
            kind = cfg.pattern[place]
            run = lambda x, held, layer, block, adapter: block(cfg, x, held, layer, adapter, contexts[kind])  # noqa: E731
            if REMAT[cfg.remat] is not None and pages[kind] is None:
                run = jax.checkpoint(run, policy=REMAT[cfg.remat], prevent_cse=False)
            layer = number * cfg.pattern.count(kind) + ranks[place]
            x, held = run(x, pages[kind], layer, block, adapter)
            return x, pages | {kind: held}

        def one_period(carry, group):
            x, pages = carry
            number, part = group
            for place in range(period):
                own = part if period == 1 else jax.tree.map(lambda leaf: leaf[place], part)  # noqa: B023
                own = with_turned(own, (self.layers, adapter), number * period + place)
                x, pages = one_layer(x, pages, number, place, *own)
            return (x, pages), None

        stacked = stacked_part((self.layers, adapter))
        if period > 1:
            stacked = jax.tree.map(lambda leaf: leaf.reshape(-1, period, *leaf.shape[1:]), stacked)
        return jax.lax.scan(one_period, (x, pages), (jnp.arange(cfg.num_layers // period), stacked))[0]

    def unembed(self, hidden: jax.Array, features: int = -1) -> jax.Array:
        """Logits in float32 from hidden states: [...,D] -> [...,V], or with features 0 [D,...] -> [V,...]."""
        axes = "...d,vd->...v" if features == -1 else "vd,d...->v..."
        operands = (hidden, self.head.astype(hidden.dtype))
        return jnp.einsum(axes, *operands[:: 1 if features == -1 else -1], preferred_element_type=jnp.float32)


def _angles(cfg: ModelConfig, kind: str, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    scaling = cfg.rope_scaling if kind == "full" or cfg.stretch_sliding else None
    return rope_angles(positions, cfg.head_dim, cfg.rope_theta, scaling)


def _whole(cfg: ModelConfig, kind: str, positions: jax.Array, segments: jax.Array) -> _Context:
    """How layers of a kind attend over whole sequences [B,T]."""
    window = cfg.window if kind == "sliding" else None
    backend = choose(cfg.attention, cfg.dtype, cfg.head_dim)
    mask = None
    if backend not in FLASH:
        column = jnp.arange(segments.shape[1])[None]
        mask = constrain(Sight(segments, segments, column, window).mask(), "sight")

    def attend(q, k, v, _, pages):
        keys, values = k.swapaxes(1, 2), v.swapaxes(1, 2)
        if mask is None:
            return flash_attention(backend, q, keys, values, segments, window), pages
        q, keys, values = constrain(q, "queries"), constrain(keys, "keys"), constrain(values, "keys")
        return xla_attention(q, keys, values, mask), pages

    return _Context(*_angles(cfg, kind, positions), attend, -1)


def _paged(cfg: ModelConfig, kind: str, positions: jax.Array, span: Span) -> _Context:
    """How layers of a kind attend from new tokens [R,T] to pages."""
    window = cfg.window if kind == "sliding" else None
    backend = choose(cfg.attention, cfg.dtype, cfg.head_dim)

    mesh = jax.sharding.get_abstract_mesh()
    flash = backend in NEEDS and positions.shape[1] > 1 and mesh.shape.get("context", 1) == 1

    def attend(q, k, v, layer, pages):
        pages = write(pages, layer, k, v, span)
        walk = lambda: read_pages(q, pages, layer, span, window, backend)  # noqa: E731
        if not flash:
            return walk(), pages

        def own():  # a prompt's first piece sees its own tokens only
            segments = (jnp.arange(q.shape[3]) < span.count[:, None]).astype(jnp.int32)
            keys, values = (x.transpose(2, 0, 3, 1) for x in (k, v))
            read = flash_attention(backend, q.transpose(2, 3, 0, 1), keys, values, segments, window)
            return read.transpose(2, 3, 0, 1)

        return jax.lax.cond((span.start == 0).all(), own, walk), pages

    first = lambda angle: jnp.moveaxis(angle, (2, 3), (0, 1))  # noqa: E731
    return _Context(*map(first, _angles(cfg, kind, positions)), attend, 0)


def parameter_count(cfg: ModelConfig) -> int:
    """Number of parameters of a decoder of this shape, without allocating it."""
    shapes = jax.eval_shape(lambda: Decoder(cfg, jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
