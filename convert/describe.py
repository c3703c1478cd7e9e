"""What a model, a run or an adapter is: shape, parameters, dtypes, bytes. Reads headers and metadata, never weights."""

import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax

from convert.opened import abstract_adapter, open_run, run_config
from convert.placement import parse_mesh, place, placement_table
from convert.sources import LOOKS, MODEL, Source, find_source
from convert.stored import Shapes, adapter_shapes, adapter_tree, hf_shapes, orbax_shapes
from convert.tables import size, table
from jopsd import checkpoint
from jopsd.models.decoder import ModelConfig
from jopsd.models.hf import CONFIG, abstract_decoder, architecture, read_config
from jopsd.models.lora import lora_scale
from jopsd.models.peft import CONFIG as ADAPTER_CONFIG
from jopsd.models.safetensors_files import read_json

Facts = list[tuple[str, str]]


class Part(NamedTuple):
    """Some weights. stored: what is on disk, by name; None where there are none. tree: what jopsd makes of them."""

    title: str
    stored: Shapes | None
    tree: Any


def describe(text: str, mesh: str | None = None, tensors: bool = False) -> str:
    """A SOURCE in words and tables.

    Args:
      mesh: such as "fsdp=8,tensor=2"; adds the bytes on each of its devices. tensors: adds a line for every tensor.

    Raises:
      ValueError, OSError, RuntimeError: it cannot be read or is not what its config says; by file.
    """
    devices = None if mesh is None else parse_mesh(mesh)
    if Path(text).name == CONFIG:
        text = str(Path(text).parent)
    source = find_source(text, "SOURCE", tuple(LOOKS), weights=False)
    facts, parts = {"hf": _hf, "orbax": _orbax, "run": _run, "peft": _peft}[source.kind](source)
    lines = [f"{key:<14}{value}" for key, value in facts + [fact for part in parts for fact in _amount(part)]]
    blocks = ["\n".join(lines)]
    if tensors:
        blocks += [_tensor_table(part) for part in parts if part.stored is not None]
    if devices is not None:
        placed = {part.title: place(part.tree, devices) for part in parts}
        blocks += [placement_table(leaves, devices, title) for title, leaves in placed.items()]
        if len(parts) > 1:
            total = sum(leaf.nbytes for leaves in placed.values() for leaf in leaves)
            blocks.append(f"total of {' and '.join(placed)} on a device: {size(total)}")
    return "\n\n".join(blocks)


# ---------------------------------------------------------------------------------------------------------- sources


def _hf(source: Source) -> tuple[Facts, list[Part]]:
    cfg = read_config(source.path)
    facts = [("source", f"Hugging Face directory {source.path}"), *_shape_facts(source.path, cfg)]
    return facts, [Part("weights", hf_shapes(source.path, cfg), abstract_decoder(cfg))]


def _orbax(source: Source) -> tuple[Facts, list[Part]]:
    cfg = read_config(source.path)
    tree = abstract_decoder(cfg)
    facts = [("source", f"orbax directory {source.path}"), *_shape_facts(source.path, cfg)]
    return facts, [Part("weights", orbax_shapes(source.path / MODEL, tree), tree)]


def _run(source: Source) -> tuple[Facts, list[Part]]:
    run = open_run(source.path, source.step, weights=False)
    cfg, lora = run_config(run), run.config.lora
    state = checkpoint.checkpoint_dir(run.path) / str(run.step) / checkpoint.STATE
    tree = abstract_decoder(cfg) if lora is None else abstract_adapter(run)
    trained = Part("weights" if lora is None else "adapter", orbax_shapes(state, tree, "trainable"), tree)
    facts = [("source", f"step {run.step} of run {run.path}"), ("method", run.config.method.name)]
    facts += [("model", run.config.model.path), ("trained", "all weights" if lora is None else _lora_fact(lora))]
    facts += _shape_facts(run.directory, cfg)
    if lora is None:
        return facts, [trained]
    return facts, [Part("base", hf_shapes(run.directory, cfg), abstract_decoder(cfg)), trained]


def _lora_fact(lora) -> str:
    return f"{_rank_fact(lora.rank, lora.alpha, lora.rslora)}, on {', '.join(lora.targets)}"


def _rank_fact(rank: int, alpha: float, rslora: bool) -> str:
    over = "sqrt(rank)" if rslora else "rank"
    return f"adapter of rank {rank}, alpha {alpha:g}, scale {lora_scale(rank, alpha, rslora):g} (alpha / {over})"


def _peft(source: Source) -> tuple[Facts, list[Part]]:
    path = source.path / ADAPTER_CONFIG
    config = read_json(path, "it must be a PEFT directory")
    rank, alpha, rslora = config.get("r"), config.get("lora_alpha"), bool(config.get("use_rslora"))
    if config.get("peft_type") != "LORA" or type(rank) is not int or rank < 1 or type(alpha) not in (int, float):
        raise ValueError(f"{path} does not describe a LoRA adapter: it needs peft_type LORA, r and lora_alpha")
    facts = [("source", f"PEFT directory {source.path}"), ("base", str(config.get("base_model_name_or_path")))]
    facts.append(("kind", _rank_fact(rank, alpha, rslora)))
    stored = adapter_shapes(source.path)
    tree = adapter_tree(stored or {})
    return [*facts, ("targets", ", ".join(tree["a"]) or "none")], [Part("adapter", stored, tree)]


# ------------------------------------------------------------------------------------------------------------ words


def _shape_facts(directory: Path, cfg: ModelConfig) -> Facts:
    norm = {"head": "over each head", "projection": "over all heads at once", "none": "none"}[cfg.qk_norm]
    places = {"pre": "before attention and feed-forward", "post": "after attention and feed-forward"}[cfg.norm]
    head = "the embedding is the head (tied)" if cfg.tie_embeddings else "the head is not the embedding"
    return [
        ("architecture", architecture(directory)),
        ("layers", f"{cfg.num_layers}, width {cfg.hidden_size}, feed-forward {cfg.intermediate_size}"),
        ("heads", f"{cfg.num_heads} of size {cfg.head_dim}, {cfg.num_kv_heads} for keys and values"),
        ("attention", _attention(cfg)),
        ("rotary", _rotary(cfg)),
        ("norms", f"{places}, eps {cfg.rms_eps:g}; of queries and keys: {norm}"),
        ("biases", ", ".join(cfg.biases) or "none"),
        ("vocabulary", f"{cfg.vocab_size}, {head}"),
    ]


def _attention(cfg: ModelConfig) -> str:
    if cfg.window is None:
        return "full in all layers"
    layers = f"layers by turns: {', '.join(cfg.pattern)}" if "full" in cfg.pattern else "in all layers"
    return f"window {cfg.window}, {layers}"


def _rotary(cfg: ModelConfig) -> str:
    told = f"base {cfg.rope_theta:g}"
    if cfg.rope_scaling is None:
        return f"{told}, not scaled"
    options = ", ".join(f"{key} {value:g}" for key, value in asdict(cfg.rope_scaling).items())
    only = "" if cfg.stretch_sliding or cfg.window is None else " (full layers only)"
    return f"{told}, {type(cfg.rope_scaling).__name__} with {options}{only}"


def _amount(part: Part) -> Facts:
    """Parameters, dtypes and bytes."""
    count = sum(leaf.size for leaf in jax.tree.leaves(part.tree))
    facts = [(part.title, f"{count:,} parameters")]
    if part.stored is None:
        return [*facts, ("", f"no weights here, only {ADAPTER_CONFIG if part.title == 'adapter' else CONFIG}")]
    dtypes = Counter(str(x.dtype) for x in part.stored.values())
    told = ", ".join(f"{count} tensors {dtype}" for dtype, count in dtypes.most_common())
    return [*facts, ("", f"{told}, {size(sum(map(_nbytes, part.stored.values())))}")]


def _nbytes(x: jax.ShapeDtypeStruct) -> int:
    return math.prod(x.shape) * x.dtype.itemsize


def _tensor_table(part: Part) -> str:
    rows = [[name, str(list(x.shape)), str(x.dtype), f"{_nbytes(x):,}"] for name, x in part.stored.items()]
    return f"{part.title}\n{table(['tensor', 'shape', 'dtype', 'bytes'], rows, 'lllr')}"
