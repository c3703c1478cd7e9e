"""Measures decoding, prefill, the update and attention on one GPU against what the GPU can do. Not yet run on a GPU.

    python -m bench.gpu [--parts limits decode update attention] [--quick]

The model has the shape of Qwen3-1.7B and random weights in bfloat16. One JSON line per number, as soon as it is known:

- limits: bytes per second of a copy and FLOP/s of a large product, both measured here; the rest is held to them.
- decode: ms per step with 2,048 live columns per row, from the time of 65 new tokens less that of one, through the
  sampler itself, host included. Its bound reads weights and live cache once. Prefill: tokens per second of prompts.
- update: of `jopsd.step` (OPSD, fixed teacher), all parameters and LoRA. FLOPs are those of matrix products in forward
  and backward passes; what is computed again for memory's sake does not count.
- attention: values and gradients by the device's kernel and by XLA.

Meant to end within 8 minutes with 80 GB of memory; `--quick` is a toy that runs anywhere. A part that fails says so in
a line of its own and the next one begins; none begins after `--minutes`.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from bench.attention import KERNELS, attend, make_inputs
from jopsd.batch import TrainBatch, View
from jopsd.mesh import make_mesh
from jopsd.methods import Opsd
from jopsd.models.attention import choose
from jopsd.models.decoder import Decoder, ModelConfig
from jopsd.models.lora import TARGETS, init_adapter
from jopsd.optimizer import make_optimizer
from jopsd.plan.flops import forward, trained
from jopsd.sampling import CHUNK, Policy, Request, SamplingParams, make_sampler
from jopsd.schema import Optimizer
from jopsd.step import StepOptions, init_state, make_update
from jopsd.teachers import Models, TeacherRule

HALF = {"dtype": "bfloat16", "param_dtype": "bfloat16"}
QWEN3 = ModelConfig(151936, 2048, 28, 16, 8, 128, 6144, tie_embeddings=True, **HALF)
TOY = ModelConfig(512, 64, 2, 2, 1, 32, 128, tie_embeddings=True, **HALF)
# copied: bytes. product: side of the matrices. rows: of decoding. rank: of LoRA; of the update: rows and tokens of a
# prompt and of a completion. lengths: of attention.
FULL = SimpleNamespace(cfg=QWEN3, copied=2**32, product=8192, rows=(32, 128), live=2048, new=65, repeats=3, rank=64,
                       update=(8, 1024), micro=2, attention=(2, 16, 8, 128), lengths=(1024, 4096))  # fmt: skip
QUICK = SimpleNamespace(cfg=TOY, copied=2**20, product=128, rows=(2, 4), live=48, new=9, repeats=2, rank=4,
                        update=(4, 32), micro=2, attention=(2, 2, 1, 32), lengths=(64,))  # fmt: skip


def emit(number: str, value: float, unit: str, **more) -> None:
    kind = jax.devices()[0].device_kind
    more = {key: round(x, 4) if isinstance(x, float) else x for key, x in more.items()}
    print(
        json.dumps({"name": "gpu", "number": number, "value": value, "unit": unit, **more, "device": kind}), flush=True
    )


def median_seconds(run: Callable[[], object], repeats: int, calls: int = 1) -> float:
    """Of one call. The first compiles and is not counted."""
    jax.block_until_ready(run())
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            out = run()
        jax.block_until_ready(out)
        taken.append((time.perf_counter() - start) / calls)
    return statistics.median(taken)


def limits(size: SimpleNamespace) -> tuple[float, float]:
    """(bytes per second of a copy, FLOP/s of a product in bfloat16)."""
    array = jnp.zeros(size.copied // 2, jnp.bfloat16)
    bandwidth = 2 * size.copied / median_seconds(lambda: copied(array), 5, calls=10)
    n = size.product
    left, right = (jax.random.normal(jax.random.key(i), (n, n), jnp.bfloat16) for i in (0, 1))
    product = jax.jit(jnp.matmul)
    return bandwidth, 2 * n**3 / median_seconds(lambda: product(left, right), 5, calls=10)


copied = jax.jit(lambda x: x + jnp.bfloat16(1))


def decode(size: SimpleNamespace, bandwidth: float, peak: float) -> None:
    cfg = size.cfg
    model = jax.jit(lambda: Decoder(cfg, jax.random.key(0)))()
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
    columns = 2 * cfg.num_layers * cfg.num_kv_heads * cfg.head_dim * 2  # bytes of one, keys and values
    prompt = size.live - size.new // 2  # so that the mean step reads `live` columns
    for rows in size.rows:
        # One more than is needed: where lengths are rounded up to pages or blocks, none is left out.
        sampler = make_sampler("loop", cfg, Policy(model, None), rows, prompt + size.new + 1, CHUNK)
        draw = lambda new, number: drawn(sampler, cfg, rows, prompt, new, number)  # noqa: E731, B023
        draw(1, 0), draw(size.new, 1)  # compiles
        first, last = (
            min(draw(new, 2 + 2 * i + k) for i in range(size.repeats)) for k, new in enumerate((1, size.new))
        )
        sampler.close()
        step = (last - first) / (size.new - 1)
        bound = (weights + rows * size.live * columns) / bandwidth
        more = {"rows": rows, "live_columns": size.live, "peak_gb": peak_gb()}
        emit("decode step", 1e3 * step, "ms", bound_ms=1e3 * bound, bound_over_time=bound / step, **more)
        work = rows * forward(replace(cfg, attention=choose("auto", cfg.dtype, cfg.head_dim)), prompt)
        emit(
            "prefill", rows * prompt / first, "tokens/s", mfu=work / first / peak, seconds=first, prompt=prompt, **more
        )


def drawn(sampler, cfg: ModelConfig, rows: int, prompt: int, new: int, number: int) -> float:
    """Seconds of `new` tokens for every row, each with a prompt of its own that was not read before."""
    prompts = np.random.default_rng(number).integers(0, cfg.vocab_size, (rows, prompt))
    requests = [Request(tuple(ids.tolist()), 1, number, SamplingParams(new), i) for i, ids in enumerate(prompts)]
    start = time.perf_counter()
    count = sum(len(completion.completion_ids) for completion in sampler.sample(requests))
    if count != rows * new:
        raise ValueError(f"{count} tokens were drawn, not {rows * new}")
    return time.perf_counter() - start


def peak_gb() -> float | None:
    """The most memory in use so far, where the device says."""
    return ((jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use") or 0) / 1e9 or None


def update(size: SimpleNamespace, bandwidth: float, peak: float, lora: bool, remat: str) -> None:
    """One update of a model of random weights on random rows, prompt and completion of equal length."""
    rows, tokens = size.update
    cfg = replace(size.cfg, remat=remat, param_dtype="bfloat16" if lora else "float32")
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    base = jax.jit(lambda: Decoder(replace(cfg, param_dtype="bfloat16"), jax.random.key(0)))()
    adapter = lambda: init_adapter(cfg.projections, cfg.num_layers, size.rank, 2.0 * size.rank, jax.random.key(1))  # noqa: E731
    optimizer, _ = make_optimizer(Optimizer(), 100)
    state = init_state(jax.jit(adapter if lora else lambda: Decoder(cfg, jax.random.key(0)))(), optimizer, mesh)
    ids = lambda width: jax.random.randint(jax.random.key(width), (rows, width), 0, cfg.vocab_size)  # noqa: E731
    view = View(ids(2 * tokens), jnp.ones((rows, 2 * tokens), jnp.int32))
    batch = TrainBatch(ids(tokens), jnp.ones((rows, tokens), jnp.int32), {"student": view, "teacher": view})
    options = StepOptions(Opsd(), TeacherRule("fixed"), size.micro, 1.0)
    seconds = []
    with jax.set_mesh(mesh):
        run = make_update(options, optimizer, mesh, state)
        for _ in range(size.repeats + 1):
            start = time.perf_counter()
            state, metrics = jax.block_until_ready(run(state, Models(base=base), batch))
            seconds.append(time.perf_counter() - start)
    if metrics["nonfinite"]:
        raise ValueError(f"the update was not finite: {metrics}")
    counted = replace(cfg, remat="none", attention=choose("auto", cfg.dtype, cfg.head_dim))
    targets = SimpleNamespace(rank=size.rank, targets=TARGETS) if lora else None
    head = tokens * 2 * cfg.vocab_size * cfg.hidden_size
    work = trained(counted, 2 * tokens, targets) + forward(counted, 2 * tokens) + head * (3 if lora else 4)
    taken = statistics.median(seconds[1:])
    more = {"rows": rows, "tokens": tokens, "remat": remat, "first_seconds": seconds[0], "peak_gb": peak_gb()}
    emit("update, LoRA" if lora else "update, all parameters", taken, "s", mfu=rows * work / taken / peak, **more)


def attention(size: SimpleNamespace, bandwidth: float, peak: float) -> None:
    kernel = KERNELS.get(jax.default_backend())
    rows, heads, kv_heads, head_dim = size.attention
    for length in size.lengths:
        *arrays, segments = make_inputs(rows, length, heads, kv_heads, head_dim, jax.random.key(0))
        half = [array.astype(jnp.bfloat16) for array in arrays]
        taken = {}
        for name in filter(None, ("xla", kernel)):
            run = attend(name, None)
            taken[name] = median_seconds(lambda: run(*half, segments), size.repeats, calls=5)  # noqa: B023
            more = {"tokens": length, "rows": rows, "over_xla": taken[name] / taken["xla"]}
            emit(f"attention, {name}", 1e3 * taken[name], "ms", **more)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["decode", "update", "attention"], help="beside the limits")
    parser.add_argument("--remat", default="dots", help="what the update computes again: none, dots or full")
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    size, begin, failed = QUICK if args.quick else FULL, time.monotonic(), False
    bandwidth, peak = limits(size)
    emit("copy", bandwidth / 1e9, "GB/s")
    emit("product", peak / 1e12, "TFLOP/s")
    parts = {
        "decode": [decode],
        "update": [lambda *known, lora=lora: update(*known, lora, args.remat) for lora in (True, False)],
        "attention": [attention],
    }
    for part in [part for name in args.parts for part in parts[name]]:
        if time.monotonic() - begin > 60 * args.minutes:
            print(json.dumps({"name": "gpu", "error": f"{args.minutes} minutes are over; the rest was left out"}))
            return 1
        try:
            part(size, bandwidth, peak)
        except Exception as error:
            failed = True
            print(json.dumps({"name": "gpu", "error": f"{type(error).__name__}: {error}"[:500]}), flush=True)
        jax.clear_caches()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
