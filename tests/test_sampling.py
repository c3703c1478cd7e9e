"""JetStream in process and the plain loop, against each other and against a decoder without a cache."""

import logging
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopsd.models.decoder import Decoder, ModelConfig
from jopsd.models.lora import init_adapter
from jopsd.models.pages import PAGE
from jopsd.models.rope import Yarn
from jopsd.models.sharding import tree_shardings
from jopsd.sampling import Policy, Request, SamplerError, SamplingParams, make_sampler
from jopsd.sampling import engine as engine_module

CFG = ModelConfig(
    vocab_size=97, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, intermediate_size=48
)
SLOTS, MAX_LENGTH, CHUNK = 4, 64, 4
BOTH = pytest.mark.parametrize("name", ["loop", "jetstream"])


def make_policy(seed=0, adapter=False, cfg=CFG):
    """Weights large enough for a peaked distribution."""
    model = jax.tree.map(lambda x: x * 6 if x.ndim >= 2 else x, Decoder(cfg, jax.random.key(seed)))
    if not adapter:
        return Policy(model, None)
    lora = init_adapter(cfg.projections, cfg.num_layers, 4, 8.0, jax.random.key(seed + 1))
    return Policy(model, jax.tree.map(lambda x: x + 0.3, lora))


POLICY = make_policy()


@pytest.fixture
def build():
    """Builds samplers of the shared tiny shape and closes them afterwards."""
    made = []

    def make(name, policy=POLICY, slots=SLOTS, chunk=CHUNK, mesh=None):
        made.append(make_sampler(name, CFG, policy, slots, MAX_LENGTH, chunk, mesh))
        return made[-1]

    yield make
    for sampler in made:
        sampler.close()


def prompt(length, seed=0):
    return tuple(np.random.default_rng([seed, length]).integers(0, CFG.vocab_size, length).tolist())


def mixed_requests():
    """Six prompts, eleven samples: lengths 1 to 40, all kinds of parameters."""
    return [
        Request(prompt(5), 3, 1, SamplingParams(11), "plain"),
        Request(prompt(1), 2, 2**32 - 1, SamplingParams(9, temperature=0.7), "cold"),
        Request(prompt(17), 2, 3, SamplingParams(14, top_p=0.8), "nucleus"),
        Request(prompt(40), 2, 4, SamplingParams(6, temperature=1.4, top_k=5, top_p=0.9), "both"),
        Request(prompt(9), 1, 5, SamplingParams(12, temperature=0.0), "greedy"),
        Request(prompt(6), 1, 6, SamplingParams(20, stop_ids=tuple(range(0, 97, 13))), "stops"),
    ]


def collect(sampler, requests):
    """Completions by (request id, sample index); each must come exactly once."""
    found = {}
    for completion in sampler.sample(requests):
        assert (completion.request_id, completion.index) not in found
        found[completion.request_id, completion.index] = completion
    assert found.keys() == {(r.id, i) for r in requests for i in range(r.n)}
    return found


def assert_same_bits(left, right):
    assert left.keys() == right.keys()
    for key, one in left.items():
        other = right[key]
        assert one.completion_ids.tolist() == other.completion_ids.tolist(), key
        assert one.logprobs.tobytes() == other.logprobs.tobytes(), key
        assert (one.finish, one.truncated, one.policy_version) == (other.finish, other.truncated, other.policy_version)


@jax.jit
def forward(policy, tokens):
    """Logits [1,T,V] of a whole sequence at once, no cache."""
    return policy.model.unembed(policy.model.hidden(tokens, adapter=policy.adapter))


def next_logits(policy, tokens):
    """Logits [V] after `tokens`. Causal attention makes padding on the right harmless."""
    padded = np.zeros((1, MAX_LENGTH), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(forward(policy, padded))[0, len(tokens) - 1]


def teacher_forced(policy, completion, temperature):
    """float64 log-probs [T] of a completion by one forward over prompt and completion."""
    tokens = [*completion.prompt_ids, *completion.completion_ids.tolist()]
    padded = np.zeros((1, MAX_LENGTH), np.int32)
    padded[0, : len(tokens)] = tokens
    start = len(completion.prompt_ids)
    logits = np.asarray(forward(policy, padded), np.float64)[0, start - 1 : len(tokens) - 1] / (temperature or 1.0)
    logits -= logits.max(axis=-1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return logprobs[np.arange(len(logprobs)), completion.completion_ids]


@pytest.fixture(scope="module")
def oracle():
    """What the plain loop gives for the mixed requests."""
    return collect(make_sampler("loop", CFG, POLICY, SLOTS, MAX_LENGTH, CHUNK), mixed_requests())


# The same bits from every driver


def test_jetstream_gives_the_bits_of_the_loop(build, oracle):
    assert_same_bits(collect(build("jetstream"), mixed_requests()), oracle)


@BOTH
def test_order_and_company_do_not_change_a_sample(name, build, oracle):
    sampler = build(name)
    assert_same_bits(collect(sampler, mixed_requests()[::-1]), oracle)
    for request in mixed_requests()[:4]:
        alone = collect(sampler, [request])
        assert_same_bits(alone, {key: oracle[key] for key in alone})


@BOTH
def test_asking_twice_gives_the_same_and_another_seed_gives_another(name, build, oracle):
    sampler = build(name)
    assert_same_bits(collect(sampler, mixed_requests()), oracle)
    assert_same_bits(collect(sampler, mixed_requests()), oracle)
    other = collect(sampler, [Request(prompt(5), 3, 99, SamplingParams(11), "plain")])
    assert all(other[key].completion_ids.tolist() != oracle[key].completion_ids.tolist() for key in other)


@BOTH
def test_two_open_iterators_share_a_sampler(name, build, oracle):
    sampler = build(name)
    first, second = sampler.sample(mixed_requests()), sampler.sample(mixed_requests())
    both = list(zip(first, second, strict=True))
    for side in zip(*both, strict=True):
        assert_same_bits({(c.request_id, c.index): c for c in side}, oracle)


def test_slot_count_and_chunk_change_no_token(build, oracle):
    wide = collect(build("loop", slots=3, chunk=7), mixed_requests())
    for key, completion in wide.items():
        assert completion.completion_ids.tolist() == oracle[key].completion_ids.tolist()
        np.testing.assert_allclose(completion.logprobs, oracle[key].logprobs, atol=1e-5)


def test_samples_of_one_request_differ(oracle):
    samples = {tuple(c.completion_ids.tolist()) for (name, _), c in oracle.items() if name == "plain"}
    assert len(samples) == 3


@BOTH
def test_many_more_samples_than_slots_all_arrive(name, build):
    requests = [Request(prompt(3 + i % 9, i), 5, i, SamplingParams(1 + i % 6), i) for i in range(12)]
    found = collect(build(name), requests)
    assert len(found) == 60
    for (number, _), completion in found.items():
        assert len(completion.completion_ids) == 1 + number % 6


@BOTH
def test_each_distinct_prompt_is_prefilled_once(name, build):
    sampler = build(name)
    requests = [Request(prompt(4 + i % 3), 6, i, SamplingParams(3), i) for i in range(6)]
    collect(sampler, requests)
    assert sampler.engine.prefills == 3


# What is drawn


def test_logprobs_match_a_teacher_forced_forward(oracle):
    temperature = {request.id: request.params.temperature for request in mixed_requests()}
    for (name, _), completion in oracle.items():
        expected = teacher_forced(POLICY, completion, temperature[name])
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)
        assert completion.logprobs.dtype == np.float32 and completion.completion_ids.dtype == np.int32


def test_truncated_tells_whether_top_p_or_top_k_cut_the_distribution(oracle):
    assert {name for (name, _), c in oracle.items() if c.truncated} == {"nucleus", "both"}
    assert not SamplingParams(1, temperature=0.0, top_p=0.5).truncates(97)
    assert not SamplingParams(1, top_k=97).truncates(97)
    assert SamplingParams(1, top_k=96).truncates(97)


def test_greedy_is_the_argmax_of_a_cacheless_loop(oracle):
    tokens = list(prompt(9))
    for _ in range(12):
        tokens.append(int(next_logits(POLICY, tokens).argmax()))
    assert oracle["greedy", 0].completion_ids.tolist() == tokens[9:]


def test_a_sample_follows_its_own_keys_on_a_cacheless_loop(oracle):
    from jopsd.sampling.draw import draw

    for index in range(3):
        key, tokens = jax.random.fold_in(jax.random.key(1, impl="threefry2x32"), index), list(prompt(5))
        for position in range(11):
            logits = next_logits(POLICY, tokens)[:, None]
            step_key = jax.random.fold_in(key, position)[None]
            token, _ = draw(logits, step_key, jnp.ones(1), jnp.ones(1), jnp.zeros(1, jnp.int32))
            tokens.append(int(token[0]))
        assert oracle["plain", index].completion_ids.tolist() == tokens[5:]


@BOTH
def test_an_adapter_is_part_of_the_policy(name, build, oracle):
    policy = make_policy(adapter=True)
    found = collect(build(name, policy), mixed_requests())
    plain = {key: c for key, c in found.items() if key[0] == "plain"}
    for key, completion in plain.items():
        np.testing.assert_allclose(completion.logprobs, teacher_forced(policy, completion, 1.0), atol=1e-4)
        assert completion.completion_ids.tolist() != oracle[key].completion_ids.tolist()


# Where a completion ends


def test_a_stop_id_ends_the_completion_and_belongs_to_it(oracle):
    completion, stops = oracle["stops", 0], range(0, 97, 13)
    hits = [int(token) in stops for token in completion.completion_ids]
    assert completion.finish == "eos" and hits[-1] and not any(hits[:-1])
    assert len(completion.logprobs) == len(hits)


@BOTH
def test_a_stop_id_drawn_first_gives_one_token_and_drawn_last_still_counts_as_eos(name, build, oracle):
    tokens = oracle["greedy", 0].completion_ids.tolist()
    last = next(i for i in range(1, 12) if tokens[i] not in tokens[:i])  # first seen there
    ask = lambda limit, stop: Request(prompt(9), 1, 0, SamplingParams(limit, 0.0, stop_ids=(stop,)), (limit, stop))  # noqa: E731
    found = collect(build(name), [ask(12, tokens[0]), ask(last + 1, tokens[last]), ask(last, tokens[last])])
    by_limit = {limit: c for ((limit, _), _), c in found.items()}
    assert (by_limit[12].completion_ids.tolist(), by_limit[12].finish) == (tokens[:1], "eos")
    assert (by_limit[last + 1].completion_ids.tolist(), by_limit[last + 1].finish) == (tokens[: last + 1], "eos")
    assert (by_limit[last].completion_ids.tolist(), by_limit[last].finish) == (tokens[:last], "length")


@BOTH
def test_prompts_at_bucket_edges_and_at_full_length_are_exact(name, build):
    requests = [Request(prompt(n), 1, n, SamplingParams(2), n) for n in (1, 2, 16, 17, 18, 32, 33, 34, 62)]
    requests.append(Request(prompt(1), 1, 7, SamplingParams(63), "long"))
    requests.append(Request(prompt(63), 1, 8, SamplingParams(1), "short"))
    found = collect(build(name), requests)
    for request in requests:
        completion = found[request.id, 0]
        assert len(completion.completion_ids) == request.params.max_new_tokens
        assert completion.finish == "length"
        np.testing.assert_allclose(completion.logprobs, teacher_forced(POLICY, completion, 1.0), atol=1e-4)


# Updates


@BOTH
def test_update_changes_what_is_drawn_and_the_version(name, build, oracle):
    sampler, other = build(name), make_policy(seed=5)
    before = collect(sampler, mixed_requests())
    assert {c.policy_version for c in before.values()} == {0}
    sampler.update(other, 7)
    after = collect(sampler, mixed_requests())
    assert {c.policy_version for c in after.values()} == {7}
    for key, completion in after.items():
        if key[0] == "plain":
            np.testing.assert_allclose(completion.logprobs, teacher_forced(other, completion, 1.0), atol=1e-4)
    sampler.update(POLICY, 0)
    assert_same_bits(collect(sampler, mixed_requests()), oracle)


@BOTH
def test_a_prefix_of_old_weights_is_not_used_with_new_ones(name, build):
    request, other = Request(prompt(30), 1, 1, SamplingParams(5), "x"), make_policy(seed=5)
    sampler = build(name)
    collect(sampler, [request])
    sampler.update(other, 1)
    completion = collect(sampler, [request])["x", 0]
    np.testing.assert_allclose(completion.logprobs, teacher_forced(other, completion, 1.0), atol=1e-4)
    assert sampler.engine.prefills == 2


@BOTH
def test_update_with_an_open_iterator_is_an_error(name, build):
    sampler = build(name)
    stream = sampler.sample(mixed_requests())
    next(stream)
    with pytest.raises(SamplerError, match="exhaust or close"):
        sampler.update(POLICY, 1)
    stream.close()
    sampler.update(POLICY, 1)


@BOTH
def test_a_policy_of_another_shape_is_refused(name, build):
    small = ModelConfig(97, 16, 1, 2, 1, 8, 16)
    with pytest.raises(ValueError, match="hidden_size=16"):
        build(name).update(Policy(Decoder(small, jax.random.key(0)), None), 1)


@BOTH
def test_donated_weights_are_named_before_sampling(name, build):
    policy = make_policy(seed=9)
    sampler = build(name, policy)
    policy.model.final_norm[...].delete()
    with pytest.raises(SamplerError, match="donated"):
        sampler.sample(mixed_requests())


@BOTH
def test_weights_that_are_not_finite_are_an_error_and_not_tokens(name, build):
    policy = jax.tree.map(lambda x: x * jnp.nan, make_policy())
    with pytest.raises(SamplerError, match="not finite"):
        collect(build(name, policy), mixed_requests()[:1])


# Ends, early and bad


@BOTH
def test_leaving_the_iterator_halfway_frees_the_sampler(name, build, oracle):
    sampler = build(name)
    for _ in sampler.sample([Request(prompt(5), 40, 1, SamplingParams(50), "long")]):
        break
    sampler.sample(mixed_requests())  # dropped without being read
    start = time.monotonic()
    sampler.update(POLICY, 0)
    assert time.monotonic() - start < 5
    assert_same_bits(collect(sampler, mixed_requests()), oracle)


def test_leaving_the_iterator_stops_the_decoding_of_its_samples(build):
    sampler = build("jetstream")
    calls, decode = [], sampler.engine.decode
    sampler.engine.decode = lambda *given: calls.append(1) or decode(*given)
    next(sampler.sample([Request(prompt(5), 400, 1, SamplingParams(50), "long")]))
    sampler.update(POLICY, 0)
    assert len(calls) < 40, "400 samples of 50 tokens on 4 slots would take more than 1000 calls"


@pytest.mark.parametrize("method", ["prefill", "admit", "decode", "init_state"])
def test_a_crash_in_any_thread_reaches_the_caller_and_the_process_lives(method, build, monkeypatch):
    sampler = build("jetstream")
    real, calls = getattr(sampler.engine, method), []

    def crash(*args):
        calls.append(1)
        if len(calls) > (2 if method == "decode" else 0):
            raise FloatingPointError("the device caught fire")
        return real(*args)

    monkeypatch.setattr(sampler.engine, method, crash)
    start = time.monotonic()
    with pytest.raises(SamplerError, match="caught fire") as caught:
        collect(sampler, mixed_requests())
    assert isinstance(caught.value.__cause__, FloatingPointError)
    with pytest.raises(SamplerError, match="broke earlier") as again:
        sampler.sample(mixed_requests())
    assert isinstance(again.value.__cause__, FloatingPointError)
    with pytest.raises(SamplerError):
        sampler.update(POLICY, 1)
    sampler.close()
    assert time.monotonic() - start < 20


def test_a_thread_that_vanishes_is_noticed(build, monkeypatch):
    sampler = build("jetstream")
    monkeypatch.setattr(sampler.engine, "prefill", lambda *_: time.sleep(0.2))
    stream = sampler.sample(mixed_requests())
    sampler._driver._transfer_backlogs[0].put(None)  # ends the transfer thread without an exception
    with pytest.raises(SamplerError, match="without a word"):
        list(stream)


@BOTH
def test_close_with_samples_in_flight_ends_the_iterator_with_an_error(name, build):
    sampler = build(name)
    stream = sampler.sample([Request(prompt(5), 40, 1, SamplingParams(50), "long")])
    next(stream)
    start = time.monotonic()
    sampler.close()
    assert time.monotonic() - start < 5
    with pytest.raises(SamplerError, match="closed"):
        list(stream)
    with pytest.raises(SamplerError, match="closed"):
        sampler.sample(mixed_requests())
    sampler.close()


def test_close_ends_every_thread_it_started(build):
    before = threading.active_count()
    sampler = build("jetstream")
    collect(sampler, mixed_requests()[:1])
    assert threading.active_count() > before
    sampler.close()
    assert threading.active_count() == before


def test_release_frees_the_slots_until_the_next_sample(build, oracle):
    sampler = build("jetstream")
    pool = (2, 2, dict(sampler.engine.shape.pages)["full"], PAGE, 8)
    count = lambda: sum(x.shape == pool for x in jax.live_arrays())  # noqa: E731
    free = count()
    collect(sampler, mixed_requests()[:1])
    assert count() == free + 2
    sampler.release()
    assert count() == free
    assert_same_bits(collect(sampler, mixed_requests()), oracle)


@pytest.mark.parametrize(
    "ending",
    [
        "it = s.sample(r); next(it)",
        pytest.param("list(s.sample(r))", marks=pytest.mark.slow),
        pytest.param("s.sample(r); sys.exit(0)", marks=pytest.mark.slow),
    ],
)
def test_a_program_that_ends_without_close_exits_cleanly(ending):
    program = f"""
        import logging, sys
        root = logging.getLogger(); before = (root.level, list(root.handlers))
        import jax
        from jopsd.models.decoder import Decoder, ModelConfig
        from jopsd.sampling import Policy, Request, SamplingParams, make_sampler
        cfg = ModelConfig(64, 16, 1, 2, 1, 8, 16)
        s = make_sampler("jetstream", cfg, Policy(Decoder(cfg, jax.random.key(0)), None), 2, 32, 4)
        r = [Request((1, 2), 20, 0, SamplingParams(20))]
        assert (root.level, root.handlers) == before
        assert not {{"tensorflow", "seqio", "tiktoken"}} & set(sys.modules)
        print("ready", flush=True)
        {ending}
    """
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ready\n", "")
    assert time.monotonic() - start < 60


# Bad requests


@BOTH
@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request((1,) * 60, 1, 0, SamplingParams(5), "a"), r"request 1 \(id 'a'\): prompt of 60 .* 5 = 65 .* 64"),
        (Request((1, 97), 1, 0, SamplingParams(5), "a"), "prompt_ids has token 97, outside the vocabulary of 97"),
        (Request((1, -1), 1, 0, SamplingParams(5), "a"), "prompt_ids has token -1"),
        (Request((1,), 1, 0, SamplingParams(5, stop_ids=(200,)), "a"), "stop_ids has token 200"),
        (Request((1,), 1, 0, SamplingParams(5, stop_ids=tuple(range(9))), "a"), "9 stop_ids.* 8"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_before_anything_runs(name, request_, words, build):
    with pytest.raises(ValueError, match=words):
        build(name).sample([Request((1,), 1, 0, SamplingParams(1)), request_])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens .* 0"),
        ({"temperature": -0.1}, "temperature .* -0.1"),
        ({"temperature": float("nan")}, "temperature .* nan"),
        ({"top_p": 0.0}, "top_p .* 0.0"),
        ({"top_p": 1.1}, "top_p .* 1.1"),
        ({"top_k": -1}, "top_k .* -1"),
    ],
)
def test_sampling_parameters_out_of_range_are_named(values, words):
    with pytest.raises(ValueError, match=words):
        SamplingParams(**{"max_new_tokens": 1, **values})


def test_requests_that_make_no_sense_are_named():
    params = SamplingParams(1)
    for arguments, words in (((), 1, 0), "empty prompt"), (((1,), 0, 0), "n must"), (((1,), 1, 2**32), "seed must"):
        with pytest.raises(ValueError, match=words):
            Request(*arguments, params, "a")


def test_no_requests_give_no_completions(build):
    assert collect(build("jetstream"), []) == {} == collect(build("loop"), [])


def test_an_unknown_sampler_is_named():
    with pytest.raises(ValueError, match="'vllm' is not one of"):
        make_sampler("vllm", CFG, POLICY, 1, 8, 1)


# JetStream itself


def test_a_missing_or_wrong_jetstream_gives_the_command_that_installs_it(monkeypatch):
    from importlib import metadata

    from jopsd.sampling import jetstream_compat

    def missing(_):
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ImportError, match=r"pip install --no-deps google-jetstream==0\.2\.2"):
        jetstream_compat._check_version()
    monkeypatch.setattr(metadata, "version", lambda _: "0.3.0")
    with pytest.raises(ImportError, match=r"found 0\.3\.0: pip install --no-deps google-jetstream==0\.2\.2"):
        jetstream_compat._check_version()
    with pytest.raises(ImportError, match=r"'jetstream': pip install --no-deps"):
        jetstream_compat._import("jetstream.no_such_module")


def test_jetstream_leaves_the_root_logger_alone(build):
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    collect(build("jetstream"), mixed_requests()[:1])
    assert (root.level, list(root.handlers)) == before


# Meshes


def test_slots_over_a_mesh_of_eight_devices_give_the_same_tokens(build, oracle):
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    policy = jax.device_put(POLICY, tree_shardings(POLICY, mesh))
    loop, stream = build("loop", policy, mesh=mesh), build("jetstream", policy, mesh=mesh)
    with jax.set_mesh(mesh):
        state = loop.engine.init_state()
    shape = loop.engine.shape
    assert shape.shards == 4
    held = state.pages["full"].k
    assert held.sharding.shard_shape(held.shape) == (1, 2, dict(shape.pages)["full"], PAGE, 8)
    found = collect(loop, mixed_requests())
    for key, completion in found.items():
        assert completion.completion_ids.tolist() == oracle[key].completion_ids.tolist(), key
        np.testing.assert_allclose(completion.logprobs, oracle[key].logprobs, atol=1e-4)
    assert_same_bits(collect(stream, mixed_requests()), found)


# What the families add to the decoder; the window is shorter than most of the sequences.
VARIANTS = {
    "biases": replace(CFG, qk_norm="none", biases=("q", "k", "v", "o", "gate", "up", "down")),
    "windows": replace(
        CFG, num_layers=4, pattern=("sliding", "full"), window=5, norm="post", qk_norm="projection",
        rope_scaling=Yarn(4.0, 16, 1.1), stretch_sliding=False,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=pytest.mark.slow if v in ("windows", "biases") else ()) for v in VARIANTS]
)
def test_every_variant_of_the_decoder_draws_the_same_on_one_device_and_on_eight(variant):
    cfg = VARIANTS[variant]
    policy = jax.tree.map(
        lambda x: x + 0.3 * jnp.cos(jnp.arange(x.size)).reshape(x.shape) if x.ndim == 2 else x,
        make_policy(adapter=True, cfg=cfg),
    )
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    alone = make_sampler("loop", cfg, policy, SLOTS, MAX_LENGTH, CHUNK)
    split = make_sampler(
        "loop", cfg, jax.device_put(policy, tree_shardings(policy, mesh)), SLOTS, MAX_LENGTH, CHUNK, mesh
    )
    temperature = {request.id: request.params.temperature for request in mixed_requests()}
    found, expected = (collect(sampler, mixed_requests()) for sampler in (split, alone))
    for key, completion in expected.items():
        assert found[key].completion_ids.tolist() == completion.completion_ids.tolist(), key
        np.testing.assert_allclose(found[key].logprobs, completion.logprobs, atol=1e-4)
        forced = teacher_forced(policy, completion, temperature[completion.request_id])
        np.testing.assert_allclose(completion.logprobs, forced, atol=1e-4)


def test_compiled_programs_are_few(build):
    programs = [engine_module.prefill, engine_module.admit, engine_module.decode]
    count = lambda: [program._cache_size() for program in programs]  # noqa: E731
    sampler = build("loop", slots=5)
    before = count()
    collect(sampler, mixed_requests())
    assert [after - start for after, start in zip(count(), before, strict=True)] == [2, 1, 1]  # two widths of pieces
    compiled = count()
    collect(sampler, mixed_requests())
    collect(build("jetstream", slots=5), mixed_requests())
    assert count() == compiled
