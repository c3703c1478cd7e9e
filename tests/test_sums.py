"""The embedded task: problems, tokenizer, chat template and the shipped base model."""

import re
from functools import partial
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopsd.data import pretrain_sums, sums
from jopsd.data.sums_tokenizer import CHAT_TEMPLATE, VOCAB, VOCAB_SIZE, write_tokenizer

BASE = Path(sums.__file__).parent / "sums_base"
DIGITS = {word: str(d) for d, word in enumerate("sifuri moja mbili tatu nne tano sita saba nane tisa".split())}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def base():
    from jopsd.models.hf import load_pretrained

    return load_pretrained(BASE)


def check_arithmetic(text: str, solution: str, answer: str) -> None:
    """Follows a solution line by line with eval, knowing nothing of how it was made."""
    *steps, box = solution.split("\n")
    left, *rest = text.split("+")
    assert len(steps) == len(rest) == 3
    for step, number in zip(steps, rest, strict=True):
        sides = re.fullmatch(r"(\d+)\+(\d+)=(\d+)", step).groups()
        assert sides[:2] == (left, number)
        assert eval(f"{sides[0]}+{sides[1]}") == int(sides[2])
        left = sides[2]
    assert box == rf"\boxed{{{eval(text)}}}" and answer == str(eval(text))


# --- problems


def test_a_known_problem_has_the_expected_texts():
    problem = sums.as_problem((86, 67, 56, 34))
    assert problem.problem == "86+67+56+34"
    assert problem.solution == "86+67=153\n153+56=209\n209+34=243\n\\boxed{243}"
    assert (problem.answer, problem.language, problem.problem_en) == ("243", None, None)
    words = "nanesita jumlisha sitasaba jumlisha tanosita jumlisha tatunne"
    assert sums.swahili(problem) == words
    foreign = sums.as_problem((86, 67, 56, 34), "sw")
    assert (foreign.problem, foreign.problem_en, foreign.language) == (words, "86+67+56+34", "sw")
    assert sums.swahili(foreign) == words and foreign.solution == problem.solution


def test_solutions_and_answers_are_right_by_independent_arithmetic():
    for problem in sums.problems("train", 300, seed=3):
        check_arithmetic(problem.problem, problem.solution, problem.answer)
        assert all(10 <= int(n) <= 99 for n in problem.problem.split("+"))


def test_splits_never_share_a_problem_and_test_is_about_a_tenth():
    train = {p.problem for p in sums.problems("train", 2000, seed=0)}
    test = {p.problem for p in sums.problems("test", 2000, seed=0)}
    assert len(train) == len(test) == 2000 and not train & test
    rng = np.random.default_rng(5)
    share = np.mean([sums.split_of(q) == "test" for q in rng.integers(10, 100, (5000, 4)).tolist()])
    assert 0.085 < share < 0.115


def test_the_same_seed_gives_the_same_problems_in_both_languages():
    first, again = (sums.problems("test", 50, seed=7) for _ in range(2))
    assert first == again
    assert sums.problems("test", 20, seed=7) == first[:20]
    assert sums.problems("test", 50, seed=8) != first
    foreign = sums.problems("test", 50, seed=7, language="sw")
    assert [p.problem_en for p in foreign] == [p.problem for p in first]
    assert len({p.id for p in first + foreign}) == 100


def test_swahili_words_spell_the_digits_of_the_english_problem():
    for problem in sums.problems("train", 50, seed=1, language="sw"):
        spelled = re.sub("|".join(DIGITS), lambda m: DIGITS[m.group()], problem.problem)
        assert spelled.replace(" jumlisha ", "+") == problem.problem_en


@pytest.mark.parametrize(
    ("arguments", "named"), [(("dev", 1, 0), "dev"), (("test", -1, 0), "-1"), (("test", 1, 0, "de"), "de")]
)
def test_a_bad_request_is_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=named):
        sums.problems(*arguments)


def test_the_demonstrator_forgets_hard_carries_three_times_in_four():
    rng = np.random.default_rng(0)
    slips = lambda a, b: np.mean([sums.sloppy_add(rng, a, b) == a + b - 10 for _ in range(2000)])  # noqa: E731
    assert abs(slips(19, 19) - 0.75) < 0.04
    assert abs(slips(15, 15) - 0.20) < 0.04
    assert slips(11, 11) == 0
    quads = list(islice(sums.draws(rng, "train"), 4000))
    right = np.mean([f"boxed{{{sum(q)}}}" in sums.sloppy_solution(rng, q) for q in quads])
    assert 0.42 < right < 0.50


# --- tokenizer and template


def test_every_printable_character_survives_the_round_trip(tokenizer):
    printable = "".join(map(chr, range(32, 127))) + "\n"
    rng = np.random.default_rng(0)
    words = [w for w in VOCAB if not w.startswith("<")]
    mixtures = ["".join(rng.choice([*printable, *words], 60)) for _ in range(50)]
    for text in [printable, "", " a  b\n\n ", "user: Problem Problem: \\boxed{3}", "tano,tanotano", *mixtures]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_words_and_special_tokens_are_single_tokens(tokenizer):
    ids = tokenizer.encode("<|im_start|>user\nReference Solution: \\boxed{10}<|im_end|><think></think>")
    pieces = ["<|im_start|>", "user", "\n", "Reference Solution:", " ", "\\boxed{", "1", "0", "}", "<|im_end|>"]
    assert tokenizer.convert_ids_to_tokens(ids) == [*pieces, "<think>", "</think>"]
    assert (tokenizer.pad_token_id, tokenizer.eos_token, tokenizer.eos_token_id) == (0, "<|im_end|>", 2)
    assert tokenizer.decode(ids, skip_special_tokens=True).endswith("\\boxed{10}<think></think>")
    assert len(VOCAB) == len(tokenizer) == 121 <= VOCAB_SIZE


def test_text_outside_ascii_is_an_error(tokenizer):
    with pytest.raises(Exception, match="vocabulary"):
        tokenizer.encode("é")


def test_the_template_renders_the_literal_prompts(tokenizer):
    render = partial(tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
    user = [{"role": "user", "content": "Problem: 86+67+56+34"}]
    expected = "<|im_start|>user\nProblem: 86+67+56+34<|im_end|>\n<|im_start|>assistant\n"
    assert render(user) == render(user, enable_thinking=True) == expected
    assert render(user, enable_thinking=False) == expected + "<think>\n\n</think>\n\n"
    system = [{"role": "system", "content": "s"}, *user, {"role": "assistant", "content": "a"}]
    closed = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nProblem: 86+67+56+34<|im_end|>\n"
    assert tokenizer.apply_chat_template(system, tokenize=False) == closed + "<|im_start|>assistant\na<|im_end|>\n"
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert len(tokenizer.encode(expected)) == 21


# --- pre-training


def test_training_documents_hold_the_prompts_that_training_renders(tokenizer):
    numbers, right = (86, 67, 56, 34), [153, 209, 243]
    worked = "86+67=153\n153+56=209\n209+34=243\n\\boxed{243}"
    words = "nanesita jumlisha sitasaba jumlisha tanosita jumlisha tatunne"
    message = partial(pretrain_sums.user_message, numbers)
    assert message() == "Problem: 86+67+56+34"
    assert message(swahili=True) == f"Tatizo: {words}"
    assert message(reference=right) == f"Problem: 86+67+56+34\nReference Solution: {worked}"
    assert (
        message(swahili=True, translate=True, reference=right)
        == f"Tatizo: {words}\nProblem: 86+67+56+34\nReference Solution: {worked}"
    )
    frames = pretrain_sums.prompt_frames(tokenizer)
    document = pretrain_sums.Document(message(), False, worked)
    ids, prompt_length = pretrain_sums.encode(tokenizer, frames, document)
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": message()}], tokenize=False, add_generation_prompt=True
    )
    assert ids[:prompt_length] == tokenizer.encode(rendered)
    assert tokenizer.decode(ids[prompt_length:]) == worked + "<|im_end|>"


def test_packing_keeps_every_document_whole_and_in_order(tokenizer):
    frames = pretrain_sums.prompt_frames(tokenizer)
    source = islice(pretrain_sums.documents(np.random.default_rng(0)), 200)
    encoded = [pretrain_sums.encode(tokenizer, frames, d) for d in source]
    packed = []
    for batch in pretrain_sums.batches(iter(encoded)):
        for segment in range(1, batch.segments.max() + 1):
            here = batch.segments == segment
            packed.append(batch.tokens[here].tolist())
            assert batch.positions[here].tolist() == list(range(here.sum()))
            assert batch.weights[here][0] == 0 and batch.weights[here][-1] == 1
        assert not batch.weights[batch.segments == 0].any()
    assert len(packed) > 100
    assert packed == [ids for ids, _ in encoded[: len(packed)]]


def test_training_documents_never_hold_a_test_problem():
    for document in islice(pretrain_sums.documents(np.random.default_rng(1)), 500):
        numbers = [int(n) for n in re.findall(r"\d+", document.response.split("\n")[0])[:1]]
        numbers += [int(line.split("+")[1].split("=")[0]) for line in document.response.split("\n")[:3]]
        assert sums.split_of(numbers) == "train"


# --- the shipped base


def test_the_shipped_directory_is_small_and_holds_the_tokenizer_of_this_code(tmp_path):
    assert sum(f.stat().st_size for f in BASE.iterdir()) < 1.5e6
    for fresh in write_tokenizer(tmp_path).iterdir():
        assert fresh.read_text() == (BASE / fresh.name).read_text()


def test_the_shipped_base_gives_the_same_logits_in_transformers(base, tokenizer):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    user = pretrain_sums.user_message((86, 67, 56, 34), reference=[153, 209, 243])
    frames = pretrain_sums.prompt_frames(tokenizer)
    ids, _ = pretrain_sums.encode(tokenizer, frames, pretrain_sums.Document(user, False, "86+67=153"))
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    with jax.default_matmul_precision("highest"):
        logits = base.unembed(base.hidden(jnp.array([ids])))[0]
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_the_shipped_base_follows_hints_and_is_about_half_right_without(base):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    kinds, answers = pretrain_sums.evaluation_prompts(64, seed=20)
    score = partial(pretrain_sums.accuracy, base, tokenizer, answers=answers, temperature=0.0, seed=0)
    assert score(kinds["right hint"]) > 0.9
    assert score(kinds["wrong hint"]) < 0.1
    assert 0.25 < score(kinds["english"]) < 0.7
    assert 0.2 < score(kinds["swahili"]) < 0.7
