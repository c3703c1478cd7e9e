"""Tokens per second of the JetStream sampler, the plain loop and static batches, side by side.

    python -m bench.sampling [--slots 16] [--chunk 8] [--rounds 7] [--hidden 256] [--layers 4]

One process, one set of compiled programs, the three samplers in rotating order within each round, so that a busy
machine slows all of them alike: read the ratios, not the rates. Completion lengths are lognormal, cut at the maximum.
A static batch starts as many samples as there are slots and waits for the longest before the next one starts.
"""

import argparse
import json
import statistics
import time

import jax
import numpy as np

from jopsd.models.decoder import Decoder, ModelConfig
from jopsd.sampling import Policy, Request, SamplingParams, make_sampler


def make_requests(count: int, prompt_max: int, new_max: int, vocab_size: int) -> list[Request]:
    """`count` prompts with four samples each; each sample is a request of its own, to have its own length."""
    generator = np.random.default_rng(0)
    prompts = [generator.integers(0, vocab_size, generator.integers(2, prompt_max)).tolist() for _ in range(count)]
    lengths = np.clip(generator.lognormal(np.log(0.3 * new_max), 0.8, (count, 4)), 1, new_max).astype(int)
    return [
        Request(prompt, 1, i * 4 + j, SamplingParams(int(lengths[i, j])), (i, j))
        for i, prompt in enumerate(prompts)
        for j in range(4)
    ]


def run_static(sampler, requests: list[Request], slots: int) -> int:
    """Tokens drawn by batches of `slots` samples, one after the other."""
    return sum(run(sampler, requests[i : i + slots]) for i in range(0, len(requests), slots))


def run(sampler, requests: list[Request]) -> int:
    """Tokens drawn by one call of `sample`."""
    return sum(len(completion.completion_ids) for completion in sampler.sample(requests))


def main() -> None:
    """Prints one JSON line per sampler."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("slots", 16), ("chunk", 8), ("rounds", 7), ("prompts", 16), ("prompt-max", 48)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("new-max", 128), ("hidden", 256), ("layers", 4), ("vocab", 4096)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    heads = max(args.hidden // 64, 1)
    config = ModelConfig(
        args.vocab, args.hidden, args.layers, heads, max(heads // 2, 1), 64, 3 * args.hidden, dtype=args.dtype
    )
    policy = Policy(jax.jit(lambda: Decoder(config, jax.random.key(0)))(), None)
    build = lambda name: make_sampler(name, config, policy, args.slots, args.prompt_max + args.new_max, args.chunk)  # noqa: E731
    jetstream, loop = build("jetstream"), build("loop")
    requests = make_requests(args.prompts, args.prompt_max, args.new_max, args.vocab)
    entrants = {
        "loop": lambda: run(loop, requests),
        "jetstream": lambda: run(jetstream, requests),
        "static": lambda: run_static(loop, requests, args.slots),
    }
    seconds: dict[str, list[float]] = {name: [] for name in entrants}
    tokens = {name: entrant() for name, entrant in entrants.items()}  # compiles
    assert len(set(tokens.values())) == 1, tokens
    order = list(entrants)
    for number in range(args.rounds):
        for name in order[number % 3 :] + order[: number % 3]:
            start = time.perf_counter()
            entrants[name]()
            seconds[name].append(time.perf_counter() - start)
    jetstream.close()
    for name, times in seconds.items():
        ratio = statistics.median(t / base for t, base in zip(times, seconds["loop"], strict=True))
        rate = tokens[name] / statistics.median(times)
        line = {"name": "sampling", "sampler": name, "tokens": tokens[name], "tokens_per_second": round(rate, 1)}
        print(json.dumps({**line, "time_over_loop": round(ratio, 3), "backend": jax.default_backend(), **vars(args)}))


if __name__ == "__main__":
    main()
