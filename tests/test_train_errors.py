"""Bad input to `python -m jopsd.train`: one clear error that names the fix, exit code 1, nothing compiled."""

import json
import shutil
from pathlib import Path

import jax
import pytest

from jopsd.config import load_config
from jopsd.models.families import FAMILIES
from jopsd.models.hf import read_config
from jopsd.models.lora import init_adapter
from jopsd.models.peft import save_adapter
from jopsd.report import header
from jopsd.setup import BUILTIN, make_task
from jopsd.train import main
from tests.runs import write_config, write_rows

GOOD = {"problem": "1+2", "solution": "1+2=3\n\\boxed{3}", "answer": "3"}


@pytest.fixture
def compilations():
    """Names of the functions XLA compiled during the test, as jax itself reports them."""
    compiled = []

    def note(event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(details)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield compiled
    jax.monitoring.unregister_event_duration_listener(note)


@pytest.fixture
def refuse(tmp_path, capsys, compilations):
    """Runs a config that must be refused and returns the error."""

    def run(*overrides: str, **changes) -> str:
        changes = {"train": {"batch_size": 8}} | changes
        config = write_config(tmp_path, **changes)
        assert main(["--config", str(config), *overrides]) == 1
        assert not compilations, "refused, but only after something was compiled"
        printed = capsys.readouterr().err
        assert printed.count("error: ") == 1 and "Traceback" not in printed
        return printed.partition("error: ")[2].strip()

    return run


@pytest.fixture
def model(tmp_path) -> Path:
    """A copy of the model that ships with the package, to spoil."""
    return Path(shutil.copytree(BUILTIN["builtin:sums"], tmp_path / "model"))


def edit(path: Path, **changes) -> None:
    """Sets keys of a JSON file; a value of `...` removes one."""
    tree = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in tree.items() if value is not ...}))


def test_an_unknown_key_or_a_wrong_type_is_refused_with_the_dotted_key(refuse):
    assert "unknown key `train.stpes`; did you mean `steps`?" in refuse("train.stpes=3")
    assert "`train.steps` = 'many'" in refuse("train.steps=many")


def test_a_missing_model_directory_is_refused_with_the_way_to_get_one(refuse):
    message = refuse("model.path=no/such/model")
    assert "model.path 'no/such/model' is not a directory" in message and "hf download" in message


def test_a_hub_id_that_cannot_be_fetched_is_refused_with_the_reason(refuse, monkeypatch):
    def offline(name, **_):
        raise OSError(f"no route to {name}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    message = refuse("model.path=owner/name")
    assert "'owner/name' is not a directory, nor could it be fetched from the hub (no route to owner/name)" in message


def test_a_hub_id_is_fetched_without_weights_first_so_that_a_bad_row_costs_no_download(refuse, monkeypatch, tmp_path):
    fetched = []

    def download(name, allow_patterns):
        fetched.append((name, allow_patterns))
        return BUILTIN["builtin:sums"]

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    write_rows(tmp_path / "bad.jsonl", [{"problem": "1+1"}])
    refuse("model.path=owner/name", f"data.source={tmp_path / 'bad.jsonl'}")
    assert [name for name, _ in fetched] == ["owner/name"]
    assert "*.json" in fetched[0][1] and "*.safetensors" not in fetched[0][1]


def test_a_missing_name_in_a_folder_that_is_here_is_not_taken_for_a_hub_id(refuse, monkeypatch, tmp_path):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    assert "model.path 'models/typo' is not a directory; give" in refuse("model.path=models/typo")


def test_an_attention_backend_that_this_device_lacks_is_refused(refuse):
    message = refuse("model.attention=splash")
    assert "model.attention: splash attention runs on a TPU, and this process computes on cpu; use auto" in message


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"rank": 8, "alpha": 16}, "rank is {2} there, {8} in the section lora"),
        ({"rank": 2, "alpha": 16}, "alpha / rank is 2.0 there, 8.0 in the section lora"),
        ({"rank": 2, "alpha": 4, "targets": ["q"]}, "targets is ['q', 'v'] there, ['q'] in the section lora"),
    ],
)
def test_an_adapter_to_start_from_must_be_what_the_section_describes(tmp_path, capsys, section, told):
    cfg = read_config(BUILTIN["builtin:sums"])
    adapter = init_adapter(cfg.projections, cfg.num_layers, 2, 4.0, jax.random.key(0), ("q", "v"))
    save_adapter(adapter, tmp_path / "adapter", FAMILIES["Qwen3ForCausalLM"].tensors)
    lora = {"targets": ["q", "v"], **section, "path": str(tmp_path / "adapter")}
    assert main(["--config", str(write_config(tmp_path, train={"batch_size": 8}, lora=lora))]) == 1
    assert f"lora.path {tmp_path / 'adapter'}: {told}" in capsys.readouterr().err


def test_a_checkpoint_of_another_architecture_is_refused_with_the_ones_we_know(refuse, model):
    edit(model / "config.json", architectures=["MambaForCausalLM"], model_type="mamba")
    message = refuse(model={"path": str(model)})
    assert "MambaForCausalLM" in message and "Qwen3ForCausalLM" in message and str(model / "config.json") in message


def test_a_directory_without_config_tokenizer_or_weights_is_refused_with_the_file(refuse, model):
    (model / "model.safetensors").unlink()
    assert "model.safetensors" in refuse(model={"path": str(model)})
    (model / "tokenizer.json").unlink()
    assert f"no tokenizer in {model}" in refuse(model={"path": str(model)})
    (model / "config.json").unlink()
    assert "config.json" in refuse(model={"path": str(model)})


def test_a_tokenizer_without_a_chat_template_is_refused_with_the_fix(refuse, model):
    edit(model / "tokenizer_config.json", chat_template=...)
    message = refuse(model={"path": str(model)})
    assert "has no chat template" in message and "instruct model" in message


def test_a_tokenizer_of_another_model_is_refused_with_the_token_outside_the_vocabulary(refuse, model):
    tree = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tree["model"]["vocab"]
    vocabulary["+"] = 128 + max(vocabulary.values())
    (model / "tokenizer.json").write_text(json.dumps(tree))
    message = refuse(model={"path": str(model)})
    assert f"token {vocabulary['+']} ('+')" in message and "vocabulary of 128" in message


def test_a_stop_token_outside_the_vocabulary_is_refused(refuse, model):
    edit(model / "generation_config.json", eos_token_id=[2, 4000])
    assert "token 4000" in refuse(model={"path": str(model)})


def test_lora_targets_that_the_model_lacks_are_refused_with_those_it_has(tmp_path, capsys):
    config = write_config(tmp_path, train={"batch_size": 8}, lora={"targets": ["q", "q_proj"]})
    assert main(["--config", str(config)]) == 1
    assert "q_proj is not one of q, k, v, o, gate, up, down; did you mean [q]?" in capsys.readouterr().err


@pytest.mark.parametrize("field", ["problem", "solution", "answer"])
@pytest.mark.parametrize("lack", ["absent", "empty", "a list"])
def test_a_row_without_a_needed_field_is_refused_with_its_number_and_field(refuse, tmp_path, field, lack):
    bad = {**GOOD, "solution": "1+2=3"}  # no box, from which the answer would be taken
    changed = {"absent": {}, "empty": {field: ""}, "a list": {field: ["1", "2"]}}[lack]
    bad = {k: v for k, v in bad.items() if k != field} | changed
    source = write_rows(tmp_path / "rows.jsonl", [GOOD, GOOD, bad, GOOD])
    learns = {"method": {"name": "grpo"}, "sampling": {"n": 2}} if field == "answer" else {}  # from rewards
    message = refuse(data={"source": str(source)}, **learns)
    assert f"{source}, row 2 (counted from 0), field '{field}'" in message


def test_an_evaluation_row_without_an_answer_is_refused_with_its_number(refuse, tmp_path):
    source = write_rows(tmp_path / "rows.jsonl", [GOOD, {"problem": "1+2"}])
    message = refuse(eval={"data": {"source": str(source)}})
    assert f"{source}, row 1 (counted from 0), field 'answer'" in message


def test_missing_broken_and_empty_data_are_refused_with_file_and_line(refuse, tmp_path):
    assert "no/such.jsonl" in refuse("data.source=no/such.jsonl")
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps(GOOD) + "\n{broken\n")
    assert f"{source}, line 2: broken JSON" in refuse(data={"source": str(source)})
    source.write_text("")
    assert f"no usable row in {source}" in refuse(data={"source": str(source)})
    source.write_text(json.dumps(GOOD) + "\n")
    assert "data.columns has no field 'probelm'" in refuse(data={"source": str(source), "columns": {"probelm": "x"}})
    message = refuse(data={"source": str(source), "columns": {"solution": "proof"}})
    assert "row 0 (counted from 0), field 'solution': column 'proof' is missing" in message


def test_a_prompt_over_the_limit_is_refused_with_the_problem_and_its_length(refuse, tmp_path):
    long = {**GOOD, "solution": "1+2=3\n" * 30 + "\\boxed{3}"}
    source = write_rows(tmp_path / "rows.jsonl", [GOOD, long])
    message = refuse(data={"source": str(source), "max_prompt_tokens": 100})
    assert f"{source}, problem 1 (id 1): its teacher prompt has " in message
    assert "over data.max_prompt_tokens 100" in message and "data.on_long_prompt: skip" in message


def test_nothing_left_after_skipping_is_refused_with_the_counts(refuse, tmp_path):
    source = write_rows(tmp_path / "rows.jsonl", [GOOD, GOOD])
    message = refuse(data={"source": str(source), "max_prompt_tokens": 5, "on_long_prompt": "skip"})
    assert "no problem is left" in message and "over 5 tokens': 2" in message


def test_a_mesh_or_batch_that_does_not_fit_the_devices_is_refused_with_the_keys(refuse):
    assert "does not fit 8 devices" in refuse("mesh.data=3")
    assert "mesh sizes must be positive" in refuse("mesh.fsdp=0")
    message = refuse("train.micro_batch_size=4")
    assert "4 rollouts per micro-batch do not split over 8 devices" in message and "train.micro_batch_size" in message


def test_a_directory_of_another_run_is_refused_and_left_as_it_is(refuse, tmp_path):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    saved = tmp_path / "run/config.yaml"
    saved.write_text("seed: 7\n")
    message = refuse()
    assert "holds a run with another config" in message and "set another output_dir" in message
    assert saved.read_text() == "seed: 7\n"


def test_an_output_directory_that_cannot_be_written_is_refused(refuse, tmp_path):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refuse(output_dir=str(tmp_path / "file" / "run"))


# --- methods, contexts and teachers that do not fit each other or the data

PLAIN = {"name": "plain", "student_template": "Problem: {problem}", "instruction": ""}
CROSSLINGUAL = {"name": "crosslingual"}


@pytest.mark.parametrize("name", ["grpo", "rlsd", "srpo"])
def test_a_group_of_one_is_refused_for_a_method_that_compares(refuse, name):
    assert f"method {name} compares rollouts of one prompt: set sampling.n to 2 or more" in refuse(
        method={"name": name}
    )


def test_a_context_without_the_readings_of_a_method_is_refused_with_one_that_has_them(refuse):
    message = refuse(method={"name": "rlcsd"}, sampling={"n": 4})
    assert "method rlcsd needs the view 'negative', which context solution does not give" in message
    assert "context.name: hints" in message
    message = refuse(method={"name": "sdpo"}, sampling={"n": 4}, context={"name": "hints"})
    assert "method sdpo reads no wrong hints" in message and "context.negatives to 0" in message


@pytest.mark.parametrize("context", ["hints", "peers"])
def test_a_group_of_one_is_refused_for_a_context_that_shows_peers(refuse, context):
    options = {"feedback": False} if context == "peers" else {"negatives": 0}
    changes = {"method": {"name": "sdpo"}, "context": {"name": context, **options}}
    assert f"context {context} shows the teacher other rollouts" in refuse(**changes)


def test_a_context_that_tells_right_from_wrong_is_refused_without_a_reward(refuse):
    message = refuse(
        method={"name": "sdpo"}, context={"name": "hints", "negatives": 0}, sampling={"n": 4}, reward=None, eval=None
    )
    assert "context hints tells right rollouts from wrong ones; remove reward: null" in message


def test_another_model_is_asked_for_where_the_teacher_reads_what_the_student_reads(refuse):
    message = refuse(method={"name": "opd"}, context=PLAIN)
    assert "method opd: with context plain" in message and "teacher.kind: external and teacher.path" in message
    assert "teacher.kind external needs teacher.path" in refuse(teacher={"kind": "external"})


def test_a_key_of_another_kind_of_teacher_is_refused(refuse):
    assert "teacher.decay belongs to kind ema, not to fixed" in refuse(teacher={"decay": 0.9})
    assert "`teacher.every` = 0" in refuse(teacher={"kind": "snapshot", "every": 0})


def test_a_teacher_of_another_vocabulary_is_refused(refuse, model):
    tree = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tree["model"]["vocab"]
    vocabulary["+"], vocabulary["-"] = vocabulary["-"], vocabulary["+"]
    (model / "tokenizer.json").write_text(json.dumps(tree))
    message = refuse(method={"name": "opd"}, context=PLAIN, teacher={"kind": "external", "path": str(model)})
    assert f"teacher.path '{model}' has another vocabulary than the student (token '+' is another)" in message


def test_an_unknown_or_missing_teacher_label_is_refused_with_the_row_and_the_known_ones(refuse, tmp_path):
    teacher = {"kind": "external", "models": {"math": "builtin:sums", "code": "builtin:sums_expert"}}
    changes = {"method": {"name": "opd"}, "context": PLAIN, "teacher": teacher}
    good = {**GOOD, "extra_info": {"opd_teacher": "math"}}
    source = write_rows(tmp_path / "rows.jsonl", [good, {**GOOD, "extra_info": {"opd_teacher": "physics"}}])
    message = refuse(**changes, data={"source": str(source)})
    assert "problem 1 (id 1): method opd finds no teacher 'physics'; teacher.models has ['code', 'math']" in message
    source = write_rows(tmp_path / "rows.jsonl", [good, good, GOOD])
    message = refuse(**changes, data={"source": str(source)})
    assert "method opd" in message and "row 2 (counted from 0), field 'teacher'" in message


def test_a_row_without_the_field_of_a_context_is_refused_with_method_context_field_and_row(refuse, tmp_path):
    translated = {**GOOD, "problem_sw": "moja jumlisha mbili"}
    source = write_rows(tmp_path / "rows.jsonl", [translated, GOOD])
    message = refuse(
        context=CROSSLINGUAL, data={"source": str(source), "columns": {"problem": "problem_sw"}}, eval=None
    )
    assert "method opsd, context crosslingual: " in message
    assert "row 1 (counted from 0), field 'problem': column 'problem_sw' is missing" in message
    source = write_rows(tmp_path / "rows.jsonl", [GOOD])
    message = refuse(context={"name": "critique"}, data={"source": str(source)})
    assert "method opsd, context critique: " in message and "field 'attempt'" in message


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ({"name": "opsd", "alpha": 1.5}, "`method.alpha` = 1.5"),
        ({"name": "opsd", "loss": "topk", "top_k": 0}, "`method.top_k` = 0"),
        ({"name": "opsd", "entry_clip": 0}, "`method.entry_clip` = 0"),
        ({"name": "sdpo", "is_clip": -1}, "`method.is_clip` = -1"),
        ({"name": "rlsd", "lam": 1.2}, "`method.lam` = 1.2"),
        ({"name": "rlcsd", "tau": 0}, "`method.tau` = 0"),
        ({"name": "opd", "lam": -0.5}, "`method.lam` = -0.5"),
        ({"name": "grpo", "correction": {"threshold": [2.0, 0.5]}}, "correction.threshold [2.0, 0.5] must be"),
        ({"name": "opsd", "correction": {"mode": "bypass"}}, "correction.mode bypass does not apply to opsd"),
        ({"name": "sft", "correction": {}}, "correction.mode weights does not apply to sft"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_key(refuse, method, told):
    assert told in refuse(method=method)


SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"


@pytest.mark.parametrize(
    ("change", "first", "told"),
    [
        (lambda given: SYSTEM + given, 1, "fails on the turns system, user: no system here"),
        (lambda given: "{% for t in tools %}{{ t }}{% endfor %}" + given, 0, "fails on the turns user"),
        (lambda given: "{% for m in messages %}", 0, "fails on the turns user"),
        (lambda given: given.replace("in messages", "in messages[-1:]"), 1, "leaves out the system's turn 'Be brief.'"),
        (lambda given: given.replace("message.content", "'Q'"), 0, "leaves out the user's turn 'Problem: 1+2'"),
    ],
)
def test_a_chat_template_that_cannot_show_a_row_is_refused_with_model_view_and_row(
    refuse, model, tmp_path, change, first, told
):
    path = model / "tokenizer_config.json"
    edit(path, chat_template=change(json.loads(path.read_text())["chat_template"]))
    write_rows(tmp_path / "rows.jsonl", [GOOD, {**GOOD, "system": "Be brief."}, {**GOOD, "system": "Be brief."}])
    message = refuse(f"model.path={model}", f"data.source={tmp_path / 'rows.jsonl'}", "eval=null")
    assert "\n" not in message and str(model) in message and "student prompt" in message
    assert f"{tmp_path / 'rows.jsonl'}, row {first} (counted from 0)" in message and told in message


def test_rows_that_a_template_cannot_show_are_left_out_where_asked(refuse, model, tmp_path):
    path = model / "tokenizer_config.json"
    edit(path, chat_template=SYSTEM + json.loads(path.read_text())["chat_template"])
    write_rows(tmp_path / "rows.jsonl", [{**GOOD, "system": "Be brief."}] * 2)
    message = refuse(f"model.path={model}", f"data.source={tmp_path / 'rows.jsonl'}", "data.on_bad_row=skip")
    assert "no problem is left after skipping {'student prompt: chat template fails': 2}" in message


def test_a_prompt_that_does_not_open_the_assistants_turn_is_refused(refuse, model):
    path = model / "tokenizer_config.json"
    edit(path, chat_template=json.loads(path.read_text())["chat_template"].partition("{%- if add_gen")[0])
    message = refuse(f"model.path={model}")
    assert str(model) in message and "ignores add_generation_prompt" in message and "<|im_start|>assistant" in message


def test_a_teacher_that_reads_the_students_prompt_is_refused_with_the_row(refuse):
    message = refuse("context.teacher_template='Problem: {problem}'")
    assert "sums, row 0 (counted from 0), teacher prompt: it is the student's prompt" in message


def test_prompts_that_pass_the_models_context_with_their_completion_are_told_of(tmp_path, model):
    def told(size: int, **stretched) -> list[str]:
        edit(model / "config.json", max_position_embeddings=size, rope_scaling=stretched or None)
        return make_task(load_config(write_config(tmp_path, model={"path": str(model)}))).notes

    student, teacher, held_out = told(60)
    assert "data: 10 student prompts" in student and "row 0 (counted from 0), has 21 tokens" in student
    assert "44 of a completion (sampling.max_new_tokens) pass 60" in student and "max_position_embeddings" in student
    assert "teacher prompts" in teacher and "eval.data: 4 student prompts" in held_out and "eval.max_new" in held_out
    assert not told(512) and not told(60, rope_type="yarn", factor=4.0)


def test_a_method_that_learns_from_no_reward_asks_for_no_answers(tmp_path):
    rows = [{"problem": "1+2", "solution": "1+2=3"}, {**GOOD, "answer": 0.1 + 0.2}, {**GOOD, "problem": "1<|im_end|>"}]
    config = write_config(tmp_path, data={"source": str(write_rows(tmp_path / "a.jsonl", rows)), "split": "test"})
    task = make_task(load_config(config))
    assert [item.graded for item in task.train] == [False, True, True]
    split, lacking, noise, control = task.notes
    assert "split 'test' changes nothing" in split
    assert "data: 1 of 3 rows have no answer" in lacking and "row 0" in lacking and "reward: null" in lacking
    assert "data: 1 rows have answers with the rounding noise of a float; the first is row 1" in noise
    assert "data: 1 rows have control tokens spelled out, which are read as text; the first is row 2" in control
    assert all(note in header(load_config(config), task).splitlines() for note in task.notes)


def test_rows_whose_solution_is_missing_are_not_blamed_for_the_answer(refuse, tmp_path):
    source = write_rows(tmp_path / "rows.jsonl", [{"problem": "1+2", "solution": ""}])
    message = refuse(data={"source": str(source)}, eval=None)
    assert "field 'solution': column 'solution' is empty" in message


def test_conversations_are_read_whole_by_student_and_teacher(tmp_path):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "x is 7"},
        {"role": "assistant", "content": "Noted."},
        {"role": "user", "content": "x+1"},
        {"role": "assistant", "content": "7+1=8\n\\boxed{8}"},
    ]
    source = write_rows(tmp_path / "rows.jsonl", [{"messages": turns}] * 4)
    (item, *_) = (task := make_task(load_config(write_config(tmp_path, data={"source": str(source)})))).train
    read = {view: task.tokenizer.decode(ids) for view, ids in item.prompts.items()}
    before = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nx is 7<|im_end|>\n"
        "<|im_start|>assistant\nNoted.<|im_end|>\n<|im_start|>user\nProblem: x+1"
    )
    after = "<|im_end|>\n<|im_start|>assistant\n"
    assert read["student"] == before + after
    assert read["teacher"] == before + "\nReference Solution: 7+1=8\n\\boxed{8}" + after
    assert (item.problem.answer, item.graded) == ("8", True)
