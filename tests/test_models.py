"""The decoder against transformers and peft, and against itself: padding, packing, cache, remat, mesh."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopsd.models.decoder import ModelConfig
from jopsd.models.hf import abstract_decoder, load_pretrained, read_config
from jopsd.models.lora import TARGETS, Adapter, init_adapter, merged_kernel
from jopsd.models.pages import Span, make_pages
from jopsd.models.products import turned_model
from tests.families import CASES, VOCAB, random_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4


def reloaded(folder, dtype):
    """The transformers model of a folder. Casting a model in memory would also round its rotary frequencies."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """(transformers model, our model) with the same weights, for every family."""
    reference = random_model(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    reference.save_pretrained(folder)
    return reference, load_pretrained(folder)


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    reference = random_model("qwen3")
    folder = tmp_path_factory.mktemp("untied")
    reference.save_pretrained(folder)
    return reference, load_pretrained(folder)


def reference_logits(model, tokens, mask=None) -> np.ndarray:
    """[B,T,V] from transformers; with a mask, positions count from the first real token."""
    options = {}
    if mask is not None:
        mask = torch.tensor(mask)
        options = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens), **options).logits.float().numpy()


@jax.jit
def logits(model, tokens, segments=None, positions=None, adapter=None):
    return model.unembed(model.hidden(tokens, segments=segments, positions=positions, adapter=adapter))


def random_tokens(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB - 1, shape)  # the last id is kept for padding


def left_padded(lengths, width, seed=0):
    """tokens [B,T] and mask [B,T] with each row's real tokens at the end."""
    mask = (np.arange(width)[None] >= width - np.array(lengths)[:, None]).astype(np.int32)
    return np.where(mask, random_tokens(len(lengths), width, seed=seed), VOCAB - 1), mask


def random_adapter(cfg: ModelConfig, seed=3, targets=TARGETS) -> Adapter:
    adapter = init_adapter(cfg.projections, cfg.num_layers, 4, 8.0, jax.random.key(seed), targets)
    keys = dict(zip(adapter.b, jax.random.split(jax.random.key(seed + 1), len(adapter.b)), strict=True))
    return replace(adapter, b={n: 0.2 * jax.random.normal(keys[n], b.shape) for n, b in adapter.b.items()})


def masked_loss(model, tokens, mask, adapter=None):
    """Mean next-token cross-entropy over real pairs."""
    logprobs = jax.nn.log_softmax(logits(model, tokens, mask, adapter=adapter)[:, :-1])
    taken = jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)[..., 0]
    pairs = mask[:, 1:] * mask[:, :-1]
    return -jnp.sum(taken * pairs) / jnp.sum(pairs)


def assert_trees_close(a, b, tolerance):
    for (path, x), (_, y) in zip(*(jax.tree_util.tree_flatten_with_path(t)[0] for t in (a, b)), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance, err_msg=jax.tree_util.keystr(path))


# ------------------------------------------------------------------------------------------------ transformers, peft


def test_full_forward_equals_transformers(pair):
    reference, model = pair
    tokens = random_tokens(3, 17)
    expected = reference_logits(reference, tokens)
    assert expected.std() > 0.5  # otherwise the tolerance says nothing
    np.testing.assert_allclose(logits(model, tokens), expected, atol=TOLERANCE, rtol=0)


def test_left_padded_rows_equal_transformers_at_real_positions(pair):
    reference, model = pair
    tokens, mask = left_padded([12, 5, 1, 9], 12)
    ours, theirs = logits(model, tokens, mask), reference_logits(reference, tokens, mask)
    np.testing.assert_allclose(ours[mask == 1], theirs[mask == 1], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("turned", [False, True], ids=["stacked", "turned"])
def test_pieces_of_ragged_prompts_and_then_single_tokens_equal_transformers_row_by_row(pair, turned):
    reference, model = pair
    if turned:
        model = turned_model(model, "float32")
    lengths, steps = [5, 2, 7], 6
    rows = [random_tokens(n + steps, seed=n) for n in lengths]
    kinds = sorted(set(model.cfg.pattern))

    @jax.jit
    def read(tokens, start, count, pages):
        span = {kind: Span(jnp.array([[3], [1], [2]]), start, count) for kind in kinds}
        hidden, pages = model.read(tokens, span, pages)
        return model.unembed(hidden, 0), pages

    layers = {kind: model.cfg.num_layers // len(model.cfg.pattern) * model.cfg.pattern.count(kind) for kind in kinds}
    sizes = model.cfg.num_kv_heads, model.cfg.head_dim
    pages = {kind: make_pages(layers[kind], *sizes, 4, "float32", False) for kind in kinds}
    prompt = np.full((3, 8), VOCAB - 1)
    for row, (tokens, n) in enumerate(zip(rows, lengths, strict=True)):
        prompt[row, :n] = tokens[:n]
    found, pages = read(prompt, np.zeros(3, np.int32), np.array(lengths), pages)
    ours = [[*found[:, row, :n].T] for row, n in enumerate(lengths)]
    for i in range(steps):
        fresh = np.array([[tokens[n + i]] for tokens, n in zip(rows, lengths, strict=True)])
        found, pages = read(fresh, np.array(lengths) + i, np.ones(3, np.int32), pages)
        for row in range(3):
            ours[row].append(found[:, row, 0])
    for row, tokens in enumerate(rows):
        expected = reference_logits(reference, tokens[None])[0]
        np.testing.assert_allclose(np.stack(ours[row]), expected, atol=TOLERANCE, rtol=0)


def test_a_bfloat16_checkpoint_computed_in_float32_equals_transformers(tmp_path):
    random_model("qwen2").bfloat16().save_pretrained(tmp_path)
    cfg = read_config(tmp_path, dtype="float32")
    assert cfg.param_dtype == "bfloat16"
    tokens = random_tokens(2, 11)
    expected = reference_logits(reloaded(tmp_path, torch.float32), tokens)
    np.testing.assert_allclose(logits(load_pretrained(tmp_path, cfg), tokens), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["qwen3", "qwen2", "llama3", "olmo3"])
def test_bfloat16_computation_is_as_near_to_float32_as_that_of_transformers(name, tmp_path):
    random_model(name).bfloat16().save_pretrained(tmp_path)
    model, tokens = load_pretrained(tmp_path), random_tokens(4, 16)
    assert model.cfg.dtype == model.cfg.param_dtype == "bfloat16"
    ours, theirs = logits(model, tokens), reference_logits(reloaded(tmp_path, torch.bfloat16), tokens)
    exact = reference_logits(reloaded(tmp_path, torch.float32), tokens)
    assert np.abs(ours - exact).mean() < 1.2 * np.abs(theirs - exact).mean()


@pytest.mark.parametrize("targets", [TARGETS, ("q", "v")], ids=["all", "q-v"])
def test_an_adapter_equals_a_peft_lora_model(untied, targets, tmp_path):
    peft = pytest.importorskip("peft")
    _, model = untied
    names = [f"{name}_proj" for name in targets]
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=names, lora_dropout=0.0)
    reference = peft.get_peft_model(random_model("qwen3"), config).eval()
    adapter = random_adapter(model.cfg, targets=targets)
    filled = 0
    with torch.no_grad():
        for path, module in reference.named_modules():
            if not hasattr(module, "lora_A"):
                continue
            parts = path.split(".")
            layer, name = int(parts[parts.index("layers") + 1]), parts[-1].removesuffix("_proj")
            module.lora_A["default"].weight.copy_(torch.tensor(np.array(adapter.a[name][layer].T)))
            module.lora_B["default"].weight.copy_(torch.tensor(np.array(adapter.b[name][layer].T)))
            filled += 1
    assert filled == len(targets) * model.cfg.num_layers
    tokens = random_tokens(2, 13)
    expected = reference_logits(reference, tokens)
    assert np.abs(expected - logits(model, tokens)).max() > 0.1  # the adapter does something
    np.testing.assert_allclose(logits(model, tokens, adapter=adapter), expected, atol=TOLERANCE, rtol=0)


# ------------------------------------------------------------------------------------------------------ itself


def test_merged_kernels_equal_the_adapter(untied):
    _, model = untied
    adapter, tokens = random_adapter(model.cfg), random_tokens(2, 9)

    def merge(path, leaf):
        name = path[-2].name
        return merged_kernel(leaf, adapter, name) if name in adapter.a else leaf

    merged = jax.tree_util.tree_map_with_path(merge, model)
    np.testing.assert_allclose(logits(merged, tokens), logits(model, tokens, adapter=adapter), atol=TOLERANCE, rtol=0)


def test_a_fresh_adapter_changes_no_bit(untied):
    _, model = untied
    fresh = init_adapter(model.cfg.projections, model.cfg.num_layers, 4, 8.0, jax.random.key(0))
    tokens = random_tokens(2, 9)
    np.testing.assert_array_equal(logits(model, tokens, adapter=fresh), logits(model, tokens))


def test_more_left_padding_does_not_change_logits(untied):
    _, model = untied
    narrow, narrow_mask = left_padded([6, 6], 6)
    wide = np.concatenate([np.full((2, 5), VOCAB - 1), narrow], axis=1)
    wide_mask = np.concatenate([np.zeros((2, 5), np.int32), narrow_mask], axis=1)
    np.testing.assert_allclose(logits(model, wide, wide_mask)[:, 5:], logits(model, narrow), atol=1e-5, rtol=0)


def test_what_stands_in_the_padding_does_not_change_logits(untied):
    _, model = untied
    tokens, mask = left_padded([4, 7], 9)
    other = np.where(mask, tokens, random_tokens(2, 9, seed=5))
    np.testing.assert_array_equal(
        np.asarray(logits(model, other, mask))[mask == 1], np.asarray(logits(model, tokens, mask))[mask == 1]
    )


def test_two_segments_in_one_row_equal_two_rows(untied):
    _, model = untied
    first, second = random_tokens(1, 5, seed=1), random_tokens(1, 8, seed=2)
    packed = np.concatenate([first, second, np.full((1, 3), VOCAB - 1)], axis=1)
    segments = np.repeat([[1, 2, 0]], [5, 8, 3], axis=1)
    positions = np.concatenate([np.arange(5), np.arange(8), np.zeros(3, int)])[None]
    both = logits(model, packed, segments, positions)
    np.testing.assert_allclose(both[:, :5], logits(model, first), atol=1e-5, rtol=0)
    np.testing.assert_allclose(both[:, 5:13], logits(model, second), atol=1e-5, rtol=0)


def test_the_gradient_of_a_token_in_padding_is_zero(untied):
    _, model = untied
    tokens, mask = left_padded([4, 7], 9)  # untied, so a row of the table is only reached through the lookup
    gradient = np.asarray(jax.grad(masked_loss)(model, tokens, mask).embed[...])
    assert np.all(gradient[VOCAB - 1] == 0)
    inputs = np.unique(tokens[:, :-1][mask[:, :-1] == 1])
    assert np.all(np.abs(gradient[inputs]).max(axis=1) > 0)
    assert np.isfinite(gradient).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3", "olmo3"])
def test_remat_gives_the_same_loss_and_gradient(name, tmp_path):
    random_model(name).save_pretrained(tmp_path)
    model = load_pretrained(tmp_path)
    leaves, cfg = jax.tree.leaves(model), model.cfg
    tokens, mask = left_padded([4, 7], 9)
    adapter = random_adapter(cfg, targets=("q", "down"))
    value = jax.jit(jax.value_and_grad(masked_loss, argnums=(0, 3)))
    results = {}
    for remat in ("none", "dots", "full"):
        model = jax.tree.unflatten(jax.tree.structure(abstract_decoder(replace(cfg, remat=remat))), leaves)
        assert model.cfg.remat == remat
        results[remat] = value(model, tokens, mask, adapter)
    loss, gradient = results.pop("none")
    for other_loss, other_gradient in results.values():
        assert math.isclose(loss, other_loss, rel_tol=1e-6)
        assert_trees_close(jax.tree.leaves(gradient), jax.tree.leaves(other_gradient), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3", "qwen2", "llama-biases", "olmo3"])
def test_a_mesh_of_eight_devices_gives_the_same_logits_and_gradients_as_one(name, tmp_path):
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    random_model(name).save_pretrained(tmp_path)
    single = load_pretrained(tmp_path)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]).reshape(2, 2, 2), ("data", "fsdp", "tensor"))
    sharded = load_pretrained(tmp_path, mesh=mesh)
    assert not sharded.layers.q[...].sharding.is_fully_replicated
    tokens, mask = left_padded([9, 4, 7, 9, 2, 3, 8, 6], 9)
    value = jax.jit(jax.value_and_grad(masked_loss))
    loss, gradient = value(single, tokens, mask)
    expected = logits(single, tokens, mask)
    rows = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    with jax.set_mesh(mesh):
        placed = jax.device_put(tokens, rows), jax.device_put(mask, rows)
        np.testing.assert_allclose(logits(sharded, *placed)[mask == 1], expected[mask == 1], atol=1e-5, rtol=0)
        mesh_loss, mesh_gradient = value(sharded, *placed)
    assert math.isclose(loss, mesh_loss, rel_tol=1e-5)
    assert_trees_close(gradient, mesh_gradient, 1e-5)
