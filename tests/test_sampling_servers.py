"""Samplers in other processes: the gRPC server and its client, and a stand-in that answers as vLLM does."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import grpc
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jopsd.mesh import make_mesh
from jopsd.models.hf import load_pretrained, read_config
from jopsd.sampling import (
    Completion,
    Policy,
    Request,
    SamplerError,
    SamplingParams,
    connect,
    fingerprint,
    make_sampler,
    server,
    service,
    wire,
)
from jopsd.sampling.openai import OpenAISampler, completion_body, read_completion, sample_seed
from jopsd.setup import BUILTIN
from tests.runs import environment

SUMS = BUILTIN["builtin:sums"]
SLOTS, MAX_LENGTH, CHUNK = 4, 64, 16
STOP = 7
KEY = "sk-not-for-logs"


def collect(sampler, requests):
    """Completions by (request id, sample index); each must come exactly once."""
    found = {}
    for completion in sampler.sample(requests):
        assert (completion.request_id, completion.index) not in found
        found[completion.request_id, completion.index] = completion
    assert found.keys() == {(r.id, i) for r in requests for i in (r.indices or range(r.n))}
    return found


# A stand-in for vLLM


class StandIn:
    """An OpenAI-compatible server whose tokens follow from the seed alone.

    ids: how it gives token ids: "token_ids", "logprobs" (older vLLM), or "none". omit_stop: leaves the stop token out.
    disturb: called with the number of each completion request and the handler; True if it has answered itself.
    """

    def __init__(self, ids="token_ids", omit_stop=False, disturb=lambda number, handler: False, models=None):
        self.ids, self.omit_stop, self.disturb = ids, omit_stop, disturb
        self.models = [{"id": "tiny", "max_model_len": 64}] if models is None else models
        self.bodies, self.keys, self.active, self.peak = [], [], 0, 0
        self.lock, self.gone = threading.Lock(), threading.Event()

    def draw(self, body):
        """(tokens, log-probs): up to max_tokens, the stop token last where it was drawn."""
        rng = np.random.default_rng(body["seed"])
        tokens = rng.integers(0, 12, body["max_tokens"]).tolist()
        ends = [i for i, token in enumerate(tokens) if token in body["stop_token_ids"]]
        tokens = tokens[: ends[0] + 1] if ends else tokens
        return tokens, [-0.5 - token / 16 for token in tokens]

    def answer(self, body):
        tokens, logprobs = self.draw(body)
        stopped = tokens[-1] in body["stop_token_ids"]
        reason = tokens[-1] if stopped and self.ids == "token_ids" else None
        shown = len(tokens) - (stopped and self.omit_stop)
        names = [f"token_id:{t}" if self.ids == "logprobs" else f"<{t}>" for t in tokens[:shown]]
        choice = {
            "index": 0,
            "text": "irrelevant",
            "finish_reason": "stop" if stopped else "length",
            "stop_reason": reason,
            "logprobs": {"tokens": names, "token_logprobs": logprobs[:shown]},
        }
        if self.ids == "token_ids":
            choice["token_ids"] = tokens[:shown]
        return {"object": "text_completion", "choices": [choice]}


@contextmanager
def serving(stand_in):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            reply(self, 200, {"object": "list", "data": stand_in.models})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with stand_in.lock:
                number = len(stand_in.bodies)
                stand_in.bodies.append(body)
                stand_in.keys.append(self.headers["Authorization"])
                stand_in.active += 1
                stand_in.peak = max(stand_in.peak, stand_in.active)
            try:
                if not stand_in.disturb(number, self):
                    reply(self, 200, stand_in.answer(body))
            finally:
                with stand_in.lock:
                    stand_in.active -= 1

        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 64

    http_server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=http_server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http_server.server_port}"
    finally:
        http_server.shutdown()
        http_server.server_close()


def reply(handler, status, answer, **headers):
    data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    handler.send_response(status)
    for name, value in ({"Content-Length": str(len(data))} | headers).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data)


def until_gone(handler, stand_in):
    """Holds a request open until its client hangs up."""
    handler.connection.settimeout(20)
    assert handler.connection.recv(1) == b""
    stand_in.gone.set()


def asked(n=6, requests=3, **params):
    params = SamplingParams(**({"max_new_tokens": 9, "stop_ids": (STOP, 11)} | params))
    return [Request((5, 6 + i), n, 100 + i, params, id=f"row {i}") for i in range(requests)]


def sampler_of(url, **options):
    return OpenAISampler(url, **({"retries": 2, "backoff": 0.01, "timeout": 20.0} | options))


@pytest.mark.parametrize("omit_stop", [False, True])
@pytest.mark.parametrize("ids", ["token_ids", "logprobs"])
def test_every_sample_comes_once_with_the_tokens_that_the_server_drew_for_its_seed(ids, omit_stop):
    stand_in = StandIn(ids, omit_stop)
    requests = [replace(request, indices=(1, 4)) if i else request for i, request in enumerate(asked())]
    with serving(stand_in) as url, closing(sampler_of(url)) as sampler:
        found = collect(sampler, requests)
    assert {c.finish for c in found.values()} == {"eos", "length"}
    for request in requests:
        for index in request.indices or range(request.n):
            tokens, logprobs = stand_in.draw(completion_body("tiny", request, index))
            if ids == "logprobs" and omit_stop and tokens[-1] in (STOP, 11):
                tokens[-1] = STOP  # nothing tells which of the two it was
            one = found[request.id, index]
            assert one.completion_ids.tolist() == tokens
            assert one.completion_ids.dtype == np.int32
            stopped = tokens[-1] in (STOP, 11)
            if stopped and omit_stop:
                logprobs[-1] = math.nan
            np.testing.assert_array_equal(one.logprobs, np.array(logprobs, np.float32))
            assert (one.finish, one.prompt_ids, one.truncated) == (
                "eos" if stopped else "length",
                request.prompt_ids,
                False,
            )


def test_the_server_is_told_all_that_decides_a_draw_and_the_key():
    stand_in = StandIn()
    with serving(stand_in) as url:
        sampler = connect("openai", url + "/v1/", model="tiny", api_key=KEY)
        collect(sampler, asked(1, 1, temperature=0.6, top_p=0.95, top_k=20))
        collect(sampler, asked(1, 1, stop_ids=()))
    first, second = stand_in.bodies
    assert first == {
        "model": "tiny",
        "prompt": [5, 6],
        "n": 1,
        "seed": sample_seed(100, 0),
        "max_tokens": 9,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "stop_token_ids": [STOP, 11],
        "ignore_eos": False,
        "logprobs": 1,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "stream": False,
    }
    assert (second["top_k"], second["ignore_eos"], second["stop_token_ids"]) == (-1, True, [])
    assert stand_in.keys == [f"Bearer {KEY}"] * 2


def test_the_seed_of_a_sample_is_fixed_for_ever_and_its_own():
    assert (sample_seed(0, 0), sample_seed(2**32 - 1, 31)) == (6213027144842677344, 8398393316996231539)
    seeds = {sample_seed(seed, index) for seed in range(40) for index in range(40)}
    assert len(seeds) == 1600
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("trouble", ["429", "503", "reset", "cut", "html"])
def test_trouble_that_passes_is_tried_again_and_nothing_is_lost_or_doubled(trouble):
    def disturb(number, handler):
        if number % 3:
            return False
        if trouble in ("429", "503"):
            reply(handler, int(trouble), {"message": "busy"}, **{"Retry-After": "0"})
        elif trouble == "cut":
            reply(handler, 200, b'{"choices": [', **{"Content-Length": "4000"})
        elif trouble == "html":
            reply(handler, 200, b"<html>starting</html>")
        handler.connection.shutdown(socket.SHUT_RDWR)
        return True

    stand_in = StandIn(disturb=disturb)
    with serving(stand_in) as url, closing(sampler_of(url, concurrency=1)) as sampler:
        assert len(collect(sampler, asked(2, 2))) == 4
    assert len(stand_in.bodies) == 6


def test_trouble_that_stays_is_an_error_with_url_and_status_after_so_many_tries():
    stand_in = StandIn(disturb=lambda number, handler: reply(handler, 500, b"out of memory") or True)
    with serving(stand_in) as url, closing(sampler_of(url)) as sampler:
        stream = sampler.sample(asked(1, 1))
        with pytest.raises(SamplerError, match=rf"{url}/v1/completions: status 500: out of memory; gave up after 3"):
            next(stream)
    assert len(stand_in.bodies) == 3


@pytest.mark.parametrize(
    "status, answer, error, words",
    [
        (400, {"error": {"message": "maximum context length is 8"}}, ValueError, r"request 0 \(id 'row 0'\).*is 8"),
        (400, {"object": "error", "message": "bad token"}, ValueError, "bad token"),
        (422, {"detail": [{"loc": "top_k"}]}, ValueError, "top_k"),
        (401, {"error": f"no such key {KEY}"}, SamplerError, r"status 401: no such key \*\*\*; give a valid api_key"),
        (404, b"nothing here", SamplerError, "status 404: nothing here"),
        (307, b"", SamplerError, "status 307"),
    ],
)
def test_a_refusal_is_given_in_the_words_of_the_server_at_once(status, answer, error, words):
    stand_in = StandIn(disturb=lambda number, handler: reply(handler, status, answer) or True)
    with serving(stand_in) as url, closing(sampler_of(url, api_key=KEY)) as sampler:
        with pytest.raises(error, match=words) as raised:
            list(sampler.sample(asked(1, 1)))
    assert len(stand_in.bodies) == 1
    assert KEY not in str(raised.value) + repr(vars(sampler))


def test_a_server_that_does_not_answer_in_time_is_an_error():
    stand_in = StandIn(disturb=lambda number, handler: until_gone(handler, stand_in) or True)
    with serving(stand_in) as url, closing(sampler_of(url, timeout=0.3)) as sampler:
        with pytest.raises(SamplerError, match=rf"{url}/v1/completions: no answer within 0.3 s"):
            list(sampler.sample(asked(1, 1)))


@pytest.mark.parametrize("end", ["iterator", "sampler"])
def test_closing_hangs_up_and_asks_no_more(end):
    def disturb(number, handler):
        if number < 2:
            return False
        until_gone(handler, stand_in)
        return True

    stand_in = StandIn(disturb=disturb)
    with serving(stand_in) as url, closing(sampler_of(url, concurrency=2)) as sampler:
        stream = sampler.sample(asked(10, 1))
        next(stream), next(stream)
        while stand_in.active < 2:
            time.sleep(0.01)
        if end == "iterator":
            stream.close()
            assert list(stream) == []
        else:
            sampler.close()
            with pytest.raises(SamplerError, match="closed with samples in flight"):
                next(stream)
            with pytest.raises(SamplerError, match="is closed"):
                sampler.sample(asked())
        assert stand_in.gone.wait(20)
    assert len(stand_in.bodies) == 4


def test_as_many_requests_are_in_flight_as_asked_for_and_no_more():
    together = threading.Barrier(3)
    stand_in = StandIn(disturb=lambda number, handler: together.wait(20) is None)
    with serving(stand_in) as url, closing(sampler_of(url, concurrency=3)) as sampler:
        collect(sampler, asked(6, 2))
    assert stand_in.peak == 3


def test_the_model_and_its_length_are_looked_up():
    models = [{"id": "base", "max_model_len": 12}, {"id": "lora", "parent": "base", "max_model_len": None}, {"id": "x"}]
    stand_in = StandIn(models=models)
    with serving(stand_in) as url:
        assert [sampler_of(url, model=name).max_length for name in ("base", "lora", "x")] == [12, 12, None]
        with pytest.raises(ValueError, match=r"serves \['base', 'lora', 'x'\]; not 'tiny'"):
            sampler_of(url, model="tiny")
        with pytest.raises(ValueError, match="give the name of one"):
            sampler_of(url)
        with pytest.raises(ValueError, match=r"request 1 \(id 'row 1'\).*max_length 12"):
            sampler_of(url, model="lora").sample([*asked(1, 1), *asked(1, 2, max_new_tokens=11)[1:]])
        with pytest.raises(SamplerError, match="cannot be set from here"):
            sampler_of(url, model="x").update(None, 1)
    assert stand_in.bodies == []
    with pytest.raises(SamplerError, match="v1/models: ConnectionRefusedError.*gave up after 1 tries"):
        sampler_of(url, retries=0)


@pytest.mark.parametrize("url", ["", "ftp://host", "http://", "http://host:port", "http://me:secret@host:80"])
def test_what_is_no_url_of_a_server_is_an_error_that_repeats_no_password(url):
    with pytest.raises(ValueError) as raised:
        sampler_of(url)
    assert "secret" not in str(raised.value)


def choice(**changes):
    return {"choices": [{"finish_reason": "length", "token_ids": [1, 2], "logprobs": None} | changes]}


@pytest.mark.parametrize(
    "changes, tokens",
    [
        ({"token_ids": [1, STOP], "finish_reason": "stop", "stop_reason": None}, [1, STOP]),
        ({"token_ids": [1], "finish_reason": "stop", "stop_reason": 3}, [1, 3]),  # an end token of the server's own
        ({"token_ids": [3], "finish_reason": "stop", "matched_stop": 3}, [3]),
        ({"token_ids": [], "finish_reason": "stop"}, [STOP]),
    ],
)
def test_a_stopped_completion_ends_with_its_stop_token(changes, tokens):
    (request,) = asked(1, 1, max_new_tokens=2)
    completion = read_completion(choice(**changes), request, 0)
    assert (completion.completion_ids.tolist(), completion.finish) == (tokens, "eos")
    assert np.isnan(completion.logprobs).all()


@pytest.mark.parametrize(
    "answer, words",
    [
        ([], "not a completion"),
        ({"choices": []}, "not a completion"),
        (choice(token_ids=["1", "2"]), "not a completion"),
        (choice(token_ids=[1, 2**31]), "not a completion"),
        (choice(token_ids=None), "return_token_ids.*return_tokens_as_token_ids"),
        (choice(token_ids=None, logprobs={"tokens": ["a", "b"]}), "return_token_ids.*return_tokens_as_token_ids"),
        (choice(finish_reason="abort"), "'abort'"),
        (choice(token_ids=[1]), "cut it off at 1 tokens of max_new_tokens 2"),
        (choice(token_ids=[1, 2, 3]), "3 tokens with max_new_tokens 2"),
    ],
)
def test_an_answer_that_is_no_completion_says_what_it_lacks(answer, words):
    (request,) = asked(1, 1, max_new_tokens=2)
    with pytest.raises(SamplerError, match=words):
        read_completion(answer, request, 0)


# The gRPC server, in this process


@pytest.fixture(scope="module")
def policy():
    mesh = make_mesh(devices=jax.devices()[:1])
    return Policy(load_pretrained(SUMS, read_config(SUMS), mesh), None)


@contextmanager
def sampling(policy, backend):
    """A server over a sampler of this process: (the sampler, its address)."""
    sampler = make_sampler(backend, policy.model.cfg, policy, SLOTS, MAX_LENGTH, CHUNK)
    running, port = server.start(sampler, server.describe(sampler, "sums"))
    try:
        yield sampler, f"127.0.0.1:{port}"
    finally:
        sampler.close()
        running.stop(grace=1.0).wait()


def mixed_requests(salt=0):
    prompt = lambda length: tuple(np.random.default_rng(length).integers(3, 120, length).tolist())  # noqa: E731
    return [
        Request(prompt(5), 3, salt + 1, SamplingParams(11), ("any", "id")),
        Request(prompt(9), 2, 2**32 - 1 - salt, SamplingParams(9, temperature=0.7, top_p=0.8), "nucleus", (1,)),
        Request(prompt(12), 2, salt + 3, SamplingParams(14, top_k=5, stop_ids=tuple(range(40, 48))), 3.5),
        Request(prompt(1), 1, salt + 5, SamplingParams(12, temperature=0.0), None),
    ]


def assert_same_bits(left, right):
    assert left.keys() == right.keys()
    for key, one in left.items():
        other = right[key]
        assert one.completion_ids.tolist() == other.completion_ids.tolist(), key
        assert one.logprobs.dtype == np.float32
        assert one.logprobs.tobytes() == other.logprobs.tobytes(), key
        assert (one.prompt_ids, one.finish, one.truncated, one.policy_version) == (
            other.prompt_ids,
            other.finish,
            other.truncated,
            other.policy_version,
        )


@pytest.mark.parametrize("backend", ["loop", "jetstream"])
def test_clients_at_once_each_get_the_bits_of_a_sampler_in_their_own_process(policy, backend):
    oracle = make_sampler("loop", policy.model.cfg, policy, SLOTS, MAX_LENGTH, CHUNK)
    results = {}

    def ask(salt):
        with closing(connect("grpc", address)) as remote:
            results[salt] = collect(remote, mixed_requests(salt))

    with sampling(policy, backend) as (_, address):
        threads = [threading.Thread(target=ask, args=(salt,)) for salt in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    for salt in range(3):
        assert_same_bits(results[salt], collect(oracle, mixed_requests(salt)))


def test_a_client_knows_what_is_served_and_refuses_at_once_what_never_fits(policy):
    with sampling(policy, "loop") as (_, address), closing(connect("grpc", address, model="sums")) as remote:
        assert remote.description[:6] == ("sums", 128, MAX_LENGTH, SLOTS, 8, 0)
        short = SamplingParams(5)
        for bad, words in [
            (Request((1,) * 60, 1, 0, short, "long"), r"request 1 \(id 'long'\).*max_length 64"),
            (Request((500,), 1, 0, short, "other"), r"request 1 \(id 'other'\).*token 500"),
            (Request((1,), 1, 0, replace(short, stop_ids=tuple(range(9)))), "max_stop_ids is 8"),
            (Request((1,), 2**20, 0, short), "make several calls"),
        ]:
            with pytest.raises(ValueError, match=words):
                remote.sample([Request((1,), 1, 0, short), bad])
        with pytest.raises(SamplerError, match="cannot be set from here"):
            remote.update(policy, 1)
        with pytest.raises(ValueError, match="serves 'sums', not 'other'"):
            connect("grpc", address, model="other")


def test_no_message_brings_the_server_down_and_each_refusal_names_the_request(policy):
    good = mixed_requests()[:1]
    with sampling(policy, "jetstream") as (sampler, address), grpc.insecure_channel(address) as channel:
        fingerprint = server.fingerprint(policy)
        call = channel.unary_stream(f"/{wire.SERVICE}/Sample")

        def refusal(data):
            with pytest.raises(grpc.RpcError) as raised:
                list(call(data))
            return raised.value.code().name, raised.value.details()

        def tampered(**changes):
            header, body = wire._unpack(wire.encode_requests(good, fingerprint, 0))
            entry = header["requests"][0]
            entry["params"] |= {k: changes.pop(k) for k in list(changes) if k in entry["params"]}
            entry |= changes
            text = json.dumps(header).encode()
            return wire._HEADER.pack(len(text)) + text + bytes(body)

        whole = tampered()
        for data in (b"", b"\xff" * 40, whole[:30], whole[:-1], whole + b"1234", b"\x02\0\0\0[]", b"\x02\0\0\0{}"):
            assert refusal(data)[0] == "INVALID_ARGUMENT"
        for name, value in [
            ("n", 10**12),
            ("n", 1.5),
            ("seed", -1),
            ("seed", "1"),
            ("prompt", 10**9),
            ("prompt", -1),
            ("indices", [0, 0]),
            ("indices", 7),
            ("top_k", math.nan),
            ("top_k", 10**30),
            ("temperature", math.inf),
            ("top_p", None),
            ("stop_ids", [None]),
            ("stop_ids", [10**6]),
            ("max_new_tokens", 10**9),
            ("params", 3),
        ]:
            if (name, value) == ("top_k", 10**30):  # more than the vocabulary keeps all of it
                assert len(list(call(tampered(top_k=value)))) == 3
                continue
            code, words = refusal(tampered(**{name: value}))
            assert code == "INVALID_ARGUMENT", (name, value)
            assert name == "prompt" or words.startswith("request 0"), words
        assert refusal(wire.encode_requests(good, "0" * 16, 0))[0] == "FAILED_PRECONDITION"
        with closing(connect("grpc", address)) as remote:
            assert len(collect(remote, good)) == 3


@pytest.mark.parametrize("backend", ["loop", "jetstream"])
def test_a_client_that_leaves_makes_room_for_the_next(policy, backend):
    with sampling(policy, backend) as (_, address), closing(connect("grpc", address)) as remote:
        stream = remote.sample([Request((9, 10), 4000, 0, SamplingParams(20))])
        next(stream)
        stream.close()
        assert list(stream) == []
        started = time.monotonic()
        assert len(collect(remote, mixed_requests())) == 7
        assert time.monotonic() - started < 20  # 4000 samples take minutes


def test_a_sampler_that_ends_on_the_server_is_an_error_that_names_the_address(policy):
    with sampling(policy, "jetstream") as (sampler, address), closing(connect("grpc", address)) as remote:
        stream = remote.sample([Request((9, 10), 4000, 0, SamplingParams(20))])
        next(stream)
        sampler.close()
        with pytest.raises(SamplerError, match=rf"{address} failed \(UNAVAILABLE\): the sampler was closed"):
            list(stream)
        with pytest.raises(SamplerError, match="the sampler is closed"):
            list(remote.sample(mixed_requests()))


def test_closing_the_client_ends_its_iterators_and_leaves_the_server(policy):
    with sampling(policy, "jetstream") as (_, address):
        remote = connect("grpc", address)
        stream = remote.sample([Request((9, 10), 4000, 0, SamplingParams(20))])
        next(stream)
        remote.close()
        with pytest.raises(SamplerError, match="closed with samples in flight"):
            list(stream)
        with pytest.raises(SamplerError, match="is closed"):
            remote.sample(mixed_requests())
        with closing(connect("grpc", address)) as other:
            assert len(collect(other, mixed_requests())) == 7


def test_the_server_listens_on_the_loopback_alone_and_shares_its_port_with_no_other(policy):
    with sampling(policy, "loop") as (sampler, address):
        port = int(address.rpartition(":")[2])
        with pytest.raises(OSError, match="give another port"):
            server.start(sampler, server.describe(sampler, "second"), port)
        tables = [Path(f"/proc/net/{name}") for name in ("tcp", "tcp6")]
        lines = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
        listening = [line[1] for line in lines if line[3] == "0A" and line[1].endswith(f":{port:04X}")]
        # 127.0.0.1, by itself or mapped into IPv6; nothing on a host without /proc.
        assert set(listening) <= {f"{prefix}0100007F:{port:04X}" for prefix in ("", "0000000000000000FFFF0000")}


def test_where_no_server_is_the_error_says_how_to_start_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(SamplerError, match=rf"{address} within 0.3 s; start one with python -m jopsd.serve"):
            connect("grpc", address, timeout=0.3)
    for wrong in ("localhost", "http://127.0.0.1:9", "host:", ":80"):
        with pytest.raises(ValueError, match="must look like host:port"):
            connect("grpc", wrong)
    with pytest.raises(ValueError, match=r"server 'vllm' is not one of \['grpc', 'openai'\]"):
        connect("vllm", "127.0.0.1:80")


def test_the_fingerprint_sees_every_weight_and_its_place(policy):
    leaves, tree = jax.tree.flatten(policy)
    seen, made = {server.fingerprint(policy)}, 1
    for number, leaf in enumerate(leaves):
        flat = np.array(leaf).reshape(-1)
        nudged, swapped = flat.copy(), flat.copy()
        nudged[-1] = np.nextafter(nudged[-1], np.inf, dtype=flat.dtype)
        other = int(np.argmax(flat != flat[0]))
        swapped[[0, other]] = swapped[[other, 0]]
        for changed in (nudged, swapped)[: 1 + (other > 0)]:
            whole = [*leaves[:number], jax.numpy.asarray(changed.reshape(leaf.shape)), *leaves[number + 1 :]]
            seen.add(server.fingerprint(jax.tree.unflatten(tree, whole)))
            made += 1
    assert len(seen) == made > 2 * len(leaves) - 3


def test_the_fingerprint_does_not_depend_on_the_mesh(policy):
    weight = policy.model.embed[...]
    mesh = make_mesh(fsdp=4, tensor=2)
    for axes in [("fsdp", "tensor"), (None, ("fsdp", "tensor")), ()]:
        split = jax.device_put(np.asarray(weight), NamedSharding(mesh, PartitionSpec(*axes)))
        assert fingerprint._digest(split).tolist() == fingerprint._digest(weight).tolist()


@contextmanager
def serving_stub(sample):
    """A client of a server whose sampler is `sample`, a function of requests."""
    stub = SimpleNamespace(engine=SimpleNamespace(version=0), sample=sample)
    running, port = server.start(stub, wire.Description("stub", 128, MAX_LENGTH, SLOTS, 8, 0, "f"))
    try:
        with closing(connect("grpc", f"127.0.0.1:{port}")) as remote:
            yield remote
    finally:
        running.stop(grace=0).wait()


@pytest.mark.parametrize(
    "indices, words", [((0,), "1 samples missing"), ((0, 1, 1), "not asked for"), ((0, 2), "not asked for")]
)
def test_a_server_that_loses_doubles_or_invents_samples_is_found_out(indices, words):
    made = lambda i: Completion(0, i, (1,), np.zeros(1, np.int32), np.zeros(1, np.float32), "length", 0, False)  # noqa: E731
    with serving_stub(lambda requests: (made(i) for i in indices)) as remote:
        with pytest.raises(SamplerError, match=words):
            list(remote.sample([Request((1,), 2, 0, SamplingParams(4))]))


def test_one_call_more_than_the_server_takes_is_refused_and_not_left_waiting(monkeypatch):
    monkeypatch.setattr(service, "CALLS", 1)
    end = threading.Event()

    def sample(requests):
        end.wait(20)
        yield from ()

    with serving_stub(sample) as remote:
        stream = remote.sample([Request((1,), 1, 0, SamplingParams(4))])
        time.sleep(0.2)  # for the server to take it up
        with pytest.raises(SamplerError, match="RESOURCE_EXHAUSTED"):
            list(remote.sample([Request((1,), 1, 0, SamplingParams(4))]))
        end.set()
        stream.close()


def test_messages_carry_requests_and_completions_unchanged():
    requests = mixed_requests()
    *wanted, decoded = wire.decode_requests(wire.encode_requests(requests, "abc", 7))
    assert (wanted, decoded) == (["abc", 7], [replace(r, id=i) for i, r in enumerate(requests)])


# The server in a process of its own


HALTING = """
import sys, time
from types import SimpleNamespace
import numpy as np
from jopsd.sampling import Completion, server, wire

class Halting:
    engine = SimpleNamespace(version=3)
    def sample(self, requests):
        def run():
            ids = np.arange(4, dtype=np.int32)
            yield Completion(0, 0, requests[0].prompt_ids, ids, (ids / 3).astype(np.float32), "length", 3, False)
            time.sleep(600)
        return run()

running, port = server.start(Halting(), wire.Description("halting", 128, 64, 4, 8, 0, "f"))
print(port, flush=True)
time.sleep(600)
"""


def test_a_server_that_is_killed_is_an_error_that_names_its_address():
    process = subprocess.Popen([sys.executable, "-c", HALTING], env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        address = f"127.0.0.1:{int(process.stdout.readline())}"
        with closing(connect("grpc", address)) as remote:
            assert remote.description.policy_version == 3
            stream = remote.sample([Request((1,), 2, 0, SamplingParams(4))])
            first = next(stream)
            assert first.logprobs.tobytes() == (np.arange(4) / 3).astype(np.float32).tobytes()
            process.send_signal(signal.SIGKILL)
            with pytest.raises(SamplerError, match=rf"{address} failed \(UNAVAILABLE\)"):
                next(stream)
            with pytest.raises(SamplerError, match=address):
                list(remote.sample([Request((1,), 2, 0, SamplingParams(4))]))
    finally:
        process.kill()
        process.communicate()


@contextmanager
def program(*arguments):
    """`python -m jopsd.serve` once it is ready: (process, address)."""
    command = [sys.executable, "-m", "jopsd.serve", "--port", "0", "--slots", str(SLOTS), "--max-length", "64"]
    process = subprocess.Popen([*command, *arguments], env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            if "ready: " in line:
                yield process, line.split(" on ")[1].split(",")[0]
                break
        else:
            raise AssertionError(f"it ended with {process.wait()}")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGKILL, -signal.SIGKILL)])
def test_the_program_serves_the_tokens_of_this_process_until_a_signal_ends_it(policy, number, code):
    oracle = collect(make_sampler("loop", policy.model.cfg, policy, SLOTS, MAX_LENGTH, CHUNK), mixed_requests())
    with program("--model", "builtin:sums") as (process, address), closing(connect("grpc", address)) as remote:
        assert remote.description.model == "builtin:sums"
        assert remote.description.fingerprint == server.fingerprint(policy)
        assert_same_bits(collect(remote, mixed_requests()), oracle)
        stream = remote.sample([Request((9, 10), 4000, 0, SamplingParams(20))])
        next(stream)
        os.kill(process.pid, number)
        with pytest.raises(SamplerError, match=address):
            list(stream)
        assert process.wait(timeout=60) == code


def test_the_program_names_what_is_wrong_before_it_reads_weights(capsys):
    from jopsd.serve import main

    assert main(["--max-length", "64"]) == 1
    assert "give --model, or the --checkpoint" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["--model", "builtin:sums", "--max-length", "64", "--port", str(taken.getsockname()[1])]) == 1
    assert "give another port" in capsys.readouterr().err
    assert main(["--model", "no/where/at/all", "--max-length", "64", "--port", "0"]) == 1
    assert "is not a directory" in capsys.readouterr().err
