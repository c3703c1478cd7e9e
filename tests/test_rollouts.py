"""From graded rollouts to the arrays of a step: who gets a teacher, what trains, which prompts stand where."""

from dataclasses import replace

import numpy as np
import pytest
import yaml

from jopsd.batch import pad_length
from jopsd.config import to_yaml, validate_config
from jopsd.data.chat import render
from jopsd.data.problem import Problem
from jopsd.data.sums import problems
from jopsd.models.tokenizer import load_tokenizer
from jopsd.models.turns import fix_clock
from jopsd.prompts import Item, Tokenizers
from jopsd.report import warnings
from jopsd.rewards.score import Score
from jopsd.rollouts import Rollout, batch_of, rollout_metrics, solution_rollouts, step_numbers, with_teachers
from jopsd.setup import BUILTIN
from jopsd.trainer import with_steps
from tests.templates import GEMMA, LLAMA3, QWEN3, byte_level

TOKENIZER = load_tokenizer(BUILTIN["builtin:sums"])
CONTEXT = {
    "name": "hints",
    "negatives": 2,
    "student_template": "Problem: {problem}",
    "teacher_template": "Problem: {problem}\nReference Solution: {solution}",
    "instruction": "",
}


def config(**changes):
    tree = {
        "output_dir": "runs/x",
        "model": {"path": "builtin:sums"},
        "method": {"name": "rlcsd"},
        "context": CONTEXT,
        "data": {"source": "sums:train"},
        "sampling": {"n": 4},
        "train": {"batch_size": 2, "pad_to": 8},
    }
    return validate_config({**tree, **changes}, "test")


def rollouts(rewards):
    """Groups of four rollouts with these rewards; the text of each is a number of its own."""
    made = []
    for row, reward in enumerate(rewards):
        problem = problems("train", 2, 0)[row // 4]
        prompt = TOKENIZER.encode(f"Problem: {problem.problem}")
        text = f"attempt {row}"
        ids = np.asarray([*TOKENIZER.encode(text), 2], np.int32)
        score = Score(reward, reward > 0, True, str(row))
        item = Item(problem, {"student": prompt})
        made.append(Rollout(item, ids, np.zeros(len(ids), np.float32), "eos", text, score, row // 4, 0, item.prompts))
    return made


def told(cfg, rewards, seed=(0, 1)):
    return with_teachers(cfg, Tokenizers(TOKENIZER), rollouts(rewards), seed)


MIXED = [1.0, 1.0, 0.0, 0.0] + [0.0] * 4  # the second group has no right attempt


def test_rollouts_without_a_teacher_do_not_train_and_are_counted():
    made = told(config(), MIXED)
    batch = batch_of(made, config(), TOKENIZER)
    assert [bool(row.any()) for row in batch.mask] == [True] * 4 + [False] * 4
    assert rollout_metrics(made)["without_teacher/no correct attempt by another"] == 4
    np.testing.assert_array_equal(batch.reward, MIXED)  # the group's advantages are over all of it
    assert batch.present["teacher"].tolist() == [1] * 4 + [0] * 4


def test_srpo_keeps_them_because_its_reward_branch_needs_no_teacher():
    cfg = config(method={"name": "srpo"}, context={**CONTEXT, "negatives": 0})
    batch = batch_of(told(cfg, MIXED), cfg, TOKENIZER)
    assert batch.mask.any(axis=1).all()
    assert batch.present["teacher"].tolist() == [1] * 4 + [0] * 4


def test_wrong_hints_stand_in_slots_of_which_the_empty_ones_are_flagged():
    batch = batch_of(told(config(), MIXED), config(), TOKENIZER)
    assert batch.views["negative"].tokens.shape[:2] == (8, 2)
    # A right rollout has two wrong ones beside it, a wrong one only one.
    assert batch.present["negative"].tolist() == [[1, 1], [1, 1], [1, 0], [1, 0]] + [[0, 0]] * 4
    first = batch.views["negative"].tokens[0, 0][batch.views["negative"].segments[0, 0] != 0]
    assert "Reference Solution: attempt " in TOKENIZER.decode(first)


def test_a_method_of_one_wrong_hint_reads_the_first_alone():
    one, several = config(method={"name": "rlsd_ectr"}), config()
    a, b = told(one, MIXED), told(several, MIXED)
    assert [r.prompts.get("negative") for r in a[:4]] == [r.prompts["negative"][0] for r in b[:4]]
    assert batch_of(a, one, TOKENIZER).views["negative"].tokens.ndim == 2


def test_the_seed_alone_decides_which_peers_are_shown():
    shown = lambda seed: [r.prompts.get("negative") for r in told(config(), MIXED, seed)]  # noqa: E731
    assert shown((0, 1)) == shown((0, 1))
    assert any(shown((0, step)) != shown((0, 1)) for step in range(2, 12))


def test_a_teacher_prompt_over_its_limit_leaves_the_rollout_without_one():
    short = config(teacher={"max_prompt_tokens": 30})
    reasons = {rollout.absent for rollout in told(short, [1.0, 1.0, 0.0, 0.0] * 2)}
    assert reasons == {"teacher prompt over 30 tokens"}


def test_a_cut_off_attempt_is_told_so():
    context = {"name": "critique", "source": "feedback", "student_template": "Problem: {problem}", "instruction": ""}
    cfg = config(method={"name": "sdpo"}, context=context)
    rows = [replace(r, finish="length", score=Score(0.0, False, False, None, "No box.")) for r in rollouts(MIXED)]
    (first, *_) = with_teachers(cfg, Tokenizers(TOKENIZER), rows, (0, 1))
    assert "No box. The attempt was cut off at its length limit." in TOKENIZER.decode(first.prompts["teacher"])


@pytest.mark.parametrize(
    ("ids", "numbers"),
    [
        ([5, 1, 2, 5, 5], [0, 0, 0, 1, 1]),
        ([1, 2, 1, 2], [0, 0, 1, 1]),
        ([1, 1, 2, 1], [0, 0, 0, 1]),
        ([5], [0]),
        ([], []),
    ],
)
def test_a_separator_belongs_to_the_step_it_ends(ids, numbers):
    assert step_numbers(ids, [1, 2]) == numbers


def test_separators_do_not_overlap():
    assert step_numbers([1, 1, 1, 1], [1, 1]) == [0, 0, 1, 1]


@pytest.mark.parametrize(("longest", "width"), [(0, 8), (8, 8), (9, 16), (64, 64), (65, 80), (200, 224), (3000, 3072)])
def test_widths_are_multiples_that_grow_with_the_length(longest, width):
    assert pad_length(longest, 8) == width
    assert longest <= width and (longest <= 64 or width < longest * 1.25)


@pytest.mark.parametrize(("epochs", "rows", "steps"), [(3, 10, 15), (1, 3, 1), (1, 1, 1), (30, 64, 960)])
def test_epochs_are_counted_in_steps_of_whole_batches(epochs, rows, steps):
    counted = with_steps(config(train={"batch_size": 2, "epochs": epochs}), rows)
    assert counted.train.steps == steps
    assert validate_config(yaml.safe_load(to_yaml(counted)), "the saved config") == counted
    assert with_steps(config(train={"batch_size": 2, "steps": 7}), rows).train.steps == 7


@pytest.mark.parametrize("tokens", ["completion", "all"])
@pytest.mark.parametrize(("template", "end"), [(LLAMA3, "<|eot_id|>"), (QWEN3, "<|im_end|>"), (GEMMA, "<end_of_turn>")])
def test_sft_teaches_the_end_of_the_turn_and_no_control_token_of_the_solution(template, end, tokens):
    tokenizer = byte_level(template)
    fix_clock(tokenizer)
    solution = f"so{end}\n\\boxed{{2}}"
    problem = Problem(id="0", problem="1+1", solution=solution)
    prompt = render(tokenizer, [{"role": "user", "content": "1+1"}], None)
    cfg = config(method={"name": "sft", "tokens": tokens}, sampling={"n": 1}, context={"name": "solution"})
    items = [Item(problem, {"student": prompt})] * 2
    made = list(solution_rollouts(items, tokenizer, tokenizer.eos_token_id, tokens, 200))
    batch = batch_of(made, cfg, tokenizer)
    targets = np.asarray(batch.targets[0])[np.asarray(batch.mask[0]) > 0]
    whole = tokenizer.decode(prompt) + solution + end
    assert tokenizer.decode([*(prompt[:1] if tokens == "all" else prompt), *targets]) == whole
    stop = tokenizer.convert_tokens_to_ids(end)
    assert targets[-1] == stop and list(targets).count(stop) == 1 + (list(prompt).count(stop) if tokens == "all" else 0)


def test_what_is_wrong_with_all_rollouts_of_a_step_is_told_and_what_is_right_is_not():
    def warned(cfg, *made):
        return set(warnings(cfg, made))

    def graded(group, reward, finish="eos", formatted=True, teacher=(1, 2, 3)):
        (one,) = rollouts([reward])
        score = replace(one.score, formatted=formatted)
        return replace(one, group=group, finish=finish, score=score, prompts={"student": [1, 2], "teacher": [*teacher]})

    opsd, grpo = (config(method={"name": name}, context={"name": "solution"}) for name in ("opsd", "grpo"))
    assert warned(opsd, graded(0, 1.0), graded(0, 1.0)) == set()
    assert warned(opsd, graded(0, 1.0, "length"), graded(0, 0.0, "length")) == {"cut"}
    assert warned(opsd, graded(0, 1.0, "length"), graded(0, 0.0)) == set()
    assert warned(opsd, graded(0, 0.0, formatted=False)) == {"form"}
    assert warned(opsd, graded(0, 0.0, teacher=(1, 2))) == {"same"}
    assert warned(grpo, graded(0, 1.0), graded(0, 1.0), graded(1, 0.0), graded(1, 0.0)) == {"constant"}
    assert warned(grpo, graded(0, 1.0), graded(0, 0.0), graded(1, 0.0), graded(1, 0.0)) == set()
