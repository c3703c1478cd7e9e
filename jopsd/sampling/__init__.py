"""Sampling completions from a policy: `make_sampler` builds a sampler by name, `connect` reaches one in a server.

`sampler.py` is the contract, `pool.py` what a trainer draws from when its sampler is in servers.
"""

from jax.sharding import Mesh

from jopsd.models.decoder import ModelConfig
from jopsd.sampling.sampler import Completion, Policy, Request, Sampler, SamplerError, SamplingParams

__all__ = ["Completion", "Policy", "Request", "Sampler", "SamplerError", "SamplingParams", "connect", "make_sampler"]

CHUNK = 16  # decode steps between two visits of the host, where nobody says otherwise


def make_sampler(
    name: str,
    model_config: ModelConfig,
    policy: Policy,
    slots: int,
    max_length: int,
    chunk: int = CHUNK,
    mesh: Mesh | None = None,
    max_stop_ids: int = 8,
    cache_gb: float | None = None,
) -> Sampler:
    """A sampler in this process that starts with `policy` as version 0.

    Args:
      name: "jetstream" (JetStream's Driver, its own threads) or "loop" (one plain loop on the caller's thread).
      slots: samples decoded at once.
      max_length: prompt plus completion tokens of the longest sample.
      chunk: decode steps between two visits of the host; a freed slot waits up to this long for its next sample.
      mesh: where the policy's arrays live; None, or a mesh of one device, for one device.
      max_stop_ids: most stop ids a request may have.
      cache_gb: gigabytes of keys and values of all devices together; None is enough for slots of the expected length,
        0.4 of max_length (at least 256 columns). Where they run out, the youngest sample is drawn again later.

    Raises:
      ValueError: an unknown name, a size out of range, or a cache that does not hold one sample of max_length.
      ImportError: JetStream is not installed; the message is the command that installs it.
    """
    from jopsd.sampling.engine import Engine

    if name not in ("jetstream", "loop"):
        raise ValueError(f"sampler {name!r} is not one of ['jetstream', 'loop']")
    mesh = mesh if mesh is not None and mesh.size > 1 else None
    engine = Engine(
        model_config,
        policy,
        slots=slots,
        max_length=max_length,
        chunk=chunk,
        mesh=mesh,
        max_stop_ids=max_stop_ids,
        cache_bytes=None if cache_gb is None else int(cache_gb * 1e9),
    )
    if name == "loop":
        from jopsd.sampling.loop import LoopSampler

        return LoopSampler(engine)
    from jopsd.sampling.jetstream import JetStreamSampler

    return JetStreamSampler(engine)


def connect(name: str, address: str, **options) -> Sampler:
    """A sampler whose weights are in a server.

    Args:
      name: "grpc" (`python -m jopsd.serve`) or "openai" (an OpenAI-compatible server, such as vLLM or SGLang).
      address: host:port of the one, the URL of the other.
      options: keyword arguments of `RemoteSampler` or `OpenAISampler`; both know `model`, `timeout` and `ca_file`.

    Raises:
      ValueError: an unknown name, an address that is none, or a model that is not served there.
      SamplerError: no server answers.
    """
    if name == "grpc":
        from jopsd.sampling.remote import RemoteSampler

        return RemoteSampler(address, **options)
    if name == "openai":
        from jopsd.sampling.openai import OpenAISampler

        return OpenAISampler(address, **options)
    raise ValueError(f"server {name!r} is not one of ['grpc', 'openai']")
