"""Training side by side, as data: cases, their tokens and texts, and the model directory that a whole step reads."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.peers.sampling import SMALL, TOKENS, TOY, WIDE

WORKS = ("step", "update", "loss")
PRETRAINED = ("step", "update")  # works on SmolLM2
OURS, THEIRS = ("jopsd", "equal"), ("trl", "chunked", "liger", "compiled")
TOY_DIRECTORY = Path(__file__).resolve().parents[2] / "jopsd/data/sums_base"  # a small model with a tokenizer
# What the teacher reads; the student reads {problem} alone.
TEACHER_TEMPLATE = "{problem}\nA reference answer: {solution}"
STUDENT_TEXT = "Write one short sentence with some of these words: "  # SmolLM2 writes a few tokens, or many
TEMPLATE_TOKENS, TEACHER_TOKENS = 40, 5  # of that text in SmolLM2's chat template, and of what the teacher's adds
WORDS = """
    river house stone garden morning winter letter music window field paper bridge silver market doctor summer forest
    island engine mirror castle thunder shadow circle kitchen teacher captain village journey dinner
    """.split()


class Case(NamedTuple):
    """One row of the table. One entry of `student`, `teacher` and `new` per rollout.

    Attributes:
      model: shape of a random model, or the directory of a pretrained one; of "loss", vocabulary and width alone.
      student, teacher: tokens of the two prompts, of "step" about as many. new: completion tokens, at most.
      lora: rank of adapters; 0 trains all parameters.
      alpha: of the divergence; 0 is KL(teacher || student), 1 KL(student || teacher).
      micro: rollouts per backward pass. slots: rows that ours draws at once.
      ends: completions end by themselves; else only by length.
      steps: of "step", how many are timed after the first.
      entrants: "jopsd" and "equal" (the same number of tokens in rows of one length) of ours; of the peers "trl" (its
        divergence of full logits, or its trainer), "chunked" (its loss in tiles), "liger" and "compiled" (that by
        torch.compile).
    """

    work: str
    name: str
    dtype: str
    model: dict | str
    new: tuple[int, ...]
    student: tuple[int, ...] = ()
    teacher: tuple[int, ...] = ()
    unit: str = "s"
    lora: int = 0
    alpha: float = 0.0
    micro: int = 1
    slots: int = 1
    ends: bool = False
    steps: int = 0
    entrants: tuple[str, ...] = ("jopsd", *THEIRS)

    @property
    def fresh(self) -> bool:
        """Whether every repetition is a start of its own."""
        return self.work == "step"

    def shrunk(self) -> "Case":
        """The same on a toy: an eighth of the tokens, at most four rollouts, a small vocabulary."""
        few = lambda lengths: tuple(max(n // 8, 2) for n in lengths[:4])  # noqa: E731
        model = str(TOY_DIRECTORY) if isinstance(self.model, str) else TOY
        sizes = {"new": few(self.new), "student": few(self.student), "teacher": few(self.teacher)}
        return self._replace(
            name=f"toy of {self.name}", model=model, micro=min(self.micro, 2), slots=min(self.slots, 2), **sizes
        )

    def value(self, seconds: float) -> float:
        """What a repetition of so many seconds comes to, in the case's unit. Of "ms/token", seconds of one token."""
        return 1e3 * seconds if self.unit == "ms/token" else seconds


class Tokens(NamedTuple):
    """Token ids of one rollout."""

    student: list[int]
    teacher: list[int]
    completion: list[int]


def make_cases(work: str, dtype: str, model: str) -> list[Case]:
    if work == "loss":
        shape = {"vocab_size": WIDE["vocab_size"], "hidden_size": 1024}
        return [Case(work, "V 151,936, H 1,024, 512 tokens", dtype, shape, (512,))]
    # 0.84 of the columns are real in rows as wide as the longest.
    student, teacher = spread(64, 128, 8), spread(112, 208, 8)
    if work == "update":
        new, prompts, more = ragged(32, 512), spread(32, 256, 32), 128
        return [
            Case(work, "SmolLM2, LoRA, 8 ragged rollouts", dtype, model, (64,) * 8, student, teacher, lora=16, micro=8),
            Case(work, "V 151,936, all parameters, 4 rollouts", dtype, WIDE, (128,) * 4, (64,) * 4,
                 (128,) * 4, micro=4),
            Case(work, "V 4,096, all parameters, 32 rollouts up to 512", dtype, SMALL, new, prompts,
                 tuple(n + more for n in prompts), micro=32, entrants=OURS),
        ]  # fmt: skip
    if work == "step":
        one = Case(work, "SmolLM2, LoRA, 8 prompts, 64 tokens", dtype, model, (64,) * 8, student, teacher, lora=16,
                   micro=8, slots=8, steps=2, entrants=("jopsd", "trl"))  # fmt: skip
        many = {"new": (256,) * 32, "student": spread(64, 128, 32), "teacher": spread(112, 208, 32), "steps": 1}
        ends = one._replace(name="SmolLM2, LoRA, 32 prompts, up to 256 tokens", unit="ms/token", slots=16, ends=True)
        return [one, ends._replace(**many)]
    raise ValueError(f"work {work!r} is not one of {WORKS}")


def spread(low: int, high: int, count: int) -> tuple[int, ...]:
    """Lengths from low to high, evenly, in a mixed order."""
    lengths = np.linspace(low, high, count).round().astype(int)
    return tuple(np.random.default_rng(0).permutation(lengths).tolist())


def ragged(count: int, longest: int) -> tuple[int, ...]:
    """Lognormal lengths, cut at the longest, one of which has it: their mean is 0.3 of it."""
    lengths = np.random.default_rng(1).lognormal(np.log(0.22 * longest), 0.8, count)
    return (longest, *np.clip(lengths[1:], 1, longest).astype(int).tolist())


def make_tokens(case: Case, number: int, vocabulary: int, equal: bool = False) -> list[Tokens]:
    """The rollouts of one update, other ones for another number.

    equal: all rows have the mean lengths, so as many tokens in all, up to rounding.
    """
    rng, most = np.random.default_rng(number), min(TOKENS, vocabulary)
    kinds = [(round(float(np.mean(n))),) * len(n) if equal else n for n in (case.student, case.teacher, case.new)]
    ids = lambda count: rng.integers(3, most, count).tolist()  # noqa: E731
    return [Tokens(*map(ids, lengths)) for lengths in zip(*kinds, strict=True)]


def make_rows(case: Case, number: int) -> list[dict[str, str]]:
    """Rows of problem and solution for all steps of one start, other ones for another number."""
    rng = np.random.default_rng(number)
    words = lambda count: " ".join(rng.choice(WORDS, max(count, 1)))  # noqa: E731
    pairs = list(zip(case.student, case.teacher, strict=True)) * (1 + case.steps)
    return [
        {"problem": STUDENT_TEXT + words(s - TEMPLATE_TOKENS), "solution": words(t - s - TEACHER_TOKENS)}
        for s, t in pairs
    ]


def model_directory(case: Case, folder: Path) -> str:
    """The model's directory; where completions must not end by themselves, links to it with an end token never drawn.

    That is the last token that the tokenizer adds to its vocabulary, and it ends the turns of the chat template too.
    """
    if case.ends:
        return case.model
    source, made = Path(case.model), folder / "model"
    made.mkdir()
    token = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"][-1]
    changed = {
        "config.json": {"eos_token_id": token["id"]},
        "generation_config.json": {"eos_token_id": token["id"]},
        "tokenizer_config.json": {"eos_token": token["content"]},
    }
    settings = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    unended = lambda template: template.replace(settings["eos_token"], token["content"])  # noqa: E731
    if "chat_template" in settings:
        changed["tokenizer_config.json"]["chat_template"] = unended(settings["chat_template"])
    for file in source.iterdir():
        if file.name in changed:
            content = json.loads(file.read_text(encoding="utf-8")) | changed[file.name]
            (made / file.name).write_text(json.dumps(content), encoding="utf-8")
        elif file.name == "chat_template.jinja":
            (made / file.name).write_text(unended(file.read_text(encoding="utf-8")), encoding="utf-8")
        else:
            (made / file.name).symlink_to(file.resolve())
    return str(made)


def step_answer(case: Case, steps: Sequence[dict[str, float]], first_ended: float) -> dict[str, float]:
    """The answer of a repetition: means over the steps after the first.

    Args:
      steps: of each, its seconds as "wall", "cpu" and "sampling" (its part of "wall"), and how many "tokens" it drew.
      first_ended: when the first one ended, by `time.time`.
    """
    expected = sum(case.new)
    if not case.ends and any(step["tokens"] != expected for step in steps):
        drawn = [int(step["tokens"]) for step in steps]
        raise ValueError(f"steps drew {drawn} tokens, not {expected} each")
    later = steps[1:] or steps
    mean = {key: float(np.mean([step[key] for step in later])) for key in ("wall", "cpu", "sampling", "tokens")}
    per = mean["tokens"] if case.unit == "ms/token" else 1
    parts = {"step": mean["wall"], "sampling": mean["sampling"], "tokens": mean["tokens"]}
    return {"wall": mean["wall"] / per, "cpu": mean["cpu"] / per, "first_ended": first_ended, **parts}


class LossInputs(NamedTuple):
    """Hidden states [N,H] of student and teacher, and their head: float32, of values that the case's type has.

    The head comes in blocks, so that no process holds it in another type than the case's.
    """

    student: np.ndarray
    teacher: np.ndarray
    head: Callable[[], Iterator[tuple[slice, np.ndarray]]]  # (rows of the vocabulary, [rows,H])


def loss_inputs(case: Case) -> LossInputs:
    """Logits of deviation 3 whose KL is about 1e-3 per token, as between a self-distilled student and its teacher."""
    (count,), vocabulary, width = case.new, case.model["vocab_size"], case.model["hidden_size"]
    of_case = rounded_to_bfloat16 if case.dtype == "bfloat16" else lambda x: x
    rng = np.random.default_rng(0)
    student, step = (rng.standard_normal((count, width), np.float32) for _ in range(2))

    def head(rows: int = 8192):
        for start in range(0, vocabulary, rows):
            shape = min(rows, vocabulary - start), width
            block = np.random.default_rng((1, start)).standard_normal(shape, np.float32)
            yield slice(start, start + shape[0]), of_case(block * np.float32(3 / width**0.5))

    return LossInputs(of_case(student), of_case(student + np.float32(0.015) * step), head)


def rounded_to_bfloat16(x: np.ndarray) -> np.ndarray:
    """The nearest bfloat16 of each, as float32. No NaN, no infinity."""
    bits = x.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def exact_gradient(inputs: LossInputs, alpha: float, count: int = 32) -> tuple[np.ndarray, float]:
    """In float64, of the first tokens: the gradient of the mean divergence by hidden state, and the divergence.

    Raises:
      ValueError: an alpha between 0 and 1.
    """
    if alpha not in (0, 1):
        raise ValueError(f"alpha {alpha}: the exact gradient is written for 0 and 1 alone")
    states = np.stack([inputs.student[:count], inputs.teacher[:count]]).astype(np.float64)
    logits = np.concatenate([states @ block.T for _, block in inputs.head()], axis=-1)
    s, t = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    if alpha == 0:
        values, by_logit = (np.exp(t) * (t - s)).sum(1), np.exp(s) - np.exp(t)
    else:
        values = (np.exp(s) * (s - t)).sum(1)
        by_logit = np.exp(s) * (s - t - values[:, None])
    gradient = sum(by_logit[:, rows] @ block for rows, block in inputs.head())
    return gradient / len(inputs.student), float(values.mean())


def relative_error(found: np.ndarray, exact: np.ndarray) -> float:
    """Of the tokens that there is an exact gradient of."""
    return float(np.linalg.norm(found[: len(exact)].astype(np.float64) - exact) / np.linalg.norm(exact))
