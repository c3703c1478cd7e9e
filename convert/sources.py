"""What a SOURCE on the command line means."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from jopsd.checkpoint import parse_run
from jopsd.config import RUN_CONFIG
from jopsd.models.hf import CONFIG
from jopsd.models.peft import CONFIG as ADAPTER_CONFIG
from jopsd.models.safetensors_files import INDEX, SINGLE
from jopsd.paths import expand
from jopsd.setup import BUILTIN, source_dir

Kind = Literal["hf", "orbax", "run", "peft"]
MODEL = "model"  # the checkpoint in an orbax directory
LOOKS: dict[Kind, str] = {
    "run": "a run (a folder with config.yaml and checkpoints, and :STEP if wanted)",
    "orbax": "a folder made by to-flax",
    "hf": "a Hugging Face model directory (with config.json)",
    "peft": "a PEFT adapter directory (with adapter_config.json)",
}


class Source(NamedTuple):
    """step: of a run, None for the newest. adapter: a PEFT directory, for `BASE+ADAPTER_DIR`."""

    kind: Kind
    path: Path
    step: int | None = None
    adapter: Path | None = None


def find_source(text: str, key: str, allowed: Sequence[Kind], weights: bool = True) -> Source:
    """Classifies a SOURCE by what lies there.

    Args:
      key: the flag, for messages.
      allowed: kinds that the command takes. "hf" includes hub ids and built-in names.
      weights: False fetches no weights for a hub id.

    Raises:
      ValueError: it is nothing of the kind.
    """
    run, step = parse_run(text)
    for path, at in ((Path(text), None), (run, step)):
        kind = _kind(path)
        if kind in allowed and (at is None or kind == "run"):
            return Source(kind, path, at)
    if "hf" in allowed and (text in BUILTIN or not Path(text).exists()):
        return Source("hf", source_dir(text, key, weights))
    looks = [LOOKS[kind] for kind in LOOKS if kind in allowed]
    wanted = f"neither {' nor '.join(looks)}" if len(looks) > 1 else f"not {looks[0]}"
    found = f"; it is {LOOKS[kind]}" if (kind := _kind(Path(text))) else ""
    raise ValueError(f"{key} {text} is {wanted}{found}")


def find_side(text: str, key: str) -> Source:
    """Classifies a side of `verify`: a model, or `BASE+ADAPTER_DIR`.

    Raises:
      ValueError: it is nothing of the kind.
    """
    base, plus, adapter = text.rpartition("+")
    if not plus or Path(expand(text)).exists():
        return find_source(expand(text), key, ("run", "orbax", "hf"))
    base, adapter = expand(base), expand(adapter)
    source = find_source(base, key, ("orbax", "hf"))
    return source._replace(adapter=find_source(adapter, key, ("peft",)).path)


def _kind(path: Path) -> Kind | None:
    """What a folder holds. An adapter beside a config.json but without weights is an adapter: some savers add one."""
    has = lambda name: (path / name).is_file()  # noqa: E731
    if has(ADAPTER_CONFIG) and not (has(SINGLE) or has(INDEX)):
        return "peft"
    if has(CONFIG):
        return "orbax" if (path / MODEL).is_dir() and not (has(SINGLE) or has(INDEX)) else "hf"
    return "run" if has(RUN_CONFIG) else None
