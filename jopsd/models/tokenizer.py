"""The tokenizer of a Hugging Face directory, the tokens that end a completion, and completions as text."""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from jopsd.models.hf import CONFIG, GENERATION, VOCABULARIES
from jopsd.models.safetensors_files import read_json
from jopsd.models.turns import CLOCK, control_ids, fix_clock, turn_end

# What tokenizers are known to lose or to split differently. Each is tried by itself, so that a loss can be named.
PROBES = {
    "spaces before punctuation": "a , b . c ? ' d ' do n't",
    "indentation": "if x:\n    y = 1\n\tz = x  ",
    "blank lines": "a\n\nb\n \n\nc",
    "digits": "12345 and 100; 0.125, 1,000",
    "capitals": "Let X be AB, it's iPhone",
    "formulas": "\\frac{1}{2} \\le x^{2} + {y_1} & $z$",
    "accents": "d\u00e9j\u00e0 vu, na\u00efve \u00fcber",
    "other scripts": "\u6f22\u5b57 \u043f\u0440\u0438\u0432\u0435\u0442 \u221e",
}


class Stops(NamedTuple):
    """Token ids that end a completion, the end of an assistant's turn first. note: what a reader should know, or ""."""

    ids: tuple[int, ...]
    note: str = ""


def load_tokenizer(directory: str | Path):
    """Loads the tokenizer of a directory as `read_tokenizer` does, without its notes."""
    return read_tokenizer(directory)[0]


def read_tokenizer(directory: str | Path) -> tuple[object, tuple[str, ...]]:
    """Loads the tokenizer of a directory (a transformers tokenizer) from local files, and notes what is odd about it.

    It gives the tokens that tokenizer.json gives, and decoding removes no spaces, whatever tokenizer_config.json says.
    A chat template that asks for the date is always told the same one.

    Raises:
      FileNotFoundError: the directory or its vocabulary file does not exist.
      ValueError: the files are there but do not make a tokenizer.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast, __version__  # slow to import

    directory = Path(directory)
    if not any((directory / name).is_file() for name in VOCABULARIES):
        raise FileNotFoundError(f"no tokenizer in {directory}: none of {', '.join(VOCABULARIES)} is there")
    notes = []
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
        if probe := _differs(tokenizer, directory):
            notes.append(
                f"tokenizer: transformers {__version__} makes a {type(tokenizer).__name__} of {directory} that splits "
                f"{probe!r} otherwise than its tokenizer.json does; tokenizer.json is used"
            )
            tokenizer = PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:
        raise ValueError(f"{directory}: transformers cannot make a tokenizer of these files: {error}") from error
    if probe := _differs(tokenizer, directory):
        raise ValueError(
            f"{directory}: transformers {__version__} splits {probe!r} otherwise than its tokenizer.json does; remove "
            "tokenizer_class from tokenizer_config.json, or install the transformers that the model was saved with"
        )
    tokenizer.clean_up_tokenization_spaces = False
    if lost := losses(tokenizer):
        name, (given, back) = next(iter(lost.items()))
        notes.append(
            f"tokenizer: {directory} does not give back all that it reads ({', '.join(lost)}): {given!r} becomes "
            f"{back!r} ({name}); completions are graded as it decodes them"
        )
    if fix_clock(tokenizer):
        notes.append(
            f"the chat template of {directory} asks for the date (strftime_now): it is always told {CLOCK:%Y-%m-%d}, "
            "so that a resumed run and an evaluation read the same prompts; write another date into chat_template.jinja"
        )
    return tokenizer, tuple(notes)


def losses(tokenizer) -> dict[str, tuple[str, str]]:
    """Kinds of text that come back changed from encoding and decoding, each with an example and what became of it."""
    changed = {}
    for name, text in PROBES.items():
        try:
            ids = tokenizer.encode(text, add_special_tokens=False)
        except Exception:
            continue
        back = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if back != text:
            changed[name] = (text, back)
    return changed


def _differs(tokenizer, directory: Path) -> str | None:
    """A probe that this tokenizer splits otherwise than the directory's tokenizer.json; None if there is none."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    file = Tokenizer.from_file(str(path))
    for text in PROBES.values():
        try:
            theirs = file.encode(text, add_special_tokens=False).ids
        except Exception:
            continue
        if list(tokenizer.encode(text, add_special_tokens=False)) != theirs:
            return text
    return None


def eos_ids(directory: str | Path, tokenizer) -> tuple[int, ...]:
    """Token ids that end a completion; see `stop_tokens`."""
    return stop_tokens(directory, tokenizer).ids


def stop_tokens(directory: str | Path, tokenizer) -> Stops:
    """What ends a completion: the end of the chat template's assistant turn, and what the model's files name.

    Those are generation_config.json, else config.json, else the tokenizer.

    Raises:
      ValueError: none of them names one, or one that is not an integer.
    """
    directory = Path(directory)
    end = turn_end(tokenizer) if getattr(tokenizer, "chat_template", None) else ()
    named, where = _named_ends(directory, tokenizer)
    if not named and not end:
        raise ValueError(f"no end token: add eos_token_id to {directory / GENERATION} or an eos_token to the tokenizer")
    ids = tuple(dict.fromkeys((*end[-1:], *named)))
    if not end or not named or end[-1] in named:
        return Stops(ids)
    words = lambda tokens: ", ".join(f"{tokenizer.convert_ids_to_tokens(i)} ({i})" for i in tokens)  # noqa: E731
    return Stops(
        ids,
        f"stop tokens: {where} names {words(named)}, and the chat template ends a turn with {words(end[-1:])}: each of "
        "them ends a completion",
    )


def _named_ends(directory: Path, tokenizer) -> tuple[tuple[int, ...], str]:
    """The end tokens that the model's files name, and which file does."""
    for name in (GENERATION, CONFIG):
        path = directory / name
        value = read_json(path, "").get("eos_token_id") if path.is_file() else None
        if value is not None and value != []:
            ids = value if isinstance(value, list) else [value]
            if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
                raise ValueError(f"{path}: eos_token_id = {value!r} is not an integer or a list of integers")
            return tuple(dict.fromkeys(ids)), name
    own = getattr(tokenizer, "eos_token_id", None)
    return ((), "") if own is None else ((int(own),), "the tokenizer")


def solution_ids(tokenizer, text: str, stop_id: int) -> list[int]:
    """A solution as the model should write it: its tokens, then what the chat template ends an assistant's turn with.

    stop_id: the end of a completion, for a template that ends a turn with text alone.
    """
    end = turn_end(tokenizer) if getattr(tokenizer, "chat_template", None) else ()
    return [*text_ids(tokenizer, text), *(end or (stop_id,))]


def completion_text(tokenizer, ids: Sequence[int], stop_ids: Sequence[int] = ()) -> str:
    """A completion as the model wrote it, without the tokens that end or pad it.

    Other special tokens stay: some models write think tags or calls of tools with them.
    """
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    dropped = {*stop_ids, *(getattr(tokenizer, name, None) for name in names)}
    return tokenizer.decode([int(i) for i in ids if int(i) not in dropped], skip_special_tokens=False)


@lru_cache(maxsize=8)
def control_tokens(tokenizer) -> re.Pattern | None:
    """A pattern of the tokens by which a template structures a chat, the longest first; None if there are none."""
    names = sorted(control_ids(tokenizer), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names))) if names else None


def text_ids(tokenizer, text: str) -> list[int]:
    """Token ids of a text in which control tokens that are spelled out stay text."""
    pattern = control_tokens(tokenizer)
    ids, start = [], 0
    for match in pattern.finditer(text) if pattern else ():
        ids += _encoded(tokenizer, text[start : match.start()])
        ids += spelled_ids(tokenizer, match[0])
        start = match.end()
    return ids + _encoded(tokenizer, text[start:])


def spelled_ids(tokenizer, token: str) -> list[int]:
    """Token ids of a control token's name as ordinary text. Cut apart, the name is nothing special to a tokenizer."""
    ids = _encoded(tokenizer, token[:1]) + _encoded(tokenizer, token[1:])
    if set(ids) & set(control_ids(tokenizer).values()):
        ids = [i for character in token for i in _encoded(tokenizer, character)]
    return ids


def _encoded(tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False)) if text else []
