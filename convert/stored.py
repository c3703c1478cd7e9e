"""What is on disk, from headers and metadata: shapes and dtypes by name."""

import re
from collections import Counter
from pathlib import Path

import jax
import orbax.checkpoint as ocp
import tensorstore

from jopsd.checkpoint import first_line
from jopsd.models.decoder import ModelConfig
from jopsd.models.hf import checked_tensors, leaf_name, leaves_of
from jopsd.models.peft import WEIGHTS
from jopsd.models.safetensors_files import INDEX, SINGLE, Stored, file_tensors

Shapes = dict[str, jax.ShapeDtypeStruct]


def hf_shapes(directory: Path, cfg: ModelConfig) -> Shapes | None:
    """The tensors of a Hugging Face directory; None for a config.json alone.

    Raises:
      ValueError, FileNotFoundError: they are not those of the config, or a file is damaged or missing; by file.
    """
    if not any((directory / name).is_file() for name in (SINGLE, INDEX)):
        return None
    return _shapes(checked_tensors(directory, cfg)[0])


def orbax_shapes(path: Path, like, *prefix: str) -> Shapes:
    """The leaves of an orbax checkpoint under `prefix`. like: a tree of the shapes that it must have.

    Raises:
      ValueError: they are not of these shapes, or there is no metadata that can be read.
    """
    try:
        if (path / "manifest.ocdbt").is_file():  # damage here makes orbax print tracebacks
            tensorstore.KvStore.open(f"file://{path.resolve()}/|ocdbt:").result().list().result()
        tree = ocp.PyTreeCheckpointHandler().metadata(path.resolve()).tree
        for key in prefix:
            tree = tree[key]
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        found = {leaf_name(keys): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for keys, leaf in leaves}
    except Exception as error:
        raise ValueError(
            f"{path} has no metadata that can be read ({first_line(error)}): make it again, or take another step"
        ) from error
    shape_of = lambda leaves, name: leaves[name].shape if name in leaves else None  # noqa: E731
    expected = leaves_of(like)
    for name in sorted(found | expected):
        ours, theirs = shape_of(found, name), shape_of(expected, name)
        if ours != theirs:
            raise ValueError(
                f"{path} does not hold what its config describes: {name} has shape {ours}, expected {theirs}; config "
                "and weights do not belong together"
            )
    return found


def adapter_shapes(directory: Path) -> Shapes | None:
    """The tensors of a PEFT directory; None for an adapter_config.json alone."""
    file = directory / WEIGHTS
    return _shapes(file_tensors(file)) if file.is_file() else None


def adapter_tree(stored: Shapes) -> dict[str, Shapes]:
    """The leaves that PEFT tensors become: {"a": {"q": [L,in,R], ...}, "b": {"q": [L,R,out], ...}}, float32."""
    pattern = re.compile(r".*\.layers\.\d+\.\w+\.(\w+)_proj\.lora_([AB])\.weight")
    matches = [(pattern.fullmatch(name), shape.shape) for name, shape in stored.items()]
    found = [(match[2].lower(), match[1], shape) for match, shape in matches if match]
    layers = Counter((factor, name) for factor, name, _ in found)
    tree: dict[str, Shapes] = {"a": {}, "b": {}}
    for factor, name, shape in found:
        tree[factor][name] = jax.ShapeDtypeStruct((layers[factor, name], *shape[::-1]), "float32")
    return tree


def _shapes(found: dict[str, Stored]) -> Shapes:
    return {name: jax.ShapeDtypeStruct(stored.shape, stored.dtype) for name, stored in found.items()}
