"""Tokenizers as their files say, completions as the model wrote them, and the ends of turns of several templates."""

import json

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from jopsd.models.tokenizer import (
    PROBES,
    completion_text,
    eos_ids,
    losses,
    read_tokenizer,
    solution_ids,
    stop_tokens,
    text_ids,
)
from jopsd.models.turns import CLOCK, turn_end
from tests.templates import CHATML, ENDS, GLM, LLAMA3, MISTRAL, QWEN3, SPECIALS, byte_level, saved

THREES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def trained(**parts) -> Tokenizer:
    """A byte-level BPE that keeps digits together by threes, with other parts as given."""
    core = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(THREES), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    for name, part in parts.items():
        setattr(core, name, part)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False, initial_alphabet=alphabet)
    core.train_from_iterator([*PROBES.values(), "12345 100 200"] * 20, trainer)
    return core


def folder_of(path, core: Tokenizer, **changes):
    """A model directory with this tokenizer.json."""
    path.mkdir()
    core.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>", **changes}))
    return path


@pytest.mark.parametrize(
    ("kind", "name"), [("llama", "LlamaTokenizerFast"), ("qwen2", "PreTrainedTokenizerFast"), ("qwen3", None)]
)
def test_tokens_are_those_of_tokenizer_json_whatever_class_the_config_names(tmp_path, kind, name):
    core = trained()
    folder = folder_of(tmp_path / "m", core, tokenizer_class=name)
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    tokenizer, notes = read_tokenizer(folder)
    for text in PROBES.values():
        assert tokenizer.encode(text, add_special_tokens=False) == core.encode(text, add_special_tokens=False).ids
    assert all("splits" in note and "tokenizer.json is used" in note for note in notes)
    if kind == "qwen2":  # whose own class splits every digit
        assert len(notes) == 1 and "Qwen2Tokenizer" in notes[0] and str(folder) in notes[0]


def test_decoding_removes_no_spaces_although_the_config_asks_for_it(tmp_path):
    folder = folder_of(tmp_path / "m", trained(), clean_up_tokenization_spaces=True)
    tokenizer, notes = read_tokenizer(folder)
    for text in ("' '.join(x) , y . n't", *PROBES.values()):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert completion_text(tokenizer, ids) == tokenizer.decode(ids, skip_special_tokens=True) == text
    assert not notes and not losses(tokenizer)


def test_a_tokenizer_that_loses_text_is_named_with_what_it_loses(tmp_path):
    folder = folder_of(tmp_path / "m", trained(normalizer=normalizers.Lowercase()))
    (note,) = read_tokenizer(folder)[1]
    assert str(folder) in note and "capitals" in note and 'becomes "let x be ab' in note and "\n" not in note
    assert "digits" not in note


def test_think_tags_that_are_special_tokens_stay_in_the_text():
    tokenizer = byte_level(QWEN3, special_thinking=True)
    written = "<think>\nhm\n</think>\n\\boxed{3}"
    ids = tokenizer.encode(written, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) != written
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert completion_text(tokenizer, [*ids, end], (end,)) == written
    assert completion_text(tokenizer, [*ids, tokenizer.eos_token_id], (end,)) == written


@pytest.mark.parametrize("template", ENDS)
def test_the_end_of_the_assistants_turn_is_found_and_ends_completions(tmp_path, template):
    tokenizer = byte_level(template)
    end = tokenizer.convert_tokens_to_ids(ENDS[template])
    assert turn_end(tokenizer)[-1] == end
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 1}))
    stops = stop_tokens(tmp_path, tokenizer)
    assert stops.ids == eos_ids(tmp_path, tokenizer) == tuple(dict.fromkeys((end, 1)))
    assert stops.note == "" if template == MISTRAL else f"{ENDS[template]} ({end})" in stops.note
    assert template == MISTRAL or "config.json names <eos> (1)" in stops.note


def test_an_end_of_turn_that_the_files_name_too_comes_first_and_nothing_is_said(tmp_path):
    tokenizer = byte_level(LLAMA3)
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7, end]}))
    assert stop_tokens(tmp_path, tokenizer) == ((end, 1, 7), "")


def test_a_template_without_a_control_token_leaves_the_end_to_the_files(tmp_path):
    tokenizer = byte_level("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n\n{% endfor %}")
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 1}))
    assert turn_end(tokenizer) == () and stop_tokens(tmp_path, tokenizer) == ((1,), "")
    assert solution_ids(tokenizer, "2", 1) == [*tokenizer.encode("2", add_special_tokens=False), 1]


@pytest.mark.parametrize("template", [CHATML, LLAMA3, GLM])
def test_a_solution_ends_with_the_end_of_its_turn(template):
    tokenizer = byte_level(template)
    text = tokenizer.decode(solution_ids(tokenizer, "\\boxed{2}", 1))
    assert text == "\\boxed{2}" + ENDS[template]


def test_control_tokens_that_a_text_spells_out_are_text_and_think_tags_are_not():
    tokenizer = byte_level(QWEN3, special_thinking=True)
    text = "a<|im_end|>\n<|im_start|>assistant <eos> <think>b</think>"
    ids = text_ids(tokenizer, text)
    assert tokenizer.decode(ids) == text
    control = tokenizer.convert_tokens_to_ids([*SPECIALS[QWEN3], "<bos>", "<eos>"])
    assert not set(ids) & set(control)
    assert set(tokenizer.convert_tokens_to_ids(["<think>", "</think>"])) <= set(ids)


def test_a_control_token_that_is_not_marked_special_is_known_by_the_template():
    tokenizer = byte_level(CHATML, specials=())
    tokenizer.add_tokens(list(SPECIALS[CHATML]))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert turn_end(tokenizer)[-1] == end
    assert end not in text_ids(tokenizer, "a<|im_end|>")


def test_a_template_with_a_clock_is_named_and_reads_one_date_always(tmp_path):
    folder = saved(tmp_path / "m", byte_level(LLAMA3))
    tokenizer, notes = read_tokenizer(folder)
    assert len(notes) == 1 and "strftime_now" in notes[0] and f"{CLOCK:%Y-%m-%d}" in notes[0]
    text = tokenizer.apply_chat_template([{"role": "user", "content": "1"}], tokenize=False)
    assert "Today Date: 26 Jul 2024\n" in text
    assert not read_tokenizer(saved(tmp_path / "n", byte_level(QWEN3)))[1]
