"""Sampling side by side, as data: cases, their prompts, what a case makes of its seconds; and its repetitions."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from bench.peers.protocol import Run, timed

# As `ModelConfig` calls its fields. Heads are not tied to the embedding.
NAMES = ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "intermediate_size")
SMALL = dict(zip(NAMES, (4096, 256, 4, 4, 2, 64, 768), strict=True))
WIDE = dict(zip(NAMES, (151936, 128, 4, 2, 1, 64, 384), strict=True))
TOY = dict(zip(NAMES, (512, 64, 2, 2, 1, 32, 128), strict=True))
WORKS = ("decode", "generate", "tails", "cache", "prefill")
PRETRAINED = ("decode", "prefill")  # works on SmolLM2
OURS, THEIRS = ("loop", "jetstream", "batches"), ("dynamic", "static")
TOKENS = 512  # prompts are of ids below this, which every vocabulary has
# (prompts, completion tokens of each, number) -> tokens drawn
Draw = Callable[[Sequence[Sequence[int]], Sequence[int], int], int]


class Case(NamedTuple):
    """One row of the table.

    Attributes:
      model: shape of a random model, or the directory of a pretrained one.
      new: completion tokens of each request, in order. prompt: tokens of each prompt.
      slots: rows at once: slots of ours, rows of a batch of the peer's.
      base: completion tokens of a second run, whose time is taken off; 0 is no such run.
      entrants: "loop", "jetstream" and "batches" (the loop, one batch after the other) of ours; "dynamic" and "static"
        caches of the peer's.
    """

    work: str
    name: str
    dtype: str
    model: dict | str
    prompt: int
    new: tuple[int, ...]
    slots: int
    max_length: int
    unit: str
    base: int = 0
    top_k: int = 0
    top_p: float = 1.0
    entrants: tuple[str, ...] = ("loop", "jetstream", *THEIRS)

    @property
    def fresh(self) -> bool:
        """Whether every repetition is a start of its own."""
        return False

    def shrunk(self) -> "Case":
        """The same on a toy: an eighth of the tokens, four slots, at most eight requests, a model of two layers."""
        new, prompt = tuple(max(n // 8, 1) for n in self.new[:8]), self.prompt // 8
        size = max(self.max_length // 8, prompt + max(new))
        return self._replace(name=f"toy of {self.name}", model=TOY, new=new, prompt=prompt, slots=4, max_length=size)

    def value(self, seconds: float) -> float:
        """What a repetition of so many seconds comes to, in the case's unit."""
        if self.unit == "ms/step":
            return 1e3 * seconds / (max(self.new) - self.base)
        tokens = sum(self.new) if self.unit == "tok/s" else len(self.new) * self.prompt
        return tokens / seconds


def make_cases(work: str, dtype: str, model: str, requests: int, longest: int) -> list[Case]:
    """The cases of one work. requests, longest: of "tails", how many and the most completion tokens of one."""
    if work == "decode":
        return [Case(work, "SmolLM2, 16 rows", dtype, model, 40, (33,) * 16, 16, 73, "ms/step", base=1)]
    if work == "generate":
        wide = Case(work, "V 151,936, 64 + 64", dtype, WIDE, 64, (64,) * 32, 32, 128, "tok/s")
        truncated = wide._replace(name=f"{wide.name}, top-k 20, top-p 0.95", top_k=20, top_p=0.95)
        return [Case(work, "V 4,096, 64 + 128", dtype, SMALL, 64, (128,) * 32, 32, 192, "tok/s"), wide, truncated]
    if work == "tails":
        new, name = ragged(requests, longest), f"{requests} requests up to {longest:,}"
        return [Case(work, name, dtype, SMALL, 64, new, 16, 64 + longest, "tok/s", entrants=OURS + THEIRS)]
    if work == "cache":
        one = Case(work, "", dtype, SMALL, 84, (33,) * 32, 32, 0, "ms/step", base=1, entrants=("loop", "dynamic"))
        return [one._replace(name=f"{n:,} columns allocated", max_length=n) for n in (256, 1024, 4096, 16384)]
    if work == "prefill":
        return [Case(work, "SmolLM2, 16 x 200 tokens", dtype, model, 200, (1,) * 16, 16, 201, "prompt tok/s")]
    raise ValueError(f"work {work!r} is not one of {WORKS}")


def ragged(requests: int, longest: int) -> tuple[int, ...]:
    """Lognormal lengths, cut at the longest: their mean is 0.28 of it."""
    lengths = np.random.default_rng(0).lognormal(np.log(0.21 * longest), 0.8, requests)
    return tuple(np.clip(lengths, 1, longest).astype(int).tolist())


def make_prompts(case: Case, number: int) -> list[list[int]]:
    """One prompt per request. Other numbers, other prompts: what was read before is of no use."""
    return np.random.default_rng(number).integers(3, TOKENS, (len(case.new), case.prompt)).tolist()


def batches_of(slots: int, prompts: Sequence, new: Sequence[int]) -> list[tuple[Sequence, Sequence[int]]]:
    """(prompts, new) of batches of `slots` requests, in the order given."""
    return [(prompts[i : i + slots], new[i : i + slots]) for i in range(0, len(new), slots)]


def warm_lengths(new: Sequence[int], most: int = 128) -> tuple[int, ...]:
    """Lengths of the run that warms up: as uneven as `new`, but shorter where these are long; the longest in full."""
    longest = max(new)
    short = [-(-n * min(most, longest) // longest) for n in new]
    short[new.index(longest)] = longest
    return tuple(short)


def repetitions(draw: Draw, case: Case) -> Run:
    """Draws the case's completions, and then those of its base."""

    def drawn(new: Sequence[int], number: int) -> tuple[float, float]:
        prompts = make_prompts(case, number)
        wall, cpu, tokens = timed(lambda: draw(prompts, new, number))
        if tokens != sum(new):
            raise ValueError(f"{tokens} tokens were drawn, not {sum(new)}")
        return wall, cpu

    def run(number: int) -> dict[str, float]:
        wall, cpu = drawn(case.new if number else warm_lengths(case.new), 2 * number)
        if not (number and case.base):
            return {"wall": wall, "cpu": cpu}
        base_wall, base_cpu = drawn((case.base,) * len(case.new), 2 * number + 1)
        return {"wall": wall, "cpu": cpu, "base_wall": base_wall, "base_cpu": base_cpu}

    return run
