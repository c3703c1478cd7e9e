"""Benchmarks: names and parts, rows in their published columns, what counts of them, prompts, and presets."""

import json
from itertools import product
from pathlib import Path

import datasets
import huggingface_hub
import pytest

from eval import parts
from eval.benchmarks import AFRIMGSM_LANGUAGES, BENCHMARKS, LEVELS, MATHS, MGSM_LANGUAGES, POLYMATH_LANGUAGES
from eval.parts import context, find_parts, header, listing, load, note, row_fields
from eval.presets import PRESETS, find
from eval.presets import listing as listing_of_presets
from jopsd.contexts import CrosslingualContext, SolutionContext
from jopsd.contexts.languages import shipped_records
from jopsd.data.knights import INSTRUCTION
from jopsd.data.problem import problem_from_row
from jopsd.data.schemas import detect
from jopsd.rewards.grader import VERIFIERS, fault_of_row
from jopsd.rewards.tests import read_tests

ROWS = Path(__file__).with_name("benchmark_rows")
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
DOMAINS = ("biology", "chemistry", "material", "physics")
GOLDEN = {  # what the published evaluators write after `base_model`
    "polymath": {"dataset": "polymath", "language": "DE", "polymath_split": "low"},
    "afrimgsm": {
        "dataset": "afrimgsm",
        "dataset_name": "masakhane/afrimgsm",
        "dataset_config": "swa",
        "language": "SWA",
        "afrimgsm_split": "test",
    },
}


def lines(name: str) -> list[dict]:
    return [json.loads(line) for line in (ROWS / name).read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def only(wanted: str, languages=(), levels=()):
    """The one part of what is wanted."""
    (part,) = find_parts([wanted], languages, levels)
    return part


def asked(part, problem, preset=None) -> str:
    """The user's turn of a problem."""
    return context(part, preset).student_prompt(problem).messages[-1]["content"]


@pytest.fixture
def hub(monkeypatch):
    """A hub that answers with rows of ours, and what it was asked for."""
    calls = []

    def answer_with(rows):
        def load_rows(*arguments):
            calls.append(arguments)
            return rows

        monkeypatch.setattr(parts, "load_rows", load_rows)
        return calls

    return answer_with


# ------------------------------------------------------------------------------------------------------------- parts


def test_a_benchmark_with_languages_and_levels_has_a_part_for_each_and_others_have_one():
    assert [p.name for p in find_parts(["aime24", "hmmt25"])] == ["aime24", "hmmt25_feb"]
    every = [f"polymath-{code}-{level}" for code, level in product(POLYMATH_LANGUAGES, LEVELS)]
    assert [p.name for p in find_parts(["polymath"])] == every and len(every) == 18 * 4
    assert len(find_parts(["afrimgsm"])) == len(AFRIMGSM_LANGUAGES) == 19
    assert len(find_parts(["mgsm"])) == len(MGSM_LANGUAGES) == 11
    part = only("AMO-Bench=some/dir=x")
    assert (part.benchmark.name, part.path, part.language, part.level) == ("amo_bench", "some/dir=x", None, None)


def test_a_language_is_known_by_every_code_of_it_in_any_case():
    for code in ("SW", "swa", "Swh"):
        found = find_parts(["polymath", "afrimgsm", "mgsm", "math500"], [code], ["LOW"])
        assert [p.name for p in found] == ["polymath-sw-low", "afrimgsm-swa", "mgsm-sw", "math500"]
    assert only("polymath", languages=["KOR"], levels=["top"]).name == "polymath-ko-top"
    upper = "EN FR EWE HAU IBO TWI VAI WOL YOR AMH KIN LUG SWA ORM SNA XHO ZUL SOT LIN".split()  # COPSD's codes
    assert [p.language for p in find_parts(["afrimgsm"], upper)] == list(AFRIMGSM_LANGUAGES)


@pytest.mark.parametrize(
    ("wanted", "languages", "levels", "words"),
    [
        (["aime2"], [], [], r"'aime2' is not known; did you mean aime2[45]\?; known: math500, aime24"),
        (["zzz"], [], [], r"'zzz' is not known; known: math500"),
        (["aime24="], [], [], "no path after the equals sign"),
        (["tooluse"], [], [], r"tooluse=PATH, with datasets/tooluse/test\.json of .*lasgroup/SDPO"),
        (["aime24", "aime24=x.jsonl"], [], [], "aime24 twice"),
        (["aime24", "math500"], ["sw"], [], "--language sw: no benchmark that is asked for has languages"),
        (["mgsm"], [], ["low"], "--level low: no benchmark that is asked for has levels"),
        (["polymath"], ["swa", "zhh"], [], r"--language 'zhh' is not known; did you mean zh\?; known: ar, bn, de"),
        (["polymath"], [], ["mediun"], r"'mediun' is not known; did you mean medium\?; known: low, medium, high, top"),
        (["polymath", "afrimgsm"], ["hau"], [], "polymath has no language hau; leave it out, or choose from ar, bn"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(wanted, languages, levels, words):
    with pytest.raises(ValueError, match=words):
        find_parts(wanted, languages, levels)


def test_every_benchmark_has_a_verifier_that_exists_and_a_line_in_the_listing():
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.reward in VERIFIERS and benchmark.rows > 0
        assert sum(line.split()[:1] == [name] for line in listing().splitlines()) == 1


# ------------------------------------------------------------------------------------------- rows in published columns

# benchmark -> what the hub must be asked for, and the golds of our rows; a name of a file beside this one
HUB = {
    "math500": ("HuggingFaceH4/MATH-500", "test", None, ["50", "\\frac{3}{4}"]),
    "aime24": ("HuggingFaceH4/aime_2024", "train", None, ["090", "007"]),
    "aime25": ("yentinglin/aime_2025", "train", None, ["45", "144"]),
    "hmmt25_feb": ("MathArena/hmmt_feb_2025", "train", None, ["64", "-\\sqrt{2},\\sqrt{2}"]),
    "hmmt25_nov": ("MathArena/hmmt_nov_2025", "train", None, ["120", "2\\sqrt{3}"]),
    "amc23": ("math-ai/amc23", "test", None, ["36", "12.5"]),
    "amc_aimo": ("AI-MO/aimo-validation-amc", "train", None, ["142", "81"]),
    "minerva": ("math-ai/minervamath", "test", None, ["4", "10^{3}"]),
    "amo_bench": ("meituan-longcat/AMO-Bench", "test", None, ["\\boxed{101}", "all even integers"]),
    "humaneval_plus": ("evalplus/humanevalplus", "test", None, None),
    "mbpp_plus": ("evalplus/mbppplus", "test", None, None),
}


@pytest.mark.parametrize("name", HUB)
def test_rows_of_the_hub_become_problems_that_can_be_graded(name, hub):
    *wanted, golds = HUB[name]
    rows = lines(f"{name}.jsonl")
    calls, part = hub(rows), only(name)
    problems = load(part)
    assert calls == [tuple(wanted)]
    assert all(fault_of_row(part.benchmark.reward, problem) is None for problem in problems)
    if golds is None:
        assert [p.verifier for p in problems] == ["code", "code"] and all(p.tests for p in problems)
        assert asked(part, problems[0]) == problems[0].problem and "```python" in listing_of(problems[0])
    else:
        assert [p.answer for p in problems] == golds
        text = rows[0].get("problem") or rows[0].get("question") or rows[0]["prompt"]
        assert asked(part, problems[0]) == f"{text}\n\n{BOXED}"
    assert [p.id for p in load(part, limit=1)] == [problems[0].id]
    assert note(part, problems).startswith(f"{name} has 2 problems here, {BENCHMARKS[name].rows} as published")


def listing_of(problem) -> str:
    """The problem as a program is asked for; MBPP+ shows its assertion in a block without a language."""
    return problem.problem.replace("```\n", "```python\n")


def test_descriptions_among_the_answers_are_noted(hub):
    hub(lines("amo_bench.jsonl"))
    part = only("amo_bench")
    assert "1 answers of amo_bench are descriptions" in note(part, load(part))


def test_the_right_number_of_problems_needs_no_note(hub):
    hub(lines("aime25.jsonl") * 15)
    assert note(only("aime25"), load(only("aime25"))) is None


def test_a_part_asks_the_hub_for_its_language_and_level(hub):
    rows = lines("polymath.jsonl")
    calls = hub([row for row in rows if row["id"].startswith("low-sw")])
    assert [p.answer for p in load(only("polymath", languages=["swa"], levels=["low"]))] == ["7", "5"]
    hub([{"question": "Ngapi?", "answer": None, "answer_number": 5600, "equation_solution": None}])
    for name in ("afrimgsm", "mgsm"):
        assert [p.answer for p in load(only(name, languages=["sw"]))] == ["5600"]
    wanted = ("Qwen/PolyMath", "low", "sw"), ("masakhane/afrimgsm", "test", "swa"), ("juletxara/mgsm", "test", "sw")
    assert calls == list(wanted)


def test_the_programs_of_livecodebench_are_fetched_as_a_file_and_chosen_by_date(monkeypatch):
    def download(*arguments, **named):
        assert (arguments, named) == (("livecodebench/code_generation_lite", "test6.jsonl"), {"repo_type": "dataset"})
        return str(ROWS / "livecodebench" / "test6.jsonl")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for part in (only("livecodebench_v6"), only(f"livecodebench_v6={ROWS / 'livecodebench'}")):
        problems = load(part)
        assert [p.id for p in problems] == ["own_1", "own_2"]  # not of January, not of May
        assert [len(read_tests(p.tests).cases) for p in problems] == [2, 2]


def test_what_the_hub_does_not_give_names_the_way_out(monkeypatch):
    def gone(*arguments):
        raise RuntimeError("scripts are no longer supported")

    monkeypatch.setattr(parts, "load_rows", gone)
    with pytest.raises(FileNotFoundError, match=r"cannot load juletxara/mgsm: scripts.*fix: .*mgsm=PATH"):
        load(only("mgsm", languages=["sw"]))


@pytest.mark.parametrize(("name", "count"), [("kk_4to8", 500), ("kk_9", 100), ("kk_10", 100), ("kk_11", 100)])
def test_puzzles_are_drawn_by_seed_unless_a_path_is_given(name, count):
    part = only(name)
    problems = load(part)
    assert len({p.id for p in problems}) == count and note(part, problems) is None
    assert load(part, limit=5, seed=0) == problems[:5] != load(part, limit=5, seed=1)
    assert all(asked(part, p) == p.problem and p.problem.endswith(INSTRUCTION) for p in problems)
    (own,) = load(only(f"{name}={ROWS / 'kk.jsonl'}"))
    assert own.extra["data_source"].startswith(name) and fault_of_row("knights", own) is None
    assert asked(part, own) == own.problem  # it says how to answer


def test_puzzles_that_do_not_ask_for_a_box_are_made_to(tmp_path):
    row = {"quiz": "Ida says that Ida is a knight or a knave.", "solution_text": "Ida is a knight."}
    (problem,) = load(only(f"kk_9={write(tmp_path / 'rows.jsonl', [row])}"))
    assert problem.problem == f"{row['quiz']}\n\n{INSTRUCTION}"


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_test_part_of_sciknoweval_is_that_of_the_library_that_published_it(domain, hub):
    rows = lines("sciknoweval.jsonl")
    calls, part = hub(rows), only(f"sciknoweval_{domain}")
    problems = load(part)
    own = [r for r in rows if r["domain"].lower() == domain and r["details"]["level"] == "L3" and "mcq" in r["type"]]
    split = datasets.Dataset.from_dict({"at": range(len(own))}).train_test_split(test_size=0.1, seed=42)
    assert [p.id for p in problems] == [str(at) for at in split["test"]["at"]]
    assert [p.answer for p in problems] == [own[at]["answerKey"] for at in split["test"]["at"]]
    assert calls == [("hicai-zju/SciKnowEval", "test", "v2")]
    assert [fault_of_row("choice", p) for p in problems] == [None] * len(problems)


def test_rows_of_sdpo_are_the_test_part_already():
    problems = load(only(f"sciknoweval_biology={ROWS / 'sciknoweval'}"))
    assert [(p.id, p.answer) for p in problems] == [("7", "C"), ("3", "A")]
    assert problems[0].system.startswith("Answer with a letter")


def test_tools_come_from_a_path():
    part = only(f"tooluse={ROWS / 'tooluse'}")
    problems = load(part)
    assert [p.id for p in problems] == ["0", "1"] and asked(part, problems[0]) == problems[0].problem
    assert json.loads(problems[0].answer)[0]["Action"] == "getWeather"


# ------------------------------------------------------------------------------------- the layout of SciKnowEval's rows


def test_a_raw_row_of_sciknoweval_shows_its_choices_and_how_to_answer():
    row = next(row for row in lines("sciknoweval.jsonl") if row["type"] == "mcq-2-choices")
    assert detect(row).name == "sciknoweval"
    problem = problem_from_row(row, 4)
    assert problem.problem == "Biology: which is larger?\n\nA: 5\nB: 3\nPlease reason step by step."
    assert (problem.answer, problem.verifier, problem.id) == ("A", "choice", "4")
    assert "2 options" in problem.system and "(A or B)" in problem.system and "<answer>\nA\n</answer>" in problem.system
    kept = {"type": "mcq-2-choices", "domain": "Biology", "level": "L3", "task": "t", "subtask": "t"}
    assert problem.extra == kept


def test_a_raw_row_of_sciknoweval_without_choices_has_no_verifier():
    row = next(row for row in lines("sciknoweval.jsonl") if row["type"] == "true_or_false")
    problem = problem_from_row(row, 0)
    assert (problem.problem, problem.answer, problem.verifier) == ("Biology: is 4 even?", "Yes", None)


@pytest.mark.parametrize("change", [{"answerKey": "E"}, {"choices": {"text": ["1"], "label": ["A", "B"]}}])
def test_choices_that_do_not_fit_their_letters_are_refused(change, hub):
    hub([{**lines("sciknoweval.jsonl")[0], **change}])
    with pytest.raises(ValueError, match=r"sciknoweval_biology: .*row 0 .*not as the layout sciknoweval has it"):
        load(only("sciknoweval_biology"))


# ---------------------------------------------------------------------------------------------------- files and folders


def test_one_file_may_hold_all_languages_and_levels():
    found = {p.name: load(p) for p in find_parts([f"polymath={ROWS / 'polymath.jsonl'}"], ["swa"], ["low", "top"])}
    assert {name: [p.answer for p in own] for name, own in found.items()} == {
        "polymath-sw-low": ["7", "5"],
        "polymath-sw-top": ["$6$"],
    }
    assert len(load(only(f"mgsm={ROWS / 'mgsm.jsonl'}", languages=["eng"]))) == 2
    for level in (None, "split", "level"):  # of an id, or of a column
        row = {"question": "P?", "answer": "1", "language": "swa"} | ({level: "high"} if level else {"id": "high-1"})
        problem = problem_from_row(row, 0)
        assert parts._level(problem) == "high" and parts._language(problem.language) == "sw"


@pytest.mark.parametrize(
    ("wanted", "language", "level", "words"),
    [
        ("polymath", "de", "low", "no row of language de; it has en, ko, sw; choose with --language"),
        ("polymath", "sw", "high", "no row of level high; it has low, top; choose with --level"),
        ("mgsm", "te", None, "no row of language te; it has en, sw"),
    ],
)
def test_a_file_without_the_language_or_level_says_what_it_has(wanted, language, level, words):
    with pytest.raises(ValueError, match=words):
        load(only(f"{wanted}={ROWS / wanted}.jsonl", languages=[language], levels=[level] if level else []))


def test_a_file_that_does_not_say_its_language_must_be_named_after_it(tmp_path):
    rows = [{"question": "Ngapi?", "answer": "4"}]
    with pytest.raises(ValueError, match="do not say their language, nor does its name; .*mgsm_sw.tsv"):
        load(only(f"mgsm={write(tmp_path / 'rows.jsonl', rows)}", languages=["sw"]))
    assert len(load(only(f"mgsm={write(tmp_path / 'mine_swa.jsonl', rows)}", languages=["sw"]))) == 1
    with pytest.raises(ValueError, match="mgsm-te: "):
        load(only(f"mgsm={tmp_path / 'mine_swa.jsonl'}", languages=["te"]))


def test_a_file_that_has_changed_is_read_again(tmp_path):
    path = write(tmp_path / "rows.jsonl", lines("aime25.jsonl"))
    assert len(load(only(f"aime25={path}"))) == 2
    write(path, lines("aime25.jsonl") * 2)
    assert len(load(only(f"aime25={path}"))) == 4


def test_folders_laid_out_as_the_repository_are_read_by_language_and_level(tmp_path):
    rows = lines("polymath.jsonl")
    for language, level in (("sw", "low"), ("sw", "top"), ("en", "medium")):
        own = [row for row in rows if row["id"].startswith(f"{level}-{language}")]
        path = tmp_path / "PolyMath" / language / f"{level}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(own).to_parquet(path)
    assert [p.answer for p in load(only(f"polymath={path.parents[1]}", languages=["sw"], levels=["top"]))] == ["$6$"]
    with pytest.raises(FileNotFoundError, match="polymath-sw-high: .*has en-medium, sw-low, sw-top; choose of these"):
        load(only(f"polymath={path.parents[1]}", languages=["sw"], levels=["high"]))
    english, swahili = (load(only(f"mgsm={ROWS / 'mgsm'}", languages=[code])) for code in ("en", "sw"))
    assert [p.answer for p in english] == [p.answer for p in swahili] == ["1,000", "6"]
    assert english[1].problem == '"Three twice makes what?'  # quotation marks are text there
    (problem,) = load(only(f"afrimgsm={ROWS / 'afrimgsm'}", languages=["HAU"]))
    assert problem.answer == "11"
    with pytest.raises(FileNotFoundError, match="afrimgsm-zul: .*has eng, hau, swa"):
        load(only(f"afrimgsm={ROWS / 'afrimgsm'}", languages=["zul"]))


def test_a_table_with_too_many_cells_is_refused_by_line(tmp_path):
    (tmp_path / "mgsm_sw.tsv").write_text("Ngapi?\t4\nNgapi?\t4\t5\n")
    with pytest.raises(ValueError, match="mgsm_sw.tsv, line 2: 3 cells, where question and answer"):
        load(only(f"mgsm={tmp_path}", languages=["sw"]))
    (tmp_path / "test_sw.tsv").write_text("question\tanswer_number\nNgapi?\t4\nNgapi?\t4\t5\n")
    with pytest.raises(ValueError, match="test_sw.tsv, row 1 .*more cells than columns"):
        load(only(f"mgsm={tmp_path / 'test_sw.tsv'}", languages=["sw"]))


@pytest.mark.parametrize(
    ("wanted", "row", "words"),
    [
        ("aime25", {"problem": "P?"}, r"row 2 .*'answer': it has no answer; columns present: problem; fix: .*--column"),
        (
            "aime25",
            {"question_text": "P?", "answer": 3},
            r"row 2 .*'problem': none of .*present: question_text, answer",
        ),
        ("kk_9", {"problem": "Who?", "answer": "nobody"}, r"row 2 .*'answer': gold answer 'nobody' is no assignment"),
        ("humaneval_plus", {"problem": "P", "answer": "3"}, r"row 2 .*'tests': it has no tests"),
    ],
)
def test_a_row_that_cannot_be_asked_or_graded_is_named(wanted, row, words, tmp_path):
    good = lines({"kk_9": "kk.jsonl"}.get(wanted, f"{wanted}.jsonl"))[:2]
    with pytest.raises(ValueError, match=f"{wanted}: .*rows.jsonl, {words}"):
        load(only(f"{wanted}={write(tmp_path / 'rows.jsonl', [*good[:1], *good[:1], row])}"))


def test_rows_that_do_not_count_need_no_answer_and_none_left_is_an_error(tmp_path):
    rows = lines("aime24.jsonl")
    other = {**rows[2], "answer": None, "solution": "none"}
    assert len(load(only(f"aime24={write(tmp_path / 'some.jsonl', [*rows[:2], other])}"))) == 2
    with pytest.raises(ValueError, match=r"aime24: none of the 1 rows of .*rest.jsonl belongs to it"):
        load(only(f"aime24={write(tmp_path / 'rest.jsonl', [other])}"))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load(only(f"aime24={tmp_path / 'absent.jsonl'}"))
    with pytest.raises(ValueError, match="--limit must be at least 1"):
        load(only("kk_9"), limit=0)


@pytest.mark.parametrize("request_", [BOXED, "Let's think step by step and output the final answer within \\boxed{}."])
def test_a_request_for_a_box_at_the_end_of_a_row_is_made_once(request_, tmp_path):
    text = "Reason step by step about $x$ with \\boxed{}. What is it?"
    row = {"prompt": [{"role": "user", "content": f"{text} {request_}"}], "reward_model": {"ground_truth": "3"}}
    part = only(f"aime24={write(tmp_path / 'rows.jsonl', [row])}")
    assert asked(part, load(part)[0]) == f"{text}\n\n{BOXED}"


# ------------------------------------------------------------------------------------------------ prompts and files


def test_languages_are_asked_in_their_own_words_as_copsd_does():
    for name, code, key in (("polymath", "SW", "sw"), ("afrimgsm", "hau", "hau"), ("mgsm", "te", "te")):
        part = only(name, languages=[code], levels=["low"] if name == "polymath" else [])
        record = shipped_records().languages[key]
        prompt = context(part).student_prompt(problem_from_row({"problem": "P"}, 0))
        assert [m["content"] for m in prompt.messages] == [f"P\n\n{record.student_instruction}"]
        assert prompt.prefill == f"<think>\n{record.think_prefix}"


def test_a_language_without_a_record_is_asked_in_english_and_noted():
    without = []
    for part in find_parts(["polymath"], (), ["low"]):
        is_own = isinstance(context(part), CrosslingualContext)
        assert is_own != ("English instruction" in (note(part, []) or ""))
        without += [] if is_own else [part.language]
    assert without == ["ar", "id", "it", "ko", "ms", "pt", "vi"]
    korean = only(f"polymath={ROWS / 'polymath.jsonl'}", languages=["ko"], levels=["low"])
    assert asked(korean, load(korean)[0]) == f"2 더하기 3은 얼마입니까?\n\n{BOXED}"


def test_a_preset_changes_the_template_of_mathematics_alone():
    problem = problem_from_row({"problem": "P"}, 0)
    assert asked(only("aime24"), problem, find("gopd")) == f"P\n{BOXED}"
    assert asked(only("aime24"), problem, find("pw-opsd")) == f"P\n\n{BOXED}"
    for preset in (None, *PRESETS.values()):
        for name in ("kk_9", "sciknoweval_physics", "livecodebench_v6", "humaneval_plus", "mbpp_plus"):
            assert asked(only(name), problem, preset) == "P"
    english = context(only("math500"), find("copsd-polymath"))
    assert isinstance(english, CrosslingualContext) and english.language == "en"
    assert isinstance(context(only("math500"), find("rlcsd")), SolutionContext)


def test_the_header_of_a_published_file_is_told_by_the_part():
    assert list(header(only("polymath", languages=["de"], levels=["low"])).items()) == list(GOLDEN["polymath"].items())
    assert list(header(only("afrimgsm", languages=["SW"])).items()) == list(GOLDEN["afrimgsm"].items())
    published = [header(only(name))["dataset"] for name in ("math500", "hmmt25_feb", "amo_bench", "amc23", "minerva")]
    assert published == ["math500", "hmmt25", "amo-bench", "amc23", "minerva"]


def test_results_of_afrimgsm_keep_its_columns():
    part = only(f"afrimgsm={ROWS / 'afrimgsm'}", languages=["swa"])
    assert [row_fields(part, problem) for problem in load(part)] == [
        {"answer": None, "answer_number": "11", "equation_solution": None},
        {"answer": "Nusu ya 50 ni 25.", "answer_number": "25", "equation_solution": "50/2=25"},
    ]
    bare = problem_from_row({"question": "P", "answer": "7", "answer_number": None, "equation_solution": None}, 0)
    assert row_fields(part, bare) == {"answer": "7", "answer_number": None, "equation_solution": None}
    assert row_fields(only("aime24"), bare) == {}


# ------------------------------------------------------------------------------------------------------------ presets


def test_presets_hold_the_published_settings():
    drawn = {
        name: (p.samples, len(p.seeds), p.temperature, p.top_p, p.top_k, p.max_new_tokens, p.thinking)
        for name, p in PRESETS.items()
    }
    assert drawn == {
        "pw-opsd": (12, 3, 1.0, 0.95, 0, 38912, True),
        "opsd": (16, 1, 1.0, 0.95, 0, 38912, True),
        "copsd-polymath": (12, 1, 1.0, 0.95, 0, 8192, True),
        "copsd-afrimgsm": (12, 1, 1.0, 0.95, 0, 1024, True),
        "rlcsd": (12, 1, 0.6, 0.95, 20, 38912, True),
        "rlcsd-kk": (1, 1, 0.6, 0.95, 20, 38912, True),
        "mopd": (8, 1, 0.6, 0.95, 0, 8192, True),
        "gopd": (32, 1, 1.0, 1.0, 0, 16384, False),
    }
    assert PRESETS["gopd"].template == "{problem}\n{instruction}" != MATHS


@pytest.mark.parametrize("name", PRESETS)
def test_the_benchmarks_of_a_preset_are_there_and_it_is_listed(name):
    preset = find(name)
    assert preset.name == name and preset.source and f"  {name} " in listing_of_presets()
    assert find_parts(preset.benchmarks, preset.languages, preset.levels)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match=r"'pwopsd' is not known; did you mean pw-opsd\?; known: pw-opsd, opsd"):
        find("pwopsd")


# -------------------------------------------------------------------------------------------------- the sets themselves


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        ("math500=math500.jsonl", 500),
        ("aime24=aime24.jsonl", 30),
        ("aime24=aime24_gopd.jsonl", 30),
        ("aime24=aime24_verl.parquet", 30),
        ("aime25=aime25_gopd.jsonl", 30),
        ("hmmt25_feb=hmmt25_feb.jsonl", 30),
        ("hmmt25_feb=hmmt25_feb_verl.parquet", 30),
        ("hmmt25_nov=hmmt25_nov.jsonl", 30),
        ("amc23=amc23.jsonl", 40),
        ("amc_aimo=amc_aimo83.jsonl", 83),
        ("minerva=minerva.jsonl", 272),
        ("kk_4to8=kk_public.jsonl", 200),
        ("kk_4to8=kk_logicrl_150.parquet", 150),
        ("tooluse=tooluse.jsonl", 68),
        ("livecodebench_v6=livecodebench_v6.jsonl", 65),  # of 100, those in the months
        ("humaneval_plus=humaneval_plus_early.jsonl", 164),
        ("mbpp_plus=mbpp_plus.jsonl", 200),
        ("polymath=standin_polymath_low.jsonl", 30),
        ("afrimgsm=standin_afrimgsm_swa.jsonl", 250),
    ],
)
def test_a_published_file_loads_whole_and_every_prompt_asks_once(wanted, count, shared):
    name, _, file = wanted.partition("=")
    languages = ["sw"] if BENCHMARKS[name].languages else []
    part = only(f"{name}={shared / 'data' / file}", languages=languages, levels=["low"] if name == "polymath" else [])
    problems = load(part)
    assert len(problems) == count
    published = BENCHMARKS[name].rows
    assert (note(part, problems) is None) == (count == published)
    for problem in problems:
        text = asked(part, problem)
        assert text.startswith(problem.problem)
        if BENCHMARKS[name].template == MATHS:
            assert text.count("\\boxed{}") == 1 and "step by step" not in problem.problem.lower()
        elif BENCHMARKS[name].reward == "knights":
            assert "\\boxed" in text


def test_all_languages_of_mgsm_load_from_one_file_and_from_their_tables(shared, tmp_path):
    path = shared / "data" / "mgsm.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for part in find_parts([f"mgsm={path}"]):
        own = [row for row in rows if row["language"] == part.language]
        table = "".join(f"{row['question']}\t{row['answer']}\n" for row in own)
        (tmp_path / f"mgsm_{part.language}.tsv").write_text(table, encoding="utf-8")
        problems = load(part)
        tabled = load(part._replace(path=str(tmp_path)))
        assert [(p.problem, p.answer) for p in problems] == [(row["question"], row["answer"]) for row in own]
        assert [(p.problem, p.answer) for p in tabled] == [(p.problem, p.answer) for p in problems]
        assert len(problems) == 250


@pytest.mark.parametrize("domain", DOMAINS)
def test_sdpos_rows_of_sciknoweval_have_the_order_that_our_split_gives(domain, shared, tmp_path):
    """Raw rows are few there, so ones of ours stand for them: as many as the domain has, and told apart by number."""
    rows = [json.loads(line) for line in (shared / "data" / "sciknoweval.jsonl").read_text().splitlines()]
    own = [row for row in rows if (row["_domain"], row["_split"]) == (domain, "test")]
    problems = load(only(f"sciknoweval_{domain}={write(tmp_path / 'test.json', own)}"))
    assert [p.answer for p in problems] == [row["answer"] for row in own]
    template = next(row for row in lines("sciknoweval.jsonl") if row["domain"].lower() == domain)
    size = {"biology": 500, "chemistry": 2100, "material": 935, "physics": 800}[domain]
    raw = [{**template, "question": f"number {i}"} for i in range(size)]
    part = only(f"sciknoweval_{domain}={write(tmp_path / 'raw.jsonl', raw)}")
    drawn = load(part)
    assert [p.id for p in drawn][: len(own)] == [str(row["idx"]) for row in own]
    assert note(part, drawn) is None  # as many as published


def test_raw_rows_of_sciknoweval_load_by_domain(shared, tmp_path):
    rows = [json.loads(line)["row"] for line in (shared / "data" / "sciknoweval_raw_l3.jsonl").read_text().splitlines()]
    path = tmp_path / "raw.jsonl"
    path.write_text("\n".join(rows))
    counts = {domain: len(load(only(f"sciknoweval_{domain}={path}"))) for domain in DOMAINS}
    assert counts == {"biology": 3, "chemistry": 3, "material": 2, "physics": 1}  # tenths of 25, 25, 20 and 5
