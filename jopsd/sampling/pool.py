"""The sampling servers that a run's config names, as one `Sampler`: connected, checked, and given what trains."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from jopsd.models.decoder import ModelConfig
from jopsd.sampling.balance import PoolSampler
from jopsd.sampling.fingerprint import model_fingerprint, shape_fingerprint
from jopsd.sampling.publish import Published, Publisher
from jopsd.sampling.remote import RemoteSampler
from jopsd.sampling.sampler import Policy, Request, Stream
from jopsd.sampling.wire import Description, Load
from jopsd.schema import Access, Sampling

WEIGHTS = "weights"  # what trains, in a run's directory


class Needs(NamedTuple):
    """What a run asks of a server. base: fingerprint of the model under its adapter; None where the whole model trains.

    shape: that of config and shapes. max_length: tokens of the longest prompt and completion.
    """

    config: ModelConfig
    base: str | None
    shape: str
    max_length: int
    max_stop_ids: int


def open_pool(
    sampling: Sampling,
    run_dir: Path,
    model_config: ModelConfig,
    policy: Policy,
    *,
    max_length: int,
    max_stop_ids: int,
    model_dir: Path,
    rslora: bool = False,
) -> PoolSampler:
    """The servers of `sampling.servers`, for backend remote or openai. It draws only after `update`.

    Weights go to `run_dir/weights`, which the servers must see under the same path. On several processes all must call
    it, and each samples for itself.

    Args:
      policy: what trains, at any version; its base is compared with the servers'.
      max_length, max_stop_ids: of the longest request.
      model_dir: the initial model, with its tokenizer. rslora: how the adapter's scale is written down.

    Raises:
      ValueError, OSError: a server that is not one for this run, or a file of `sampling.access` that cannot be read.
      SamplerError: no server answers in time.
    """
    limits = (model_config.vocab_size, max_length, max_stop_ids)
    base = None if policy.adapter is None else model_fingerprint(policy.model)
    if sampling.backend == "openai":
        from jopsd.sampling.openai_weights import OpenAILink, writer

        write = writer(model_dir, rslora)
        make = lambda url: OpenAILink(url, sampling, base is not None, model_config.vocab_size, max_length)  # noqa: E731
        links = [make(url) for url in sampling.servers]
    else:
        write = None
        needs = Needs(model_config, base, shape_fingerprint(policy.model), max_length, max_stop_ids)
        links = [ServeLink(address, sampling.access, partial(require_fit, needs)) for address in sampling.servers]
    publisher = Publisher(Path(run_dir) / WEIGHTS, base, write)
    return PoolSampler(links, limits, publisher, sampling.access.timeout)


class ServeLink:
    """A server of `python -m jopsd.serve`, a `Link`.

    Args:
      require: raises ValueError for the address and description of a server that is not one for this run.
    """

    def __init__(self, address: str, access: Access, require: Callable[[str, Description], None]):
        self.address, self.slots = address, 0
        self._access, self._require = access, require
        self._client: RemoteSampler | None = None

    def connect(self, timeout: float) -> None:
        """See `Link.connect`."""
        if self._client is None:
            files = {"token_file": self._access.token_file, "ca_file": self._access.ca_file}
            self._client = RemoteSampler(self.address, timeout, **files)
        else:
            self._client.describe(timeout)
        self._require(self.address, self._client.description)
        self.slots = self._client.description.slots

    def load(self, published: Published, timeout: float) -> None:
        """See `Link.load`."""
        self._client.load(Load(published.version, str(published.path), published.fingerprint), timeout)

    def sample(self, requests: Sequence[Request]) -> Stream:
        """See `Link.sample`."""
        return self._client.sample(requests)

    def close(self) -> None:
        """See `Link.close`."""
        if self._client is not None:
            self._client.close()


def require_fit(needs: Needs, address: str, found: Description) -> None:
    """Raises ValueError for a server that cannot sample for a run, with the argument of `jopsd.serve` to change."""
    cfg, where = needs.config, f"the sampling server at {address}"
    if not found.takes_weights:
        raise ValueError(
            f"{where} takes no weights: start it with --weights-root, a directory above this run's output_dir"
        )
    for name, ours, theirs in (("dtype", cfg.dtype, found.dtype), ("param_dtype", cfg.param_dtype, found.param_dtype)):
        if ours != theirs:
            raise ValueError(
                f"{where} has {name} {theirs}, this run {ours}: start it with --{name.replace('_', '-')} {ours}"
            )
    if found.shape != needs.shape:
        raise ValueError(
            f"{where} serves {found.model!r} (a vocabulary of {found.vocab_size}), which is another model than this "
            f"run's (a vocabulary of {cfg.vocab_size}): start it with this run's model.path"
        )
    if needs.base is not None and found.base != needs.base:
        raise ValueError(
            f"{where} serves {found.model!r}, whose weights are not this run's (fingerprint {found.base}, "
            f"not {needs.base}): start it with this run's model.path"
        )
    for option, ours, theirs in (
        ("max-length", needs.max_length, found.max_length),
        ("max-stop-ids", needs.max_stop_ids, found.max_stop_ids),
    ):
        if theirs < ours:
            raise ValueError(
                f"{where} has --{option} {theirs}, and this run needs {ours}: start it with --{option} {ours}"
            )
