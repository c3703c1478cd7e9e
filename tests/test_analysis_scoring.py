"""Scores of given tokens against transformers, on the embedded model: log-probabilities, entropies, divergences."""

import json
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from eval.analysis.rollouts import Saved, read_rollouts
from eval.analysis.scoring import divergences, load_scorer, pair_of, score
from eval.records import Record, open_records
from jopsd.data.chat import render
from jopsd.data.sums import problems, worked
from jopsd.losses import divergence
from jopsd.models.lora import init_adapter
from jopsd.models.tokenizer import load_tokenizer
from jopsd.sampling import Policy
from jopsd.setup import BUILTIN

ALPHA = 0.3
MODULES = {name: f"self_attn.{name}_proj" for name in "qkvo"} | {n: f"mlp.{n}_proj" for n in ("gate", "up", "down")}


@pytest.fixture(scope="module")
def scorer():
    """The embedded model; its student has an adapter that matters."""
    plain = load_scorer("builtin:sums", None, batch=8)
    config = plain.base.model.cfg
    adapter = init_adapter(config.projections, config.num_layers, 4, 8.0, jax.random.key(0))
    rng = np.random.default_rng(0)
    b = {name: rng.normal(0, 0.05, own.shape).astype(np.float32) for name, own in adapter.b.items()}
    return replace(plain, student=Policy(plain.base.model, replace(adapter, b=b)))


@pytest.fixture(scope="module")
def pairs(scorer):
    """Nine prompts (more than a batch) with completions of one width and different lengths; the last is one token."""
    made = []
    for number, problem in enumerate(problems("test", 9, seed=3)):
        prompt = render(scorer.tokenizer, [{"role": "user", "content": f"Problem: {problem.problem}"}], None)
        text = worked([int(n) for n in problem.problem.split("+")], [100 + number, 200, 300])
        made.append((prompt, scorer.tokenizer.encode(text, add_special_tokens=False)[: 32 - 3 * number]))
    return [*made[:-1], (made[-1][0], made[-1][1][:1])]


@pytest.fixture(scope="module")
def oracle(scorer):
    """log-probabilities [T,V] of a completion by transformers: (policy, prompt, completion, temperature)."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    base = transformers.AutoModelForCausalLM.from_pretrained(BUILTIN["builtin:sums"], dtype=torch.float32).eval()
    models = {"base": base, "student": deepcopy(base)}
    adapter = scorer.student.adapter
    with torch.no_grad():
        for number, layer in enumerate(models["student"].model.layers):
            for name, module in MODULES.items():
                product = np.asarray(adapter.a[name][number]) @ np.asarray(adapter.b[name][number]) * adapter.scale
                layer.get_submodule(module).weight += torch.tensor(product.T)

    def logprobs(policy, prompt, completion, temperature=1.0):
        with torch.no_grad():
            logits = models[policy](torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        return (logits / temperature).double().log_softmax(-1).numpy()

    return logprobs


def check(found, wanted, ids):
    assert found.ids.tolist() == list(ids) and found.logprobs.shape == found.entropies.shape == (len(ids),)
    np.testing.assert_allclose(found.logprobs, wanted[np.arange(len(ids)), list(ids)], atol=1e-4)
    np.testing.assert_allclose(found.entropies, -(np.exp(wanted) * wanted).sum(-1), atol=1e-4)


@pytest.mark.parametrize(("policy", "temperature"), [("base", 1.0), ("student", 0.7)])
def test_scores_are_those_of_transformers(scorer, pairs, oracle, policy, temperature):
    for (prompt, ids), found in zip(pairs, score(scorer, pairs, policy, temperature), strict=True):
        assert not found.truncated
        check(found, oracle(policy, prompt, ids, temperature), ids)


def test_divergences_are_those_of_the_full_distributions_of_transformers(scorer, pairs, oracle):
    """Student with its adapter and teacher without, which read different prompts."""
    teachers = [prompt for prompt, _ in pairs[1:] + pairs[:1]]
    students, completions = zip(*pairs, strict=True)
    found = divergences(scorer, students, teachers, completions, ALPHA)
    for number, ids in enumerate(completions):
        student, teacher = oracle("student", students[number], ids), oracle("base", teachers[number], ids)
        wider = np.zeros((32, 2, student.shape[1]))  # of one shape, so that it is compiled once
        wider[: len(ids), 0], wider[: len(ids), 1] = student, teacher
        wanted = divergence(wider[:, 0], wider[:, 1], ALPHA)[: len(ids)]
        np.testing.assert_allclose(found[number], wanted, atol=1e-4)
    assert max(own.max() for own in found) > 0.05


def test_a_score_does_not_depend_on_what_else_is_scored(scorer, pairs):
    together = score(scorer, pairs, "base")
    for order in ([4], [8, 4, 0]):
        alone = score(scorer, [pairs[i] for i in order], "base")
        for place, number in enumerate(order):
            np.testing.assert_allclose(alone[place].logprobs, together[number].logprobs, atol=1e-6)


def test_a_score_does_not_depend_on_the_batch(scorer, pairs):
    few, many = score(scorer, pairs, "base"), score(replace(scorer, batch=16), pairs, "base")
    for one, other in zip(few, many, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
        np.testing.assert_allclose(one.entropies, other.entropies, atol=1e-5)


def test_a_prompt_that_is_too_long_loses_its_beginning(scorer, pairs):
    prompt, ids = pairs[0]
    room = len(prompt) - 5
    (cut,) = score(scorer, [(prompt, ids)], "base", max_length=room + len(ids))
    (short,) = score(scorer, [(prompt[5:], ids)], "base")
    (whole,) = score(scorer, [(prompt, ids)], "base", max_length=len(prompt) + len(ids))
    assert cut.truncated and not short.truncated and not whole.truncated
    np.testing.assert_array_equal(cut.logprobs, short.logprobs)
    assert np.abs(cut.logprobs - whole.logprobs).max() > 1e-3


def test_what_cannot_be_scored_is_named(scorer):
    with pytest.raises(ValueError, match=r"row 1 \(counted from 0\) has an empty completion"):
        score(scorer, [([1], [5]), ([1], [])])
    with pytest.raises(ValueError, match=r"row 0 \(counted from 0\) has an empty prompt"):
        score(scorer, [([], [5])])
    with pytest.raises(ValueError, match="3 tokens leaves no room for a prompt in max_length 3"):
        score(scorer, [([1], [5, 5, 5])], max_length=3)
    with pytest.raises(ValueError, match="give --model, or the --checkpoint"):
        load_scorer(None, None)


def test_the_stop_token_is_put_back_where_a_rollout_ended_with_one():
    tokenizer = load_tokenizer(BUILTIN["builtin:sums"])
    scorer = SimpleNamespace(tokenizer=tokenizer, stop_id=tokenizer.eos_token_id)
    for finish, stop in (("eos", [tokenizer.eos_token_id]), ("length", []), (None, [])):
        saved = Saved("p", "r", "1+1", "1+1=2", 1.0, "2", finish, None, {})
        prompt, ids = pair_of(scorer, "<|im_start|>user\n1+1", saved)
        assert tokenizer.decode(prompt) == "<|im_start|>user\n1+1"
        assert ids == [*tokenizer.encode("1+1=2", add_special_tokens=False), *stop]


def test_rollouts_of_a_tree_of_evaluations_carry_their_step_and_seed(tmp_path):
    for step, seed in ((0, 0), (25, 0), (25, 1)):
        folder = tmp_path / f"step_{step:06d}" / "amc23" / f"seed_{seed}"
        problem = {"problem_id": "7", "problem": "1+1", "prompt": "Problem: 1+1", "ground_truth": "2"}
        with open_records(folder, {"step": step, "samples": 2}, [problem]) as (_, add):
            add(Record(0, 0, "7", True, True, "2", "eos", 5, f"text {step} {seed}"))
            add(Record(0, 1, "7", False, False, None, "prompt_too_long", 0, ""))
    found = read_rollouts(tmp_path)
    assert [(r.step, r.text, r.reward) for r in found] == [
        (0, "text 0 0", 1.0),
        (25, "text 25 0", 1.0),
        (25, "text 25 1", 1.0),
    ]
    assert len({r.prompt_id for r in found}) == 1 and len({r.rollout_id for r in found}) == 3
    assert found[0].prompts == {"student": "Problem: 1+1"}


def test_a_line_that_is_no_rollout_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    verl = {"input": "1+1", "output": r"so \boxed{2}", "score": 1, "step": 3}
    path.write_text(json.dumps(verl) + "\n")
    (found,) = read_rollouts(path)
    assert (found.prediction, found.reward, found.step) == ("2", 1.0, 3)
    cases = {"broken JSON": "{", "is no rollout: it needs": "{}", "its reward is 'high'": {**verl, "score": "high"}}
    for part, line in (cases | {"its output is None": {**verl, "output": None}}).items():
        text = line if isinstance(line, str) else json.dumps(line)
        path.write_text(json.dumps(verl) + "\n" + text + "\n")
        with pytest.raises(ValueError, match="line 2") as error:
            read_rollouts(path)
        assert part in str(error.value)
    with pytest.raises(FileNotFoundError, match="holds no rollouts"):
        read_rollouts(tmp_path / "none")
