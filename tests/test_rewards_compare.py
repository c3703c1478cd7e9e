"""Around the running of programs: comparing what they give, reading their tests, finding them in completions."""

import json
import math
import random
import time
from fractions import Fraction

import pytest

from jopsd.rewards import code
from jopsd.rewards.code import extract_program
from jopsd.rewards.compare import same_members, same_output, same_result
from jopsd.rewards.tests import Arguments, Case, Tests, read_tests, write_tests

# ---------------------------------------------------------------------------------------------------------- comparisons


def written(value: Fraction, draw: random.Random) -> str:
    """One way to write a decimal fraction."""
    digits, places = str(abs(value.numerator) * 10**30 // value.denominator), 30
    whole, part = digits[:-places].lstrip("0"), digits[-places:].zfill(places)
    part = part.rstrip("0") + "0" * draw.randint(0, 3)
    text = (
        "0" * draw.randint(0, 2) + (whole or draw.choice(["0", ""] if part else ["0"])) + (f".{part}" if part else "")
    )
    sign = "-" if value < 0 else draw.choice(["", "+"])
    return sign + text


@pytest.mark.parametrize("seed", range(20))
def test_decimal_tokens_are_equal_where_their_values_are(seed):
    draw = random.Random(seed)
    for _ in range(50):
        values = [Fraction(draw.randint(-(10 ** draw.randint(0, 25)), 10**20), 10 ** draw.randint(0, 5)) for _ in "ab"]
        values[1] = draw.choice([values[0], values[1], values[0] + Fraction(1, 10**3), values[0] + 1])
        texts = [written(value, draw) for value in values]
        gap, size = abs(values[0] - values[1]), abs(values[1])
        near = "." in texts[1].rstrip(".") and gap <= max(Fraction(1, 10**6), size / 10**6)
        assert same_output(*texts) == (gap == 0 or near), texts


@pytest.mark.parametrize(
    ("given", "expected", "equal"),
    [
        ("1 2\r\n3 \n\n", "1 2\n3", True),
        ("1\n2\n3", "1 2 3", True),
        ("", " \n", True),
        ("1 2", "1 2 3", False),
        ("2 1", "1 2", False),  # no sets of tokens
        ("YES", "yes", False),
        ("3.0", "3", True),
        ("3.0000001", "3", False),  # a whole number is exact
        ("3.0000001", "3.0", True),
        ("0.0000005", "0.0", True),
        ("1e3", "1000", True),
        ("9007199254740993", "9007199254740992", False),
        ("1" * 9000, "1" * 9000 + ".0", True),
        ("1" * 9000, "1" * 8999 + "2", False),
        ("1e400", "1.5e300", False),
        ("1e999999999999999", "1.0", False),
        ("1e99999999999999999999", "1.0", False),
        ("inf", "1.0", False),
        ("nan", "nan", True),
        ("1_000", "1000", False),
        ("٣", "3", False),
        ("-0", "0", True),
        ("True", "1", False),
        ("a" * 10, "a" * 10, True),
    ],
)
def test_what_printed_texts_are_the_same(given, expected, equal):
    assert same_output(given, expected) == equal


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("given", "expected", "equal"),
    [
        (True, True, True),
        (True, 1, False),
        (0, False, False),
        (1, 1.0, True),
        (1.0, 1, True),
        (1.0000001, 1, False),
        (1.0000001, 1.0, True),
        (1.00001, 1.0, False),
        (5.6e-17, 0.0, True),
        (2**53 + 1, 2**53, False),
        (10**400, 1.5, False),
        (10**400, 10**400, True),
        (1e308, INF, False),
        (INF, 1e308, False),
        (-INF, INF, False),
        (NAN, NAN, True),
        (NAN, 1.0, False),
        ([NAN, {"a": NAN}], [NAN, {"a": NAN}], True),
        ("1", 1, False),
        (b"a", "a", False),
        (None, False, False),
        (1 + 1e-9j, 1 + 0j, True),
        (1 + 1j, 1 - 1j, False),
        ((1, 2), [1, 2], False),
        ([1, 2], [2, 1], False),
        ([1], [1, 1], False),
        ({1, 2}, {2, 1}, True),
        ({True, 2}, {1, 2}, False),
        ({1.0, "a"}, {1, "a"}, True),
        ({0.1 + 0.2, 5}, {0.3, 5}, True),
        ({(1, (2,))}, {(1, (2,))}, True),
        ({(1, True)}, {(1, 1)}, False),
        ({1}, frozenset([1]), False),
        ({1: "a", 2: "b"}, {2: "b", 1: "a"}, True),
        ({1: "a"}, {"1": "a"}, False),
        ({True: "a"}, {1: "a"}, False),
        ({"a": [1, {"b": (2,)}]}, {"a": [1, {"b": (3,)}]}, False),
    ],
)
def test_what_results_are_the_same(given, expected, equal):
    assert same_result(given, expected) == equal


def test_tolerances_and_sequences_are_as_loose_as_asked():
    assert same_result(1.00001, 1.0, atol=1e-4) and not same_result(1.001, 1.0, atol=1e-4)
    assert not same_result(2, 3, atol=10.0)  # a whole number stays exact
    assert same_result([(1, [2])], [[1, (2,)]], sequences_alike=True)
    assert same_result({(1, 2): (3,)}, {(1, 2): [3]}, sequences_alike=True)
    assert same_members([3, 1, 1], (1, 3)) and not same_members([1], [1, 3]) and not same_members("ab", "ab")
    assert same_members([[1, 2], {3: 4}], [{3: 4}, (1, 2)], sequences_alike=True)
    assert not same_members([1], [True])


def test_neither_depth_nor_collisions_nor_size_hang_a_comparison():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    start = time.perf_counter()
    assert not same_result(deep, deep) and not same_members([deep], [deep])
    colliding = [number * (2**61 - 1) for number in range(100_000)]
    assert not same_members(colliding, [1])
    assert not same_result(list(range(500_000)), [*range(499_999), 0])
    assert not same_output("01 " * 200_000, "1 " * 199_999 + "2")
    for token in ("9" * 4_000_000, "0." + "0" * 4_000_000 + "1", "-" * 4_000_000):
        assert not same_output(token, "1.5")
    assert time.perf_counter() - start < 5


# -------------------------------------------------------------------------------------------------------------- formats


def plain_value(draw: random.Random, depth: int = 0, hashable: bool = False):
    kinds = ["int", "float", "str", "none", "bool", "complex", "bytes"]
    nested = ["tuple", "frozenset"] if hashable else ["list", "tuple", "set", "frozenset", "dict"]
    kind = draw.choice(kinds + (nested * 2 if depth < 3 else []))
    several = lambda hashable: [plain_value(draw, depth + 1, hashable) for _ in range(draw.randint(0, 3))]  # noqa: E731
    return {
        "int": lambda: draw.choice([0, -1, 10**30]),
        "float": lambda: draw.choice([0.5, -0.0, INF, -INF, 1e-300]),
        "str": lambda: draw.choice(["", "tuple", 'a "b"\n', "\u00e9\U0001f600"]),
        "none": lambda: None,
        "bool": lambda: draw.random() < 0.5,
        "complex": lambda: complex(draw.choice([1.5, INF]), -2),
        "bytes": lambda: b"\x00\xff",
        "list": lambda: several(False),
        "tuple": lambda: tuple(several(hashable)),
        "set": lambda: set(several(True)),
        "frozenset": lambda: frozenset(several(True)),
        "dict": lambda: dict(zip(several(True), several(False), strict=False)),
    }[kind]()


def exact(value) -> str:
    """A text that tells 1 from True and 1.0, whatever the order of sets."""
    if isinstance(value, dict):
        return f"dict{[(exact(key), exact(entry)) for key, entry in value.items()]}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}{[exact(entry) for entry in value]}"
    return f"{type(value).__name__}{sorted(map(exact, value))}" if isinstance(value, set | frozenset) else repr(value)


@pytest.mark.parametrize("seed", range(40))
def test_tests_survive_being_written_and_read(seed):
    draw = random.Random(seed)
    given = lambda: [plain_value(draw) for _ in range(draw.randint(1, 3))]  # noqa: E731
    common = {"setup": "import math\n", "after": "f = f\n", "time_limit": 2.5, "public": 1}
    for tests in (
        Tests("stdin", (Case("1\n", "2"), Case("", "é")), **common),
        Tests("function", (Case(Arguments(given()), plain_value(draw)),), "f", equality="wrapped", **common),
        Tests("function", (Case(Arguments([], {"n": plain_value(draw)}), 1),), "f"),
        Tests("reference", (Case(Arguments(given())),), "f", reference="def f(): 0", atol=1e-4, equality="set"),
        Tests("assert", (Case("assert f(1)"), Case("g()")), "f", helpers=("g", "h"), **common),
    ):
        again = read_tests(write_tests(tests))
        assert again == tests and exact(again.cases) == exact(tests.cases)


def test_published_formats_are_read():
    sdpo = {"inputs": ['[1, 2]\n"a b"', '[]\n"\\n"'], "outputs": ["6", "[0, true]"], "fn_name": "f"}
    tests = read_tests(json.dumps(sdpo | {"testtype": "functional", "time_limit": 4, "context": "import re\n"}))
    assert [case.given.args for case in tests.cases] == [[[1, 2], "a b"], [[], "\n"]]
    assert [case.expected for case in tests.cases] == [6, [0, True]]
    assert (tests.kind, tests.entry_point, tests.time_limit, tests.setup, tests.public) == (
        *("function", "f", 4.0),
        *("import re\n", 0),
    )
    named = {"inputs": [{"n": 3, "s": "x"}], "outputs": ["true"], "testtype": "functional", "fn_name": "f"}
    assert read_tests(json.dumps(named)).cases == (Case(Arguments([], {"n": 3, "s": "x"}), True),)
    stdin = {"inputs": ["1\n"], "outputs": ["-\n"], "testtype": "stdin", "fn_name": "", "time_limit": None}
    assert read_tests(json.dumps(stdin)) == Tests("stdin", (Case("1\n", "-\n"),))
    assert read_tests(json.dumps(stdin | {"time_limit": 1e9})).time_limit == 60
    eurus = {"inputs": ["1\n2", ["3", "4"]], "outputs": ["5\n", ["6", 7]]}
    assert read_tests(json.dumps(eurus)).cases == (Case("1\n2", "5\n"), Case("3\n4", "6\n7"))
    apps = {"inputs": [[[1, 2], "a"], "3\n4"], "outputs": [[[2, 1]], "[7]"], "fn_name": "f"}
    tests = read_tests(json.dumps(apps))
    assert tests.cases == (Case(Arguments([[1, 2], "a"]), [[2, 1]]), Case(Arguments([3, 4]), [7]))
    assert tests.equality == "wrapped"


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("assert set(same((3, 4), (5,))) == set((4, 5))", ["same"]),
        ("import math\nassert math.isclose(area(3), 1.5, rel_tol=0.1)", ["area"]),
        ("def check(candidate):\n    assert candidate(1) == helper(2)\n\ncheck(target)", ["target", "helper"]),
        ("from numpy import allclose\ndef close(x): return allclose(x, 1)\nassert not close(mine(2))", ["mine"]),
    ],
)
def test_assertions_say_which_function_they_are_about(source, names):
    gold = {"inputs": [source], "outputs": [""], "testtype": "code", "fn_name": "", "time_limit": 5}
    tests = read_tests(json.dumps(gold))
    assert (tests.kind, [tests.entry_point, *tests.helpers]) == ("assert", names)


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    ("gold", "fault"),
    [
        ("", "JSONDecodeError"),
        ("[]", "no JSON object"),
        ("{}", "neither a kind, nor inputs"),
        ('{"inputs": ["1"], "outputs": []}', "lists of one length"),
        ('{"inputs": [], "outputs": []}', "there are 0 tests"),
        ('{"inputs": [null], "outputs": ["1"]}', "a NoneType stands where text"),
        ('{"inputs": ["\\ud800"], "outputs": ["1"]}', "surrogates not allowed"),
        ('{"inputs": ["1"], "outputs": ["1"], "testtype": "judge"}', "testtype is 'judge'"),
        ('{"inputs": ["1"], "outputs": ["1"], "testtype": "stdin", "time_limit": "4"}', "number"),
        ('{"inputs": ["1"], "outputs": ["1"], "testtype": "stdin", "time_limit": 0}', "time_limit is 0"),
        ('{"inputs": ["1"], "outputs": ["1"], "testtype": "stdin", "time_limit": NaN}', "time_limit is nan"),
        ('{"inputs": ["1"], "outputs": ["1"], "testtype": "functional", "fn_name": ""}', "no name of a function"),
        ('{"inputs": ["a"], "outputs": ["1"], "testtype": "functional", "fn_name": "f"}', "JSONDecodeError"),
        ('{"inputs": ["1"], "outputs": [""], "testtype": "functional", "fn_name": "f"}', "is empty"),
        ('{"inputs": [3], "outputs": [1], "fn_name": "f"}', "arguments are a int"),
        ('{"inputs": ["x = 1"], "outputs": [""], "testtype": "code"}', "call no function"),
        (json.dumps({"inputs": [nested(70)], "outputs": ["1"], "fn_name": "f"}), "nested over 60 levels"),
        (f'{{"inputs": [{nested(100_000)}], "outputs": ["1"]}}', "RecursionError"),
        ('{"kind": "speech", "cases": []}', "kind is 'speech'"),
        ('{"kind": "stdin", "cases": ["ab"]}', "a list of two"),
        ('{"kind": "stdin", "cases": "ab"}', "cases are no list"),
        ('{"kind": "stdin", "cases": [["1", "2"]], "secret": 1}', "no field is called 'secret'"),
        ('{"kind": "stdin", "cases": [["1", "2"]], "public": 2}', "public is 2"),
        ('{"kind": "stdin", "cases": [["1", "2"]], "public": true}', "whole number"),
        ('{"kind": "function", "cases": [[[1], {"int": 1}]], "entry_point": "f"}', "other keys than one of tuple"),
        ('{"kind": "function", "cases": [[[1], {"set": "ab"}]], "entry_point": "f"}', "a set is made of a str"),
        ('{"kind": "function", "cases": [[[1], {"set": [[]]}]], "entry_point": "f"}', "unhashable"),
        ('{"kind": "reference", "cases": [[1]], "entry_point": "f"}', "a reference goes with"),
        ('{"kind": "function", "cases": [[[1], 2]], "entry_point": "f", "atol": -1}', "atol is -1"),
        (json.dumps({"kind": "stdin", "cases": [["", ""]] * 10_001}), "there are 10001 tests"),
    ],
)
def test_what_is_no_tests_is_refused_with_the_reason(gold, fault):
    with pytest.raises(ValueError, match="these are no tests of a program") as error:
        read_tests(gold)
    assert fault in str(error.value) and len(str(error.value)) < 700


# ----------------------------------------------------------------------------------------------------------- extraction


@pytest.mark.parametrize(
    ("text", "name", "program"),
    [
        ("no code", "", None),
        ("`print(1)`", "", None),
        ("```python\nprint(1)\n```", "", "print(1)"),
        ("```python\nlong = 1\nprint(long)\n```\nBetter:\n```python\nprint(1)\n```", "", "print(1)"),  # the last
        ("```python\nprint(1)\n```\nprints\n```\n1\n```", "", "print(1)"),  # labelled
        ("```text\n1\n```\n```\nprint(1)\n```\n```text\nprints 1\n```", "", "print(1)"),  # without another label
        ("```cpp\nint main\n```", "", "int main"),
        ("```python\ndef f(): 1\n```\n```python\nprint(f())\n```", "f", "def f(): 1"),  # defines it
        ("```python\ndef f(): 1\n```\n```py\ndef f(): 2\n```", "f", "def f(): 2"),
        ("```python\ndef ff(): 1\n```\n```python\nclass S:\n  def f(self): 2\n```", "f", "class S:\n  def f(self): 2"),
        ("```python\nx = 1", "", "x = 1"),  # never closed
        ("```Python3\r\nx = 1\r\n```\r\n", "", "x = 1"),
        ("Here: ```python\nx = 1\n```", "", "x = 1"),
        ("use ```\nx = 1", "", None),  # only a label begins a block behind words
        ("```python\nx = 1```", "", "x = 1"),
        ("````python\ns = '''\n```\n'''\n````", "", "s = '''\n```\n'''"),
        ("~~~python\nx = 1\n~~~", "", "x = 1"),
        ("1. So\n   ```python\n   if x:\n       y\n   ```", "", "if x:\n    y"),
        ("```python\n```", "", ""),
        ("<think>```python\nx = 1\n```</think>no", "", None),
        ("<think>```python\nx = 1\n</think>\n```python\nx = 2\n```", "", "x = 2"),
        ("```python\ns = '\ud800'\n```", "", "s = '?'"),
    ],
)
def test_which_block_is_the_program(text, name, program):
    assert extract_program(text, name) == program


JUNK = [
    *(
        "`",
        "```",
        "```python",
        "```python\n",
        "``` ",
        "```python ",
        "~",
        "~~~\n",
        "```\n",
        " ```\n",
        "```a",
        "`` ",
        "\n",
    ),
    *("</think>", "def f", "def f(\n", "a`", "```python\ndef f(): 1\n```\n", "from __future__ import a\n", "\t", " "),
]


def test_long_junk_is_read_at_once():
    for junk in JUNK:
        body = junk * (300_000 // len(junk))
        for text in (body, f"```python\n{body}", f"```{body}\n1", f"x ```python{body}"):
            start = time.perf_counter()
            extract_program(text, "f")
            code._assembled(text, Tests("stdin", (Case("", ""),), setup="import math"))
            assert time.perf_counter() - start < 1.0, (junk, text[:20])
