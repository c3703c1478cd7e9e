"""What a chat template does around turns, found by rendering a probe: how one ends, and whether a prompt opens one."""

import re
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

# The date in Llama 3.1's own template. A fixed one gives a resumed run and an evaluation the same prompts.
CLOCK = datetime(2024, 7, 26)

_USER = {"role": "user", "content": "1+1"}
_REPLY = {"role": "assistant", "content": "PROBE"}
_THINK = re.compile(r"</?think(?:ing)?\s*>|\[/?THINK\]")
_THINKING = re.compile(r"think|thought", re.IGNORECASE)


@lru_cache(maxsize=8)
def control_ids(tokenizer: Any) -> Mapping[str, int]:
    """Tokens by which a template structures a chat: special ones, and added ones that the template itself writes.

    Think tags are not among them: they are words of the model.
    """
    added = {token.content: (i, token.special) for i, token in tokenizer.added_tokens_decoder.items()}
    special = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    written = _rendered(tokenizer, [_USER, _REPLY, _USER], True) or _rendered(tokenizer, [_USER], True) or ""
    ids = {name: i for name, (i, is_special) in added.items() if is_special or name in written} | dict(special)
    return {name: i for name, i in ids.items() if name.strip() and not _THINKING.search(name)}


def turn_end(tokenizer: Any) -> tuple[int, ...]:
    """Token ids after the assistant's words up to the control token that ends its turn; () where no token does.

    Where nothing follows the last turn (GLM), what opens the user's next one ends it.
    """
    control = set(control_ids(tokenizer).values())
    for messages in ([_USER, _REPLY], [_USER, _REPLY, _USER]):
        text = _rendered(tokenizer, messages)
        if text is None or _REPLY["content"] not in text:
            continue
        after = text.rpartition(_REPLY["content"])[2]
        ids = tokenizer.encode(after, add_special_tokens=False) if after else []
        for place, token in enumerate(ids):
            if token in control:
                return tuple(ids[: place + 1])
    return ()


def generation_fault(tokenizer: Any) -> str | None:
    """What is wrong with the template's generation prompt, or None.

    It is wrong where the flag changes nothing, although the assistant's turn has a header that is then left out. Some
    templates (Mistral) have none: the end of the user's turn opens the assistant's.
    """
    closed, opened = (_rendered(tokenizer, [_USER], add_generation_prompt=flag) for flag in (False, True))
    if opened is None or closed != opened:
        return None
    whole = _rendered(tokenizer, [_USER, _REPLY])
    if whole is None or not whole.startswith(opened.rstrip()) or _REPLY["content"] not in whole:
        return None
    header = _THINK.sub("", whole[len(opened.rstrip()) : whole.rindex(_REPLY["content"])]).strip()
    if not header:
        return None
    return (
        f"ignores add_generation_prompt, so a prompt ends before {header!r}, which opens the assistant's turn; add "
        "{% if add_generation_prompt %}...{% endif %} to its end"
    )


def fix_clock(tokenizer: Any) -> bool:
    """Tells a template that asks for the time (`strftime_now`) the same one always; False for one that does not ask."""
    given = getattr(tokenizer, "chat_template", None) or ""
    if "strftime_now" not in str(given):
        return False
    # The newline right after a block is the block's, so one that the text begins with is written twice.
    fixed = lambda text: _clock_macro() + "\n" * text.startswith("\n") + text  # noqa: E731
    tokenizer.chat_template = {k: fixed(v) for k, v in given.items()} if isinstance(given, dict) else fixed(given)
    return True


def _clock_macro() -> str:
    """A macro that takes the place of transformers' `strftime_now`, which templates are given and cannot be denied."""
    codes = [f"%{flag}{letter}" for flag in "-_" for letter in "dHIjmMS"]
    codes += [f"%{letter}" for letter in "aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ%"]
    filters = "".join(f" | replace({code!r}, {CLOCK.strftime(code)!r})" for code in codes)
    return "{%- macro strftime_now(form) -%}{{ form" + filters + " }}{%- endmacro %}"


def _rendered(tokenizer: Any, messages: list[dict[str, str]], add_generation_prompt: bool = False) -> str | None:
    """The messages as text; None where the template refuses them."""
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception:  # a template may raise anything
        return None
