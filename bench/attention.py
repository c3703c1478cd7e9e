"""The flash attention of this device against plain XLA: errors, time and temporary memory.

    python -m bench.attention [--lengths 1024,4096 --rows 2 --heads 16 --kv-heads 8 --head-dim 128 --rounds 7]

One process; the kernel (cuDNN on a GPU, splash on a TPU) and XLA are compiled once and called in turn, values and
gradients, in bfloat16: read the ratios. Errors are against XLA in float32, as the largest absolute difference over the
largest absolute value. Rows are padded on the left, hold two packed sequences, and one case has a window.
"""

import argparse
import statistics
import sys
import time

import jax
import jax.numpy as jnp

from jopsd.models.attention import FLASH, Sight, choose, flash_attention, xla_attention

WINDOW = 512
KERNELS = {"gpu": "cudnn", "tpu": "splash"}


def make_inputs(rows: int, length: int, heads: int, kv_heads: int, size: int, key: jax.Array):
    """(q [B,T,N,H], k, v [B,K,T,H], cotangent [B,T,N,H]) in float32 and segments [B,T]."""
    shapes = [(rows, length, heads, size), *[(rows, kv_heads, length, size)] * 2, (rows, length, heads, size)]
    arrays = [jax.random.normal(k, shape) for k, shape in zip(jax.random.split(key, 4), shapes, strict=True)]
    column, padding = jnp.arange(length), length // 8 * jnp.arange(rows)[:, None] // rows
    return *arrays, jnp.where(column < padding, 0, jnp.where(column < length // 2, 1, 2))


def attend(name: str, window: int | None):
    """`(q, k, v, cotangent, segments) -> (values, gradients)`, with what is at padding left out."""

    def attention(q, k, v, segments):
        if name == "xla":
            mask = Sight(segments, segments, jnp.arange(q.shape[1])[None], window).mask()
            return xla_attention(q, k, v, mask)
        return flash_attention(name, q, k, v, segments, window)

    def both(q, k, v, cotangent, segments):
        real = (segments != 0)[..., None, None]
        out, pull = jax.vjp(lambda *qkv: jnp.where(real, attention(*qkv, segments), 0), q, k, v)
        return out, *pull(cotangent.astype(out.dtype))

    return jax.jit(both)


def error(found: jax.Array, exact: jax.Array) -> float:
    exact = exact.astype(jnp.float32)
    return float(jnp.abs(found.astype(jnp.float32) - exact).max() / jnp.abs(exact).max())


def compare(kernel: str, length: int, window: int | None, args: argparse.Namespace) -> str:
    """One row of the table."""
    *arrays, segments = make_inputs(args.rows, length, args.heads, args.kv_heads, args.head_dim, jax.random.key(0))
    exact = attend("xla", window)(*arrays, segments)
    half = [array.astype(jnp.bfloat16) for array in arrays]
    compiled = {name: attend(name, window).lower(*half, segments).compile() for name in (kernel, "xla")}
    outputs = {name: run(*half, segments) for name, run in compiled.items()}
    worst = {
        name: [error(found, right) for found, right in zip(out, exact, strict=True)] for name, out in outputs.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in compiled}
    for turn in range(args.rounds):
        for name in sorted(compiled, reverse=turn % 2 == 1):
            start = time.perf_counter()
            for _ in range(args.calls):
                out = compiled[name](*half, segments)
            jax.block_until_ready(out)
            seconds[name].append((time.perf_counter() - start) / args.calls)
    ratio = statistics.median(ours / theirs for ours, theirs in zip(seconds[kernel], seconds["xla"], strict=True))
    memory = {name: run.memory_analysis().temp_size_in_bytes for name, run in compiled.items()}
    errors = " | ".join(f"{max(worst[name][:1]):.1e}, {max(worst[name][1:]):.1e}" for name in (kernel, "xla"))
    milliseconds = 1e3 * statistics.median(seconds[kernel])
    return (
        f"| {length} | {window or 'none'} | {errors} | {ratio:.2f} ({milliseconds:.2f} ms) | "
        f"{memory[kernel] / max(memory['xla'], 1):.2f} ({memory[kernel] / 2**20:.0f} MiB) |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", default="1024,4096")
    for name, default in (("rows", 2), ("heads", 16), ("kv-heads", 8), ("head-dim", 128), ("rounds", 7), ("calls", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    kernel = KERNELS.get(jax.default_backend())
    if kernel not in FLASH or choose("auto", "bfloat16", args.head_dim) != kernel:
        print(f"no flash attention for {jax.devices()[0].device_kind}: run this on a GPU (Ampere or later) or a TPU")
        return 1
    print(f"{kernel} on {jax.devices()[0].device_kind}: values and gradients, bfloat16\n")
    print(
        f"| tokens | window | errors of {kernel}: values, gradients | of xla in bfloat16 | time over xla's | memory |"
    )
    print("|---|---|---|---|---|---|")
    for length in map(int, args.lengths.split(",")):
        for window in (None, WINDOW):
            print(compare(kernel, length, window, args), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
