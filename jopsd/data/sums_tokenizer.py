"""The tokenizer of the embedded task, as files that `AutoTokenizer.from_pretrained` reads.

One token per printable ASCII character and newline, plus a few whole words, longest match first; so any ASCII prompt
can be encoded and the working of a sum is one token per digit. Text outside ASCII is an error, not an unknown token.
"""

import json
import re
from pathlib import Path

from jopsd.data.sums import SWAHILI_DIGITS, SWAHILI_PLUS

VOCAB_SIZE = 128  # rows of the embedding; the last few have no token
MAX_LENGTH = 512  # tokens; the base has seen prompts and responses of up to 170
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (PAD, START, END)
TAGS = ("<think>", "</think>")
LABELS = ("Problem:", "Reference Solution:", "Another Solution:", "Failed Attempt:", "Tatizo:")
WORDS = ("user", "assistant", "system", "\\boxed{", *LABELS, *SWAHILI_DIGITS, SWAHILI_PLUS)
CHARACTERS = ("\n", *map(chr, range(32, 127)))
VOCAB = {token: index for index, token in enumerate((*SPECIAL, *TAGS, *WORDS, *CHARACTERS))}

# ChatML. Thinking is on unless it is switched off, which closes an empty block before the answer.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<|im_start|>assistant\\n' -}}"
    "{%- if enable_thinking is defined and enable_thinking is false -%}"
    "{{- '<think>\\n\\n</think>\\n\\n' -}}"
    "{%- endif -%}"
    "{%- endif -%}"
)


def tokenizer_json() -> dict:
    """Contents of tokenizer.json."""
    words = sorted(WORDS, key=len, reverse=True)
    pattern = "|".join([*map(re.escape, words), r"[\s\S]"])
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(token) for token in (*SPECIAL, *TAGS)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        # The unknown token is left out of the vocabulary on purpose: unknown text then raises.
        "model": {"type": "WordLevel", "vocab": VOCAB, "unk_token": "<unk>"},
    }


def added_token(token: str) -> dict:
    """An entry of added_tokens. The thinking tags are kept when special tokens are skipped."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": VOCAB[token], "content": token, **flags, "special": token in SPECIAL}


def tokenizer_config() -> dict:
    """Contents of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_LENGTH,
        "padding_side": "left",
        "chat_template": CHAT_TEMPLATE,
    }


def generation_config() -> dict:
    """Contents of generation_config.json."""
    return {"do_sample": True, "temperature": 1.0, "eos_token_id": VOCAB[END], "pad_token_id": VOCAB[PAD]}


def write_tokenizer(directory: Path | str) -> Path:
    """Writes tokenizer.json, tokenizer_config.json and generation_config.json; returns the directory."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    contents = {
        "tokenizer.json": tokenizer_json(),
        "tokenizer_config.json": tokenizer_config(),
        "generation_config.json": generation_config(),
    }
    for name, content in contents.items():
        (directory / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return directory
