"""`python -m jopsd.data`: what it says of good and bad sources, and that what it makes loads back."""

import json
import re
import subprocess
import sys
import textwrap
from dataclasses import replace

import datasets
import numpy as np
import pytest
import yaml

from jopsd.config import load_config, validate_config
from jopsd.data.__main__ import main, parser, write_rows
from jopsd.data.datasets import load_problems
from jopsd.data.inspect import spread
from jopsd.data.knights import problems as puzzles
from jopsd.data.schemas import LAYOUTS, PLAIN
from jopsd.data.sums import problems as sums
from jopsd.schema import Data, MixedSource, Source
from tests.runs import REPO, TINY, environment
from tests.test_docs import assert_says, page, section

PROGRAM = '{"inputs": ["1\\n"], "outputs": ["2\\n"]}'


def write_lines(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def told(capsys):
    """What `inspect ... --json` prints, read; and that it ends well where any row can be used."""

    def run(*arguments: str) -> dict:
        code = main(["inspect", *arguments, "--json"])
        report = json.loads(capsys.readouterr().out)
        assert code == (0 if report["usable_rows"] or report["without_answer"] else 1)
        return report

    return run


@pytest.fixture
def refused(capsys):
    """The one line of error of a command that fails."""

    def run(*arguments: str) -> str:
        assert main(arguments) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and not printed.out
        return printed.err

    return run


# ------------------------------------------------------------------------------------------------------------- inspect

ROWS = [
    {"problem": "one", "solution": "so \\boxed{1}", "verifier": "math", "target_lang": "sw"},
    {"problem": "three", "answer": "A", "verifier": "choice", "opd_teacher": "letters"},
    {"problem": "seven77", "answer": "AB", "verifier": "choice", "opd_teacher": "letters"},
    {"problem": "", "answer": "3"},
    {"problem": "no answer", "solution": "none"},
    {"problem": "add", "tests": PROGRAM, "verifier": "code"},
    {"problem": "subtract", "tests": "{}", "verifier": "code"},
    {"problem": "also nothing"},
]


def test_a_report_counts_rows_fields_verifiers_teachers_and_languages(tmp_path, told):
    report = told(write_lines(tmp_path / "rows.jsonl", ROWS))
    assert (report["rows"], report["usable_rows"], report["layouts"]) == (8, 3, {"plain": 8})
    fields = {"id": 7, "problem": 7, "solution": 2, "answer": 3, "tests": 2, "verifier": 5, "teacher": 2, "language": 1}
    assert report["fields"] == fields
    assert report["verifiers"] == {"math": 1, "choice": 2, "code": 2, "none": 2}
    assert (report["teachers"], report["languages"]) == ({"letters": 2}, {"sw": 1})


def test_a_report_says_why_rows_would_be_left_out_and_where_the_first_is(tmp_path, told):
    report = told(write_lines(tmp_path / "rows.jsonl", ROWS))
    left_out = {entry["reason"]: (entry["rows"], entry["first_row"]) for entry in report["left_out"]}
    no_answer = "answer: none of the columns answer_number, answer, Answer, final_answer, gt, target is there"
    assert left_out == {
        "problem: column 'problem' is empty": (1, 3),
        no_answer: (2, 4),
        "answer: not one that choice can grade": (1, 2),
        "tests: not one that code can grade": (1, 6),
    }
    assert report["left_out"][0]["reason"] == no_answer  # most rows first
    assert sum(n for n, _ in left_out.values()) == report["rows"] - report["usable_rows"]
    (bad,) = [entry for entry in report["left_out"] if "choice" in entry["reason"]]
    assert "'AB' is not the letter of a choice" in bad["detail"]


def test_one_verifier_may_be_named_for_all_rows(tmp_path, told):
    source = write_lines(tmp_path / "rows.jsonl", [{"problem": "x", "answer": answer} for answer in ("A", "5", "6")])
    assert told(source)["usable_rows"] == 3
    (entry,) = told(source, "--reward", "choice")["left_out"]
    assert (entry["reason"], entry["rows"], entry["first_row"]) == ("answer: not one that choice can grade", 2, 1)
    (entry,) = told(source, "--reward", "code")["left_out"]
    assert entry["reason"] == "tests: none of the columns tests is there" and entry["rows"] == 3


def test_lengths_are_quantiles_that_are_values(told, tmp_path):
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 20, 101):
        values = rng.integers(1, 1000, size)
        oracle = np.quantile(values, [0, 0.5, 0.95, 1], method="inverted_cdf").tolist()
        assert list(spread(values.tolist()).values()) == oracle
    rows = [{"problem": "p" * n, "answer": "1"} for n in (3, 1, 2, 50)]
    report = told(write_lines(tmp_path / "rows.jsonl", rows))
    assert report["unit"] == "characters"
    assert report["lengths"]["problem"] == {"min": 1, "median": 2, "p95": 50, "max": 50}
    assert report["lengths"]["answer"] == {"min": 1, "median": 1, "p95": 1, "max": 1}
    assert "solution" not in report["lengths"]


def test_with_a_tokenizer_lengths_are_tokens_and_rows_over_a_limit_are_told_apart(tmp_path, told):
    rows = [{"problem": "1+2", "solution": "\\boxed{3}"}, {"problem": "1+2+3+4"}, {"problem": "1", "solution": "1" * 6}]
    rows = [*(row | {"answer": "3"} for row in rows), {"problem": "1+2+3+4+5"}]  # the last one for two reasons
    report = told(write_lines(tmp_path / "rows.jsonl", rows), "--tokenizer", "builtin:sums", "--max-tokens", "6")
    assert report["unit"] == "tokens"
    # one token a character, and one for \boxed{
    assert report["lengths"]["problem"] == {"min": 1, "median": 3, "p95": 9, "max": 9}
    assert report["lengths"]["solution"] == {"min": 3, "median": 3, "p95": 6, "max": 6}
    left_out = [(entry["reason"], entry["first_row"]) for entry in report["left_out"]]
    assert left_out[:2] == [("problem over 6 tokens", 1), ("problem with solution over 6 tokens", 2)]
    assert [(reason[:6], row) for reason, row in left_out[2:]] == [("answer", 3)] and report["usable_rows"] == 1


def test_what_a_tokenizer_cannot_read_and_a_limit_without_one_are_errors(tmp_path, refused):
    source = write_lines(tmp_path / "rows.jsonl", [{"problem": "1"}, {"problem": "été"}])
    message = refused("inspect", source, "--tokenizer", "builtin:sums")
    assert "rows.jsonl, row 1 (counted from 0), field 'problem': the tokenizer cannot read it" in message
    assert "--max-tokens counts tokens: give --tokenizer too" in refused("inspect", source, "--max-tokens", "5")
    assert "--tokenizer 'no/such' is not a directory" in refused("inspect", source, "--tokenizer", "no/such")


def test_translations_are_counted_and_those_not_good_are_left_out_once_they_are_read(tmp_path, told):
    good = {"problem": "How?", "solution": "\\boxed{1}", "problem_sw": "Vipi?", "problem_sw_ok": True}
    rows = [good, good | {"problem_sw_ok": False}, good | {"problem_sw": None}, good]
    source = write_lines(tmp_path / "rows.jsonl", rows)
    report = told(source)
    assert report["layouts"] == {"copsd": 4} and not report["left_out"]
    assert report["translations"] == {"problem_sw": {"rows": 4, "good": 2}}
    report = told(source, "--columns", "problem=problem_sw")
    assert report["usable_rows"] == 2 and report["languages"] == {"sw": 2}
    assert {(entry["reason"], entry["first_row"]) for entry in report["left_out"]} == {
        ("problem: column 'problem_sw_ok' is not true", 1),
        ("problem: column 'problem_sw' is empty", 2),
    }


def test_a_band_a_limit_and_named_columns_are_those_of_a_run(tmp_path, told):
    rows = [{"problem": "x", "gold": "1", "difficulty": level} for level in (4, 5, 6, 7)]
    source = write_lines(tmp_path / "rows.jsonl", rows)
    report = told(source, "--columns", "answer=gold", "--difficulty", "5-6", "--limit", "3")
    assert (report["rows"], report["usable_rows"]) == (3, 2)
    (entry,) = report["left_out"]
    assert (entry["reason"], entry["rows"], entry["first_row"]) == ("difficulty outside 5 to 6", 1, 0)
    assert report["first"]["row"] == 1 and report["first"]["extra"] == ["difficulty"]


def test_text_and_json_say_the_same(tmp_path, capsys, told):
    source = write_lines(tmp_path / "rows.jsonl", [*ROWS, {"problem": "p\n" * 400, "answer": "1"}])
    report = told(source)
    assert main(["inspect", source]) == 0
    text = capsys.readouterr().out
    assert f"{source}: 9 rows, 4 of them usable" in text
    assert "verifier   none 3, choice 2, code 2, math 1" in text and "teacher    letters 2" in text
    for entry in report["left_out"]:
        first = f"left out: {entry['rows']} rows, {entry['reason']}; the first is row {entry['first_row']}"
        assert first in text
    (line,) = [line for line in text.splitlines() if line.startswith("  problem ")]
    assert list(map(int, line.split()[1:])) == list(report["lengths"]["problem"].values())
    assert "--- first problem (row 0)\nid: 0\nproblem: one\nsolution: so \\boxed{1}\nanswer: 1\n" in text


def test_a_long_first_row_is_cut_and_a_source_without_usable_rows_is_exit_code_1(tmp_path, capsys):
    assert main(["inspect", write_lines(tmp_path / "long.jsonl", [{"problem": "x" * 5000, "answer": "1"}])]) == 0
    text = capsys.readouterr().out
    assert "x" * 600 + " ... (5000 characters)" in text and "x" * 601 not in text
    assert main(["inspect", write_lines(tmp_path / "none.jsonl", [{"text": "x"}])]) == 1
    assert "1 rows, 0 of them usable" in (text := capsys.readouterr().out) and "no row becomes a problem" in text


def test_what_is_doubtful_of_rows_is_told_in_one_line_each(tmp_path, capsys, told):
    rows = [
        {"problem": "p", "answer": 0.7000000000000001},
        {"problem": "p", "answer": "The answer is the sum of all of them, since " + "each one counts once and " * 3},
        {"problem": "p", "answer": "nan"},
        {"problem": "p", "answer": "\\frac{1}{2"},
        {"problem": "p", "answer": "\\frac{1}{2}"},
        {"problem": "p", "answer": 0.1 + 0.2},
        {"problem": "p", "solution": "none given"},
    ]
    source = write_lines(tmp_path / "rows.jsonl", rows)
    report = told(source, "--split", "test")
    split, noise, long, never = report["notes"]
    assert "split 'test' changes nothing" in split
    assert "2 rows have answers with the rounding noise of a float; the first is row 0" in noise
    assert noise.endswith("0.7000000000000001, read as 0.7")
    assert "1 rows have answers of 100 characters or more" in long and "the first is row 1" in long
    assert "2 rows have answers that no completion will match; the first is row 2 (counted from 0): 'nan'" in never
    assert (report["usable_rows"], report["without_answer"]) == (6, 1)
    assert main(["inspect", source, "--split", "test"]) == 0
    text = capsys.readouterr().out.splitlines()
    assert all(note in text for note in report["notes"])


def test_rows_with_solutions_and_no_answers_are_of_use(tmp_path, capsys):
    source = write_lines(tmp_path / "rows.jsonl", [{"problem": "p", "solution": "s"}] * 3)
    assert main(["inspect", source]) == 0
    assert "no answer  3 rows with a solution; methods that learn from no reward use them" in capsys.readouterr().out
    assert main(["inspect", write_lines(tmp_path / "bare.jsonl", [{"problem": "p"}])]) == 1


@pytest.mark.parametrize("source", ["sums:test", "sums_sw:train", "knights:train", "kk_9:test"])
def test_a_generator_is_a_source_too(source, told):
    report = told(source, "--limit", "3")
    assert (report["rows"], report["usable_rows"], report["layouts"]) == (3, 3, {"generated": 3})


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("gone.jsonl", None, "does not exist; accepted: "),
        ("a.txt", "x", "unknown file type '.txt'"),
        ("a.jsonl", '{"problem": "x"}\n{"problem": \n', "a.jsonl, line 2: broken JSON"),
        ("a.json", "[1]", "row 0 (counted from 0) is a int"),
        ("a.parquet", "no parquet", "a.parquet"),
    ],
)
def test_a_source_that_cannot_be_read_is_one_line_of_error(tmp_path, refused, name, text, fault):
    if text is not None:
        (tmp_path / name).write_text(text)
    assert fault in refused("inspect", str(tmp_path / name))


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--columns", "gold=x"], "must look like FIELD=COLUMN, FIELD one of id, problem"),
        (["--columns", "answer"], "must look like FIELD=COLUMN"),
        (["--difficulty", "7-5"], "the lower end comes first"),
        (["--difficulty", "easy"], "must look like 4-8"),
        (["--limit", "0"], "must be a number from 1 up"),
        (["--reward", "taste"], "invalid choice: 'taste'"),
    ],
)
def test_an_option_that_cannot_be_is_refused(capsys, arguments, fault):
    with pytest.raises(SystemExit) as end:
        main(["inspect", "sums", *arguments])
    assert end.value.code == 2 and fault in capsys.readouterr().err


def test_the_command_runs_as_a_process_of_its_own_and_loads_no_jax(tmp_path):
    source = write_lines(tmp_path / "rows.jsonl", ROWS)
    code = "import sys; from jopsd.data.__main__ import main; main(sys.argv[1:]); print('jax' in sys.modules)"
    command = [sys.executable, "-c", code, "inspect", source]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "8 rows, 3 of them usable" in done.stdout and done.stdout.rstrip().endswith("False")
    command = [sys.executable, "-m", "jopsd.data", "inspect", str(tmp_path / "gone.jsonl")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and not done.stdout


NO_ROWS = {"MANIFEST.json", "kk_verifier_public.jsonl", "verifier_public.jsonl", "sciknoweval_raw_l3.jsonl"}
NO_ANSWERS = {"mopd_chemistry_rollouts.jsonl"}  # its gold is in a column of another name


def test_every_real_file_is_told_of_and_every_set_of_problems_is_usable(shared, told):
    for path in sorted((shared / "data").iterdir()):
        if path.suffix not in (".json", ".jsonl", ".parquet") or path.name == "metrics_golden.json":
            continue
        report = told(str(path))
        assert report["rows"] > 0
        usable = 0 if path.name in NO_ROWS | NO_ANSWERS else report["rows"]
        assert report["usable_rows"] == usable, path.name
    source = str(shared / "data" / "mopd_chemistry_rollouts.jsonl")
    assert told(source, "--columns", "answer=ground_truth", "--reward", "choice")["usable_rows"] == 160


def test_a_real_file_that_holds_no_rows_is_refused(shared, refused):
    assert "broken JSON" in refused("inspect", str(shared / "data" / "metrics_golden.json"))


# ---------------------------------------------------------------------------------------------------------------- make

MADE = [
    (["knights", "--people", "3-5"], lambda: puzzles("test", 6, 7, (3, 5))),
    (["knights"], lambda: puzzles("test", 6, 7)),
    (["sums"], lambda: sums("test", 6, 7)),
    (["sums", "--language", "sw"], lambda: sums("test", 6, 7, "sw")),
]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(("task", "made"), MADE, ids=["knights of 3 to 5", "knights", "sums", "sums in Swahili"])
def test_rows_that_are_made_load_back_to_the_same_problems(tmp_path, capsys, task, made, suffix):
    output = tmp_path / f"rows{suffix}"
    assert main(["make", *task, "--count", "6", "--seed", "7", "--split", "test", "--output", str(output)]) == 0
    assert f"{output}: 6 rows of {task[0]}, split test, seed 7" in capsys.readouterr().out
    problems, _ = load_problems(str(output))
    assert problems == [replace(problem, source=str(output)) for problem in made()]
    assert all(problem.extra == other.extra for problem, other in zip(problems, made(), strict=True))
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_a_file_that_is_there_is_replaced_only_when_told_so(tmp_path, refused):
    output = tmp_path / "rows.jsonl"
    output.write_text("precious")
    make = ("make", "sums", "--count", "2", "--output", str(output))
    assert "rows.jsonl exists; give another --output, or --force" in refused(*make)
    assert output.read_text() == "precious"
    assert main([*make, "--force"]) == 0
    assert len(output.read_text().splitlines()) == 2


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"rows{suffix}"
    path.write_text("old")

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    monkeypatch.setattr(datasets.Dataset, "to_parquet", lambda self, file: file.write_text("half"))
    with pytest.raises(OSError, match="disk full"):
        write_rows([{"problem": "x"}], path)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["sums", "--people", "3-5", "--output", "{}/a.jsonl"], "--people is not an option of sums"),
        (["knights", "--language", "sw", "--output", "{}/a.jsonl"], "--language is not an option of knights"),
        (["knights", "--people", "1-99", "--output", "{}/a.jsonl"], "people"),
        (["sums", "--output", "{}/a.csv"], "must end in .jsonl or .parquet"),
        (["sums", "--output", "{}/no/such/a.jsonl"], "there is no folder"),
    ],
)
def test_rows_that_cannot_be_made_are_refused_before_anything_is_written(tmp_path, refused, arguments, fault):
    arguments = [argument.format(tmp_path) for argument in arguments]
    assert fault in refused("make", *arguments, "--count", "2")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------- documentation

PAGE = "docs/data.md"


def test_the_page_lists_every_key_of_the_section_with_its_default():
    keys = section(PAGE, "Keys")
    assert_says(keys, Data, "key of `data`", without=["source"])
    mixtures = section(PAGE, "Mixtures")
    assert_says(mixtures, MixedSource, "key of a source of `mix`", without=Source.model_fields)


def test_the_page_lists_every_layout_in_the_order_in_which_they_are_tried():
    table, _, _ = section(PAGE, "Layouts").partition("\nUsual names")
    rows = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert rows == [*dict.fromkeys(layout.name for layout in LAYOUTS), PLAIN.name]


def test_the_sections_shown_on_the_page_are_usable():
    blocks = re.findall(r"^    (?:data|eval):\n(?: {5,}.*\n)+", page(PAGE), re.MULTILINE)
    assert len(blocks) == 3
    configs = [validate_config(TINY | {"output_dir": "o"} | yaml.safe_load(textwrap.dedent(b)), "page") for b in blocks]
    assert configs[0].data.difficulty == (5, 7) and configs[0].data.source == "zwhe99/DeepMath-103K"
    assert [part.weight for part in configs[1].data.mix] == [3, 1]
    assert [part.limit for part in configs[2].eval.data.mix] == [500, 100, 100, 100]


def test_the_override_shown_on_the_page_makes_a_mixture_of_a_config_with_a_source():
    (override,) = re.findall(r"`data.source=null '(data.mix=[^']*)'`", page(PAGE).replace("\n", " "))
    told = load_config(REPO / "configs/quickstart.yaml", ["data.source=null", override]).data
    assert [(part.source, part.weight, part.limit) for part in told.mix] == [("a.jsonl", 3, 4096), ("b.jsonl", 1, 4096)]


def test_the_commands_of_the_page_are_commands_there_are():
    lines = [line.strip() for line in page(PAGE).splitlines() if line.strip().startswith("python -m jopsd.data ")]
    assert len(lines) >= 5
    for line in lines:
        parser().parse_args(line.split("#")[0].split()[3:])
