"""The device side of sampling: a pool of slots and of pages, filled by `prefill` and `admit`, advanced by `decode`.

Every sampler in the process drives these same compiled functions, so the bits do not depend on which of them does.

Axes: B slots, C decode steps per call (chunk), E stop ids, V vocabulary, M pages of the longest row; D devices that
slots are split over, each with pages of its own; T tokens of a piece of a prompt, I pieces per call.
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

from jopsd.models.attention import FLASH, choose
from jopsd.models.decoder import ModelConfig
from jopsd.models.pages import Pages, Span, copy, make_pages
from jopsd.models.products import turned_adapter, turned_model
from jopsd.models.sharding import constrain
from jopsd.sampling.capacity import PoolShape, check_memory, pool_shape
from jopsd.sampling.draw import draw
from jopsd.sampling.sampler import Completion, Policy, Request, SamplerError, validate

KEYS = "threefry2x32"  # named, so that a global jax setting cannot change what a seed means


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """All slots. Donated to every call that returns a new one.

    Attributes:
      pages: keys and values by kind of layer, "full" or "sliding".
      token: [B] int32, read by the next step (first the last prompt token).
      key: [B] PRNG keys of (seed, sample index). position: [B] int32, completion tokens drawn.
      length: [B] int32, columns that hold a row's tokens. remaining: [B] int32, tokens still allowed.
      done: [B] bool, also True where a slot is free.
      temperature, top_p: [B] float32. top_k: [B] int32. stop_ids: [B,E] int32, padded with -1.
    """

    pages: dict[str, Pages]
    token: jax.Array
    key: jax.Array
    position: jax.Array
    length: jax.Array
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
    """On a mesh: slots and pages over the axes of rows and heads over tensor, each only where it divides."""
    rows = jax.tree.map(lambda x: constrain(x, "rows"), replace(state, pages=None))
    return replace(rows, pages=jax.tree.map(lambda x: constrain(x, "pages"), state.pages))


@partial(jax.jit, static_argnames=("cfg", "shape"))
def init_state(cfg: ModelConfig, shape: PoolShape) -> State:
    """A pool of free slots and empty pages."""
    number = lambda value, dtype: jnp.full((shape.slots,), value, dtype)  # noqa: E731
    periods = cfg.num_layers // len(cfg.pattern)

    def pages(kind: str, count: int) -> Pages:
        layers = periods * cfg.pattern.count(kind)
        return make_pages(layers, cfg.num_kv_heads, cfg.head_dim, shape.shards * count, cfg.dtype, shape.as_bits)

    return _pin(
        State(
            pages={kind: pages(kind, count) for kind, count in shape.pages},
            token=number(0, jnp.int32),
            key=jax.vmap(partial(_sample_key, 0))(jnp.arange(shape.slots)),
            position=number(0, jnp.int32),
            length=number(0, jnp.int32),
            remaining=number(0, jnp.int32),
            done=number(True, bool),
            temperature=number(1, jnp.float32),
            top_p=number(1, jnp.float32),
            top_k=number(0, jnp.int32),
            stop_ids=jnp.full((shape.slots, shape.max_stop_ids), -1, jnp.int32),
        )
    )


def _sample_key(seed: jax.Array, index: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.key(seed, impl=KEYS), index)


@partial(jax.jit, donate_argnames="state")
def prefill(
    policy: Policy,
    state: State,
    tokens: jax.Array,
    start: jax.Array,
    count: jax.Array,
    tables: dict[str, jax.Array],
    pieces: jax.Array,
) -> State:
    """Reads pieces of prompts into their pages, one after another and on each shard one at a time. No output head.

    Args:
      tokens: [I,D,T] int32. start, count: [I,D] int32, see `Span`; a count of 0 where a shard has nothing to read.
      tables: [I,D,M] int32 by kind of layer. pieces: int32, those of I that are real.
    """

    def read(i, pages):
        span = {kind: Span(table[i], start[i], count[i]) for kind, table in tables.items()}
        return policy.model.read(tokens[i], span, pages, policy.adapter)[1]

    return _pin(replace(state, pages=jax.lax.fori_loop(0, pieces, read, state.pages)))


@partial(jax.jit, donate_argnames="state")
def admit(
    state: State, ints: jax.Array, floats: jax.Array, copies: dict[str, tuple[jax.Array, jax.Array, jax.Array]]
) -> State:
    """Starts rows whose prompts are in their pages.

    Args:
      ints: [B,8+E] int32 and floats: [B,2] float32, see `row_arguments`; a slot of B is no row.
      copies: by kind of layer, pages to copy: source and target [D,B] int32, and how many.
    """
    pages = {kind: copy(held, *copies[kind]) for kind, held in state.pages.items()}
    slot, filled, token, seed_bits, index, remaining, top_k = ints[:, :7].T
    key = jax.vmap(_sample_key)(jax.lax.bitcast_convert_type(seed_bits, jnp.uint32), index)
    data = lambda keys: jax.random.key_data(keys)  # noqa: E731
    put = lambda array, value: array.at[slot].set(value, mode="drop")  # noqa: E731
    return _pin(
        State(
            pages=pages,
            token=put(state.token, token),
            key=jax.random.wrap_key_data(put(data(state.key), data(key)), impl=KEYS),
            position=put(state.position, 0),
            length=put(state.length, filled),
            remaining=put(state.remaining, remaining),
            done=put(state.done, False),
            temperature=put(state.temperature, floats[:, 0]),
            top_p=put(state.top_p, floats[:, 1]),
            top_k=put(state.top_k, top_k),
            stop_ids=put(state.stop_ids, ints[:, 7:]),
        )
    )


def row_arguments(request: Request, index: int, slot: int, max_stop_ids: int) -> tuple[list[int], list[float]]:
    """One row of `admit`'s ints and floats."""
    params, prompt = request.params, request.prompt_ids
    stop = list(params.stop_ids) + [-1] * (max_stop_ids - len(params.stop_ids))
    seed_bits = int(np.uint32(request.seed).view(np.int32))
    top_k = min(params.top_k, np.iinfo(np.int32).max)
    ints = [slot, len(prompt) - 1, prompt[-1], seed_bits, index, params.max_new_tokens, top_k, *stop]
    return ints, [params.temperature, params.top_p]


@partial(jax.jit, donate_argnames="state")
def halt(state: State, mask: jax.Array) -> State:
    """Ends the rows of mask [B] bool where they stand."""
    return _pin(replace(state, done=state.done | mask))


def _step(policy: Policy, state: State, tables: dict[str, jax.Array]) -> tuple[State, jax.Array, jax.Array]:
    """Every live row reads its token and draws the next: (state, token [B], logprob [B]). Done rows stay put."""
    live = ~state.done
    span = {kind: Span(table, state.length, live.astype(jnp.int32)) for kind, table in tables.items()}
    h, pages = policy.model.read(state.token[:, None], span, state.pages, policy.adapter)
    keys = jax.vmap(jax.random.fold_in)(state.key, state.position)
    top_p, top_k = jnp.where(live, state.top_p, 1.0), jnp.where(live, state.top_k, 0)
    cfg, logits = policy.model.cfg, constrain(policy.model.unembed(h[:, :, 0], 0), "logits")
    logits = constrain(logits, "whole logits")
    accelerated = choose(cfg.attention, cfg.dtype, cfg.head_dim) in FLASH
    token, logprob = draw(logits, keys, state.temperature, top_p, top_k, accelerated)
    remaining = state.remaining - live
    stopped = (token[:, None] == state.stop_ids).any(axis=1) | (remaining <= 0)
    state = replace(
        state,
        pages=pages,
        token=jnp.where(live, token, state.token),
        position=state.position + live,
        length=state.length + live,
        remaining=remaining,
        done=state.done | stopped,
    )
    return _pin(state), token, logprob


@partial(jax.jit, static_argnames="chunk", donate_argnames="state")
def decode(policy: Policy, state: State, tables: dict[str, jax.Array], chunk: int) -> tuple[State, jax.Array]:
    """Up to `chunk` steps, fewer once every row is done. Returns the state and an array for `read_chunk`.

    tables: [B,M] int32 by kind of layer, with the pages of all columns that these steps may write.
    """
    slots = state.token.shape[0]
    length = state.position + 1

    def more(carry):
        step, state, *_ = carry
        return (step < chunk) & ~state.done.all()

    def advance(carry):
        step, state, tokens, valid, bits = carry
        live = ~state.done
        state, token, logprob = _step(policy, state, tables)
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

    def restart(self) -> None:
        """Forgets what was drawn: the row is drawn again, and its tokens will be the same."""
        self.tokens, self.logprobs = [], []

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
    """One row per sample: equal prompts next to each other, so that each is read once, and the longest limits first.

    A long row that starts last leaves most slots empty at the end. Requests of one limit keep their order.
    """
    groups: dict[tuple[int, ...], list[Row]] = {}
    for request in requests:
        wanted = range(request.n) if request.indices is None else request.indices
        groups.setdefault(request.prompt_ids, []).extend(Row(request, i) for i in wanted)
    limit = lambda group: max(row.request.params.max_new_tokens for row in group)  # noqa: E731
    return [row for group in sorted(groups.values(), key=limit, reverse=True) for row in group]


class Engine:
    """The compiled functions bound to one policy, one pool shape and one mesh. Methods may be called from any thread.

    Thread-local jax settings are not inherited by threads, so each method enters the mesh itself. One lock orders what
    is dispatched: two threads must not enqueue programs in different orders on different devices.

    Attributes:
      prefills: prompts read so far. putbacks: rows that were put back for want of pages so far.
      updates: policies it has had so far; a version may come twice, with other weights.
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
        cache_bytes: int | None = None,
    ):
        for name, value, least in (("slots", slots, 1), ("max_length", max_length, 2), ("chunk", chunk, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.cfg, self.slots, self.max_length, self.chunk = cfg, slots, max_length, chunk
        self.mesh, self.max_stop_ids = mesh, max_stop_ids
        device = mesh.devices.flat[0] if mesh is not None else jax.local_devices()[0]
        self.platform = device.platform
        self.shape = pool_shape(
            cfg,
            slots,
            max_length,
            max_stop_ids,
            chunk=chunk,
            mesh=mesh,
            cache_bytes=cache_bytes,
            platform=self.platform,
        )
        if cache_bytes is not None:
            check_memory(cache_bytes, [device] if mesh is None else list(mesh.devices.flat))
        self.prefills = self.putbacks = self.updates = 0
        self._lock = threading.Lock()
        self.policy: Policy | None = None
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
        self._drawn_from = self._arranged(policy)
        self.policy, self.version = policy, version
        self.updates += 1

    def _arranged(self, policy: Policy) -> Policy:
        """The policy in the form that this device draws from fastest; a model that is the same again is kept."""
        if self.mesh is not None or self.platform != "cpu":
            return policy
        before, now = (jax.tree.leaves(held and held.model) for held in (self.policy, policy))
        same = len(before) == len(now) and all(ours is theirs for ours, theirs in zip(before, now, strict=True))
        model = self._drawn_from.model if same else turned_model(policy.model, self.cfg.dtype)
        return Policy(model, None if policy.adapter is None else turned_adapter(policy.adapter, self.cfg.dtype))

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
            return self._settle(init_state(self.cfg, self.shape))

    def prefill(self, state: State, *arguments) -> State:
        """See `prefill`."""
        with self._dispatch():
            return self._settle(prefill(self._drawn_from, state, *arguments))

    def admit(self, state: State, *arguments) -> State:
        """See `admit`."""
        with self._dispatch():
            return self._settle(admit(state, *arguments))

    def decode(self, state: State, tables: dict[str, np.ndarray]) -> tuple[State, jax.Array]:
        """Up to `chunk` steps of all slots; the array is for `read_chunk`."""
        with self._dispatch():
            return self._settle(decode(self._drawn_from, state, tables, self.chunk))

    def halt(self, state: State, slots: Iterable[int]) -> State:
        """The state with these slots done."""
        mask = np.zeros(self.slots, bool)
        mask[list(slots)] = True
        with self._dispatch():
            return self._settle(halt(state, mask))
