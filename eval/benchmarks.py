"""The benchmarks: where the rows of each are, which of them count, how they are asked, and who grades.

A benchmark is one line of `_BENCHMARKS`. One with languages or levels is evaluated in parts, one part for each.
"""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from jopsd.data.knights import INSTRUCTION as ROLES_IN_A_BOX
from jopsd.data.problem import Problem

MATHS, BARE = "{problem}\n\n{instruction}", "{problem}"  # the second: the rows say themselves how to answer
CONTESTS_FROM, CONTESTS_BEFORE = "2025-02-01", "2025-05-01"  # of LiveCodeBench v6, as SDPO has it
TEST_SHARE, SPLIT_SEED = 0.1, 42  # SDPO's test part of SciKnowEval

_BOX_REQUEST = re.compile(
    r"\s*(?:please |let's )?(?:reason|think) step by step\W+(?:and )?(?:put|output|give|write|place)\b[^\n]{0,80}"
    r"\\boxed\{\}\W*$",
    re.IGNORECASE,
)


# ------------------------------------------------------------------------------------------------ what a row needs


def all_of(problems: list[Problem]) -> list[Problem]:
    return problems


def of_2024(problems: list[Problem]) -> list[Problem]:
    """The set on the hub that RLCSD reads holds three years, told apart by `url`."""
    return [p for p in problems if "2024" in str(p.extra.get("url") or "2024")]


def of_v6(problems: list[Problem]) -> list[Problem]:
    """Contests of three months; rows that have lost their date (SDPO's) are taken to be chosen already."""
    dates = [str(p.extra.get("contest_date") or CONTESTS_FROM) for p in problems]
    return [p for p, date in zip(problems, dates, strict=True) if CONTESTS_FROM <= date < CONTESTS_BEFORE]


def of_domain(domain: str) -> Callable[[list[Problem]], list[Problem]]:
    """SDPO's test part of one domain of SciKnowEval, in its order, ids counted within the domain.

    That is level L3 with choices, and of it the first tenth of a permutation, as `datasets.train_test_split` draws it.
    Rows without a domain are SDPO's own, of which it is taken already.
    """

    def choose(problems: list[Problem]) -> list[Problem]:
        if not any("domain" in p.extra for p in problems):
            return problems
        own = [p for p in problems if p.extra.get("domain") == domain and p.extra.get("level") == "L3"]
        own = [p for p in own if p.extra["type"] in ("mcq-4-choices", "mcq-2-choices")]
        order = np.random.default_rng(SPLIT_SEED).permutation(len(own))[: math.ceil(TEST_SHARE * len(own))]
        return [replace(own[i], id=str(i)) for i in order]

    return choose


def of_puzzle_set(name: str) -> Callable[[list[Problem]], list[Problem]]:
    """Of a file with several of RLCSD's sets (`kk_9`, `kk_10`), the rows of one."""

    def choose(problems: list[Problem]) -> list[Problem]:
        sets = [str(p.extra.get("data_source") or "") for p in problems]
        return [p for p, own in zip(problems, sets, strict=True) if own.startswith(name) or not re.match(r"kk_\d", own)]

    return choose


def without_request(problem: Problem) -> Problem:
    """verl rows end with the request for a box, which the template makes."""
    return replace(problem, problem=_BOX_REQUEST.sub("", problem.problem))


def with_request(problem: Problem) -> Problem:
    """Puzzles of Logic-RL do not say how to answer; RLCSD's and ours do."""
    asked = "\\boxed" in problem.problem
    return problem if asked else replace(problem, problem=f"{problem.problem}\n\n{ROLES_IN_A_BOX}")


# -------------------------------------------------------------------------------------------------- the benchmarks


class Benchmark(NamedTuple):
    """One benchmark.

    title: its name in published result files. source: the data set on the hub, a generator, or where a file is to be
    had. rows: of each part, as published. reward: the verifier's name. template: the user's turn. split, config: on the
    hub, where level and language do not say. choose: the rows that count, of all. prepare: of each row that counts.
    file: of a part, in a directory given as path. lone: on the hub that file is fetched, the data set there being code.
    local: only a path gives its rows.
    """

    name: str
    source: str
    rows: int
    reward: str = "math"
    template: str = MATHS
    split: str = "test"
    config: str | None = None
    title: str = ""
    choose: Callable[[list[Problem]], list[Problem]] = all_of
    prepare: Callable[[Problem], Problem] = without_request
    file: str | None = None
    lone: bool = False
    local: bool = False
    languages: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()

    @property
    def published(self) -> str:
        return self.title or self.name


class Part(NamedTuple):
    """What one evaluation asks: a benchmark, or one language and level of it.

    name: such as aime24 or polymath-sw-low. path: a local file or directory that holds the rows; None is the hub.
    """

    name: str
    benchmark: Benchmark
    language: str | None = None
    level: str | None = None
    path: str | None = None


POLYMATH_LANGUAGES = tuple("ar bn de en es fr id it ja ko ms pt ru sw te th vi zh".split())
LEVELS = ("low", "medium", "high", "top")
AFRIMGSM_LANGUAGES = tuple("amh eng ewe fra hau ibo kin lin lug orm sna sot swa twi vai wol xho yor zul".split())
MGSM_LANGUAGES = tuple("bn de en es fr ja ru sw te th zh".split())
SDPO_TOOLS = "datasets/tooluse/test.json of the code of SDPO (repository lasgroup/SDPO)"


def _puzzles(name: str, rows: int, folder: str) -> Benchmark:
    """Ours, drawn from the test split; as a path, RLCSD's."""
    file = f"{folder}/val.parquet"
    choose = of_puzzle_set(name)
    return Benchmark(name, f"{name}:test", rows, "knights", BARE, choose=choose, prepare=with_request, file=file)


def _science(domain: str, rows: int) -> Benchmark:
    name, file = f"sciknoweval_{domain.lower()}", f"{domain.lower()}/test.json"
    choose = of_domain(domain)
    return Benchmark(
        name, "hicai-zju/SciKnowEval", rows, "choice", BARE, config="v2", choose=choose, prepare=lambda p: p, file=file
    )


def _programs(name: str, source: str, rows: int, **fields: Any) -> Benchmark:
    return Benchmark(name, source, rows, "code", BARE, prepare=lambda p: p, **fields)


_BENCHMARKS = (
    Benchmark("math500", "HuggingFaceH4/MATH-500", 500),
    Benchmark("aime24", "HuggingFaceH4/aime_2024", 30, split="train", choose=of_2024),
    Benchmark("aime25", "yentinglin/aime_2025", 30, split="train"),
    Benchmark("hmmt25_feb", "MathArena/hmmt_feb_2025", 30, split="train", title="hmmt25"),
    Benchmark("hmmt25_nov", "MathArena/hmmt_nov_2025", 30, split="train"),
    Benchmark("amc23", "math-ai/amc23", 40),
    Benchmark("amc_aimo", "AI-MO/aimo-validation-amc", 83, split="train"),
    Benchmark("minerva", "math-ai/minervamath", 272),
    Benchmark("amo_bench", "meituan-longcat/AMO-Bench", 50, title="amo-bench"),
    Benchmark(
        "polymath", "Qwen/PolyMath", 125, file="{language}/{level}.parquet", languages=POLYMATH_LANGUAGES, levels=LEVELS
    ),
    Benchmark("afrimgsm", "masakhane/afrimgsm", 250, file="data/{language}/test.tsv", languages=AFRIMGSM_LANGUAGES),
    Benchmark("mgsm", "juletxara/mgsm", 250, file="mgsm_{language}.tsv", languages=MGSM_LANGUAGES),
    _puzzles("kk_4to8", 500, "kk_4to8_test"),
    _puzzles("kk_9", 100, "kk_9"),
    _puzzles("kk_10", 100, "kk_10"),
    _puzzles("kk_11", 100, "kk_11"),
    _science("Biology", 50),
    _science("Chemistry", 210),
    _science("Material", 94),
    _science("Physics", 80),
    Benchmark("tooluse", SDPO_TOOLS, 68, "tools", BARE, prepare=lambda p: p, file="test.json", local=True),
    _programs(
        "livecodebench_v6", "livecodebench/code_generation_lite", 131, choose=of_v6, file="test6.jsonl", lone=True
    ),
    _programs("humaneval_plus", "evalplus/humanevalplus", 164),
    _programs("mbpp_plus", "evalplus/mbppplus", 378),
)
BENCHMARKS = {benchmark.name: benchmark for benchmark in _BENCHMARKS}
TITLES = {benchmark.title: benchmark.name for benchmark in _BENCHMARKS if benchmark.title}
