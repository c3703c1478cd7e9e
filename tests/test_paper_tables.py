"""The papers' numbers: well-formed, consistent with their own averages, and in step with the document."""

import re
from collections import defaultdict
from pathlib import Path

import pytest

from eval import paper_tables
from eval.paper_tables import Row, between_markers, markdown, read, references

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "paper_tables.md"
MATH = {"math500", "aime24", "aime25", "hmmt25_feb", "hmmt25_nov", "amc23", "amc_aimo", "minerva", "amo_bench"}
LOGIC = {"kk_4to8", "kk_9", "kk_10", "kk_11"}
CODE = {"livecodebench_v6", "humaneval_plus", "mbpp_plus"}
SCIENCE = {f"sciknoweval_{domain}" for domain in ("biology", "chemistry", "material", "physics")}
NAMES = MATH | LOGIC | CODE | SCIENCE | {"polymath", "afrimgsm", "mgsm", "tooluse", "average"}
ROWS = read()
HEAD = ",".join(Row._fields)


def row(**changes) -> Row:
    plain = Row(
        "P", "2601.00001", "v1", "Table 1", "M-1B", "base", "aime24", "", "", "avg@4", 50.5, None, 4, "", "here"
    )
    return plain._replace(**changes)


def test_every_row_is_a_percentage_on_a_known_benchmark_with_a_source():
    for each in ROWS:
        assert 0 <= each.value <= 100 and (each.std is None or 0 <= each.std < 10), each
        assert each.benchmark in NAMES, each
        assert re.fullmatch(r"\d{4}\.\d{5}", each.arxiv) and each.version and each.table and each.source, each
        assert each.model and each.method and (each.benchmark == "average") == (each.level != ""), each


def test_a_metric_with_a_number_of_samples_names_the_samples():
    for each in ROWS:
        told = re.fullmatch(r"(?:avg|mean|pass|best)@(\d+)(?: \(bootstrap\))?|accuracy", each.metric)
        assert told, each
        assert each.samples == (None if told[1] is None else int(told[1])), each


def test_no_cell_of_a_table_is_there_twice():
    cells = [each[: Row._fields.index("value")] for each in ROWS]
    assert len(set(cells)) == len(cells)


def test_every_paper_is_there():
    assert {each.paper for each in ROWS} == {"OPSD", "PW-OPSD", "COPSD", "MOPD", "G-OPD", "RLCSD", "SDPO"}


def test_printed_averages_are_the_means_of_their_parts():
    """A digit that was copied wrong shows here: 126 averages over 450 of the numbers."""
    groups = {"math": MATH, "logic": LOGIC, "code": CODE}
    parts, averages = defaultdict(list), {}
    for each in ROWS:
        line = (each.paper, each.version, each.table, each.model, each.method)
        if each.benchmark == "average":
            averages[line, each.level] = each.value
        for name, members in groups.items():
            if each.benchmark in members:
                parts[line, name].append(each.value)
    checked = [key for key in averages if key in parts]
    half = {key: 0.00501 if key[0][0] == "PW-OPSD" else 0.0501 for key in checked}  # of the last printed digit
    off = {key for key in checked if abs(sum(parts[key]) / len(parts[key]) - averages[key]) > half[key]}
    # This one is printed so: (52.1 + 38.3 + 26.7 + 4.5) / 4 = 30.4, and the table says 30.5.
    assert off == {(("OPSD", "v1", "Table 2", "Qwen3-1.7B", "GRPO"), "math")}
    assert len(checked) > 100


def test_readme_targets_of_pw_opsd_are_found_by_model_and_metric():
    found = {each.method: each.value for each in references("Qwen/Qwen3-4B", "average", "avg@12") if each.std is None}
    assert found["EOPD"] == 69.13 and found["REOPOLD"] == 68.15
    assert (found["PW-OPSD Moderate"], found["PW-OPSD Aggressive"]) == (70.66, 70.92)


@pytest.mark.parametrize("name", ["m-1b", "org/M_1B", "models/m1b/", "M-1B"])
def test_a_model_is_found_by_any_spelling_of_its_name(name):
    assert references(name, "aime24", rows=[row()]) == [row()]


@pytest.mark.parametrize("name", ["m-1b-base", "m-11b", "m-1b/checkpoint"])
def test_another_model_is_not_found(name):
    assert references(name, "aime24", rows=[row()]) == []


def test_parts_metrics_and_averages_are_told_apart():
    rows = [
        row(),
        row(metric="mean@4", method="A"),
        row(metric="best@4 (bootstrap)", method="B"),
        row(benchmark="afrimgsm", language="swa"),
        row(benchmark="average", level="math"),
        row(benchmark="average", level="code"),
    ]
    assert references("M-1B", "aime24", rows=rows) == rows[:3]
    assert references("M-1B", "aime24", "avg@4", rows) == references("M-1B", "aime24", "mean@4", rows) == rows[:2]
    assert references("M-1B", "aime24", "pass@4", rows) == []
    assert references("M-1B", "afrimgsm", rows=rows) == []
    assert references("M-1B", "afrimgsm-swa", rows=rows) == rows[3:4]
    assert references("M-1B", "average", rows=rows) == rows[4:]
    assert references("M-1B", "average-code", rows=rows) == rows[5:]


def test_a_table_has_a_line_per_method_and_a_column_per_part():
    rows = [
        row(),
        row(method="OPSD", value=7.25, std=0.5),
        row(benchmark="average", level="math", value=60.0, notes="mean of two"),
    ]
    lines = markdown(rows).splitlines()
    assert lines[0] == "### P (arXiv 2601.00001v1), Table 1: avg@4"
    assert lines[2:6] == [
        "| model | method | aime24 | average-math |",
        "| --- | --- | ---: | ---: |",
        "| M-1B | base | 50.50 | 60.00 |",
        "| M-1B | OPSD | 7.25 ± 0.50 |  |",
    ]
    assert lines[-1] == "Read in: here. Notes: average-math: mean of two."


def test_the_printed_tables_hold_every_number_once():
    printed = re.findall(r"(?<=\| )(\d+\.\d+)(?: ±| \|)", markdown(ROWS))
    assert sorted(map(float, printed)) == sorted(each.value for each in ROWS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("paper,value\nP,1\n", "the columns are"),
        (
            ",".join(Row._fields) + "\n" + ",".join(map(str, row()._replace(std="", value="x"))) + "\n",
            "line 2.*numbers",
        ),
        (",".join(Row._fields) + "\nP,2601.00001\n", "line 2.*15 fields"),
    ],
)
def test_a_broken_file_is_an_error_with_its_line(tmp_path, text, message):
    (tmp_path / "tables.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "tables.csv")


def test_a_document_without_markers_is_an_error():
    with pytest.raises(ValueError, match="needs the lines"):
        between_markers("# Tables\n", "| a |")


def test_the_document_has_what_the_command_prints(capsys):
    paper_tables.main([])
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == between_markers(text, capsys.readouterr().out.rstrip("\n")), (
        "run python -m eval.paper_tables --into docs/paper_tables.md"
    )
