"""How many pages a pool of slots has, and how prompts are cut into pieces. Host arithmetic only."""

import math
import os
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jopsd.models.decoder import ModelConfig
from jopsd.models.pages import PAGE, row_shards

EXPECTED = 0.4  # share of max_length that pages are there for, for all slots at once
LEAST_COLUMNS = 256  # but never fewer columns than this per slot, unless max_length is less

# Tokens of a piece of a prompt. A prompt is cut into pieces of the larger, its rest takes the smallest that holds it.
_WIDTHS_ON_CPU, _WIDTHS = (16, 64), (64, 256)


@dataclass(frozen=True)
class PoolShape:
    """Sizes of a pool. Hashable, so it can be a static argument.

    Attributes:
      slots: B. max_length: prompt and completion of the longest row. shards: D.
      pages: by kind of layer, pages of each shard, the first of which is nobody's. max_stop_ids: E.
      as_bits: see `jopsd.models.pages.make_pages`.
    """

    slots: int
    max_length: int
    shards: int
    pages: tuple[tuple[str, int], ...]
    max_stop_ids: int
    as_bits: bool

    @property
    def table_width(self) -> int:
        """M, in steps of 8 where it is above that, as kernels read several pages at once."""
        width = pages_for(self.max_length)
        return width if width <= 8 else -(-width // 8) * 8


def pages_for(columns: int) -> int:
    """Pages that so many columns take."""
    return -(-columns // PAGE)


def page_bytes(cfg: ModelConfig, kind: str) -> int:
    """Bytes of one page of keys and values in all layers of a kind."""
    layers = cfg.num_layers // len(cfg.pattern) * cfg.pattern.count(kind)
    return 2 * layers * cfg.num_kv_heads * PAGE * cfg.head_dim * jnp.dtype(cfg.dtype).itemsize


def pool_shape(
    cfg: ModelConfig,
    slots: int,
    max_length: int,
    max_stop_ids: int,
    *,
    chunk: int,
    mesh: Mesh | None = None,
    cache_bytes: int | None = None,
    platform: str | None = None,
) -> PoolShape:
    """The pages that a pool has: as many as `cache_bytes` hold, or for slots of the expected length.

    Args:
      cache_bytes: of all devices together; None is a share of `EXPECTED` of the longest rows.
      platform: of the devices, "cpu", "gpu" or "tpu"; None is the default backend.

    Raises:
      ValueError: `cache_bytes` that do not hold one row of `max_length`.
    """
    shards, kinds = row_shards(mesh, slots), sorted(set(cfg.pattern))
    longest = {kind: longest_columns(cfg, kind, max_length, chunk) for kind in kinds}
    # Rows end inside a page; short ones also keep the last page of their prompt for others that have the same.
    each = {
        kind: max(min(LEAST_COLUMNS, n) / PAGE + 1, min(EXPECTED * max_length, n) / PAGE + 0.5)
        for kind, n in longest.items()
    }
    wanted = {kind: 1 + math.ceil(slots / shards * count) for kind, count in each.items()}
    least = {kind: pages_for(n) + 1 for kind, n in longest.items()}
    if cache_bytes is not None:
        share = cache_bytes / (shards * sum(n * page_bytes(cfg, kind) for kind, n in wanted.items()))
        wanted = {kind: int(n * share) for kind, n in wanted.items()}
        needed = shards * sum(n * page_bytes(cfg, kind) for kind, n in least.items())
        if any(wanted[kind] < least[kind] for kind in kinds):
            raise ValueError(
                f"a cache of {cache_bytes / 1e9:.4g} GB does not hold one row of {max_length} tokens "
                f"on each of {shards} device(s), which takes {needed / 1e9:.4g} GB; "
                f"raise sampling.cache_gb or shorten the longest row"
            )
    dense = {kind: math.ceil(slots / shards) * (pages_for(n) + 1) + 1 for kind, n in longest.items()}
    pages = tuple((kind, min(max(wanted[kind], least[kind]), dense[kind])) for kind in kinds)
    platform = platform or (mesh.devices.flat[0].platform if mesh is not None else jax.default_backend())
    return PoolShape(slots, max_length, shards, pages, max_stop_ids, platform == "cpu")


def check_memory(cache_bytes: int, devices: list[jax.Device]) -> None:
    """Raises ValueError where the devices together have less memory than a cache is to take."""
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    if devices[0].platform == "cpu":
        room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # that CPU devices share
    elif all(limits):
        room = sum(limits)
    else:
        return
    if cache_bytes > room:
        raise ValueError(
            f"a cache of {cache_bytes / 1e9:.4g} GB is more than the {room / 1e9:.4g} GB of memory that its "
            f"{len(devices)} device(s) have; lower sampling.cache_gb"
        )


def longest_columns(cfg: ModelConfig, kind: str, max_length: int, chunk: int) -> int:
    """Columns that the longest row holds at once in layers of a kind: those behind a window are given back."""
    if kind == "full":
        return max_length
    return min(max_length, cfg.window + max(chunk, _WIDTHS[-1]) + 2 * PAGE)


def piece_widths(platform: str) -> tuple[int, ...]:
    """Columns that a piece of a prompt may have on a platform, one compiled program for each."""
    return _WIDTHS_ON_CPU if platform == "cpu" else _WIDTHS


class Piece(NamedTuple):
    """A part of a prompt that is read in one go: `count` tokens from `start` on, padded to `width`."""

    start: int
    count: int
    width: int


def pieces_of(length: int, platform: str) -> list[Piece]:
    """The pieces of a prompt's first `length` tokens. They depend on the length alone, and so do its bits."""
    widths, found, start = piece_widths(platform), [], 0
    while start < length:
        left = length - start
        width = next((width for width in widths if width >= left), widths[-1])
        found.append(Piece(start, min(left, width), width))
        start += width
    return found
