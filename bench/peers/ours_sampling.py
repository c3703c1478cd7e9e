"""Draws with jopsd for `bench.peers`: the worker of our side."""

from collections.abc import Callable

import jax

from bench.peers.compile_clock import compile_clock
from bench.peers.protocol import Run, serve
from bench.peers.sampling import Case, batches_of, repetitions
from jopsd.models.decoder import Decoder, ModelConfig
from jopsd.models.hf import load_pretrained, read_config
from jopsd.sampling import CHUNK, Policy, Request, SamplingParams, make_sampler


def load(case: dict, threads: int) -> Callable[[str], Run]:
    """Loads or makes the model; the processors that this process may use decide how many threads there are."""
    case = Case(**case)
    types = {"dtype": case.dtype, "param_dtype": case.dtype}
    if isinstance(case.model, str):
        cfg = read_config(case.model, **types)
        policy = Policy(load_pretrained(case.model, cfg), None)
    else:
        cfg = ModelConfig(**case.model, **types)
        policy = Policy(jax.jit(lambda: Decoder(cfg, jax.random.key(0)))(), None)

    def build(name: str) -> Run:
        kind = "jetstream" if name == "jetstream" else "loop"
        sampler = make_sampler(kind, cfg, policy, case.slots, case.max_length, CHUNK)

        def draw(prompts, new, number) -> int:
            params = [SamplingParams(n, 1.0, case.top_p, case.top_k) for n in new]
            requests = [Request(p, 1, number, one, i) for i, (p, one) in enumerate(zip(prompts, params, strict=True))]
            if name != "batches":
                return count(sampler.sample(requests))
            return sum(count(sampler.sample(part)) for part, _ in batches_of(case.slots, requests, new))

        return repetitions(draw, case)

    return build


def count(completions) -> int:
    return sum(len(completion.completion_ids) for completion in completions)


if __name__ == "__main__":
    serve(load, compile_clock())
