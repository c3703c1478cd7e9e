"""The product of activations with a kernel, in each form a kernel may be stored in.

Training has [in,out] kernels, stacked over layers. A sampler on CPU has them `Turned`: a layer that is sliced out of a
stack is copied for every token, bfloat16 ones even widened, and of the four ways to lay out a product of a kernel with
few columns the fastest there is [out,in] times [in,columns].
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from jopsd.models.quantize import Int8


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Turned:
    """The kernels of all layers as arrays of their own.

    Attributes:
      values: one [out,in] per layer.
      layer: which of them a layer takes, int32; None outside the walk over layers.
    """

    values: tuple[jax.Array, ...]
    layer: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bits:
    """Stacked bfloat16 kernels that are not trained, as bits: XLA's CPU compiler would widen the stack for a slice.

    Attributes:
      value: uint16, in the shape of the kernels.
    """

    value: jax.Array


def along(vector: jax.Array, axis: int, ndim: int) -> jax.Array:
    """vector [D] shaped so that it broadcasts along one axis of an array of `ndim` axes."""
    shape = [1] * ndim
    shape[axis] = -1
    return vector.reshape(shape)


def kernel_product(h: jax.Array, kernel, features: int = -1) -> jax.Array:
    """The product of h with a kernel, in h's dtype.

    Args:
      h: [...,in], or with features 0 [in,...].
      kernel: [in,out] as a parameter or array, `Int8`, or `Turned` of one layer, which wants features 0.

    Returns:
      [...,out], or with features 0 [out,...].
    """
    if isinstance(kernel, Int8):
        scale = kernel.scale[0] if features == -1 else along(kernel.scale[0], 0, h.ndim)
        return (_product(h, kernel.value.astype(h.dtype), features, 0, jnp.float32) * scale).astype(h.dtype)
    if isinstance(kernel, Turned):
        # Asked for float32, the CPU multiplies with its bfloat16 units; asked for bfloat16, XLA widens the kernel.
        (kernel,) = kernel.values
        product = _product(h.reshape(h.shape[0], -1), kernel, features, 1, jnp.float32)
        return product.astype(h.dtype).reshape(-1, *h.shape[1:])
    bits = isinstance(kernel, Bits)
    kernel = (jax.lax.bitcast_convert_type(kernel.value, jnp.bfloat16) if bits else kernel[...]).astype(h.dtype)
    return _trained_product(h, kernel) if features == -1 else _product(h, kernel, features, 0, None)


@jax.custom_vjp
def _trained_product(h: jax.Array, kernel: jax.Array) -> jax.Array:
    """h [...,in] times kernel [in,out], in h's dtype."""
    return _rounded(h, kernel, ((h.ndim - 1,), (0,)))


def _product_forward(h, kernel):
    return _trained_product(h, kernel), (h, kernel)


def _product_backward(saved, g):
    h, kernel = saved
    rows = tuple(range(h.ndim - 1))
    if h.shape[-1] <= g.shape[-1]:
        dk = _rounded(_settled(h), g, (rows, rows))
    else:
        dk = _rounded(_settled(g), h, (rows, rows)).T
    return _rounded(g, kernel, ((g.ndim - 1,), (1,))), dk


_trained_product.defvjp(_product_forward, _product_backward)


def _settled(x):
    return jax.lax.optimization_barrier(x)


def _rounded(a: jax.Array, b: jax.Array, contract) -> jax.Array:
    """A product over the axes `contract` of each operand, in a's dtype.

    Asked for float32, the CPU multiplies with its bfloat16 units; asked for bfloat16, XLA widens the operands there.
    Elsewhere the sums that cross devices stay in 16 bits.
    """
    plain = lambda a, b: jax.lax.dot_general(a, b, (contract, ((), ())))  # noqa: E731
    if a.dtype != jnp.bfloat16:
        return plain(a, b)
    wide = lambda a, b: jax.lax.dot_general(a, b, (contract, ((), ())), preferred_element_type=jnp.float32)  # noqa: E731
    return jax.lax.platform_dependent(a, b, cpu=lambda a, b: wide(a, b).astype(a.dtype), default=plain)


def _product(h: jax.Array, kernel: jax.Array, features: int, into: int, dtype) -> jax.Array:
    """into: the kernel's axis that h's features are summed along."""
    if features == -1:
        return jax.lax.dot_general(h, kernel, (((h.ndim - 1,), (into,)), ((), ())), preferred_element_type=dtype)
    return jax.lax.dot_general(kernel, h, (((into,), (0,)), ((), ())), preferred_element_type=dtype)


def look_up(table: jax.Array, rows: jax.Array) -> jax.Array:
    """Rows of an embedding table [V,D]: [...,D]; of bfloat16 that is stored as uint16 bits, bfloat16."""
    found = table[rows]
    return jax.lax.bitcast_convert_type(found, jnp.bfloat16) if table.dtype == jnp.uint16 else found


def _is_turned(x) -> bool:
    return isinstance(x, Turned)


def stacked_part(tree):
    """The arrays of a tree that have a layer axis: all but what is `Turned`."""
    return jax.tree.map(lambda x: None if _is_turned(x) else x, tree, is_leaf=_is_turned)


def with_turned(part, tree, layer: jax.Array):
    """One layer's slice of `stacked_part(tree)`, and with it what is `Turned` in the tree, set to that layer."""
    join = lambda whole, slice: replace(whole, layer=layer) if _is_turned(whole) else slice  # noqa: E731
    return jax.tree.map(join, tree, part, is_leaf=_is_turned)


def by_layer(run: Callable, tree, *arrays: jax.Array):
    """run(tree, *arrays); where kernels are `Turned`, in a branch for each layer that reads them where they lie.

    A branch costs some 40 microseconds on CPU, so that a layer takes few of them.
    """
    turned = next((x for x in jax.tree.leaves(tree, is_leaf=_is_turned) if _is_turned(x)), None)
    if turned is None:
        return run(tree, *arrays)

    def branch(layer: int) -> Callable:
        one = lambda x: Turned(x.values[layer : layer + 1]) if _is_turned(x) else x  # noqa: E731
        return partial(run, jax.tree.map(one, tree, is_leaf=_is_turned))

    return jax.lax.switch(turned.layer, [branch(layer) for layer in range(len(turned.values))], *arrays)


@jax.jit
def _turn(stack: jax.Array, layer: jax.Array, like: jax.Array) -> jax.Array:
    return stack[layer].T.astype(like.dtype)


def turn(stack: jax.Array, dtype: str) -> Turned:
    """Kernels [L,in,out] in the form `Turned` and in `dtype`: a copy."""
    like = jnp.zeros((), dtype)
    return Turned(tuple(_turn(stack, layer, like) for layer in range(len(stack))))


def turned_model(model, dtype: str):
    """A decoder with its kernels `Turned`, for drawing on one CPU.

    Head and embedding are in `dtype` too, the embedding as bits where XLA's CPU compiler would widen the whole table
    for a lookup. Norms, biases and `Int8` kernels are as they were.
    """
    model = jax.tree.map(lambda leaf: leaf, model)  # modules are mutable: change a copy
    for name in model.cfg.projections:
        if not isinstance(getattr(model.layers, name), Int8):
            setattr(model.layers, name, nnx.data(turn(getattr(model.layers, name)[...], dtype)))
    head, embed = model.head.astype(dtype), model.embed[...].astype(dtype)
    bits = dtype == "bfloat16"
    model.embed = nnx.Param(jax.lax.bitcast_convert_type(embed, jnp.uint16) if bits else embed)
    if bits or model.lm_head is not None:
        model.lm_head = nnx.data(nnx.Param(head))
    return model


def frozen_model(model):
    """A decoder with its bfloat16 kernels as `Bits`: for a model that is not trained, inside a program for a CPU."""
    model = jax.tree.map(lambda leaf: leaf, model)
    for name in model.cfg.projections:
        kernel = getattr(model.layers, name)
        if not isinstance(kernel, Int8) and kernel[...].dtype == jnp.bfloat16:
            setattr(model.layers, name, nnx.data(Bits(jax.lax.bitcast_convert_type(kernel[...], jnp.uint16))))
    return model


def turned_adapter(adapter, dtype: str):
    """An adapter in the form that goes with `turned_model`."""
    sides = ({name: turn(stack, dtype) for name, stack in side.items()} for side in (adapter.a, adapter.b))
    return type(adapter)(*sides, adapter.scale)
