"""vLLM and SGLang as sampling servers of a run, by stand-ins that keep weights as they do."""

import json
import threading
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import numpy as np
import pytest

from jopsd.mesh import make_mesh
from jopsd.models.families import FAMILIES
from jopsd.models.hf import load_pretrained, read_config
from jopsd.models.peft import load_adapter
from jopsd.policies import load_policy
from jopsd.sampling import Policy, Request, SamplerError, SamplingParams
from jopsd.sampling.fingerprint import fingerprint
from jopsd.sampling.openai import sample_seed
from jopsd.sampling.pool import open_pool
from jopsd.schema import Sampling
from jopsd.setup import BUILTIN
from tests.test_serve import trained

SUMS = BUILTIN["builtin:sums"]


class StandIn:
    """A server of `kind` "vllm" or "sglang". What it draws follows from the seed and the weights that it really reads.

    adapters: files by name. model: the directory of its weights. disturb: answers a POST itself and returns True.
    """

    def __init__(self, kind, max_model_len=64, disturb=lambda stand_in, path, body, reply: False):
        self.kind, self.max_model_len, self.disturb = kind, max_model_len, disturb
        self.model, self.adapters, self.log, self.seeds = str(SUMS), {}, [], []
        self.lock, self.restarted = threading.Lock(), False

    def get(self, path, reply):
        if path == "/v1/models":
            parents = [{"id": "tiny", "parent": None, "max_model_len": self.max_model_len}]
            cards = parents + [{"id": name, "parent": "tiny"} for name in self.adapters]
            reply(200, {"data": [card | {"owned_by": self.kind} for card in cards]})
        elif path == "/get_model_info" and self.kind == "sglang":
            reply(200, {"model_path": self.model})
        else:
            reply(404, {"detail": "Not Found"})

    def post(self, path, body, reply):
        if self.disturb(self, path, body, reply):
            return
        if path == "/v1/completions":
            self.complete(body, reply)
            return
        self.log.append((path, body))
        prefix = "/v1" if self.kind == "vllm" else ""
        if path == f"{prefix}/load_lora_adapter":
            if body["lora_name"] in self.adapters:
                reply(400, {"message": f"The lora adapter '{body['lora_name']}' has already been loaded."})
            else:
                self.adapters[body["lora_name"]] = body["lora_path"]
                reply(200, b"Success" if self.kind == "vllm" else {"success": True})
        elif path == f"{prefix}/unload_lora_adapter":
            del self.adapters[body["lora_name"]]
            reply(200, b"Success" if self.kind == "vllm" else {"success": True})
        elif path == "/update_weights_from_disk" and self.kind == "sglang":
            self.model = body["model_path"]
            reply(200, {"success": True, "message": "Succeeded"})
        else:
            reply(404, {"detail": "Not Found"})

    def complete(self, body, reply):
        named = body["model"]
        if self.kind == "sglang" and ":" in named:
            named = named.split(":")[1]
            assert body["lora_path"] == named
        if named != "tiny" and named not in self.adapters:
            status = 404 if self.kind == "vllm" else 400
            reply(status, {"message": f"{named} does not exist"})
            return
        weights = self.adapters.get(named, self.model)
        tokens = tokens_of(body["seed"], weights, body["max_tokens"])
        self.seeds.append(body["seed"])
        logprobs = {"tokens": [str(t) for t in tokens], "token_logprobs": [-1.0] * len(tokens)}
        reply(200, {"choices": [{"finish_reason": "length", "token_ids": tokens, "logprobs": logprobs}]})


def tokens_of(seed, directory, count):
    """Tokens from the seed and every byte of the weights."""
    content = b"".join(file.read_bytes() for file in sorted(Path(directory).glob("*.safetensors")))
    assert content
    return np.random.default_rng([seed, *content[-64:]]).integers(0, 100, count).tolist()


@contextmanager
def serving(stand_in):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            stand_in.get(self.path, self.reply)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stand_in.post(self.path, body, self.reply)

        def reply(self, status, answer):
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 64
        daemon_threads = True

    http = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        http.server_close()


@pytest.fixture(scope="module")
def base():
    return load_policy("builtin:sums", mesh=make_mesh(devices=jax.devices()[:1])).policy


def opened(policy, run_dir, *urls, timeout=20.0, temperature=1.0, **changes):
    access = {"timeout": timeout}
    sampling = Sampling(backend="openai", servers=urls, slots=4, access=access, temperature=temperature)
    limits = {"max_length": 64, "max_stop_ids": 1, "model_dir": SUMS} | changes
    return open_pool(sampling, run_dir, policy.model.cfg, policy, **limits)


def wanted(count=4, n=3):
    return [Request((5, 6 + i), n, 100 + i, SamplingParams(9), id=i) for i in range(count)]


def check(pool, directory, version):
    """Each sample once, drawn from the weights in `directory`, and marked with their version."""
    found = {(c.request_id, c.index): c for c in pool.sample(wanted())}
    assert len(found) == 12
    for (request_id, index), completion in found.items():
        expected = tokens_of(sample_seed(100 + request_id, index), directory, 9)
        assert completion.completion_ids.tolist() == expected
        assert completion.policy_version == version


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_an_adapter_is_loaded_under_a_name_of_its_own_at_each_version(base, tmp_path, kind):
    stand_ins = [StandIn(kind), StandIn(kind)]
    with serving(stand_ins[0]) as one, serving(stand_ins[1]) as two:
        with closing(opened(trained(base, 1), tmp_path, one, two)) as pool:
            for version in range(4):
                policy = trained(base, version)
                pool.update(policy, version)
                check(pool, tmp_path / "weights" / str(version), version)
    cfg, tensors = base.model.cfg, FAMILIES["Qwen3ForCausalLM"].tensors
    read = load_adapter(tmp_path / "weights" / "3", cfg.projections, cfg.num_layers, tensors)
    assert fingerprint(Policy(base.model, read)) == fingerprint(policy)
    for stand_in in stand_ins:
        assert [name.split("-")[1] for name in stand_in.adapters] == ["2", "3"]
        assert [path for path, _ in stand_in.log].count("/v1/unload_lora_adapter") == (2 if kind == "vllm" else 0)
        assert stand_in.seeds  # both did some of the work


def test_a_whole_model_is_loaded_in_place_of_the_one_that_sglang_had(base, tmp_path):
    stand_in = StandIn("sglang")
    doubled = jax.tree.map(lambda x: x * 2, base.model)
    with serving(stand_in) as url, closing(opened(base, tmp_path, url)) as pool:
        for version, model in enumerate((base.model, doubled)):
            pool.update(Policy(model, None), version)
            check(pool, tmp_path / "weights" / str(version), version)
    directory = tmp_path / "weights" / "1"
    assert stand_in.model == str(directory)
    read = load_pretrained(directory, read_config(directory), make_mesh(devices=jax.devices()[:1]))
    assert fingerprint(Policy(read, None)) == fingerprint(Policy(doubled, None))


def test_samples_of_a_model_that_was_replaced_meanwhile_do_not_count(base, tmp_path):
    def restarted(stand_in, path, body, reply):
        with stand_in.lock:
            if len(stand_in.seeds) >= 3 and not stand_in.restarted:
                stand_in.model, stand_in.restarted = str(SUMS), True
        return False

    stand_in = StandIn("sglang", disturb=restarted)
    doubled = Policy(jax.tree.map(lambda x: x * 2, base.model), None)
    with serving(stand_in) as url, closing(opened(base, tmp_path, url)) as pool:
        pool.update(doubled, 1)
        check(pool, tmp_path / "weights" / "1", 1)
    assert [path for path, _ in stand_in.log] == ["/update_weights_from_disk"] * 2


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_server_that_lost_its_adapter_is_given_it_again(base, tmp_path, kind):
    def restarted(stand_in, path, body, reply):
        with stand_in.lock:
            if len(stand_in.seeds) >= 3 and not stand_in.restarted:
                stand_in.adapters, stand_in.restarted = {}, True
        return False

    stand_in = StandIn(kind, disturb=restarted)
    with serving(stand_in) as url, closing(opened(trained(base, 1), tmp_path, url)) as pool:
        pool.update(trained(base, 1), 1)
        check(pool, tmp_path / "weights" / "1", 1)
    assert len(stand_in.log) >= 2


@pytest.mark.parametrize(
    "stand_in, words",
    [
        (StandIn("vllm", max_model_len=63), "takes 63 tokens, and this run needs 64"),
        (StandIn("llama.cpp"), "says neither that it is vLLM nor SGLang"),
        (
            StandIn("vllm", disturb=lambda stand_in, path, body, reply: reply(200, {"choices": []}) is None),
            "answers for an adapter that it does not have",
        ),
    ],
)
def test_a_server_that_cannot_do_it_is_refused_at_once(base, tmp_path, stand_in, words):
    with serving(stand_in) as url, pytest.raises(ValueError, match=words):
        opened(trained(base, 1), tmp_path, url)


@pytest.mark.parametrize(
    "temperature, mode, words", [(1.0, "raw", None), (0.7, "processed", None), (0.7, "raw", "before")]
)
def test_log_probs_before_temperature_are_refused_where_it_is_not_one(base, tmp_path, temperature, mode, words):
    def answers(stand_in, path, body, reply):
        if path != "/v1/completions" or "jopsd-no" in json.dumps(body):
            return False
        logits = np.linspace(0, 20, 128) / (body["temperature"] if mode == "processed" else 1)
        logprobs = logits - np.log(np.exp(logits).sum())
        token = body["seed"] % 128  # at this temperature any token is likely
        reply(200, {"choices": [{"logprobs": {"token_logprobs": [float(logprobs[token])]}}]})
        return True

    with serving(StandIn("vllm", disturb=answers)) as url:
        open_one = lambda: opened(trained(base, 1), tmp_path, url, temperature=temperature)  # noqa: E731
        if words is None:
            open_one().close()
        else:
            with pytest.raises(ValueError, match=words):
                open_one()


def test_vllm_takes_no_whole_model(base, tmp_path):
    with serving(StandIn("vllm")) as url, pytest.raises(ValueError, match="takes adapters but no whole model"):
        opened(base, tmp_path, url)


def test_a_server_that_may_not_load_adapters_says_so_with_the_fix(base, tmp_path):
    def locked(stand_in, path, body, reply):
        if "lora_adapter" in path:
            reply(404, {"detail": "Not Found"})
            return True
        return False

    policy = trained(base, 1)
    with serving(StandIn("vllm", disturb=locked)) as url, closing(opened(policy, tmp_path, url, timeout=1.0)) as pool:
        with pytest.raises(SamplerError, match="status 404.*VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
            pool.update(policy, 0)


def test_a_missing_log_prob_is_an_error_and_not_a_nan_in_the_loss(base, tmp_path):
    def blank(stand_in, path, body, reply):
        if path != "/v1/completions" or "jopsd-no" in json.dumps(body):
            return False
        reply(200, {"choices": [{"finish_reason": "length", "token_ids": [1] * 9, "logprobs": None}]})
        return True

    with serving(StandIn("vllm", disturb=blank)) as url, closing(opened(trained(base, 1), tmp_path, url)) as pool:
        pool.update(trained(base, 1), 0)
        with pytest.raises(ValueError, match="gives no log-prob for token 0 of 9"):
            list(pool.sample(wanted()))


def test_a_token_goes_to_another_host_by_https_alone(base, tmp_path):
    (tmp_path / "token").write_text("0123456789abcdef")
    access = {"token_file": str(tmp_path / "token")}
    sampling = Sampling(backend="openai", servers=["http://10.0.0.1:80"], access=access)
    with pytest.raises(ValueError, match="in the clear"):
        open_pool(sampling, tmp_path, base.model.cfg, base, max_length=64, max_stop_ids=1, model_dir=SUMS)
