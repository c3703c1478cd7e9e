"""Rows of LiveCodeBench, HumanEval+ and MBPP+ as fields of a Problem, with the tests in `jopsd.rewards.tests`' format.

Rows are data: nothing in them is executed here, and a pickle is read, not loaded.
"""

import ast
import base64
import binascii
import json
import pickletools
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from jopsd.rewards.tests import Arguments, Case, Tests, read_tests, tested_names, write_tests

MAX_PRIVATE_BYTES = 256 << 20  # of a row's private tests, unpacked
MAX_ASSERTION_CHARS = 20_000
CONTEST_SECONDS = 6.0  # of one test, as LiveCodeBench and SDPO have it
CALL_SECONDS = 5.0  # of one call
BUNDLE_SECONDS = 15.0  # of a thousand calls, where the tests are one script
FLOAT_TOLERANCE = 1e-6  # EvalPlus's, where a row's own is 0

WITH_STARTER = (
    "### Question\n{question}\n\n### Format\nWrite the solution on this starter code, and give it in one block of "
    "code.\n```python\n{starter}\n```\n\n### Answer\n"
)
FROM_INPUT = (
    "### Question\n{question}\n\n### Format\nWrite a program that reads standard input and writes the answer to "
    "standard output. Do not just test it on the samples. Give it in one block of code.\n"
    "```python\n# the program\n```\n\n### Answer\n"
)
COMPLETE = "Complete this function, and give all of it in one block of code.\n```python\n{prompt}\n```"
SOLVE = "Solve this problem with a Python function, and give it in one block of code.\n```\n{prompt}\n```"

Fields = dict[str, Any]


def livecodebench(row: Mapping[str, Any]) -> Fields:
    """Fields of a row of livecodebench/code_generation_lite. Private tests may be missing, JSON, or packed.

    Raises ValueError for a row without tests, with tests of two kinds, or with private tests that are not what they
    should be: text, packed as base64, zlib and a pickle of nothing else, at most 256 MB.
    """
    public = _contest_tests(row["public_test_cases"])
    private = _contest_tests(row.get("private_test_cases") or "[]")
    metadata = json.loads(row.get("metadata") or "{}")
    kinds = {test["testtype"] for test in public + private}
    if len(kinds) != 1 or not kinds < {"stdin", "functional"}:
        raise ValueError(
            f"{row['question_id']}: tests of the types {sorted(kinds)}, where stdin or functional is needed"
        )
    published = {
        "inputs": [test["input"] for test in public + private],
        "outputs": [test["output"] for test in public + private],
        "testtype": kinds.pop(),
        "fn_name": metadata.get("func_name"),
        "time_limit": CONTEST_SECONDS,
    }
    tests = replace(read_tests(json.dumps(published)), public=len(public))
    starter = (row.get("starter_code") or "").rstrip()
    problem = (WITH_STARTER if starter else FROM_INPUT).format(question=row["question_content"], starter=starter)
    kept = ("question_title", "platform", "contest_id", "contest_date", "difficulty")
    return _fields(row["question_id"], problem, None, tests, {name: row.get(name) for name in kept})


def humaneval_plus(row: Mapping[str, Any]) -> Fields:
    """Fields of a row of HumanEval+: of EvalPlus's own file, with inputs, or of evalplus/humanevalplus, with a script.

    The imports and helpers above the function in the prompt are there for a program that does not repeat them. An input
    that the contract refuses is left out when the reference is run. Of find_zero, any root counts, as EvalPlus has it.
    No test counts as public, though the text of the problem gives some results. Raises ValueError for broken inputs.
    """
    prompt, name = row["prompt"], row["entry_point"]
    above = prompt[: max(prompt.rfind(f"def {name}("), 0)]
    common: dict[str, Any] = {"entry_point": name, "setup": above}
    inputs = _inputs(row.get("base_input")) + _inputs(row.get("plus_input"))
    if inputs and name != "find_zero":
        reference = prompt + (row.get("contract") or "") + row["canonical_solution"]
        tests = _reference_tests(row, inputs, reference=reference, time_limit=CALL_SECONDS, **common)
    else:
        script = ROOTS.format(inputs=inputs, atol=row["atol"]) if inputs else row["test"]
        call = "" if inputs or re.search(rf"^check\({name}\)", script, re.MULTILINE) else f"check({name})\n"
        tests = Tests("assert", (Case(f"{above}\n{script}\n{call}"),), time_limit=BUNDLE_SECONDS, **common)
    return _fields(row["task_id"], COMPLETE.format(prompt=prompt), prompt + row["canonical_solution"], tests, {})


def mbpp_plus(row: Mapping[str, Any]) -> Fields:
    """Fields of a row of MBPP+: of EvalPlus's own file, with inputs, or of evalplus/mbppplus, with a script.

    EvalPlus's file holds inputs as JSON and keeps apart, in its code, which tasks' lists stand for tuples or sets. Here
    the literal arguments of the row's assertions say so, argument by argument and depth by depth. Where they disagree,
    or an argument is no literal, it stays as JSON has it; so does what lies deeper than any assertion goes, unless
    everything above it is a tuple. Keys of dicts stay text.

    The assertion that the problem shows is public. Raises ValueError for broken inputs.
    """
    return _mbpp_script(row) if "base_input" not in row else _mbpp_inputs(row)


def _mbpp_inputs(row: Mapping[str, Any]) -> Fields:
    prompt, name, code = row["prompt"], row["entry_point"], row["canonical_solution"]
    shown = list(_assertions(prompt))
    written = list(_assertions(row.get("assertion") or prompt))
    inputs = _inputs(row["base_input"]) + _inputs(row.get("plus_input"))
    inputs = _typed_inputs(inputs, list(_literal_arguments(written, name)))
    tests = _reference_tests(
        row,
        inputs,
        reference=_with_contract(code, name, row.get("contract") or ""),
        entry_point=name,
        time_limit=CALL_SECONDS,
        public=int(any(list(arguments) == inputs[0] for arguments in _literal_arguments(shown, name))),
        equality="set" if any(map(_compares_sets, [*shown, *written])) else "exact",
        after=TRUTH.format(name=name) if any(_asks_for_truth(node, name) for node in written) else "",
    )
    return _fields(row["task_id"], SOLVE.format(prompt=prompt.strip()), code, tests, {})


def _mbpp_script(row: Mapping[str, Any]) -> Fields:
    asserted, imports = list(row["test_list"]), "\n".join(row.get("test_imports") or [])
    found = re.search(r"assertion\(\s*(\w+)\(\*", row["test"])
    name = found[1] if found else tested_names("\n".join([imports, *asserted]))[0]
    is_truth = any(_asks_for_truth(node, name) for text in asserted for node in _assertions(text))
    tests = Tests(
        "assert",
        (Case(f"{imports}\n{asserted[0]}\n"), Case(f"{imports}\n{row['test']}\n")),
        entry_point=name,
        public=1,
        time_limit=BUNDLE_SECONDS,
        after=TRUTH.format(name=name) if is_truth else "",
    )
    prompt = f'"""\n{row["prompt"].strip()}\n{asserted[0].strip()}\n"""'
    return _fields(row["task_id"], SOLVE.format(prompt=prompt), row["code"], tests, {})


# A function that is asked for truth may return what cannot leave the sandbox, such as a match of a regular expression.
TRUTH = """
def _truth_of(function):
    return lambda *args, **kwargs: bool(function(*args, **kwargs))


{name} = _truth_of({name})
"""
# A root is one as far as rounding lets the polynomial be 0 there.
ROOTS = """
for coefficients, in {inputs}:
    if coefficients and len(coefficients) % 2 == 0 and coefficients[-1] != 0:
        x = candidate(list(coefficients))
        size = sum(abs(c) * abs(x) ** i for i, c in enumerate(coefficients))
        assert abs(poly(coefficients, x)) <= {atol} + 1e-9 * size
"""


def _reference_tests(row: Mapping[str, Any], inputs: list[Any], **fields: Any) -> Tests:
    for arguments in inputs:
        if not isinstance(arguments, list):
            raise ValueError(f"{row['task_id']}: an input is a {type(arguments).__name__}, not a list of arguments")
    cases = tuple(Case(Arguments(arguments)) for arguments in inputs)
    return Tests("reference", cases, atol=float(row.get("atol") or FLOAT_TOLERANCE), **fields)


def _fields(name: Any, problem: str, solution: str | None, tests: Tests, extra: Fields) -> Fields:
    return {
        "id": str(name),
        "problem": problem,
        "solution": solution,
        "tests": write_tests(tests),
        "verifier": "code",
        "extra": {"entry_point": tests.entry_point} | extra,
    }


# --------------------------------------------------------------------------------------------------------------- inputs


def _inputs(value: Any) -> list[Any]:
    """EvalPlus's inputs, as a list or as the text of one; an empty object where a task has none."""
    if isinstance(value, str):
        value = json.loads(value)
    return value or []


def _assertions(text: str) -> Iterator[ast.Assert]:
    """The assertions of a row's text, among lines of anything else."""
    source = text if text.lstrip().startswith(("assert", "import", "from")) else _assert_lines(text)
    if len(source) <= MAX_ASSERTION_CHARS:
        try:
            yield from (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert))
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            return


def _assert_lines(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines() if line.strip().startswith("assert "))


def _literal_arguments(assertions: list[ast.Assert], name: str) -> Iterator[list[Any]]:
    """Positional arguments of each call of a function; `...` where one is no literal."""
    for node in (node for assertion in assertions for node in ast.walk(assertion)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield [_literal(argument) for argument in node.args]


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError):
        return ...


def _compares_sets(assertion: ast.Assert) -> bool:
    test = assertion.test
    called = test.left.func if isinstance(test, ast.Compare) and isinstance(test.left, ast.Call) else None
    return isinstance(called, ast.Name) and called.id == "set"


def _asks_for_truth(assertion: ast.Assert, name: str) -> bool:
    test = assertion.test.operand if isinstance(assertion.test, ast.UnaryOp) else assertion.test
    return isinstance(test, ast.Call) and isinstance(test.func, ast.Name) and test.func.id == name


Levels = list[set[type]]  # the types of a value, then of what it holds, then of what that holds
_SEQUENCES = {list, tuple, set, frozenset}


def _typed_inputs(inputs: list[Any], written: list[list[Any]]) -> list[Any]:
    """Inputs from JSON with the types of written calls, the first of which are the first inputs."""
    width = max(map(len, written), default=0)
    levels: list[Levels] = [[] for _ in range(width)]
    numbers = set()  # places of numbers that JSON does not have and text stands for
    for call, plain in zip(written, inputs, strict=False):
        for place, value in enumerate(call):
            _note(value, levels[place], 0)
            if isinstance(value, int | float | complex) and place < len(plain) and isinstance(plain[place], str):
                numbers.add(place)
    return [
        [
            _number(value) if place in numbers else _typed(value, levels[place]) if place < width else value
            for place, value in enumerate(arguments)
        ]
        for arguments in inputs
    ]


def _note(value: Any, levels: Levels, depth: int) -> None:
    if depth == len(levels):
        levels.append(set())
    levels[depth].add(type(value))
    if type(value) in _SEQUENCES | {dict}:
        for entry in value.values() if isinstance(value, dict) else value:
            _note(entry, levels, depth + 1)


def _typed(plain: Any, levels: Levels, depth: int = 0) -> Any:
    """A value from JSON with the types of its level: tuples and sets for lists."""
    types = levels[depth] if depth < len(levels) else set()
    if isinstance(plain, dict):
        return {key: _typed(entry, levels, depth + 1) for key, entry in plain.items()}
    if not isinstance(plain, list):
        return plain
    if not plain and dict in types and list not in types:
        return {}  # an empty set, as Python writes it
    kinds = types & _SEQUENCES or _below(levels)
    kind = next(iter(kinds)) if len(kinds) == 1 else list
    return kind(_typed(entry, levels, depth + 1) for entry in plain)


def _below(levels: Levels) -> set[type]:
    """What sequences are where no assertion has any: tuples, if they nest and nothing else does."""
    nested = [types & _SEQUENCES for types in levels if types & _SEQUENCES]
    return {tuple} if len(nested) > 1 and all(kinds == {tuple} for kinds in nested) else {list}


def _number(text: str) -> float | complex:
    try:
        return float(text)
    except ValueError:
        return complex(text)


def _with_contract(code: str, name: str, contract: str) -> str:
    """A solution whose function first checks its arguments. Without a line that begins it, the solution alone."""
    return re.sub(rf"^def {name} ?\(.*$", lambda line: line[0] + "\n" + contract, code, count=1, flags=re.MULTILINE)


# -------------------------------------------------------------------------------------------------------- LiveCodeBench


def _contest_tests(value: str | list) -> list[dict[str, str]]:
    """Tests as a list, as JSON, or packed."""
    try:
        if isinstance(value, str):
            value = json.loads(value if value.lstrip().startswith("[") else _unpacked(value))
        for test in value:
            if not all(isinstance(test[name], str) for name in ("input", "output", "testtype")):
                raise ValueError("a test is not made of text")
    except (ValueError, TypeError, KeyError, RecursionError, zlib.error, binascii.Error) as error:
        raise ValueError(f"private or public tests cannot be read: {type(error).__name__}: {error}") from None
    return value


def _unpacked(text: str) -> str:
    unzip = zlib.decompressobj()
    pickled = unzip.decompress(base64.b64decode(text, validate=True), MAX_PRIVATE_BYTES)
    if not unzip.eof:
        raise ValueError(f"they are cut off, or over {MAX_PRIVATE_BYTES} bytes")
    return _pickled_text(pickled)


def _pickled_text(data: bytes) -> str:
    """The one text that a pickle holds, read from its operations. Raises ValueError for a pickle of anything else."""
    texts = []
    for operation, argument, _ in pickletools.genops(data):
        if operation.name in ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"):
            texts.append(argument)
        elif operation.name not in ("PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"):
            raise ValueError(f"the pickle is more than a text: it has the operation {operation.name}")
    if len(texts) != 1:
        raise ValueError(f"the pickle has {len(texts)} texts, not one")
    return texts[0]
