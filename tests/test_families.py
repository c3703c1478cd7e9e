"""What a config.json says of each family: read in full, or refused by name. Sizes of the published models."""

import json
from copy import deepcopy

import pytest

from jopsd.models.decoder import ModelConfig, parameter_count
from jopsd.models.families import FAMILIES, model_fields
from jopsd.models.hf import abstract_decoder, leaves_of, read_config
from jopsd.models.rope import Linear, Llama3, Yarn, frequencies
from tests.families import CASES, random_model

transformers = pytest.importorskip("transformers")

# The config.json of each published model, without token ids and the like, and the parameters its model card counts.
_QWEN = {"vocab_size": 151936, "rms_norm_eps": 1e-6, "hidden_act": "silu", "attention_dropout": 0.0}
_QWEN3 = {
    **_QWEN,
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000,
    "rope_scaling": None,
    "sliding_window": None,
    "use_sliding_window": False,
}
_QWEN2 = {
    **_QWEN,
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "use_sliding_window": False,
}
_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}
_OLMO3 = {
    "architectures": ["Olmo3ForCausalLM"],
    "model_type": "olmo3",
    "vocab_size": 100278,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "max_position_embeddings": 65536,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "rope_theta": 500000,
    "rope_scaling": {
        "attention_factor": 1.2079441541679836,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "yarn",
    },
}


def sized(base: dict, hidden: int, layers: int, heads: int, kv_heads: int, feed_forward: int, tied=False, **more):
    return {
        **base,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": feed_forward,
        "tie_word_embeddings": tied,
        **more,
    }


_DISTILLED = {**_QWEN2, "max_position_embeddings": 131072, "rope_theta": 10000, "sliding_window": 4096}
PUBLISHED = {
    "Qwen3-0.6B": (sized(_QWEN3, 1024, 28, 16, 8, 3072, True, max_window_layers=28), 596_049_920),
    "Qwen3-1.7B": (sized(_QWEN3, 2048, 28, 16, 8, 6144, True, max_window_layers=28), 1_720_574_976),
    "Qwen3-4B": (sized(_QWEN3, 2560, 36, 32, 8, 9728, True, max_window_layers=36), 4_022_468_096),
    "Qwen3-8B": (sized(_QWEN3, 4096, 36, 32, 8, 12288, max_window_layers=36), 8_190_735_360),
    "Qwen3-14B": (sized(_QWEN3, 5120, 40, 40, 8, 17408, max_window_layers=40), 14_768_307_200),
    "Qwen3-32B": (sized(_QWEN3, 5120, 64, 64, 8, 25600, max_window_layers=64), 32_762_123_264),
    "Qwen2.5-0.5B-Instruct": (sized(_QWEN2, 896, 24, 14, 2, 4864, True, max_window_layers=21), 494_032_768),
    "Qwen2.5-1.5B-Instruct": (sized(_QWEN2, 1536, 28, 12, 2, 8960, True, max_window_layers=21), 1_543_714_304),
    "Qwen2.5-3B-Instruct": (sized(_QWEN2, 2048, 36, 16, 2, 11008, True, max_window_layers=70), 3_085_938_688),
    "Qwen2.5-7B-Instruct": (
        sized(_QWEN2, 3584, 28, 28, 4, 18944, max_window_layers=28, vocab_size=152064),
        7_615_616_512,
    ),
    "DeepSeek-R1-Distill-Qwen-1.5B": (
        sized(_DISTILLED, 1536, 28, 12, 2, 8960, max_window_layers=21, use_mrope=False),
        1_777_088_000,
    ),
    "DeepSeek-R1-Distill-Llama-8B": (sized(_LLAMA, 4096, 32, 32, 8, 14336), 8_030_261_248),
    "Llama-3.2-1B": (sized(_LLAMA, 2048, 16, 32, 8, 8192, True, head_dim=64), 1_235_814_400),
    "Olmo-3-7B-Think": (
        sized(_OLMO3, 4096, 32, 32, 32, 11008, layer_types=(["sliding_attention"] * 3 + ["full_attention"]) * 8),
        7_298_011_136,
    ),
    "Olmo-3-7B-Instruct": (sized(_OLMO3, 4096, 32, 32, 32, 11008), 7_298_011_136),
    "Olmo-3-32B-Think": (sized(_OLMO3, 5120, 64, 40, 8, 27648), 32_233_522_176),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_the_published_number_of_parameters(name):
    torch = pytest.importorskip("torch")
    config, published = PUBLISHED[name]
    count = parameter_count(ModelConfig(**model_fields(config, name)))
    with torch.device("meta"):
        reference = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**deepcopy(config)))
    assert count == reference.num_parameters() == published


def test_the_published_models_are_read_with_their_rotary_scaling_windows_and_norms():
    read = {name: ModelConfig(**model_fields(config, name)) for name, (config, _) in PUBLISHED.items()}
    llama, olmo, qwen2 = (
        read[name] for name in ("DeepSeek-R1-Distill-Llama-8B", "Olmo-3-7B-Think", "Qwen2.5-7B-Instruct")
    )
    assert llama.rope_scaling == Llama3(8.0, 1.0, 4.0, 8192)
    assert (llama.qk_norm, llama.biases, llama.head_dim, llama.tie_embeddings) == ("none", (), 128, False)
    assert olmo.rope_scaling == Yarn(8.0, 8192, 1.2079441541679836)
    assert (olmo.pattern, olmo.window, olmo.stretch_sliding) == (("sliding",) * 3 + ("full",), 4096, False)
    assert (olmo.qk_norm, olmo.norm) == ("projection", "post")
    assert read["Olmo-3-7B-Instruct"] == olmo
    assert (qwen2.biases, qwen2.pattern, qwen2.rope_scaling) == (("q", "k", "v"), ("full",), None)


@pytest.mark.parametrize("name", CASES)
def test_a_family_names_every_leaf_of_its_decoders_and_every_tensor_of_transformers(name, tmp_path):
    model = random_model(name)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path)
    cfg, tensors = read_config(tmp_path), FAMILIES[type(model).__name__].tensors
    leaves = leaves_of(abstract_decoder(cfg))
    assert set(leaves) <= set(tensors)
    names = {tensors[leaf].name.format(layer=i) for leaf in leaves for i in range(cfg.num_layers)}
    assert names == set(dict(model.named_parameters()))


# ----------------------------------------------------------------------------------------------------- rotary options

_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


def qwen3(**changes) -> dict:
    config = sized(_QWEN3, 32, 4, 4, 2, 40, head_dim=8, max_position_embeddings=128) | changes
    return {key: value for key, value in config.items() if value is not ...}


def olmo3(**changes) -> dict:
    return {key: value for key, value in (sized(_OLMO3, 32, 4, 4, 2, 40) | changes).items() if value is not ...}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"type": "linear", "factor": 2}, Linear(2.0)),
        ({"rope_type": "default"}, None),
        (_YARN, Yarn(4.0, 32, 1.138629436111989)),
        (_YARN | {"attention_factor": 1.5, "beta_fast": 16, "truncate": False}, Yarn(4.0, 32, 1.5, 16.0, 1.0, False)),
        ({"rope_type": "yarn", "factor": 4.0}, Yarn(4.0, 128, 1.138629436111989)),
        (_YARN | {"mscale": 0.7, "mscale_all_dim": 1.0}, Yarn(4.0, 32, 1.0970406053 / 1.138629436111989)),
    ],
)
def test_a_rotary_scaling_is_read_under_both_names(options, expected):
    old = model_fields(qwen3(rope_scaling=options), "c")["rope_scaling"]
    new = model_fields(qwen3(rope_theta=..., rope_parameters=options | {"rope_theta": 1e6}), "c")["rope_scaling"]
    assert old == new
    if isinstance(expected, Yarn):
        assert old.attention_factor == pytest.approx(expected.attention_factor, rel=1e-9)
        expected = Yarn(**{**vars(expected), "attention_factor": old.attention_factor})
    assert old == expected


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3", "yarn-narrow", "yarn-untruncated"])
def test_frequencies_equal_those_of_transformers_at_a_published_size(kind):
    torch = pytest.importorskip("torch")
    options = {
        "linear": {"rope_type": "linear", "factor": 3.0},
        "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192},
        "yarn-narrow": {**_YARN, "beta_fast": 1.01, "beta_slow": 1.0},
        "yarn-untruncated": {**_YARN, "truncate": False},
        "llama3": _LLAMA["rope_scaling"],
    }[kind]
    config = qwen3(head_dim=128, rope_scaling=options, max_position_embeddings=65536)
    reference = transformers.Qwen3Config(**deepcopy(config))  # it writes into what it is given
    inverse, sharpness = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[options["rope_type"]](
        reference, torch.device("cpu")
    )
    scaling = model_fields(config, "c")["rope_scaling"]
    assert frequencies(128, 1e6, scaling).tolist() == pytest.approx(inverse.tolist(), rel=2e-6)
    assert getattr(scaling, "attention_factor", 1.0) == pytest.approx(sharpness)


# What transformers 4 writes of any config beside what describes the network, told to leave nothing out.
_DUMPED = {
    **dict.fromkeys(("unk_token_id", "sep_token_id", "decoder_start_token_id", "forced_eos_token_id"), 3),
    "pad_token_ids": [3],
    **dict.fromkeys(("output_attentions", "output_hidden_states", "torchscript", "use_bfloat16", "is_decoder"), True),
    "max_length": 20,
    "min_length": 0,
    "do_sample": True,
    "early_stopping": True,
    "num_beams": 4,
    "num_beam_groups": 1,
    "diversity_penalty": 0.5,
    "temperature": 0.7,
    "top_k": 50,
    "top_p": 0.9,
    "typical_p": 0.9,
    "repetition_penalty": 1.1,
    "length_penalty": 1.2,
    "no_repeat_ngram_size": 3,
    "num_return_sequences": 2,
    "chunk_size_feed_forward": 0,
    "problem_type": "regression",
    "prefix": "x",
    "tf_legacy_loss": True,
    "suppress_tokens": [1],
    "bad_words_ids": [[1]],
    "pruned_heads": {},
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "tie_encoder_decoder": False,
    "cross_attention_hidden_size": None,
    "pretraining_tp": 4,
    "is_llama_config": True,
    "partial_rotary_factor": 1.0,
    "num_experts": 0,
    "hidden_dropout": 0.0,
    "rope_interleaved": False,
    "id2label": {"0": "A"},
    "torch_dtype": "bfloat16",
}


@pytest.mark.parametrize("config", [qwen3(), sized(_LLAMA, 32, 2, 4, 2, 40), sized(_QWEN2, 32, 2, 4, 2, 40), olmo3()])
def test_options_that_do_not_change_the_network_are_passed_over(config):
    assert model_fields({**config, **_DUMPED}, "c") == model_fields(config, "c")


@pytest.mark.parametrize(
    "change", [{"is_encoder_decoder": True}, {"pruned_heads": {"1": [0]}}, {"partial_rotary_factor": 0.5}]
)
def test_options_that_do_are_refused_in_the_same_company(change):
    with pytest.raises(ValueError, match=f"option {next(iter(change))} = "):
        model_fields({**qwen3(), **_DUMPED, **change}, "c")


@pytest.mark.parametrize("name", ["LlamaConfig", "Qwen2Config", "Qwen3Config"])
def test_everything_that_transformers_writes_of_a_config_is_read(name):
    transformers = pytest.importorskip("transformers")
    made = getattr(transformers, name)(architectures=[name.replace("Config", "ForCausalLM")])
    fields = model_fields(made.to_dict(), "c")
    assert (fields["hidden_size"], fields["num_layers"]) == (made.hidden_size, made.num_hidden_layers)


def test_a_llama_without_a_rotary_base_has_that_of_transformers():
    """As the files of Llama 2; the other families always name theirs."""
    config = sized(_LLAMA, 32, 2, 4, 2, 40, rope_theta=..., rope_scaling=...)
    assert model_fields({k: v for k, v in config.items() if v is not ...}, "c")["rope_theta"] == 10000.0


def test_olmo_reads_its_scaling_for_full_layers_alone_from_every_layout():
    yarn = _OLMO3["rope_scaling"]
    flat = {"rope_theta": 5e5, **yarn}
    nested = {"full_attention": flat, "sliding_attention": {"rope_theta": 5e5, "rope_type": "default"}}
    old = model_fields(olmo3(), "c")
    for parameters in (flat, nested):
        assert model_fields(olmo3(rope_theta=..., rope_scaling=..., rope_parameters=parameters), "c") == old
    assert (old["rope_scaling"], old["stretch_sliding"]) == (Yarn(8.0, 8192, 1.2079441541679836), False)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (qwen3(rope_scaling={"type": "dynamic", "factor": 2.0}), "rope_scaling.rope_type = 'dynamic'"),
        (qwen3(rope_scaling={"type": "linear"}), "rope_scaling: factor is missing"),
        (qwen3(rope_scaling=_YARN | {"beta": 3}), "rope_scaling.beta = 3"),
        (qwen3(rope_scaling=_YARN | {"partial_rotary_factor": 0.5}), "partial_rotary_factor = 0.5"),
        (qwen3(rope_scaling={"type": "yarn", "factor": 2}, max_position_embeddings=...), "original_max_position"),
        (qwen3(rope_scaling=_YARN, rope_parameters=_YARN | {"factor": 2.0}), "rope_scaling and rope_parameters differ"),
        (qwen3(rope_parameters={"full_attention": {"rope_type": "default"}}), "rope_parameters.full_attention"),
        (olmo3(rope_parameters={"full_attention": {}, "chunked": {}}), "holds ['full_attention', 'chunked']"),
        (
            olmo3(rope_parameters={"sliding_attention": {"rope_type": "linear", "factor": 2.0}}),
            "rope_parameters.sliding_attention is scaled",
        ),
        (
            olmo3(rope_parameters={"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 1e5}}),
            "given twice and differs",
        ),
        (qwen3(use_sliding_window=True, sliding_window=5, layer_types=["chunked_attention"] * 4), "layer_types[0]"),
        (qwen3(layer_types=["full_attention"] * 3), "layer_types names 3 layers, num_hidden_layers is 4"),
        (qwen3(layer_types=["sliding_attention"] * 4), "no sliding_window is in use"),
        (olmo3(sliding_window=None), "no sliding_window is in use"),
        (qwen3(logit_scale=0.1), "option logit_scale = 0.1 is not supported for Qwen3ForCausalLM"),
        (qwen3(attn_logit_softcapping=30.0), "attn_logit_softcapping = 30.0"),
        (qwen3(mlp_bias=True), "mlp_bias = True"),
        (olmo3(clip_qkv=8.0), "clip_qkv = 8.0"),
        (olmo3(use_sliding_window=True), "use_sliding_window = True"),
        (sized(_QWEN2, 32, 2, 4, 2, 40, use_mrope=True), "use_mrope = True"),
        (sized(_LLAMA, 32, 2, 4, 2, 40, sliding_window=7), "sliding_window = 7"),
        ({**qwen3(), "architectures": ["Qwen3MoeForCausalLM"]}, "architectures = ['Qwen3MoeForCausalLM']"),
    ],
)
def test_what_we_do_not_implement_is_refused_by_file_and_name(config, told, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError) as error:
        read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)
    assert told in str(error.value)


def test_options_that_are_empty_or_change_nothing_are_accepted():
    harmless = {
        "logit_scale": None,
        "mlp_bias": False,
        "_name_or_path": "a/b",
        "id2label": {"0": "x"},
        "use_cache": True,
    }
    assert model_fields(qwen3(**harmless), "c") == model_fields(qwen3(), "c")


def test_qwen_slides_from_max_window_layers_on():
    window = {"use_sliding_window": True, "sliding_window": 5}
    fields = model_fields(qwen3(**window, max_window_layers=3), "c")
    assert (fields["pattern"], fields["window"]) == (("full",) * 3 + ("sliding",), 5)
    assert model_fields(qwen3(**window, max_window_layers=4), "c")["pattern"] == ("full",)
    assert model_fields(qwen3(**window, max_window_layers=0), "c")["pattern"] == ("sliding",)
