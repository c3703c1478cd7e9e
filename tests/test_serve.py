"""The sampling server while it runs: weights by version, who may use it, health, metrics, and how it stops."""

import contextlib
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from argparse import Namespace
from contextlib import closing, contextmanager
from dataclasses import replace

import grpc
import jax
import numpy as np
import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from prometheus_client.parser import text_string_to_metric_families

from jopsd import checkpoint, serve
from jopsd.config import load_config
from jopsd.mesh import make_mesh
from jopsd.models.lora import init_adapter
from jopsd.models.sharding import tree_shardings
from jopsd.policies import load_policy
from jopsd.sampling import Policy, Request, SamplerError, SamplingParams, connect, health, make_sampler, server, wire
from jopsd.sampling.access import below, require_guarded, server_credentials
from jopsd.sampling.fingerprint import fingerprint, model_fingerprint, shape_fingerprint
from jopsd.sampling.publish import KEEP, Publisher, read_published
from jopsd.sampling.server_metrics import publish_metrics
from jopsd.sampling.service import Service
from tests.runs import write_config

SLOTS, MAX_LENGTH, CHUNK = 4, 64, 16
TOKEN = "0123456789abcdef"
ENDLESS = [Request((9, 10), 4000, 0, SamplingParams(20))]


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def base(mesh):
    return load_policy("builtin:sums", mesh=mesh).policy


def trained(base, seed, rank=4):
    """The base with an adapter that changes what it says."""
    cfg = base.model.cfg
    fresh = init_adapter(cfg.projections, cfg.num_layers, rank, 8.0, jax.random.key(seed), ("q", "down"))
    keys = jax.random.split(jax.random.key(seed + 100), len(fresh.b))
    b = {name: 0.1 * jax.random.normal(key, fresh.b[name].shape) for name, key in zip(fresh.b, keys, strict=True)}
    adapter = replace(fresh, b=b)
    mesh = base.model.embed[...].sharding.mesh
    return Policy(base.model, jax.device_put(adapter, tree_shardings(adapter, mesh)))  # placed as a server places it


def requests(count=3, n=2):
    return [Request((5, 9, 13 + i), n, 100 + i, SamplingParams(9), id=f"row {i}") for i in range(count)]


def collect(sampler, wanted):
    return {(c.request_id, c.index): c for c in sampler.sample(wanted)}


def drawn_by(policy, wanted, version=0):
    """What the plain loop draws from a policy, in this process."""
    sampler = make_sampler("loop", policy.model.cfg, policy, SLOTS, MAX_LENGTH, CHUNK)
    sampler.update(policy, version)
    return collect(sampler, wanted)


def assert_same_draws(left, right):
    assert left.keys() == right.keys()
    for key, one in left.items():
        assert one.completion_ids.tolist() == right[key].completion_ids.tolist(), key
        assert one.logprobs.tobytes() == right[key].logprobs.tobytes(), key
        assert one.policy_version == right[key].policy_version, key


@contextmanager
def serving(policy, root=None, backend="loop", mesh=None, **how):
    """A server of this process that takes weights below `root`: (its service, its address)."""
    sampler = make_sampler(backend, policy.model.cfg, policy, SLOTS, MAX_LENGTH, CHUNK)
    read = None if root is None else lambda path, served: read_published(below(root, path), served, mesh)
    service = Service(sampler, server.describe(sampler, "sums"), read)
    running, port = server.listen(service, **how)
    try:
        yield service, f"127.0.0.1:{port}"
    finally:
        service.stop()
        running.stop(grace=1.0).wait()


def publisher(root, policy):
    return Publisher(root / "weights", None if policy.adapter is None else model_fingerprint(policy.model))


def load_of(published):
    return wire.Load(published.version, str(published.path), published.fingerprint)


def status(call, data=b"", metadata=()):
    """Name and words of the gRPC status of a call that must fail."""
    with pytest.raises(grpc.RpcError) as raised:
        answer = call(data, timeout=20, metadata=metadata)
        list(answer if not isinstance(answer, bytes) else [answer])
    return raised.value.code().name, raised.value.details()


# Publishing


@pytest.mark.parametrize("what", ["adapter", "model"])
def test_published_weights_come_back_bit_for_bit_and_the_newest_stay(base, mesh, tmp_path, what):
    policy = trained(base, 1) if what == "adapter" else base
    (tmp_path / "weights" / "7").mkdir(parents=True)  # of an earlier process, perhaps of another run
    (tmp_path / "weights" / "8.orbax-checkpoint-tmp").mkdir()
    writes = publisher(tmp_path, policy)
    for version in range(4):
        published = writes.publish(policy, version)
        writes.forget()
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == ["2", "3"]
    assert KEEP == 2
    read = read_published(published.path, base, mesh)
    ours, theirs = jax.tree_util.tree_flatten_with_path(policy)[0], jax.tree_util.tree_flatten_with_path(read)[0]
    assert [path for path, _ in ours] == [path for path, _ in theirs]
    for (path, one), (_, other) in zip(ours, theirs, strict=True):
        assert (one.dtype, np.asarray(one).tobytes()) == (other.dtype, np.asarray(other).tobytes()), path
    assert jax.tree.structure(read) == jax.tree.structure(policy)
    if what == "adapter":
        assert read.adapter.scale == policy.adapter.scale
        assert read.model is base.model


def test_fingerprints_tell_weights_adapters_and_scales_apart_but_not_how_attention_is_computed(base):
    one, other = trained(base, 1), trained(base, 2)
    scaled = Policy(one.model, replace(one.adapter, scale=one.adapter.scale * 2))
    assert len({fingerprint(p) for p in (base, one, other, scaled)}) == 4
    assert fingerprint(base) == model_fingerprint(base.model)
    model = jax.tree.map(lambda x: x, base.model)
    model.cfg = replace(model.cfg, remat="dots", attention="xla")
    assert model_fingerprint(model) == model_fingerprint(base.model)
    assert shape_fingerprint(trained(base, 1).model) == shape_fingerprint(base.model)
    halves = jax.tree.map(lambda x: x.astype("bfloat16"), base.model)
    assert shape_fingerprint(halves) != shape_fingerprint(base.model)


# Versions


@pytest.mark.parametrize("backend", ["loop", "jetstream"])
def test_a_server_draws_from_the_weights_it_was_given_last_and_says_their_version(base, mesh, tmp_path, backend):
    first, second = trained(base, 1), trained(base, 2)
    writes = publisher(tmp_path, first)
    with serving(base, tmp_path, backend, mesh) as (service, address), closing(connect("grpc", address)) as remote:
        assert_same_draws(collect(remote, requests()), drawn_by(base, requests()))
        for version, policy in ((5, first), (6, second), (7, base)):
            if policy is base:
                writes = publisher(tmp_path, base)  # a whole model in place of the adapter
            remote.load(load_of(writes.publish(policy, version)), 60)
            assert remote.description.policy_version == version
            assert remote.description.fingerprint == fingerprint(policy)
            assert_same_draws(collect(remote, requests()), drawn_by(policy, requests(), version))
        with closing(connect("grpc", address)) as other:
            assert other.description == remote.description == service.description


def test_a_request_for_other_weights_is_refused_with_both_versions(base, mesh, tmp_path):
    policy = trained(base, 1)
    published = publisher(tmp_path, policy).publish(policy, 3)
    with serving(base, tmp_path, mesh=mesh) as (service, address), closing(connect("grpc", address)) as stale:
        with closing(connect("grpc", address)) as fresh:
            fresh.load(load_of(published), 60)
        with pytest.raises(SamplerError, match=r"FAILED_PRECONDITION.*version 3.*not version 0"):
            list(stale.sample(requests()))
        stale.description = fresh.description._replace(policy_version=4)  # the right weights by another name
        with pytest.raises(SamplerError, match=r"FAILED_PRECONDITION.*version 3.*not version 4"):
            list(stale.sample(requests()))
        count = lambda name: service.metrics.refusals.labels(name)._value.get()  # noqa: E731
        assert count("FAILED_PRECONDITION") == 2


@pytest.mark.parametrize("backend", ["loop", "jetstream"])
def test_samples_in_flight_are_cut_off_when_weights_change_and_none_is_continued(base, mesh, tmp_path, backend):
    policy = trained(base, 1)
    published = publisher(tmp_path, policy).publish(policy, 1)
    seen = []

    def read():
        with contextlib.suppress(SamplerError):
            for completion in stream:
                seen.append(completion)
        ended.set()

    with serving(base, tmp_path, backend, mesh) as (service, address), closing(connect("grpc", address)) as remote:
        stream, ended = remote.sample(ENDLESS), threading.Event()
        seen.append(next(stream))
        threading.Thread(target=read, daemon=True).start()
        with closing(connect("grpc", address)) as other:
            other.load(load_of(published), 60)
            assert_same_draws(collect(other, requests()), drawn_by(policy, requests(), 1))
        assert ended.wait(20)
        assert len(seen) < 4000
        wanted = [replace(ENDLESS[0], indices=tuple(c.index for c in seen))]
        assert_same_draws({(c.request_id, c.index): c for c in seen}, drawn_by(base, wanted))
        assert service.metrics.in_flight._value.get() == 0


def test_loading_what_is_served_already_reads_nothing_and_cuts_nothing_off(base, mesh, tmp_path):
    policy = trained(base, 1)
    published = publisher(tmp_path, policy).publish(policy, 1)
    with serving(base, tmp_path, "jetstream", mesh) as (_, address), closing(connect("grpc", address)) as remote:
        remote.load(load_of(published), 60)
        shutil.rmtree(published.path)
        with closing(remote.sample(ENDLESS)) as stream:
            next(stream)
            remote.load(load_of(published), 60)
            assert next(stream).policy_version == 1


def test_weights_that_are_not_what_they_should_be_leave_the_server_as_it_was(base, mesh, tmp_path):
    policy = trained(base, 1)
    published = publisher(tmp_path, policy).publish(policy, 1)
    cfg = base.model.cfg
    odd = init_adapter({"q": (cfg.projections["q"][0], 8)}, cfg.num_layers, 2, 4.0, jax.random.key(0), ("q",))
    misfit = Publisher(tmp_path / "odd", "0" * 16).publish(Policy(base.model, odd), 1)
    broken = tmp_path / "broken"
    shutil.copytree(published.path, broken)
    for file in (broken / "weights").rglob("*"):
        if file.is_file():
            file.write_bytes(b"\0")
    with serving(base, tmp_path, mesh=mesh) as (_, address), closing(connect("grpc", address)) as remote:
        for load, words in [
            (load_of(published)._replace(fingerprint="f" * 16), "DATA_LOSS.*not ffffffffffffffff"),
            (load_of(misfit)._replace(fingerprint=""), "FAILED_PRECONDITION.*does not fit the model"),
            (load_of(published)._replace(path=str(broken)), "FAILED_PRECONDITION"),
        ]:
            with pytest.raises(SamplerError, match=words):
                remote.load(load, 60)
        assert_same_draws(collect(remote, requests()), drawn_by(base, requests()))


def test_weights_are_read_from_below_the_root_and_from_nowhere_else(base, mesh, tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    policy = trained(base, 1)
    good, secret = publisher(root, policy).publish(policy, 1), publisher(outside, policy).publish(policy, 1)
    (root / "link").symlink_to(secret.path)
    (root / "up").symlink_to("..")
    shutil.copytree(good.path, root / "holding")
    (root / "holding" / "meta" / "more").symlink_to(secret.path / "meta")
    (root / "file").write_text("")
    with serving(base, root, mesh=mesh) as (_, address), closing(connect("grpc", address)) as remote:
        for path in (
            str(secret.path),
            f"{root}/../outside/weights/1",
            "../outside/weights/1",
            "link",
            "up/outside/weights/1",
            "holding",
            "/etc",
            "..",
            ".",
            str(root),
            "",
            "a\0b",
            "x" * 5000,
            f"{root}x/weights/1",
        ):
            with pytest.raises(SamplerError, match="PERMISSION_DENIED"):
                remote.load(wire.Load(1, path), 60)
        for path in ("absent", "file", "weights"):
            with pytest.raises(SamplerError, match="NOT_FOUND"):
                remote.load(wire.Load(1, path), 60)
        remote.load(wire.Load(1, "weights/1"), 60)
        assert remote.description.fingerprint == good.fingerprint
    with serving(base) as (_, address), closing(connect("grpc", address)) as remote:
        with pytest.raises(SamplerError, match="PERMISSION_DENIED.*--weights-root"):
            remote.load(load_of(good), 60)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"[]", b"{}", b'{"version": 1}', b'{"version": "1", "path": "a"}', b'{"version": -1, "path": "a"}']
    + [b'{"version": 1, "path": 2}', b'{"version": 1, "path": "a", "more": 1}', b'{"version": 1e400, "path": "a"}'],
)
def test_what_is_no_request_to_load_is_refused(data):
    with pytest.raises(ValueError):
        wire.decode_load(data)


def test_a_client_that_leaves_is_noticed_although_no_sample_finishes(base):
    with serving(base, backend="jetstream") as (service, address), closing(connect("grpc", address)) as remote:
        engine, gate = service.sampler.engine, threading.Event()
        real, engine.decode = engine.decode, lambda state: gate.wait(60) and real(state)
        stream = remote.sample(ENDLESS)
        until(lambda: service.metrics.in_flight._value.get() == 4000)
        stream.close()
        until(lambda: service.metrics.in_flight._value.get() == 0)
        assert not gate.is_set()
        gate.set()


def until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


# Who may


def test_without_the_token_nothing_but_health_is_answered(base, mesh, tmp_path):
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "wrong").write_text(TOKEN[:-1] + "0")
    with serving(base, tmp_path, mesh=mesh, token=TOKEN) as (service, address):
        with grpc.insecure_channel(address) as channel:
            ours = f"/{wire.SERVICE}/{{}}".format
            calls = [channel.unary_unary(ours("Describe")), channel.unary_unary(ours("Load"))]
            calls += [channel.unary_stream(ours("Sample")), channel.unary_unary("/no.such/Method")]
            for call in calls:
                for given in ("", TOKEN, f"Bearer {TOKEN}0", f"bearer {TOKEN}", "Bearer "):
                    metadata = (("authorization", given),) if given else ()
                    assert status(call, b"", metadata) == ("UNAUTHENTICATED", "the token is missing or wrong")
            assert channel.unary_unary(f"/{health.SERVICE}/Check")(b"", timeout=20) == health.SERVING
        assert service.metrics.refusals.labels("UNAUTHENTICATED")._value.get() == 20
        with pytest.raises(SamplerError, match="UNAUTHENTICATED"):
            connect("grpc", address, token_file=tmp_path / "wrong")
        with closing(connect("grpc", address, token_file=tmp_path / "token")) as remote:
            assert_same_draws(collect(remote, requests()), drawn_by(base, requests()))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command")
def test_tls_is_checked_against_the_certificate_given(base, tmp_path):
    for name in ("ours", "theirs"):
        subprocess.run(
            [
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-days",
                "2",
            ]
            + ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
            + ["-keyout", tmp_path / f"{name}.key", "-out", tmp_path / f"{name}.pem"],
            check=True,
            capture_output=True,
        )
    (tmp_path / "token").write_text(TOKEN)
    credentials = server_credentials(tmp_path / "ours.pem", tmp_path / "ours.key")
    with serving(base, credentials=credentials, token=TOKEN) as (_, address):
        options = {"token_file": tmp_path / "token", "ca_file": tmp_path / "ours.pem"}
        with closing(connect("grpc", address, **options)) as remote:
            assert_same_draws(collect(remote, requests()), drawn_by(base, requests()))
        for wrong in (options | {"ca_file": tmp_path / "theirs.pem"}, {"token_file": tmp_path / "token"}):
            with pytest.raises(SamplerError, match=f"{address} within 0.5 s"):
                connect("grpc", address, timeout=0.5, **wrong)


def test_a_server_is_open_to_other_hosts_only_with_token_and_tls_or_where_that_is_said():
    for host in ("127.0.0.1", "localhost", "::1", "[::1]", "127.3.2.1"):
        require_guarded(host, False, False, False)
    for host in ("0.0.0.0", "::", "10.0.0.1", "a.host", "localhost.example"):
        require_guarded(host, True, True, False)
        require_guarded(host, False, False, True)
        for token, tls in ((False, False), (True, False), (False, True)):
            with pytest.raises(ValueError, match="--token-file, --tls-cert and --tls-key; or --insecure"):
                require_guarded(host, token, tls, False)
    with pytest.raises(ValueError, match="--insecure is a server without"):
        require_guarded("0.0.0.0", True, True, True)


def test_a_token_never_leaves_this_host_in_the_clear_and_must_be_one(tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    with pytest.raises(ValueError, match="in the clear") as raised:
        connect("grpc", "10.0.0.1:9000", token_file=tmp_path / "token")
    assert TOKEN not in str(raised.value)
    for text in ("", "two words", "é" * 20, "\x07bell"):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(ValueError, match="must hold a token"):
            connect("grpc", "127.0.0.1:9", token_file=tmp_path / "bad")
    with pytest.raises(OSError):
        connect("grpc", "127.0.0.1:9", token_file=tmp_path / "absent")


def test_a_message_larger_than_the_server_takes_is_refused_unread(base, monkeypatch):
    monkeypatch.setattr(server, "MAX_REQUEST_BYTES", 1000)
    with serving(base) as (_, address), grpc.insecure_channel(address) as channel:
        call = channel.unary_stream(f"/{wire.SERVICE}/Sample")
        code, words = status(call, b"\0" * 1001)
        assert code == "RESOURCE_EXHAUSTED" and "larger than max (1001 vs. 1000)" in words
        assert status(call, b"\0" * 1000)[0] == "INVALID_ARGUMENT"


# Health and metrics


def health_messages():
    """The two messages of grpc.health.v1, made by protobuf from their published definition."""
    file = descriptor_pb2.FileDescriptorProto(name="health.proto", package="grpc.health.v1", syntax="proto3")
    asked, answer = file.message_type.add(name="HealthCheckRequest"), file.message_type.add(name="HealthCheckResponse")
    asked.field.add(name="service", number=1, type=9, label=1)
    kind = answer.enum_type.add(name="ServingStatus")
    for number, name in enumerate(("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")):
        kind.value.add(name=name, number=number)
    status_type = ".grpc.health.v1.HealthCheckResponse.ServingStatus"
    answer.field.add(name="status", number=1, type=14, label=1, type_name=status_type)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    find = lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"grpc.health.v1.{name}"))  # noqa: E731
    return find("HealthCheckRequest"), find("HealthCheckResponse")


def test_the_health_service_speaks_its_protocol(base):
    asked, answer = health_messages()
    with serving(base, backend="jetstream") as (service, address), grpc.insecure_channel(address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=asked.SerializeToString,
            response_deserializer=answer.FromString,
        )
        assert check(asked(), timeout=20).status == check(asked(service=wire.SERVICE), timeout=20).status == 1
        assert status(check, asked(service="another"))[0] == "NOT_FOUND"
        raw = channel.unary_unary("/grpc.health.v1.Health/Check")
        for wrong in (b"\x0a", b"\x0a\x05ab", b"\xff" * 300):
            assert status(raw, wrong)[0] == "INVALID_ARGUMENT"
        service.sampler.close()
        with closing(connect("grpc", address)) as remote, pytest.raises(SamplerError):
            list(remote.sample(requests()))
        assert check(asked(), timeout=20).status == 2


def test_a_server_that_stops_refuses_what_is_new_and_cuts_off_what_is_not_done(base):
    with serving(base, backend="jetstream") as (service, address), closing(connect("grpc", address)) as remote:
        stream = remote.sample(ENDLESS)
        next(stream)
        service.stop()
        with pytest.raises(SamplerError, match="UNAVAILABLE"):
            list(stream)
        with pytest.raises(SamplerError, match="UNAVAILABLE.*is stopping"):
            list(remote.sample(requests()))
        assert not service.serving


def test_what_was_served_is_counted_for_prometheus(base, mesh, tmp_path):
    policy = trained(base, 1)
    published = publisher(tmp_path, policy).publish(policy, 12)
    with serving(base, tmp_path, mesh=mesh) as (service, address), closing(connect("grpc", address)) as remote:
        found = collect(remote, requests(3, 2))
        remote.load(load_of(published), 60)
        with pytest.raises(SamplerError):
            remote.load(wire.Load(1, ".."), 60)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        publish_metrics(service.metrics, "127.0.0.1", port)
        with pytest.raises(OSError, match="give another port"):
            publish_metrics(service.metrics, "127.0.0.1", port)
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20).read().decode()
    samples = {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}
    name = "jopsd_serve_{}".format
    assert samples[name("requests_total")] == 3
    assert samples[name("samples_total")] == 6
    assert samples[name("tokens_total")] == sum(len(c.completion_ids) for c in found.values())
    assert samples[name("in_flight")] == 0
    assert samples[name("policy_version")] == 12
    assert samples[name("load_seconds_count")] == 1
    assert samples[name("refusals_total")] == 1


# The program


def arguments(**given):
    parsed = serve._parser().parse_args(["--max-length", str(MAX_LENGTH), "--slots", str(SLOTS), "--backend", "loop"])
    return Namespace(**(vars(parsed) | given))


@pytest.mark.parametrize(
    "given, words",
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 is reached from other hosts"),
        (["--tls-cert", "a"], "go together"),
        (["--watch"], "--watch follows the --checkpoint"),
        (["--weights-root", "no/where"], "--weights-root no/where is not a directory"),
        (["--checkpoint", "runs/a", "--dtype", "float32"], "a run's config says its dtypes"),
        (["--checkpoint", "runs/a:3", "--watch"], "without"),
        (["--token-file", "no/where"], "no/where"),
    ],
)
def test_arguments_that_cannot_be_served_are_one_line_each(given, words, capsys):
    assert serve.main(["--model", "builtin:sums", "--max-length", "64", "--port", "0", *given]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_run_that_goes_on_is_followed_from_checkpoint_to_checkpoint(mesh, tmp_path, monkeypatch):
    monkeypatch.setattr(serve, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr("jopsd.policies.mesh_for_sampling", lambda cfg: mesh)
    base = load_policy("builtin:sums", mesh=mesh, dtype="float32", param_dtype="float32").policy  # as the config says
    run = tmp_path / "run"
    config = load_config(write_config(tmp_path, lora={"targets": ["q", "down"]}))
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    save = lambda step: checkpoint.save(manager, step, {"trainable": trained(base, step).adapter}, {})  # noqa: E731
    with checkpoint.open_checkpoints(run) as manager:
        save(2)
        args = arguments(checkpoint=str(run), watch=True)
        sampler, name, restored, read = serve.load(args)
        assert (name, read, sampler.engine.version) == (f"{run}:2", None, 2)
        assert fingerprint(sampler.engine.policy) == fingerprint(trained(base, 2))
        service, stop = Service(sampler, server.describe(sampler, name), read), threading.Event()
        thread = threading.Thread(target=serve._wait, args=(stop, args, service, restored), daemon=True)
        thread.start()
        save(5)
        until(lambda: service.description.policy_version == 5)
        stop.set()
        thread.join(20)
    assert service.description.fingerprint == fingerprint(trained(base, 5))
