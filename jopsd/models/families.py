"""What differs between model families on disk: option names and tensor names. A table, not subclasses.

Leaves of our tree are named by their path ("embed", "layers.q"). A kernel of ours is [in, out]; on disk it is
[out, in], hence `transposed`. Every option of a config.json is read, known to change nothing, or refused by name.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from jopsd.models.rope import Linear, Llama3, Scaling, Yarn


class Tensor(NamedTuple):
    """Where a leaf lives on disk. A name with `{layer}` holds one layer of a stacked leaf."""

    name: str
    transposed: bool = False


class Family(NamedTuple):
    """One architecture on disk.

    Attributes:
      fields: (config.json as a dict, its path for messages) -> the `ModelConfig` fields that describe the shape and the
        mathematics (not dtype, param_dtype, remat, attention). ValueError for what we cannot run.
      options: names of the options it reads beside those that all families share.
      tensors: every leaf that a decoder of this family may have, by its path.
    """

    fields: Callable[[dict, str], dict[str, Any]]
    options: frozenset[str]
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
    bare = [name for name in architectures if f"{name.removesuffix('Model')}ForCausalLM" in FAMILIES]
    why = " without its output head: save it as ...ForCausalLM" if bare else ""
    raise ValueError(
        f"{where}: architectures = {architectures!r} is not supported{why}; supported are {sorted(FAMILIES)}"
    )


def model_fields(config: dict, where: str) -> dict[str, Any]:
    """The `ModelConfig` fields that a config.json decides.

    Raises:
      ValueError: an architecture, option or value that we do not implement, or a missing one; by file and key.
    """
    name, family = find_family(config, where)
    known = _SHARED_OPTIONS | family.options | _WITHOUT_EFFECT
    for key, value in config.items():
        # What is off by being empty cannot change anything. 0 and 0.0 are values.
        empty = value is None or value is False or value == [] or value == {}
        harmless = key.startswith("_") or key.endswith(_ENDS_WITHOUT_EFFECT) or value in _OFF.get(key, ())
        if key not in known and not harmless and not empty:
            raise ValueError(
                f"{where}: option {key} = {value!r} is not supported for {name}; if it changes nothing about the "
                "model, remove it from the file"
            )
    _reject(
        config, where, {"quantization_config": (None,), "hidden_act": ("silu", "swish"), "attention_dropout": (0, None)}
    )
    return family.fields(config, where)


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


# ------------------------------------------------------------------------------------------------- rotary embeddings

# Options of each kind of scaling: those that must be there, then those that may.
_SCALINGS = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ("original_max_position_embeddings",)),
    "yarn": (
        ("factor",),
        (
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ),
    ),
}


def _rope_of(options: dict, config: dict, where: str) -> Scaling | None:
    """The scaling that one dict of rotary options describes."""
    kind = options.get("rope_type", options.get("type", "default"))  # older files call it "type"
    if kind not in _SCALINGS:
        raise ValueError(f"{where}.rope_type = {kind!r} is not supported, only {sorted(_SCALINGS)}")
    required, optional = _SCALINGS[kind]
    _reject(options, where, {"partial_rotary_factor": (None, 1)})
    known = {*required, *optional, "rope_type", "type", "rope_theta", "partial_rotary_factor"}
    for key, value in options.items():
        if key not in known and value is not None:
            raise ValueError(f"{where}.{key} = {value!r} is not supported with rope_type {kind!r}")
    need = lambda key: float(_require(options, where, key))  # noqa: E731
    length = options.get("original_max_position_embeddings") or config.get("max_position_embeddings")
    if kind in ("llama3", "yarn") and length is None:
        raise ValueError(f"{where}: original_max_position_embeddings is missing")
    match kind:
        case "linear":
            return Linear(need("factor"))
        case "llama3":
            return Llama3(need("factor"), need("low_freq_factor"), need("high_freq_factor"), int(length))
        case "yarn":
            fast, slow = (float(options.get(key) or given) for key, given in (("beta_fast", 32), ("beta_slow", 1)))
            sharpness = _yarn_sharpness(options, need("factor"))
            return Yarn(need("factor"), int(length), sharpness, fast, slow, options.get("truncate") is not False)
    return None


def _yarn_sharpness(options: dict, factor: float) -> float:
    """The factor on cos and sin: as given, else YaRN's 0.1 ln(factor) + 1, or DeepSeek's ratio of two such."""
    if options.get("attention_factor") is not None:
        return float(options["attention_factor"])
    grown = lambda weight: 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0  # noqa: E731
    if options.get("mscale") and options.get("mscale_all_dim"):
        return grown(options["mscale"]) / grown(options["mscale_all_dim"])
    return grown(1.0)


def _rope(config: dict, where: str, by_layer_type: bool = False, theta: float | None = None) -> dict[str, Any]:
    """The rotary fields, from `rope_theta` and `rope_scaling` (transformers 4) or `rope_parameters` (transformers 5).

    by_layer_type: `rope_parameters` may hold one dict per layer type, and sliding layers are never scaled.
    theta: the base where none is given; None is an error.

    Raises:
      ValueError: no base, two that differ, or a scaling that we do not implement.
    """
    found = {"rope_scaling": config.get("rope_scaling") or {}, "rope_parameters": config.get("rope_parameters") or {}}
    sliding: dict = {}
    if by_layer_type and found["rope_parameters"].keys() & {"full_attention", "sliding_attention"}:
        both = found.pop("rope_parameters")
        if set(both) - {"full_attention", "sliding_attention"}:
            raise ValueError(f"{where}: rope_parameters holds {list(both)}, not just full_ and sliding_attention")
        sliding = both.get("sliding_attention") or {}
        found["rope_parameters.full_attention"] = both.get("full_attention") or {}
        if _rope_of(sliding, config, f"{where}: rope_parameters.sliding_attention") is not None:
            raise ValueError(f"{where}: rope_parameters.sliding_attention is scaled, which is not supported")
    thetas = {f"{key}.rope_theta": options.get("rope_theta") for key, options in found.items()}
    thetas |= {"rope_theta": config.get("rope_theta"), "sliding rope_theta": sliding.get("rope_theta")}
    thetas = {key: float(value) for key, value in thetas.items() if value is not None}
    if not thetas and theta is not None:
        thetas = {"rope_theta": theta}
    if not thetas:
        raise ValueError(f"{where}: rope_theta is missing (also as rope_parameters.rope_theta)")
    if len(set(thetas.values())) > 1:
        raise ValueError(f"{where}: the rotary base is given twice and differs: {thetas}")
    scalings = [_rope_of(options, config, f"{where}: {key}") for key, options in found.items() if options]
    scalings = [scaling for scaling in scalings if scaling is not None]
    if len(set(scalings)) > 1:
        raise ValueError(f"{where}: rope_scaling and rope_parameters differ")
    return {
        "rope_theta": next(iter(thetas.values())),
        "rope_scaling": scalings[0] if scalings else None,
        "stretch_sliding": not by_layer_type,
    }


# --------------------------------------------------------------------------------------------------------- families


def _shape(config: dict, where: str) -> dict[str, Any]:
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
        "rms_eps": float(need("rms_norm_eps")),
        "tie_embeddings": bool(config.get("tie_word_embeddings", False)),
    }


def _layers(config: dict, where: str, default: Callable[[int], bool], window: int | None) -> dict[str, Any]:
    """The pattern of full and sliding layers. default: whether layer i slides, where layer_types does not say."""
    count = int(_require(config, where, "num_hidden_layers"))
    names = {"full_attention": "full", "sliding_attention": "sliding"}
    given = config.get("layer_types") or ["sliding_attention" if default(i) else "full_attention" for i in range(count)]
    for layer, kind in enumerate(given):
        if kind not in names:
            raise ValueError(f"{where}: layer_types[{layer}] = {kind!r} is not supported, only {sorted(names)}")
    if len(given) != count:
        raise ValueError(f"{where}: layer_types names {len(given)} layers, num_hidden_layers is {count}")
    if "sliding_attention" in given and not window:
        raise ValueError(f"{where}: layer_types has sliding_attention, but no sliding_window is in use")
    period = next(n for n in range(1, count + 1) if count % n == 0 and given == given[:n] * (count // n))
    pattern = tuple(names[kind] for kind in given[:period])
    return {"pattern": pattern, "window": int(window) if "sliding" in pattern else None}


def _qwen_layers(config: dict, where: str) -> dict[str, Any]:
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    first = config.get("max_window_layers")
    first = 28 if first is None else int(first)  # the default of transformers
    return _layers(config, where, lambda layer: bool(window) and layer >= first, window)


_ATTENTION_BIASES, _MLP_BIASES = ("q", "k", "v", "o"), ("gate", "up", "down")


def _qwen3(config: dict, where: str) -> dict[str, Any]:
    biases = _ATTENTION_BIASES if config.get("attention_bias") else ()
    layers = _qwen_layers(config, where)
    return {**_shape(config, where), **_rope(config, where), **layers, "qk_norm": "head", "biases": biases}


def _qwen2(config: dict, where: str) -> dict[str, Any]:
    _reject(config, where, {"use_mrope": (False, None)})
    layers = _qwen_layers(config, where)
    return {**_shape(config, where), **_rope(config, where), **layers, "qk_norm": "none", "biases": ("q", "k", "v")}


def _llama(config: dict, where: str) -> dict[str, Any]:
    biases = _ATTENTION_BIASES if config.get("attention_bias") else ()
    biases += _MLP_BIASES if config.get("mlp_bias") else ()
    rope = _rope(config, where, theta=10000.0)  # files of Llama 2 and TinyLlama leave it out
    return {**_shape(config, where), **rope, "qk_norm": "none", "biases": biases}


def _olmo3(config: dict, where: str) -> dict[str, Any]:
    biases = _ATTENTION_BIASES if config.get("attention_bias") else ()
    layers = _layers(config, where, lambda layer: (layer + 1) % 4 != 0, config.get("sliding_window"))
    rope = _rope(config, where, by_layer_type=True)
    return {**_shape(config, where), **rope, **layers, "qk_norm": "projection", "norm": "post", "biases": biases}


_SHARED_OPTIONS = {
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "rms_norm_eps",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "hidden_act",
    "attention_dropout",
    "quantization_config",
}
_QWEN_OPTIONS = frozenset({"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"})
# Names, token ids, how the model was made or is to be drawn from: nothing about the mathematics.
_WITHOUT_EFFECT = {
    "architectures",
    "model_type",
    "auto_map",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "name_or_path",
    "tokenizer_class",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "use_cache",
    "initializer_range",
    "max_position_embeddings",  # no limit of ours; a length for YaRN where it gives none
    "pretraining_tp",
    "attn_implementation",
    "chunk_size_feed_forward",
    "return_dict",
    "id2label",
    "label2id",
    "finetuning_task",
    "task_specific_params",
    "unsloth_version",
    "unsloth_fixed",
    *("is_llama_config", "model_max_length", "max_sequence_length", "classifier_dropout"),
    # What transformers 4 writes of every config when it is told to leave nothing out.
    *("is_decoder", "output_attentions", "output_hidden_states", "output_scores", "return_dict_in_generate"),
    *("problem_type", "prefix", "remove_invalid_values", "tf_legacy_loss", "torchscript", "use_bfloat16"),
    *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty"),
    *("temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "num_return_sequences"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "exponential_decay_length_penalty"),
    *("suppress_tokens", "begin_suppress_tokens"),
}
_ENDS_WITHOUT_EFFECT = ("_token_id", "_token_ids")
# Options that mean something, with the values by which they change nothing.
_OFF = {
    "partial_rotary_factor": (1,),
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale"), (1,)),
    **dict.fromkeys(("hidden_dropout", "hidden_dropout_prob", "resid_pdrop", "embd_pdrop", "attn_pdrop"), (0,)),
    **dict.fromkeys(("num_experts", "num_local_experts", "num_nextn_predict_layers"), (0,)),
}

_LAYER = "model.layers.{layer}."
_ATTENTION, _MLP = f"{_LAYER}self_attn.", f"{_LAYER}mlp."
# Names that Llama-like checkpoints share.
_COMMON = {
    "embed": Tensor("model.embed_tokens.weight"),
    "final_norm": Tensor("model.norm.weight"),
    "lm_head": Tensor("lm_head.weight"),
    **{f"layers.{p}": Tensor(f"{_ATTENTION}{p}_proj.weight", True) for p in _ATTENTION_BIASES},
    **{f"layers.{p}": Tensor(f"{_MLP}{p}_proj.weight", True) for p in _MLP_BIASES},
    **{f"layers.{p}_bias": Tensor(f"{_ATTENTION}{p}_proj.bias") for p in _ATTENTION_BIASES},
    **{f"layers.{p}_bias": Tensor(f"{_MLP}{p}_proj.bias") for p in _MLP_BIASES},
    "layers.attn_norm": Tensor(f"{_LAYER}input_layernorm.weight"),
    "layers.mlp_norm": Tensor(f"{_LAYER}post_attention_layernorm.weight"),
}
_QK_NORM = {f"layers.{p}_norm": Tensor(f"{_ATTENTION}{p}_norm.weight") for p in ("q", "k")}
_POST_NORM = {
    "layers.attn_norm": Tensor(f"{_LAYER}post_attention_layernorm.weight"),
    "layers.mlp_norm": Tensor(f"{_LAYER}post_feedforward_layernorm.weight"),
}

FAMILIES: dict[str, Family] = {
    "Qwen3ForCausalLM": Family(_qwen3, _QWEN_OPTIONS | {"attention_bias"}, _COMMON | _QK_NORM),
    "Qwen2ForCausalLM": Family(_qwen2, _QWEN_OPTIONS | {"use_mrope"}, _COMMON),
    "LlamaForCausalLM": Family(_llama, frozenset({"attention_bias", "mlp_bias"}), _COMMON),
    "Olmo3ForCausalLM": Family(
        _olmo3, frozenset({"attention_bias", "sliding_window", "layer_types"}), _COMMON | _QK_NORM | _POST_NORM
    ),
}
