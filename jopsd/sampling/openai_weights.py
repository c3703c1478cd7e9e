"""vLLM and SGLang as sampling servers of a run: version by version they are told to load what trains.

Both take an adapter by its path, and requests name it: an adapter that a server lacks is refused, never silently the
base. SGLang also takes a whole model in place of its own; which one it has is asked after each piece of work.

vLLM: POST /v1/load_lora_adapter, /v1/unload_lora_adapter; wants VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora.
SGLang: POST /load_lora_adapter, /unload_lora_adapter, /update_weights_from_disk, GET /get_model_info; for adapters it
wants --enable-lora, --max-lora-rank and --lora-target-modules.
"""

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jopsd.models.families import FAMILIES
from jopsd.models.hf import architecture, save_pretrained
from jopsd.models.peft import save_adapter
from jopsd.sampling.access import is_loopback, read_token
from jopsd.sampling.calls import Calls, Refused, parse_endpoint
from jopsd.sampling.openai import OpenAISampler, completion_body
from jopsd.sampling.publish import KEEP, Published
from jopsd.sampling.sampler import Completion, Policy, Request, SamplerError, SamplingParams, Stream
from jopsd.schema import Sampling

_NOBODY = "jopsd-no-such-adapter"


def writer(model_dir: Path, rslora: bool) -> Callable[[Policy, Path], None]:
    """Writes a policy as these servers read it: an adapter in PEFT's layout, or a model in Hugging Face's.

    On several processes all must call it.
    """

    def write(policy: Policy, path: Path) -> None:
        if policy.adapter is None:
            save_pretrained(policy.model, path, model_dir)
        else:
            save_adapter(
                policy.adapter, path, FAMILIES[architecture(model_dir)].tensors, rslora=rslora, base=model_dir.resolve()
            )

    return write


class OpenAILink:
    """A server of vLLM or SGLang, a `Link`. `slots` is what the config says: such a server does not tell.

    Args:
      is_adapter: whether an adapter trains, or the whole model.
    """

    def __init__(self, url: str, sampling: Sampling, is_adapter: bool, vocab_size: int, max_length: int):
        self.address, self.slots = parse_endpoint(url).url, sampling.slots
        self._sampling, self._is_adapter = sampling, is_adapter
        self._vocab_size, self._max_length = vocab_size, max_length
        self._client: OpenAISampler | None = None
        self._kind, self._base, self._path, self._loads = "", "", "", 0
        self._loaded: deque[str] = deque()

    def connect(self, timeout: float) -> None:
        """See `Link.connect`."""
        if self._client is None:
            self._client = self._new_client()
        calls = self._client.new_calls(timeout)
        self._kind = _kind(calls, self.address)
        longest = self._client.max_length
        if longest is not None and longest < self._max_length:
            raise ValueError(
                f"{self.address} takes {longest} tokens, and this run needs {self._max_length}: start it with a longer "
                "context (--max-model-len of vLLM, --context-length of SGLang)"
            )
        if self._kind == "vllm" and not self._is_adapter:
            raise ValueError(
                f"{self.address} is vLLM, which takes adapters but no whole model by its path: train with a section "
                "lora, or sample from SGLang or from python -m jopsd.serve"
            )
        if self._is_adapter:
            self._require_refusal(calls)
        if self._kind == "vllm" and self._sampling.temperature != 1:
            self._require_tempered(calls)

    def load(self, published: Published, timeout: float) -> None:
        """See `Link.load`. Weights are named by version and fingerprint, so that one name is one set of weights."""
        calls, name = self._client.new_calls(timeout), f"jopsd-{published.version}-{published.fingerprint}"
        try:
            if not self._is_adapter:
                self._load_model(calls, str(published.path), name)
                self._client.draw_from(self._base, published.version)
                return
            self._load_adapter(calls, str(published.path), name)
        except Refused as refused:
            raise SamplerError(
                f"{self.address} did not take version {published.version} (status {refused.status}): {refused}; it "
                "must see the run's output_dir under the same path, and let adapters be loaded while it runs "
                "(vLLM: VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora; SGLang: --enable-lora)"
            ) from refused
        if self._kind == "vllm":
            self._client.draw_from(name, published.version)
        else:
            self._client.draw_from(f"{self._base}:{name}", published.version, lora_path=name)

    def sample(self, requests: Sequence[Request]) -> Stream:
        """See `Link.sample`."""
        stream = self._client.sample(requests)
        return Stream(self._checked(stream), stream.close)

    def close(self) -> None:
        """See `Link.close`."""
        if self._client is not None:
            self._client.close()

    def _new_client(self) -> OpenAISampler:
        access, endpoint = self._sampling.access, parse_endpoint(self.address)
        key = None if access.token_file is None else read_token(access.token_file)
        if key is not None and endpoint.scheme != "https" and not is_loopback(endpoint.host):
            raise ValueError(f"the token would go to {self.address} in the clear: give its https:// address")
        client = OpenAISampler(
            self.address, concurrency=self.slots, api_key=key, retries=1, backoff=0.5, ca_file=access.ca_file
        )
        self._base = client.model
        return client

    def _require_refusal(self, calls: Calls) -> None:
        """Raises ValueError for a server that answers with the base where an adapter that it lacks is named."""
        body = {"prompt": [0], "max_tokens": 1, "model": _NOBODY}
        if self._kind == "sglang":
            body |= {"model": f"{self._base}:{_NOBODY}", "lora_path": _NOBODY}
        with contextlib.suppress(Refused, SamplerError):
            calls.ask("/v1/completions", body)
            raise ValueError(f"{self.address} answers for an adapter that it does not have: use a newer version of it")

    def _require_tempered(self, calls: Calls) -> None:
        """Raises ValueError for a vLLM whose log-probs are not of the distribution at the sampling temperature.

        At a temperature of 100 that is close to uniform, so that whatever is drawn has a log-prob of about -log(V).
        """
        sampling, uniform = self._sampling, -math.log(self._vocab_size)
        params = SamplingParams(1, temperature=100.0)
        tries = [completion_body(self._base, Request((0,), 3, 0, params), index) for index in range(3)]
        try:
            found = [
                float(calls.ask("/v1/completions", body)["choices"][0]["logprobs"]["token_logprobs"][0])
                for body in tries
            ]
        except (Refused, TypeError, KeyError, IndexError) as error:
            raise ValueError(f"{self.address} gives no log-probs: {error!r}") from None
        if any(abs(logprob - uniform) > 1 for logprob in found):
            raise ValueError(
                f"{self.address} gives log-probs before temperature, and sampling.temperature is "
                f"{sampling.temperature:g}: start it with --logprobs-mode processed_logprobs, or sample at 1"
            )
        if sampling.top_p < 1 or sampling.top_k:
            raise ValueError(
                f"{self.address} gives log-probs after top_p and top_k, and training needs those before: set "
                "sampling.top_p to 1 and sampling.top_k to 0, or sample at temperature 1 from its raw_logprobs"
            )

    def _load_adapter(self, calls: Calls, path: str, name: str) -> None:
        prefix = "/v1" if self._kind == "vllm" else ""
        try:
            calls.ask(f"{prefix}/load_lora_adapter", {"lora_name": name, "lora_path": path}, is_text=True)
        except Refused as refused:
            if "already" not in str(refused):  # then it has these very weights
                raise
        if name not in self._loaded:
            self._loaded.append(name)
        while len(self._loaded) > KEEP:
            with contextlib.suppress(Refused, SamplerError):  # gone with a restart
                calls.ask(f"{prefix}/unload_lora_adapter", {"lora_name": self._loaded.popleft()}, is_text=True)

    def _load_model(self, calls: Calls, path: str, name: str) -> None:
        if _model_path(calls) != path:
            self._loads += 1  # what is in flight was perhaps drawn from others
            answer = calls.ask("/update_weights_from_disk", {"model_path": path, "weight_version": name})
            if not isinstance(answer, dict) or answer.get("success") is not True:
                raise SamplerError(f"{self.address} did not take {path}: {answer}")
        self._path = path

    def _checked(self, stream: Stream) -> Iterator[Completion]:
        """The completions, once it is sure which weights drew them, and that all have log-probs."""
        held, loads = [], self._loads
        for completion in stream:
            missing = np.isnan(completion.logprobs)
            if missing.any():
                raise ValueError(
                    f"{self.address} gives no log-prob for token {int(np.argmax(missing))} of {len(missing)}, and "
                    "training needs that of every token: use a newer version of it"
                )
            if self._is_adapter:
                yield completion
            else:
                held.append(completion)
        if held and ((found := _model_path(self._client.new_calls())) != self._path or loads != self._loads):
            raise SamplerError(f"{self.address} served {found}, not {self._path}, or was given it only meanwhile")
        yield from held


def _kind(calls: Calls, address: str) -> str:
    """ "vllm" or "sglang": each says so as the owner of the models that it lists."""
    try:
        owners = {entry.get("owned_by") for entry in calls.ask("/v1/models")["data"]}
    except (Refused, TypeError, KeyError, AttributeError):
        owners = set()
    known = sorted(owners & {"vllm", "sglang"})
    if len(known) != 1:
        raise ValueError(
            f"{address} says neither that it is vLLM nor SGLang (owned_by of /v1/models), and others take no weights: "
            "sample from one of these, or from python -m jopsd.serve with sampling.backend remote"
        )
    return known[0]


def _model_path(calls: Calls) -> str:
    """The directory that SGLang's weights are from. Raises Refused, SamplerError."""
    answer = calls.ask("/get_model_info")
    return str(answer.get("model_path")) if isinstance(answer, dict) else ""
