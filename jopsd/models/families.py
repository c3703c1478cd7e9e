"""What differs between model families on disk: option names and tensor names. A table, not subclasses.

Leaves of our tree are named by their path ("embed", "layers.q"). A kernel of ours is [in, out]; on disk it is
[out, in], hence `transposed`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jopsd.models.decoder import ModelConfig


class Tensor(NamedTuple):
    """Where a leaf lives on disk. A name with `{layer}` holds one layer of a stacked leaf."""

    name: str
    transposed: bool = False


class Family(NamedTuple):
    """One architecture on disk.

    Attributes:
      config_from_hf: (config.json as a dict, its path for messages) -> the `ModelConfig` fields that describe the
        shape and the mathematics (not dtype, param_dtype, remat, attention). ValueError for what we cannot run.
      config_to_hf: the reverse, without the dtype.
      tensors: every leaf of a decoder of this family, by its path.
    """

    config_from_hf: Callable[[dict, str], dict[str, Any]]
    config_to_hf: Callable[[ModelConfig], dict[str, Any]]
    tensors: dict[str, Tensor]


def find_family(config: dict, where: str) -> tuple[str, Family]:
    """The architecture that a config.json names, and its row of the table.

    Raises:
      ValueError: no architecture is named, or one that is not in `FAMILIES`.
    """
    architectures = config.get("architectures") or []
    for name in architectures:
        if name in FAMILIES:
            return name, FAMILIES[name]
    raise ValueError(f"{where}: architectures = {architectures!r} is not supported; supported are {sorted(FAMILIES)}")


def _require(config: dict, where: str, key: str):
    if config.get(key) is None:
        raise ValueError(f"{where}: {key} is missing")
    return config[key]


def _reject(config: dict, where: str, supported: dict[str, tuple]) -> None:
    """Refuses an option set to anything but the values we implement; an absent option is fine."""
    for key, values in supported.items():
        if key in config and config[key] not in values:
            allowed = " or ".join(map(repr, values))
            raise ValueError(f"{where}: {key} = {config[key]!r} is not supported, only {allowed}")


def rope_theta(config: dict, where: str) -> float:
    """The rotary base, from `rope_theta` (transformers 4) or `rope_parameters` (transformers 5).

    Raises:
      ValueError: no base, two that differ, or a scaled rotary embedding.
    """
    thetas = {}
    if config.get("rope_theta") is not None:
        thetas["rope_theta"] = float(config["rope_theta"])
    for key in ("rope_parameters", "rope_scaling"):
        options = config.get(key) or {}
        # Older files call the type "type".
        kind = options.get("rope_type", options.get("type", "default"))
        if kind != "default":
            raise ValueError(f"{where}: {key}.rope_type = {kind!r} is not supported, only 'default'")
        _reject(options, f"{where}: {key}", {"partial_rotary_factor": (None, 1, 1.0)})
        if options.get("rope_theta") is not None:
            thetas[f"{key}.rope_theta"] = float(options["rope_theta"])
    if not thetas:
        raise ValueError(f"{where}: rope_theta is missing (also as rope_parameters.rope_theta)")
    if len(set(thetas.values())) > 1:
        raise ValueError(f"{where}: the rotary base is given twice and differs: {thetas}")
    return next(iter(thetas.values()))


def _shape_fields(config: dict, where: str) -> dict[str, Any]:
    """Fields that all families with grouped-query attention and a gated feed-forward name alike."""
    need = lambda key: _require(config, where, key)  # noqa: E731
    heads = int(need("num_attention_heads"))
    head_dim = config.get("head_dim")
    if head_dim is None and int(need("hidden_size")) % heads:
        raise ValueError(f"{where}: head_dim is missing and hidden_size is not a multiple of num_attention_heads")
    return {
        "vocab_size": int(need("vocab_size")),
        "hidden_size": int(need("hidden_size")),
        "num_layers": int(need("num_hidden_layers")),
        "num_heads": heads,
        "num_kv_heads": int(config.get("num_key_value_heads") or heads),
        "head_dim": int(head_dim or int(config["hidden_size"]) // heads),
        "intermediate_size": int(need("intermediate_size")),
        "rope_theta": rope_theta(config, where),
        "rms_eps": float(need("rms_norm_eps")),
        "tie_embeddings": bool(config.get("tie_word_embeddings", False)),
    }


def _qwen3_from_hf(config: dict, where: str) -> dict[str, Any]:
    supported = {
        "hidden_act": ("silu",),
        "attention_bias": (False, None),
        "attention_dropout": (0, 0.0, None),
        "use_sliding_window": (False, None),
        "partial_rotary_factor": (1, 1.0, None),
        "quantization_config": (None,),
    }
    _reject(config, where, supported)
    for layer, kind in enumerate(config.get("layer_types") or []):
        if kind != "full_attention":
            raise ValueError(f"{where}: layer_types[{layer}] = {kind!r} is not supported, only 'full_attention'")
    return _shape_fields(config, where)


def _qwen3_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    # The rotary base at top level and `torch_dtype` (added by the caller) are read by transformers 4 and 5 alike.
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.hidden_size,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "intermediate_size": cfg.intermediate_size,
        "rope_theta": cfg.rope_theta,
        "rope_scaling": None,
        "rms_norm_eps": cfg.rms_eps,
        "tie_word_embeddings": cfg.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_position_embeddings": 40960,  # not a limit of ours; what the published Qwen3 models state
        "initializer_range": 0.02,
        "use_cache": True,
    }


_LAYER = "model.layers.{layer}."
# Names that Llama-like checkpoints share.
_COMMON = {
    "embed": Tensor("model.embed_tokens.weight"),
    "final_norm": Tensor("model.norm.weight"),
    "lm_head": Tensor("lm_head.weight"),
    **{f"layers.{p}": Tensor(f"{_LAYER}self_attn.{p}_proj.weight", True) for p in ("q", "k", "v", "o")},
    **{f"layers.{p}": Tensor(f"{_LAYER}mlp.{p}_proj.weight", True) for p in ("gate", "up", "down")},
    "layers.attn_norm": Tensor(f"{_LAYER}input_layernorm.weight"),
    "layers.mlp_norm": Tensor(f"{_LAYER}post_attention_layernorm.weight"),
}

FAMILIES: dict[str, Family] = {
    "Qwen3ForCausalLM": Family(
        config_from_hf=_qwen3_from_hf,
        config_to_hf=_qwen3_to_hf,
        tensors=_COMMON
        | {
            "layers.q_norm": Tensor(f"{_LAYER}self_attn.q_norm.weight"),
            "layers.k_norm": Tensor(f"{_LAYER}self_attn.k_norm.weight"),
        },
    ),
}
