"""Logits on one prompt, in float32: of a model from any source, and of transformers."""

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from convert.compare import cast
from convert.opened import Opened
from convert.output import progress_bar
from jopsd.models.decoder import Decoder
from jopsd.models.hf import VOCABULARIES, abstract_decoder, leaf_name
from jopsd.models.safetensors_files import Slot, slots_by_leaf
from jopsd.models.sharding import leaf_spec
from jopsd.models.tokenizer import load_tokenizer

PROMPT = "Problem: 17 + 25 + 38 + 46. Add the numbers one after another, and say what the sum is."
RANDOM_TOKENS = 32


class Prompt(NamedTuple):
    """ids: [T] int. fault: why A and B do not read the text alike, or None."""

    ids: np.ndarray
    label: str
    fault: str | None = None


def read_prompt(a: Opened, b: Opened, text: str | None) -> Prompt:
    """The prompt through the tokenizer of A, else of B, else fixed pseudo-random tokens.

    Raises:
      ValueError: a text but no tokenizer, one that gives no token, or a token beyond the vocabulary.
    """
    vocabulary = min(a.config.vocab_size, b.config.vocab_size)
    read = {side: _encode(opened.directory, text) for side, opened in (("A", a), ("B", b)) if _can_read(opened)}
    if not read:
        if text is not None:
            raise ValueError("--prompt needs a tokenizer, and neither A nor B has one: leave it out")
        ids = np.random.default_rng(0).integers(0, vocabulary, RANDOM_TOKENS)
        return Prompt(ids, f"{RANDOM_TOKENS} random tokens (no tokenizer)")
    side, ids = next(iter(read.items()))
    if not ids:
        raise ValueError(f"--prompt {text!r} gives no token: take another")
    if max(ids) >= vocabulary:
        raise ValueError(f"the tokenizer of {side} gives token {max(ids)}, beyond the vocabulary of {vocabulary}")
    fault = None if read.get("B", ids) == ids else "the tokenizers of A and B give different tokens"
    return Prompt(np.asarray(ids), f"{len(ids)} tokens (tokenizer of {side})", fault)


def _can_read(opened: Opened) -> bool:
    return any((opened.directory / name).is_file() for name in VOCABULARIES)


def _encode(directory: Path, text: str | None) -> list[int]:
    return list(load_tokenizer(directory)(PROMPT if text is None else text)["input_ids"])


def logits(opened: Opened, ids: np.ndarray, dtypes: Mapping[str, str], mesh: Mesh, side: str) -> np.ndarray:
    """[T,V] float32, with the adapter folded in and everything computed in float32.

    dtypes: what tensors are cast to first, by name; the others keep their own.
    """
    model = _build(opened, dtypes, mesh, side)
    # The default would be bfloat16 products on a TPU.
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        return np.asarray(_forward(model, jnp.asarray(ids, jnp.int32)[None]))[0]


@jax.jit
def _forward(model: Decoder, tokens: jax.Array) -> jax.Array:
    return model.unembed(model.hidden(tokens))


def _build(opened: Opened, dtypes: Mapping[str, str], mesh: Mesh, side: str) -> Decoder:
    by_leaf = slots_by_leaf(opened.slots)

    def load(path, leaf) -> jax.Array:
        slots = by_leaf[leaf_name(path)]
        array = _leaf(opened, slots, dtypes)
        progress(array.nbytes)
        return jax.block_until_ready(jax.device_put(array, NamedSharding(mesh, leaf_spec(path, leaf.shape, mesh))))

    cfg = replace(opened.config, dtype="float32", param_dtype="float32", remat="none", attention="xla")
    with progress_bar(f"logits of {side}", opened.nbytes) as progress:
        return jax.tree_util.tree_map_with_path(load, abstract_decoder(cfg))


def _leaf(opened: Opened, slots: list[Slot], dtypes: Mapping[str, str]) -> np.ndarray:
    """A leaf in our layout from its tensors; in the widest of their dtypes, which changes no number."""

    def tensor(slot: Slot) -> np.ndarray:
        x = opened.tensor(slot)
        x = cast(x, np.dtype(dtypes.get(slot.name, x.dtype)))
        return x.T if slot.transposed else x

    if slots[0].layer is None:
        return tensor(slots[0])
    parts = [tensor(slot) for slot in slots]
    return np.stack(parts, dtype=reduce(jnp.promote_types, (part.dtype for part in parts)), casting="unsafe")


def require_torch() -> None:
    """Raises ImportError, saying what to install, where torch is missing."""
    try:
        import torch  # noqa: F401
    except ImportError:
        raise ImportError("--transformers needs torch: pip install torch (a build for the CPU is enough)") from None


def transformers_logits(directory: Path, ids: np.ndarray) -> np.ndarray:
    """[T,V] float32 of a Hugging Face directory, by transformers with torch in float32.

    Raises:
      ValueError: transformers cannot load the directory.
    """
    import torch  # slow to import, and not there for everyone
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager", local_files_only=True
        )
    except Exception as error:
        raise ValueError(f"transformers cannot load {directory}: {error}") from error
    with torch.no_grad():
        return model.eval()(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].numpy()
