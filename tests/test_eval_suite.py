"""`python -m eval` on benchmarks, seeds, checkpoints and files of generations, in one process on the embedded model."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from eval.__main__ import main
from eval.options import Options
from eval.records import GENERATIONS, RESULTS
from eval.run import run
from tests.runs import write_config
from tests.sandboxed import needs_sandbox

ROWS = Path(__file__).parent / "benchmark_rows"
QUIET = lambda text: None  # noqa: E731


def read(folder: Path) -> dict:
    return json.loads((folder / RESULTS).read_text())


def write_rows(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def sums(path: Path, count: int = 3) -> Path:
    """Rows in the columns of AMC 23."""
    rows = [{"id": i, "question": f"1{i}+2+3+4", "answer": f"{19 + i}.0", "url": ""} for i in range(count)]
    return write_rows(path, *rows)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> tuple[Options, list[Path]]:
    """Two benchmarks of three sums, two seeds, two samples."""
    folder = tmp_path_factory.mktemp("suite")
    data = sums(folder / "rows.jsonl")
    options = Options(
        output=folder / "out",
        model="builtin:sums",
        benchmarks=(f"amc23={data}", f"math500={data}"),
        template="Problem: {problem}",
        samples=2,
        seeds=(0, 1),
        max_new_tokens=44,
        top_p=1.0,
        slots=4,
        backend="loop",
    )
    return options, run(options, QUIET)


def test_each_benchmark_and_seed_has_a_folder_and_no_seed_repeats_anothers_draws(evaluated):
    options, folders = evaluated
    names = ["amc23/seed_0", "amc23/seed_1", "math500/seed_0", "math500/seed_1"]
    assert [str(folder.relative_to(options.output)) for folder in folders] == names
    texts = [[g["full_generation"] for r in read(f)["results"] for g in r["generations"]] for f in folders]
    assert texts[0] != texts[1]
    # The same problems under another name are the same draws: rows and seeds decide, and nothing else.
    assert texts[0] == texts[2]
    assert read(folders[0])["dataset"] == "amc23"
    assert read(folders[0])["settings"]["benchmark"] == "amc23"


def test_running_again_gives_the_same_files_and_recompute_the_same_report(evaluated, capsys):
    options, folders = evaluated
    before = {name: (folders[0] / name).read_bytes() for name in (GENERATIONS, RESULTS)}
    assert run(options, QUIET) == folders
    other = replace(options, output=options.output.parent / "again")
    repeated = run(other, QUIET)
    assert {name: (repeated[0] / name).read_bytes() for name in before} == before
    (folders[0] / RESULTS).unlink()
    assert main(["recompute", str(options.output)]) == 0
    assert "amc23" in capsys.readouterr().out
    assert {name: (folders[0] / name).read_bytes() for name in before} == before


def test_recompute_names_an_unfinished_evaluation_and_completes_the_others(evaluated, capsys, tmp_path):
    import shutil

    shutil.copytree(evaluated[0].output, tmp_path / "tree")
    path = tmp_path / "tree" / "amc23" / "seed_1" / GENERATIONS
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert main(["recompute", str(tmp_path / "tree")]) == 0
    assert "has 5 of 6 samples" in capsys.readouterr().err
    assert main(["recompute", str(tmp_path / "nothing")]) == 1
    assert "holds no evaluation" in capsys.readouterr().err


def test_what_was_drawn_here_is_graded_alike_as_a_file_of_generations(evaluated, tmp_path):
    options, folders = evaluated
    data = options.benchmarks[0].partition("=")[2]
    graded = Options(output=tmp_path / "out", generations=folders[0] / GENERATIONS, benchmarks=(f"amc23={data}",))
    (folder,) = run(graded, QUIET)
    drawn, again = read(folders[0]), read(folder)
    for key in ("average_at_n", "pass_at_n", "majority_vote_at_n", "format_rate", "truncation_rate", "dataset"):
        assert again[key] == drawn[key], key
    assert [r["generations"][1]["correct"] for r in again["results"]] == [
        r["generations"][1]["correct"] for r in drawn["results"]
    ]
    assert again["temperature"] is None and again["mean_tokens"] is None


def test_a_file_with_problems_and_answers_needs_no_data(tmp_path):
    rows = write_rows(
        tmp_path / "rows.jsonl",
        {"question": "1+1", "gt": "2", "responses": [r"\boxed{2}", r"\boxed{3}", "none"]},
        {"question": "1+2", "gt": "3", "responses": [r"\boxed{3}", r"\boxed{3.0}", r"\boxed{\frac{6}{2}}"]},
    )
    (folder,) = run(Options(output=tmp_path / "out", generations=rows), QUIET)
    found = read(folder)
    assert (found["val_n"], found["average_at_n"], found["formatted_count"]) == (3, 4, 5)
    assert [r["majority_vote_correct"] for r in found["results"]] == [True, True]
    (folder,) = run(Options(output=tmp_path / "two", generations=rows, samples=2), QUIET)
    assert read(folder)["average_at_n"] == 3
    # A results.json can be graded again, whoever wrote it.
    (folder,) = run(Options(output=tmp_path / "again", generations=tmp_path / "out" / RESULTS), QUIET)
    assert read(folder)["average_at_n"] == 4


def test_generations_that_do_not_fit_are_named(tmp_path, capsys):
    data = sums(tmp_path / "rows.jsonl")

    def error(*rows: dict, more: tuple = ()) -> str:
        path = write_rows(tmp_path / "made.jsonl", *rows)
        assert main(["--generations", str(path), "--output", str(tmp_path / "o"), *map(str, more)]) == 1
        return capsys.readouterr().err

    benchmark = ("--benchmark", f"amc23={data}")
    assert "row 0 (counted from 0): no problem of amc23 has its id '9'" in error(
        {"id": 9, "completion": "x"}, more=benchmark
    )
    assert "no problem of amc23 has its text" in error({"question": "9+9", "completion": "x"}, more=benchmark)
    assert "row 0 (counted from 0) has no generation" in error({"id": 0, "words": "x"}, more=benchmark)
    short = error({"id": 0, "responses": ["a", "b"]}, {"id": 1, "responses": ["a"]}, more=benchmark)
    assert "1 of 3 problems have no generation, such as '2' (row 2 of" in short and "--samples" not in short
    made = [{"id": number, "responses": ["a", "b"][: 2 - number % 2]} for number in range(3)]
    short = error(*made, more=benchmark)
    assert "problem '1' has 1 generations, not 2" in short and "give --samples 1" in short
    assert "field 'answer'" in error({"problem": "1+1", "completion": "x"})
    assert main(["--generations", str(tmp_path / "none.jsonl"), "--output", str(tmp_path / "o")]) == 1
    assert "none.jsonl does not exist" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_generations_are_grouped_by_problem_with_ids_and_without(tmp_path):
    box = r"\boxed{%d}"
    one, other = {"problem": "1+1", "answer": "2"}, {"problem": "2+2", "answer": "4"}

    def graded(name, *rows):
        options = Options(output=tmp_path / name, generations=write_rows(tmp_path / f"{name}.jsonl", *rows))
        said = []
        found = read(run(options, said.append)[0])
        texts = [[g["full_generation"] for g in r["generations"]] for r in found["results"]]
        notes = [text for text in said if "repeat the text" in text]
        return (found["num_problems"], found["val_n"], found["average_at_n"]), texts, notes

    rows = [
        one | {"response": box % 2},
        other | {"response": box % 5},
        one | {"response": "no"},
        other | {"text": box % 4},
    ]
    texts = [[box % 2, "no"], [box % 5, box % 4]]
    assert graded("without", *rows) == ((2, 2, 2), texts, [])
    ids = [row | {"id": row["problem"]} for row in rows]
    assert graded("with", *ids) == ((2, 2, 2), texts, [])
    bare = [*ids[:2], {"id": "1+1", "response": "no"}, {"id": "2+2", "response": box % 4}]
    assert graded("bare", *bare) == ((2, 2, 2), texts, [])
    apart = [row | {"id": number} for number, row in enumerate(rows)]
    counts, _, said = graded("apart", *apart)
    assert counts == (4, 1, 2) and "2 problems repeat the text of another" in said[0]


@pytest.mark.parametrize("name", ["id", "problem_id", "unique_id", "task_id"])
def test_one_id_for_two_problems_and_one_problem_with_two_answers_are_refused(tmp_path, capsys, name):
    def error(*rows):
        path = write_rows(tmp_path / "made.jsonl", *rows)
        assert main(["--generations", str(path), "--output", str(tmp_path / "o")]) == 1
        return capsys.readouterr().err

    first = {name: 0, "problem": "1+1", "answer": "2", "response": "a"}
    told = error(first, {name: 0, "problem": "2+2", "answer": "4", "response": "b"})
    assert "row 1 (counted from 0): its id '0' is that of row 0, which holds another problem" in told
    told = error(first, first | {"answer": "3"})
    assert "its id '0' is that of row 0, with another answer: '3' here, '2' there" in told
    nameless = {key: value for key, value in first.items() if key != name}
    assert "its text is that of row 0, with another answer" in error(nameless, nameless | {"answer": "3"})


def test_a_row_of_the_data_that_is_there_twice_is_named(tmp_path, capsys):
    twice = [{"id": 5, "problem": "1+1", "answer": "2"}, {"id": 6, "problem": "1+1", "answer": "2"}]
    data = write_rows(tmp_path / "data.jsonl", *twice)

    def evaluate(*rows):
        path = write_rows(tmp_path / "made.jsonl", *rows)
        code = main(["--generations", str(path), "--data", str(data), "--output", str(tmp_path / "o")])
        return code, capsys.readouterr().err

    code, told = evaluate({"problem": "1+1", "response": "a"})
    assert code == 1 and "there 2 times in" in told and "in rows 0 and 1" in told
    assert evaluate(*({"id": row["id"], "problem": "1+1", "response": "a"} for row in twice))[0] == 0
    data = write_rows(tmp_path / "data.jsonl", twice[0], twice[1] | {"id": 5, "problem": "2+2"})
    code, told = evaluate({"id": 5, "response": "a"})
    assert code == 1 and "several problems of" in told and "have its id '5'" in told


def test_a_prompt_that_fills_the_context_is_reported_and_counts_as_wrong(tmp_path):
    rows = [{"problem": "1+2+3+4", "answer": "10"}, {"problem": "1+" * 60 + "1", "answer": "61"}]
    data = write_rows(tmp_path / "rows.jsonl", *rows)
    said: list[str] = []
    common = {"template": "Problem: {problem}", "samples": 2, "max_new_tokens": 44, "backend": "loop", "slots": 2}
    options = Options(output=tmp_path / "out", data=str(data), model="builtin:sums", max_length=90, **common)
    (folder,) = run(options, said.append)
    assert any("problem '1': its prompt of" in text and "leaves no room" in text for text in said)
    found = read(folder)
    assert found["prompts_too_long"] == ["1"]
    assert found["total_solutions"] == 4
    assert [g["finish"] for g in found["results"][1]["generations"]] == ["prompt_too_long"] * 2
    assert not any(g["correct"] for g in found["results"][1]["generations"])
    assert all(g["tokens"] > 0 for g in found["results"][0]["generations"])


def test_an_unknown_benchmark_preset_or_language_lists_the_known_ones(tmp_path, capsys):
    model = ["--model", "builtin:sums", "--samples", "1", "--output", str(tmp_path / "out")]
    cases = {
        "known: math500, aime24": [*model, "--benchmark", "mth500"],
        "known: pw-opsd, opsd": [*model, "--benchmark", "aime24", "--preset", "pwopsd"],
        "--language 'xx' is not known": [*model, "--benchmark", "mgsm", "--language", "xx"],
        "no benchmark that is asked for has languages": [*model, "--benchmark", "aime24", "--language", "sw"],
        "give --benchmark NAME, --data SOURCE": model,
        "give --data or --benchmark, not both": [*model, "--benchmark", "aime24", "--data", "sums:test"],
        "--seed has one twice": [*model, "--data", "sums:test", "--seed", "1", "1"],
        "--server ADDRESS and --backend grpc or openai go together": [*model, "--data", "sums", "--backend", "grpc"],
        "is not one of jetstream, loop, grpc, openai": [*model, "--data", "sums:test", "--backend", "vllm"],
    }
    for part, argv in cases.items():
        assert main(argv) == 1
        assert part in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_benchmarks_and_presets_are_listed(capsys):
    assert main(["list"]) == 0
    told = capsys.readouterr().out
    assert "livecodebench_v6" in told and "pw-opsd" in told


EVERY = [
    *(f"{name}={ROWS / name}.jsonl" for name in "math500 aime24 aime25 hmmt25_feb hmmt25_nov amc23 amc_aimo".split()),
    *(f"{name}={ROWS / name}.jsonl" for name in "minerva amo_bench polymath humaneval_plus mbpp_plus".split()),
    f"mgsm={ROWS / 'mgsm'}",
    f"afrimgsm={ROWS / 'afrimgsm'}",
    f"sciknoweval_biology={ROWS / 'sciknoweval'}",
    f"tooluse={ROWS / 'tooluse'}",
    f"livecodebench_v6={ROWS / 'livecodebench'}",
    *(f"{name}" for name in ("kk_4to8", "kk_9", "kk_10", "kk_11")),
]


@needs_sandbox
def test_a_tiny_model_goes_through_every_benchmark(tmp_path, capsys):
    from tests.test_real_checkpoint import make_model, make_tokenizer

    texts = [path.read_text(encoding="utf-8") for path in sorted(ROWS.glob("*.jsonl"))]
    make_model(tmp_path / "model", make_tokenizer(texts, 400), "Qwen3", 32, 1)
    asked = ["--benchmark", *EVERY, "--language", "sw", "--level", "low", "--limit", "1", "--samples", "2"]
    drawn = ["--max-new-tokens", "4", "--max-length", "4096", "--slots", "8", "--backend", "loop"]
    output = tmp_path / "out"
    assert main(["--model", str(tmp_path / "model"), *asked, *drawn, "--output", str(output)]) == 0
    told = capsys.readouterr().out
    done = sorted(path.parent.parent.name for path in output.rglob(RESULTS))
    assert len(done) == len(EVERY) == 21
    for name in done:
        assert name in told
        found = read(output / name / "seed_0")
        assert found["total_solutions"] == 2 and found["settings"]["benchmark"] == name
    keys = list(read(output / "polymath-sw-low" / "seed_0"))
    assert keys[:4] == ["base_model", "dataset", "language", "polymath_split"]
    keys = list(read(output / "afrimgsm-swa" / "seed_0"))
    assert keys[:6] == ["base_model", "dataset", "dataset_name", "dataset_config", "language", "afrimgsm_split"]
    assert "prompt" in read(output / "polymath-sw-low" / "seed_0")["results"][0]


@pytest.mark.slow
def test_a_sweep_evaluates_the_base_and_the_checkpoints_of_a_run(tmp_path, capsys):
    config = write_config(tmp_path, "run", train={"steps": 3, "batch_size": 8}, eval={"every": 3})
    from jopsd.config import load_config
    from jopsd.trainer import train

    train(load_config(config))
    data = sums(tmp_path / "rows.jsonl", 2)
    drawn = [
        "--samples",
        "1",
        "--max-new-tokens",
        "44",
        "--slots",
        "2",
        "--top-p",
        "1",
        "--template",
        "Problem: {problem}",
    ]
    swept = ["--checkpoints", str(tmp_path / "run"), "--every", "2", "--benchmark", f"amc23={data}", *drawn]
    assert main([*swept, "--output", str(tmp_path / "sweep")]) == 0
    assert "step 3" in capsys.readouterr().out
    steps = sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert steps == ["step_000000", "step_000002", "step_000003"]
    # The base is the model that the run started from, and a checkpoint is what it is alone.
    pairs = {"step_000000": ["--model", "builtin:sums"], "step_000003": ["--checkpoint", f"{tmp_path / 'run'}:3"]}
    for step, who in pairs.items():
        assert main([*who, "--benchmark", f"amc23={data}", *drawn, "--output", str(tmp_path / step)]) == 0
        alone = (tmp_path / step / "amc23" / "seed_0" / GENERATIONS).read_bytes()
        assert alone == (tmp_path / "sweep" / step / "amc23" / "seed_0" / GENERATIONS).read_bytes()
    capsys.readouterr()
    assert main([*swept[:2], "--benchmark", "aime24", "--samples", "1", "--checkpoint", "x", "--output", "y"]) == 1
    assert "give --checkpoint or --checkpoints, not both" in capsys.readouterr().err


def test_samples_of_a_server_are_those_of_this_process(evaluated, tmp_path):
    from jopsd.sampling import server
    from jopsd.serve import _parser, load

    options, folders = evaluated
    argv = ["--model", "builtin:sums", "--max-length", "128", "--slots", "4", "--backend", "loop"]
    sampler, name, *_ = load(_parser().parse_args(argv))
    running, port = server.start(sampler, server.describe(sampler, name), 0)
    try:
        remote = replace(options, output=tmp_path, backend="grpc", server=f"127.0.0.1:{port}", seeds=(1,))
        found = run(remote, QUIET)[0]
    finally:
        sampler.close()
        running.stop(grace=1.0).wait()
    texts = lambda folder: [g["full_generation"] for r in read(folder)["results"] for g in r["generations"]]  # noqa: E731
    assert texts(found) == texts(folders[1])


def test_problems_that_share_an_id_are_told_apart(tmp_path):
    same_id = {"id": 7, "url": ""}
    rows = [{**same_id, "question": f"1{i}+2+3+4", "answer": 19.0 + i} for i in range(3)]
    made = [{"question": row["question"], "responses": [f"\\boxed{{{row['answer']}}}"]} for row in rows]
    data = write_rows(tmp_path / "rows.jsonl", *rows)
    answers = write_rows(tmp_path / "made.jsonl", *made)
    (folder,) = run(Options(output=tmp_path / "o", generations=answers, benchmarks=(f"amc_aimo={data}",)), QUIET)
    found = read(folder)
    assert [r["problem_id"] for r in found["results"]] == ["7", "7#2", "7#3"]
    assert found["average_at_n"] == 3
    assert main(["compare", f"a={folder}", f"b={folder / RESULTS}", "--baseline", "a"]) == 0


def test_samples_of_two_servers_with_other_weights_are_not_mixed(tmp_path):
    from eval.records import claim_server
    from jopsd.sampling.wire import Description

    first = Description("a", 128, 64, 4, 8, 0, "one")
    for again in range(2):
        claim_server(tmp_path, first._replace(slots=4 + again))
    with pytest.raises(ValueError, match=r"other weights \(a\) than the server serves now \(b\)"):
        claim_server(tmp_path, first._replace(model="b", fingerprint="two"))
    claim_server(tmp_path / "none", None)


def test_a_benchmark_of_programs_says_that_it_needs_a_sandbox(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jopsd.rewards.code_pool.LAYERS", {"rlimits": "limits"})
    rows = [json.loads(line) for line in (ROWS / "humaneval_plus.jsonl").read_text().splitlines()]
    made = write_rows(tmp_path / "made.jsonl", *({"task_id": row["task_id"], "completion": "x"} for row in rows))
    benchmark = ["--benchmark", f"humaneval_plus={ROWS / 'humaneval_plus.jsonl'}"]
    assert main(["--generations", str(made), *benchmark, "--output", str(tmp_path / "o")]) == 1
    told = capsys.readouterr().err
    assert "humaneval_plus runs programs that a model writes: this host cannot keep programs away" in told
    assert "--unsafe" in told and not (tmp_path / "o").exists()
