"""What commands that read or write weights say and take: a progress bar, the size of a file."""

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from jopsd.models.safetensors_files import Progress


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Progress]:
    """A bar in bytes on stderr, where that is a terminal. Gives the function to tell of bytes read or written."""
    with tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        yield bar.update


def shard_bytes(gigabytes: float) -> int:
    """--max-shard-gb in bytes.

    Raises:
      ValueError: it is not above 0.
    """
    if not 0 < gigabytes < float("inf"):
        raise ValueError(f"--max-shard-gb {gigabytes:g} must be a size above 0, the largest of one file")
    return max(1, int(gigabytes * 1e9))
