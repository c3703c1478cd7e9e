"""The device side of sampling: a pool of slots, filled by `prefill` + `insert`, advanced by `decode`.

Every sampler in the process drives these same compiled functions, so the bits do not depend on which of them does.

Axes: B slots, S cache columns (max_length), C decode steps per call (chunk), E stop ids, V vocabulary; P bucket width.
"""

import threading
from collections.abc import Iterable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jopsd.models.decoder import Cache, ModelConfig, init_cache
from jopsd.models.sharding import constrain
from jopsd.sampling.draw import draw
from jopsd.sampling.sampler import Completion, Policy, Request, SamplerError, validate

KEYS = "threefry2x32"  # named, so that a global jax setting cannot change what a seed means
SMALLEST_BUCKET = 16


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """All slots. Donated to every call that returns a new one.

    Attributes:
      cache: keys and values [L,B,K,S,H] of what each row has read so far.
      token: [B] int32, read by the next step (first the last prompt token).
      key: [B] PRNG keys of (seed, sample index). position: [B] int32, completion tokens drawn.
      remaining: [B] int32, tokens still allowed. done: [B] bool, also True where a slot is free.
      temperature, top_p: [B] float32. top_k: [B] int32. stop_ids: [B,E] int32, padded with -1.
    """

    cache: Cache
    token: jax.Array
    key: jax.Array
    position: jax.Array
    remaining: jax.Array
    done: jax.Array
    temperature: jax.Array
    top_p: jax.Array
    top_k: jax.Array
    stop_ids: jax.Array


class Chunk(NamedTuple):
    """What one `decode` drew, on the host. A row's valid tokens are the first `count` of its columns."""

    tokens: np.ndarray  # [B,C] int32
    logprobs: np.ndarray  # [B,C] float32
    count: np.ndarray  # [B] int
    done: np.ndarray  # [B] bool


def chunk_columns(chunk: int) -> dict[str, tuple[int, int]]:
    """Column ranges of the one int32 array `decode` returns: a single array is a single copy to the host."""
    return {
        "tokens": (0, chunk),
        "valid": (chunk, 2 * chunk),
        "logprob_bits": (2 * chunk, 3 * chunk),
        "done": (3 * chunk, 3 * chunk + 1),
        "length": (3 * chunk + 1, 3 * chunk + 2),  # one more than the tokens drawn before this call
    }


def read_chunk(packed: np.ndarray) -> Chunk:
    """Unpacks `decode`'s array [B, 3C+2]."""
    part = {name: packed[:, a:b] for name, (a, b) in chunk_columns((packed.shape[1] - 2) // 3).items()}
    logprobs = np.ascontiguousarray(part["logprob_bits"]).view(np.float32)
    return Chunk(part["tokens"], logprobs, part["valid"].sum(axis=1), part["done"][:, 0] != 0)


def _pin(state: State) -> State:
    """On a mesh: slots over (data, fsdp) and key-value heads over tensor, each only where it divides."""
    cache = state.cache
    k, v = constrain(cache.k, "cache"), constrain(cache.v, "cache")
    rows = jax.tree.map(lambda x: constrain(x, "rows"), replace(state, cache=replace(cache, k=None, v=None)))
    return replace(rows, cache=replace(rows.cache, k=k, v=v))


@partial(jax.jit, static_argnames=("cfg", "slots", "max_length", "max_stop_ids"))
def init_state(cfg: ModelConfig, slots: int, max_length: int, max_stop_ids: int) -> State:
    """`slots` free slots of `max_length` columns."""
    number = lambda value, dtype: jnp.full((slots,), value, dtype)  # noqa: E731
    return _pin(
        State(
            cache=init_cache(cfg, slots, max_length),
            token=number(0, jnp.int32),
            key=jax.vmap(partial(_sample_key, 0))(jnp.arange(slots)),
            position=number(0, jnp.int32),
            remaining=number(0, jnp.int32),
            done=number(True, bool),
            temperature=number(1, jnp.float32),
            top_p=number(1, jnp.float32),
            top_k=number(0, jnp.int32),
            stop_ids=jnp.full((slots, max_stop_ids), -1, jnp.int32),
        )
    )


def _sample_key(seed: jax.Array, index: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.key(seed, impl=KEYS), index)


@jax.jit
def prefill(policy: Policy, tokens: jax.Array, length: jax.Array) -> Cache:
    """Keys and values [L,1,K,P,H] of one right-padded prompt [1,P] with `length` real tokens. No output head."""
    cache = init_cache(policy.model.cfg, 1, tokens.shape[1])
    segments = (jnp.arange(tokens.shape[1])[None] < length).astype(jnp.int32)
    return policy.model.hidden(tokens, segments=segments, adapter=policy.adapter, cache=cache)[1]


@partial(jax.jit, donate_argnames="state")
def insert(state: State, prefix: Cache | None, ints: jax.Array, floats: jax.Array) -> State:
    """Puts a prompt's prefix (None for a one-token prompt) and a row's parameters (see `row_arguments`) into a slot."""
    slot, filled, token, seed_bits, index, remaining, top_k = ints[:7]
    cache = state.cache
    if prefix is not None:
        place = lambda pool, new: jax.lax.dynamic_update_slice(pool, new, (0, slot, 0, 0, 0))  # noqa: E731
        cache = replace(cache, k=place(cache.k, prefix.k), v=place(cache.v, prefix.v))
    columns = jnp.arange(cache.segments.shape[1])
    return _pin(
        State(
            cache=replace(
                cache,
                segments=cache.segments.at[slot].set((columns < filled).astype(jnp.int32)),
                length=cache.length.at[slot].set(filled),
            ),
            token=state.token.at[slot].set(token),
            key=state.key.at[slot].set(_sample_key(jax.lax.bitcast_convert_type(seed_bits, jnp.uint32), index)),
            position=state.position.at[slot].set(0),
            remaining=state.remaining.at[slot].set(remaining),
            done=state.done.at[slot].set(False),
            temperature=state.temperature.at[slot].set(floats[0]),
            top_p=state.top_p.at[slot].set(floats[1]),
            top_k=state.top_k.at[slot].set(top_k),
            stop_ids=state.stop_ids.at[slot].set(ints[7:]),
        )
    )


def row_arguments(request: Request, index: int, slot: int, max_stop_ids: int) -> tuple[np.ndarray, np.ndarray]:
    """ints [7+E] int32 and floats [2] float32 of `insert`: two transfers per row instead of nine."""
    params, prompt = request.params, request.prompt_ids
    stop = list(params.stop_ids) + [-1] * (max_stop_ids - len(params.stop_ids))
    seed_bits = int(np.uint32(request.seed).view(np.int32))
    top_k = min(params.top_k, np.iinfo(np.int32).max)
    ints = [slot, len(prompt) - 1, prompt[-1], seed_bits, index, params.max_new_tokens, top_k, *stop]
    return np.array(ints, np.int32), np.array([params.temperature, params.top_p], np.float32)


@partial(jax.jit, donate_argnames="state")
def halt(state: State, mask: jax.Array) -> State:
    """Ends the rows of mask [B] bool where they stand."""
    return _pin(replace(state, done=state.done | mask))


def _step(policy: Policy, state: State) -> tuple[State, jax.Array, jax.Array]:
    """Every live row reads its token and draws the next: (state, token [B], logprob [B]). Done rows stay put."""
    live = ~state.done
    h, cache = policy.model.hidden(
        state.token[:, None], segments=live[:, None].astype(jnp.int32), adapter=policy.adapter, cache=state.cache
    )
    keys = jax.vmap(jax.random.fold_in)(state.key, state.position)
    top_p, top_k = jnp.where(live, state.top_p, 1.0), jnp.where(live, state.top_k, 0)
    token, logprob = draw(policy.model.unembed(h[:, 0]), keys, state.temperature, top_p, top_k)
    remaining = state.remaining - live
    stopped = (token[:, None] == state.stop_ids).any(axis=1) | (remaining <= 0)
    state = replace(
        state,
        cache=cache,
        token=jnp.where(live, token, state.token),
        position=state.position + live,
        remaining=remaining,
        done=state.done | stopped,
    )
    return _pin(state), token, logprob


@partial(jax.jit, static_argnames="chunk", donate_argnames="state")
def decode(policy: Policy, state: State, chunk: int) -> tuple[State, jax.Array]:
    """Up to `chunk` steps, fewer once every row is done. Returns the state and an array for `read_chunk`."""
    slots = state.token.shape[0]
    length = state.position + 1

    def more(carry):
        step, state, *_ = carry
        return (step < chunk) & ~state.done.all()

    def advance(carry):
        step, state, tokens, valid, bits = carry
        live = ~state.done
        state, token, logprob = _step(policy, state)
        column = lambda array, new: jax.lax.dynamic_update_slice(array, new[:, None], (0, step))  # noqa: E731
        logprob_bits = jax.lax.bitcast_convert_type(logprob, jnp.int32)
        return (
            step + 1,
            state,
            column(tokens, token),
            column(valid, live.astype(jnp.int32)),
            column(bits, logprob_bits),
        )

    empty = jnp.zeros((slots, chunk), jnp.int32)
    _, state, tokens, valid, bits = jax.lax.while_loop(more, advance, (jnp.int32(0), state, empty, empty, empty))
    done = state.done.astype(jnp.int32)
    packed = jnp.concatenate([tokens, valid, bits, done[:, None], length[:, None]], axis=1)
    if not jax.sharding.get_abstract_mesh().empty:
        packed = jax.lax.with_sharding_constraint(packed, P())  # every process reads all of it
    return state, packed


@dataclass(eq=False)
class Row:
    """One sample on its way through a slot: collects what each `decode` drew for it."""

    request: Request
    index: int
    tokens: list[np.ndarray] = field(default_factory=list)
    logprobs: list[np.ndarray] = field(default_factory=list)

    def extend(self, chunk: Chunk, slot: int) -> bool:
        """Takes this row's part of a chunk; True when the row is done."""
        count = chunk.count[slot]
        self.tokens.append(chunk.tokens[slot, :count])
        self.logprobs.append(chunk.logprobs[slot, :count])
        return bool(chunk.done[slot])

    def completion(self, version: int, vocab_size: int) -> Completion:
        """The finished sample.

        Raises:
          SamplerError: a log-prob is not finite, so the weights are broken.
        """
        request, logprobs = self.request, np.concatenate(self.logprobs)
        if not np.isfinite(logprobs).all():
            at = int(np.argmin(np.isfinite(logprobs)))
            raise SamplerError(
                f"policy version {version} gives a log-prob of {logprobs[at]} at token {at} of sample {self.index} of "
                f"request {request.id!r}: its weights are not finite"
            )
        tokens = np.concatenate(self.tokens)
        return Completion(
            request_id=request.id,
            index=self.index,
            prompt_ids=request.prompt_ids,
            completion_ids=tokens,
            logprobs=logprobs,
            finish="eos" if int(tokens[-1]) in request.params.stop_ids else "length",
            policy_version=version,
            truncated=request.params.truncates(vocab_size),
        )


def expand(requests: Iterable[Request]) -> list[Row]:
    """One row per sample, samples of equal prompts next to each other, so that a prompt is prefilled once."""
    groups: dict[tuple[int, ...], list[Row]] = {}
    for request in requests:
        wanted = range(request.n) if request.indices is None else request.indices
        groups.setdefault(request.prompt_ids, []).extend(Row(request, i) for i in wanted)
    return [row for group in groups.values() for row in group]


class Engine:
    """The compiled functions bound to one policy, one pool shape and one mesh. Methods may be called from any thread.

    Thread-local jax settings are not inherited by threads, so each method enters the mesh itself. One lock orders what
    is dispatched: two threads must not enqueue programs in different orders on different devices.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        policy: Policy,
        *,
        slots: int,
        max_length: int,
        chunk: int,
        mesh: Mesh | None = None,
        max_stop_ids: int = 8,
    ):
        for name, value, least in (("slots", slots, 1), ("max_length", max_length, 2), ("chunk", chunk, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.cfg, self.slots, self.max_length, self.chunk = cfg, slots, max_length, chunk
        self.mesh, self.max_stop_ids = mesh, max_stop_ids
        self.prefills = 0  # prompts really prefilled so far
        self._lock = threading.Lock()
        self._prefix: tuple[tuple[int, ...], Cache] | None = None
        self._set(policy, 0)

    def validate(self, requests: Iterable[Request]) -> None:
        """Raises ValueError for a request that does not fit, SamplerError when the weights are gone."""
        validate(requests, self.cfg.vocab_size, self.max_length, self.max_stop_ids)
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(self.policy)):
            raise SamplerError(f"the arrays of policy version {self.version} were donated: update() the sampler first")

    def update(self, policy: Policy, version: int) -> None:
        """Draws from `policy` from now on. Nothing may be in flight."""
        with self._lock:
            self._set(policy, version)

    def _set(self, policy: Policy, version: int) -> None:
        if policy.model.cfg != self.cfg:
            raise ValueError(f"the policy's model is {policy.model.cfg}, the sampler was built for {self.cfg}")
        self.policy, self.version, self._prefix = policy, version, None  # a prefix belongs to its weights

    def forget_prefix(self) -> None:
        """Frees the prefix kept of the last prompt."""
        with self._lock:
            self._prefix = None

    @contextmanager
    def _dispatch(self):
        with self._lock, nullcontext() if self.mesh is None else jax.set_mesh(self.mesh):
            yield

    def _settle(self, result):
        # Two programs with collectives at once can starve each other of the CPU backend's few threads.
        if self.mesh is not None and self.mesh.size > 1 and jax.default_backend() == "cpu":
            jax.block_until_ready(result)
        return result

    def init_state(self) -> State:
        """A pool of free slots."""
        with self._dispatch():
            return self._settle(init_state(self.cfg, self.slots, self.max_length, self.max_stop_ids))

    def prefill(self, prompt_ids: tuple[int, ...]) -> Cache | None:
        """The prefix of a prompt but for its last token, which `decode` reads first. Kept until the next prompt."""
        length = len(prompt_ids) - 1
        if length == 0:
            return None
        with self._dispatch():
            if self._prefix is None or self._prefix[0] != prompt_ids:
                self._prefix = None
                tokens = np.zeros((1, bucket(length, self.max_length)), np.int32)
                tokens[0, :length] = prompt_ids[:-1]
                self._prefix = prompt_ids, self._settle(prefill(self.policy, tokens, np.int32(length)))
                self.prefills += 1
            return self._prefix[1]

    def insert(self, state: State, prefix: Cache | None, row: Row, slot: int) -> State:
        """The state with `row` starting in `slot`."""
        arguments = row_arguments(row.request, row.index, slot, self.max_stop_ids)
        with self._dispatch():
            return self._settle(insert(state, prefix, *arguments))

    def decode(self, state: State) -> tuple[State, jax.Array]:
        """Up to `chunk` steps of all slots; the array is for `read_chunk`."""
        with self._dispatch():
            return self._settle(decode(self.policy, state, self.chunk))

    def halt(self, state: State, slots: Iterable[int]) -> State:
        """The state with these slots done."""
        mask = np.zeros(self.slots, bool)
        mask[list(slots)] = True
        with self._dispatch():
            return self._settle(halt(state, mask))


def bucket(length: int, max_length: int) -> int:
    """Padded width of a prefix: a power of two of at least 16, or max_length if that is less."""
    return min(max(SMALLEST_BUCKET, 1 << (length - 1).bit_length()), max_length)
