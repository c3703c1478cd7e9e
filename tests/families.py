"""Small random transformers models of every family, each with a branch of the decoder that the others lack."""

from typing import NamedTuple

VOCAB = 61
_SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 40, "attn_implementation": "eager"}
# A window of 5 is shorter than every sequence that the tests read.
_WINDOW = 5
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 16,
    "attention_factor": 1.2079441541679836,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
}


class Case(NamedTuple):
    """family: the transformers prefix. options: of its config. layers, heads: (query, key-value)."""

    family: str
    layers: int
    heads: tuple[int, int]
    options: dict


def rope(theta: float, **scaling) -> dict:
    return {"rope_theta": theta, "rope_type": "default", **scaling}


CASES: dict[str, Case] = {
    "qwen3": Case("Qwen3", 3, (4, 2), {"head_dim": 16, "rope_parameters": rope(1e4), "tie_word_embeddings": False}),
    "qwen3-yarn-bias": Case(
        "Qwen3",
        2,
        (6, 1),
        {
            "head_dim": 12,
            "rope_parameters": rope(1e4, rope_type="yarn", factor=4.0, original_max_position_embeddings=12),
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3-late-window": Case(
        "Qwen3",
        3,
        (4, 2),
        {
            "head_dim": 8,
            "rope_parameters": rope(1e6),
            "use_sliding_window": True,
            "sliding_window": _WINDOW,
            "max_window_layers": 2,
        },
    ),
    "qwen2": Case("Qwen2", 3, (4, 2), {"rope_parameters": rope(1e6), "tie_word_embeddings": True}),
    "qwen2-window": Case(
        "Qwen2",
        2,
        (4, 4),
        {
            "rope_parameters": rope(5e5, rope_type="linear", factor=2.0),
            "use_sliding_window": True,
            "sliding_window": _WINDOW,
            "max_window_layers": 0,
            "rms_norm_eps": 1e-2,
        },
    ),
    "llama3": Case("Llama", 3, (4, 2), {"rope_parameters": rope(5e5, **_LLAMA3), "tie_word_embeddings": False}),
    "llama-biases": Case(
        "Llama",
        2,
        (4, 1),
        {"head_dim": 12, "rope_parameters": rope(1e4), "attention_bias": True, "mlp_bias": True},
    ),
    "olmo3": Case(
        "Olmo3",
        8,
        (4, 2),
        {
            "rope_parameters": {"full_attention": rope(5e5, **_YARN), "sliding_attention": rope(5e5)},
            "sliding_window": _WINDOW,
            "rms_norm_eps": 1e-6,
        },
    ),
    "olmo3-plain": Case(
        "Olmo3",
        5,
        (4, 4),
        {
            "rope_parameters": {"full_attention": rope(1e4), "sliding_attention": rope(1e4)},
            "sliding_window": _WINDOW,
            "layer_types": ["sliding_attention", "full_attention", *["sliding_attention"] * 3],
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
}


def random_model(name: str, seed: int = 0):
    """A transformers model whose every parameter is random, norms and biases included, and large enough to matter."""
    import torch
    import transformers

    case = CASES[name]
    config = getattr(transformers, f"{case.family}Config")(
        **_SIZES,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads[0],
        num_key_value_heads=case.heads[1],
        pad_token_id=None,
        eos_token_id=1,
        **case.options,
    )
    torch.manual_seed(seed)
    model = getattr(transformers, f"{case.family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in parameter_name else 0.0, 0.3)
    return model


def random_peft(**options):
    """`random_model("qwen3")` with a PEFT adapter whose A and B are both random."""
    import peft
    import torch

    model = peft.get_peft_model(random_model("qwen3"), peft.LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.2)
    return model
