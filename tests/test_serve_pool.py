"""Several servers as one sampler: nothing lost, nothing doubled, whatever a server does."""

import random
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

import jax
import numpy as np
import pytest

from jopsd.mesh import make_mesh
from jopsd.policies import load_policy
from jopsd.sampling import Completion, Request, SamplerError, SamplingParams
from jopsd.sampling.balance import PoolSampler
from jopsd.sampling.pool import open_pool
from jopsd.sampling.publish import Published
from jopsd.sampling.remote import ServerBusy
from jopsd.sampling.sampler import Stream
from jopsd.schema import Sampling
from jopsd.setup import BUILTIN
from tests.runs import in_two_processes
from tests.test_serve import MAX_LENGTH, assert_same_draws, drawn_by, requests, serving, trained, until


def draw(request, index, version):
    """What every fake server draws: it depends on seed, index and version alone."""
    rng = np.random.default_rng((request.seed, index, version))
    ids = rng.integers(0, 100, request.params.max_new_tokens).astype(np.int32)
    return Completion(
        request.id, index, request.prompt_ids, ids, -rng.random(len(ids), np.float32), "length", version, False
    )


class FakeLink:
    """A server by its misdeeds.

    Args:
      fault: called before each sample with this link; may raise, sleep, or return "lose", "double" or a version.
    """

    def __init__(self, address, slots=4, fault=lambda link: None):
        self.address, self.slots, self.fault = address, slots, fault
        self.version, self.loads, self.connects, self.drawn, self.alive = None, [], 0, [], True
        self.now = self.peak = 0
        self.lock = threading.Lock()

    def _require(self):
        if not self.alive:
            raise SamplerError(f"{self.address} is dead")

    def connect(self, timeout):
        self._require()
        self.connects += 1

    def load(self, published, timeout):
        self._require()
        self.loads.append(published.version)
        self.version = published.version

    def sample(self, wanted):
        return Stream(self._draw(wanted), lambda: None)

    def _draw(self, wanted):
        keys = [(r, i) for r in wanted for i in r.indices]
        with self.lock:
            self.now += len(keys)
            self.peak = max(self.peak, self.now)
        try:
            for request, index in keys:
                self._require()
                how = self.fault(self)
                self._require()
                self.drawn.append((request.id, index))
                if how == "lose":
                    continue
                one = draw(request, index, how if isinstance(how, int) else self.version)
                yield from [one, one] if how == "double" else [one]
        finally:
            with self.lock:
                self.now -= len(keys)

    def close(self):
        pass


class FakePublisher:
    is_first = True

    def __init__(self):
        self.versions = []

    def publish(self, policy, version):
        self.versions.append(version)
        return Published(version, Path(f"weights/{version}"), f"f{version}")

    def forget(self):
        pass


def pool_of(*links, timeout=20.0, say=lambda text: None, version=3):
    pool = PoolSampler(links, (1000, 100, 4), FakePublisher(), timeout, say)
    if version is not None:
        pool.update(None, version)
    return pool


def asked(count=12, n=5):
    wanted = [Request((1, 2 + i), n, i, SamplingParams(6), id=("row", i)) for i in range(count)]
    return [*wanted, Request((9,), 7, 99, SamplingParams(6), id="some", indices=(1, 4, 6))]


def collect(pool, wanted, version=3):
    """All samples; each must come once, with the draw that its seed, index and version have."""
    found = Counter()
    by_id = {request.id: request for request in wanted}
    for completion in pool.sample(wanted):
        found[completion.request_id, completion.index] += 1
        expected = draw(by_id[completion.request_id], completion.index, version)
        assert completion.completion_ids.tolist() == expected.completion_ids.tolist()
        assert (completion.policy_version, completion.request_id) == (version, expected.request_id)
    assert found == {(r.id, i): 1 for r in wanted for i in (range(r.n) if r.indices is None else r.indices)}


def fails_sometimes(seed, share=0.1):
    rng = random.Random(seed)

    def fault(link):
        if rng.random() < share:
            raise SamplerError("it failed")
        return rng.choice([None, None, None, "double"])

    return fault


@pytest.mark.parametrize("seed", range(4))
def test_each_sample_comes_once_whatever_servers_do(seed):
    links = [FakeLink(f"s{i}", slots, fails_sometimes(10 * seed + i, 0.03)) for i, slots in enumerate((1, 4, 9))]
    with closing(pool_of(*links)) as pool:
        collect(pool, asked())
        pool.update(None, 4)
        collect(pool, asked(20, 3), 4)


def test_what_a_dead_server_had_goes_to_the_others_at_once():
    started = threading.Event()

    def dies(link):
        started.set()
        time.sleep(0.02)
        link.alive = False

    said = []
    links = [FakeLink("mortal", 8, dies), FakeLink("other", 8, lambda link: started.wait(20) and None)]
    with closing(pool_of(*links, say=said.append)) as pool:
        begin = time.monotonic()
        collect(pool, asked())
        assert time.monotonic() - begin < 5
        assert len(links[1].drawn) == 12 * 5 + 3
        until(lambda: any("mortal left" in text for text in said))


def test_a_server_that_comes_back_is_given_the_current_weights_and_work():
    links = [FakeLink("phoenix"), FakeLink("other")]
    with closing(pool_of(*links)) as pool:
        links[0].alive = False
        collect(pool, asked())
        pool.update(None, 4)
        links[0].version = None  # started anew, with the base
        assert links[0].loads == [3]
        links[0].alive = True
        until(lambda: links[0].loads[-1] == 4)
        until(lambda: pool._members[0].up)
        links[0].drawn.clear()
        collect(pool, asked(), 4)
        assert links[0].drawn


def test_a_server_that_is_not_there_at_the_start_joins_later():
    late, said = FakeLink("late"), []
    late.alive = False
    with closing(pool_of(late, FakeLink("other"), say=said.append)) as pool:
        assert any("without late" in text for text in said)
        late.alive = True
        until(lambda: pool._members[0].up)
        collect(pool, asked())
        assert late.drawn


def test_without_a_server_the_error_names_each_after_the_time_given():
    links = [FakeLink("one"), FakeLink("two")]
    with closing(pool_of(*links, timeout=0.5)) as pool:
        for link in links:
            link.alive = False
        begin = time.monotonic()
        with pytest.raises(SamplerError, match=r"no sampling server is left after 0.5 s.*one: .*dead; two: .*dead"):
            list(pool.sample(asked()))
        assert 0.4 < time.monotonic() - begin < 5
        with pytest.raises(SamplerError, match="no sampling server is left"):
            pool.update(None, 4)
    with pytest.raises(SamplerError, match="no sampling server is left.*one is dead"):
        pool_of(links[0], timeout=0.2)


def test_a_server_of_another_run_is_an_error_before_anything_is_sampled():
    def refuse(timeout):
        raise ValueError("it serves another model")

    wrong = FakeLink("wrong")
    wrong.connect = refuse
    with pytest.raises(ValueError, match="another model"):
        pool_of(FakeLink("good"), wrong)


def test_weights_are_published_once_a_version_and_every_server_takes_them():
    links = [FakeLink("a"), FakeLink("b"), FakeLink("c")]
    with closing(pool_of(*links, version=None)) as pool:
        with pytest.raises(SamplerError, match="no weights of this run yet"):
            pool.sample(asked())
        for version in (0, 0, 1, 2, 2):
            pool.update(None, version)
        assert pool._publisher.versions == [0, 1, 2]
        assert [link.loads for link in links] == [[0, 1, 2]] * 3
        stream = pool.sample(asked())
        with pytest.raises(SamplerError, match="1 open iterators"):
            pool.update(None, 3)
        stream.close()
        pool.update(None, 3)
    with pytest.raises(SamplerError, match="is closed"):
        pool.update(None, 4)


def test_a_server_with_other_weights_than_asked_for_adds_nothing():
    stale = FakeLink("stale", 4, lambda link: 2 if len(link.drawn) == 3 else None)
    with closing(pool_of(stale, FakeLink("other"))) as pool:
        collect(pool, asked())


def test_a_busy_server_is_left_alone_for_a_while_and_keeps_its_place():
    busy, said = [0], []

    def fault(link):
        busy[0] += 1
        if busy[0] <= 2:
            raise ServerBusy("all calls are taken")

    link = FakeLink("busy", 4, fault)
    with closing(pool_of(link, say=said.append)) as pool:
        collect(pool, asked(3, 2))
    assert said == []
    assert link.connects == 1


def test_a_request_that_a_server_calls_faulty_twice_is_the_callers_error():
    tries = []

    def fault(link):
        tries.append(link.address)
        raise ValueError("top_k is odd")

    with closing(pool_of(FakeLink("a", 4, fault))) as pool:
        with pytest.raises(ValueError, match="top_k is odd"):
            list(pool.sample(asked(1, 1)[:1]))
        assert len(tries) == 2


def test_a_piece_that_every_server_fails_at_ends_in_their_error(monkeypatch):
    def fault(link):
        raise SamplerError("its weights are not finite")

    monkeypatch.setattr("jopsd.sampling.balance._RETRY", (0.01, 0.02))
    with closing(pool_of(FakeLink("a", 4, fault), FakeLink("b", 4, fault))) as pool:
        with pytest.raises(SamplerError, match="its weights are not finite"):
            list(pool.sample(asked(1, 1)[:1]))


def test_servers_get_work_in_small_pieces_by_the_room_they_have():
    sleeps = lambda seconds: lambda link: time.sleep(seconds)  # noqa: E731
    links = [FakeLink("small", 2, sleeps(0.002)), FakeLink("large", 8, sleeps(0.0005))]
    with closing(pool_of(*links)) as pool:
        collect(pool, asked(40, 5))
    assert links[0].peak <= 4 and links[1].peak <= 16
    assert 0.1 < len(links[0].drawn) / 203 < 0.35  # 0.2 is its share of the slots


def test_a_slow_server_does_not_hold_up_a_fast_one():
    links = [FakeLink("slow", 4, lambda link: time.sleep(0.05)), FakeLink("fast", 4)]
    with closing(pool_of(*links)) as pool:
        collect(pool, asked(40, 5))
    assert len(links[1].drawn) > 150


@pytest.mark.parametrize("end", ["iterator", "sampler"])
def test_closing_ends_what_servers_do_and_nothing_is_asked_any_more(end):
    gate = threading.Event()
    links = [FakeLink(name, 4, lambda link: gate.wait(20) and None) for name in "ab"]
    with closing(pool_of(*links)) as pool:
        stream = pool.sample(asked())
        until(lambda: all(link.now == 8 for link in links))
        if end == "iterator":
            stream.close()
            assert list(stream) == []
        else:
            pool.close()
            with pytest.raises(SamplerError, match="closed with samples in flight"):
                next(stream)
            with pytest.raises(SamplerError, match="is closed"):
                pool.sample(asked())
        gate.set()
        until(lambda: all(link.now == 0 for link in links))
        assert sum(len(link.drawn) for link in links) <= 16
        if end == "iterator":
            collect(pool, asked())


def test_two_iterators_at_once_share_the_servers():
    with closing(pool_of(FakeLink("a"), FakeLink("b", 2))) as pool:
        threads = [threading.Thread(target=collect, args=(pool, asked())) for _ in range(3)]
        for thread in threads:
            thread.start()
        collect(pool, asked(3))
        for thread in threads:
            thread.join(20)
        assert not pool._open


def test_requests_that_fit_no_server_are_refused_at_once():
    with closing(pool_of(FakeLink("a"))) as pool:
        with pytest.raises(ValueError, match=r"request 0.*max_length 100"):
            pool.sample([Request((1,) * 60, 1, 0, SamplingParams(41))])
        with pytest.raises(ValueError, match=r"token 1000"):
            pool.sample([Request((1000,), 1, 0, SamplingParams(41))])


# Real servers


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def base(mesh):
    return load_policy("builtin:sums", mesh=mesh).policy


def opened(policy, run_dir, *addresses, **changes):
    sampling = Sampling(backend="remote", servers=addresses, access={"timeout": 20.0})
    limits = {"max_length": MAX_LENGTH, "max_stop_ids": 1, "model_dir": BUILTIN["builtin:sums"]} | changes
    return open_pool(sampling, run_dir, policy.model.cfg, policy, **limits)


def test_a_run_draws_what_one_process_would_although_a_server_dies_in_the_middle(base, mesh, tmp_path):
    policies, wanted = [trained(base, 1), trained(base, 2)], requests(6, 4)
    with ExitStack() as stack:
        mortal, first = stack.enter_context(serving(base, tmp_path, mesh=mesh))
        _, second = stack.enter_context(serving(base, tmp_path, mesh=mesh))
        pool = stack.enter_context(closing(opened(policies[0], tmp_path, first, second)))
        for version, policy in enumerate(policies):
            pool.update(policy, version)
            found = {}
            for completion in pool.sample(wanted):
                assert (completion.request_id, completion.index) not in found
                found[completion.request_id, completion.index] = completion
                if version == 1 and len(found) == 5:
                    mortal.stop()
            assert_same_draws(found, drawn_by(policy, wanted, version))
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == ["0", "1"]


@pytest.mark.parametrize(
    "case, words",
    [
        ("no root", "takes no weights: start it with --weights-root"),
        ("dtype", "has dtype float32, this run bfloat16: start it with --dtype bfloat16"),
        ("another model", r"serves 'sums'.*whose weights are not this run's"),
        ("length", "has --max-length 64, and this run needs 65: start it with --max-length 65"),
        ("stop ids", "has --max-stop-ids 8, and this run needs 9"),
    ],
)
def test_a_server_that_is_not_for_this_run_is_refused_with_what_to_change(base, mesh, tmp_path, case, words):
    policy, changes, served = trained(base, 1), {}, base
    if case == "another model":
        served = load_policy("builtin:sums_expert", mesh=mesh).policy
    if case == "dtype":
        policy = trained(load_policy("builtin:sums", mesh=mesh, dtype="bfloat16").policy, 1)
    changes = {"length": {"max_length": 65}, "stop ids": {"max_stop_ids": 9}}.get(case, {})
    with serving(served, None if case == "no root" else tmp_path, mesh=mesh) as (_, address):
        with pytest.raises(ValueError, match=words):
            opened(policy, tmp_path, address, **changes)


TWO = """
from contextlib import closing
from pathlib import Path
import numpy as np
from jopsd.models.sharding import tree_shardings
from jopsd.policies import load_policy
from jopsd.sampling import Policy
from tests.test_serve import requests, trained
from tests.test_serve_pool import opened
address, folder = arguments
mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(1, 4, 2), ("data", "fsdp", "tensor"))
base = load_policy("builtin:sums", mesh=mesh).policy
with closing(opened(trained(base, 1), Path(folder) / "run", address)) as pool:
    for version, policy in enumerate([trained(base, 1), trained(base, 2)]):
        pool.update(policy, version)
        found = {(c.request_id, c.index): c for c in pool.sample(requests()[int(rank)::2])}
        np.savez(f"{folder}/{rank}_{version}.npz", **{f"{i} {n}": c.completion_ids for (i, n), c in found.items()})
"""


@pytest.mark.slow
def test_processes_of_one_run_publish_together_and_each_samples_its_own_rows(base, mesh, tmp_path):
    with serving(base, tmp_path, "jetstream", mesh=mesh) as (service, address):
        in_two_processes(TWO, address, tmp_path)
        assert service.metrics.load_seconds._count.get() == 2
    for version, seed in enumerate((1, 2)):
        ours = drawn_by(trained(base, seed), requests(), version)
        theirs = {}
        for rank in (0, 1):
            theirs |= dict(np.load(tmp_path / f"{rank}_{version}.npz"))
        assert {f"{i} {n}": c.completion_ids.tolist() for (i, n), c in ours.items()} == {
            key: ids.tolist() for key, ids in theirs.items()
        }
