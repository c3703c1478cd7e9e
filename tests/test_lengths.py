"""Requests in the order of what is expected of their length: the order itself, and that it changes no draw."""

import json
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from jopsd.data.problem import Problem
from jopsd.evaluate import evaluate
from jopsd.lengths import MEMORY, Lengths
from jopsd.preemption import Notice
from jopsd.prompts import Item
from jopsd.rewards.score import Score
from jopsd.rollouts import sample_rollouts
from jopsd.sampling import Completion, SamplingParams
from tests.runs import assert_same_run, environment, write_config


def problems(count: int, source: str = "sums") -> list[Problem]:
    return [Problem(str(number), f"{number} + 1?", source=source) for number in range(count)]


def test_nothing_is_known_at_first_and_the_order_is_the_one_given():
    assert Lengths().order(problems(5)) == [0, 1, 2, 3, 4]
    assert Lengths().order([]) == []


def test_problems_drawn_before_come_by_the_mean_of_their_last_batch():
    a, b, c = problems(3)
    lengths = Lengths()
    lengths.learn([(a, 90), (a, 110), (b, 300), (c, 200)])
    assert lengths.order([a, b, c]) == [1, 2, 0]
    lengths.learn([(a, 400), (a, 401)])
    assert lengths.order([a, b, c]) == [0, 1, 2]
    assert lengths.expected(a) == 400.5 and lengths.expected(b) == 300


def test_a_problem_not_drawn_before_is_expected_to_be_like_all():
    short, new, long, other = problems(4)
    lengths = Lengths()
    lengths.learn([(short, 10), (long, 50)])
    assert lengths.expected(new) == 30
    assert lengths.order([short, new, long, other]) == [2, 1, 3, 0]


def test_those_alike_stay_in_the_order_given():
    given = problems(6)
    lengths = Lengths()
    lengths.learn((problem, 5 if place % 2 else 9) for place, problem in enumerate(given))
    assert lengths.order(given) == [0, 2, 4, 1, 3, 5]
    assert lengths.order(given[::-1]) == [1, 3, 5, 0, 2, 4]


def test_the_mean_over_all_follows_the_last_batches():
    lengths, (seen, new) = Lengths(), problems(2)
    for _ in range(100):
        lengths.learn([(seen, 100)])
    assert lengths.expected(new) == 100
    lengths.learn([])
    assert lengths.expected(new) == 100
    lengths.learn([(seen, 200)])
    assert lengths.expected(new) == pytest.approx(100 + 100 / MEMORY)


def test_the_same_id_in_another_source_is_another_problem():
    lengths = Lengths()
    [here], [there] = problems(1, "a"), problems(1, "b")
    lengths.learn([(here, 10), (there, 20)])
    assert lengths.order([here, there]) == [1, 0]


# ------------------------------------------------------------------------------------------------------- who asks by it


class Counting:
    """A sampler of as many tokens as the prompt's first says, which keeps what it was asked; its own tokenizer."""

    def __init__(self):
        self.asked = []

    def sample(self, requests):
        self.asked.append([(request.id, request.seed) for request in requests])
        for request in requests:
            for index in range(request.n):
                ids = np.full(request.prompt_ids[0], index, np.int32)
                yield Completion(request.id, index, request.prompt_ids, ids, np.zeros(len(ids)), "eos", 0, False)

    def decode(self, ids, skip_special_tokens):
        return str(ids)


def graded(text: str, problem: Problem) -> Future:
    future: Future = Future()
    future.set_result(Score(1.0, True, True, text))
    return future


ITEMS = [Item(problem, {"student": [tokens]}) for problem, tokens in zip(problems(4), (3, 9, 5, 9), strict=True)]


def test_rollouts_are_asked_for_longest_first_with_the_same_seeds_and_come_back_in_order():
    def draw(sampler, lengths):
        params, seed = SamplingParams(9), (0, 1)
        return sample_rollouts(sampler, ITEMS, params, 2, seed, sampler, None, Notice(), lengths)

    sampler, lengths = Counting(), Lengths()
    given = draw(sampler, None)
    lengths.learn((rollout.item.problem, len(rollout.completion_ids)) for rollout in given)
    longest = draw(sampler, lengths)
    as_given, by_length = sampler.asked
    assert [row for row, _ in as_given] == [0, 1, 2, 3] and [row for row, _ in by_length] == [1, 3, 2, 0]
    assert sorted(as_given) == sorted(by_length)
    facts = lambda rollouts: [(r.group, r.text, r.item.problem.id) for r in rollouts]  # noqa: E731
    assert facts(given) == facts(longest) and [r.group for r in longest] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_an_evaluation_asks_by_what_the_one_before_has_drawn():
    sampler, lengths = Counting(), Lengths()
    run = lambda: evaluate(sampler, ITEMS, SamplingParams(9), 1, 0, sampler, graded, lengths=lengths)  # noqa: E731
    first, second = run(), run()
    assert [[row for row, _ in asked] for asked in sampler.asked] == [[0, 1, 2, 3], [1, 3, 2, 0]]
    assert first.accuracy == second.accuracy
    assert [group[0].text for group in first.rollouts] == [group[0].text for group in second.rollouts]


TRAINS = """
import json, sys
from jopsd import lengths, train
orders, by_length = [], lengths.Lengths.order
def order(self, problems):
    orders.append(by_length(self, problems) if sys.argv[2] == "longest" else list(range(len(problems))))
    return orders[-1]
lengths.Lengths.order = order
code = train.main(["--config", sys.argv[1]])
print(json.dumps(orders))
sys.exit(code)
"""


@pytest.mark.slow
def test_a_run_is_the_same_to_the_bit_as_one_that_asks_in_the_order_given(tmp_path):
    orders: dict[str, list[list[int]]] = {}
    for name in ("longest", "given"):
        config: Path = write_config(tmp_path, name, data={"limit": 6}, sampling={"slots": 2, "n": 2})
        command = [sys.executable, "-c", TRAINS, str(config), name]
        done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        orders[name] = json.loads(done.stdout.splitlines()[-1])
    assert len(orders["longest"]) == len(orders["given"]) == 7, "four steps and three evaluations"
    differing = [one != other for one, other in zip(orders["longest"], orders["given"], strict=True)]
    assert not any(differing[:2]) and sum(differing) >= 2, "at first nothing is known, then something is"
    assert_same_run(tmp_path / "longest", tmp_path / "given")
