"""Draws with jopsd for `bench.peers`: the worker of our side."""

from collections.abc import Callable

import jax

from bench.peers.protocol import Draw, serve
from bench.peers.works import Case, batches_of
from jopsd.models.decoder import Decoder, ModelConfig
from jopsd.models.hf import load_pretrained, read_config
from jopsd.sampling import CHUNK, Policy, Request, SamplingParams, make_sampler

COMPILED: list[float] = []  # seconds of each compilation


def record(event: str, seconds: float, **_) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(seconds)


def load(case: Case, threads: int) -> Callable[[str], Draw]:
    """Loads or makes the model; the processors that this process may use decide how many threads there are."""
    types = {"dtype": case.dtype, "param_dtype": case.dtype}
    if isinstance(case.model, str):
        cfg = read_config(case.model, **types)
        policy = Policy(load_pretrained(case.model, cfg), None)
    else:
        cfg = ModelConfig(**case.model, **types)
        policy = Policy(jax.jit(lambda: Decoder(cfg, jax.random.key(0)))(), None)

    def build(name: str) -> Draw:
        kind = "jetstream" if name == "jetstream" else "loop"
        sampler = make_sampler(kind, cfg, policy, case.slots, case.max_length, CHUNK)

        def draw(prompts, new, number) -> int:
            params = [SamplingParams(n, 1.0, case.top_p, case.top_k) for n in new]
            requests = [Request(p, 1, number, one, i) for i, (p, one) in enumerate(zip(prompts, params, strict=True))]
            if name != "batches":
                return count(sampler.sample(requests))
            return sum(count(sampler.sample(part)) for part, _ in batches_of(case.slots, requests, new))

        return draw

    return build


def count(completions) -> int:
    return sum(len(completion.completion_ids) for completion in completions)


if __name__ == "__main__":
    jax.monitoring.register_event_duration_secs_listener(record)
    serve(load, lambda: sum(COMPILED))
